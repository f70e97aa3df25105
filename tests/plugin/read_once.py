"""Read a file, or verify a folder, once for as long as it stays the same, so that long runs of steps stay quick.

The same is what has the same inodes, sizes and times (the kernel's change time among them, which nobody can set).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedstore import json_files
from embedstore.described_folder import DescribedFolder
from embedstore.embedding_set import EmbeddingSet
from embedstore.manifest import Manifest
from embedstore.snapshot import references, seals, tags, verify
from embedstore.snapshot.verify import VerifyProblem
from embedstore.store import Store

_known: dict[tuple[str, str], tuple[Any, Any]] = {}  # by what and path: stamps, and what was read
_paths: dict[tuple[object, ...], str] = {}


def forget_all() -> None:
    """Read and verify everything from the disk again."""
    _known.clear()
    _paths.clear()


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stamps_of(folder: Path) -> tuple[object, ...]:
    """What changes when anything below a folder does."""
    return tuple(
        (root, name, *_stamp(os.lstat(f"{root}/{name}")))
        for root, folders, names in os.walk(folder)
        for name in (".", *folders, *names)
    )


def age_everything(root: Path, seconds: float) -> None:
    """Set all times below ``root`` back; what was read or verified stays known where it was the same until now."""
    stamp_of = {key: _stamp_now(key) for key in _known}
    same = [key for key, stamp in stamp_of.items() if stamp is not None and stamp == _known[key][0]]
    for folder, _, names in os.walk(root):
        for path in (folder, *(f"{folder}/{name}" for name in names)):
            then = os.lstat(path).st_mtime - seconds
            os.utime(path, (then, then))
    for key in same:
        _known[key] = (_stamp_now(key), _known[key][1])


def _stamp_now(key: tuple[str, str]) -> tuple[object, ...] | None:
    what, path = key
    if what in ("verified", "as written"):
        return stamps_of(Path(path))
    return _stamp(os.lstat(path)) if os.path.lexists(path) else None


def is_known(what: str, folder: Path, stamps: tuple[object, ...]) -> bool:
    """Return whether a folder was verified, or read as written, and is still the same."""
    return _known.get((what, str(folder)), (None,))[0] == stamps


def make_known(what: str, folder: Path, stamps: tuple[object, ...]) -> None:
    """Remember that a folder with these stamps was verified or read."""
    _known[what, str(folder)] = (stamps, None)


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
    """Let small files, manifests and tables be read once, and sound sets be verified once."""
    log_entry, snapshot, table, manifest = Store.log_entry, Store.snapshot, DescribedFolder.table, Manifest.read
    verify_set = verify.verify_set

    def path_of(store: Store, place: str, name: Any) -> str:
        """Return a path of the layout, joined once: joining takes longer than looking at the file."""
        key = (str(store.layout.root), place, name)
        if key not in _paths:
            _paths[key] = str(getattr(store.layout, place)(name))
        return _paths[key]

    def read_log_entry(store: Store, number: int) -> Any:
        return once("entry", path_of(store, "log_entry", number), lambda: log_entry(store, number))

    def read_snapshot(store: Store, snapshot_id: str | None = None) -> Any:
        if snapshot_id is None:
            return snapshot(store)
        return once("snapshot", path_of(store, "snapshot_file", snapshot_id), lambda: snapshot(store, snapshot_id))

    def read_sealed(path: Path, **limits: int) -> dict[str, Any]:
        return dict(once("sealed", str(path), lambda: json_files.read_sealed_json(path, **limits)))

    def read_table(opened: DescribedFolder, name: str) -> Any:
        return once("table", f"{opened.folder}/{name}", lambda: table(opened, name))

    def verify_once(opened: EmbeddingSet, *, quick: bool, prefix: str = "") -> Iterator[VerifyProblem | int]:
        stamps = stamps_of(opened.folder)
        if not is_known("verified", opened.folder, stamps):
            found = list(verify_set(opened, quick=quick, prefix=prefix))
            if quick or any(isinstance(one, VerifyProblem) for one in found):
                yield from found
                return
            make_known("verified", opened.folder, stamps)
        yield len(dict(opened.files()))

    monkeypatch.setattr(Store, "log_entry", read_log_entry)
    monkeypatch.setattr(Store, "snapshot", read_snapshot)
    monkeypatch.setattr(DescribedFolder, "table", read_table)
    monkeypatch.setattr(Manifest, "read", lambda path: once("manifest", str(path), lambda: manifest(path)))
    monkeypatch.setattr(verify, "verify_set", verify_once)
    for module in (references, seals, tags, verify):
        monkeypatch.setattr(module, "read_sealed_json", read_sealed)
