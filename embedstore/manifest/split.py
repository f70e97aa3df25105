"""Split names, and a split drawn by patient where a data set has none."""

from __future__ import annotations

from collections.abc import Sequence

from embedstore.identity import derive_seed

__all__ = ["SPLITS", "draw_patient_split", "normalise_split"]

SPLITS = ("train", "val", "test")

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def normalise_split(text: str | None) -> str | None:
    """Return ``train``, ``val`` or ``test`` for the spellings in use; anything else is returned as it is.

    Examples
    --------
    >>> normalise_split("VALIDATION"), normalise_split(" Test "), normalise_split("fold3")
    ('val', 'test', 'fold3')
    """
    if text is None or not text.strip():
        return None
    return _SPLIT_NAMES.get(text.strip().lower(), text.strip())


def draw_patient_split(
    patients: Sequence[str], *, seed: int, fractions: tuple[float, float, float] = (0.5, 0.2, 0.3)
) -> list[str]:
    """Draw a split by patient: all clips of a patient fall together.

    Parameters
    ----------
    patients : sequence of str
        Patient of each row.
    fractions : (float, float, float)
        Shares of train, val and test among patients; from three patients on, no split that has a share is empty.

    Returns
    -------
    list of str
        Split of each row, the same for the same patients and seed in any row order.
    """
    distinct = sorted(set(patients), key=lambda patient: (derive_seed("split", seed, patient), patient))
    n_train = round(fractions[0] * len(distinct))
    n_val = round(fractions[1] * len(distinct))
    if len(distinct) >= len(SPLITS):
        n_val = max(n_val, fractions[1] > 0)
        n_train = max(min(n_train, len(distinct) - n_val - (fractions[2] > 0)), fractions[0] > 0)
    split_of = {
        patient: "train" if rank < n_train else "val" if rank < n_train + n_val else "test"
        for rank, patient in enumerate(distinct)
    }
    return [split_of[patient] for patient in patients]
