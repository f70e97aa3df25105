"""Rounds of timings: cases take turns, so that a busy machine is busy for all of them; medians are compared."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Case:
    """Something to time: ``before`` is not timed, and what ``run`` returns is dropped after the clock stopped."""

    run: Callable[[], Any]
    before: Callable[[], None] = lambda: None


def time_rounds(cases: Mapping[str, Case], *, rounds: int) -> dict[str, float]:
    """Return the median seconds of each case over ``rounds``; who goes first changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            cases[name].before()
            began = time.perf_counter()
            kept = cases[name].run()
            seconds[name].append(time.perf_counter() - began)
            del kept
    return {name: median(times) for name, times in seconds.items()}


def files_of(path: Path) -> list[Path]:
    """The files of a folder, or the file itself."""
    return [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())


def bring_to_disk(path: Path) -> None:
    """Fsync every file of a folder."""
    for file in files_of(path):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def drop_cache(path: Path) -> None:
    """Take every file of a folder out of the page cache; nothing may have it mapped."""
    for file in files_of(path):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm_cache(path: Path) -> None:
    """Read every file of a folder once."""
    for file in files_of(path):
        with file.open("rb", buffering=0) as handle:
            while handle.read(16 << 20):
                pass


def run_child(script: Path, *arguments: str) -> str:
    """Run a script in a new Python; return its last line. Its peak memory is its own."""
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def peak_mib() -> float:
    """Peak resident memory of this process so far, file pages that it has mapped included.

    From /proc, since getrusage's figure begins at what the process had before it was this program.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line for line in status if line.startswith("VmHWM:")]
    return int(peak.split()[1]) / 1024


def machine() -> dict[str, Any]:
    """What kind of machine this is; nothing that names it."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }
