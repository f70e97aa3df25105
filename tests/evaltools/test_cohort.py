from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest, ManifestField
from embedstore.errors import LeakageError, ManifestError, UnknownNameError
from embedstore.where import parse_where
from evaltools.cohort import NotRunnableError, build_cohort, require_runnable
from evaltools.task import get_task, label_task

LVEF, VIEW = get_task("lvef"), get_task("view")
Rows = list[dict[str, Any]]
MakeManifest = Callable[..., Manifest]


def test_labelled_clips_in_a_split_make_the_cohort(make_manifest: MakeManifest) -> None:
    def change(rows: Rows) -> None:
        rows[0]["lvef_pct"] = ""
        rows[1]["lvef_pct"] = None
        rows[2]["split"] = None

    manifest = make_manifest(20, change=change)
    cohort = build_cohort(manifest, LVEF)
    assert (len(cohort), cohort.n_unlabelled, cohort.n_without_split) == (57, 2, 1)
    assert cohort.leakage == "checked" and cohort.dataset == "toy"
    by_id = dict(zip(manifest.clip_ids, manifest.column("lvef_pct"), strict=True))
    assert cohort.labels.tolist() == [by_id[clip_id] for clip_id in cohort.clip_ids]
    assert cohort.column("sex") == [manifest.column("sex")[row] for row in cohort.rows]
    test = cohort.take(cohort.in_split("test"))
    assert set(test.splits) == {"test"} and len(test) == 24


