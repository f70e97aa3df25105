"""How fast is the store, against the plainest way of doing the same? Ratios of medians within one run.

    python benchmarks/store.py [--rows 1000000] [--rounds 3] [--part PART ...] [--folder DIR] [--out FILE]

Prints a table and writes JSON. All parts together take a quarter of an hour; each can be run by itself, and its
figures then take their place among those of the other parts in the result file. Baselines: ``np.save`` + fsync for
writing, ``readinto`` of the raw file for a full scan, a ``numpy.memmap`` of the raw file for a gather (with the same
cast where float32 is asked for), ``sha256sum`` for verify. *warm*: the file is in the page cache; *cold*: it was
dropped from there. Maps are made anew in every round unless a line says that they are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from other_formats import FORMATS, version_of
from store_build import build_figures, build_once, commit_once
from store_matrix import APPEND_ROWS, DIM, N_PICKED, make_matrix, matrix_figures, other_figures, write_ours
from timing import (
    Case,
    Figure,
    drop_cache,
    load_average,
    machine,
    merge_results,
    run_child,
    time_rounds,
    warm_cache,
    watched_memory,
)

import embedstore
from embedstore.embedding_set import FAILURES_SCHEMA, FRAME_INDEX_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.shards import ArrayDescription
from embedstore.snapshot.verify import verify_set
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import rows_to_table
from embedstore.vector_array import VectorArray

N_SETS = 200


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
    owners = np.repeat(np.array([row["clip_id"] for row in index], dtype=object), counts)
    numbers = np.arange(len(matrix)) - np.repeat(starts, counts)
    frames = {"clip_id": pa.array(owners, pa.string()), "frame": pa.array(numbers, pa.int64())}
    absent = {
        field.name: pa.nulls(len(matrix), field.type) for field in FRAME_INDEX_SCHEMA if field.name not in frames
    }
    frame_index = pa.table({**frames, **absent}).select(FRAME_INDEX_SCHEMA.names).cast(FRAME_INDEX_SCHEMA)
    with SetWriter(store.layout.sets, dataset="bench", spec=spec) as writer:
        writer.array("clips", dim=matrix.shape[1]).append(matrix[:n_clips])
        array = writer.array("frames", dim=matrix.shape[1])
        for start in range(0, len(matrix), APPEND_ROWS):
            array.append(matrix[start : start + APPEND_ROWS])
        tables = {
            "index.parquet": rows_to_table(index, INDEX_SCHEMA),
            "frame_index.parquet": frame_index,
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

    def read_and_hash() -> None:
        for name in names:
            with Path(name).open("rb", buffering=0) as handle:
                hashlib.file_digest(handle, "sha256")

    cases = {
        "hashlib": Case(read_and_hash),
        "sha256sum": Case(lambda: subprocess.run(["sha256sum", *names], check=True, stdout=subprocess.DEVNULL)),
        "full": Case(lambda: found.extend(verify_set(store.open_set(set_id), quick=False))),
        "quick": Case(lambda: found.extend(verify_set(store.open_set(set_id), quick=True))),
    }
    warm_cache(opened.folder)
    times = time_rounds(cases, rounds=rounds, warm_up=True)
    if not all(entry == 1 for entry in found):
        raise SystemExit("verify found problems in a sound set")
    shutil.rmtree(folder / "store")
    what = f"verify a set of {n_rows:,} frames x {DIM} float16"
    return [
        Figure(f"{what}, full", times["full"], "sha256sum", times["sha256sum"], 1.2),
        Figure(
            f"{what}, full", times["full"], "hashlib of the same files", times["hashlib"], note="SHA instructions"
        ),
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
    """In a process of its own: gather 10,000 rows a few times, print the peak memory."""
    array = VectorArray(folder, ArrayDescription.from_dict(json.loads(described.read_text())))
    told: dict[str, float] = {}
    rng = np.random.default_rng(3)
    with watched_memory(told):
        for _ in range(10):
            array[rng.integers(0, len(array), N_PICKED)]
    print(json.dumps(told))


def memory_figures(folder: Path, *, n_rows: int) -> list[Figure]:
    """Peak memory of a gather, a commit and a build without decoding, at a tenth of the rows and at all of them.

    A build is looked at by itself, its vectors drawn, and beside a small network that has run, as every build is.
    """
    children = {
        "commit": ["--commit-once"],
        "build without a model": ["--build-once"],
        "build beside MobileNetV2": ["--beside-model", "--build-once"],
    }
    peaks: dict[str, list[dict[str, float]]] = {"gather": [], **{what: [] for what in children}}
    for rows in (max(N_PICKED, n_rows // 10), n_rows):
        described = write_ours(folder / "one", make_matrix(rows, "float16"))
        (folder / "one.json").write_text(json.dumps(described.to_dict()))
        told = run_child(Path(__file__), "--gather-once", str(folder / "one"), str(folder / "one.json"))
        peaks["gather"].append(json.loads(told))
        shutil.rmtree(folder / "one")
        for what, options in children.items():
            told = run_child(Path(__file__), *options, str(folder / "child"), str(rows))
            peaks[what].append(json.loads(told))
            shutil.rmtree(folder / "child")
    return [
        Figure(
            f"peak {kind} MiB of a {what}, {n_rows:,} rows against a tenth",
            all_rows[kind],
            "MiB at a tenth",
            tenth[kind],
            1.1 if kind == "private" else None,
            note="memory, not time",
        )
        for what, (tenth, all_rows) in peaks.items()
        for kind in ("private", "resident")
    ]


PARTS: dict[str, Callable[..., Iterable[Figure]]] = {
    "float16": partial(matrix_figures, dtype="float16"),
    "float32": partial(matrix_figures, dtype="float32"),
    "others-float16": partial(other_figures, dtype="float16"),
    "others-float32": partial(other_figures, dtype="float32"),
    "build": lambda folder, **options: [Figure(*entry) for entry in build_figures(folder, **options)],
    "verify": verify_figures,
    "open": lambda folder, *, n_rows, rounds: open_figures(folder, rounds=rounds),
    "memory": lambda folder, *, n_rows, rounds: memory_figures(folder, n_rows=n_rows),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder without")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/store.json")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="may be repeated; all without")
    parser.add_argument("--gather-once", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--commit-once", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--build-once", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--beside-model", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.gather_once:
        gather_once(*asked.gather_once)
        return
    if asked.commit_once:
        commit_once(Path(asked.commit_once[0]), int(asked.commit_once[1]))
        return
    if asked.build_once:
        build_once(Path(asked.build_once[0]), int(asked.build_once[1]), beside_model=asked.beside_model)
        return
    root = asked.folder or Path(tempfile.gettempdir())
    needed = (2 * asked.rounds + 4) * asked.rows * DIM * 4
    if shutil.disk_usage(root).free < needed:
        raise SystemExit(f"needs {needed / 2**30:.0f} GiB free below {root}; give fewer --rows or another --folder")
    versions = {name: version_of(other.package) for name, other in FORMATS.items() if other.is_installed}
    document: dict[str, Any] = {
        "question": __doc__.splitlines()[0],
        "machine": machine(),
        "parts": list(asked.part or PARTS),
        "load_averages": [load_average()],
        "rows": asked.rows,
        "rounds": asked.rounds,
        "versions": {"numpy": np.__version__, **versions},
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="embedstore-bench-") as name:
        print(f"{'':90s} {'seconds':>10s} {'baseline':>10s} {'ratio':>7s} {'limit':>6s}")
        for part in asked.part or PARTS:
            for figure in PARTS[part](Path(name), n_rows=asked.rows, rounds=asked.rounds):
                print(figure.line(), flush=True)
                figures.append(figure)
                # Written at once: a run that is cut short keeps what it has measured.
                merged = merge_results(asked.out, document, figures)
                asked.out.write_text(json.dumps(merged, indent=1) + "\n")
            document["load_averages"].append(load_average())
            print(f"load average {document['load_averages'][-1]} on {machine()['cores']} cores", flush=True)
    merged = merge_results(asked.out, document, figures)
    asked.out.write_text(json.dumps(merged, indent=1) + "\n")
    print(f"written: {asked.out}")


if __name__ == "__main__":
    main()
