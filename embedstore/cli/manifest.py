"""``embedstore manifest``: make, check, add, ls."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from embedstore.errors import ContentError, EnvironmentFailure, UnknownNameError

_ROWS_LISTED = 8


@click.group()
def manifest() -> None:
    """Make, check, add and list manifests: tables of clips, patients, splits and labels.

    Example: embedstore manifest make folder --root clips --table labels.csv -o mine.parquet
    """


def _mapping(values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, separator, column in pairs:
        if not (name and separator and column):
            raise UnknownNameError(f"--column needs FIELD=COLUMN, got {name + separator + column!r}")
    return {name: column for name, _, column in pairs}


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_ROWS_LISTED]) + (f", ... ({len(names)} in all)" if len(names) > _ROWS_LISTED else "")


def _summary(made: Any) -> dict[str, Any]:
    splits = made.table.column("split").value_counts().to_pylist()
    return {
        "name": made.name,
        "manifest": made.id,
        "clips": len(made),
        "patients": len(set(made.patients)),
        "patient_ids": made.patient_ids,
        "ids": made.ids,
        "splits": {str(entry["values"]): entry["counts"] for entry in splits},
        "split_rule": made.split_rule,
        "labels": {name: len(made) - made.table.column(name).null_count for name in made.labels()},
        "media_digest": made.media_digest,
        "annotations_digest": made.annotations_digest,
    }


def _say_summary(summary: dict[str, Any]) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in sorted(summary["splits"].items()))
    labels = ", ".join(f"{name} {count}" for name, count in summary["labels"].items()) or "none"
    say(f"{summary['name']}: {summary['clips']} clips of {summary['patients']} patients ({summary['patient_ids']})")
    say(f"  split: {splits} ({summary['split_rule']})")
    say(f"  labelled clips: {labels}")
    if summary["patient_ids"] == "unknown":
        say("  patients are unknown: each clip counts as its own, and leakage between splits is unchecked")


def _say_notes(findings: Iterable[Any]) -> None:
    for finding in findings:
        say(f"  note: {finding.message}" + (f": {_listed(finding.names)}" if finding.names else ""))


def _remember_root(store_path: Path, name: str, root: Path) -> bool:
    """Keep the media root in the store's settings of this machine; that it cannot be written is no error here."""
    from embedstore.store import Store

    try:
        Store.create(store_path).remember_root(name, root)
    except (EnvironmentFailure, UnknownNameError):
        return False
    return True


@manifest.command()
@click.argument("dataset")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the media.")
@click.option("--table", type=click.Path(path_type=Path), help="CSV of ids, patients, splits and labels.")
@click.option("--splits", type=click.Path(path_type=Path), help="CSV with a split for each id.")
@click.option("--name", help="Name of the data set [default: the root's or the table's].")
@click.option("--column", "columns", multiple=True, help="FIELD=COLUMN of the table, e.g. patient_id=MRN.")
@click.option("--label-column", "label_columns", multiple=True, help="A column of the table that is a label.")
@click.option("--seed", type=int, default=0, show_default=True, help="For a split that must be drawn.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Manifest file to write.")
@store_option
@json_option
@debug_option
def make(dataset: str, output: Path, store_path: Path, as_json: bool, **options: Any) -> None:
    """Make a manifest from a data set's raw layout; DATASET is a recipe, e.g. folder.

    Example: embedstore manifest make folder --root clips --table labels.csv -o mine.parquet
    """
    from tqdm import tqdm

    from embedstore.manifest import RecipeRequest, get_recipe

    columns = _mapping(options.pop("columns"))
    request = RecipeRequest(columns=columns, n_workers=max(1, len(os.sched_getaffinity(0))), **options)
    with tqdm(desc=dataset, unit="file", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        outcome = get_recipe(dataset).make(request, progress=progress)
    outcome.manifest.write(output)
    root = outcome.root or options["root"]
    remembered = root is not None and _remember_root(store_path, outcome.manifest.name, root)
    problems = outcome.manifest.problems()
    if as_json and not problems:
        findings = [vars(finding) for finding in outcome.findings]
        emit_json({**_summary(outcome.manifest), "file": str(output), "findings": findings})
    elif not as_json:
        _say_summary(_summary(outcome.manifest))
        _say_notes(outcome.findings)
        say(f"written to {output}" + ("; its media root is remembered" if remembered else ""))
    if problems:
        first = problems[0]
        raise ContentError(
            f"{output} was written but breaks a rule and cannot be added: {first.message}: {_listed(first.rows)}"
        )


@manifest.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@debug_option
def check(file: Path, as_json: bool) -> None:
    """Check the rules of a manifest, naming the rows that break one.

    Example: embedstore manifest check mine.parquet
    """
    from embedstore.manifest import Manifest, find_notes

    found = Manifest.read(file)
    problems, notes = found.problems(), find_notes(found)
    if problems:
        if not as_json:
            for problem in problems:
                say(f"{problem.rule}: {problem.message}: {_listed(problem.rows)}")
        first = problems[0]
        raise ContentError(
            f"{file} breaks {len(problems)} rule{'s' if problems[1:] else ''}: {first.message}: {_listed(first.rows)}"
        )
    if as_json:
        emit_json({**_summary(found), "ok": True, "problems": [], "notes": [vars(note) for note in notes]})
    else:
        _say_summary(_summary(found))
        _say_notes(notes)
        say("no problem found")


@manifest.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the media on this machine.")
@store_option
@json_option
@debug_option
def add(file: Path, root: Path | None, store_path: Path, as_json: bool) -> None:
    """Add a manifest to the store, in place of one of the same name.

    Example: embedstore manifest add mine.parquet --root clips
    """
    from embedstore.manifest import Manifest
    from embedstore.store import Store

    found = Manifest.read(file)
    found.require_valid()
    store = Store.create(store_path)
    entry = store.add_manifest(found, root=root)
    known = entry.name in store.roots()
    if as_json:
        emit_json({**_summary(found), "root_known": known})
    else:
        _say_summary(_summary(found))
        say(f"added as {entry.name}" + ("" if known else "; no media root known, give one with --root when building"))


@manifest.command(name="ls")
@store_option
@json_option
@debug_option
def list_manifests(store_path: Path, as_json: bool) -> None:
    """List the manifests of the store.

    Example: embedstore manifest ls
    """
    from embedstore.store import Store

    store = Store.open(store_path)
    summaries = [_summary(store.open_manifest(entry)) for entry in store.manifests()]
    if as_json:
        emit_json({"manifests": summaries})
        return
    for summary in summaries:
        _say_summary(summary)
    if not summaries:
        say("the store has no manifest; add one with embedstore manifest add FILE")
