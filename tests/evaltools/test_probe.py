from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest, ManifestField
from embedstore.errors import AmbiguousNameError, LeakageError, MissingVectorsError, UnknownNameError
from evaltools.cohort import NotRunnableError
from evaltools.controls import CONTROLS
from evaltools.metrics import regression_metrics
from evaltools.probe import ProbeOptions, probe, probe_manifest
from evaltools.selection import asked_tasks, describe_tasks
from evaltools.task import get_task

LVEF, VIEW = get_task("lvef"), get_task("view")
MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
QUICK = ProbeOptions(draws=200)
CONTRACT_KEYS = {
    *("task", "dataset", "encoder", "variant", "protocol", "main_metric", "metrics", "controls", "n_expected"),
    *("n_scored", "n_patients", "seed", "set", "annotations", "predictions"),
}


def test_motion_is_seen_by_meanstd_and_not_by_the_mean(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    options = ProbeOptions(pools=("clip", "meanstd"), draws=500)
    clip, meanstd = probe_manifest([make_source(manifest)], manifest, task=LVEF, options=options)
    assert (clip.pool, meanstd.pool) == ("clip", "meanstd") and meanstd.dim == 2 * clip.dim
    assert meanstd.metrics["r2"].ci_low is not None and meanstd.metrics["r2"].ci_low > 0.9
    assert clip.metrics["r2"].ci_high is not None and clip.metrics["r2"].ci_high < 0.3
    for name in CONTROLS:
        assert meanstd.controls[name]["r2"].ci_high is not None and meanstd.controls[name]["r2"].ci_high < 0.3
    assert meanstd.p_shuffled == pytest.approx(1 / 201) and clip.p_shuffled is not None and clip.p_shuffled > 0.05
    assert meanstd.controls["mean"]["pearson"].value is None
    assert meanstd.metrics["mae"].value < clip.metrics["mae"].value  # type: ignore[operator]


def test_the_numbers_are_those_of_the_predictions(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    (result,) = probe_manifest([make_source(manifest)], manifest, task=LVEF, options=QUICK)
    scored = result.predictions
    assert {name: one.value for name, one in result.metrics.items()} == pytest.approx(
        regression_metrics(scored.y_true, scored.y_pred)
    )
    truth = dict(zip(manifest.clip_ids, manifest.column("lvef_pct"), strict=True))
    split = dict(zip(manifest.clip_ids, manifest.column("split"), strict=True))
    assert [truth[clip_id] for clip_id in scored.clip_ids] == scored.y_true.tolist()
    assert {split[clip_id] for clip_id in scored.clip_ids} == {"test"}
    counts = result.counts
    assert (counts.n_expected, counts.n_scored, counts.n_patients) == (72, 72, 24)
    assert (counts.n_train, counts.n_val, counts.n_val_patients) == (72, 36, 12)


def test_views_are_told_apart(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    (result,) = probe_manifest([make_source(manifest)], manifest, task=VIEW, options=QUICK)
    assert result.protocol == "logreg" and result.is_primary
    assert result.metrics["balanced_accuracy"].value == pytest.approx(1.0, abs=0.1)
    assert result.controls["mean"]["balanced_accuracy"].value == pytest.approx(1 / 3)
    assert result.controls["random"]["auroc"].value == pytest.approx(0.5, abs=0.15)
    scored = result.predictions
    assert scored.classes == ("A2C", "A4C", "PLAX") and scored.probabilities is not None
    assert scored.probabilities.sum(axis=1) == pytest.approx(np.ones(72))
    assert result.chosen["converged"]


def test_the_json_form_has_the_contracts_keys_and_is_json(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    options = ProbeOptions(draws=100, by=("sex",), where="fps >= 25", seed=7)
    (result,) = probe_manifest([make_source(manifest)], manifest, task=LVEF, options=options)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(document) >= CONTRACT_KEYS
    assert set(document["controls"]) == {"mean", "shuffled", "random", "metadata"}
    for scores in (document["metrics"], *document["controls"].values()):
        assert set(scores) == {"mae", "rmse", "r2", "pearson", "spearman"}
        assert all({"value", "ci_low", "ci_high"} <= set(estimate) for estimate in scores.values())
    assert document["controls"]["mean"]["pearson"]["ci_reason"]
    assert (document["main_metric"], document["unit"], document["seed"]) == ("mae", "%", 7)
    assert document["annotations"] == manifest.annotations_digest and document["media"] == manifest.media_digest
    assert document["synthetic"] is True and document["leakage"] == "checked" and document["primary"] is True
    assert document["task_digest"] == LVEF.digest and document["where"] == "fps >= 25"
    assert set(document["groups"]["sex"]) == {"F", "M"}


def test_the_same_question_has_the_same_answer_and_a_seed_moves_it(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(60)
    source = make_source(manifest)

    def ask(**options: Any) -> dict[str, Any]:
        chosen = ProbeOptions(draws=100, **options)
        return probe_manifest([source], manifest, task=LVEF, options=chosen)[0].to_dict()

    assert ask() == ask()
    moved = ask(seed=1)
    assert moved["metrics"]["mae"]["value"] == ask()["metrics"]["mae"]["value"]
    assert moved["metrics"]["mae"]["ci_low"] != ask()["metrics"]["mae"]["ci_low"]
    assert moved["controls"]["shuffled"] != ask()["controls"]["shuffled"]
    assert moved["controls"]["random"]["mae"]["value"] != ask()["controls"]["random"]["mae"]["value"]


def test_another_encoder_beside_it_moves_no_number(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    one, two = make_source(manifest), make_source(manifest, name="other", dim=7, seed=9)
    alone = probe_manifest([one], manifest, task=LVEF, options=QUICK)[0].to_dict()
    beside = probe_manifest([two, one], manifest, task=LVEF, options=QUICK)[1].to_dict()
    assert alone == beside


def test_all_rows_of_a_table_use_the_clips_that_all_have(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    test = [clip for clip, split in zip(manifest.clip_ids, manifest.column("split"), strict=True) if split == "test"]
    full, partial = make_source(manifest), make_source(manifest, name="partial", drop=test[:5])
    with pytest.raises(MissingVectorsError, match="5 of 120 labelled clips"):
        probe_manifest([full, partial], manifest, task=LVEF, options=QUICK)
    options = ProbeOptions(draws=100, allow_missing=True)
    first, second = probe_manifest([full, partial], manifest, task=LVEF, options=options)
    assert first.predictions.clip_ids.tolist() == second.predictions.clip_ids.tolist()
    assert first.counts.n_scored == second.counts.n_scored == 43 and first.counts.n_expected == 48
    assert (first.counts.n_missing, first.counts.n_dropped) == (0, 5)
    assert (second.counts.n_missing, second.counts.n_dropped) == (5, 0)


def test_groups_have_their_own_numbers(make_manifest: MakeManifest, make_source: Make) -> None:
    fields = [ManifestField(name="device", role="subgroup", kind="category")]
    manifest = make_manifest(60, fields=fields, change=lambda rows: rows[0].update(device="x"))
    options = ProbeOptions(draws=100, by=("sex", "device"))
    (result,) = probe_manifest([make_source(manifest)], manifest, task=LVEF, options=options)
    sexes = dict(zip(manifest.clip_ids, manifest.column("sex"), strict=True))
    scored = result.predictions
    women = np.array([sexes[clip_id] == "F" for clip_id in scored.clip_ids])
    found = result.groups["sex"]["F"]
    assert found.n_scored == women.sum() and found.n_patients == len(set(scored.patients[women]))
    assert found.metrics["mae"].value == pytest.approx(np.abs(scored.y_true - scored.y_pred)[women].mean())
    assert found.metrics["mae"].ci_reason == f"{found.n_patients} patients, fewer than 20"
    assert set(result.groups["device"]) == {"unknown"}
    with pytest.raises(UnknownNameError, match="72 different values"):
        probe_manifest([make_source(manifest)], manifest, task=LVEF, options=ProbeOptions(by=("clip_id",)))
    with pytest.raises(UnknownNameError, match="did you mean 'sex'"):
        probe_manifest([make_source(manifest)], manifest, task=LVEF, options=ProbeOptions(by=("sexx",)))


def test_few_patients_have_values_without_intervals(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(20)
    (result,) = probe_manifest([make_source(manifest)], manifest, task=VIEW, options=QUICK)
    auroc = result.metrics["auroc"]
    assert auroc.value is not None and auroc.ci_low is None and auroc.ci_reason == "8 patients, fewer than 20"


def test_odd_labels_are_noted(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(30, change=lambda rows: rows[0].update(lvef_pct=120.0))
    (result,) = probe_manifest([make_source(manifest)], manifest, task=LVEF, options=QUICK)
    assert "1 labels lie outside the plausible 0 to 100 %" in result.provenance.notes

    def change(rows: list[dict[str, Any]]) -> None:
        test = [row for row in rows if row["split"] == "test"]
        test[0]["view"], test[1]["view"] = "PSAX", "PSAX"

    late = make_manifest(30, change=change)
    (view,) = probe_manifest([make_source(late)], late, task=VIEW, options=QUICK)
    assert "train lacks the classes PSAX: 2 test clips count as wrong" in view.provenance.notes
    assert view.predictions.classes[-1] == "PSAX" and view.metrics["accuracy"].value is not None


def test_leakage_is_refused_or_stamped(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(30, change=lambda rows: rows[0].update(split="test"))
    source = make_source(manifest)
    with pytest.raises(LeakageError):
        probe_manifest([source], manifest, task=LVEF, options=QUICK)
    options = ProbeOptions(draws=100, allow_leakage=True)
    (result,) = probe_manifest([source], manifest, task=LVEF, options=options)
    assert result.to_dict()["leakage"].startswith("allowed: 1 patients")


# -- from a store on disk -----------------------------------------------------------------------------------------


def test_a_store_answers_as_the_arrays_do(make_manifest: MakeManifest, make_source: Make, make_store: Make) -> None:
    manifest = make_manifest(40)
    source = make_source(manifest)
    store = make_store([manifest], [source])
    (stored,) = probe(store, task="lvef", options=ProbeOptions(pools=("meanstd",), draws=200))
    (direct,) = probe_manifest([source], manifest, task=LVEF, options=ProbeOptions(pools=("meanstd",), draws=200))
    for name, estimate in stored.metrics.items():  # float16 on disk
        assert estimate.value == pytest.approx(direct.metrics[name].value, abs=0.02)
    assert stored.provenance.set_id == store.entries()[0].set_id
    assert stored.to_dict()["set"] == stored.provenance.set_id


def test_without_names_every_data_set_and_encoder_answers(
    make_manifest: MakeManifest, make_source: Make, make_store: Make
) -> None:
    one, two = make_manifest(30, name="one"), make_manifest(30, name="two", seed=5)
    no_test = make_manifest(10, name="three", change=lambda rows: [row.update(split="train") for row in rows])
    sources = [make_source(one), make_source(one, name="other"), make_source(two), make_source(no_test)]
    store = make_store([one, two, no_test], sources)
    skipped: list[str] = []
    results = probe(store, task="view", options=QUICK, on_skip=skipped.append)
    assert [(result.dataset, result.encoder) for result in results] == [
        ("one", "other"), ("one", "toy-encoder"), ("two", "toy-encoder"),
    ]  # fmt: skip
    assert len(skipped) == 1 and "'three' has no labelled clip in the split 'val'" in skipped[0]
    with pytest.raises(NotRunnableError, match="split 'val'"):
        probe(store, task="view", dataset="three")
    assert [result.encoder for result in probe(store, task="view", encoder="other", options=QUICK)] == ["other"]
    described = {task["name"]: task for task in describe_tasks(store)}
    runs = {run["dataset"]: run for run in described["lvef"]["runs"]}
    assert runs["one"]["encoders"] == ["other", "toy-encoder"] and runs["one"]["reason"] is None
    assert runs["one"]["n_labelled"] == 90 and "split 'val'" in runs["three"]["reason"]


def test_a_manifest_file_gives_other_labels(
    make_manifest: MakeManifest, make_source: Make, make_store: Make, tmp_path: Any
) -> None:
    manifest = make_manifest(30)
    store = make_store([manifest], [make_source(manifest)])
    half = make_manifest(30, change=lambda rows: [row.update(lvef_pct=None) for row in rows[::2]])
    half.write(tmp_path / "half.parquet")
    (result,) = probe(store, task="lvef", dataset=tmp_path / "half.parquet", options=QUICK)
    assert result.counts.n_unlabelled == 45 and result.provenance.annotations == half.annotations_digest


def test_unknown_names_are_refused_with_the_nearest(
    make_manifest: MakeManifest, make_source: Make, make_store: Make
) -> None:
    manifest, bare = make_manifest(30), make_manifest(10, name="bare")
    store = make_store([manifest, bare], [make_source(manifest)])
    for asked, says in (
        ({"task": "lvfe"}, "did you mean 'lvef'"),
        ({"task": "lvef", "dataset": "tooy"}, "did you mean 'toy'"),
        ({"task": "lvef", "encoder": "toy-encodr"}, "did you mean 'toy-encoder'"),
        ({"task": "lvef", "dataset": "toy", "encoder": "toy-encodr"}, "did you mean 'toy-encoder'"),
        ({"task": "lvef", "dataset": "bare"}, "the store has no vectors of data set 'bare'"),
        ({"task": "lvef", "options": ProbeOptions(protocol="rigde")}, "did you mean 'ridge'"),
        ({"task": "lvef", "options": ProbeOptions(protocol="logreg")}, "is for classification"),
        ({"task": "lvef", "options": ProbeOptions(pools=("men",))}, "did you mean 'mean'"),
        ({"task": "lvef", "options": ProbeOptions(where="fsp > 3")}, "did you mean 'fps'"),
    ):
        with pytest.raises(UnknownNameError) as refusal:
            probe(store, **asked)
        assert says in str(refusal.value) and refusal.value.exit_code == 2


def test_a_task_without_labels_anywhere(make_manifest: MakeManifest, make_source: Make, make_store: Make) -> None:
    manifest = make_manifest(10, change=lambda rows: [row.update(lvef_pct=None) for row in rows])
    store = make_store([manifest], [make_source(manifest)])
    with pytest.raises(
        UnknownNameError, match="no manifest of the store holds the label 'lvef_pct' that task 'lvef'"
    ):
        probe(store, task="lvef")
    assert [task.name for task in asked_tasks(store)] == ["view"]
    nothing = make_store([make_manifest(10, name="other")], [], name="empty")
    with pytest.raises(UnknownNameError, match="no vectors of any encoder"):
        probe(nothing, task="lvef")


def test_two_variants_that_match_are_ambiguous(
    make_manifest: MakeManifest, make_source: Make, make_store: Make
) -> None:
    manifest = make_manifest(30)
    sources = [make_source(manifest, seed=seed) for seed in (1, 2)]
    for source, variant in zip(sources, ("stride2", "uniform8"), strict=True):
        source.spec = replace(source.spec, variant=variant)
    store = make_store([manifest], sources)
    with pytest.raises(AmbiguousNameError, match="stride2"):
        probe(store, task="lvef", dataset="toy", encoder="toy-encoder")
    (result,) = probe(store, task="lvef", encoder="toy-encoder@uniform8", options=QUICK)
    assert result.title == "toy-encoder@uniform8" and result.to_dict()["variant"] == "uniform8"


def test_a_column_makes_a_task_whose_kind_can_be_told(
    make_manifest: MakeManifest, make_source: Make, make_store: Make
) -> None:
    fields = [
        ManifestField(name="lvidd_cm", role="label", kind="number", unit="cm"),
        ManifestField(name="age_years", role="subgroup", kind="integer"),
        ManifestField(name="rwma", role="label", kind="boolean"),
        ManifestField(name="flag", role="label", kind="integer"),
    ]

    def change(rows: list[dict[str, Any]]) -> None:
        rng = np.random.default_rng(0)
        for row in rows:
            row.update(lvidd_cm=float(rng.normal(5, 1)), age_years=int(rng.integers(20, 80)))
            row.update(rwma=bool(rng.random() < 0.5), flag=int(rng.integers(0, 2)))

    manifest = make_manifest(30, change=change, fields=fields)
    store = make_store([manifest], [make_source(manifest)])
    tasks = asked_tasks(store, labels=["lvidd_cm", "rwma", "flag", "sex"])
    assert [(task.name, task.kind, task.unit) for task in tasks] == [
        ("lvidd_cm", "regression", "cm"), ("rwma", "classification", None), ("flag", "classification", None),
        ("sex", "classification", None),
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="'age_years' holds whole numbers.*--kind"):
        asked_tasks(store, labels=["age_years"])
    (age,) = asked_tasks(store, labels=["age_years"], kind="regression")
    assert age.kind == "regression"
    with pytest.raises(UnknownNameError, match="no manifest has the column 'lvid_cm'; did you mean 'lvidd_cm'"):
        asked_tasks(store, labels=["lvid_cm"])
    with pytest.raises(UnknownNameError, match="--kind says what a --label is"):
        asked_tasks(store, kind="regression")
    (result,) = probe(store, task=tasks[1], options=QUICK)
    assert result.predictions.classes == ("false", "true") and result.task.name == "rwma"
