"""What stands beside the metrics of a result: calibration, agreement, cut-offs, gaps of subgroups.

All intervals are those of the patient bootstrap, from the draws that the metrics have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from evaltools.calibration import Calibration
from evaltools.fitting import Targets
from evaltools.metrics import METRICS, ClassificationScorer, Codes, Floats
from evaltools.resample import Estimate, estimate_metrics, estimates_to_dict, interval_refusal, patient_codes

__all__ = ["EF_CUTOFFS_PCT", "agreement", "calibration", "cutoff_auroc", "subgroup_gap"]

EF_CUTOFFS_PCT = (40.0, 50.0)  # reduced, and reduced or mildly reduced: ESC heart failure guideline 2021, table 3
_AGREEMENT = 1.96  # Bland and Altman, Lancet 1986;1:307-310

Draws = Mapping[str, int]


class _Sums:
    """Sums a patient (P, S), weighted by counts of patients."""

    def __init__(self, columns: Floats, patients: Codes) -> None:
        self.n_patients = int(patients.max()) + 1
        self._sums = np.column_stack([
            np.bincount(patients, weights=column, minlength=self.n_patients) for column in columns.T
        ])  # fmt: skip

    def __call__(self, counts: Floats) -> Floats:
        sums: Floats = counts @ self._sums
        return sums


def calibration(targets: Targets, shares: Floats, *, draws: int, seed: int) -> dict[str, Any]:
    """Return Brier score, expected calibration error, negative log-likelihood and the reliability curve.

    Parameters
    ----------
    targets : Targets
        Whose test rows the shares are for.
    shares : (m, K) float64
        Of the classes, see `evaltools.calibration.Calibration`.

    Returns
    -------
    dict
        JSON values: ``brier``, ``ece``, ``nll`` with intervals; ``bins`` with ``low``, ``high``, ``n``,
        ``confidence``, ``accuracy``.
    """
    true = targets.values[targets.test].astype(np.intp)
    patients = patient_codes(targets.patients[targets.test])
    scorer = Calibration(true, shares, patients=patients)
    refusal = interval_refusal(patients, true)
    estimates = estimate_metrics(scorer, n_patients=scorer.n_patients, draws=draws, seed=seed, refusal=refusal)
    return {**estimates_to_dict(estimates), "bins": scorer.bins()}


def agreement(targets: Targets, values: Floats, *, draws: int, seed: int) -> dict[str, Any]:
    """Return the mean difference (predicted less true) and the limits of agreement of Bland and Altman.

    Returns
    -------
    dict
        JSON values: ``bias``, ``sd``, ``loa_low``, ``loa_high`` with intervals.
    """
    patients = patient_codes(targets.patients[targets.test])
    difference = values - targets.values[targets.test]
    sums = _Sums(np.column_stack([np.ones_like(difference), difference, difference**2]), patients)

    def score(counts: Floats) -> dict[str, Floats]:
        n, total, squares = sums(counts).T
        bias = total / n
        with np.errstate(divide="ignore", invalid="ignore"):
            sd = np.sqrt(np.maximum(squares - n * bias**2, 0.0) / (n - 1))
        return {"bias": bias, "sd": sd, "loa_low": bias - _AGREEMENT * sd, "loa_high": bias + _AGREEMENT * sd}

    refusal = interval_refusal(patients)
    estimates = estimate_metrics(score, n_patients=sums.n_patients, draws=draws, seed=seed, refusal=refusal)
    return estimates_to_dict(estimates)


def cutoff_auroc(targets: Targets, values: Floats, *, cutoff: float, draws: int, seed: int) -> Estimate:
    """Return how well predicted values tell those below a cut-off from the others."""
    below = (targets.values[targets.test] < cutoff).astype(np.intp)
    if len(set(below.tolist())) < 2:
        return Estimate(None, ci_reason=f"every label is {'below' if below.all() else 'at or above'} {cutoff:g}")
    patients = patient_codes(targets.patients[targets.test])
    scorer = ClassificationScorer(below, np.column_stack([values, -values]), patients=patients)
    names = np.array([f"at or above {cutoff:g}", f"below {cutoff:g}"])
    refusal = interval_refusal(patients, names[below])
    return estimate_metrics(
        lambda counts: scorer(counts, ranked=("auroc",)),
        n_patients=scorer.n_patients,
        draws=draws,
        seed=seed,
        refusal=refusal,
    )["auroc"]


def subgroup_gap(
    targets: Targets, predictions: Floats, groups: npt.NDArray[Any], *, metric: str, draws: int, seed: int
) -> dict[str, Any] | None:
    """Return the difference of a metric between its best and its worst group, with its interval over patients.

    Which are the best and the worst is what the values say, and is not chosen again in each draw: the largest of many
    differences would be above zero by chance alone.

    Parameters
    ----------
    groups : (m,) object
        Group of each test row.

    Returns
    -------
    dict or None
        JSON values: ``best``, ``worst``, ``gap``; None where fewer than two groups have a value.
    """
    rows = targets.test
    codes = patient_codes(targets.patients[rows])
    n_patients = int(codes.max()) + 1
    scorers, values = {}, {}
    for name in sorted(set(groups)):
        kept = groups == name
        scorers[name] = targets.scorer(targets.values[rows][kept], predictions[kept], codes[kept])
        found = float(scorers[name](np.ones((1, scorers[name].n_patients)))[metric][0])
        if np.isfinite(found):
            values[name] = found
    if len(values) < 2:
        return None
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    order = sorted(values, key=lambda name: (-sign * values[name], name))
    best, worst = order[0], order[-1]
    classes = targets.values[rows].astype(str) if targets.classes else None
    refusals = [
        interval_refusal(codes[groups == name], None if classes is None else classes[groups == name])
        for name in (best, worst)
    ]

    def score(counts: Floats) -> dict[str, Floats]:
        of = [scorers[name](counts[:, : scorers[name].n_patients])[metric] for name in (best, worst)]
        return {"gap": of[0] - of[1]}

    with np.errstate(divide="ignore", invalid="ignore"):
        estimates = estimate_metrics(
            score, n_patients=n_patients, draws=draws, seed=seed, refusal=refusals[0] or refusals[1]
        )
    return {"best": best, "worst": worst, "gap": estimates["gap"].to_dict()}
