"""The whole benchmark as a user runs it: `evaltools run` in a process of its own, timed from its start to its end.

`python benchmarks/suite_run.py --encoder siglip2` runs it for one of the six encoders, which takes a sixth of the
time; the sizes of the data sets stay CardioBench's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from suite_store import DATASETS, ENCODERS, build_suite_store
from timing import Figure, load_average, machine

ROOT = Path(__file__).resolve().parent.parent
SECONDS, GIB = 60.0, 2.0  # limits of the quick suite on two cores, all encoders
_WATCH_S = 0.05


def quick_suite() -> dict[str, Any]:
    """Ridge, logistic regression on 8 values of C, neighbours and zero-shot."""
    grid = ",".join(f"{10.0**power:g}" for power in np.linspace(-5, 2, 8))
    return {
        "name": "quick",
        "entries": [
            {"command": "probe", "protocols": ["ridge"]},
            {"command": "probe", "protocols": ["logreg"], "settings": [f"Cs={grid}"]},
            {"command": "knn"},
            {"command": "zeroshot"},
        ],
    }


def full_suite() -> dict[str, Any]:
    """The same questions with the grids that the protocols have."""
    return {"name": "full", "entries": [{"command": name} for name in ("probe", "knn", "zeroshot")]}


def time_suite(store: Path, suite: dict[str, Any], *, out: Path, options: Sequence[str] = ()) -> tuple[float, str]:
    """Run a suite in a new process; return its seconds, and a note of its results, CPU and memory."""
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(suite))  # JSON is YAML
    command = [sys.executable, "-m", "evaltools", "run", "--suite", str(file), "--store", str(store), "--json"]
    command += ["--out", str(out), *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = _now()
    with file.with_suffix(".log").open("w") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
    told: list[float] = [0.0]
    watcher = threading.Thread(target=_watch, args=(child, told))
    watcher.start()
    printed, _ = child.communicate()
    seconds = _now() - began
    watcher.join()
    if child.returncode:
        raise RuntimeError(
            f"evaltools run ended with {child.returncode}: {file.with_suffix('.log').read_text()[-800:]}"
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    done = json.loads(printed)
    note = f"{len(done['results'])} results of {done['computed']} jobs, {cpu:.0f} s of CPU, "
    return seconds, note + f"all processes together {max(told) / 2**20:.2f} GiB at most"


def _now() -> float:
    return os.times().elapsed


def _watch(child: subprocess.Popen[bytes], told: list[float]) -> None:
    """Keep the largest sum of resident memory of a process and its children, KiB."""
    stop = threading.Event()
    while child.poll() is None:
        told[0] = max(told[0], sum(_resident_kib(pid) for pid in _tree(child.pid)))
        stop.wait(_WATCH_S)


def _tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def _resident_kib(pid: int) -> int:
    """Resident memory of a process in KiB; pages of files that it maps are counted too."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def suite_figures(
    folder: Path,
    *,
    encoders: Sequence[str] = (),
    datasets: Sequence[str] = (),
    full: bool = False,
    jobs: int | None = None,
) -> list[Figure]:
    """Encoders on all data sets and targets, and views: quick, or with full grids and all controls."""
    store = folder / "suite"
    if not store.exists():
        build_suite_store(store, list(ENCODERS))
    out = folder / ("out-full" if full else "out-quick")
    shutil.rmtree(out, ignore_errors=True)
    options = [] if jobs is None else ["--jobs", str(jobs)]
    options += [part for name in encoders for part in ("--encoder", name)]
    options += [part for name in datasets for part in ("--dataset", name)]
    options += [] if full else ["--bootstrap", "1000", "--no-controls"]
    seconds, note = time_suite(store, full_suite() if full else quick_suite(), out=out, options=options)
    n = len(encoders or ENCODERS)
    of = "full grids, 2,000 draws, all controls" if full else "ridge, logistic (8), kNN, zero-shot"
    whole = not full and n == len(ENCODERS) and not datasets
    on = f" on {', '.join(datasets)}" if datasets else ""
    return [
        Figure(f"suite, cold process: {n} encoders{on}, {of}", seconds, limit=SECONDS if whole else None, note=note)
    ]


def main() -> None:
    """Print the figure, and write it."""
    # A script's own folder comes first otherwise, and a benchmark can be called as a package of ours is.
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", action="append", choices=list(ENCODERS), help="repeatable; all six without")
    parser.add_argument("--dataset", action="append", choices=list(DATASETS), help="repeatable; all nine without")
    parser.add_argument("--full", action="store_true", help="with full grids, 2,000 draws and all controls: long")
    parser.add_argument("--jobs", type=int, help="processes")
    parser.add_argument("--folder", type=Path, help="where the store is made, or is from last time")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        which = {"encoders": chosen.encoder or (), "datasets": chosen.dataset or ()}
        figures = suite_figures(folder, **which, full=chosen.full, jobs=chosen.jobs)
    for figure in figures:
        print(figure.line())
    print(f"load of the machine: {load_average()}")
    if chosen.out is not None:
        document = {"figures": [one.to_dict() for one in figures], "machine": machine(), "load": load_average()}
        chosen.out.write_text(f"{json.dumps(document, indent=2)}\n")


if __name__ == "__main__":
    main()
