"""Every shipped task against the data sets that it names: columns, rows, groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import manifests
from embedstore.manifest.fields import STANDARD
from embedstore.where import parse_where
from evaltools.task import Task, shipped_tasks
from evaltools.task_rows import EVERYTHING, TaskRow

_FOLDERS = Path(str(manifests.__file__)).parent
CARDIOBENCH = {
    *("echonet-dynamic", "echonet-pediatric", "echonet-lvh", "camus", "tmed2", "hmc-qu", "segrwma"),
    *("cardiacnet-asd", "cardiacnet-pah"),
}


def _columns(dataset: str) -> set[str]:
    facts = yaml.safe_load((_FOLDERS / dataset.replace("-", "_") / "dataset.yaml").read_text())
    return {*STANDARD, *facts["fields"]}


def _asked_columns(task: Task, dataset: str) -> set[str]:
    done = task.on(dataset)
    texts = [done.asked_of, *(text for row in done.rows for text in (row.where, row.asked_of))]
    conditions = [parse_where(text).conditions for text in texts if text not in (None, EVERYTHING)]
    columns = {condition.column for of in conditions for condition in of}
    columns |= {group.column for group in done.subgroups} | {task.column_of(dataset)}
    if done.controls or any(row.level == "study" for row in done.rows):
        columns |= {"study_id", "view"}
    return columns


@pytest.mark.parametrize("name", sorted(shipped_tasks()))
@pytest.mark.parametrize("statistics", ["patient", "cardiobench"])
def test_columns_that_a_task_reads_are_written_by_the_recipe(name: str, statistics: str) -> None:
    task = shipped_tasks()[name]
    task = task.under_cardiobench() if statistics == "cardiobench" else task
    assert task.datasets
    for dataset in task.datasets:
        assert dataset in CARDIOBENCH
        assert _asked_columns(task, dataset) <= _columns(dataset), dataset


def test_every_pair_of_the_benchmark_has_a_task() -> None:
    tasks = shipped_tasks()
    pairs = {(name, dataset) for name, task in tasks.items() for dataset in task.datasets}
    assert pairs >= {
        ("lvef", "echonet-dynamic"), ("lvef", "echonet-pediatric"), ("lvef", "camus"), ("ivsd", "echonet-lvh"),
        ("lvidd", "echonet-lvh"), ("lvpwd", "echonet-lvh"), ("asd", "cardiacnet-asd"), ("pah", "cardiacnet-pah"),
        ("stemi", "hmc-qu"), ("rwma", "segrwma"), ("as", "tmed2"), ("as3", "tmed2"),
    }  # fmt: skip
    assert {dataset for name, dataset in pairs if name == "view"} == CARDIOBENCH


def _rows(task: str, dataset: str) -> list[str]:
    return [row.name for row in shipped_tasks()[task].on(dataset).rows if row.default]


def test_rows_are_those_of_the_plan() -> None:
    assert _rows("lvef", "camus") == ["patient", "A2C", "A4C"]
    assert _rows("lvef", "echonet-pediatric") == ["pooled", "A4C", "PSAX"]
    assert _rows("stemi", "hmc-qu") == ["view", "A2C", "A4C", "patient"]
    assert _rows("rwma", "segrwma") == ["pooled", "A2C", "A3C", "A4C"]
    assert _rows("as", "tmed2") == _rows("as3", "tmed2") == ["study", "image"]
    assert _rows("asd", "cardiacnet-asd") == _rows("pah", "cardiacnet-pah") == ["all", "without-phi"]
    assert _rows("lvef", "a-set-of-ones-own") == ["all"]


def test_cardiobench_changes_labels_clips_and_groups_only() -> None:
    tasks = shipped_tasks()
    assert tasks["lvidd"].under_cardiobench().column_of("echonet-lvh") == "lvidd_cm_first"
    assert tasks["lvidd"].column_of("echonet-lvh") == "lvidd_cm"
    assert tasks["view"].on("tmed2").asked_of == "view != Other"
    assert tasks["view"].under_cardiobench().on("tmed2").asked_of is None
    bmi = "bmi"
    assert bmi not in [group.column for group in tasks["lvef"].on("echonet-pediatric").subgroups]
    changed = tasks["lvef"].under_cardiobench()
    (group,) = [group for group in changed.on("echonet-pediatric").subgroups if group.column == bmi]
    assert [group.group_of(value) for value in (18.4, 18.5, 24.9, 25.0)] == ["Low", "Healthy", "Healthy", "High"]
    assert changed.digest != tasks["lvef"].digest and changed.name == "lvef"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"level": "patient"}, "a row of patients or studies makes one"),
        ({"prediction": "mean"}, "a row of clips takes each"),
        ({"where": "view is A4C"}, "view is A4C"),
    ],
)
def test_a_row_that_means_nothing_is_refused(fields: dict[str, str], says: str) -> None:
    with pytest.raises((ValueError, LookupError), match=says):
        TaskRow.model_validate({"name": "mine", **fields})
