"""How fast is the store, against the plainest way of doing the same? Ratios of medians within one run.

    python benchmarks/store.py [--rows 1000000] [--rounds 3] [--folder DIR] [--out benchmarks/results/store.json]

Prints a table and writes JSON. Baselines: ``np.save`` + fsync for writing, ``readinto`` of the raw file for a full
scan, a ``numpy.memmap`` of the raw file for a gather (with the same cast where float32 is asked for), ``sha256sum``
for verify. *warm*: the file is in the page cache; *cold*: it was dropped from there. Maps are made anew in every
round unless a line says that they are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from other_formats import FORMATS, version_of
from store_build import build_figures, commit_once
from timing import Case, bring_to_disk, drop_cache, machine, peak_mib, run_child, time_rounds, warm_cache

import embedstore
from embedstore.embedding_set import FAILURES_SCHEMA, FRAME_INDEX_SCHEMA, INDEX_SCHEMA, SetWriter, rows_to_table
from embedstore.shards import ArrayDescription, ArrayWriter
from embedstore.snapshot.verify import verify_set
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.vector_array import VectorArray

DIM = 768
N_PICKED = 10_000
N_SETS = 200
# Rows that are handed to the writer at once: what a commit hands over, 256 clips of 16 frames.
APPEND_ROWS = 4096
READ_BYTES = 64 << 20


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


# -- one matrix -----------------------------------------------------------------------------------------------------


def make_matrix(n_rows: int, dtype: str) -> Any:
    """(n_rows, 768) values as an encoder gives: made in blocks, so that little else is in memory."""
    matrix = np.empty((n_rows, DIM), dtype)
    rng = np.random.default_rng(0)
    for start in range(0, n_rows, 65_536):
        stop = min(start + 65_536, n_rows)
        matrix[start:stop] = rng.standard_normal((stop - start, DIM), dtype=np.float32)
    return matrix


def save_raw(path: Path, matrix: Any) -> None:
    with path.open("wb") as handle:
        np.save(handle, matrix)
        handle.flush()
        os.fsync(handle.fileno())


def write_ours(folder: Path, matrix: Any) -> ArrayDescription:
    with ArrayWriter(folder, dim=matrix.shape[1], dtype=matrix.dtype.name) as writer:
        for start in range(0, len(matrix), APPEND_ROWS):
            writer.append(matrix[start : start + APPEND_ROWS])
        return writer.finish()


class RawFile:
    """The raw .npy file that the baselines read."""

    def __init__(self, path: Path, matrix: Any) -> None:
        self.path, self.shape, self.dtype = path, matrix.shape, matrix.dtype
        save_raw(path, matrix)
        self.offset = path.stat().st_size - matrix.nbytes

    def scan(self) -> Any:
        """``readinto`` of the whole file."""
        rows = np.empty(self.shape, self.dtype)
        with self.path.open("rb", buffering=0) as handle:
            handle.seek(self.offset)
            view = rows.reshape(-1).view(np.uint8).data
            done = 0
            while done < len(view):
                done += handle.readinto(view[done : done + READ_BYTES])
        return rows

    def scan_float32(self) -> Any:
        """The same, in blocks that are cast."""
        rows = np.empty(self.shape, np.float32)
        step = max(1, (8 << 20) // (self.shape[1] * self.dtype.itemsize))
        block = np.empty((step, self.shape[1]), self.dtype)
        with self.path.open("rb", buffering=0) as handle:
            handle.seek(self.offset)
            for start in range(0, len(rows), step):
                part = block[: len(rows) - start]
                handle.readinto(part.reshape(-1).view(np.uint8).data)
                rows[start : start + len(part)] = part
        return rows

    def map(self) -> Any:
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape)


def forget(path: Path) -> None:
    """Remove a file or a folder that may not be there."""
    shutil.rmtree(path, ignore_errors=True)
    if path.is_file():
        path.unlink()


def write_figures(
    dtype: str, *, n_rows: int, rounds: int, folder: Path
) -> tuple[list[Figure], RawFile, ArrayDescription, dict[str, Path]]:
    """Write one matrix as a raw file, as ours and in the other formats; leave all of them there."""
    matrix = make_matrix(n_rows, dtype)
    written: list[ArrayDescription] = []
    raw_path, ours_path = folder / "raw.npy", folder / "ours"
    cases = {
        "np.save": Case(lambda: save_raw(raw_path, matrix), lambda: forget(raw_path)),
        "ours": Case(lambda: written.append(write_ours(ours_path, matrix)), lambda: forget(ours_path)),
    }
    times = time_rounds(cases, rounds=rounds)
    what = f"write {n_rows:,} x {DIM} {dtype}, hashed"
    figures = [Figure(what, times["ours"], "np.save + fsync", times["np.save"], 2.0)]
    others, compared = write_others(matrix, folder, times["np.save"])
    return figures + compared, RawFile(raw_path, matrix), written[-1], others


def matrix_figures(dtype: str, *, n_rows: int, rounds: int, folder: Path) -> list[Figure]:
    """Writing, scanning and gathering one matrix."""
    figures, raw, written, others = write_figures(dtype, n_rows=n_rows, rounds=rounds, folder=folder)
    size = f"{n_rows:,} x {DIM} {dtype}"
    ours_path = folder / "ours"
    figures += read_figures(raw, lambda: VectorArray(ours_path, written), size, rounds, ours_path)
    figures += other_reads(raw, others, size)
    for path in folder.iterdir():
        forget(path)
    return figures


def read_figures(
    raw: RawFile, ours: Callable[[], VectorArray], size: str, rounds: int, ours_path: Path
) -> list[Figure]:
    """Scans and gathers, warm and cold, in the stored dtype and as float32."""
    figures = []
    rng = np.random.default_rng(1)
    n_picked = min(N_PICKED, raw.shape[0])
    picked = [rng.choice(raw.shape[0], n_picked, replace=False)]

    def renew() -> None:
        picked[0] = rng.choice(raw.shape[0], n_picked, replace=False)

    def cold(path: Path) -> Callable[[], None]:
        return lambda: drop_cache(path)

    as_float32 = [("float32", False)] if raw.dtype != np.float32 else []
    for name, is_raw in [(f"{raw.dtype.name} (.raw)", True), *as_float32]:

        def view(is_raw: bool = is_raw) -> VectorArray:
            return ours().raw if is_raw else ours()

        def map_gather(is_raw: bool = is_raw) -> Any:
            rows = raw.map()[picked[0]]
            return np.asarray(rows) if is_raw else rows.astype(np.float32)

        scan = raw.scan if is_raw else raw.scan_float32
        for heat in ("warm", "cold"):
            before = {"raw": cold(raw.path), "ours": cold(ours_path)} if heat == "cold" else {}
            for path in (raw.path, ours_path):
                warm_cache(path)
            nothing = before.get("none", lambda: None)
            times = time_rounds(
                {
                    "raw": Case(scan, before.get("raw", nothing)),
                    "ours": Case(lambda view=view: view()[:], before.get("ours", nothing)),
                },
                rounds=rounds,
            )
            figures.append(
                Figure(f"scan {size} as {name}, {heat}", times["ours"], "readinto of the raw file", times["raw"], 1.3)
            )
            for path in (raw.path, ours_path):
                warm_cache(path)
            renew()
            times = time_rounds(
                {
                    "raw": Case(map_gather, before.get("raw", nothing)),
                    "ours": Case(lambda view=view: view()[picked[0]], before.get("ours", nothing)),
                },
                rounds=max(rounds, 5),
            )
            limit = 1.3 if heat == "warm" else 1.5
            what = f"gather {n_picked:,} rows of {size} as {name}, {heat}"
            figures.append(Figure(what, times["ours"], "numpy memmap", times["raw"], limit))
        figures.append(kept_maps(raw, view(), is_raw, picked, size, name))
    return figures


def kept_maps(raw: RawFile, kept: VectorArray, is_raw: bool, picked: list[Any], size: str, name: str) -> Figure:
    """A gather where both sides keep their maps from one gather to the next, as a training loop does."""
    for path in (raw.path, kept.folder):
        warm_cache(path)
    mapped = raw.map()

    def map_gather() -> Any:
        return np.asarray(mapped[picked[0]]) if is_raw else mapped[picked[0]].astype(np.float32)

    times = time_rounds({"raw": Case(map_gather), "ours": Case(lambda: kept[picked[0]])}, rounds=9)
    what = f"gather {len(picked[0]):,} rows of {size} as {name}, warm, map kept"
    return Figure(what, times["ours"], "numpy memmap, kept", times["raw"], 1.3)


# -- other formats --------------------------------------------------------------------------------------------------


def write_others(matrix: Any, folder: Path, baseline_seconds: float) -> tuple[dict[str, Path], list[Figure]]:
    """Write the matrix in every installed format, once; a figure for each, and for those that are not there."""
    written, figures = {}, []
    size = f"{len(matrix):,} x {matrix.shape[1]} {matrix.dtype.name}"
    for name, other in FORMATS.items():
        if not other.is_installed:
            figures.append(Figure(f"write {size}: {name}", None, note="not installed"))
            continue
        path = folder / f"other-{other.package}"
        path.mkdir()

        def run(path: Path = path, write: Callable[[Path, Any], None] = other.write) -> None:
            write(path, matrix)
            bring_to_disk(path)

        seconds = time_rounds({name: Case(run)}, rounds=1)[name]
        figures.append(Figure(f"write {size}: {name}", seconds, "np.save + fsync", baseline_seconds, note="1 round"))
        written[name] = path
    return written, figures


def other_reads(raw: RawFile, others: dict[str, Path], size: str) -> list[Figure]:
    """Scan and gather in every other format: the median of three rounds, against the baseline of the same rounds."""
    figures = []
    rows = np.random.default_rng(2).choice(raw.shape[0], min(N_PICKED, raw.shape[0]), replace=False)
    for heat in ("warm", "cold"):
        for name, path in others.items():
            other = FORMATS[name]
            (warm_cache if heat == "warm" else drop_cache)(path)

            def before(path: Path, heat: str = heat) -> Callable[[], None]:
                return (lambda: drop_cache(path)) if heat == "cold" else (lambda: None)

            for what, base, ours, against in (
                ("scan", raw.scan, lambda other=other, path=path: other.scan(path), "readinto of the raw file"),
                (
                    f"gather {len(rows):,} rows of",
                    lambda: np.asarray(raw.map()[rows]),
                    lambda other=other, path=path: other.gather(path, rows),
                    "numpy memmap",
                ),
            ):
                warm_cache(raw.path)
                times = time_rounds(
                    {"raw": Case(base, before(raw.path)), "other": Case(ours, before(path))}, rounds=3
                )
                figures.append(Figure(f"{what} {size}, {heat}: {name}", times["other"], against, times["raw"]))
    return figures


# -- a whole store --------------------------------------------------------------------------------------------------


def write_set(store: Store, name: str, matrix: Any, *, n_clips: int) -> str:
    """Publish a set with the matrix as its frames."""
    spec = EncoderSpec(name=name, clip_dim=matrix.shape[1], frame_dim=matrix.shape[1], dtype=matrix.dtype.name)
    each = len(matrix) // n_clips
    counts = [each + (clip < len(matrix) - each * n_clips) for clip in range(n_clips)]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).tolist()
    index = [
        {"row": clip, "clip_id": f"c{clip:07d}", "vector_key": "0", "frame_row": start, "n_frame_rows": count}
        for clip, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]
    frames = [{"clip_id": f"c{clip:07d}", "frame": n} for clip, count in enumerate(counts) for n in range(count)]
    with SetWriter(store.layout.sets, dataset="bench", spec=spec) as writer:
        writer.array("clips", dim=matrix.shape[1]).append(matrix[:n_clips])
        array = writer.array("frames", dim=matrix.shape[1])
        for start in range(0, len(matrix), APPEND_ROWS):
            array.append(matrix[start : start + APPEND_ROWS])
        tables = {
            "index.parquet": rows_to_table(index, INDEX_SCHEMA),
            "frame_index.parquet": rows_to_table(frames, FRAME_INDEX_SCHEMA),
            "failures.parquet": rows_to_table([], FAILURES_SCHEMA),
        }
        set_id = writer.finish(tables, provenance={})
    entry = store.entry_of(store.open_set(set_id))
    store.commit(lambda head: head.with_set(entry), reason="benchmark")
    return set_id


def verify_figures(folder: Path, *, n_rows: int, rounds: int) -> list[Figure]:
    """A full verification of one set against ``sha256sum`` of the same files."""
    store = Store.create(folder / "store")
    set_id = write_set(store, "bench", make_matrix(n_rows, "float16"), n_clips=max(1, n_rows // 16))
    opened = store.open_set(set_id)
    names = [str(opened.folder / name) for name, _ in opened.files()]
    found: list[Any] = []
    cases = {
        "sha256sum": Case(lambda: subprocess.run(["sha256sum", *names], check=True, stdout=subprocess.DEVNULL)),
        "full": Case(lambda: found.extend(verify_set(store.open_set(set_id), quick=False))),
        "quick": Case(lambda: found.extend(verify_set(store.open_set(set_id), quick=True))),
    }
    warm_cache(opened.folder)
    times = time_rounds(cases, rounds=rounds)
    if not all(entry == 1 for entry in found):
        raise SystemExit("verify found problems in a sound set")
    shutil.rmtree(folder / "store")
    what = f"verify a set of {n_rows:,} frames x {DIM} float16"
    return [
        Figure(f"{what}, full", times["full"], "sha256sum", times["sha256sum"], 1.2),
        Figure(f"{what}, quick", times["quick"], "sha256sum", times["sha256sum"]),
    ]


def open_figures(folder: Path, *, rounds: int) -> list[Figure]:
    """``embedstore.open`` and the first row, in a store with 200 sets."""
    store = Store.create(folder / "many")
    for number in range(N_SETS):
        write_set(store, f"encoder-{number:03d}", make_matrix(16, "float16"), n_clips=4)

    def first_row() -> Any:
        return embedstore.open(folder / "many").get(dataset="bench", encoder="encoder-100").clips[0]

    times = time_rounds({"open": Case(first_row, lambda: drop_cache(folder / "many"))}, rounds=max(rounds, 5))
    program = (
        "import sys, time; began = time.perf_counter(); import embedstore; "
        "embedstore.open(sys.argv[1]).get(dataset='bench', encoder='encoder-100').clips[0]; "
        "print(time.perf_counter() - began)"
    )
    fresh = [
        float(
            subprocess.run(
                [sys.executable, "-c", program, str(folder / "many")], check=True, capture_output=True, text=True
            ).stdout
        )
        for _ in range(max(rounds, 5))
    ]
    shutil.rmtree(folder / "many")
    return [
        Figure(f"open and first row, {N_SETS} sets, cold files", times["open"], limit=0.1, note="seconds"),
        Figure(
            f"open and first row, {N_SETS} sets, new Python, imports included",
            float(np.median(fresh)),
            note="seconds",
        ),
    ]


def gather_once(folder: Path, described: Path) -> None:
    """In a process of its own: gather 10,000 rows, print the peak memory in MiB."""
    array = VectorArray(folder, ArrayDescription.from_dict(json.loads(described.read_text())))
    rows = np.random.default_rng(3).choice(len(array), N_PICKED, replace=False)
    before = peak_mib()
    array[rows]
    print(json.dumps({"before": before, "peak": peak_mib()}))


def memory_figures(folder: Path, *, n_rows: int) -> list[Figure]:
    """Peak memory of a gather and of a commit, at a tenth of the rows and at all of them."""
    peaks: dict[str, list[float]] = {"gather": [], "commit": []}
    for rows in (max(N_PICKED, n_rows // 10), n_rows):
        described = write_ours(folder / "one", make_matrix(rows, "float16"))
        (folder / "one.json").write_text(json.dumps(described.to_dict()))
        told = run_child(Path(__file__), "--gather-once", str(folder / "one"), str(folder / "one.json"))
        peaks["gather"].append(json.loads(told)["peak"])
        shutil.rmtree(folder / "one")
        told = run_child(Path(__file__), "--commit-once", str(folder / "build"), str(rows))
        peaks["commit"].append(json.loads(told)["peak"])
        shutil.rmtree(folder / "build", ignore_errors=True)
    return [
        Figure(
            f"peak MiB of a {what}, {n_rows:,} rows against a tenth",
            all_rows,
            "MiB at a tenth",
            tenth,
            1.1,
            note="memory, not time",
        )
        for what, (tenth, all_rows) in peaks.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder without")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/store.json")
    parser.add_argument("--only", choices=["matrix", "build", "verify", "open", "memory"], action="append")
    parser.add_argument("--gather-once", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--commit-once", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.gather_once:
        gather_once(*asked.gather_once)
        return
    if asked.commit_once:
        commit_once(Path(asked.commit_once[0]), int(asked.commit_once[1]))
        return
    needed = 9 * asked.rows * DIM * 4
    root = asked.folder or Path(tempfile.gettempdir())
    if shutil.disk_usage(root).free < needed:
        raise SystemExit(f"needs {needed / 2**30:.0f} GiB free below {root}; give fewer --rows or another --folder")
    figures: list[Figure] = []

    def wanted(part: str) -> bool:
        return asked.only is None or part in asked.only

    def show(found: list[Figure]) -> None:
        for figure in found:
            print(figure.line(), flush=True)
        figures.extend(found)

    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="embedstore-bench-") as name:
        folder = Path(name)
        print(f"{'':82s} {'seconds':>10s} {'baseline':>10s} {'ratio':>7s} {'limit':>6s}")
        if wanted("matrix"):
            for dtype in ("float16", "float32"):
                show(matrix_figures(dtype, n_rows=asked.rows, rounds=asked.rounds, folder=folder))
        if wanted("build"):
            measured = build_figures(folder, n_rows=asked.rows, rounds=asked.rounds)
            show([Figure(*entry) for entry in measured])
        if wanted("verify"):
            show(verify_figures(folder, n_rows=asked.rows, rounds=asked.rounds))
        if wanted("open"):
            show(open_figures(folder, rounds=asked.rounds))
        if wanted("memory"):
            show(memory_figures(folder, n_rows=asked.rows))
    versions = {name: version_of(other.package) for name, other in FORMATS.items() if other.is_installed}
    document = {
        "question": __doc__.splitlines()[0],
        "machine": machine(),
        "rows": asked.rows,
        "rounds": asked.rounds,
        "versions": {"numpy": np.__version__, **versions},
        "figures": [figure.to_dict() for figure in figures],
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written: {asked.out}")


if __name__ == "__main__":
    main()
