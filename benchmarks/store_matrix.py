"""Part of `store.py`: one matrix of 768 columns written, scanned and gathered, ours against a raw .npy file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from other_formats import FORMATS
from timing import Case, Figure, bring_to_disk, drop_cache, regain_memory, time_rounds, warm_cache

from embedstore.shards import ArrayDescription, ArrayWriter
from embedstore.vector_array import VectorArray

DIM = 768
N_PICKED = 10_000
# Rows that are handed to the writer at once: what a commit hands over, 256 clips of 16 frames.
APPEND_ROWS = 4096
READ_BYTES = 64 << 20


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
    """The raw .npy file of a matrix, which the baselines read."""

    def __init__(self, path: Path, matrix: Any) -> None:
        self.path, self.shape, self.dtype = path, matrix.shape, matrix.dtype
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


def do_nothing() -> None:
    """Before a case that needs no preparation."""


class FreshPaths:
    """A new path for every write: deleting is left to the end, since a disk that discards is slow meanwhile."""

    def __init__(self, folder: Path, name: str, *, n_bytes: int) -> None:
        self._folder, self._name, self._n_bytes, self._number = folder, name, n_bytes, 0

    @property
    def path(self) -> Path:
        """The path of this round."""
        return self._folder / f"{self._name}-{self._number}"

    def next(self) -> None:
        """Go on to the next path; what lies under this one leaves the page cache."""
        if self.path.exists():
            drop_cache(self.path)
        self._number += 1
        regain_memory(self._n_bytes)


def forget(path: Path) -> None:
    """Remove a file or a folder that may not be there."""
    shutil.rmtree(path, ignore_errors=True)
    if path.is_file():
        path.unlink()


def matrix_figures(folder: Path, *, dtype: str, n_rows: int, rounds: int) -> Iterator[Figure]:
    """Writing, scanning and gathering one matrix, ours against a raw file."""
    matrix = make_matrix(n_rows, dtype)
    raw_paths, ours_paths = (FreshPaths(folder, name, n_bytes=matrix.nbytes) for name in ("raw", "ours"))
    written: list[ArrayDescription] = []
    cases = {
        "np.save": Case(lambda: save_raw(raw_paths.path, matrix), raw_paths.next),
        "ours": Case(lambda: written.append(write_ours(ours_paths.path, matrix)), ours_paths.next),
    }
    times = time_rounds(cases, rounds=rounds, warm_up=True)
    size = f"{n_rows:,} x {DIM} {dtype}"
    yield Figure(f"write {size}, hashed", times["ours"], "np.save + fsync", times["np.save"], 2.0)
    raw = RawFile(raw_paths.path, matrix)
    ours_path = ours_paths.path
    yield from read_figures(raw, lambda: VectorArray(ours_path, written[-1]), size, rounds, ours_path)
    for path in folder.iterdir():
        forget(path)


def other_figures(folder: Path, *, dtype: str, n_rows: int, rounds: int) -> Iterator[Figure]:
    """The same in other formats, and in the raw file that they are compared with."""
    matrix = make_matrix(n_rows, dtype)
    paths = FreshPaths(folder, "raw", n_bytes=matrix.nbytes)
    base = time_rounds(
        {"np.save": Case(lambda: save_raw(paths.path, matrix), paths.next)}, rounds=rounds, warm_up=True
    )
    raw = RawFile(paths.path, matrix)
    written, figures = write_others(matrix, folder, base["np.save"])
    yield from figures
    yield from other_reads(raw, written, f"{n_rows:,} x {DIM} {dtype}", rounds=rounds)
    for path in folder.iterdir():
        forget(path)


def read_figures(
    raw: RawFile, ours: Callable[[], VectorArray], size: str, rounds: int, ours_path: Path
) -> Iterator[Figure]:
    """Scans and gathers, warm and cold, in the stored dtype and as float32; each gather picks other rows."""
    rng = np.random.default_rng(1)
    n_picked = min(N_PICKED, raw.shape[0])
    picked = [rng.choice(raw.shape[0], n_picked, replace=False)]

    def renew() -> None:
        picked[0] = rng.choice(raw.shape[0], n_picked, replace=False)

    def cold(path: Path) -> Callable[[], None]:
        return lambda: drop_cache(path)

    def with_memory(first: Callable[[], None]) -> Callable[[], None]:
        """Memory for the file's pages, and for rows of float32."""

        def prepare() -> None:
            first()
            regain_memory(raw.shape[0] * raw.shape[1] * (4 + raw.dtype.itemsize))

        return prepare

    def renewed(first: Callable[[], None]) -> Callable[[], None]:
        def prepare() -> None:
            first()
            renew()

        return prepare

    def view(is_raw: bool) -> VectorArray:
        return ours().raw if is_raw else ours()

    as_float32 = [("float32", False)] if raw.dtype != np.float32 else []
    for name, is_raw in [(f"{raw.dtype.name} (.raw)", True), *as_float32]:

        def all_rows(is_raw: bool = is_raw) -> Any:
            return view(is_raw)[:]

        def picked_rows(is_raw: bool = is_raw) -> Any:
            return view(is_raw)[picked[0]]

        def map_gather(is_raw: bool = is_raw) -> Any:
            rows = raw.map()[picked[0]]
            return np.asarray(rows) if is_raw else rows.astype(np.float32)

        scan = raw.scan if is_raw else raw.scan_float32
        for heat in ("warm", "cold"):
            before = {"raw": cold(raw.path), "ours": cold(ours_path)} if heat == "cold" else {}
            for path in (raw.path, ours_path):
                warm_cache(path)
            times = time_rounds(
                {
                    "raw": Case(scan, with_memory(before.get("raw", do_nothing))),
                    "ours": Case(all_rows, with_memory(before.get("ours", do_nothing))),
                },
                rounds=rounds,
                warm_up=True,
            )
            what = f"scan {size} as {name}, {heat}"
            yield Figure(what, times["ours"], "readinto of the raw file", times["raw"], 1.3)
            for path in (raw.path, ours_path):
                warm_cache(path)
            times = time_rounds(
                {
                    "raw": Case(map_gather, renewed(before.get("raw", do_nothing))),
                    "ours": Case(picked_rows, renewed(before.get("ours", do_nothing))),
                },
                rounds=max(rounds, 15 if heat == "warm" else 5),
                warm_up=True,
            )
            limit = 1.3 if heat == "warm" else 1.5
            what = f"gather {n_picked:,} rows of {size} as {name}, {heat}"
            yield Figure(what, times["ours"], "numpy memmap", times["raw"], limit)
        yield kept_maps(raw, view(is_raw), is_raw, (picked, renew), f"{size} as {name}")


def kept_maps(
    raw: RawFile, kept: VectorArray, is_raw: bool, draw: tuple[list[Any], Callable[[], None]], what: str
) -> Figure:
    """A gather where both sides keep their maps from one gather to the next, as a training loop does."""
    picked, renew = draw
    for path in (raw.path, kept.folder):
        warm_cache(path)
    mapped = raw.map()

    def map_gather() -> Any:
        return np.asarray(mapped[picked[0]]) if is_raw else mapped[picked[0]].astype(np.float32)

    cases = {"raw": Case(map_gather, renew), "ours": Case(lambda: kept[picked[0]], renew)}
    times = time_rounds(cases, rounds=25, warm_up=True)
    what = f"gather {len(picked[0]):,} rows of {what}, warm, map kept"
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


def other_reads(raw: RawFile, others: dict[str, Path], size: str, *, rounds: int) -> Iterator[Figure]:
    """Scan and gather in every other format, against the baseline of the same rounds."""
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
                    {"raw": Case(base, before(raw.path)), "other": Case(ours, before(path))},
                    rounds=rounds,
                )
                yield Figure(f"{what} {size}, {heat}: {name}", times["other"], against, times["raw"])
