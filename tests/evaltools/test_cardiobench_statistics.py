"""CardioBench's numbers against straight scikit-learn and SciPy code that follows the published definition."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
)

from embedstore import Manifest, ManifestField
from embedstore.errors import UnknownNameError
from evaltools.cardiobench import statistics
from evaltools.cardiobench.metrics import (
    VIEWS,
    hard_label_metrics,
    regression_metrics,
    view_metrics,
    view_probabilities,
)
from evaltools.cardiobench.numbers import cardiobench_numbers, file_order
from evaltools.cardiobench.statistics import Habits, bootstrap
from evaltools.knn import KnnOptions, knn_manifest
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.report.text import format_results
from evaltools.result import Predictions
from evaltools.task import get_task
from evaltools.task_rows import TaskDataset, TaskRow

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def _regression(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    mae = mean_absolute_error(y, p)
    constant = np.std(y) < 1e-12 or np.std(p) < 1e-12
    values = {
        "MAE": mae,
        "NMAE(%)": 100 * mae / (y.max() - y.min()),
        "MSE": mean_squared_error(y, p),
        "RMSE": np.sqrt(mean_squared_error(y, p)),
        "R2(%)": 100 * r2_score(y, p),
        "Pearson_r(%)": np.nan if constant else 100 * pearsonr(y, p)[0],
        "Spearman_rho(%)": np.nan if constant else 100 * spearmanr(y, p)[0],
    }
    return {name: round(float(value), 2) for name, value in values.items()}


def _labels(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is predicted and not there
        values = {
            "Accuracy(%)": 100 * accuracy_score(y, p),
            "Balanced_Accuracy(%)": 100 * balanced_accuracy_score(y, p),
            "F1(%)": 100 * f1_score(y, p, average="macro", labels=np.unique(y), zero_division=0),
        }
    return {name: round(float(value), 4) for name, value in values.items()}


def _views(y: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    p = shares.argmax(axis=1)
    one_hot = np.eye(6)[y]
    confidence, right = shares.max(axis=1), p == y
    ece, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = {
            "Accuracy(%)": 100 * accuracy_score(y, p),
            "Balanced_Accuracy(%)": 100 * balanced_accuracy_score(y, p),
            "F1_macro(%)": 100 * f1_score(y, p, average="macro", labels=np.unique(y), zero_division=0),
            "Brier_multiclass(%)": 100 * np.mean(((shares - one_hot) ** 2).sum(axis=1)),
            "NLL_multiclass(%)": 100 * log_loss(y, shares, labels=np.arange(6)),
            "ECE_top1(%)": 100 * ece,
        }
    return {name: round(float(value), 2) for name, value in values.items()}


def _published(
    score: Callable[[np.ndarray], dict[str, float]], n: int, draws: int = 1000, digits: int = 2
) -> dict[str, Any]:
    """The bootstrap as the scripts do it."""
    rng = np.random.default_rng(42)
    replicates = [score(rng.integers(0, n, size=n)) for _ in range(draws)]
    return {
        name: {
            "value": value,
            "mean": round(float(np.mean([one[name] for one in replicates])), digits),
            "ci_low": round(float(np.quantile([one[name] for one in replicates], 0.025)), digits),
            "ci_high": round(float(np.quantile([one[name] for one in replicates], 0.975)), digits),
        }
        for name, value in score(np.arange(n)).items()
    }


def _assert_equal(found: dict[str, dict[str, float | None]], expected: dict[str, dict[str, float]]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-9), name


@pytest.mark.parametrize("seed", range(5))
def test_each_metric_is_the_published_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(55, 12, 60).round(1)
    p = (y + rng.normal(0, 6, 60)).round(0)  # with ties
    assert regression_metrics(y, p) == _regression(y, p)
    labels, guesses = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    assert hard_label_metrics(labels, guesses) == _labels(labels, guesses)
    one_class = np.ones(10, dtype=int)
    assert hard_label_metrics(one_class, guesses[:10]) == _labels(one_class, guesses[:10])
    views = rng.choice([0, 2, 5], 80)
    shares = rng.dirichlet(np.ones(6) / 3, 80)
    assert view_metrics(views, shares) == _views(views, shares)
    constant = regression_metrics(y, np.full(60, 55.0))
    assert np.isnan(constant["Pearson_r(%)"]) and np.isnan(constant["Spearman_rho(%)"])


def test_the_intervals_are_the_published_ones() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(55, 12, 50)
    p = y + rng.normal(0, 6, 50)
    patients = np.array([f"p{at // 2}" for at in range(50)], dtype=object)
    found = bootstrap(
        lambda rows, rounded: regression_metrics(y[rows], p[rows], rounded=rounded), 50, patients=patients
    )
    _assert_equal(found, _published(lambda rows: _regression(y[rows], p[rows]), 50))


def test_a_class_that_a_replicate_misses_is_no_class_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 200)
    y = np.array([0] * 2 + [1] * 8)
    p = np.array([0, 1] + [1] * 6 + [0] * 2)
    patients = np.arange(10).astype(object)
    found = bootstrap(
        lambda rows, rounded: hard_label_metrics(y[rows], p[rows], rounded=rounded), 10, patients=patients, digits=4
    )
    _assert_equal(found, _published(lambda rows: _labels(y[rows], p[rows]), 10, draws=200, digits=4))


def test_other_is_what_five_views_leave() -> None:
    shares = np.array([[0.3, 0.0, 0.2, 0.1, 0.1, 0.9], [0.4, 0.2, 0.2, 0.2, 0.2, 0.5]])
    read = view_probabilities(shares)
    np.testing.assert_allclose(read[0], [0.3, 0, 0.2, 0.1, 0.1, 0.3])
    np.testing.assert_allclose(read[1], np.array([0.4, 0.2, 0.2, 0.2, 0.2, 0.0]) / 1.2)
    np.testing.assert_allclose(view_probabilities(shares, other_from_sum=False)[0], shares[0] / 1.6)


def test_a_result_stands_beside_cardiobenchs_in_the_order_of_its_file(
    make_manifest: MakeManifest, make_source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 200)

    def change(rows: list[dict[str, Any]]) -> None:
        for at, row in enumerate(rows):
            row["source_row"] = len(rows) - at

    fields = [ManifestField(name="source_row", role="extra", kind="integer")]
    manifest = make_manifest(60, change=change, fields=fields)
    options = ProbeOptions(draws=50, n_shuffles=5, statistics="cardiobench", by=("sex",))
    (result,) = probe_manifest([make_source(manifest)], manifest, task=get_task("lvef"), options=options)
    numbers, scored = result.cardiobench, result.predictions
    assert numbers is not None and numbers["n"] == 72
    line_of = dict(zip(manifest.clip_ids, manifest.column("source_row"), strict=True))
    order = np.argsort([line_of[clip] for clip in scored.clip_ids])
    y, p = scored.y_true[order].astype(float), scored.y_pred[order].astype(float)
    _assert_equal(numbers["metrics"], _published(lambda rows: _regression(y[rows], p[rows]), 72, draws=200))
    of_sex = numbers["groups"]["sex"]
    assert sum(group["n"] for group in of_sex["groups"].values()) == 72
    mae = [group["MAE"] for group in of_sex["groups"].values()]
    assert of_sex["delta"]["MAE"] == pytest.approx(max(mae) - min(mae))
    assert "CardioBench's statistics" in format_results([result])
    assert result.to_dict()["cardiobench"] == numbers
    backwards = cardiobench_numbers(scored, task=get_task("lvef"), order=order[::-1])
    assert backwards["metrics"]["MAE"]["value"] == numbers["metrics"]["MAE"]["value"]
    assert backwards["metrics"]["MAE"]["ci_low"] != numbers["metrics"]["MAE"]["ci_low"]  # draws go by position


def test_views_and_patients_have_their_numbers_too(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    options = KnnOptions(draws=0, controls=False, statistics="cardiobench")
    (view,) = knn_manifest([make_source(manifest)], manifest, task=get_task("view"), options=options)
    assert view.cardiobench is not None and view.predictions.probabilities is not None
    assert list(view.cardiobench["metrics"])[-1] == "ECE_top1(%)"
    y = np.array([VIEWS.index(name) for name in view.predictions.y_true])
    six = np.zeros((len(y), 6))
    six[:, [VIEWS.index(name) for name in view.predictions.classes]] = view.predictions.probabilities
    assert (
        view.cardiobench["metrics"]["NLL_multiclass(%)"]["value"]
        == _views(y, view_probabilities(six))["NLL_multiclass(%)"]
    )
    named = np.array(VIEWS)[view_probabilities(six).argmax(axis=1)]
    of_a2c = view.predictions.y_true == "A2C"
    assert view.cardiobench["per_view"]["A2C"] == {
        "n": int(of_a2c.sum()),
        "accuracy": round(100 * accuracy_score(view.predictions.y_true[of_a2c], named[of_a2c]), 2),
    }
    assert list(view.cardiobench["per_view"]) == ["A2C", "A4C", "PLAX"]
    assert sum(view.cardiobench["predicted"].values()) == len(y)
    patient = TaskRow(name="patient", level="patient", prediction="mean", truth="mean")
    task = get_task("lvef").model_copy(update={"datasets": {"toy": TaskDataset(rows=(patient,))}})
    probing = ProbeOptions(draws=0, controls=False, statistics="cardiobench")
    (result,) = probe_manifest([make_source(manifest)], manifest, task=task, options=probing)
    assert result.cardiobench is not None and result.cardiobench["n"] == 24
    assert file_order(manifest, task, result.predictions).tolist() == list(range(24))


@pytest.mark.parametrize("habit", ["row-draws", "round-inside", "drop-oldest"])
def test_each_habit_has_a_switch_that_changes_a_number(habit: str) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(55, 12, 40)
    ids = np.array([f"c{at:02d}" for at in range(40)], dtype=object)
    patients = np.array([f"p{at // 4}" for at in range(40)], dtype=object)
    predictions = Predictions(
        clip_ids=ids, patients=patients, y_true=y, y_pred=y + np.repeat(rng.normal(0, 6, 10), 4)
    )
    groups = {"age_years": [">=80" if at < 10 else "66-80" for at in range(40)]}
    plain, off = (
        cardiobench_numbers(predictions, task=get_task("lvef"), order=np.arange(40), groups=groups, habits=habits)
        for habits in (Habits(), Habits.without((habit,)))
    )
    assert plain["habits"] != off["habits"]
    assert list(plain["groups"]["age_years"]["groups"]) == ["66-80"]
    if habit == "drop-oldest":
        assert off["groups"]["age_years"]["groups"][">=80"]["n"] == 10 and off["metrics"] == plain["metrics"]
    else:
        assert off["metrics"]["MAE"] != plain["metrics"]["MAE"]
    if habit == "row-draws":  # whole patients vary more
        widths = [one["metrics"]["MAE"]["ci_high"] - one["metrics"]["MAE"]["ci_low"] for one in (plain, off)]
        assert widths[1] > 1.3 * widths[0]


def test_an_unknown_habit_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no habit 'row-draw'; did you mean 'row-draws'"):
        Habits.without(("row-draw",))


def test_habits_are_of_cardiobenchs_statistics_alone() -> None:
    with pytest.raises(UnknownNameError, match="--habit-off row-draws is of CardioBench's statistics; give --stat"):
        ProbeOptions(habits_off=("row-draws",))
    with pytest.raises(UnknownNameError, match="no habit 'row-draw'"):
        ProbeOptions(habits_off=("row-draw",), statistics="cardiobench")
    assert ProbeOptions(habits_off=("row-draws",), statistics="cardiobench").habits_off == ("row-draws",)


def test_groups_that_the_scripts_do_not_name_are_in_no_delta() -> None:
    y, ids = np.linspace(30, 70, 40), np.array([f"c{at:02d}" for at in range(40)], dtype=object)
    error = np.where(np.arange(40) < 4, 30.0, 2.0)
    predictions = Predictions(clip_ids=ids, patients=ids, y_true=y, y_pred=y + error)
    ages = ["over 18" if at < 4 else "13-18" if at < 20 else "0-1" for at in range(40)]
    sexes = ["O" if at < 4 else "F" if at % 2 else "M" for at in range(40)]
    numbers = cardiobench_numbers(
        predictions,
        task=get_task("lvef"),
        order=np.arange(40),
        groups={"age_years": ages, "sex": sexes, "site": sexes},
    )
    assert list(numbers["groups"]["age_years"]["groups"]) == ["13-18", "0-1"]
    assert numbers["groups"]["age_years"]["delta"]["MAE"] == numbers["groups"]["sex"]["delta"]["MAE"] == 0
    assert list(numbers["groups"]["site"]["groups"]) == ["O", "M", "F"]
