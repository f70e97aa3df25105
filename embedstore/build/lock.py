"""One live build of a set on a host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedstore.locks import host_lock

__all__ = ["build_lock"]

# Commands that look whether a build is live hold its lock for microseconds.
_WAIT_S = 0.2


@contextmanager
def build_lock(store_builds: Path, key: str, *, shared: bool) -> Iterator[None]:
    """Hold the lock of a build; parts of one build (``--shard``) share it.

    The lock file lies beside the build's folder and stays, so that nobody locks a file that is being removed.

    Raises
    ------
    BusyError
        Another live process on this host holds it.
    """
    busy = (
        "another build of this set is running on this machine; wait for it, or give parts to several workers with "
        "--shard I/N"
    )
    with host_lock(store_builds / f"{key}.lock", shared=shared, wait_s=_WAIT_S, busy=busy):
        yield
