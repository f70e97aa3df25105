"""``embedstore snapshot push|pull``: snapshots on their way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from embedstore.cli.progress import Bar
from embedstore.cli.sharing import export_options, export_request, import_options, take_in

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

    remote = open_remote(url)
    with _exported(folder, store_path, name, options) as source, Bar(unit="B") as bar:
        bar.begin("push", sum(path.stat().st_size for path in source.rglob("*") if path.is_file()))
        outcome = push_folder(source, remote, options=PushOptions(n_parallel=parallel, on_bytes=bar.add))
    if as_json:
        emit_json(outcome.to_dict())
        return
    say(f"{outcome.n_files} files, {outcome.n_bytes / 1e6:.1f} MB at {outcome.url} ({outcome.n_sent} sent now)")
    say("the recipient pulls exactly this, if you tell them the address by another way:")
    say(f"  embedstore snapshot pull {outcome.to_dict()['pinned']}")


@contextmanager
def _exported(folder: Path | None, store_path: Path, name: str | None, options: dict[str, Any]) -> Iterator[Path]:
    """Give a folder to push: the one named, or one that is exported for this and removed again."""
    from embedstore.files import storage_errors
    from embedstore.layout import STAGING_PREFIX
    from embedstore.snapshot.export import export_snapshot
    from embedstore.snapshot.signature import sign
    from embedstore.store import Store

    if folder is not None:
        yield folder
        return
    store = Store.open(store_path)
    key = options.pop("key")
    with storage_errors(store.layout.builds, "write"):
        staging = tempfile.TemporaryDirectory(prefix=f"{STAGING_PREFIX}push-", dir=store.layout.builds)
    with staging as place:
        target = Path(place) / "snapshot"
        request = export_request(store, name, target=target, **options)
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
    from embedstore.snapshot.place import find_snapshot
    from embedstore.snapshot.pull import PullOutcome, pull_folder
    from embedstore.snapshot.receiving import receiving_store
    from embedstore.snapshot.remotes import Address, open_remote
    from embedstore.snapshot.selection import Selection

    address = Address.parse(url)
    remote = open_remote(address.url)
    selection = Selection(
        datasets=options["datasets"], encoders=options["encoders"], clips_only=options["clips_only"]
    )
    found = find_snapshot(remote, snapshot_id=address.snapshot_id).snapshot
    wanted = sum(file.size for file in found.select(selection))

    def fetch(target: Path) -> PullOutcome:
        with Bar(unit="B") as bar:
            bar.begin("pull", wanted)
            fetching = FetchOptions(n_parallel=parallel, on_bytes=bar.add)
            return pull_folder(remote, target, snapshot_id=found.id, selection=selection, options=fetching)

    if folder is not None:
        outcome = fetch(folder)
        if as_json:
            emit_json(outcome.to_dict())
            return
        absent = f", {outcome.n_absent} files left out by choice" if outcome.n_absent else ""
        say(f"{outcome.n_files} files, {outcome.n_bytes / 1e6:.1f} MB in {folder}{absent}")
        say(f"snapshot {found.id}")
        return
    with receiving_store(store_path) as store:
        staging = store.layout.pull_folder(found.id, selection.digest)
        outcome = fetch(staging)
        extra = {"bytes": outcome.n_bytes, "files": outcome.n_files, "files_absent": outcome.n_absent}
        take_in(staging, pinned_id=found.id, store_path=store_path, as_json=as_json, extra=extra, **options)
    _drop(staging)


def _drop(staging: Path) -> None:
    """Remove what was fetched: it is in the store now."""
    from embedstore.files import remove_folder, trash_folder

    remove_folder(trash_folder(staging))
