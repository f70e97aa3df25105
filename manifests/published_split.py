"""The published rule for splits that a benchmark drew itself: by patient, stratified by label, seed 42."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from embedstore.manifest import Finding
from manifests.clips import ReleaseClip
from manifests.release import Release

__all__ = ["SPLIT_SEED", "PublishedShares", "set_published_split", "split_patients"]

# random_state of both draws for HMC-QU and CardiacNet in the history of the scripts of CardioBench, arXiv:2510.00520.
SPLIT_SEED = 42


@dataclass(frozen=True, kw_only=True)
class PublishedShares:
    """Shares of patients: test of all, val of what is left."""

    test: float
    val_of_rest: float


def split_patients(is_positive: Mapping[str, bool], shares: PublishedShares) -> dict[str, str] | None:
    """Return the split of each patient: first test, then val out of the rest, both stratified by label.

    Patients are drawn in the lexical order of their ids, in which the benchmark's tables group them.

    Parameters
    ----------
    is_positive : mapping of str to bool
        Whether any clip of a patient is positive.

    Returns
    -------
    dict of str to str, or None
        None where there are too few patients of a class to draw from.
    """
    patients = sorted(is_positive)
    try:
        rest, test = _draw(patients, is_positive, share=shares.test)
        train, val = _draw(rest, is_positive, share=shares.val_of_rest)
    except ValueError:  # scikit-learn: a class with one member, or fewer places than classes
        return None
    drawn = {"train": train, "val": val, "test": test}
    return {patient: split for split, members in drawn.items() for patient in members}


def _draw(
    patients: Sequence[str], is_positive: Mapping[str, bool], *, share: float
) -> tuple[Sequence[str], Sequence[str]]:
    from sklearn.model_selection import train_test_split

    labels = [int(is_positive[patient]) for patient in patients]
    stratify = labels if len(set(labels)) > 1 else None
    first, second = train_test_split(patients, test_size=share, stratify=stratify, random_state=SPLIT_SEED)
    return first, second


def set_published_split(
    clips: Iterable[ReleaseClip],
    release: Release,
    is_positive: Mapping[str, bool],
    *,
    patient_column: str,
    shares: PublishedShares,
) -> None:
    """Give clips the split of the published rule; it is the published split only where no clip is missing.

    Parameters
    ----------
    patient_column : str
        The patients that the rule knows, which need not be the true ones.
    """
    clips = list(clips)
    draft = release.draft
    splits = split_patients(is_positive, shares)
    if splits is None:
        draft.findings.append(
            Finding("split-impossible", "too few patients of a class to draw the published split; give --splits FILE")
        )
        return
    for clip in clips:
        clip.row["split"] = splits.get(clip.row[patient_column])
    draft.split_rule = (
        f"published rule, recomputed: stratified by patient, seed {SPLIT_SEED}, test {shares.test:g}, "
        f"val {shares.val_of_rest:.4g} of the rest"
    )
    n_published = release.dataset.expected_counts["clips"]
    if len(clips) != n_published:
        message = (
            f"the split was drawn from {len(clips):,} clips, the published one from {n_published:,}, so they differ; "
            "complete the download, or give CardioBench's file with --splits FILE"
        )
        draft.findings.append(Finding("split-recomputed", message))
