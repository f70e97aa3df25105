"""``evaltools report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR|FILE.json ...")
@click.option(
    "--format",
    "form",
    type=click.Choice(["md", "tex", "csv", "html"]),
    default="md",
    show_default=True,
    help="Markdown, LaTeX with booktabs, CSV, or a page.",
)
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="These tasks only, repeatable.")
@click.option("--protocol", "protocols", multiple=True, metavar="NAME", help="These protocols only, repeatable.")
@click.option(
    "--allow-mixed",
    is_flag=True,
    help="Let results of different labels, settings or versions stand in one table, and say so.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the table there in place of the terminal.",
)
@json_option
@debug_option
def report(paths: tuple[Path, ...], form: str, as_json: bool, **given: Any) -> None:
    """Put results into the table of a paper; the best is bold only where its interval says so.

    Intervals cover the sampling of test patients for the fitted probe, not training again.

    Example: evaltools report results --format tex --out table.tex
    """  # fmt: skip
    from embedstore.files import replace_file
    from evaltools.report.paper_table import paper_table, read_results
    from evaltools.report.table_formats import FORMATS

    documents = [
        one
        for one in read_results(paths)
        if (not given["tasks"] or one["task"] in given["tasks"])
        and (not given["protocols"] or one["protocol"] in given["protocols"])
    ]
    text = FORMATS[form](paper_table(documents, allow_mixed=given["allow_mixed"]))
    if given["out"] is not None:
        replace_file(given["out"], text.encode())
    if as_json:
        emit_json({"format": form, "out": None if given["out"] is None else str(given["out"]), "report": text})
    elif given["out"] is None:
        say(text.rstrip("\n"))
    else:
        say(str(given["out"]))
