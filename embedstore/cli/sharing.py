"""``embedstore snapshot create|ls|verify``: snapshots that labs send each other, and what of them is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option

__all__ = ["ID_PREFIX", "create", "dataset_option", "encoder_option", "ls", "together", "verify"]

# Digits of an id that are shown.
ID_PREFIX = 12

Command = Callable[..., Any]

dataset_option = click.option("--dataset", "datasets", multiple=True, help="Data set to take; repeatable.")
encoder_option = click.option("--encoder", "encoders", multiple=True, help="NAME[@VARIANT] to take; repeatable.")


def together(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Make one decorator of several, shown in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


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
    say(f"{tag.name}: snapshot {tag.snapshot_id[:ID_PREFIX]} with {len(snapshot.sets)} sets")
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
        say(f"tag       {line['tag']}  {str(line['snapshot'])[:ID_PREFIX]}  {line['sets']} sets")
    for line in came:
        signed = f"signed by {line['signed_by']}" if line["signed_by"] else "unsigned"
        say(f"received  {str(line['snapshot'])[:ID_PREFIX]}  {line['time']}  {', '.join(line['datasets'])}  {signed}")
    for entry in sent:
        names = ", ".join(entry["datasets"])
        say(f"sent      {entry['snapshot_id'][:ID_PREFIX]}  {entry['time']}  {names}  to {entry['recipient']}")
    if not tags and not came and not sent:
        say("no snapshot is tagged, and none was received or sent")


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
        say(f"snapshot {found.snapshot.id[:ID_PREFIX]}: {found.trust} ({counts})")
    if not found.outcome.ok:
        ctx.exit(ContentError.exit_code)
