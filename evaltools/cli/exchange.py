"""``evaltools export`` and ``evaltools import-predictions``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, refuse_idle, say, store_option
from evaltools.cli.neighbour_options import draw_options, out_option
from evaltools.cli.options import fitting_options, probe_options_of, row_options, selection_options


@click.command()
@store_option
@click.option(
    "--format", "file_format", type=click.Choice(["cardiobench"]), default="cardiobench", show_default=True,
    help="Whose files to write.",
)  # fmt: skip
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Write predictions and ground truth there.",
)
@click.option(
    "--results",
    "folders",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Predictions that a command wrote with --out, repeatable; without, a probe is fitted.",
)
@click.option(
    "--rename",
    "renames",
    multiple=True,
    metavar="OLD=NEW",
    help="Another path below --out for a file or folder, repeatable, e.g. ground_truth=data/splits.",
)
@selection_options
@fitting_options
@json_option
@debug_option
def export(
    store_path: Path,
    file_format: str,
    out: Path,
    folders: tuple[Path, ...],
    renames: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Write predictions and ground truth as the CSVs that CardioBench's evaluation scripts read, and a list of them.

    Example: evaltools export --format cardiobench --results results --out exported
    """
    import embedstore
    from evaltools.cardiobench.export import export_cardiobench, exported_of, read_results
    from evaltools.cardiobench.placing import Renames
    from evaltools.probe import probe_all
    from evaltools.selection import asked_tasks

    refuse_idle("is of intervals, and none are written", "draws")
    if folders:
        refuse_idle("is of a probe, and --results gives predictions that are made", *given)
    renaming = Renames.parse(renames)
    store = embedstore.open(store_path)
    if folders:
        exported = [one for folder in folders for one in read_results(folder)]
    else:
        tasks = asked_tasks(
            store, names=given["tasks"], labels=given["labels"], kind=given["kind"], datasets=given["datasets"]
        )
        options = replace(
            probe_options_of(given), statistics="cardiobench", controls=False, draws=0, near_duplicates=False
        )
        results = probe_all(
            store,
            tasks=tasks,
            datasets=given["datasets"],
            encoder=given["encoders"],
            options=options,
            on_skip=lambda reason: say(f"skipped: {reason}", err=True),
        )
        exported = [exported_of(result) for result in results]
    written = export_cardiobench(store, exported, out, renames=renaming)
    if as_json:
        emit_json({"files": written})
        return
    for one in written:
        short = one["expected"] is not None and one["rows"] < one["expected"]
        of = f" of {one['expected']} that CardioBench scores; it would score these and say nothing" if short else ""
        say(f"{one['path']}: {one['rows']} rows{of}")


@click.command("import-predictions")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE.csv...")
@store_option
@click.option("--task", required=True, metavar="NAME", help="What was predicted.")
@click.option("--dataset", required=True, metavar="NAME|FILE.parquet", help="Data set or manifest file.")
@click.option("--encoder", "model", metavar="NAME", help="Name in the results; without, that of each file.")
@click.option("--by", multiple=True, metavar="COLUMN", help="Metrics of each group of a column, repeatable.")
@row_options
@draw_options
@out_option
@json_option
@debug_option
def import_predictions(
    files: tuple[Path, ...], store_path: Path, task: str, dataset: str, model: str | None, as_json: bool, **given: Any
) -> None:
    """Score predictions that another program made, from CSVs in CardioBench's columns.

    Example: evaltools import-predictions model.csv --task lvef --dataset camus --statistics cardiobench
    """
    import embedstore
    from evaltools.cardiobench.imported import import_predictions as score
    from evaltools.probe_options import ProbeOptions
    from evaltools.report.text import format_results
    from evaltools.task import get_task

    if model is not None and len(files) > 1:
        raise click.UsageError("--encoder names one model, and several files are given")
    manifest = embedstore.open(store_path).manifest(dataset)
    out = given.pop("out")
    options = ProbeOptions(**given)
    asked = get_task(task)
    results = [one for path in files for one in score(manifest, path, task=asked, options=options, model=model)]
    documents = [result.to_dict() for result in results]
    if out is not None:
        from evaltools.report.files import write_results

        documents = write_results(results, out, command="import")
    if as_json:
        emit_json({"results": documents})
        return
    say(format_results(results))
