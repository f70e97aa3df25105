"""Options of the commands that look at neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["draw_options", "index_options", "out_option", "pool_option", "space_options"]

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write results and predictions there.",
)


def _with(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


space_options = _with(
    click.option("--k", "ks", type=click.IntRange(1), multiple=True, metavar="K",
                 help="Number of neighbours, repeatable."),
    click.option("--metric", type=click.Choice(["cosine", "l2"]),
                 help="Cosine (without normalisation the inner product), or Euclidean distance.  [default: cosine]"),
    click.option("--normalize/--no-normalize", default=None,
                 help="Bring vectors to unit length first.  [default: normalize]"),
)  # fmt: skip
draw_options = _with(
    click.option("--where", metavar="EXPR", help="These clips only, e.g. \"view in (A4C, A2C) and fps >= 30\"."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of draws and permutations."),
    click.option("--bootstrap", "draws", type=click.IntRange(0, 1_000_000), default=2000, show_default=True,
                 help="Patient bootstrap draws; 0 for no intervals."),
    click.option("--allow-missing", is_flag=True, help="Score the clips that have vectors."),
    click.option("--allow-leakage", is_flag=True, help="Go on with a patient in two splits, and mark the result."),
)  # fmt: skip
index_options = _with(
    click.option("--index", type=click.Choice(["exact", "ivf", "hnsw"]), default="exact", show_default=True,
                 help="How to search; the approximate ones say what share of the exact neighbours they found."),
)  # fmt: skip
pool_option = click.option(
    "--pool", "pools", multiple=True, default=("clip",), show_default=True, metavar="NAME",
    help="Clip vectors, or frame vectors pooled by mean, meanstd, max or temporal; repeatable.",
)  # fmt: skip
