"""A folder as a remote: a share, a disk that is carried across, a synchronised folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from embedstore.errors import HostileInputError
from embedstore.files import FileRecord, fsync_folder, hash_file, storage_errors
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
        with storage_errors(found, "read"), found.open("rb", buffering=0) as handle:
            handle.seek(start)
            yield Stream(start, _blocks(handle))

    def put(self, path: str, content: Path | bytes, *, record: FileRecord) -> None:
        """Write under a temporary name, fsync, then rename over what is there."""
        target = self._path(path)
        temporary = target.with_name(f".partial-{target.name}")
        with storage_errors(target, "write"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as handle:
                if isinstance(content, bytes):
                    handle.write(content)
                else:
                    with content.open("rb", buffering=0) as source:
                        for block in _blocks(source):
                            handle.write(block)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(target)
            fsync_folder(target.parent)

    def holds(self, path: str, record: FileRecord) -> bool:
        """Compare size and digest."""
        found = self._path(path)
        return found.is_file() and found.stat().st_size == record.size and hash_file(found) == record

    def finish(self) -> None:
        """Do nothing: each file is there when it is put."""

    def abort(self) -> None:
        """Do nothing: a disk answers, or fails."""


def _blocks(handle: FileIO) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    while count := handle.readinto(buffer):
        yield buffer[:count]
