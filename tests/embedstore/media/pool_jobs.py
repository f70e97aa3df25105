"""Functions that workers of the pool's tests import by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.errors import MediaError, MissingExtraError, StorageError
from embedstore.media.readers import read_clip


def double(number: int) -> int:
    return 2 * number


def process_id(pause_s: float) -> int:
    time.sleep(pause_s)
    return os.getpid()


def arrays(n_bytes: int) -> dict[str, Any]:
    return {"frames": np.arange(n_bytes, dtype=np.uint8), "scattered": np.arange(20)[::2], "name": "clip"}


def read_file(path: Path) -> Any:
    return read_clip(path.read_bytes(), select=[0])


def started(mark: Path) -> int:
    """Say that the job has begun, then hang."""
    mark.write_text(str(os.getpid()))
    time.sleep(600)
    return 0


def slow_first(number: int) -> int:
    if number == 0:
        time.sleep(0.3)
    return number


def unpicklable(_: Any) -> Any:
    return lambda: None


def thread_settings(_: Any) -> tuple[str | None, int]:
    import cv2

    return os.environ.get("OMP_NUM_THREADS"), cv2.getNumThreads()


def loaded_modules(_: Any) -> list[str]:
    import sys

    return sorted(sys.modules)


def noisy(number: int) -> int:
    os.write(1, b"on stdout")
    os.write(2, b"on stderr")
    return number


def misbehave(how: str) -> str:
    if how == "exit":
        os._exit(7)
    if how in ("SIGKILL", "SIGSEGV", "SIGABRT"):
        os.kill(os.getpid(), signal.Signals[how])
    if how == "hang":
        time.sleep(600)
    if how == "eat-memory":
        return str(np.ones(8 << 30, dtype=np.uint8).sum())
    if how == "media":
        raise MediaError("the clip is grey", reason="too-grey")
    if how == "storage":
        raise StorageError("the disk is full")
    if how == "missing-extra":
        raise MissingExtraError("reading AVI needs the package av; install embedstore[media]")
    if how == "value":
        raise ValueError("no such value")
    return how
