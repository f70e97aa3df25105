"""``embedstore snapshot create|ls|export|import|verify``: snapshots that labs send each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, refuse_idle, say, store_option

if TYPE_CHECKING:
    from embedstore.snapshot.export import ExportOutcome
    from embedstore.snapshot.importing import ImportOutcome, ImportRequest
    from embedstore.snapshot.plan import ExportPlan, ExportRequest
    from embedstore.store import Store

__all__ = [
    "create",
    "export",
    "export_options",
    "export_request",
    "import_",
    "import_options",
    "ls",
    "take_in",
    "verify",
]

_PREFIX = 12

Command = Callable[..., Any]

dataset_option = click.option("--dataset", "datasets", multiple=True, help="Data set to take; repeatable.")
encoder_option = click.option("--encoder", "encoders", multiple=True, help="NAME[@VARIANT] to take; repeatable.")


def _together(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Make one decorator of several, shown in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


export_options = _together(
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

import_options = _together(
    [
        dataset_option,
        encoder_option,
        click.option("--clips-only", is_flag=True, help="Leave the vectors of frames and windows out."),
        click.option(
            "--require-signature", type=click.Path(path_type=Path), help="Public key that must have signed."
        ),
        click.option("--allow-rollback", is_flag=True, help="Accept an older snapshot of the same sender."),
        click.option(
            "--quarantine-rows", is_flag=True, help="Leave out, and list, clips with vectors that are not finite."
        ),
        click.option(
            "--labels-from", type=click.Path(path_type=Path), help="Parquet or CSV with clip_id and your labels."
        ),
        click.option(
            "--map", "map_file", type=click.Path(path_type=Path), help="Map of pseudonyms that the sender gave."
        ),
        click.option(
            "--join-key", type=click.Path(path_type=Path), help="Key that both labs hold, to join by content."
        ),
    ]
)


def _names(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


@click.command()
@click.argument("name")
@click.option("--from", "source", help="Tag or id of the snapshot to take from; the newest without.")
@dataset_option
@encoder_option
@click.option("--task", "tasks", multiple=True, help="Take the data sets that have this task's labels; repeatable.")
@store_option
@json_option
@debug_option
def create(
    name: str,
    source: str | None,
    datasets: tuple[str, ...],
    encoders: tuple[str, ...],
    tasks: tuple[str, ...],
    store_path: Path,
    as_json: bool,
) -> None:
    """Name a part of a snapshot, by data set, encoder or task, for ever.

    Example: embedstore snapshot create lvef-2026 --encoder panecho --task lvef
    """
    from embedstore.snapshot.create import create_snapshot
    from embedstore.store import Store

    store = Store.open(store_path)
    tag = create_snapshot(store, name, source=source, datasets=datasets, encoders=encoders, tasks=tasks)
    snapshot = store.snapshot(tag.snapshot_id)
    if as_json:
        emit_json({"snapshot": tag.snapshot_id, "tag": tag.name, "sets": [vars(entry) for entry in snapshot.sets]})
        return
    say(f"{tag.name}: snapshot {tag.snapshot_id[:_PREFIX]} with {len(snapshot.sets)} sets")
    for entry in snapshot.sets:
        say(f"  {entry.title} on {entry.dataset}")


@click.command()
@store_option
@json_option
@debug_option
def ls(store_path: Path, as_json: bool) -> None:
    """List the tagged snapshots, those that were received, and those that were sent to whom.

    Example: embedstore snapshot ls
    """
    from embedstore.snapshot.disclosure import read_disclosures
    from embedstore.snapshot.received import read_received
    from embedstore.snapshot.tags import list_tags
    from embedstore.store import Store

    store = Store.open(store_path)
    tags: list[dict[str, Any]] = [
        {"tag": tag.name, "snapshot": tag.snapshot_id, "sets": len(store.snapshot(tag.snapshot_id).sets)}
        for tag in list_tags(store)
    ]
    received = read_received(store.layout)
    came: list[dict[str, Any]] = [
        {
            "snapshot": snapshot.id,
            "time": note["time"],
            "signed_by": note["signed_by"],
            "sets": len(snapshot.sets),
            "datasets": [dataset.name for dataset in snapshot.datasets],
        }
        for snapshot, note in zip(received.snapshots, received.notes, strict=True)
    ]
    sent = [entry.to_dict() for entry in read_disclosures(store.layout)]
    if as_json:
        emit_json({"snapshots": tags, "received": came, "sent": sent})
        return
    for line in tags:
        say(f"tag       {line['tag']}  {str(line['snapshot'])[:_PREFIX]}  {line['sets']} sets")
    for line in came:
        signed = f"signed by {line['signed_by']}" if line["signed_by"] else "unsigned"
        say(f"received  {str(line['snapshot'])[:_PREFIX]}  {line['time']}  {', '.join(line['datasets'])}  {signed}")
    for entry in sent:
        names = ", ".join(entry["datasets"])
        say(f"sent      {entry['snapshot_id'][:_PREFIX]}  {entry['time']}  {names}  to {entry['recipient']}")
    if not tags and not came and not sent:
        say("no snapshot is tagged, and none was received or sent")


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


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@import_options
@click.option("--id", "pinned_id", help="The snapshot id that it must have, or its beginning.")
@store_option
@json_option
@debug_option
def import_(source: Path, pinned_id: str | None, store_path: Path, as_json: bool, **options: Any) -> None:
    """Import a snapshot from a folder or archive, after it was checked in quarantine; then evaluate it.

    Example: embedstore snapshot import for-lab-b --labels-from my.parquet
    """
    pinned_id = None if pinned_id is None else pinned_id.removeprefix("sha256:")

    def bring(store: Store, request: ImportRequest) -> ImportOutcome:
        from embedstore.snapshot.importing import import_snapshot

        return import_snapshot(store, source, request)

    take_in(bring, pinned_id=pinned_id, store_path=store_path, as_json=as_json, **options)


def take_in(
    bring: Callable[[Store, ImportRequest], ImportOutcome],
    *,
    pinned_id: str | None,
    store_path: Path,
    as_json: bool,
    extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Import a snapshot as `import_options` say, and print what came.

    Parameters
    ----------
    bring : callable
        Brings the snapshot into the store.
    extra : mapping, optional
        Added to the JSON document; ``bring`` may fill it.
    """
    from embedstore.errors import ContentError
    from embedstore.snapshot.importing import ImportRequest
    from embedstore.snapshot.labels import join_labels, read_labels
    from embedstore.snapshot.pseudonyms import read_join_key, read_map
    from embedstore.snapshot.receiving import receiving_store
    from embedstore.snapshot.selection import Selection

    if options["labels_from"] is None:
        refuse_idle("is of --labels-from, which is not given", "map_file", "join_key")
    labels = None if options["labels_from"] is None else read_labels(options["labels_from"])
    pseudonyms = None if options["map_file"] is None else read_map(options["map_file"])
    shared_key = None if options["join_key"] is None else read_join_key(options["join_key"])
    request = ImportRequest(
        selection=Selection(
            datasets=options["datasets"], encoders=options["encoders"], clips_only=options["clips_only"]
        ),
        pinned_id=pinned_id,
        signer_key=options["require_signature"],
        allow_rollback=options["allow_rollback"],
        quarantine_rows=options["quarantine_rows"],
    )
    joined = []
    with receiving_store(store_path) as store:
        outcome = bring(store, request)
        document = outcome.to_dict()
        if labels is not None:
            names = document["datasets"]
            try:
                joined = join_labels(store, labels, datasets=names, pseudonyms=pseudonyms, join_key=shared_key)
            except ContentError as error:
                raise ContentError(f"the snapshot was imported, but no labels were joined: {error}") from error
    if as_json:
        emit_json({**document, **(extra or {}), "labels": [entry.to_dict() for entry in joined]})
        return
    say(f"snapshot {outcome.snapshot.id[:_PREFIX]}: {outcome.trust}")
    left_out = {(left.dataset, left.encoder): len(left.clips) for left in outcome.quarantined}
    for entry in outcome.snapshot.sets_of(outcome.selection):
        n_clips = entry.n_clips - left_out.get((entry.dataset, entry.title), 0)
        say(f"  {entry.title} on {entry.dataset}: {n_clips} clips")
    if not outcome.selection.is_whole:
        absent = len(outcome.snapshot.files) - len(outcome.snapshot.select(outcome.selection))
        say(f"  {absent} files of the snapshot were left out by choice; the same without the choice completes it")
    for name in outcome.kept_manifests:
        say(f"  {name}: your own manifest stays")
    for left in outcome.quarantined:
        say(f"  {left.encoder} on {left.dataset}: left out, with vectors that are not finite:")
        for clip_id in left.clips:
            say(f"    {clip_id}")
    for note in outcome.notes:
        say(f"  note: {note}")
    for join in joined:
        counts = f"{join.n_matched} clips matched, {join.n_unmatched} unmatched, {join.n_unused} rows unused"
        say(f"  labels of {join.dataset}: {counts} ({', '.join(join.columns)})")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Names and sizes only.")
