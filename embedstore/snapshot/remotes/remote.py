"""`Remote`: the four things that any place of snapshots can do, and the error that another attempt may mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from embedstore.files import FileRecord

__all__ = ["BLOCK_BYTES", "Broken", "Remote", "Stream"]

BLOCK_BYTES = 1 << 20


class Broken(Exception):
    """A transfer ended early or was refused for the moment; another attempt may succeed."""


@dataclass(frozen=True)
class Stream:
    """Bytes of a remote file as they come.

    Attributes
    ----------
    start : int
        Where in the file the first byte stands: what was asked for, or 0 where the place cannot begin elsewhere.
    blocks : iterator of bytes
        Each whatever one read gave, so that a trickle is seen as one. Raises `Broken`.
    """

    start: int
    blocks: Iterator[bytes]


class Remote(Protocol):
    """A place below which snapshots lie; paths are relative, ``/``-separated, and checked by who makes them.

    Methods raise `Broken` for what another attempt may mend, and an `embedstore.errors.EmbedstoreError` otherwise.
    """

    url: str

    def open(self, path: str, *, start: int = 0) -> AbstractContextManager[Stream]:
        """Open a file for reading from ``start`` on; `FileNotFoundError` where there is none."""

    def put(self, path: str, content: Path | bytes, *, record: FileRecord) -> None:
        """Write a whole file, in one step where the place can, or replace one."""

    def holds(self, path: str, record: FileRecord) -> bool:
        """Whether an earlier `put` left this content under this path; False where that cannot be told."""

    def finish(self) -> None:
        """Make visible what was put, in a place that collects it for one step; elsewhere nothing is left to do."""
