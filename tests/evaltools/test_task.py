from __future__ import annotations

from pathlib import Path

import pytest

from embedstore.errors import FormatError, HostileInputError, UnknownNameError
from evaltools.metrics import metric_names
from evaltools.protocols import PROTOCOLS
from evaltools.task import Task, get_task, label_task, read_task, shipped_tasks

MINE = """\
name: mine
title: My label
kind: regression
unit: cm
column: lvidd_cm
columns: {echonet-lvh: LVIDd}
metrics: [mae, r2]
main_metric: mae
protocol: ridge
"""


def test_every_shipped_task_is_valid_and_named_after_its_file() -> None:
    files = sorted((Path(read_task.__code__.co_filename).parent / "tasks").glob("*.yaml"))
    assert files and sorted(shipped_tasks()) == [file.stem for file in files]
    for task in shipped_tasks().values():
        assert task.title and task.citation
        # Calibration stands beside the metrics of every result; a task of one's own may put it among them.
        assert set(task.metrics) == set(metric_names(task.kind)) - {"ece", "brier", "nll"}
        assert task.kind in PROTOCOLS[task.protocol].kinds
        assert len({other.digest for other in shipped_tasks().values()}) == len(shipped_tasks())


def test_lvef_and_view_are_what_the_field_means() -> None:
    lvef, view = get_task("lvef"), get_task("view")
    assert (lvef.kind, lvef.unit, lvef.column, lvef.main_metric) == ("regression", "%", "lvef_pct", "mae")
    assert lvef.metric_title("mae") == "MAE (%)" and lvef.metric_title("r2") == "R2"
    assert (view.kind, view.column, view.protocol) == ("classification", "view", "logreg")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    task = get_task(path)
    assert task.column_of("echonet-lvh") == "LVIDd" and task.column_of("another") == "lvidd_cm"
    assert task == read_task(path) and task.digest == get_task(str(path)).digest
    path.write_text(MINE.replace("cm\n", "mm\n", 1))
    assert read_task(path).digest != task.digest


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("kind: regression", "kind: guess", "kind: "),
        ("title: My label\n", "", "title: Field required"),
        ("unit: cm", "colour: red", "colour: "),
        ("[mae, r2]", "[mae, auroc]", "'auroc' is none of mae"),
        ("main_metric: mae", "main_metric: rmse", "'rmse' is not among metrics"),
        ("protocol: ridge", "protocol: logreg", "'logreg' is no regression protocol"),
        ("[mae, r2]", "[]", "metrics: "),
        ("column: lvidd_cm\n", "column: lvidd_cm\nlevel: study\n", "level: "),
    ],
)
def test_a_broken_file_is_refused_by_field(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace(old, new, 1))
    with pytest.raises(FormatError, match="mine.yaml") as refusal:
        read_task(path)
    assert says in str(refusal.value)


def test_yaml_that_holds_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(HostileInputError):
        read_task(path)


def test_unknown_tasks_get_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'lvfe'; did you mean 'lvef'"):
        get_task("lvfe")
    with pytest.raises(UnknownNameError, match="no task file"):
        get_task(tmp_path / "absent.yaml")


def test_a_column_makes_a_task() -> None:
    task = label_task("ivsd_cm", kind="regression", unit="cm")
    assert task.metrics == ("mae", "r2", "spearman", "rmse", "pearson") and task.protocol == "ridge"
    assert set(task.metrics) == set(metric_names("regression"))
    assert label_task("rwma", kind="classification").main_metric == "balanced_accuracy"
    assert isinstance(task, Task)
