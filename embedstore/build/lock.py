"""One live build of a set on a host: an flock that the kernel frees when its owner dies."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedstore.errors import BusyError
from embedstore.files import storage_errors

__all__ = ["build_lock"]


@contextmanager
def build_lock(store_builds: Path, key: str, *, shared: bool) -> Iterator[None]:
    """Hold the lock of a build; parts of one build (``--shard``) share it.

    The lock file lies beside the build's folder and stays, so that nobody locks a file that is being removed.

    Raises
    ------
    BusyError
        Another live process on this host holds it.
    """
    path = store_builds / f"{key}.lock"
    with storage_errors(path, "lock"):
        store_builds.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BusyError(
                    "another build of this set is running on this machine; wait for it, or give parts to several "
                    "workers with --shard I/N"
                ) from error
            with storage_errors(path, "lock"):
                raise
        yield
    finally:
        os.close(descriptor)
