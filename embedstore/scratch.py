"""`ScratchFile`: bytes that wait on a disk, in a file without a name, until all are there and can be mapped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ScratchFile"]

# What is held of a file until it is worth a write: a commit keeps up to a hundred files open.
_HELD_BYTES = 1 << 15


class ScratchFile:
    """Append bytes, then map them; closing it, or the end of the process, is the end of the file.

    Parameters
    ----------
    folder : Path
        On the disk that is to hold the bytes.
    before_write : callable
        Called before each write that reaches the file.
    """

    def __init__(self, folder: Path, *, before_write: Callable[[], None]) -> None:
        self._before_write = before_write
        self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
        self._held = bytearray()

    def append(self, payload: Any) -> None:
        """Append bytes; they reach the file in blocks."""
        self._held += memoryview(payload).cast("B")
        if len(self._held) >= _HELD_BYTES:
            self._pass_on()

    def _pass_on(self) -> None:
        if not self._held:
            return
        self._before_write()
        view, done = memoryview(self._held), 0
        while done < len(view):
            done += self._file.write(view[done:])
        self._held = bytearray()

    def mapped(self) -> npt.NDArray[np.uint8]:
        """Return all bytes, mapped; nothing is appended afterwards."""
        self._pass_on()
        if not self._file.tell():
            return np.empty(0, np.uint8)
        return np.memmap(self._file, dtype=np.uint8, mode="r").view(np.ndarray)

    def close(self) -> None:
        """Let go of the file; what is held is dropped with it."""
        self._held = bytearray()
        self._file.close()
