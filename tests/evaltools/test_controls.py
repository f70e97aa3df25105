from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore import Manifest
from evaltools.cohort import build_cohort
from evaltools.controls import mean_predictions, metadata_features, shuffle_by_patient, shuffled_control
from evaltools.fitting import Targets, fit_and_predict
from evaltools.protocols import PROTOCOLS
from evaltools.resample import Estimate
from evaltools.task import get_task

LVEF, VIEW = get_task("lvef"), get_task("view")
MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 1000))
def test_labels_of_a_patient_stay_together(patients: list[int], seed: int) -> None:
    codes = np.array(patients)
    values = codes * 10.0  # one label a patient
    shuffled = shuffle_by_patient(values, codes.astype(str), np.random.default_rng(seed))
    of = {patient: set(shuffled[codes == patient]) for patient in set(patients)}
    assert all(len(labels) == 1 for labels in of.values())
    assert sorted(labels.pop() for labels in of.values()) == sorted(set(values))


def test_labels_that_differ_within_a_patient_lose_their_order() -> None:
    patients = np.repeat(np.arange(200), 3).astype(str)
    views = np.tile([0, 1, 2], 200)
    shuffled = shuffle_by_patient(views, patients, np.random.default_rng(0))
    assert np.array_equal(np.bincount(shuffled), np.bincount(views))
    assert (shuffled == views).mean() == pytest.approx(1 / 3, abs=0.08)
    assert all(sorted(shuffled[3 * at : 3 * at + 3]) == [0, 1, 2] for at in range(200))


def test_permuted_labels_follow_the_true_ones_no_more_than_chance() -> None:
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(80), 2).astype(str)
    values = np.repeat(rng.normal(size=80), 2)
    found = [np.corrcoef(values, shuffle_by_patient(values, patients, rng))[0, 1] for _ in range(200)]
    assert abs(np.mean(found)) < 0.03 and np.std(found) == pytest.approx(1 / np.sqrt(80), rel=0.2)


def test_the_mean_predictor_knows_train_and_val_only(make_manifest: MakeManifest) -> None:
    targets = Targets.of(build_cohort(make_manifest(20), LVEF))
    fitted = np.concatenate([targets.train, targets.val])
    assert mean_predictions(targets) == pytest.approx(np.full(24, targets.values[fitted].mean()))
    shares = mean_predictions(Targets.of(build_cohort(make_manifest(20), VIEW)))
    assert shares.shape == (24, 3) and shares == pytest.approx(np.full((24, 3), 1 / 3))


def test_metadata_are_numbers_and_categories_of_train(make_manifest: MakeManifest) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["site"] = {"train": "north", "val": "south", "test": "east"}[row["split"]]
        rows[0].update(fps=None)

    cohort = build_cohort(make_manifest(20, change=change), LVEF)
    X = metadata_features(cohort)
    assert np.isfinite(X).all() and X.shape == (60, 2 * 5 + 2 + 1 + 1)  # 5 numbers, A|B, no model, one site
    duration = np.array(cohort.column("n_frames")) / np.array(cohort.column("fps"), dtype=float)
    known = np.isfinite(duration)
    assert known.sum() == 59 and X[known, 8] == pytest.approx(duration[known])
    assert X[~known, 8] == pytest.approx(duration[known & cohort.in_split("train")].mean())


def test_no_metadata_is_the_mean_predictor(make_manifest: MakeManifest) -> None:
    empty = dict.fromkeys(("fps", "n_frames", "height", "width", "manufacturer", "model", "site"))
    cohort = build_cohort(make_manifest(20, change=lambda rows: [row.update(empty) for row in rows]), LVEF)
    targets = Targets.of(cohort)
    fitted = fit_and_predict(PROTOCOLS["ridge"], metadata_features(cohort), targets)
    assert fitted.predictions == pytest.approx(mean_predictions(targets))


@pytest.mark.parametrize(("task", "main", "chance"), [(LVEF, "r2", 0.0), (VIEW, "auroc", 0.5)])
def test_shuffled_labels_sit_at_chance_where_true_ones_do_not(
    make_manifest: MakeManifest, make_source: Make, task: Any, main: str, chance: float
) -> None:
    manifest = make_manifest(60)
    source = make_source(manifest)
    cohort, targets = build_cohort(manifest, task), Targets.of(build_cohort(manifest, task))
    ids = source.index.column("clip_id").to_pylist()
    rows = [ids.index(clip_id) for clip_id in cohort.clip_ids]
    spread = source.frames.reshape(len(ids), 4, -1).std(axis=1)
    X = np.concatenate([source.clips, spread], axis=1)[rows].astype(np.float64)
    protocol = PROTOCOLS[task.protocol]
    shuffled = shuffled_control(protocol, X, targets, observed=Estimate(0.97), main_metric=main, seed=0)
    estimate = shuffled.estimates[main]
    assert shuffled.n == protocol.n_shuffles and shuffled.p == 1 / (1 + shuffled.n)
    assert estimate.value is not None and estimate.ci_low is not None and estimate.ci_high is not None
    assert estimate.ci_low <= estimate.value <= estimate.ci_high
    assert estimate.value == pytest.approx(chance, abs=0.08) and estimate.ci_high < chance + 0.25
    chance_level = shuffled_control(protocol, X, targets, observed=Estimate(chance - 1), main_metric=main, seed=0)
    assert chance_level.p == 1.0


def test_a_rare_class_stays_in_train_under_every_permutation(make_manifest: MakeManifest, make_source: Make) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        train = [row for row in rows if row["split"] == "train"]
        train[0]["view"] = "PSAX"

    manifest = make_manifest(20, change=change)
    cohort, source = build_cohort(manifest, VIEW), make_source(manifest)
    ids = source.index.column("clip_id").to_pylist()
    X = source.clips[[ids.index(clip_id) for clip_id in cohort.clip_ids]].astype(np.float64)
    shuffled = shuffled_control(
        PROTOCOLS["logreg"], X, Targets.of(cohort), observed=Estimate(1.0), main_metric="accuracy", seed=3
    )
    assert shuffled.estimates["accuracy"].value is not None
