"""Commands on the history of the store: log, tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from embedstore.errors import UnknownNameError

_PREFIX = 12


@click.command()
@store_option
@json_option
@debug_option
def log(store_path: Path, as_json: bool) -> None:
    """List the commits of the store with their snapshots and tags, newest first.

    Example: embedstore log
    """
    from embedstore.snapshot.tags import list_tags
    from embedstore.store import Store

    store = Store.open(store_path)
    tags: dict[str, list[str]] = {}
    for tag in list_tags(store):
        tags.setdefault(tag.snapshot_id, []).append(tag.name)
    whole: dict[str, bool] = {}
    listed: list[dict[str, Any]] = []
    for entry in store.log():
        snapshot_id = entry.snapshot_id
        if snapshot_id not in whole:
            is_there = store.layout.snapshot_file(snapshot_id).exists()
            whole[snapshot_id] = is_there and not store.absent(store.snapshot(snapshot_id))
        listed.append(
            {
                "number": entry.number,
                "snapshot": snapshot_id,
                "parent": entry.parent_id,
                "time": entry.time,
                "reason": entry.reason,
                "tags": tags.get(snapshot_id, []),
                "restorable": whole[snapshot_id],
            }
        )
    if as_json:
        emit_json({"log": listed})
        return
    for line in listed:
        names = f"  ({', '.join(line['tags'])})" if line["tags"] else ""
        gone = "" if line["restorable"] else "  [no longer restorable]"
        say(f"{line['number']:>6}  {line['snapshot'][:_PREFIX]}  {line['time']}  {line['reason']}{names}{gone}")
    if not listed:
        say("the store has no commit yet")


@click.command()
@click.argument("name")
@click.argument("snapshot", required=False)
@click.option("--delete", is_flag=True, help="Give the tag up; its name is not used again.")
@store_option
@json_option
@debug_option
def tag(name: str, snapshot: str | None, delete: bool, store_path: Path, as_json: bool) -> None:
    """Name a snapshot for ever: SNAPSHOT is the beginning of its id, a tag, or head, which is the default.

    Example: embedstore tag paper-v1
    """
    from embedstore.snapshot.tags import create_tag, delete_tag, find_snapshot
    from embedstore.store import Store

    store = Store.open(store_path)
    if delete and snapshot is not None:
        raise UnknownNameError(f"--delete takes the tag's name alone, got {snapshot!r} too")
    made = delete_tag(store, name) if delete else create_tag(store, name, snapshot_id=find_snapshot(store, snapshot))
    if as_json:
        emit_json({"tag": made.name, "snapshot": made.snapshot_id, "time": made.time, "deleted": made.is_deleted})
    elif delete:
        say(f"tag {made.name} of snapshot {made.snapshot_id[:_PREFIX]} deleted")
    else:
        say(f"tag {made.name} names snapshot {made.snapshot_id[:_PREFIX]}")
