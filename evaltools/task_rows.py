"""What a task scores on one data set: its rows, subgroups and controls of its own. Read from ``tasks/*.yaml``.

A protocol predicts clip by clip. A row says which of the predictions count, what is scored (clips, patients, studies)
and how the predictions of one patient or study become one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from embedstore.errors import UnknownNameError, did_you_mean
from embedstore.where import parse_where

__all__ = [
    "EVERYTHING",
    "MAIN_ROW",
    "CardiobenchChanges",
    "Subgroup",
    "TaskDataset",
    "TaskRow",
    "pick_rows",
    "rows_by_fit",
]

Level = Literal["clip", "patient", "study"]
EVERYTHING = "everything"  # in place of an expression: every clip with a label
MAIN_ROW = "main"  # in place of a row's name: the first


def _require_expression(text: str | None) -> None:
    if text is not None and text != EVERYTHING:
        parse_where(text)


class TaskRow(BaseModel):
    """One row of results: which predictions are scored, by what, put together how.

    Attributes
    ----------
    name : str
        As ``--row`` calls it.
    where : str or None
        Expression: these predictions only, of a model that is fitted on all that the task is asked of.
    asked_of : str or None
        Expression in place of the data set's own: the row has a fit of its own. ``everything`` for every clip.
    level : {"clip", "patient", "study"}
        What is scored; an image is a clip of one frame.
    prediction : {"each", "mean", "mean-of-views", "any"}
        How predictions become one: their mean, the mean of the mean of each view, or the most positive.
    truth : {"each", "same", "mean", "any"}
        How labels become one. ``same``: they must be equal.
    default : bool
        Whether the row is there without being named.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    where: str | None = None
    asked_of: str | None = None
    level: Level = "clip"
    prediction: Literal["each", "mean", "mean-of-views", "any"] = "each"
    truth: Literal["each", "same", "mean", "any"] = "each"
    default: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.level == "clip") != (self.prediction == "each") or (self.level == "clip") != (self.truth == "each"):
            raise ValueError("a row of clips takes each prediction and label, a row of patients or studies makes one")
        for text in (self.where, self.asked_of):
            _require_expression(text)
        return self

    @property
    def aggregation(self) -> str:
        """How predictions and labels become one, in words."""
        if self.level == "clip":
            return "each clip"
        prediction = {
            "mean": "mean prediction",
            "mean-of-views": "mean over views of the mean prediction",
            "any": "most positive prediction",
        }[self.prediction]
        truth = {"same": "its label", "mean": "mean label", "any": "positive if any clip is"}[self.truth]
        return f"{prediction} of the {self.level}, {truth}"


class Subgroup(BaseModel):
    """A column whose groups are scored apart.

    Attributes
    ----------
    column : str
    edges : tuple of float
        Ascending bounds; each belongs to the group below unless ``left_closed``.
    labels : tuple of str
        Names of the groups between them, one more than there are edges.
    left_closed : bool
        Whether a bound belongs to the group above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str = Field(min_length=1)
    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    left_closed: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.edges and len(self.labels) != len(self.edges) + 1:
            raise ValueError(f"subgroup {self.column!r} has {len(self.edges)} edges and {len(self.labels)} labels")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError(f"subgroup {self.column!r} has edges that do not ascend")
        return self

    def group_of(self, value: Any) -> Any:
        """Return the group of a value; the value itself where there are no edges, None where it is unknown.

        Examples
        --------
        >>> age = Subgroup(column="age_years", edges=(45, 65), labels=("to 45", "46 to 65", "over 65"))
        >>> age.group_of(45), age.group_of(45.5), age.group_of(None)
        ('to 45', '46 to 65', None)
        """
        if value is None or not self.edges:
            return value
        below = (value >= edge if self.left_closed else value > edge for edge in self.edges)
        return self.labels[sum(below)]


_ALL = (TaskRow(name="all"),)


class TaskDataset(BaseModel):
    """What a task does on one data set.

    Attributes
    ----------
    asked_of : str or None
        Expression: the clips that are fitted on and scored.
    rows : tuple of TaskRow
        The first is the main one, which is compared and ranked.
    subgroups : tuple of Subgroup
    controls : tuple of {"view-mix", "n-images"}
        Controls beside those of every task.
    note : str or None
        What a reader must know of this task on this data set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked_of: str | None = None
    rows: tuple[TaskRow, ...] = Field(default=_ALL, min_length=1)
    subgroups: tuple[Subgroup, ...] = ()
    controls: tuple[Literal["view-mix", "n-images"], ...] = ()
    note: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require_expression(self.asked_of)
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names) or MAIN_ROW in names:
            raise ValueError(f"rows need names of their own, none {MAIN_ROW!r}: {', '.join(names)}")
        if not self.rows[0].default:
            raise ValueError("the main row cannot be left out by default")
        return self


class CardiobenchChanges(BaseModel):
    """What CardioBench does otherwise: replaces what it names, column by column and field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: Mapping[str, str] = Field(default_factory=dict)
    datasets: Mapping[str, TaskDataset] = Field(default_factory=dict)


def pick_rows(rows: tuple[TaskRow, ...], names: tuple[str, ...]) -> tuple[TaskRow, ...]:
    """Return the rows named, in their order; those that are there by default without names.

    Raises
    ------
    UnknownNameError
        There is no row of that name.

    Examples
    --------
    >>> rows = (TaskRow(name="all"), TaskRow(name="A4C", where="view == A4C", default=False))
    >>> [row.name for row in pick_rows(rows, ())], [row.name for row in pick_rows(rows, ("A4C",))]
    (['all'], ['A4C'])
    """
    if not names:
        return tuple(row for row in rows if row.default)
    known = {MAIN_ROW: rows[0], **{row.name: row for row in rows}}
    for name in names:
        if name not in known:
            raise UnknownNameError(f"unknown row {name!r}{did_you_mean(name, list(known))}")
    wanted = {known[name].name for name in names}
    return tuple(row for row in rows if row.name in wanted)


def rows_by_fit(rows: tuple[TaskRow, ...]) -> list[tuple[TaskRow, ...]]:
    """Return rows that are asked of the same clips together: they share a fit."""
    fits: dict[str | None, list[TaskRow]] = {}
    for row in rows:
        fits.setdefault(row.asked_of, []).append(row)
    return [tuple(of_fit) for of_fit in fits.values()]
