"""``evaltools transfer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from evaltools.cli.options import probe_options_of, row_options, scoring_options, selection_options


@click.command()
@store_option
@click.option(
    "--train-dataset",
    "train_datasets",
    required=True,
    multiple=True,
    metavar="NAME|FILE.parquet",
    help="Data set to fit and choose on; repeatable, then together.",
)
@selection_options
@scoring_options
@row_options
@json_option
@debug_option
def transfer(store_path: Path, train_datasets: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Fit on one data set or several and test on another, with the intervals and controls of a probe.

    Example: evaltools transfer --train-dataset echonet-dynamic --dataset camus --task lvef
    """
    import embedstore
    from evaltools.report.files import write_results
    from evaltools.report.text import format_results
    from evaltools.selection import asked_tasks
    from evaltools.transfer import transfer as transfer_probe

    if not given["datasets"]:
        raise click.UsageError("a transfer needs --dataset, the data set to test on")
    store = embedstore.open(store_path)
    tasks = asked_tasks(
        store,
        names=given["tasks"],
        labels=given["labels"],
        kind=given["kind"],
        datasets=(*train_datasets, *given["datasets"]),
    )
    results = [
        result
        for task in tasks
        for dataset in dict.fromkeys(given["datasets"])
        for result in transfer_probe(
            store,
            task=task,
            train_dataset=train_datasets,
            dataset=dataset,
            encoder=given["encoders"],
            options=probe_options_of(given),
        )
    ]
    documents = [result.to_dict() for result in results]
    if given["out"] is not None:
        documents = write_results(results, given["out"], command="transfer")
    if as_json:
        emit_json({"results": documents})
    else:
        say(format_results(results))