@click.option("--id", "pinned_id", help="The snapshot id that it must have, or its beginning.")
@click.option("--require-signature", type=click.Path(path_type=Path), help="Public key that must have signed.")
@json_option
@debug_option
@click.pass_context
def verify(
    ctx: click.Context,
    source: Path,
    quick: bool,
    pinned_id: str | None,
    require_signature: Path | None,
    as_json: bool,
) -> None:
    """Check that a snapshot's folder or archive holds what its document lists.

    Example: embedstore snapshot verify for-lab-b --require-signature lab-a.pub
    """
    from embedstore.errors import ContentError
    from embedstore.snapshot.check import check_snapshot

    pinned = None if pinned_id is None else pinned_id.removeprefix("sha256:")
    found = check_snapshot(source, quick=quick, pinned_id=pinned, signer_key=require_signature)
    if as_json:
        emit_json(found.to_dict())
    else:
        for problem in found.outcome.problems:
            say(f"{problem.kind}: {problem.file}: {problem.detail}")
        absent = f", {found.n_absent} files absent by choice" if found.n_absent else ""
        counts = f"{found.outcome.level}, {found.outcome.files_checked} files{absent}"
        say(f"snapshot {found.snapshot.id[:_PREFIX]}: {found.trust} ({counts})")
    if not found.outcome.ok:
        ctx.exit(ContentError.exit_code)
