"""Where a snapshot comes from: a folder, or archives. What is in it, and its bytes, and no more than was said."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from embedstore.disk import storage_errors
from embedstore.errors import HostileInputError
from embedstore.snapshot.archive import Member, data_offset, find_parts, listed_in, open_archive
from embedstore.snapshot.describe import MAX_FILES
from embedstore.snapshot.paths import check_path, check_paths

__all__ = ["ArchiveSource", "FolderSource", "SnapshotSource", "open_source"]

_MAX_DEPTH = 12


class SnapshotSource(Protocol):
    """What holds the files of a snapshot."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size of each file, by path."""

    def read(self, path: str, n_bytes: int) -> Iterator[memoryview]:
        """Yield the first ``n_bytes`` of a file in blocks; fewer where it ends before."""


class FolderSource:
    """A folder that anybody may have made: regular files and folders only, no links at any depth.

    Raises
    ------
    HostileInputError
        Something else is in it, or a name may not be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self._walk("", 0)
        check_paths(self._sizes)

    @property
    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    def _walk(self, below: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise HostileInputError(f"the snapshot has folders more than {_MAX_DEPTH} deep")
        with storage_errors(self._folder, "read"), os.scandir(self._folder / below) as entries:
            for entry in entries:
                # Hidden files of file managers and version control stay out of the way, and out of the store.
                if not below and entry.name.startswith("."):
                    continue
                path = check_path(f"{below}{entry.name}")
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    self._walk(f"{path}/", depth + 1)
                elif stat.S_ISREG(mode):
                    self._sizes[path] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise HostileInputError(f"{path} of the snapshot is a link or a special file")
                if len(self._sizes) > MAX_FILES:
                    raise HostileInputError(f"the snapshot has more than {MAX_FILES} files")

    def read(self, path: str, n_bytes: int) -> Iterator[memoryview]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        source = self._folder / path
        with storage_errors(source, "read"), os.fdopen(os.open(source, flags), "rb", buffering=0) as handle:
            yield from _blocks(handle, n_bytes)


class ArchiveSource:
    """A main archive and its parts."""

    def __init__(self, main: Path) -> None:
        self._members: dict[Path, dict[str, Member]] = {}
        for path in [main, *find_parts(main)]:
            with self._open(path) as handle:
                self._members[path] = open_archive(path, handle)
        self._home = listed_in(self._members)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {path: self._members[archive][path].size for path, archive in self._home.items()}

    @staticmethod
    @contextmanager
    def _open(path: Path) -> Iterator[BinaryIO]:
        with storage_errors(path, "read"), path.open("rb") as handle:
            yield handle

    def read(self, path: str, n_bytes: int) -> Iterator[memoryview]:
        archive = self._home[path]
        member = self._members[archive][path]
        with self._open(archive) as handle:
            handle.seek(data_offset(member))
            yield from _blocks(handle, min(n_bytes, member.size))


def _blocks(handle: BinaryIO, n_bytes: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(1 << 20, max(1, n_bytes))))
    left = n_bytes
    while left and (count := handle.readinto(buffer[: min(len(buffer), left)])):  # type: ignore[attr-defined]
        yield buffer[:count]
        left -= count


def open_source(path: Path) -> SnapshotSource:
    """Open a folder or an archive.

    Raises
    ------
    HostileInputError
        It is neither.
    """
    if path.is_dir():
        return FolderSource(path)
    return ArchiveSource(path)
