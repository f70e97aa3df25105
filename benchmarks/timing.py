"""Rounds of timings: cases take turns, so that a busy machine is busy for all of them; medians are compared."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """Something to time: ``before`` is not timed, and what ``run`` returns is dropped after the clock stopped."""

    run: Callable[[], Any]
    before: Callable[[], None] = lambda: None


def time_rounds(cases: Mapping[str, Case], *, rounds: int, warm_up: bool = False) -> dict[str, float]:
    """Return the median seconds of each case over ``rounds``; who goes first changes from round to round.

    With ``warm_up`` a round that is not timed comes first: a virtual machine may have given its free memory back to
    the host, and whoever needs it next waits seconds for it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(-warm_up, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            cases[name].before()
            began = time.perf_counter()
            kept = cases[name].run()
            if turn >= 0:
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


def regain_memory(n_bytes: int) -> None:
    """Touch so much memory and free it.

    A virtual machine gives what is free back to its host, and whoever is timed should not wait to get it again.
    """
    np.ones(n_bytes, np.uint8)


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


def memory_mib(field: str) -> float:
    """A field of /proc/self/status in MiB: VmHWM is the peak resident memory, RssAnon what is private now."""
    status = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line for line in status if line.startswith(f"{field}:")]
    return int(found.split()[1]) / 1024


@contextmanager
def watched_memory(told: dict[str, float]) -> Iterator[None]:
    """Put the peak memory of a block into ``told``, in MiB.

    ``private`` is what the process needs for itself, looked at every millisecond; ``resident`` also counts pages of
    files that it has mapped, which are the page cache's and are taken back when others need memory.
    """
    done = threading.Event()
    seen = [memory_mib("RssAnon")]

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(memory_mib("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        told |= {"private": max(seen), "resident": memory_mib("VmHWM")}


def load_average() -> list[float]:
    """Processes that wanted a core, over the last 1, 5 and 15 minutes: above the cores, seconds mean little."""
    return [round(load, 2) for load in os.getloadavg()]


def machine() -> dict[str, Any]:
    """What kind of machine this is; nothing that names it."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Figure:
    """One line of the result. ``limit`` bounds the ratio, or the seconds where there is no baseline."""

    name: str
    seconds: float | None
    baseline: str = ""
    baseline_seconds: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the baseline."""
        if self.seconds is None or not self.baseline_seconds:
            return None
        return self.seconds / self.baseline_seconds

    @property
    def holds(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        measured = self.ratio if self.baseline_seconds else self.seconds
        return None if self.limit is None or measured is None else measured <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "ratio": self.ratio, "holds": self.holds}

    def line(self) -> str:
        """A line of the table."""
        seconds = "" if self.seconds is None else f"{self.seconds:10.4f}"
        base = "" if self.baseline_seconds is None else f"{self.baseline_seconds:10.4f}"
        ratio = "" if self.ratio is None else f"{self.ratio:7.2f}"
        limit = "" if self.limit is None else f"{self.limit:6.2f}"
        verdict = {True: "ok", False: "MISSED", None: ""}[self.holds]
        return f"{self.name:82s} {seconds:>10s} {base:>10s} {ratio:>7s} {limit:>6s} {verdict:6s} {self.note}"


def merge_results(path: Path, document: Mapping[str, Any], figures: list[Figure]) -> dict[str, Any]:
    """Put the figures of a run into a result file: those of the same name and baseline are replaced, the others stay.

    A figure names the run that it is from, by its place in ``runs``; both sides of a ratio are of one run.
    """
    old = json.loads(path.read_text()) if path.exists() else {}
    if old.get("machine") != document["machine"] or "runs" not in old:
        old = {"runs": [], "figures": []}
    described = {key: value for key, value in document.items() if key not in ("question", "machine")}
    new = [{**figure.to_dict(), "run": len(old["runs"])} for figure in figures]
    named = {(figure["name"], figure["baseline"]) for figure in new}
    kept = [figure for figure in old["figures"] if (figure["name"], figure["baseline"]) not in named]
    used = sorted({figure["run"] for figure in kept})
    place = {run: number for number, run in enumerate(used)} | {len(old["runs"]): len(used)}
    return {
        "question": document["question"],
        "machine": document["machine"],
        "runs": [*(old["runs"][run] for run in used), described],
        "figures": [{**figure, "run": place[figure["run"]]} for figure in [*kept, *new]],
    }
