from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest
from embedstore.errors import LeakageError, UnknownNameError
from evaltools.cohort import NotRunnableError, build_cohort
from evaltools.cross_validation import cross_targets, parse_cv
from evaltools.metrics import regression_metrics
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.report.files import predictions_table
from evaltools.task import get_task

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
LVEF, VIEW = get_task("lvef"), get_task("view")
CV = ProbeOptions(pools=("meanstd",), draws=200, cv="4", n_shuffles=10)


@pytest.mark.parametrize("task", ["lvef", "view"])
def test_every_clip_is_predicted_once_a_repeat_by_others_patients(make_manifest: MakeManifest, task: str) -> None:
    cohort = build_cohort(make_manifest(40), get_task(task), use_splits=False)
    targets = cross_targets(cohort, parse_cv("4x3"), seed=1)
    assert len(targets.folds) == 12 and len(targets.test) == 3 * 120
    for repeat in range(3):
        rows = np.concatenate([fold.test for fold in targets.folds if fold.repeat == repeat])
        assert sorted(rows) == list(range(120))
    for fold in targets.folds:
        parts = [set(cohort.patients[rows]) for rows in (fold.train, fold.val, fold.test)]
        assert len(set.union(*parts)) == sum(len(part) for part in parts) == 40
        assert len(fold.val) >= 15 and len(fold.train) > len(fold.val)
    again = cross_targets(cohort, parse_cv("4x3"), seed=1)
    assert all(np.array_equal(one.test, two.test) for one, two in zip(targets.folds, again.folds, strict=True))
    first, second = (targets.folds[4 * repeat].test for repeat in (0, 1))
    assert not np.array_equal(first, second)


def test_folds_are_alike_in_their_labels(make_manifest: MakeManifest) -> None:
    def rare(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["sex"] = "F" if int(row["patient_id"][1:]) < 8 else "M"

    manifest = make_manifest(40, change=rare)
    sex = VIEW.model_copy(update={"column": "sex", "name": "sex"})
    cohort = build_cohort(manifest, sex, use_splits=False)
    targets = cross_targets(cohort, parse_cv("4"), seed=3)
    for fold in targets.folds:
        assert len(set(cohort.patients[fold.test][targets.values[fold.test] == 0])) == 2
    lvef = build_cohort(manifest, LVEF, use_splits=False)
    means = [lvef.labels[fold.test].mean() for fold in cross_targets(lvef, parse_cv("4"), seed=3).folds]
    assert np.ptp(means) < lvef.labels.std()


def test_out_of_fold_predictions_are_pooled_and_scored(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    source = make_source(manifest)
    (result,) = probe_manifest([source], manifest, task=LVEF, options=CV)
    scored = result.predictions
    assert result.metrics["r2"].value == pytest.approx(regression_metrics(scored.y_true, scored.y_pred)["r2"])
    assert result.metrics["r2"].ci_low > 0.9 and result.controls["random"]["r2"].ci_high < 0.3
    assert result.controls["mean"]["r2"].value < 0.05 and result.controls["shuffled"]["r2"].ci_high < 0.3
    counts = result.counts
    assert (counts.n_expected, counts.n_scored, counts.n_patients) == (120, 120, 40)
    assert len(result.chosen["folds"]) == 4 and any("out-of-fold" in note for note in result.provenance.notes)
    twice = probe_manifest([source], manifest, task=LVEF, options=replace(CV, cv="4x2"))[0]
    assert len(twice.predictions) == 240 and twice.counts.n_scored == 120
    table = predictions_table(twice.predictions)
    assert set(table.column("split").to_pylist()) == {"cv"} and set(table.column("repeat").to_pylist()) == {0, 1}


def test_classes_are_cross_validated_too(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(30)
    options = replace(CV, pools=("clip",), n_shuffles=3)
    (result,) = probe_manifest([make_source(manifest)], manifest, task=VIEW, options=options)
    assert result.metrics["balanced_accuracy"].value > 0.85
    assert result.controls["mean"]["auroc"].value == pytest.approx(0.5, abs=0.1)
    assert result.predictions.probabilities.sum(axis=1) == pytest.approx(np.ones(90))


def test_no_patient_tells_on_itself(make_manifest: MakeManifest, make_source: Make) -> None:
    """Vectors that name the patient and nothing else are worth nothing."""
    manifest = make_manifest(30)
    source = make_source(manifest)
    patient = [clip_id.split("-")[0] for clip_id in source.index.column("clip_id").to_pylist()]
    names = {name: place for place, name in enumerate(sorted(set(patient)))}
    source.clips = np.eye(30, dtype=np.float32)[[names[one] for one in patient]]
    (result,) = probe_manifest([source], manifest, task=LVEF, options=replace(CV, pools=("clip",), n_shuffles=3))
    assert result.metrics["r2"].value < 0.1


@pytest.mark.parametrize("text", ["1", "0", "5x0", "x3", "five", "-2", "5x"])
def test_what_is_no_number_of_folds_is_refused(text: str) -> None:
    with pytest.raises(UnknownNameError, match="such as 5 or 5x3"):
        parse_cv(text)


def test_too_few_patients_are_refused(make_manifest: MakeManifest) -> None:
    few = build_cohort(make_manifest(9), LVEF, use_splits=False)
    with pytest.raises(NotRunnableError, match="9 patients, and 5 folds need at least 10"):
        cross_targets(few, parse_cv("5"), seed=0)

    def rare(rows: list[dict[str, Any]]) -> None:
        for row in rows[:6]:
            row["view"] = "PSAX"

    views = build_cohort(make_manifest(20, change=rare), VIEW, use_splits=False)
    with pytest.raises(NotRunnableError, match="2 patients of class 'PSAX', and 4 folds need at least 4"):
        cross_targets(views, parse_cv("4"), seed=0)


def test_one_content_of_two_patients_is_leakage(make_manifest: MakeManifest) -> None:
    def copied(rows: list[dict[str, Any]]) -> None:
        rows[0]["sha256"] = rows[30]["sha256"]

    with pytest.raises(LeakageError, match="identical contents of two patients"):
        build_cohort(make_manifest(20, change=copied), LVEF, use_splits=False)


def test_clips_without_a_split_are_used(make_manifest: MakeManifest) -> None:
    def adrift(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["split"] = None

    assert len(build_cohort(make_manifest(20, change=adrift), LVEF, use_splits=False)) == 60
