"""``embedstore snapshot push|pull``: snapshots on their way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, refuse_idle, say, store_option
from embedstore.cli.progress import Bar
from embedstore.cli.receiving import import_options, take_in
from embedstore.cli.sending import export_options, export_request

__all__ = ["pull", "push"]

parallel_option = click.option(
    "--parallel", type=click.IntRange(1, 64), default=8, show_default=True, help="Files at a time."
)


@click.command()
@click.argument("url")
@click.option("--from", "folder", type=click.Path(path_type=Path), help="A folder that was exported before.")
@export_options
@parallel_option
@store_option
@json_option
@debug_option
def push(
    url: str, folder: Path | None, parallel: int, store_path: Path, name: str | None, as_json: bool, **options: Any
) -> None:
    """Export a snapshot as `export` does, and write it to a folder, s3://BUCKET/FOLDER or hf://datasets/OWNER/NAME.

    Example: embedstore snapshot push s3://lab/echo --recipient lab-b --permission-ref "mail of 1 May"
    """
    from embedstore.snapshot.push import PushOptions, push_folder
    from embedstore.snapshot.remotes import open_remote

    if folder is not None:
        refuse_idle("is for an export, and --from makes none", "name", *options)
    remote = open_remote(url)
    remote.require_writable()
    with _exported(remote.url, folder, store_path, name, options) as source, Bar(unit="B") as bar:
        bar.begin("push", sum(path.stat().st_size for path in source.rglob("*") if path.is_file()))
        outcome = push_folder(source, remote, options=PushOptions(n_parallel=parallel, on_bytes=bar.add))
    if as_json:
        emit_json(outcome.to_dict())
        return
    say(f"{outcome.n_files} files, {outcome.n_bytes / 1e6:.1f} MB at {outcome.url} ({outcome.n_sent} sent now)")
    say("the recipient pulls exactly this, if you tell them the address by another way:")
    say(f"  embedstore snapshot pull {outcome.to_dict()['pinned']}")


@contextmanager
def _exported(
    url: str, folder: Path | None, store_path: Path, name: str | None, options: dict[str, Any]
) -> Iterator[Path]:
    """Give a folder to push to ``url``: the one named, or one that is exported for this and removed again."""
    from embedstore.snapshot.export import export_snapshot
    from embedstore.snapshot.signature import sign
    from embedstore.snapshot.staging import staging_folder
    from embedstore.snapshot.unfinished import unfinished_draw
    from embedstore.store import Store

    if folder is not None:
        yield folder
        return
    store = Store.open(store_path)
    key = options.pop("key")
    with (
        unfinished_draw(store.layout, place=url) as unnamed,
        staging_folder(store.layout.builds / "push") as place,  # clears what a killed push left
    ):
        target = place / "snapshot"
        request = export_request(store, name, target=target, unnamed=unnamed, **options)
        export_snapshot(store, request)
        if key is not None:
            sign(target, key)
        yield target


@click.command()
@click.argument("url")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Only fetch into this folder; import it later.")
@import_options
@parallel_option
@store_option
@json_option
@debug_option
def pull(url: str, folder: Path | None, parallel: int, store_path: Path, as_json: bool, **options: Any) -> None:
    """Fetch the snapshot at URL[@sha256:ID], or a part of it, check it in quarantine and import it.

    Example: embedstore snapshot pull https://lab.example/echo --encoder panecho --clips-only
    """
    from embedstore.snapshot.fetch import FetchOptions
    from embedstore.snapshot.importing import ImportOutcome, ImportRequest
    from embedstore.snapshot.place import find_snapshot
    from embedstore.snapshot.pull import pull_folder, pull_snapshot
    from embedstore.snapshot.remotes import Address, open_remote
    from embedstore.snapshot.selection import Selection
    from embedstore.store import Store

    if folder is not None:
        refuse_idle(
            "is for the import, and --to only fetches",
            *("allow_rollback", "quarantine_rows", "labels_from", "map_file", "join_key"),
        )
    address = Address.parse(url)
    remote = open_remote(address.url)
    selection = Selection(
        datasets=options["datasets"], encoders=options["encoders"], clips_only=options["clips_only"]
    )
    found = find_snapshot(remote, snapshot_id=address.snapshot_id)
    n_bytes = sum(file.size for file in found.snapshot.select(selection))
    bar = Bar(unit="B")
    fetching = FetchOptions(n_parallel=parallel, on_bytes=bar.add)
    if folder is None:
        extra: dict[str, Any] = {}

        def bring(store: Store, request: ImportRequest) -> ImportOutcome:
            with bar:
                bar.begin("pull", n_bytes)
                pulled, imported = pull_snapshot(store, remote, found=found, request=request, options=fetching)
            extra.update(bytes=pulled.n_bytes, files=pulled.n_files, files_absent=pulled.n_absent)
            return imported

        pinned_id = found.snapshot.id
        take_in(bring, pinned_id=pinned_id, store_path=store_path, as_json=as_json, extra=extra, **options)
        return
    with bar:
        bar.begin("pull", n_bytes)
        key = options["require_signature"]
        outcome = pull_folder(remote, folder, found=found, selection=selection, signer_key=key, options=fetching)
    if as_json:
        emit_json(outcome.to_dict())
        return
    absent = f", {outcome.n_absent} files left out by choice" if outcome.n_absent else ""
    say(f"{outcome.n_files} files, {outcome.n_bytes / 1e6:.1f} MB in {folder}{absent}")
    say(f"snapshot {outcome.snapshot.id}")
