"""`ProbeOptions`: what a user chooses about a probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedstore.errors import UnknownNameError
from evaltools.cardiobench.statistics import Habits
from evaltools.resample import DEFAULT_DRAWS
from evaltools.task import Task

__all__ = ["ProbeOptions", "Statistics"]

Statistics = Literal["patient", "cardiobench"]


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How to probe.

    Attributes
    ----------
    protocol : str or None
        The task's primary protocol without.
    pools : tuple of str
        Poolings, each a row of its own.
    where : str or None
        Expression that selects clips, see `embedstore.where`.
    by : tuple of str
        Manifest columns to give metrics of each group by, beside the task's subgroups.
    rows : tuple of str
        Rows of the task on the data set, see `evaltools.task_rows.TaskRow`; those that are there by default without.
    seed : int
        Changes the draws of bootstrap, shuffles and random vectors.
    draws : int
        Bootstrap draws.
    allow_missing, allow_leakage : bool
        Score what has vectors; mark leakage instead of refusing.
    settings : tuple of str
        ``KEY=VALUE`` of the protocol, which stand in its name then.
    cv : str or None
        ``K`` or ``KxR``: R times K folds of patients in place of the splits.
    controls : bool
        Whether to run the controls.
    n_shuffles : int or None
        Label permutations of the shuffled control; the protocol's number without.
    near_duplicates : bool
        Whether to look for test clips that are nearly equal to a training clip.
    own_clips : bool
        Score each set on the clips that it has, whatever the others lack, and mark the results not comparable.
    statistics : {"patient", "cardiobench"}
        ``cardiobench``: CardioBench's choice of labels, clips and subgroups, and its numbers beside ours.
    habits_off : tuple of str
        Habits of CardioBench's statistics to switch off, see `evaltools.cardiobench.statistics.Habits`.
    """

    protocol: str | None = None
    pools: tuple[str, ...] = ("clip",)
    where: str | None = None
    by: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    seed: int = 0
    draws: int = DEFAULT_DRAWS
    allow_missing: bool = False
    allow_leakage: bool = False
    settings: tuple[str, ...] = ()
    cv: str | None = None
    controls: bool = True
    n_shuffles: int | None = None
    near_duplicates: bool = True
    own_clips: bool = False
    statistics: Statistics = "patient"
    habits_off: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the habits.

        Raises
        ------
        UnknownNameError
            There is no such habit, or CardioBench's statistics, which have it, are not asked for.
        """
        Habits.without(self.habits_off)
        if self.habits_off and self.statistics != "cardiobench":
            raise UnknownNameError(
                f"--habit-off {self.habits_off[0]} is of CardioBench's statistics; give --statistics cardiobench too"
            )

    def task_of(self, task: Task) -> Task:
        """Return a task as these options ask it."""
        return task.under_cardiobench() if self.statistics == "cardiobench" else task
