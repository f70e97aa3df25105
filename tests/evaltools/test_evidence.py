"""What shows the whole pipeline to be right: chance where there is nothing, effects where they were planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from embedstore import Manifest
from evaltools.knn import KnnOptions, knn_manifest
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.result import Result
from evaltools.task import get_task

LVEF, VIEW = get_task("lvef"), get_task("view")
PLAIN = ProbeOptions(draws=0, controls=False, near_duplicates=False)
NEAREST = KnnOptions(draws=0, controls=False, near_duplicates=False)
MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def _scored(source: Any, manifest: Manifest, task: Any, *, by_neighbours: bool) -> Result:
    if by_neighbours:
        return knn_manifest([source], manifest, task=task, options=NEAREST)[0]
    return probe_manifest([source], manifest, task=task, options=PLAIN)[0]


def _replaced(source: Any, vectors: np.ndarray) -> Any:
    source.clips, source.frames = vectors.astype(np.float32), None
    return source


@pytest.mark.parametrize("by_neighbours", [False, True])
def test_random_vectors_are_at_chance_over_20_seeds(
    by_neighbours: bool, make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(100)
    source = make_source(manifest)
    accuracy, r2 = [], []
    for seed in range(20):
        _replaced(source, np.random.default_rng(seed).normal(size=source.clips.shape))
        found = _scored(source, manifest, VIEW, by_neighbours=by_neighbours)
        accuracy.append(found.metrics["balanced_accuracy"].value)
        r2.append(_scored(source, manifest, LVEF, by_neighbours=by_neighbours).metrics["r2"].value)
    assert abs(np.mean(accuracy) - 1 / 3) < 3 * np.std(accuracy, ddof=1) / np.sqrt(20)
    assert max(r2) < 0.05 and np.mean(r2) < 0.01


@pytest.mark.parametrize("by_neighbours", [False, True])
def test_shuffled_labels_are_at_chance_over_20_seeds(
    by_neighbours: bool, make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(100)
    source = make_source(manifest)
    chance = []
    for seed in range(20):
        how: dict[str, Any] = {"draws": 0, "n_shuffles": 3, "seed": seed, "near_duplicates": False}
        if by_neighbours:
            (result,) = knn_manifest([source], manifest, task=VIEW, options=KnnOptions(**how))
        else:
            (result,) = probe_manifest([source], manifest, task=VIEW, options=ProbeOptions(**how))
        chance.append(result.controls["shuffled"]["balanced_accuracy"].value)
        assert result.metrics["balanced_accuracy"].value > 0.9  # what was planted
    assert abs(np.mean(chance) - 1 / 3) < 3 * np.std(chance, ddof=1) / np.sqrt(20) + 0.01


def test_a_planted_share_of_variance_is_recovered(make_manifest: MakeManifest, make_source: Make) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=12)
    weights /= np.linalg.norm(weights)
    vectors: dict[str, np.ndarray] = {}

    def plant(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            vectors[row["clip_id"]] = rng.normal(size=12)
            signal, noise = vectors[row["clip_id"]] @ weights, rng.normal()
            row["lvef_pct"] = float(55 + 8 * (np.sqrt(0.7) * signal + np.sqrt(0.3) * noise))

    manifest = make_manifest(800, change=plant)
    source = make_source(manifest)
    clips = np.stack([vectors[clip] for clip in source.index.column("clip_id").to_pylist()])
    result = _scored(_replaced(source, clips), manifest, LVEF, by_neighbours=False)
    assert result.metrics["r2"].value == pytest.approx(0.7, abs=0.05)
    assert result.metrics["mae"].value == pytest.approx(8 * np.sqrt(0.3) * np.sqrt(2 / np.pi), rel=0.08)


@pytest.mark.parametrize("task", [LVEF, VIEW], ids=["lvef", "view"])
def test_float16_moves_no_metric_by_more_than_a_thousandth(
    task: Any, make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(150)
    source = make_source(manifest, dim=64)
    # Harder than what the fixture plants, so that metrics are not at their ends.
    wide = source.clips + np.random.default_rng(9).normal(0, 12, source.clips.shape).astype(np.float32)
    full = _scored(_replaced(source, wide), manifest, task, by_neighbours=False)
    half = _scored(_replaced(source, wide.astype(np.float16)), manifest, task, by_neighbours=False)
    names = ("r2", "spearman", "pearson") if task is LVEF else ("auroc", "auprc")
    for name in names:
        assert half.metrics[name].value == pytest.approx(full.metrics[name].value, abs=1e-3)
    assert 0.4 < full.metrics["auroc"].value < 0.999 if task is VIEW else True


def test_1_2_and_4_threads_give_equal_metrics(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(80)
    source = make_source(manifest, dim=48)
    options = replace(PLAIN, draws=100)
    found = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            results = [probe_manifest([source], manifest, task=task, options=options)[0] for task in (LVEF, VIEW)]
            results.append(knn_manifest([source], manifest, task=LVEF, options=NEAREST)[0])
        found.append([one.value for result in results for one in result.metrics.values()])
    assert found[1] == pytest.approx(found[0], abs=1e-6) and found[2] == pytest.approx(found[0], abs=1e-6)
