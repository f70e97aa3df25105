"""Metrics, each computed for many weightings of patients at once.

A scorer holds one set of predictions; called with patient counts of shape (B, P) it returns every metric B times,
where ``counts[b, p]`` says how often patient p stands in replicate b, with all clips. The plain value is the
replicate in which every patient stands once, so a value and its bootstrap come from the same formulas.

A metric that has no value (R2 of constant labels, AUROC of one class) is NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evaltools.calibration import Calibration
from evaltools.rankings import Ranking, auroc, average_precision, by_slices, prefix_sums, spearman

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
        Metric("ece", "ECE", "classification", higher_is_better=False),
        Metric("brier", "Brier score", "classification", higher_is_better=False),
        Metric("nll", "NLL", "classification", higher_is_better=False),
        Metric("recall", "recall", "classification", of_one_class=True),
    )
}


RANKED = ("spearman", "auroc", "auprc")  # those that need the order of predictions, not their sums
_OF_CLASSES = {"auroc": auroc, "auprc": average_precision}


def metric_names(kind: Kind) -> tuple[str, ...]:
    """Return the names of the metrics of one kind, in the order of tables."""
    return tuple(name for name, metric in METRICS.items() if metric.kind == kind and not metric.of_one_class)


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
        self._rankings = Ranking(self._y, patients), Ranking(self._p, patients)

    def __call__(self, counts: Floats, *, ranked: Collection[str] = RANKED) -> dict[str, Floats]:
        """Return each metric for each row of ``counts`` (B, P) as an array (B,).

        Spearman, the slow one, is there where ``ranked`` names it.
        """
        scores = self.of_sums(counts @ self.patient_sums)
        if "spearman" in ranked:
            scores["spearman"] = by_slices(counts, len(self.patients), lambda part: spearman(part, *self._rankings))
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
    """Accuracy, balanced accuracy, macro F1, AUROC, AUPRC and calibration of one set of predictions.

    The predicted class is the one of highest probability. Balanced accuracy is the mean recall over the classes
    that occur; macro F1 averages over classes that occur or are predicted. With two classes AUROC and AUPRC take
    the second as the positive one; with more they are means over one-vs-rest of the classes that occur. ECE, Brier
    score and NLL are those of `evaltools.calibration.Calibration`.

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
        rankings = [Ranking(probabilities[:, k], patients) for k in occurring]
        self._calibration = Calibration(y_true, probabilities, patients=patients)
        self._versus_rest = [(one, (y_true == k)[one.order]) for one, k in zip(rankings, occurring, strict=True)]

    def __call__(self, counts: Floats, *, ranked: Collection[str] = RANKED) -> dict[str, Floats]:
        """Return each metric for each row of ``counts`` (B, P) as an array (B,).

        AUROC and AUPRC, the slow ones, are there where ``ranked`` names them.
        """
        scores = self.of_sums(counts @ self.patient_sums) | self._calibration(counts)
        names = [name for name in _OF_CLASSES if name in ranked]
        if names:
            found = by_slices(counts, len(self.patients), lambda part: self._ranked(part, names))
            scores |= dict(zip(names, found.T, strict=True))
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

    def _ranked(self, counts: npt.NDArray[np.int32], names: Sequence[str]) -> Floats:
        """Rank metrics (B, len(names))."""
        known: dict[str, list[Floats]] = {name: [] for name in names}
        for ranking, is_positive in self._versus_rest:
            prefix = prefix_sums(ranking.weights(counts))
            for name in names:
                known[name].append(_OF_CLASSES[name](ranking, is_positive, prefix))
        return np.column_stack([_mean_known(np.column_stack(of_classes)) for of_classes in known.values()])


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
