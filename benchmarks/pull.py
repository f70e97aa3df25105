"""Pull a snapshot over loopback HTTP against a plain parallel download of the same files, and a part of it.

The plain download asks for the same files with the same number of threads and writes what comes; the pull also
hashes, bounds and fsyncs. Two baselines are printed: without and with an fsync of each file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from timing import Case, Figure, machine, time_rounds

from embedstore.embedding_set import FAILURES_SCHEMA, FRAME_INDEX_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.export import export_snapshot
from embedstore.snapshot.plan import ExportRequest
from embedstore.snapshot.pull import pull_folder
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


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sent = make_snapshot(Path(scratch), n_clips=chosen.clips)
        snapshot = SentSnapshot.read(sent)
        paths = [file.path for file in snapshot.files]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(sent)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    urllib.request.urlopen(f"{url}/{DOCUMENT_FILE}").close()
                    break
                except OSError:
                    time.sleep(0.05)
            got = Path(scratch) / "got"
            fresh = lambda: shutil.rmtree(got, ignore_errors=True)  # noqa: E731
            cases = {
                "plain": Case(lambda: plain_download(url, paths, got, fsync=False), before=fresh),
                "plain, fsync": Case(lambda: plain_download(url, paths, got, fsync=True), before=fresh),
                "pull": Case(lambda: pull_folder(open_remote(url), got), before=fresh),
            }
            seconds = time_rounds(cases, rounds=chosen.rounds)
            fresh()
            part = pull_folder(open_remote(url), got, selection=Selection(encoders=("encoder-3",)))
        finally:
            server.terminate()
            server.wait()
        moved = sum(path.stat().st_size for path in got.rglob("*") if path.is_file())
        (wanted,) = [entry for entry in snapshot.sets if entry.encoder == "encoder-3"]
        own = sum(file.size for file in snapshot.files if file.path.startswith(f"{wanted.folder}/"))
    figures = [
        Figure("pull", seconds["pull"], "plain download", seconds["plain"], LIMIT_TIME),
        Figure("pull", seconds["pull"], "plain download with fsync", seconds["plain, fsync"], LIMIT_TIME),
    ]
    print(f"{snapshot.n_bytes / 1e6:.0f} MB in {len(paths)} files, {part.n_files} of them one encoder's")
    for figure in figures:
        print(f"{figure.baseline:28s} {figure.line()}")
    verdict = "ok" if moved <= LIMIT_BYTES * own else "MISSED"
    print(f"a part moved {moved:,} bytes, its set has {own:,}: {moved / own:.4f} (limit {LIMIT_BYTES}) {verdict}")
    if chosen.out is not None:
        document = {"machine": machine(), "seconds": seconds, "figures": [figure.to_dict() for figure in figures]}
        document |= {"part": {"bytes_moved": moved, "bytes_of_the_set": own, "limit": LIMIT_BYTES}}
        chosen.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
