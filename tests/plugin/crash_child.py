"""A small build in a process of its own that can be killed, or whose disk can fail, at a chosen operation."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import embedstore.build.plan
from embedstore import disk
from embedstore.build.run import BuildRequest, build_sets
from embedstore.errors import EmbedstoreError
from embedstore.store import Store

UNIT_CLIPS = 3


def _kill_at(number: int) -> None:
    seen = 0

    def hook(operation: str, path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    disk.fault_hook = hook


def _fail_at(operation: str, code: str, number: int) -> None:
    seen = 0

    def hook(done: str, path: Path) -> None:
        nonlocal seen
        seen += done == operation
        if done == operation and seen == number:
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    disk.fault_hook = hook


def count_operations(store: Path) -> dict[str, int]:
    """Build without a fault; return how many operations of each kind it took."""
    counts: dict[str, int] = {}

    def hook(operation: str, path: Path) -> None:
        counts[operation] = counts.get(operation, 0) + 1

    disk.fault_hook = hook
    try:
        build(store)
    finally:
        disk.fault_hook = None
    return counts


def build(store: Path, shard: tuple[int, int] | None = None) -> None:
    """Build the stub encoder's set in units of three clips."""
    embedstore.build.plan.UNIT_CLIPS = UNIT_CLIPS
    build_sets(Store.open(store), BuildRequest(encoders=("stub",), n_workers=0, shard=shard))


def run(store: Path, fault: tuple[str, ...] = (), shard: tuple[int, int] | None = None) -> None:
    """Entry point of the process; exits with the error's code, its sentence in the file that `said` reads."""
    if fault and fault[0] == "kill":
        _kill_at(int(fault[1]))
    elif fault:
        _fail_at(fault[0], fault[1], int(fault[2]))
    try:
        build(store, shard)
    except EmbedstoreError as error:
        message = " ".join([str(error), *getattr(error, "__notes__", ())])
        if "\n" in message:
            sys.exit(99)
        _said_in(store).write_text(message)
        sys.exit(error.exit_code)


def run_silently(store: Path) -> None:
    """Entry point of a process whose system calls fail: it writes nothing of its own."""
    try:
        build(store)
    except EmbedstoreError as error:
        sys.exit(error.exit_code)


def said(store: Path) -> str:
    """The sentence that the last `run` on a store ended with."""
    return _said_in(store).read_text()


def _said_in(store: Path) -> Path:
    return Path(os.environ.get("CRASH_CHILD_SAID", store.with_suffix(".error")))
