"""Pull a snapshot over loopback HTTP against plain parallel downloads of the same files, and a part of it.

    python benchmarks/pull.py [--clips 10000] [--rounds 5] [--out benchmarks/results/pull.json]

The same server (``http.server``), the same files, as many connections at a time. What a pull is held against:

- ``curl``: ``curl --parallel``, which neither hashes nor fsyncs; and the same, then ``sha256sum -c``, as a lab would
  do that may not trust the line (an easy mark where sha256sum does not use the processor's SHA instructions);
- ``threads``: eight Python threads that copy an answer to a file, nothing else: the strictest baseline;
- the same with an fsync of each file; with SHA-256 of what passes; and with both, the least that a pull does.

Server and client share the machine's cores, so each second of hashing counts where the download alone keeps them
busy; over a network it hides behind the line. How busy they were, and how long hashing alone takes on all cores, is
in the table: where a download leaves no core idle, whoever hashes takes as long as the two one after the other.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from timing import Case, Figure, machine, regain_memory, time_rounds

from embedstore.embedding_set import FAILURES_SCHEMA, FRAME_INDEX_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.files import hash_file
from embedstore.history import Snapshot
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.snapshot.describe import DOCUMENT_FILE, SIDE_FILES, SUMS_FILE, SentSnapshot
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
SERVER = """
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

ThreadingHTTPServer.request_queue_size = 128
handler = partial(SimpleHTTPRequestHandler, directory=sys.argv[2])
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
"""


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
            store.commit(partial(Snapshot.with_set, entry=entry), reason="benchmark")
    export_snapshot(store, ExportRequest(target=folder / "sent", recipient="benchmark"))
    return folder / "sent"


def plain_download(url: str, paths: list[str], folder: Path, *, fsync: bool = False, sha256: bool = False) -> None:
    """Fetch files with as many threads, and nothing else but what is asked for."""

    def fetch(path: str) -> None:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(f"{url}/{path}") as answer, target.open("wb") as handle:
            if sha256:
                digest = hashlib.sha256()
                while block := answer.read(1 << 20):
                    handle.write(block)
                    digest.update(block)
            else:
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


def curl_and_check(url: str, paths: list[str], folder: Path) -> None:
    """Fetch files with curl and check them with coreutils."""
    curl_download(url, [*paths, *SIDE_FILES, DOCUMENT_FILE], folder)
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", SUMS_FILE], cwd=folder, check=True)


def hash_files(folder: Path, paths: list[str]) -> None:
    """Hash files that are in memory already, with as many threads as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda path: hash_file(folder / path), paths))


def pull_and_import(url: str, folder: Path) -> None:
    """Fetch, inspect and import into a new store."""
    pull_snapshot(Store.create(folder), open_remote(url))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder in another process, with what Python has for that.

    Its queue of five places is made longer: whoever finds it full, of eight that come at once, waits for a second.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port), str(folder)]
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


class Busy:
    """How busy all cores were while something ran; Linux only."""

    def __init__(self) -> None:
        self._ticks: dict[str, list[tuple[int, int]]] = {}

    @staticmethod
    def _now() -> tuple[int, int]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without those that were idle or waited for the disk

    def watched(self, name: str, run: Callable[[], object]) -> Callable[[], None]:
        """Return ``run``, watched."""

        def watching() -> None:
            before = self._now()
            run()
            after = self._now()
            self._ticks.setdefault(name, []).append((after[0] - before[0], after[1] - before[1]))

        return watching

    def shares(self) -> dict[str, float]:
        """Of the cores' time, how much was used, over all rounds."""
        return {name: sum(b for b, _ in found) / sum(a for _, a in found) for name, found in self._ticks.items()}


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
            regain_memory(2 * snapshot.n_bytes)

        with serving(sent) as url:
            runs = {
                "curl": lambda: curl_download(url, paths, got),
                "curl, then sha256sum -c": lambda: curl_and_check(url, paths, got),
                "threads": lambda: plain_download(url, paths, got),
                "threads, fsync": lambda: plain_download(url, paths, got, fsync=True),
                "threads, SHA-256": lambda: plain_download(url, paths, got, sha256=True),
                "threads, SHA-256, fsync": lambda: plain_download(url, paths, got, sha256=True, fsync=True),
                "SHA-256 alone": lambda: hash_files(sent, paths),
                "pull": lambda: pull_folder(open_remote(url), got),
                "pull and import": lambda: pull_and_import(url, got),
            }
            if shutil.which("curl") is None:
                del runs["curl"], runs["curl, then sha256sum -c"]
            busy = Busy()
            cases = {name: Case(busy.watched(name, run), before=fresh) for name, run in runs.items()}
            seconds = time_rounds(cases, rounds=chosen.rounds, warm_up=True)
            fresh()
            part = pull_folder(open_remote(url), got, selection=Selection(encoders=("encoder-3",)))
        moved = sum(path.stat().st_size for path in got.rglob("*") if path.is_file())
        (wanted,) = [entry for entry in snapshot.sets if entry.encoder == "encoder-3"]
        own = sum(file.size for file in snapshot.files if file.path.startswith(f"{wanted.folder}/"))
    figures = [
        Figure(f"pull against {name}", seconds["pull"], name, seconds[name], LIMIT_TIME)
        for name in seconds
        if name.startswith(("curl", "threads"))
    ]
    both = seconds["threads"] + seconds["SHA-256 alone"]
    figures += [
        Figure("download alone and hashing alone, one after the other", both, "threads", seconds["threads"]),
        Figure("pull against download alone and hashing alone", seconds["pull"], "the two", both),
        Figure("pull and import against pull", seconds["pull and import"], "pull", seconds["pull"]),
    ]
    shares = busy.shares()
    print(f"{snapshot.n_bytes / 1e6:.0f} MB in {len(paths)} files, {part.n_files} of them one encoder's")
    for name, share in shares.items():
        print(f"{name:26s} {seconds[name]:7.3f} s, the cores {share:4.0%} busy")
    for figure in figures:
        print(figure.line())
    verdict = "ok" if moved <= LIMIT_BYTES * own else "MISSED"
    print(f"a part moved {moved:,} bytes, its set has {own:,}: {moved / own:.4f} (limit {LIMIT_BYTES}) {verdict}")
    if chosen.out is not None:
        document = {"machine": machine(), "bytes": snapshot.n_bytes, "files": len(paths), "seconds": seconds}
        document |= {"share_of_cores_busy": shares, "rounds": chosen.rounds}
        document |= {"figures": [figure.to_dict() for figure in figures]}
        document |= {"part": {"bytes_moved": moved, "bytes_of_the_set": own, "limit": LIMIT_BYTES}}
        chosen.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
