"""``evaltools retrieve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, refuse_idle, say, store_option
from evaltools.cli.neighbour_options import draw_options, index_options, out_option, pool_option, space_options
from evaltools.cli.options import selection_options


@click.command()
@store_option
@selection_options
@click.option("--query", metavar="CLIP_ID|FILE.npy", help="Print the neighbours of a clip, or of vectors in a file.")
@space_options
@index_options
@click.option(
    "--from",
    "--level",
    "level",
    type=click.Choice(["clip", "frame", "text"]),
    default="clip",
    show_default=True,
    help="What a query is: a clip, frames of one, or the prompts that the store has of a task.",
)
@click.option("--bank", metavar="NAME", help="Prompt bank of --from text, where the store has several of an encoder.")
@click.option("--within", type=float, metavar="X", help="How far apart numbers count as close.  [default: 5 for %]")
@pool_option
@draw_options
@out_option
@json_option
@debug_option
def retrieve(store_path: Path, as_json: bool, **given: Any) -> None:
    """Score what the nearest clips of other patients have in common, or print them for one query.

    Example: evaltools retrieve --task lvef --from text --k 1 --k 10
    """
    import embedstore

    store = embedstore.open(store_path)
    names = {name: given.pop(name) for name in ("tasks", "labels", "kind", "datasets", "encoders", "out", "query")}
    if names["query"] is not None:
        _print_neighbours(store, names, given, as_json=as_json)
        return
    from evaltools.closeness import Space
    from evaltools.report.retrieval_files import write_retrievals
    from evaltools.report.tables import format_retrievals
    from evaltools.retrieve import RetrieveOptions
    from evaltools.retrieve import retrieve as score_retrieval
    from evaltools.selection import asked_tasks

    given["space"] = Space(given.pop("metric") or "cosine", given.pop("normalize") is not False)
    given["ks"] = given["ks"] or RetrieveOptions().ks
    tasks = asked_tasks(
        store, names=names["tasks"], labels=names["labels"], kind=names["kind"], datasets=names["datasets"]
    )
    results = score_retrieval(
        store,
        tasks=tasks,
        datasets=names["datasets"],
        encoders=names["encoders"],
        options=RetrieveOptions(**given),
        on_skip=lambda reason: say(f"skipped: {reason}", err=True),
    )
    documents = [result.to_dict() for result in results]
    if names["out"] is not None:
        documents = write_retrievals(results, names["out"])
    if as_json:
        emit_json({"results": documents})
        return
    say(format_retrievals(results))
    if names["out"] is not None:
        say(f"\nresults and scores of each query: {names['out']}")


def _print_neighbours(store: Any, names: dict[str, Any], given: dict[str, Any], *, as_json: bool) -> None:
    from evaltools.closeness import Space
    from evaltools.query import Search, find_neighbours
    from evaltools.report.tables import format_neighbours

    if len(given["ks"]) > 1 or len(given["pools"]) > 1:
        raise click.UsageError("--query takes one --k and one --pool")
    level = () if given["level"] == "clip" else ("level",)  # what a query is there
    refuse_idle(
        "has no part in --query, which prints neighbours with all their labels",
        *("tasks", "labels", "kind", "out", "bank", "within", "seed", "draws", "allow_missing", "allow_leakage"),
        *level,
    )
    found = find_neighbours(
        store,
        names["query"],
        datasets=names["datasets"],
        encoders=names["encoders"],
        search=Search(
            k=given["ks"][0] if given["ks"] else 10,
            space=Space(given["metric"] or "cosine", given["normalize"] is not False),
            index=given["index"],
            pool=given["pools"][0],
            where=given["where"],
        ),
    )
    if as_json:
        emit_json({"neighbours": [one.to_dict() for one in found]})
        return
    say(format_neighbours(found))
