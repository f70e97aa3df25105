"""What every write has in common: where faults are injected, and how a disk that refuses is told in one sentence.

All writes of a store are `embedstore.files` (a file) and `embedstore.folders` (a folder); both announce each
operation here before they do it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from embedstore.errors import StorageError

__all__ = ["announce", "cause_of", "storage_errors"]

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
