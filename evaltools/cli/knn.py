"""``evaltools knn``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from evaltools.cli.neighbour_options import draw_options, out_option, pool_option, space_options
from evaltools.cli.options import clip_options, cv_options, row_options, selection_options


@click.command()
@store_option
@selection_options
@click.option("--protocol", metavar="NAME", default="knn", show_default=True, help="knn, dinov2-knn or simpleshot.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the preset (k, metric, normalize, weights, temperature, gallery, n_shuffles; of "
    "simpleshot shots, n_draws, centre), which its name then shows; repeatable.",
)
@space_options
@click.option("--shots", type=int, multiple=True, metavar="N", help="Clips a class of simpleshot, repeatable.")
@pool_option
@click.option("--by", multiple=True, metavar="COLUMN", help="Metrics of each group of a column, repeatable.")
@cv_options
@clip_options
@draw_options
@out_option
@row_options
@json_option
@debug_option
def knn(store_path: Path, as_json: bool, **given: Any) -> None:
    """Score stored vectors by the nearest clips of other patients, with intervals and controls.

    Example: evaltools knn --task view --protocol dinov2-knn --k 20
    """
    import embedstore
    from evaltools.knn import KnnOptions
    from evaltools.knn import knn as score_neighbours
    from evaltools.report.text import format_results
    from evaltools.selection import asked_tasks

    store = embedstore.open(store_path)
    names = {name: given.pop(name) for name in ("tasks", "labels", "kind", "datasets", "encoders", "out")}
    tasks = asked_tasks(
        store, names=names["tasks"], labels=names["labels"], kind=names["kind"], datasets=names["datasets"]
    )
    results = score_neighbours(
        store,
        tasks=tasks,
        datasets=names["datasets"],
        encoders=names["encoders"],
        options=KnnOptions(**given),
        on_skip=lambda reason: say(f"skipped: {reason}", err=True),
    )
    documents = [result.to_dict() for result in results]
    if names["out"] is not None:
        from evaltools.report.files import write_results

        documents = write_results(results, names["out"], command="knn")
    if as_json:
        emit_json({"results": documents})
        return
    say(format_results(results))
    if names["out"] is not None:
        say(f"\nresults, predictions and figures: {names['out']}")
