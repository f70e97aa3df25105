"""`Remote`: the six things that any place of snapshots can do, and the error that another attempt may mend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from embedstore.files import FileRecord

__all__ = ["BLOCK_BYTES", "BLOCK_S", "Broken", "Remote", "Stream", "without_password"]

BLOCK_BYTES = 512 << 10  # fits the cache of a core, in which it is hashed after it was written
BLOCK_S = 0.25  # a block is handed on after this, full or not, so that a trickle is seen as one


def without_password(url: str) -> str:
    """Return an address as an error may show it.

    Examples
    --------
    >>> without_password("s3://key:secret@bucket/echo@sha256:ab")
    's3://...@bucket/echo@sha256:ab'
    """
    return re.sub(r"//[^/@]*@(?!sha256:)", "//...@", url)


class Broken(Exception):
    """A transfer ended early or was refused for the moment; another attempt may succeed.

    Parameters
    ----------
    message : str
        What happened, for a sentence.
    wait_s : float
        Seconds that the place asks us to wait before the next attempt.
    """

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Stream:
    """Bytes of a remote file as they come.

    Attributes
    ----------
    start : int
        Where in the file the first byte stands: what was asked for, or 0 where the place cannot begin elsewhere.
    blocks : iterator of memoryview
        Each what came within a moment, so that a trickle is seen as one, and valid until the next is asked for.
        Raises `Broken`.
    """

    start: int
    blocks: Iterator[memoryview]


class Remote(Protocol):
    """A place below which snapshots lie; paths are relative, ``/``-separated, and checked by who makes them.

    Methods raise `Broken` for what another attempt may mend, and an `embedstore.errors.EmbedstoreError` otherwise.
    """

    url: str

    def open(self, path: str, *, start: int = 0) -> AbstractContextManager[Stream]:
        """Open a file for reading from ``start`` on; `FileNotFoundError` where there is none."""

    def require_writable(self) -> None:
        """Raise where it is plain before anything is made that nothing can be put here."""

    def put(self, path: str, content: Path | bytes, *, record: FileRecord) -> None:
        """Write a whole file, in one step where the place can, or replace one."""

    def holds(self, path: str, record: FileRecord) -> bool:
        """Whether an earlier `put` left this content under this path; False where that cannot be told."""

    def finish(self) -> None:
        """Make visible what was put, in a place that collects it for one step; elsewhere nothing is left to do."""

    def abort(self) -> None:
        """End transfers that other threads wait for: they see `Broken`. The place can be used again."""
