"""CardioBench's metrics, as its evaluation scripts define and round them.

From the facts of BioMedIA-MBZUAI/CardioBench, evaluation/utils.py, at commit e0bc185: the numbers are the same to the
last printed digit, the code is our own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Codes, Floats

__all__ = [
    "CLASS_DIGITS",
    "OTHER_DIGITS",
    "VIEWS",
    "hard_label_metrics",
    "regression_metrics",
    "view_metrics",
    "view_probabilities",
]

VIEWS = ("A2C", "A3C", "A4C", "PSAX", "PLAX", "Other")  # in the order of its probability columns
_MIN_DEVIATION = 1e-12  # below, a correlation has no value
_BINS = 15  # of the expected calibration error
CLASS_DIGITS, OTHER_DIGITS = 4, 2  # decimals of metrics of hard labels, and of numbers and views


def _rounder(digits: int | None) -> Callable[[float], float]:
    return (lambda value: float(value)) if digits is None else (lambda value: round(float(value), digits))


def regression_metrics(y_true: Floats, y_pred: Floats, *, rounded: bool = True) -> dict[str, float]:
    """Return MAE, NMAE, MSE, RMSE, R2 and both correlations, to two decimals; NMAE, R2 and correlations in per cent.

    NMAE divides by the range of the true values of this very sample, so that it depends on who is in it.

    Examples
    --------
    >>> regression_metrics(np.array([50.0, 60.0, 70.0]), np.array([52.0, 60.0, 69.0]))["NMAE(%)"]
    5.0
    """
    # Columns, as scikit-learn sums them: a sum in another order may round another way.
    true, predicted = y_true.reshape(-1, 1), y_pred.reshape(-1, 1)
    mae = np.mean(np.abs(predicted - true), axis=0)[0]
    mse = np.mean((true - predicted) ** 2, axis=0)[0]
    left = np.asarray(np.sum((true - predicted) ** 2, axis=0))[0]
    around: Floats = true - np.mean(true, axis=0)
    spread = np.asarray(np.sum(around**2, axis=0))[0]
    width = y_true.max() - y_true.min()
    constant = min(y_true.std(), y_pred.std()) < _MIN_DEVIATION
    values = {
        "MAE": mae,
        "NMAE(%)": 100.0 * mae / width if width > 0 else np.nan,
        "MSE": mse,
        "RMSE": np.sqrt(mse),
        "R2(%)": 100.0 * (1.0 - left / spread) if spread > 0 else np.nan,
        "Pearson_r(%)": np.nan if constant else 100.0 * _pearson(y_true, y_pred),
        "Spearman_rho(%)": np.nan if constant else 100.0 * _spearman(y_true, y_pred),
    }
    to = _rounder(OTHER_DIGITS if rounded else None)
    return {name: to(value) for name, value in values.items()}


def _pearson(a: Floats, b: Floats) -> float:
    """Correlate as SciPy does: unit vectors first, each scaled by its largest value before its length is taken."""
    units = []
    for values in (a, b):
        away = values - values.mean()
        largest = np.abs(away).max()
        units.append(away / (largest * np.sqrt(np.sum((away / largest) ** 2))))
    return float(np.clip(np.vecdot(*units), -1.0, 1.0))


def _spearman(a: Floats, b: Floats) -> float:
    table = np.asarray(np.corrcoef(np.column_stack([_ranks(a), _ranks(b)]), rowvar=False))
    return float(table[1, 0])


def _ranks(values: Floats) -> Floats:
    """Return ranks from 1, equal values sharing the mean of theirs."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2.0)[codes]
    return ranks


def hard_label_metrics(y_true: Codes, y_pred: Codes, *, rounded: bool = True) -> dict[str, float]:
    """Return accuracy, balanced accuracy and macro F1 of hard labels, in per cent to four decimals.

    Balanced accuracy and F1 go over the classes that occur in ``y_true`` of this very sample.

    Examples
    --------
    >>> hard_label_metrics(np.array([0, 0, 1]), np.array([0, 1, 1]))
    {'Accuracy(%)': 66.6667, 'Balanced_Accuracy(%)': 75.0, 'F1(%)': 66.6667}
    """
    accuracy, balanced, f1 = _of_labels(y_true, y_pred)
    to = _rounder(CLASS_DIGITS if rounded else None)
    return {"Accuracy(%)": to(accuracy), "Balanced_Accuracy(%)": to(balanced), "F1(%)": to(f1)}


def _of_labels(y_true: Codes, y_pred: Codes) -> tuple[float, float, float]:
    """Return accuracy, balanced accuracy and macro F1 in per cent."""
    n_classes = int(max(y_true.max(), y_pred.max())) + 1
    confusion = np.bincount(y_true * n_classes + y_pred, minlength=n_classes**2).reshape(n_classes, n_classes)
    right, occurring, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    known = occurring > 0
    recall = right[known] / occurring[known]
    f1 = 2.0 * right[known] / (occurring[known] + predicted[known])
    return 100.0 * right.sum() / len(y_true), 100.0 * float(recall.mean()), 100.0 * float(f1.mean())


def view_probabilities(probabilities: Floats, *, other_from_sum: bool = True) -> Floats:
    """Return the six shares (n, 6) of `VIEWS` as CardioBench reads them.

    Parameters
    ----------
    probabilities : (n, 6) float64
        As predicted.
    other_from_sum : bool
        Put what the five views leave of 1 in place of the last share, as CardioBench does.
    """
    shares = np.array(probabilities, dtype=np.float64)
    if other_from_sum:
        shares[:, -1] = np.clip(1.0 - shares[:, :-1].sum(axis=1), 0.0, 1.0)
    total = shares.sum(axis=1, keepdims=True)
    normal: Floats = shares / np.where(total > 0, total, 1.0)
    return normal


def view_metrics(y_true: Codes, shares: Floats, *, rounded: bool = True) -> dict[str, float]:
    """Return accuracy, balanced accuracy, macro F1, Brier score, log loss and calibration error, in per cent.

    Parameters
    ----------
    y_true : (n,) int
        Positions in `VIEWS`.
    shares : (n, 6) float64
        From `view_probabilities`.
    """
    y_pred = shares.argmax(axis=1)
    accuracy, balanced, f1 = _of_labels(y_true, y_pred)
    truth = np.zeros_like(shares)
    truth[np.arange(len(y_true)), y_true] = 1.0
    step = np.finfo(np.float64).eps  # where scikit-learn's log_loss cuts off
    likelihood = np.clip(shares[np.arange(len(y_true)), y_true], step, 1.0 - step)
    values = {
        "Accuracy(%)": accuracy,
        "Balanced_Accuracy(%)": balanced,
        "F1_macro(%)": f1,
        "Brier_multiclass(%)": 100.0 * np.mean(np.sum((shares - truth) ** 2, axis=1)),
        "NLL_multiclass(%)": -100.0 * np.mean(np.log(likelihood)),
        "ECE_top1(%)": 100.0 * _calibration_error(shares.max(axis=1), y_pred == y_true),
    }
    to = _rounder(OTHER_DIGITS if rounded else None)
    return {name: to(value) for name, value in values.items()}


def _calibration_error(confidence: Floats, is_right: npt.NDArray[np.bool_]) -> float:
    """Return the expected calibration error over equal bins, each open below and closed above."""
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, _BINS - 1)
    counts = np.bincount(places, minlength=_BINS)
    gaps = np.abs(
        np.bincount(places, weights=is_right, minlength=_BINS)
        - np.bincount(places, weights=confidence, minlength=_BINS)
    )
    return float(gaps[counts > 0].sum() / len(confidence))
