"""Locks between processes of one host: an flock, which the kernel frees when its owner dies.

Readers of a store take none. Where the file system knows no flock, nothing is locked and grace periods protect.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedstore.disk import storage_errors
from embedstore.errors import BusyError

__all__ = ["folder_lock", "host_lock", "is_locked"]

_TAKEN = {errno.EAGAIN, errno.EACCES}
_UNSUPPORTED = {errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_POLL_S = 0.02


def _try_lock(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
    return True


@contextmanager
def host_lock(path: Path, *, shared: bool, wait_s: float, busy: str) -> Iterator[None]:
    """Hold a lock file, which is made where it is not there and stays.

    Parameters
    ----------
    shared : bool
        Together with others that share it, or alone.
    wait_s : float
        How long to wait for those that hold it.
    busy : str
        The sentence of the error when they do not let go.

    Raises
    ------
    BusyError
        Others held it for all of ``wait_s``.
    """
    with storage_errors(path, "lock"):
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        until = time.monotonic() + wait_s
        with storage_errors(path, "lock"):
            while not _try_lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                if time.monotonic() >= until:
                    raise BusyError(busy)
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path, *, busy: str) -> Iterator[None]:
    """Hold a folder, or a file that is there, alone; no file is made for it.

    Raises
    ------
    BusyError
        Another process, or another part of this one, holds it; its sentence is ``busy``.
    """
    with storage_errors(folder, "lock"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with storage_errors(folder, "lock"):
            if not _try_lock(descriptor, fcntl.LOCK_EX):
                raise BusyError(busy)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether a live process of this host holds a lock file, shared or alone."""
    with storage_errors(path, "look at the lock"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(descriptor, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)
