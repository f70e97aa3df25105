"""Pull a snapshot over loopback HTTP against plain parallel downloads of the same files, and a part of it.

    python benchmarks/pull.py [--clips 10000] [--rounds 5] [--out benchmarks/results/pull.json]

The same server (``http.server``), the same files, as many connections at a time. The plain downloads write what comes
and neither hash nor bound it: ``curl --parallel``, which does not fsync; and eight Python threads that copy an answer
to a file, without and with an fsync of each file. The pull hashes and fsyncs each file. Server and client share the
machine's cores, so on two of them every second of hashing counts; over a network it hides behind the line.
The last line of times is the whole command: pull, inspection in a child process and import into a store.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from timing import Case, Figure, machine, time_rounds

from embedstore.embedding_set import FAILURES_SCHEMA, FRAME_INDEX_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.export import export_snapshot
from embedstore.snapshot.plan import ExportRequest
from embedstore.snapshot.pull import pull_folder, pull_snapshot
from embedstore.snapshot.remotes import open_remote
from embedstore.snapshot.selection import Selection
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import rows_to_table

N_ENCODERS, FRAMES_PER_CLIP, DIM = 6, 16, 512
N_PARALLEL = 8
LIMIT_TIME, LIMIT_BYTES = 1.2, 1.02


def make_snapshot(folder: Path, *, n_clips: int) -> Path:
    """Write six sets of random vectors and export them."""
    store = Store.create(folder / "store")
    ids = [f"clip{number:06d}" for number in range(n_clips)]
    rows = [{"clip_id": clip_id, "patient_id": clip_id, "split": "train"} for clip_id in ids]
    facts = DatasetFacts(name="random", title="random vectors", ids="public", redistribution="yes", synthetic=True)
    store.add_manifest(Manifest.from_rows(rows, dataset=facts))
    for number in range(N_ENCODERS):
        spec = EncoderSpec(name=f"encoder-{number}", clip_dim=DIM, frame_dim=DIM)
        rng = np.random.default_rng(number)
        with SetWriter(store.layout.sets, dataset="random", spec=spec) as writer:
            clips, frames = writer.array("clips", dim=DIM), writer.array("frames", dim=DIM)
            index, frame_index = [], []
            for row, clip_id in enumerate(ids):
                place = {"frame_row": FRAMES_PER_CLIP * row, "n_frame_rows": FRAMES_PER_CLIP}
                index.append({"row": row, "clip_id": clip_id, "vector_key": f"{row:064x}", **place})
                frame_index += [{"clip_id": clip_id, "frame": frame} for frame in range(FRAMES_PER_CLIP)]
            for _ in range(0, n_clips, 1000):
                clips.append(rng.standard_normal((min(1000, n_clips), DIM), dtype=np.float32).astype(np.float16))
                many = rng.standard_normal((min(1000, n_clips) * FRAMES_PER_CLIP, DIM), dtype=np.float32)
                frames.append(many.astype(np.float16))
            tables = {
                "index.parquet": rows_to_table(index, INDEX_SCHEMA),
                "frame_index.parquet": rows_to_table(frame_index, FRAME_INDEX_SCHEMA),
                "failures.parquet": rows_to_table([], FAILURES_SCHEMA),
            }
            set_id = writer.finish(tables, provenance={})
        with store.publishing():
            entry = store.entry_of(store.open_set(set_id))
            store.commit(lambda head, entry=entry: head.with_set(entry), reason="benchmark")
    export_snapshot(store, ExportRequest(target=folder / "sent", recipient="benchmark"))
    return folder / "sent"


def plain_download(url: str, paths: list[str], folder: Path, *, fsync: bool) -> None:
    """Fetch files with as many threads, and nothing else."""

    def fetch(path: str) -> None:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(f"{url}/{path}") as answer, target.open("wb") as handle:
            shutil.copyfileobj(answer, handle, 1 << 20)
            if fsync:
                handle.flush()
                os.fsync(handle.fileno())

    with ThreadPoolExecutor(N_PARALLEL) as pool:
        list(pool.map(fetch, paths))


def curl_download(url: str, paths: list[str], folder: Path) -> None:
    """Fetch files with curl, as many at a time."""
    command = ["curl", "--silent", "--show-error", "--parallel", "--parallel-max", str(N_PARALLEL), "--create-dirs"]
    for path in paths:
        command += [f"{url}/{path}", "--output", str(folder / path)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def pull_and_import(url: str, folder: Path) -> None:
    """Fetch, inspect and import into a new store."""
    pull_snapshot(Store.create(folder), open_remote(url))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder in another process, with what Python has for that."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{url}/{DOCUMENT_FILE}").close()
                break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sent, got = make_snapshot(Path(scratch), n_clips=chosen.clips), Path(scratch) / "got"
        snapshot = SentSnapshot.read(sent)
        paths = [file.path for file in snapshot.files]

        def fresh() -> None:
            shutil.rmtree(got, ignore_errors=True)
            os.sync()  # what an earlier case left to write is not this one's

        with serving(sent) as url:
            runs = {
                "curl": lambda: curl_download(url, paths, got),
                "threads": lambda: plain_download(url, paths, got, fsync=False),
                "threads, fsync": lambda: plain_download(url, paths, got, fsync=True),
                "pull": lambda: pull_folder(open_remote(url), got),
                "pull and import": lambda: pull_and_import(url, got),
            }
            if shutil.which("curl") is None:
                del runs["curl"]
            seconds = time_rounds({name: Case(run, before=fresh) for name, run in runs.items()}, rounds=chosen.rounds)
            fresh()
            part = pull_folder(open_remote(url), got, selection=Selection(encoders=("encoder-3",)))
        moved = sum(path.stat().st_size for path in got.rglob("*") if path.is_file())
        (wanted,) = [entry for entry in snapshot.sets if entry.encoder == "encoder-3"]
        own = sum(file.size for file in snapshot.files if file.path.startswith(f"{wanted.folder}/"))
    figures = [
        Figure("pull against curl --parallel", seconds["pull"], "curl", seconds.get("curl"), LIMIT_TIME),
        Figure("pull against threads", seconds["pull"], "threads", seconds["threads"], LIMIT_TIME),
        Figure(
            "pull against threads, fsync", seconds["pull"], "threads, fsync", seconds["threads, fsync"], LIMIT_TIME
        ),
        Figure("pull and import against pull", seconds["pull and import"], "pull", seconds["pull"]),
    ]
    print(f"{snapshot.n_bytes / 1e6:.0f} MB in {len(paths)} files, {part.n_files} of them one encoder's")
    print(f"SHA-256 of so many bytes on one core: {hash_seconds(snapshot.n_bytes):.2f} s")
    for figure in figures:
        print(figure.line())
    verdict = "ok" if moved <= LIMIT_BYTES * own else "MISSED"
    print(f"a part moved {moved:,} bytes, its set has {own:,}: {moved / own:.4f} (limit {LIMIT_BYTES}) {verdict}")
    if chosen.out is not None:
        document = {"machine": machine(), "bytes": snapshot.n_bytes, "files": len(paths), "seconds": seconds}
        document |= {"sha256_seconds": hash_seconds(snapshot.n_bytes), "rounds": chosen.rounds}
        document |= {"figures": [figure.to_dict() for figure in figures]}
        document |= {"part": {"bytes_moved": moved, "bytes_of_the_set": own, "limit": LIMIT_BYTES}}
        chosen.out.write_text(json.dumps(document, indent=2) + "\n")


def hash_seconds(n_bytes: int) -> float:
    """Seconds that one core hashes so many bytes for, extrapolated from 256 MiB."""
    block, digest = bytes(1 << 20), hashlib.sha256()
    began = time.perf_counter()
    for _ in range(256):
        digest.update(block)
    return (time.perf_counter() - began) * n_bytes / (256 << 20)


if __name__ == "__main__":
    main()
