"""``evaltools zeroshot`` and ``evaltools heads``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from evaltools.cli.neighbour_options import draw_options, out_option
from evaltools.cli.options import clip_options, row_options, selection_options

_by_option = click.option(
    "--by", multiple=True, metavar="COLUMN", help="Metrics of each group of a column, repeatable."
)


@click.command()
@store_option
@selection_options
@click.option(
    "--protocol",
    metavar="NAME",
    default="cardiobench",
    show_default=True,
    help="cardiobench, softmax, echoclip, text-axis, echoprime or echoprime-aligned.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the protocol, which its name then shows; repeatable.",
)
@click.option("--bank", metavar="NAME", help="Prompt bank, where the store has several of an encoder.")
@click.option("--ablate", is_flag=True, help="Score each prompt alone, and all but it.")
@_by_option
@row_options
@clip_options
@draw_options
@out_option
@json_option
@debug_option
def zeroshot(store_path: Path, as_json: bool, **given: Any) -> None:
    """Score stored vectors against stored text vectors: no label is fitted to, but for a threshold found on train.

    Example: evaltools zeroshot --task lvef --protocol echoclip --ablate
    """  # fmt: skip
    from evaltools.zeroshot import ZeroShotOptions
    from evaltools.zeroshot import zeroshot as score

    _run(score, ZeroShotOptions, "zeroshot", store_path, as_json, given)


@click.command()
@store_option
@selection_options
@_by_option
@row_options
@clip_options
@draw_options
@out_option
@json_option
@debug_option
def heads(store_path: Path, as_json: bool, **given: Any) -> None:
    """Score a model's own published task heads on stored vectors.

    Example: evaltools heads --task lvef --encoder panecho
    """
    from evaltools.heads import heads as score
    from evaltools.probe_options import ProbeOptions

    _run(score, ProbeOptions, "heads", store_path, as_json, given)


def _run(score: Any, options: Any, command: str, store_path: Path, as_json: bool, given: dict[str, Any]) -> None:
    import embedstore
    from evaltools.report.ablation import format_ablations
    from evaltools.report.text import format_results
    from evaltools.selection import asked_tasks

    store = embedstore.open(store_path)
    names = {name: given.pop(name) for name in ("tasks", "labels", "kind", "datasets", "encoders", "out")}
    results: Sequence[Any] = score(
        store,
        tasks=asked_tasks(
            store, names=names["tasks"], labels=names["labels"], kind=names["kind"], datasets=names["datasets"]
        ),
        datasets=names["datasets"],
        encoders=names["encoders"],
        options=options(**given),
        on_skip=lambda reason: say(f"skipped: {reason}", err=True),
    )
    documents = [result.to_dict() for result in results]
    if names["out"] is not None:
        from evaltools.report.files import write_results

        documents = write_results(results, names["out"], command=command)
    if as_json:
        emit_json({"results": documents})
        return
    say(format_results(results))
    ablated = format_ablations(results)
    if ablated:
        say(f"\n{ablated}")
    if names["out"] is not None:
        say(f"\nresults, predictions and figures: {names['out']}")
