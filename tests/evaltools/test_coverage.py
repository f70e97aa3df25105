"""The 95 % interval over patients covers the truth about 95 times in 100, where one over clips would not."""

from __future__ import annotations

import numpy as np

from evaltools.metrics import RegressionScorer
from evaltools.resample import estimate_metrics

PATIENTS, CLIPS = 100, 4


def covered(n_sets: int, *, by_patient: bool) -> float:
    """Return the share of simulated test sets whose interval of the MAE holds the true MAE.

    Errors are a patient's own (sd 4) plus a clip's own (sd 3): normal of sd 5, so the true MAE is 5 sqrt(2 / pi).
    """
    truth = 5 * np.sqrt(2 / np.pi)
    rng = np.random.default_rng(20)
    patients = np.repeat(np.arange(PATIENTS), CLIPS)
    units = patients if by_patient else np.arange(len(patients))
    hits = 0
    for seed in range(n_sets):
        error = 4 * rng.normal(size=PATIENTS)[patients] + 3 * rng.normal(size=len(patients))
        y_true = rng.normal(55, 12, len(patients))
        scorer = RegressionScorer(y_true, y_true + error, patients=units)
        estimate = estimate_metrics(
            lambda counts, scorer=scorer: scorer(counts, ranked=()),  # type: ignore[misc]
            n_patients=scorer.n_patients, draws=1000, seed=seed,
        )["mae"]  # fmt: skip
        assert estimate.ci_low is not None and estimate.ci_high is not None
        hits += estimate.ci_low <= truth <= estimate.ci_high
    return hits / n_sets


def test_the_interval_over_patients_covers() -> None:
    assert 0.92 <= covered(500, by_patient=True) <= 0.98


def test_an_interval_over_clips_would_not() -> None:
    assert covered(100, by_patient=False) < covered(100, by_patient=True) - 0.04
