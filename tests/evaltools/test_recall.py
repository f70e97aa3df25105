from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest
from embedstore.errors import UnknownNameError
from evaltools.cohort import NotRunnableError
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.report.files import write_results
from evaltools.report.text import format_results
from evaltools.task import get_task
from evaltools.transfer import transfer, transfer_manifests

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
QUICK = ProbeOptions(draws=200, n_shuffles=5)


def _only_a4c(rows: list[dict[str, Any]]) -> None:
    rows[:] = [row for row in rows if row["view"] == "A4C"]


def test_a_set_of_one_view_is_scored_by_recall_after_fitting_on_another(
    make_manifest: MakeManifest, make_source: Make, tmp_path: Any
) -> None:
    origin, single = make_manifest(60), make_manifest(60, name="single", change=_only_a4c, seed=4)
    pair = (make_source(origin), make_source(single))
    with pytest.raises(NotRunnableError, match="one class only, 'A4C', in the split 'train'"):
        probe_manifest([pair[1]], single, task=get_task("view"), options=QUICK)
    (result,) = transfer_manifests([pair], origin, single, task=get_task("view"), options=QUICK)
    assert list(result.metrics) == ["recall"] and result.to_dict()["main_metric"] == "recall"
    predicted = result.predictions.y_pred
    assert result.metrics["recall"].value == pytest.approx(np.mean(predicted == "A4C"))
    assert result.metrics["recall"].ci_low is not None and result.p_shuffled is None
    assert set(result.controls) == {"mean", "random", "metadata"}
    assert result.controls["mean"]["recall"].value in (0.0, 1.0)
    assert "so this is recall" in " ".join(result.provenance.notes)
    shown = format_results([result])
    assert "recall" in shown and "permutations" not in shown
    several = make_manifest(60, name="several", seed=4)
    both = transfer_manifests(
        [(pair[0], make_source(several))], origin, several, task=get_task("view"), options=QUICK
    )
    assert "middle 95 % of 5 permutations" in format_results(both)
    (document,) = write_results([result], tmp_path, command="transfer")
    assert document["train_dataset"] == "toy" and list(document["metrics"]) == ["recall"]


def test_another_task_of_one_class_stays_refused(make_manifest: MakeManifest, make_source: Make) -> None:
    def women(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["sex"] = "F"

    from evaltools.task import label_task

    sex = label_task("sex", kind="classification")
    origin, single = make_manifest(60), make_manifest(60, name="single", change=women, seed=4)
    with pytest.raises(NotRunnableError, match="one class only, 'F', in the split 'test'"):
        transfer_manifests([(make_source(origin), make_source(single))], origin, single, task=sex, options=QUICK)


def test_rows_of_the_target_are_scored_in_a_transfer(make_manifest: MakeManifest, make_source: Make) -> None:
    origin, target = make_manifest(60), make_manifest(60, name="camus", seed=4)
    pair = (make_source(origin), make_source(target))
    results = transfer_manifests([pair], origin, target, task=get_task("lvef"), options=QUICK)
    assert [result.row.name for result in results] == ["patient", "A2C", "A4C"]
    patient, a2c, a4c = results
    assert (patient.counts.n_scored, a2c.counts.n_scored, a4c.counts.n_scored) == (24, 24, 24)
    assert {clip.split("-")[1] for clip in a2c.predictions.clip_ids} == {"A2C"}


def test_several_data_sets_are_fitted_on_together_and_one_left_out(
    make_manifest: MakeManifest, make_source: Make, make_store: Make
) -> None:
    def other_content(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["sha256"] = row["sha256"][::-1]

    def plax_and_a2c(rows: list[dict[str, Any]]) -> None:
        rows[:] = [row for row in rows if row["view"] != "A4C"]

    one, two = make_manifest(40, name="one"), make_manifest(40, name="two", change=plax_and_a2c, seed=2)
    left = make_manifest(40, name="left", change=other_content, seed=3)
    store = make_store([one, two, left], [make_source(of) for of in (one, two, left)])
    options = ProbeOptions(draws=0, n_shuffles=5)
    (result,) = transfer(store, task=get_task("view"), train_dataset=("one", "two"), dataset="left", options=options)
    assert result.to_dict()["train_dataset"] == "one+two" and result.dataset == "left"
    assert (result.counts.n_train, result.counts.n_val, result.counts.n_scored) == (48 + 32, 24 + 16, 48)
    assert result.predictions.classes == ("A2C", "A4C", "PLAX")
    assert sum("fitted on" in note for note in result.provenance.notes) == 2
    assert result.metrics["balanced_accuracy"].value > 0.9  # type: ignore[operator]
    with pytest.raises(UnknownNameError, match="both are 'left'"):
        transfer(store, task=get_task("view"), train_dataset=("one", "left"), dataset="left", options=options)
