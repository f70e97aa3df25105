"""Calibration, agreement, cut-offs and gaps, against straight-line versions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from evaltools.detail import agreement, calibration, cutoff_auroc, subgroup_gap
from evaltools.fitting import Targets
from evaltools.metrics import regression_metrics
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.resample import patient_draws
from evaltools.task import get_task


def _targets(kind: Any, values: np.ndarray, classes: tuple[str, ...] = ()) -> Targets:
    n = len(values)
    patients = np.array([f"p{row // 2:03d}" for row in range(n)], dtype=object)
    none = np.zeros(0, dtype=np.intp)
    return Targets(
        kind=kind, values=values, classes=classes, n_known=len(classes), patients=patients, train=none, val=none,
        test=np.arange(n),
    )  # fmt: skip


def _ece(true: np.ndarray, shares: np.ndarray) -> float:
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == true
    total = 0.0
    for low in range(15):
        inside = [at for at in range(len(true)) if min(int(sure[at] * 15), 14) == low]
        if inside:
            total += len(inside) / len(true) * abs(np.mean(sure[inside]) - np.mean(right[inside]))
    return float(total)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_calibration_is_that_of_a_loop_and_of_scikit_learn(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, n_classes, 200)
    shares = rng.dirichlet(np.ones(n_classes), 200)
    classes = tuple("abcd"[:n_classes])
    found = calibration(_targets("classification", true, classes), shares, draws=50, seed=3)
    assert found["ece"]["value"] == pytest.approx(_ece(true, shares))
    assert found["nll"]["value"] == pytest.approx(log_loss(true, shares))
    if n_classes == 2:
        assert found["brier"]["value"] == pytest.approx(brier_score_loss(true, shares[:, 1]))
    assert sum(one["n"] for one in found["bins"]) == 200
    of_bins = sum(one["n"] * abs(one["confidence"] - one["accuracy"]) for one in found["bins"]) / 200
    assert found["ece"]["value"] == pytest.approx(of_bins)
    replicates = []
    for counts in patient_draws(100, draws=50, seed=3):
        for row in counts:
            rows = np.repeat(np.arange(200), np.repeat(row, 2).astype(int))
            replicates.append(_ece(true[rows], shares[rows]))
    assert [found["ece"]["ci_low"], found["ece"]["ci_high"]] == pytest.approx(np.quantile(replicates, [0.025, 0.975]))


def test_calibration_can_be_what_a_task_asks_for(make_manifest: Any, make_source: Any) -> None:
    manifest = make_manifest(60)
    task = get_task("view").model_copy(update={"metrics": ("brier", "nll", "ece"), "main_metric": "brier"})
    options = ProbeOptions(draws=100, n_shuffles=5)
    (result,) = probe_manifest([make_source(manifest)], manifest, task=task, options=options)
    assert list(result.metrics) == ["brier", "nll", "ece"] and result.to_dict()["main_metric"] == "brier"
    beside = result.extras["calibration"]
    for name, estimate in result.metrics.items():
        assert estimate.to_dict() == beside[name]
    assert result.metrics["brier"].ci_high < result.controls["random"]["brier"].value
    assert result.p_shuffled == pytest.approx(1 / 6) and result.controls["shuffled"]["nll"].value > 1


def test_limits_of_agreement() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(55, 10, 120)
    predicted = true + rng.normal(2, 5, 120)
    found = agreement(_targets("regression", true), predicted, draws=500, seed=0)
    difference = predicted - true
    sd = difference.std(ddof=1)
    assert found["bias"]["value"] == pytest.approx(difference.mean())
    assert found["loa_low"]["value"] == pytest.approx(difference.mean() - 1.96 * sd)
    assert found["loa_high"]["value"] == pytest.approx(difference.mean() + 1.96 * sd)
    assert found["bias"]["ci_low"] < difference.mean() < found["bias"]["ci_high"]


def test_low_values_are_told_from_the_others() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(50, 12, 200)
    predicted = true + rng.normal(0, 8, 200)
    found = cutoff_auroc(_targets("regression", true), predicted, cutoff=40.0, draws=100, seed=0)
    assert found.value == pytest.approx(roc_auc_score(true < 40, -predicted))
    assert found.ci_low is not None and found.ci_low < found.value
    none = cutoff_auroc(_targets("regression", true + 100), predicted, cutoff=40.0, draws=100, seed=0)
    assert none.value is None and none.ci_reason == "every label is at or above 40"


def test_the_gap_is_between_the_best_and_the_worst_group() -> None:
    rng = np.random.default_rng(3)
    true = rng.normal(50, 10, 400)
    groups = np.array(["a", "b", "c", "tiny"], dtype=object)[np.repeat(rng.integers(0, 3, 200), 2)]
    wide = {"a": 1.0, "b": 3.0, "c": 9.0}
    predicted = true + np.array([wide[name] for name in groups]) * rng.normal(0, 1, 400)
    targets = _targets("regression", true)
    found = subgroup_gap(targets, predicted, groups, metric="mae", draws=500, seed=0)
    assert found is not None and (found["best"], found["worst"]) == ("a", "c")
    mae = {name: regression_metrics(true[groups == name], predicted[groups == name])["mae"] for name in "ac"}
    assert found["gap"]["value"] == pytest.approx(mae["a"] - mae["c"])
    assert found["gap"]["ci_high"] < 0
    groups[:4] = "tiny"
    predicted[:4] = true[:4] + 100
    thin = subgroup_gap(targets, predicted, groups, metric="mae", draws=500, seed=0)
    assert thin is not None and thin["worst"] == "tiny" and thin["gap"]["ci_low"] is None
    assert thin["gap"]["ci_reason"] == "2 patients, fewer than 20"
    assert subgroup_gap(targets, predicted, np.full(400, "a", dtype=object), metric="mae", draws=9, seed=0) is None
