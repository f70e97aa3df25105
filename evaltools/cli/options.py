"""Options that the evaluating commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

__all__ = [
    "clip_options",
    "cv_options",
    "fitting_options",
    "probe_options_of",
    "row_options",
    "scoring_options",
    "selection_options",
    "task_options",
]

_TASKS = (
    click.option("--task", "tasks", multiple=True, metavar="NAME|FILE.yaml",
                 help="Task, repeatable; without, every task that the store has labels for."),
    click.option("--label", "labels", multiple=True, metavar="COLUMN",
                 help="A manifest column as the target, repeatable."),
    click.option("--kind", type=click.Choice(["regression", "classification"]),
                 help="What --label is, where its values cannot tell."),
    click.option("--dataset", "datasets", multiple=True, metavar="NAME|FILE.parquet",
                 help="Data set or manifest file, repeatable; without, all that have the label and vectors."),
)  # fmt: skip
_ENCODERS = (
    click.option("--encoder", "encoders", multiple=True, metavar="NAME[@VARIANT]",
                 help="Encoder, repeatable; without, all that the store has."),
)  # fmt: skip
_FITTING = (
    click.option("--protocol", metavar="NAME|FILE.yaml", help="Protocol; without, the task's primary one."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                 help="Change a setting of the protocol, which its name then shows; repeatable."),
    click.option("--search", type=click.Choice(["full", "peak"]),
                 help="How clip-logreg looks for C: the whole grid, or by climbing to a peak."),
    click.option("--pool", "pools", multiple=True, default=("clip",), show_default=True, metavar="NAME",
                 help="Clip vectors, or frame vectors pooled by mean, meanstd, max or temporal; repeatable."),
    click.option("--where", metavar="EXPR", help="These clips only, e.g. \"view in (A4C, A2C) and fps >= 30\"."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of draws and permutations."),
    click.option("--bootstrap", "draws", type=click.IntRange(0, 1_000_000), default=2000, show_default=True,
                 help="Patient bootstrap draws; 0 for no intervals."),
    click.option("--allow-missing", is_flag=True, help="Score the clips that have vectors."),
    click.option("--allow-leakage", is_flag=True, help="Go on with a patient in two splits, and mark the result."),
)  # fmt: skip
_GROUPS = (
    click.option("--by", multiple=True, metavar="COLUMN", help="Metrics of each group of a column, repeatable."),
)  # fmt: skip
_ROWS = (
    click.option("--row", "rows", multiple=True, metavar="NAME",
                 help="Row of the task (a view, patients, a variant), repeatable; see evaltools tasks."),
    click.option("--statistics", type=click.Choice(["patient", "cardiobench"]), default="patient", show_default=True,
                 help="cardiobench: its choice of labels, clips and groups, and its numbers beside ours."),
    click.option("--habit-off", "habits_off", multiple=True, metavar="NAME",
                 help="Switch off a habit of CardioBench's statistics (docs/protocols.md), repeatable."),
)  # fmt: skip
_CLIPS = (
    click.option("--rows", "own_clips", type=click.Choice(["common", "own"]), default="common", show_default=True,
                 callback=lambda context, option, value: value == "own",
                 help="Score all encoders on the clips that all have, or each on its own: not comparable then."),
)  # fmt: skip
_FOLDS = (
    click.option("--cv", metavar="K[xR]|official",
                 help="K folds of patients, R times, in place of the splits, or official: those of the data set; "
                      "tuning is nested in each."),
)  # fmt: skip
_OUT = (
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Write results, predictions and figures there."),
)  # fmt: skip


def _with(options: tuple[Callable[..., Any], ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


task_options = _with(_TASKS)
selection_options = _with((*_TASKS, *_ENCODERS))
row_options = _with(_ROWS)
fitting_options = _with(_FITTING)
scoring_options = _with((*_FITTING, *_GROUPS, *_OUT))
cv_options = _with(_FOLDS)
clip_options = _with(_CLIPS)


def probe_options_of(given: Mapping[str, Any]) -> Any:
    """Return the `ProbeOptions` of a command's options."""
    from evaltools.probe_options import ProbeOptions

    names = ("protocol", "where", "seed", "draws", "allow_missing", "allow_leakage")
    search = () if given["search"] is None else (f"search={given['search']}",)
    return ProbeOptions(
        pools=tuple(given["pools"]),
        by=tuple(given.get("by", ())),
        cv=given.get("cv"),
        own_clips=given.get("own_clips", False),
        rows=tuple(given.get("rows", ())),
        statistics=given.get("statistics", "patient"),
        habits_off=tuple(given.get("habits_off", ())),
        settings=(*given["settings"], *search),
        **{name: given[name] for name in names},
    )
