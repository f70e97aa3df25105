"""Options that the evaluating commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

__all__ = ["probe_options_of", "scoring_options", "selection_options"]

_SELECTION = (
    click.option("--task", "tasks", multiple=True, metavar="NAME|FILE.yaml",
                 help="Task, repeatable; without, every task that the store has labels for."),
    click.option("--label", "labels", multiple=True, metavar="COLUMN",
                 help="A manifest column as the target, repeatable."),
    click.option("--kind", type=click.Choice(["regression", "classification"]),
                 help="What --label is, where its values cannot tell."),
    click.option("--dataset", "datasets", multiple=True, metavar="NAME|FILE.parquet",
                 help="Data set or manifest file, repeatable; without, all that have the label and vectors."),
    click.option("--encoder", "encoders", multiple=True, metavar="NAME[@VARIANT]",
                 help="Encoder, repeatable; without, all that the store has."),
)  # fmt: skip
_SCORING = (
    click.option("--protocol", metavar="NAME", help="Protocol; without, the task's primary one."),
    click.option("--pool", "pools", multiple=True, default=("clip",), show_default=True, metavar="NAME",
                 help="Clip vectors, or frame vectors pooled by mean, meanstd or max; repeatable."),
    click.option("--where", metavar="EXPR", help="These clips only, e.g. \"view in (A4C, A2C) and fps >= 30\"."),
    click.option("--by", multiple=True, metavar="COLUMN", help="Metrics of each group of a column, repeatable."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of draws and permutations."),
    click.option("--bootstrap", "draws", type=click.IntRange(0, 1_000_000), default=2000, show_default=True,
                 help="Patient bootstrap draws; 0 for no intervals."),
    click.option("--allow-missing", is_flag=True, help="Score the clips that have vectors."),
    click.option("--allow-leakage", is_flag=True, help="Go on with a patient in two splits, and mark the result."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Write results, predictions and figures there."),
)  # fmt: skip


def _with(options: tuple[Callable[..., Any], ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


selection_options = _with(_SELECTION)
scoring_options = _with(_SCORING)


def probe_options_of(given: Mapping[str, Any]) -> Any:
    """Return the `ProbeOptions` of a command's options."""
    from evaltools.score_table import ProbeOptions

    names = ("protocol", "where", "seed", "draws", "allow_missing", "allow_leakage")
    return ProbeOptions(pools=tuple(given["pools"]), by=tuple(given["by"]), **{name: given[name] for name in names})
