"""``evaltools compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from evaltools.cli.options import fitting_options, probe_options_of, row_options, task_options


@click.command()
@click.argument("encoders", nargs=-1, metavar="[A B ...]")
@store_option
@task_options
@fitting_options
@click.option("--baseline", metavar="NAME", help="Compare every other encoder with this one only.")
@click.option(
    "--permutations",
    type=click.IntRange(1000, 10_000_000),
    default=100_000,
    show_default=True,
    help="Swaps drawn for p; all are tried where there are fewer.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write compare.json there."
)
@row_options
@json_option
@debug_option
def compare(store_path: Path, encoders: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Compare encoders on the same clips: difference, patient interval, paired test, Holm; all pairs without names.

    Intervals and p values cover the sampling of test patients for the fitted probes, not training again.

    Example: evaltools compare echoprime panecho --task lvef
    """
    import embedstore
    from evaltools.compare import CompareOptions
    from evaltools.compare import compare as compare_encoders
    from evaltools.report.comparison import format_comparisons
    from evaltools.report.files import write_document
    from evaltools.selection import asked_tasks

    store = embedstore.open(store_path)
    tasks = asked_tasks(
        store, names=given["tasks"], labels=given["labels"], kind=given["kind"], datasets=given["datasets"]
    )
    found = compare_encoders(
        store,
        tasks=tasks,
        encoders=encoders,
        datasets=given["datasets"],
        options=CompareOptions(
            probe=probe_options_of(given), baseline=given["baseline"], permutations=given["permutations"]
        ),
        on_skip=lambda reason: say(f"skipped: {reason}", err=True),
    )
    if given["out"] is not None:
        write_document(found.to_dict(), given["out"] / "compare.json")
    if as_json:
        emit_json(found.to_dict())
    else:
        say(format_comparisons(found))
