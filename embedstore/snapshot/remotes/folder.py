"""A folder as a remote: a share, a disk that is carried across, a synchronised folder."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from embedstore.disk import storage_errors
from embedstore.errors import HostileInputError
from embedstore.files import TEMPORARY_PREFIX, FileRecord, hash_file
from embedstore.folders import fsync_folder
from embedstore.locks import folder_lock, is_locked
from embedstore.snapshot.remotes.remote import BLOCK_BYTES, Stream

__all__ = ["FolderRemote"]


class FolderRemote:
    """Snapshots below a folder of this machine's file systems; links in it are not followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root)

    def _path(self, path: str) -> Path:
        found = self._root / path
        for folder in [found, *found.parents]:
            if folder == self._root:
                break
            if folder.is_symlink():
                raise HostileInputError(f"{folder} is a link, and a snapshot has none")
        return found

    @contextmanager
    def open(self, path: str, *, start: int = 0) -> Iterator[Stream]:
        """Open a file for reading; `FileNotFoundError` where there is none."""
        found = self._path(path)
        if not found.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(found))
        with storage_errors(found, "read"):
            handle = found.open("rb", buffering=0)
        with handle:  # what fails while somebody works with the stream may be another file
            handle.seek(start)
            yield Stream(start, _blocks(handle, found))

    def require_writable(self) -> None:
        """Do nothing: `put` finds out."""

    def put(self, path: str, content: Path | bytes, *, record: FileRecord) -> None:
        """Write under a temporary name, fsync, then rename over what is there."""
        target = self._path(path)
        with storage_errors(target, "write"):
            target.parent.mkdir(parents=True, exist_ok=True)
            prefix = f"{TEMPORARY_PREFIX}{target.name}-"
            for rest in target.parent.glob(f"{prefix}*"):
                if not is_locked(rest):  # of a push that was killed
                    rest.unlink(missing_ok=True)
            temporary = target.with_name(f"{prefix}{uuid.uuid4().hex}")
            try:
                with temporary.open("xb") as handle, folder_lock(temporary, busy=f"{temporary} is locked"):
                    for block in _blocks_of(content):
                        handle.write(block)
                    handle.flush()
                    os.fsync(handle.fileno())
                    temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            fsync_folder(target.parent)

    def holds(self, path: str, record: FileRecord) -> bool:
        """Compare size and digest."""
        found = self._path(path)
        return found.is_file() and found.stat().st_size == record.size and hash_file(found) == record

    def finish(self) -> None:
        """Do nothing: each file is there when it is put."""

    def abort(self) -> None:
        """Do nothing: a disk answers, or fails."""


def _blocks_of(content: Path | bytes) -> Iterator[bytes | memoryview]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb", buffering=0) as source:
        yield from _blocks(source, content)


def _blocks(handle: FileIO, path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    while True:
        with storage_errors(path, "read"):
            count = handle.readinto(buffer)
        if not count:
            return
        yield buffer[:count]
