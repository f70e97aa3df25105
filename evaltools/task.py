"""`Task`: what is asked of the vectors. Read from ``tasks/*.yaml``, from a user's file, or made of one column."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedstore.errors import FormatError, UnknownNameError, did_you_mean
from embedstore.identity import digest_json
from embedstore.safe_yaml import read_yaml
from evaltools.metrics import METRICS, Kind, metric_names
from evaltools.protocols import PROTOCOLS
from evaltools.task_rows import CardiobenchChanges, TaskDataset, TaskRow

__all__ = ["Task", "get_task", "label_task", "read_task", "shipped_tasks"]

_FOLDER = Path(__file__).parent / "tasks"
_PRIMARY: Mapping[Kind, str] = {"regression": "ridge", "classification": "logreg"}
_SHOWN: Mapping[Kind, tuple[str, ...]] = {  # the first is the main metric
    "regression": ("mae", "r2", "spearman", "rmse", "pearson"),
    "classification": ("balanced_accuracy", "auroc", "f1_macro", "accuracy", "auprc"),
}


class Task(BaseModel):
    """A question that labels answer.

    Attributes
    ----------
    name, title : str
        Name in commands and results, name for people.
    kind : {"regression", "classification"}
    level : {"clip"}
        What one prediction is made for; the rows of `datasets` say what is scored.
    unit : str or None
        Unit of a regression target.
    column : str
        Manifest column that holds the label.
    columns : mapping of str to str
        Data set to its column, where it is another.
    unlabelled_where : mapping of str to tuple of str
        Column to values; a row with such a value counts as unlabelled.
    classes : mapping of str to str
        Value of the column to class; other values count as unlabelled. Without, each value is a class.
    datasets : mapping of str to TaskDataset
        Data set to its rows, subgroups and controls; a data set that is not here has one row of all clips.
    cardiobench : CardiobenchChanges
        What `under_cardiobench` replaces.
    recall_on_one_class : bool
        Whether test clips that are all of one class can be scored, by recall.
    plausible : (float, float) or None
        Range outside of which a label is counted and noted.
    metrics : tuple of str
        What is reported, in the order of tables.
    main_metric : str
        The one that ranks.
    protocol : str
        The primary protocol, fixed before looking.
    citation : str
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    title: str
    kind: Literal["regression", "classification"]
    level: Literal["clip"] = "clip"
    unit: str | None = None
    column: str
    columns: Mapping[str, str] = Field(default_factory=dict)
    unlabelled_where: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    classes: Mapping[str, str] = Field(default_factory=dict)
    datasets: Mapping[str, TaskDataset] = Field(default_factory=dict)
    cardiobench: CardiobenchChanges = CardiobenchChanges()
    recall_on_one_class: bool = False
    plausible: tuple[float, float] | None = None
    metrics: tuple[str, ...] = Field(min_length=1)
    main_metric: str
    protocol: str
    citation: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        strange = [name for name in self.metrics if name not in metric_names(self.kind)]
        if strange:
            raise ValueError(f"metric {strange[0]!r} is none of {', '.join(metric_names(self.kind))}")
        if self.main_metric not in self.metrics:
            raise ValueError(f"main_metric {self.main_metric!r} is not among metrics")
        if self.protocol not in PROTOCOLS or self.kind not in PROTOCOLS[self.protocol].kinds:
            raise ValueError(f"protocol {self.protocol!r} is no {self.kind} protocol")
        if self.classes and self.kind == "regression":
            raise ValueError("a regression task has no classes")
        if self.kind == "classification" and any(row.truth == "mean" for row in self._all_rows()):
            raise ValueError("classes have no mean; take truth: same or truth: any")
        return self

    def _all_rows(self) -> list[TaskRow]:
        of = (*self.datasets.values(), *self.cardiobench.datasets.values())
        return [row for dataset in of for row in dataset.rows]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the task says."""
        return digest_json(self.model_dump(mode="json"))

    def column_of(self, dataset: str) -> str:
        """Return the column of a data set that holds the label."""
        return self.columns.get(dataset, self.column)

    def on(self, dataset: str) -> TaskDataset:
        """Return what the task does on a data set."""
        return self.datasets.get(dataset, TaskDataset())

    def under_cardiobench(self) -> Task:
        """Return the task with CardioBench's columns, clips, rows and subgroups; its digest tells the two apart."""
        changes = self.cardiobench
        columns, datasets = {**self.columns, **changes.columns}, dict(self.datasets)
        for name, change in changes.datasets.items():
            stated = {field: getattr(change, field) for field in change.model_fields_set}
            datasets[name] = self.on(name).model_copy(update=stated)
        return self.model_copy(update={"columns": columns, "datasets": datasets})

    def metric_title(self, name: str) -> str:
        """Return a metric's name for people, with the target's unit where it carries it."""
        metric = METRICS[name]
        return f"{metric.title} ({self.unit})" if metric.in_target_unit and self.unit else metric.title


def read_task(path: str | Path) -> Task:
    """Read and validate a task file.

    Raises
    ------
    FormatError
        A field is missing, unknown, or does not fit; the message names it.
    """
    try:
        return Task.model_validate(read_yaml(Path(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the task"
        raise FormatError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


@cache
def shipped_tasks() -> dict[str, Task]:
    """Return the tasks that come with evaltools, by name.

    Examples
    --------
    >>> sorted(shipped_tasks())
    ['as', 'as3', 'asd', 'ivsd', 'lvef', 'lvidd', 'lvpwd', 'pah', 'rwma', 'stemi', 'view']
    """
    tasks = [read_task(path) for path in sorted(_FOLDER.glob("*.yaml"))]
    return {task.name: task for task in tasks}


def get_task(name: str | Path) -> Task:
    """Return a shipped task by name, or read a task file (a name that ends in ``.yaml`` or ``.yml``).

    Raises
    ------
    UnknownNameError
        There is no such task; the message has the nearest name.
    """
    tasks = shipped_tasks()
    if str(name) in tasks:
        return tasks[str(name)]
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UnknownNameError(f"there is no task file {str(name)!r}")
        return read_task(path)
    raise UnknownNameError(f"unknown task {str(name)!r}{did_you_mean(str(name), list(tasks))}")


def label_task(column: str, *, kind: Kind, unit: str | None = None) -> Task:
    """Return a task made of one manifest column.

    Examples
    --------
    >>> label_task("lvidd_cm", kind="regression", unit="cm").main_metric
    'mae'
    """
    metrics = _SHOWN[kind]
    stated: dict[str, Any] = {"unit": unit, "metrics": metrics, "main_metric": metrics[0], "protocol": _PRIMARY[kind]}
    return Task(name=column, title=column, kind=kind, column=column, **stated)
