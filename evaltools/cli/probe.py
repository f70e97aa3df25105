"""``evaltools probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from evaltools.cli.options import (
    clip_options,
    cv_options,
    probe_options_of,
    row_options,
    scoring_options,
    selection_options,
)


@click.command()
@store_option
@selection_options
@scoring_options
@cv_options
@clip_options
@row_options
@json_option
@debug_option
def probe(store_path: Path, as_json: bool, **given: Any) -> None:
    """Fit a simple model on stored vectors and score it, with patient intervals and controls.

    Example: evaltools probe --task lvef --pool clip --pool meanstd --out results
    """
    import embedstore
    from evaltools.probe import probe_all
    from evaltools.report.text import format_results
    from evaltools.selection import asked_tasks

    store = embedstore.open(store_path)
    tasks = asked_tasks(
        store, names=given["tasks"], labels=given["labels"], kind=given["kind"], datasets=given["datasets"]
    )
    results = probe_all(
        store,
        tasks=tasks,
        datasets=given["datasets"],
        encoder=given["encoders"],
        options=probe_options_of(given),
        on_skip=lambda reason: say(f"skipped: {reason}", err=True),
    )
    documents = [result.to_dict() for result in results]
    if given["out"] is not None:
        from evaltools.report.files import write_results

        documents = write_results(results, given["out"], command="probe")
    if as_json:
        emit_json({"results": documents})
        return
    say(format_results(results))
    if given["out"] is not None:
        say(f"\nresults, predictions and figures: {given['out']}")
