from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from embedstore import Manifest, ManifestField
from embedstore.errors import ManifestError, UnknownNameError
from evaltools.aggregation import Aggregation
from evaltools.cohort import NotRunnableError, build_cohort
from evaltools.controls import study_features
from evaltools.cross_validation import cross_targets, parse_cv
from evaltools.fitting import Targets
from evaltools.metrics import regression_metrics
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.task import Task, get_task, label_task
from evaltools.task_rows import TaskDataset, TaskRow

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
LVEF, AS = get_task("lvef"), get_task("as")
QUICK = ProbeOptions(draws=50, n_shuffles=20)
PATIENT = TaskRow(name="patient", level="patient", prediction="mean", truth="mean")


def _of(cohort: Any, row: TaskRow) -> Aggregation:
    return Aggregation(row, cohort, Targets.of(cohort))


def _with_rows(task: Task, *rows: TaskRow, **fields: Any) -> Task:
    return task.model_copy(update={"datasets": {"toy": TaskDataset(rows=rows, **fields)}})


def _studies(rows: list[dict[str, Any]]) -> None:
    """Two studies a patient, the second of the A2C clip alone, with other labels in it."""
    for row in rows:
        second = row["view"] == "A2C"
        row["study_id"] = f"{row['patient_id']}s{2 if second else 1}"
        row["as"] = (int(row["patient_id"][1:]) // 5 + second) % 2 == 0


AS_FIELD = [ManifestField(name="as", role="label", kind="boolean")]


def test_a_mean_a_patient_is_the_mean_of_his_clips(make_manifest: MakeManifest) -> None:
    cohort = build_cohort(make_manifest(20), LVEF)
    level = _of(cohort, PATIENT)
    predicted = np.random.default_rng(0).normal(size=len(level.clips.test))
    patients = cohort.patients[level.clips.test]
    expected = {patient: predicted[patients == patient].mean() for patient in set(patients)}
    assert dict(zip(level.ids, level.predictions(predicted), strict=True)) == pytest.approx(expected)
    assert level.ids.tolist() == sorted(expected) and level.targets.test.tolist() == list(range(len(expected)))
    truth = dict(zip(cohort.patients, cohort.labels, strict=True))
    assert dict(zip(level.ids, level.targets.values, strict=True)) == pytest.approx({p: truth[p] for p in expected})
    several = np.stack([predicted, -predicted], axis=1)
    np.testing.assert_array_equal(level.predictions(several)[:, 0], level.predictions(predicted))


def test_a_row_of_a_view_takes_that_view_alone(make_manifest: MakeManifest) -> None:
    cohort = build_cohort(make_manifest(20), LVEF)
    level = _of(cohort, TaskRow(name="A4C", where="view == A4C"))
    assert {clip.split("-")[1] for clip in level.ids} == {"A4C"} and len(level.ids) == 8
    predicted = np.arange(len(level.clips.test), dtype=np.float64)
    np.testing.assert_array_equal(level.predictions(predicted), predicted[level.kept])
    with pytest.raises(NotRunnableError, match="row 'PSAX' .* no labelled test clip: view == PSAX"):
        _ = _of(cohort, TaskRow(name="PSAX", where="view == PSAX")).ids


def test_means_of_views_weigh_each_view_alike(make_manifest: MakeManifest) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["view"] = "PSAX" if row["view"] == "PLAX" else "PLAX"  # two PLAX and one PSAX a patient
            row["as"] = row["patient_id"] > "p010"

    cohort = build_cohort(make_manifest(20, change=change, fields=AS_FIELD), label_task("as", kind="classification"))
    row = TaskRow(name="weighted", level="study", prediction="mean-of-views", truth="same")
    level = _of(cohort, row)
    views = np.array(cohort.column("view"))[level.clips.test]
    predicted = np.where(views == "PSAX", 1.0, 0.0)
    np.testing.assert_allclose(level.predictions(predicted), 0.5)
    plain = _of(cohort, row.model_copy(update={"prediction": "mean"}))
    np.testing.assert_allclose(plain.predictions(predicted), 1 / 3)


def test_a_patient_is_positive_where_any_view_is(make_manifest: MakeManifest) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["stemi"] = row["view"] == "A4C" and int(row["patient_id"][1:]) // 5 % 2 == 0

    fields = [ManifestField(name="stemi", role="label", kind="boolean")]
    cohort = build_cohort(make_manifest(20, change=change, fields=fields), get_task("stemi"))
    (row,) = [row for row in get_task("stemi").on("hmc-qu").rows if row.name == "patient"]
    level = _of(cohort, row)
    positive = np.random.default_rng(0).random(len(level.clips.test))
    made = level.predictions(np.stack([1 - positive, positive], axis=1))
    patients = cohort.patients[level.clips.test]
    assert made[:, 1].tolist() == [positive[patients == patient].max() for patient in level.ids]
    np.testing.assert_allclose(made.sum(axis=1), 1)
    assert level.targets.values.tolist() == [int(patient[1:]) // 5 % 2 == 0 for patient in level.ids]
    same = row.model_copy(update={"truth": "same"})
    with pytest.raises(ManifestError, match="patients of 'toy' have clips of different labels"):
        _ = _of(cohort, same).targets


def test_studies_are_not_patients_and_keep_theirs(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(20, change=_studies, fields=AS_FIELD)
    cohort = build_cohort(manifest, label_task("as", kind="classification"))
    level = _of(cohort, TaskRow(name="study", level="study", prediction="mean", truth="same"))
    assert len(level.ids) == 16 and len(set(level.targets.patients)) == 8
    assert sorted(level.n_clips.tolist()) == [1] * 8 + [2] * 8
    assert all(study.startswith(patient) for study, patient in zip(level.ids, level.targets.patients, strict=True))
    bare = make_manifest(10, change=lambda rows: [row.update(study_id=None) for row in rows])
    study = TaskRow(name="study", level="study", prediction="mean", truth="mean")
    with pytest.raises(UnknownNameError, match="has no study_id"):
        _ = _of(build_cohort(bare, LVEF), study).ids


def test_folds_score_a_patient_once_a_repeat(make_manifest: MakeManifest) -> None:
    cohort = build_cohort(make_manifest(20), LVEF, use_splits=False)
    targets = cross_targets(cohort, parse_cv("5x2"), seed=0)
    level = Aggregation(PATIENT, cohort, targets)
    predicted = np.random.default_rng(0).normal(size=len(targets.test))
    made = level.predictions(predicted)
    assert len(made) == 40 and level.unit_repeats.tolist() == [0] * 20 + [1] * 20  # type: ignore[union-attr]
    first = predicted[:60][cohort.patients == level.ids[0]].mean()
    assert made[0] == pytest.approx(first)


def test_each_row_is_a_result_of_one_fit(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    task = _with_rows(LVEF, PATIENT, TaskRow(name="A2C", where="view == A2C"), TaskRow(name="clips"))
    options = ProbeOptions(draws=50, n_shuffles=20, pools=("meanstd",))
    patient, a2c, clips = probe_manifest([make_source(manifest)], manifest, task=task, options=options)
    assert [result.row.name for result in (patient, a2c, clips)] == ["patient", "A2C", "clips"]
    scored = clips.predictions
    by_patient = {p: scored.y_pred[scored.patients == p].mean() for p in set(scored.patients)}
    assert dict(zip(patient.predictions.clip_ids, patient.predictions.y_pred, strict=True)) == pytest.approx(
        by_patient
    )
    assert patient.metrics["mae"].value == pytest.approx(
        regression_metrics(patient.predictions.y_true, patient.predictions.y_pred)["mae"]
    )
    is_a2c = np.char.endswith(scored.clip_ids.astype(str), "A2C")
    np.testing.assert_allclose(a2c.predictions.y_pred, scored.y_pred[is_a2c])
    assert [result.counts.n_scored for result in (patient, a2c, clips)] == [24, 24, 72]
    assert [result.counts.n_expected for result in (patient, a2c, clips)] == [24, 24, 72]
    assert patient.counts.n_train == 72 and patient.predictions.level == "patient"
    document = patient.to_dict()
    assert (document["row"], document["level"]) == ("patient", "patient")
    assert document["aggregation"] == "mean prediction of the patient, mean label"
    assert len({result.stem for result in (patient, a2c, clips)}) == 3
    for result in (patient, a2c, clips):
        assert set(result.controls) == {"mean", "shuffled", "random", "metadata"}
        assert result.controls["mean"]["mae"].value > result.metrics["mae"].value  # type: ignore[operator]


def test_rows_are_picked_by_name_and_default(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    part = TaskRow(name="part", asked_of="view in (A4C, A2C)", default=False)
    task = _with_rows(LVEF, PATIENT, TaskRow(name="clips"), part)
    source = [make_source(manifest)]
    names = lambda *rows: [  # noqa: E731
        (result.row.name, result.counts.n_train)
        for result in probe_manifest(
            source, manifest, task=task, options=ProbeOptions(draws=0, controls=False, rows=rows)
        )
    ]
    assert names() == [("patient", 48), ("clips", 48)]
    assert names("part") == [("part", 32)] and names("main") == [("patient", 48)]
    assert names("part", "clips") == [("clips", 48), ("part", 32)]
    with pytest.raises(UnknownNameError, match="unknown row 'pat'"):
        names("pat")


def test_studies_without_a_clip_to_score_are_listed(make_manifest: MakeManifest, make_source: Make) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["as"] = int(row["patient_id"][1:]) // 5 % 2 == 0
            if row["patient_id"] in ("p003", "p013") and row["view"] == "PLAX":
                row["view"] = "A4C"

    manifest = make_manifest(40, change=change, fields=AS_FIELD)
    study = TaskRow(name="study", level="study", prediction="mean", truth="same")
    task = _with_rows(AS, study, asked_of="view == PLAX", controls=("view-mix", "n-images"))
    (result,) = probe_manifest([make_source(manifest)], manifest, task=task, options=QUICK)
    assert result.units_missing == ("s003", "s013")
    assert (result.counts.n_expected, result.counts.n_scored) == (16, 14)
    assert "2 of 16 studies have no clip to be scored by (s003, s013)" in result.provenance.notes
    assert result.to_dict()["units_missing"] == ["s003", "s013"] and result.provenance.asked_of == "view == PLAX"
    assert list(result.controls)[-2:] == ["view-mix", "n-images"]


def test_a_mix_of_views_that_tells_the_label_is_shown_by_its_control(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in list(rows):
            row["as"] = int(row["patient_id"][1:]) // 5 % 2 == 0
            if row["as"] and row["view"] == "A2C":
                row["view"] = "Other"  # only in positive studies, as in TMED-2

    manifest = make_manifest(80, change=change, fields=AS_FIELD)
    study = TaskRow(name="study", level="study", prediction="mean", truth="same")
    task = _with_rows(AS, study, asked_of="view == PLAX", controls=("view-mix", "n-images"))
    (result,) = probe_manifest([make_source(manifest)], manifest, task=task, options=QUICK)
    assert result.controls["view-mix"]["auroc"].value == 1.0
    assert result.controls["n-images"]["auroc"].value == 0.5
    scored = result.predictions
    assert scored.probabilities is not None
    assert result.metrics["auroc"].value == pytest.approx(
        roc_auc_score(scored.y_true == "true", scored.probabilities[:, 1])
    )
    whole = build_cohort(manifest, task, asked_of="everything")
    asked = build_cohort(manifest, task)
    shares = study_features(asked, whole, "view-mix")
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(study_features(asked, whole, "n-images")), 3)


def test_subgroups_of_the_task_are_those_of_what_is_scored(make_manifest: MakeManifest, make_source: Make) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["age_years"] = 40 + int(row["patient_id"][1:])

    fields = [ManifestField(name="age_years", role="subgroup", kind="number")]
    manifest = make_manifest(60, change=change, fields=fields)
    of_camus = LVEF.on("camus").subgroups
    task = _with_rows(LVEF, PATIENT, subgroups=of_camus)
    (result,) = probe_manifest([make_source(manifest)], manifest, task=task, options=QUICK)
    assert list(result.groups) == ["sex", "age_years", "manufacturer"]  # image quality is not known here
    ages = result.groups["age_years"]
    assert list(ages) == ["to 45", "over 45-65", "over 65-80", "over 80"]
    ids = [int(patient[1:]) + 40 for patient in result.predictions.clip_ids]
    assert [scores.n_scored for scores in ages.values()] == [
        sum(low < age <= high for age in ids) for low, high in ((0, 45), (45, 65), (65, 80), (80, 200))
    ]
