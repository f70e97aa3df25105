"""The patient bootstrap: intervals that keep the clips of a patient together.

Draws are matrices of patient counts in blocks of a fixed size, so the memory is bounded and the draws of a seed do
not depend on the machine. An interval covers the sampling of test patients for a fitted probe, not its refitting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Codes, Floats
from evaltools.threads import one_blas_thread

__all__ = ["DEFAULT_DRAWS", "Estimate", "estimate_metrics", "interval_refusal", "patient_codes", "patient_draws"]

DEFAULT_DRAWS = 2000
MIN_PATIENTS = 20  # below these the value stands without an interval
MIN_CLASS_PATIENTS = 5
LEVEL = 0.95
_BLOCK = 250
_KEPT_BYTES = 32 << 20  # draws of no more than this are kept for the next estimate
_MAX_UNDEFINED = 0.05  # share of draws without a value (one class drawn) beyond which an interval would mislead

Scorer = Callable[[Floats], dict[str, Floats]]


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval.

    Attributes
    ----------
    value : float or None
        None where the metric has no value, such as a correlation with constant predictions.
    ci_low, ci_high : float or None
        Percentile interval; None where it is refused.
    ci_reason : str or None
        Why there is no value or no interval.
    """

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; ``ci_reason`` is there only where it says something."""
        fields: dict[str, Any] = {"value": self.value, "ci_low": self.ci_low, "ci_high": self.ci_high}
        return fields if self.ci_reason is None else {**fields, "ci_reason": self.ci_reason}


def patient_codes(patients: npt.NDArray[Any]) -> Codes:
    """Number patients 0 to P - 1 in the order of their ids.

    Examples
    --------
    >>> patient_codes(np.array(["p7", "p2", "p7"])).tolist()
    [1, 0, 1]
    """
    codes: Codes = np.unique(patients.astype(str), return_inverse=True)[1].astype(np.intp)
    return codes


def patient_draws(n_patients: int, *, draws: int, seed: int) -> Iterator[Floats]:
    """Yield patient counts, in all (draws, P): every row counts P patients drawn with replacement."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, _BLOCK):
        rows = min(_BLOCK, draws - start)
        drawn = rng.integers(0, n_patients, size=(rows, n_patients))
        drawn += n_patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_patients)
        yield counts.reshape(rows, n_patients).astype(np.float64)


@lru_cache(maxsize=2)
def _kept_draws(n_patients: int, *, draws: int, seed: int) -> tuple[Floats, ...]:
    """Return the blocks of `patient_draws`: every set of vectors of a table, and every metric, has the same."""
    blocks = tuple(patient_draws(n_patients, draws=draws, seed=seed))
    for block in blocks:
        block.flags.writeable = False
    return blocks


def interval_refusal(patients: Codes, classes: npt.NDArray[Any] | None = None) -> str | None:
    """Return why no interval can be given, or None.

    Parameters
    ----------
    patients : (n,) int
        Patient of each scored row.
    classes : (n,) array or None
        True class of each row, for classification.
    """
    n_patients = len(np.unique(patients))
    if n_patients < MIN_PATIENTS:
        return f"{n_patients} patients, fewer than {MIN_PATIENTS}"
    if classes is not None:
        for name in np.unique(classes):
            of_class = len(np.unique(patients[classes == name]))
            if of_class < MIN_CLASS_PATIENTS:
                return f"{of_class} patients of class {name}, fewer than {MIN_CLASS_PATIENTS}"
    return None


def estimate_metrics(
    scorer: Scorer, *, n_patients: int, draws: int = DEFAULT_DRAWS, seed: int, refusal: str | None = None
) -> dict[str, Estimate]:
    """Return every metric of a scorer with its interval.

    Parameters
    ----------
    scorer : callable
        A `RegressionScorer` or `ClassificationScorer`.
    n_patients : int
        P.
    draws : int
        Bootstrap draws; 0 gives no intervals.
    seed : int
        From `embedstore.identity.derive_seed`; equal seeds draw equal patients, so replicates of two encoders pair.
    refusal : str or None
        From `interval_refusal`.
    """
    with one_blas_thread():  # products of blocks of draws with a few columns
        return _estimates(scorer, n_patients, draws, seed, refusal)


def _estimates(scorer: Scorer, n_patients: int, draws: int, seed: int, refusal: str | None) -> dict[str, Estimate]:
    values = {name: float(replicate[0]) for name, replicate in scorer(np.ones((1, n_patients))).items()}
    if refusal is None and draws < 1:
        refusal = "no bootstrap was asked for"
    if refusal is not None:
        return {name: _without_interval(value, refusal) for name, value in values.items()}
    drawn = _kept_draws if 8 * n_patients * draws <= _KEPT_BYTES else patient_draws
    blocks = [scorer(counts) for counts in drawn(n_patients, draws=draws, seed=seed)]
    return {
        name: _with_interval(value, np.concatenate([block[name] for block in blocks]))
        for name, value in values.items()
    }


def _without_interval(value: float, reason: str) -> Estimate:
    if np.isnan(value):
        return Estimate(None, ci_reason="not defined for these labels and predictions")
    return Estimate(value, ci_reason=reason)


def _with_interval(value: float, replicates: Floats) -> Estimate:
    known = replicates[~np.isnan(replicates)]
    undefined = len(replicates) - len(known)
    if np.isnan(value) or undefined > _MAX_UNDEFINED * len(replicates):
        return _without_interval(value, f"not defined in {undefined} of {len(replicates)} draws")
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def estimates_to_dict(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """Return the JSON form of a metrics dictionary."""
    return {name: estimate.to_dict() for name, estimate in estimates.items()}
