"""``evaltools align``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, refuse_idle, say, store_option


@click.command()
@store_option
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME|FILE.parquet",
    help="Data set or manifest file, repeatable; without, all with two encoders.",
)
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="NAME[@VARIANT]",
    help="Encoder, repeatable, two or more, for text-axis one; without, all that the store has.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="cka, cka-unbiased, cka-cardiobench, mutual-knn or cca, repeatable; without, all these. Or text-axis: the "
    "line that an encoder's prompts span, against the true values.",
)
@click.option(
    "--task", default="lvef", show_default=True, metavar="NAME|FILE.yaml", help="Task of text-axis, one of numbers."
)
@click.option("--bank", metavar="NAME", help="Prompt bank of text-axis, where the store has several of an encoder.")
@click.option("--split", default="test", show_default=True, metavar="NAME", help="train, val, test or all.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Neighbours of mutual-knn.")
@click.option(
    "--components", type=click.IntRange(1), default=10, show_default=True, help="Principal components of cca."
)
@click.option("--pool", default="clip", show_default=True, metavar="NAME", help="Clip vectors, or pooled frames.")
@click.option("--where", metavar="EXPR", help='These clips only, e.g. "view == A4C".')
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draws.")
@click.option(
    "--draws",
    type=click.IntRange(0, 100_000),
    help="Draws of half of the patients, of text-axis bootstrap draws; 0 for no intervals.  [default: 200, of "
    "text-axis 2000]",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write align.json there."
)
@json_option
@debug_option
def align(store_path: Path, as_json: bool, **given: Any) -> None:
    """Compare encoders pair by pair on the same clips (CKA, neighbours, CCA), or with the axis of their own prompts.

    Example: evaltools align --dataset echonet-dynamic --method cka-unbiased
    """
    import embedstore
    from evaltools.align import AlignOptions
    from evaltools.align import align as compare_encoders
    from evaltools.report.files import write_document
    from evaltools.report.tables import format_alignments
    from evaltools.similarity import METHODS
    from evaltools.task import get_task
    from evaltools.text_alignment import TEXT_AXIS, align_text

    out, task, bank, draws = (given.pop(name) for name in ("out", "task", "bank", "draws"))
    where: dict[str, Any] = {name: given.pop(name) for name in ("datasets", "encoders")}
    methods = tuple(dict.fromkeys(given.pop("methods")))
    pairwise = tuple(method for method in methods if method != TEXT_AXIS)
    measures = set(METHODS if not methods else pairwise)
    if not measures:
        refuse_idle("is of the measures between encoders, and text-axis is none", "pool", "k", "components")
    if "mutual-knn" not in measures:
        refuse_idle("is of --method mutual-knn, which is not asked for", "k")
    if "cca" not in measures:
        refuse_idle("is of --method cca, which is not asked for", "components")
    if TEXT_AXIS not in methods:
        refuse_idle("is of --method text-axis, which is not asked for", "task", "bank")
    store = embedstore.open(store_path)
    alignments = []
    if measures:
        options = AlignOptions(**given, methods=pairwise, draws=200 if draws is None else draws)
        alignments += compare_encoders(store, **where, options=options)
    if TEXT_AXIS in methods:
        alignments += align_text(
            store,
            **where,
            task=get_task(task),
            bank=bank,
            options=AlignOptions(**given, draws=2000 if draws is None else draws),
            on_skip=lambda reason: say(f"skipped: {reason}", err=True),
        )
    document = {"alignments": [alignment.to_dict() for alignment in alignments]}
    if out is not None:
        write_document(document, out / "align.json")
    if as_json:
        emit_json(document)
        return
    say(format_alignments(alignments))
