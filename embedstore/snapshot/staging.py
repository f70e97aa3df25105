"""A folder that is made beside its place and becomes visible in one rename; what was cut off is cleared by the next.

The folder under way is locked by its maker, so that a later run tells a dead maker's rest from a living one's work.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError
from embedstore.files import FileRecord, write_file
from embedstore.folders import fsync_folder, remove_folder
from embedstore.locks import is_locked

__all__ = ["copy_file", "copy_files", "staging_folder", "sync_folders"]

_BLOCK_BYTES = 1 << 20


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside ``target`` in which it may be made; it is removed unless it was renamed away."""
    prefix = f".staging-{target.name}-"
    with storage_errors(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        for rest in target.parent.glob(f"{prefix}*"):
            if rest.is_dir() and not is_locked(rest):
                remove_folder(rest, in_place=True)
        folder = target.parent / f"{prefix}{uuid.uuid4().hex}"
        folder.mkdir()
        held = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        os.close(held)
        if folder.is_dir():
            remove_folder(folder, in_place=True)


def copy_file(source: Path, target: Path, *, expected: FileRecord | None = None) -> FileRecord:
    """Copy a file whole, fsynced and hashed.

    Raises
    ------
    CorruptionError
        The source is not what it is expected to be.
    """
    with storage_errors(source, "read"), source.open("rb", buffering=0) as handle, write_file(target) as written:
        buffer = memoryview(bytearray(_BLOCK_BYTES))
        while count := handle.readinto(buffer):
            written.write(buffer[:count])
    if expected is not None and written.record != expected:
        raise CorruptionError(f"{source} is not what was written; run embedstore verify")
    return written.record


def copy_files(pairs: list[tuple[Path, Path, FileRecord | None]]) -> list[FileRecord]:
    """Copy files (source, target, expected), two at a time; make their folders."""
    with storage_errors(pairs[0][1] if pairs else Path(), "write"):
        for folder in sorted({target.parent for _, target, _ in pairs}):
            folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: copy_file(pair[0], pair[1], expected=pair[2]), pairs))


def sync_folders(folder: Path) -> None:
    """Bring the entries of every folder below to disk."""
    with storage_errors(folder, "write"):
        for sub in sorted(path for path in folder.rglob("*") if path.is_dir()):
            fsync_folder(sub)
