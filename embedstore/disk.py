"""What every write has in common: where faults are injected, and how a disk that refuses is told in one sentence.

All writes of a store are `embedstore.files` (a file) and `embedstore.folders` (a folder); both announce each
operation here before they do it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from embedstore.errors import StorageError

__all__ = ["SendAhead", "announce", "cause_of", "storage_errors"]

_AHEAD_BYTES = 8 << 20

# Tests set this to a function of (operation, path) that may raise; operations are open, write, fsync, link,
# rename, unlink, touch and scratch.
fault_hook: Callable[[str, Path], None] | None = None

_SENTENCES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "the operation is not permitted",
    errno.EIO: "the disk reported an input/output error",
    errno.ENOENT: "the file or folder is not there",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "the path is a folder, not a file",
    errno.EFBIG: "the file would exceed the size limit",
    errno.ESTALE: "the network file system went away",
}


def announce(operation: str, path: Path) -> None:
    """Say that ``operation`` is about to happen to ``path``; a test may make it fail, or end the process."""
    if fault_hook is not None:
        fault_hook(operation, path)


def cause_of(error: OSError) -> str:
    """What the disk refused, in the words that a sentence ends with."""
    return _SENTENCES.get(error.errno or 0, error.strerror or str(error))


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` into one sentence that names the path and what failed."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {doing} {path}: {cause_of(error)}") from error


class SendAhead:
    """Lets the kernel begin to bring to disk what is written to a file, so that its fsync waits for less.

    That is what Linux makes of "not needed" for pages that are not on disk yet (mm/fadvise.c); it keeps them.

    Parameters
    ----------
    descriptor : int
        A file open for writing.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._sent = descriptor, 0

    def written(self, size: int) -> None:
        """Note that the first ``size`` bytes are written; every 8 MB are sent."""
        if size - self._sent < _AHEAD_BYTES:
            return
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # a hint: what the disk refuses is told by fsync
                os.posix_fadvise(self._descriptor, self._sent, size - self._sent, os.POSIX_FADV_DONTNEED)
        self._sent = size
