"""Read a file, or verify a folder, once for as long as it stays the same, so that long runs of steps stay quick.

The same is what has the same inodes, sizes and times (the kernel's change time among them, which nobody can set).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import embedstore.snapshot.verify
from embedstore.described_folder import DescribedFolder
from embedstore.embedding_set import EmbeddingSet
from embedstore.manifest import Manifest
from embedstore.snapshot.verify import VerifyProblem
from embedstore.store import Store

_known: dict[tuple[object, ...], Any] = {}


def forget_all() -> None:
    """Read and verify everything from the disk again."""
    _known.clear()


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stamps_of(folder: Path) -> tuple[object, ...]:
    """What changes when anything below a folder does."""
    return tuple(
        (root, name, *_stamp(os.lstat(f"{root}/{name}")))
        for root, folders, names in os.walk(folder)
        for name in (".", *folders, *names)
    )


def once(what: str, path: str, read: Callable[[], Any]) -> Any:
    """Return what ``read`` returned before, where the file is still the same."""
    try:
        stamp = _stamp(os.lstat(path))
    except OSError:
        return read()
    key = (what, path)
    if _known.get(key, (None,))[0] != stamp:
        _known[key] = (stamp, read())
    return _known[key][1]


def read_files_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let log entries, snapshots, manifests and tables be read once, and sound sets be verified once."""
    log_entry, snapshot, table, manifest = Store.log_entry, Store.snapshot, DescribedFolder.table, Manifest.read
    verify_set = embedstore.snapshot.verify.verify_set

    def path_of(store: Store, place: str, name: Any) -> str:
        """Return a path of the layout, joined once: joining takes longer than looking at the file."""
        key = ("path", str(store.layout.root), place, name)
        if key not in _known:
            _known[key] = str(getattr(store.layout, place)(name))
        return str(_known[key])

    def read_log_entry(store: Store, number: int) -> Any:
        return once("entry", path_of(store, "log_entry", number), lambda: log_entry(store, number))

    def read_snapshot(store: Store, snapshot_id: str | None = None) -> Any:
        if snapshot_id is None:
            return snapshot(store)
        return once("snapshot", path_of(store, "snapshot_file", snapshot_id), lambda: snapshot(store, snapshot_id))

    def read_table(opened: DescribedFolder, name: str) -> Any:
        return once("table", f"{opened.folder}/{name}", lambda: table(opened, name))

    def verify_once(opened: EmbeddingSet, *, quick: bool, prefix: str = "") -> Iterator[VerifyProblem | int]:
        key, stamps = ("verify", str(opened.folder)), stamps_of(opened.folder)
        if _known.get(key) != stamps:
            found = list(verify_set(opened, quick=quick, prefix=prefix))
            if quick or any(isinstance(one, VerifyProblem) for one in found):
                yield from found
                return
            _known[key] = stamps
        yield len(dict(opened.files()))

    monkeypatch.setattr(Store, "log_entry", read_log_entry)
    monkeypatch.setattr(Store, "snapshot", read_snapshot)
    monkeypatch.setattr(DescribedFolder, "table", read_table)
    monkeypatch.setattr(Manifest, "read", lambda path: once("manifest", str(path), lambda: manifest(path)))
    monkeypatch.setattr(embedstore.snapshot.verify, "verify_set", verify_once)