def test_where_selects_clips(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(20)
    cohort = build_cohort(manifest, LVEF, where=parse_where("view == A4C and sex == F"))
    assert len(cohort) == 10 and set(cohort.column("view")) == {"A4C"}
    with pytest.raises(UnknownNameError, match="did you mean 'view'"):
        build_cohort(manifest, LVEF, where=parse_where("veiw == A4C"))


def test_a_view_that_a_model_predicted_is_no_label(make_manifest: MakeManifest) -> None:
    def change(rows: Rows) -> None:
        for row in rows[:6]:
            row["view_source"] = "predicted"
        rows[7]["view_source"] = "given"

    cohort = build_cohort(make_manifest(20, change=change), VIEW)
    assert (len(cohort), cohort.n_unlabelled) == (54, 6)


@pytest.mark.parametrize("text", ["n/a", "inf", "nan", "-Infinity", "55%"])
def test_a_label_that_is_no_finite_number_names_its_clips(make_manifest: MakeManifest, text: str) -> None:
    manifest = make_manifest(10, change=lambda rows: rows[4].update(lvef_pct=text))
    with pytest.raises(ManifestError, match="must hold finite numbers") as refusal:
        build_cohort(manifest, LVEF)
    assert f"p001-A2C ({text})" in str(refusal.value) and refusal.value.exit_code == 4


def test_words_are_no_regression_target(make_manifest: MakeManifest) -> None:
    with pytest.raises(ManifestError, match="finite numbers.*A4C"):
        build_cohort(make_manifest(10), label_task("view", kind="regression"))
    with pytest.raises(ManifestError, match="must hold classes"):
        build_cohort(make_manifest(10), label_task("lvef_pct", kind="classification"))


def test_classes_of_every_kind_of_column(make_manifest: MakeManifest) -> None:
    fields = [
        ManifestField(name="rwma", role="label", kind="boolean"),
        ManifestField(name="grade", role="label", kind="integer"),
        ManifestField(name="score", role="label", kind="number"),
    ]

    def change(rows: Rows) -> None:
        for at, row in enumerate(rows):
            row.update(rwma=at % 2 == 0, grade=at % 3, score=float(at % 2))

    manifest = make_manifest(10, change=change, fields=fields)
    found = {
        name: sorted(set(build_cohort(manifest, label_task(name, kind="classification")).labels))
        for name in ("rwma", "grade", "score")
    }
    assert found == {"rwma": ["false", "true"], "grade": ["0", "1", "2"], "score": ["0", "1"]}


def test_an_unknown_label_column_suggests_the_nearest(make_manifest: MakeManifest) -> None:
    with pytest.raises(UnknownNameError, match="'toy' does not have; did you mean 'lvef_pct'"):
        build_cohort(make_manifest(5), label_task("lvef_pc", kind="regression"))


def test_a_patient_in_two_splits_is_refused_unless_allowed(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(10, change=lambda rows: rows[0].update(split="test"))
    with pytest.raises(LeakageError, match=r"1 patients in two splits \(p000\).*--allow-leakage"):
        build_cohort(manifest, LVEF)
    allowed = build_cohort(manifest, LVEF, allow_leakage=True)
    assert allowed.leakage == "allowed: 1 patients in two splits (p000)"
    # A clip that is not asked for leaks nothing.
    assert build_cohort(manifest, LVEF, where=parse_where("view != A4C")).leakage == "checked"


def test_identical_content_in_two_splits_is_refused(make_manifest: MakeManifest) -> None:
    def change(rows: Rows) -> None:
        rows[9]["sha256"] = rows[0]["sha256"]  # p003 is in test, p000 in train
        rows[1]["sha256"] = rows[2]["sha256"]  # twice in one split does no harm

    with pytest.raises(LeakageError, match="1 identical contents in two splits .clips p000-A4C, p003-A4C"):
        build_cohort(make_manifest(10, change=change), LVEF)


def test_what_is_known_of_patients_is_said(make_manifest: MakeManifest) -> None:
    unknown = build_cohort(make_manifest(10, patient_ids="unknown"), LVEF)
    assert unknown.leakage.startswith("unchecked") and len(set(unknown.patients)) == 30
    stated = build_cohort(make_manifest(10, patient_ids="one-clip-per-patient(paper)"), LVEF)
    assert stated.leakage == "assumed: one-clip-per-patient(paper)"
    missing = make_manifest(10, change=lambda rows: rows[0].update(patient_id=None))
    assert sorted(set(build_cohort(missing, LVEF).patients))[:2] == ["clip:p000-A4C", "p000"]


@pytest.mark.parametrize(
    ("task", "change", "says"),
    [
        (
            LVEF,
            lambda row: row.update(lvef_pct=None),
            "no labelled clip in train, val or test; 30 clips have no label",
        ),
        (LVEF, lambda row: row.update(split=None), "30 clips are in no split"),
        (LVEF, lambda row: row.update(split="train" if row["split"] == "val" else row["split"]), "split 'val'"),
        (LVEF, lambda row: row.update(split="train" if row["split"] == "test" else row["split"]), "split 'test'"),
        (LVEF, lambda row: row.update(split="test" if row["split"] == "train" else row["split"]), "split 'train'"),
        (LVEF, lambda row: row.update(lvef_pct=55.0), "same label 55 for every training clip"),
        (VIEW, lambda row: row.update(view="A4C"), "one class only, 'A4C', in the split 'train'"),
        (VIEW, lambda row: row.update(view="A4C" if row["split"] == "test" else row["view"]), "in the split 'test'"),
        (VIEW, lambda row: row.update(view="PSAX" if row["split"] == "val" else row["view"]), "no validation clip"),
    ],
)
def test_what_cannot_be_probed_says_why(
    make_manifest: MakeManifest, task: Any, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    manifest = make_manifest(10, change=lambda rows: [change(row) for row in rows])
    with pytest.raises(NotRunnableError, match=f"task '{task.name}' on 'toy'") as refusal:
        require_runnable(build_cohort(manifest, task))
    assert says in str(refusal.value) and refusal.value.exit_code == 4


def test_a_sound_cohort_is_runnable(make_manifest: MakeManifest) -> None:
    for task in (LVEF, VIEW):
        cohort = build_cohort(make_manifest(10), task)
        require_runnable(cohort)
        assert np.array_equal(cohort.in_split("train", "val", "test"), np.ones(30, dtype=bool))
