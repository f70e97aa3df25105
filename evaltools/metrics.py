"""Metrics, each computed for many weightings of patients at once.

A scorer holds one set of predictions; called with patient counts of shape (B, P) it returns every metric B times,
where ``counts[b, p]`` says how often patient p stands in replicate b, with all clips. The plain value is the
replicate in which every patient stands once, so a value and its bootstrap come from the same formulas.

A metric that has no value (R2 of constant labels, AUROC of one class) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "METRICS",
    "RANKED",
    "ClassificationScorer",
    "Metric",
    "RegressionScorer",
    "classification_metrics",
    "metric_names",
    "regression_metrics",
]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]
Kind = Literal["regression", "classification"]

_CELLS = 1 << 22  # of a (replicates, rows) matrix held at a time, 32 MiB in float64
_ROUNDING = 1e-12  # a variance below this share of its own second moment is rounding, not spread


@dataclass(frozen=True)
class Metric:
    """What there is to know about a metric.

    Attributes
    ----------
    name, title : str
        The name in results, the name for people.
    kind : {"regression", "classification"}
        Where it has a meaning.
    higher_is_better : bool
        Direction.
    in_target_unit : bool
        Whether it carries the unit of the target; the others are plain numbers.
    of_one_class : bool
        Whether it stands in for the others where every clip is of one class; no task lists it.
    """

    name: str
    title: str
    kind: Kind
    higher_is_better: bool = True
    in_target_unit: bool = False
    of_one_class: bool = False


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("mae", "MAE", "regression", higher_is_better=False, in_target_unit=True),
        Metric("rmse", "RMSE", "regression", higher_is_better=False, in_target_unit=True),
        Metric("r2", "R2", "regression"),
        Metric("pearson", "Pearson r", "regression"),
        Metric("spearman", "Spearman rho", "regression"),
        Metric("accuracy", "accuracy", "classification"),
        Metric("balanced_accuracy", "balanced accuracy", "classification"),
        Metric("f1_macro", "macro F1", "classification"),
        Metric("auroc", "AUROC", "classification"),
        Metric("auprc", "AUPRC", "classification"),
        Metric("recall", "recall", "classification", of_one_class=True),
    )
}


RANKED = frozenset({"spearman", "auroc", "auprc"})  # those that need the order of predictions, not their sums


def metric_names(kind: Kind) -> tuple[str, ...]:
    """Return the names of the metrics of one kind, in the order of tables."""
    return tuple(name for name, metric in METRICS.items() if metric.kind == kind and not metric.of_one_class)


class _Sorted:
    """Rows in ascending order of a score, with the bounds of each run of equal scores."""

    def __init__(self, score: Floats) -> None:
        self.order = np.argsort(score, kind="stable")
        ascending = score[self.order]
        fresh = np.concatenate([[True], ascending[1:] != ascending[:-1]])
        self.starts = np.flatnonzero(fresh)
        self.ends = np.concatenate([self.starts[1:], [len(score)]]) - 1
        run = np.cumsum(fresh) - 1
        self.first, self.last = self.starts[run], self.ends[run]
        self.tied = len(self.starts) < len(score)

    def below(self, weights: Floats) -> Floats:
        """Per row the weight of rows with a lower score plus half that of its equals, all (B, n), sorted order."""
        reached = np.cumsum(weights, axis=1)
        before = reached - weights
        if self.tied:
            reached, before = reached[:, self.last], before[:, self.first]
        half: Floats = (reached + before) / 2
        return half


def _by_slices(counts: Floats, n_rows: int, score: Callable[[Floats], Floats]) -> Floats:
    """Score replicates a few at a time, so that memory does not grow with rows times replicates."""
    step = max(_CELLS // max(n_rows, 1), 1)
    return np.concatenate([score(counts[start : start + step]) for start in range(0, len(counts), step)])


class RegressionScorer:
    """MAE, RMSE, R2, Pearson and Spearman of one set of predictions.

    Parameters
    ----------
    y_true, y_pred : (n,) float64
        Targets and predictions in one unit.
    patients : (n,) int
        Which patient each row belongs to, 0 to P - 1.
    """

    def __init__(self, y_true: Floats, y_pred: Floats, *, patients: Codes) -> None:
        self.patients = patients
        self.n_patients = int(patients.max()) + 1 if len(patients) else 0
        error = y_pred - y_true
        self._y, self._p = _centred(y_true), _centred(y_pred)
        columns = (np.ones_like(error), np.abs(error), error**2, self._y, self._y**2, self._p, self._p**2)
        self.patient_sums = _patient_sums((*columns, self._y * self._p), patients, self.n_patients)
        self._sorted_y, self._sorted_p = _Sorted(self._y), _Sorted(self._p)

    def __call__(self, counts: Floats, *, ranked: bool = True) -> dict[str, Floats]:
        """Return each metric for each row of ``counts`` (B, P) as an array (B,).

        ``ranked=False`` leaves out Spearman, the slow one.
        """
        scores = self.of_sums(counts @ self.patient_sums)
        if ranked:
            scores["spearman"] = _by_slices(counts, len(self.patients), self._spearman)
        return scores

    def of_sums(self, sums: Floats) -> dict[str, Floats]:
        """Return the metrics that need no ranks from sums of `patient_sums` (B, S)."""
        n, absolute, squared, y, yy, p, pp, yp = sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            spread_y, spread_p = _spread(n, y, yy), _spread(n, p, pp)
            pearson = (yp - y * p / n) / np.sqrt(spread_y * spread_p)
            return {
                "mae": absolute / n,
                "rmse": np.sqrt(squared / n),
                "r2": 1.0 - squared / spread_y,
                "pearson": np.clip(pearson, -1.0, 1.0),
            }

    def _spearman(self, counts: Floats) -> Floats:
        weights = counts[:, self.patients]
        total = weights.sum(axis=1, keepdims=True)
        deviations = []
        for ascending in (self._sorted_y, self._sorted_p):
            below = ascending.below(weights[:, ascending.order])
            deviation = np.empty_like(below)  # rank - (N + 1) / 2 is the weight below - N / 2
            deviation[:, ascending.order] = below - total / 2
            deviations.append(deviation)
        weighted = weights * deviations[0]
        covariance = np.einsum("bn,bn->b", weighted, deviations[1])
        spread_y = np.einsum("bn,bn->b", weighted, deviations[0])
        spread_p = np.einsum("bn,bn,bn->b", weights, deviations[1], deviations[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            rho: Floats = np.clip(covariance / np.sqrt(spread_y * spread_p), -1.0, 1.0)
        return rho


def _centred(values: Floats) -> Floats:
    """Subtract the mean; values that differ by rounding only become exact zeros."""
    if len(values) and np.ptp(values) <= _ROUNDING * np.abs(values).max():
        return np.zeros_like(values)
    centred: Floats = values - values.mean()
    return centred


def _spread(n: Floats, total: Floats, squares: Floats) -> Floats:
    spread = squares - total * total / n
    return np.where(spread > _ROUNDING * squares, spread, np.nan)


def _patient_sums(columns: tuple[Floats, ...], patients: Codes, n_patients: int) -> Floats:
    return np.column_stack([np.bincount(patients, weights=column, minlength=n_patients) for column in columns])


class ClassificationScorer:
    """Accuracy, balanced accuracy, macro F1, AUROC and AUPRC of one set of predictions.

    The predicted class is the one of highest probability. Balanced accuracy is the mean recall over the classes
    that occur; macro F1 averages over classes that occur or are predicted. With two classes AUROC and AUPRC take
    the second as the positive one; with more they are means over one-vs-rest of the classes that occur.

    Parameters
    ----------
    y_true : (n,) int
        Class of each row, 0 to K - 1.
    probabilities : (n, K) float64
        Predicted probabilities.
    patients : (n,) int
        Which patient each row belongs to, 0 to P - 1.
    """

    def __init__(self, y_true: Codes, probabilities: Floats, *, patients: Codes) -> None:
        self.patients = patients
        self.n_patients = int(patients.max()) + 1 if len(patients) else 0
        self.n_classes = probabilities.shape[1]
        pairs = y_true * self.n_classes + probabilities.argmax(axis=1)
        shape = (self.n_patients, self.n_classes**2)
        cells = patients * self.n_classes**2 + pairs
        self.patient_sums = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        occurring = [1] if self.n_classes == 2 else sorted(set(y_true.tolist()))
        self._versus_rest = [(_Sorted(probabilities[:, k]), y_true == k) for k in occurring]

    def __call__(self, counts: Floats, *, ranked: bool = True) -> dict[str, Floats]:
        """Return each metric for each row of ``counts`` (B, P) as an array (B,).

        ``ranked=False`` leaves out AUROC and AUPRC, the slow ones.
        """
        scores = self.of_sums(counts @ self.patient_sums)
        if ranked:
            scores["auroc"], scores["auprc"] = _by_slices(counts, len(self.patients), self._ranked).T
        return scores

    def of_sums(self, sums: Floats) -> dict[str, Floats]:
        """Return the metrics that need no ranks from sums of `patient_sums` (B, K^2)."""
        confusion = sums.reshape(len(sums), self.n_classes, self.n_classes)
        right = np.einsum("bkk->bk", confusion)
        occurring, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "accuracy": right.sum(axis=1) / occurring.sum(axis=1),
                "balanced_accuracy": _mean_known(right / occurring),
                "f1_macro": _mean_known(2 * right / (occurring + predicted)),
            }

    def _ranked(self, counts: Floats) -> Floats:
        """AUROC and AUPRC, (B, 2)."""
        weights = counts[:, self.patients]
        areas, precisions = [], []
        for ascending, positive in self._versus_rest:
            sorted_weights = weights[:, ascending.order]
            is_positive = positive[ascending.order]
            positives, negatives = sorted_weights * is_positive, sorted_weights * ~is_positive
            areas.append(_auroc(ascending, positives, negatives))
            precisions.append(_average_precision(ascending, positives, sorted_weights))
        return np.column_stack([_mean_known(np.column_stack(areas)), _mean_known(np.column_stack(precisions))])


def _auroc(ascending: _Sorted, positives: Floats, negatives: Floats) -> Floats:
    won = np.einsum("bn,bn->b", positives, ascending.below(negatives))
    with np.errstate(divide="ignore", invalid="ignore"):
        area: Floats = won / (positives.sum(axis=1) * negatives.sum(axis=1))
    return area


def _average_precision(ascending: _Sorted, positives: Floats, weights: Floats) -> Floats:
    """Precision at each distinct threshold, weighted by the recall gained there (no interpolation)."""
    found = np.cumsum(positives[:, ::-1], axis=1)[:, ::-1][:, ascending.starts]
    taken = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1][:, ascending.starts]
    gained = found - np.concatenate([found[:, 1:], np.zeros((len(found), 1))], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(taken > 0, found / taken, 0.0)
        average: Floats = np.einsum("bg,bg->b", gained, precision) / found[:, 0]
    return average


def _mean_known(values: Floats) -> Floats:
    """Mean over the last axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, values, 0.0).sum(axis=-1) / known.sum(axis=-1)
    return mean


def _once(scorer: RegressionScorer | ClassificationScorer) -> dict[str, float]:
    return {name: float(values[0]) for name, values in scorer(np.ones((1, scorer.n_patients))).items()}


def regression_metrics(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> dict[str, float]:
    """Return every regression metric of predictions (n,).

    Examples
    --------
    >>> scores = regression_metrics([50.0, 60.0, 70.0], [52.0, 60.0, 68.0])
    >>> round(scores["mae"], 3), round(scores["r2"], 3), scores["spearman"]
    (1.333, 0.96, 1.0)
    """
    true, predicted = np.asarray(y_true, dtype=np.float64), np.asarray(y_pred, dtype=np.float64)
    return _once(RegressionScorer(true, predicted, patients=np.arange(len(true))))


def classification_metrics(y_true: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, float]:
    """Return every classification metric of probabilities (n, K) for classes 0 to K - 1.

    Examples
    --------
    >>> classification_metrics([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.6, 0.4]])["balanced_accuracy"]
    0.75
    """
    codes: Any = np.asarray(y_true, dtype=np.intp)
    return _once(
        ClassificationScorer(codes, np.asarray(probabilities, dtype=np.float64), patients=np.arange(len(codes)))
    )
