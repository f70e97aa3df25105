from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest
from embedstore.errors import ContentError, UnknownNameError
from evaltools.cohort import build_cohort
from evaltools.curve import CurveOptions, curve, curve_manifest, patient_shares
from evaltools.metrics import regression_metrics
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.report.curve import format_curve, write_curve
from evaltools.report.curve_figure import draw_curve
from evaltools.report.text import format_results
from evaltools.task import get_task
from evaltools.transfer import transfer, transfer_manifests

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
LVEF, VIEW = get_task("lvef"), get_task("view")
PROBE = ProbeOptions(pools=("meanstd",), draws=50, n_shuffles=5)
POINTS = CurveOptions(fractions=(0.1, 0.3, 1.0), repeats=3, probe=PROBE)


def test_more_patients_give_a_better_score_and_the_whole_is_the_probe(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(100)
    source = make_source(manifest)
    results = curve_manifest([source], manifest, task=LVEF, options=POINTS)
    assert [(one.axis["fraction"], one.axis["repeat"]) for one in results] == [
        *((0.1, 0), (0.3, 0), (1.0, 0), (0.1, 1), (0.3, 1), (0.1, 2), (0.3, 2)),
    ]
    mean = {share: np.mean([one.metrics["mae"].value for one in results if one.axis["fraction"] == share])
            for share in (0.1, 0.3, 1.0)}  # fmt: skip
    assert mean[1.0] < mean[0.3] < mean[0.1]
    (whole,) = probe_manifest([source], manifest, task=LVEF, options=PROBE)
    assert results[2].metrics == whole.metrics and results[2].controls == whole.controls
    assert [one.counts.n_train for one in results[:3]] == [12, 36, 120]
    assert {one.counts.n_scored for one in results} == {whole.counts.n_scored}
    document = json.loads(json.dumps(results[0].to_dict(), allow_nan=False))
    assert (
        document["fraction"] == 0.1 and document["repeat"] == 0 and set(document["controls"]) == set(whole.controls)
    )


def test_a_share_is_stratified_nested_and_of_whole_patients(make_manifest: MakeManifest) -> None:
    def rare(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["sex"] = "F" if int(row["patient_id"][1:]) % 10 in (0, 2) else "M"

    sex = VIEW.model_copy(update={"column": "sex", "name": "sex", "unlabelled_where": {}})
    cohort = build_cohort(make_manifest(200, change=rare), sex)
    shares = patient_shares(cohort, seed=5)
    train = cohort.in_split("train")
    for patient in set(cohort.patients):
        assert len(set(shares[cohort.patients == patient])) == 1
    for share, of_class in ((0.1, 2), (0.5, 10), (1.0, 20)):
        kept = train & (shares <= share)
        assert len(set(cohort.patients[kept])) == round(share * 80)
        assert len(set(cohort.patients[kept & (cohort.labels == "F")])) == pytest.approx(of_class, abs=1)
    assert not np.array_equal(shares, patient_shares(cohort, seed=6))
    assert (shares[cohort.in_split("test")] == 0).all()


def test_shots_are_patients_of_each_class(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    sex = VIEW.model_copy(update={"column": "sex", "name": "sex", "unlabelled_where": {}})
    options = CurveOptions(fractions=(), shots=(1, 3), repeats=2, probe=replace(PROBE, pools=("clip",), n_shuffles=2))
    results = curve_manifest([make_source(manifest)], manifest, task=sex, options=options)
    assert [(one.axis["shots"], one.counts.n_train, one.counts.n_val) for one in results[:2]] == [
        (1, 6, 6),
        (3, 18, 18),
    ]
    assert results[1].axis["fraction"] == pytest.approx(6 / 24)


def test_a_curve_of_a_store_is_printed_and_drawn(
    make_manifest: MakeManifest, make_source: Make, make_store: Make, tmp_path: Path
) -> None:
    manifest = make_manifest(60)
    store = make_store([manifest], [make_source(manifest), make_source(manifest, name="other", seed=3)])
    results = curve(store, task=LVEF, options=replace(POINTS, fractions=(0.2, 1.0), repeats=2))
    text = format_curve(results)
    assert "label efficiency" in text and "20 %" in text and "100 %" in text and text.count("toy-encoder") == 2
    write_curve(results, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"curve-lvef-toy.{suffix}" for suffix in ("json", "png", "svg")
    ]
    assert (tmp_path / "out/curve-lvef-toy.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "out/curve-lvef-toy.json").read_text())["results"]) == len(results) == 6
    # A script that matplotlib's font lacks is no warning, and warnings are errors here.
    assert draw_curve([replace(one, dataset="心臓") for one in results])["png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"fractions": (0.0,)}, "above 0"), ({"fractions": (2.0,)}, "200 %"), ({"repeats": 0}, "at least 1"),
     ({"fractions": ()}, "fractions or shots"), ({"probe": ProbeOptions(cv="5")}, "leave --cv out")],
)  # fmt: skip
def test_points_that_cannot_be_are_refused(
    make_manifest: MakeManifest, make_source: Make, change: dict[str, Any], says: str
) -> None:
    manifest = make_manifest(20)
    with pytest.raises(UnknownNameError, match=says):
        curve_manifest([make_source(manifest)], manifest, task=LVEF, options=replace(POINTS, **change))


def elsewhere(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["sha256"] = row["sha256"][::-1]


def test_a_transfer_is_fitted_on_one_and_scored_on_the_other(make_manifest: MakeManifest, make_source: Make) -> None:
    one, two = make_manifest(60, name="one"), make_manifest(60, name="two", seed=5, change=elsewhere)
    pair = make_source(one), make_source(two)
    (result,) = transfer_manifests([pair], one, two, task=LVEF, options=PROBE)
    assert result.dataset == "two" and result.to_dict()["train_dataset"] == "one"
    (at_home,) = probe_manifest([pair[1]], two, task=LVEF, options=PROBE)
    assert result.predictions.clip_ids.tolist() == at_home.predictions.clip_ids.tolist()
    assert result.predictions.y_true.tolist() == at_home.predictions.y_true.tolist()
    (first,) = probe_manifest([pair[0]], one, task=LVEF, options=PROBE)
    assert result.chosen == first.chosen
    counts = result.counts
    found = (counts.n_train, counts.n_val, counts.n_expected, counts.n_scored, counts.n_patients)
    assert found == (72, 36, 72, 72, 24)
    scored = result.predictions
    assert result.metrics["mae"].value == pytest.approx(regression_metrics(scored.y_true, scored.y_pred)["mae"])
    assert result.metrics["r2"].value > 0.5 and result.controls["random"]["r2"].value < 0.3
    assert any("fitted on one" in note for note in result.provenance.notes)
    assert "on two [synthetic], fitted on one" in format_results([result])


def test_classes_and_temporal_vectors_transfer(make_manifest: MakeManifest, make_source: Make) -> None:
    one, two = make_manifest(60, name="one"), make_manifest(60, name="two", seed=5, change=elsewhere)
    pair = make_source(one), make_source(two)
    options = ProbeOptions(draws=50, n_shuffles=2, by=("sex",))
    (views,) = transfer_manifests([pair], one, two, task=VIEW, options=options)
    assert views.metrics["balanced_accuracy"].value > 0.9 and set(views.groups["sex"]) == {"F", "M"}
    (moving,) = transfer_manifests([pair], one, two, task=LVEF, options=replace(options, protocol="temporal"))
    assert moving.pool == "temporal" and moving.metrics["r2"].value > 0.5


def test_what_cannot_be_transferred_is_said(make_manifest: MakeManifest, make_source: Make, make_store: Make) -> None:
    one, two = make_manifest(30, name="one"), make_manifest(30, name="two", seed=5, change=elsewhere)
    copy = make_manifest(30, name="copy")
    with pytest.raises(ContentError, match="overlap: .* test clips have the content of a training clip"):
        options = replace(PROBE, allow_leakage=False)
        copied = make_manifest(30, name="copy", change=lambda rows: [row.update(split="test") for row in rows])
        transfer_manifests([(make_source(one), make_source(copied))], one, copied, task=LVEF, options=options)
    store = make_store([one, two, copy], [make_source(one), make_source(two), make_source(copy, dim=5)])
    ask = {"task": LVEF, "options": PROBE}
    assert len(transfer(store, train_dataset="one", dataset="two", **ask)) == 1
    with pytest.raises(UnknownNameError, match="both are 'one'"):
        transfer(store, train_dataset="one", dataset="one", **ask)
    with pytest.raises(ContentError, match="different settings"):
        transfer(store, train_dataset="one", dataset="copy", **ask)
