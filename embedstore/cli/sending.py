"""``embedstore snapshot export``: what leaves the lab, and what the commands that send it ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from embedstore.cli.sharing import dataset_option, encoder_option, together

if TYPE_CHECKING:
    from embedstore.snapshot.export import ExportOutcome
    from embedstore.snapshot.plan import ExportPlan, ExportRequest
    from embedstore.store import Store

__all__ = ["export", "export_options", "export_request"]

export_options = together(
    [
        click.option("--snapshot", "name", help="Tag or id; the newest without."),
        dataset_option,
        encoder_option,
        click.option("--recipient", help="Who gets it: pseudonyms are drawn once for each. A new one without."),
        click.option(
            "--with-labels", "named", multiple=True, help="Columns to send beside the default ones, with commas."
        ),
        click.option("--drop", "dropped", multiple=True, help="Columns to leave out, with commas."),
        click.option(
            "--with-map", "map_file", type=click.Path(path_type=Path), help="Write the map of pseudonyms here."
        ),
        click.option(
            "--join-key", type=click.Path(path_type=Path), help="Key that both labs hold, to join by content."
        ),
        click.option("--permission-ref", help="Where the permission to pass the data on stands."),
        click.option(
            "--accept-k", type=click.IntRange(1), default=5, show_default=True, help="Smallest group of patients."
        ),
        click.option("--contact", default="", help="Whom to ask, for the card."),
        click.option("--note", default="", help="A sentence for the card."),
        click.option(
            "--sign",
            "key",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="SSH key to sign with; the public one where an agent holds it.",
        ),
    ]
)


def _names(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def export_request(store: Store, name: str | None, **options: Any) -> ExportRequest:
    """Return what `export_options` ask for."""
    from embedstore.snapshot.plan import ExportRequest
    from embedstore.snapshot.tags import find_snapshot

    options |= {"named": _names(options["named"]), "dropped": _names(options["dropped"])}
    accept = options.pop("accept_k")
    return ExportRequest(snapshot_id=find_snapshot(store, name), accept_group=accept, **options)


def _say_plan(plan: ExportPlan, refused: str | None) -> None:
    say(f"recipient {plan.recipient}")
    for dataset in plan.datasets:
        facts = dataset.manifest.dataset
        say(f"{dataset.manifest.name}: ids {dataset.naming.ids}, licence {facts.licence} ({dataset.redistribution})")
        for rule in dataset.rules:
            if rule.role == "table":
                continue
            say(f"  {rule.column:<20} {rule.role:<9} {rule.action:<10} {rule.why}")
        tables = [rule for rule in dataset.rules if rule.role == "table"]
        for rule in tables:
            say(f"  {rule.column:<40} {rule.action}")
        if dataset.group is not None:
            say(f"  fewest patients who share {', '.join(dataset.group_columns)}: {dataset.group}")
        say(f"  sets: {', '.join(entry.title for entry in dataset.sets)}")
    if refused is not None:
        say(f"as it stands the export would be refused: {refused}")


def _say_export(outcome: ExportOutcome) -> None:
    from embedstore.snapshot.pseudonyms import PUBLIC_RECIPIENT

    for path in outcome.paths:
        say(f"wrote {path}")
    say(f"snapshot {outcome.snapshot.id}")
    size = f"{outcome.snapshot.n_bytes / 1e6:.1f} MB in {len(outcome.snapshot.files)} files"
    if not outcome.snapshot.internal:
        whom = "" if outcome.plan.recipient == PUBLIC_RECIPIENT else f", for {outcome.plan.recipient}"
        size += f"{whom}; tell the recipient the id by another way than the files"
    say(size)
    if outcome.left_out:
        say(f"{outcome.left_out} clips stand in no manifest and stayed here")
    if outcome.snapshot.internal:
        say("internal copy: ids, labels and paths are in it; it must not leave the lab")


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@export_options
@click.option("--archive", is_flag=True, help="Write TARGET as one deterministic .zip, more above 50 GB.")
@click.option("--internal", is_flag=True, help="Whole copy for use within the lab; it is never pushed.")
@click.option("--dry-run", is_flag=True, help="Say what happens to every column and write nothing.")
@store_option
@json_option
@debug_option
def export(
    store_path: Path, name: str | None, key: Path | None, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Export a snapshot that may be sent: without ids, labels, dates or paths unless you name them.

    Example: embedstore snapshot export for-lab-b --recipient lab-b --encoder panecho --permission-ref "mail of 1 May"
    """
    from embedstore.snapshot.export import export_snapshot
    from embedstore.snapshot.plan import make_plan, refusal
    from embedstore.snapshot.signature import sign
    from embedstore.snapshot.unfinished import unfinished_draw
    from embedstore.store import Store

    store = Store.open(store_path)
    request = export_request(store, name, **options)
    if dry_run:
        plan = make_plan(store, request)
        refused = refusal(plan, request)
        emit_json({"dry_run": True, "refused": refused, **plan.to_dict()}) if as_json else _say_plan(plan, refused)
        return
    with unfinished_draw(store.layout, place=str(request.target.absolute())) as unnamed:
        outcome = export_snapshot(store, replace(request, unnamed=unnamed))
        if key is not None:
            sign(request.target, key)
    emit_json(outcome.to_dict()) if as_json else _say_export(outcome)
