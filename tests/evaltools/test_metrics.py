from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from evaltools.metrics import METRICS, classification_metrics, metric_names, regression_metrics


def reference_regression(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant input, which is NaN here and there
        return {
            "mae": reference.mean_absolute_error(y, p),
            "rmse": reference.root_mean_squared_error(y, p),
            "r2": reference.r2_score(y, p) if np.ptp(y) else np.nan,
            "pearson": stats.pearsonr(y, p).statistic,
            "spearman": stats.spearmanr(y, p).statistic,
        }


def reference_classification(y: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    predicted = probabilities.argmax(axis=1)
    occurring = [1] if probabilities.shape[1] == 2 else sorted(set(y.tolist()))
    areas = [reference.roc_auc_score(y == k, probabilities[:, k]) for k in occurring if 0 < (y == k).sum() < len(y)]
    precisions = [reference.average_precision_score(y == k, probabilities[:, k]) for k in occurring if (y == k).any()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # predicted classes that do not occur
        return {
            "accuracy": reference.accuracy_score(y, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(y, predicted),
            "f1_macro": reference.f1_score(y, predicted, average="macro"),
            "auroc": np.mean(areas) if areas else np.nan,
            "auprc": np.mean(precisions) if precisions else np.nan,
            **reference_calibration(y, probabilities),
        }


def reference_calibration(y: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """One row after the other, one bin after the other."""
    brier, surprise, rows = [], [], []
    for true, shares in zip(y, probabilities, strict=True):
        wanted = np.eye(len(shares))[true]
        brier.append((shares[1] - true) ** 2 if len(shares) == 2 else float(((shares - wanted) ** 2).sum()))
        surprise.append(-np.log(max(shares[true], 1e-15)))
        rows.append((shares.max(), float(shares.argmax() == true)))
    error = 0.0
    for code in range(15):
        inside = [row for row in rows if min(int(row[0] * 15), 14) == code]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            error += len(inside) / len(rows) * abs(confidence - accuracy)
    return {"ece": error, "brier": np.mean(brier), "nll": np.mean(surprise)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [0, 8])
def test_regression_is_scipys_and_sklearns(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.round(rng.normal(55, 12, 90), decimals)  # rounding makes ties
    p = np.round(0.4 * y + rng.normal(30, 8, 90), decimals)
    assert regression_metrics(y, p) == pytest.approx(reference_regression(y, p), rel=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("decimals", [1, 8])
def test_classification_is_sklearns(n_classes: int, decimals: int) -> None:
    rng = np.random.default_rng(n_classes)
    y = rng.integers(0, n_classes, 120)
    logits = rng.normal(size=(120, n_classes)) + np.eye(n_classes)[y]
    probabilities = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), decimals)
    assert classification_metrics(y, probabilities) == pytest.approx(
        reference_classification(y, probabilities), rel=1e-12
    )


def test_a_class_that_never_occurs_is_left_out_of_the_means() -> None:
    y = np.array([0, 0, 1, 1, 1, 0])
    probabilities = np.array([[6, 1, 3], [2, 3, 5], [1, 8, 1], [3, 4, 3], [5, 4, 1], [7, 2, 1]]) / 10
    found = classification_metrics(y, probabilities)
    assert found == pytest.approx(reference_classification(y, probabilities))
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("constant", [0.0, 0.1, 55.3, 1e9])
def test_constant_predictions_have_no_correlation_but_an_error(constant: float) -> None:
    y = np.array([40.1, 50.2, 60.7, 61.0])
    found = regression_metrics(y, np.full(4, constant))
    assert np.isnan(found["pearson"]) and np.isnan(found["spearman"])
    assert found["mae"] == pytest.approx(np.abs(y - constant).mean())
    assert regression_metrics(y, np.full(4, y.mean()))["r2"] == pytest.approx(0.0, abs=1e-12)


def test_constant_labels_have_no_r2() -> None:
    found = regression_metrics(np.full(5, 0.3), np.arange(5.0))
    assert np.isnan(found["r2"]) and np.isnan(found["pearson"]) and np.isfinite(found["rmse"])


def test_one_class_has_no_auroc() -> None:
    found = classification_metrics([1, 1, 1], [[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    assert np.isnan(found["auroc"]) and found["accuracy"] == pytest.approx(2 / 3)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30))
def test_few_values_with_many_ties(pairs: list[tuple[int, int]]) -> None:
    y, p = np.array(pairs, dtype=float).T
    found, expected = regression_metrics(y, p), reference_regression(y, p)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ranks_ignore_a_monotone_map(shift: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(2, 40))
    moved = regression_metrics(y, shift + scale * p)
    assert moved["spearman"] == pytest.approx(regression_metrics(y, p)["spearman"], abs=1e-12)
    assert moved["pearson"] == pytest.approx(regression_metrics(y, p)["pearson"], abs=1e-6)


def test_names_are_the_contracts() -> None:
    assert metric_names("regression") == ("mae", "rmse", "r2", "pearson", "spearman")
    of_classes = ("accuracy", "balanced_accuracy", "f1_macro", "auroc", "auprc", "ece", "brier", "nll")
    assert metric_names("classification") == of_classes
    assert set(regression_metrics([1.0, 2.0], [1.0, 2.0])) == set(metric_names("regression"))
    assert set(classification_metrics([0, 1], [[1, 0], [0, 1]])) == set(metric_names("classification"))
    assert not any(METRICS[name].higher_is_better for name in ("mae", "rmse", "ece", "brier", "nll"))
