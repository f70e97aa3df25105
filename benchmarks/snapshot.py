"""Export, import and verify 2 GB of vectors, against ``cp -r`` + ``sha256sum`` of the same files.

    python benchmarks/snapshot.py [--gigabytes 2] [--rounds 3] [--folder DIR] [--part export] [--part import] ...

The cases take turns in one run, so that what else the machine does falls on all of them. Prints a table and, where no
part was chosen, writes ``benchmarks/results/snapshot.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from timing import Case, files_of, load_average, machine, time_rounds

from embedstore.embedding_set import FAILURES_SCHEMA, FRAME_INDEX_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.history import Snapshot
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.snapshot.check import check_snapshot
from embedstore.snapshot.export import export_snapshot
from embedstore.snapshot.importing import import_snapshot
from embedstore.snapshot.plan import ExportRequest
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import rows_to_table

DIM = 768
N_SETS = 2
N_CLIPS = 10_000  # EchoNet-Dynamic has 10,030
LIMIT = 1.3


def make_store(path: Path, *, n_bytes: int, ids: str) -> Store:
    """A store of two sets of float16 vectors: clips, and as many frames of each as make ``n_bytes``."""
    n_clips = N_CLIPS
    n_frames = max(1, n_bytes // (2 * DIM * N_SETS * n_clips))
    store = Store.create(path)
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(n_clips)]
    clips = [f"MRN{4_000_000 + 7 * n}-echo" for n in range(n_clips)]
    rows = [
        {
            "clip_id": clip,
            "patient_id": f"P{n // 3:07d}-X",
            "path": f"2020/{clip}.dcm",
            "sha256": digest,
            "split": "train",
        }
        for n, (clip, digest) in enumerate(zip(clips, digests, strict=True))
    ]
    facts = DatasetFacts(name="mine", title="Mine", ids=ids, redistribution="yes")
    store.add_manifest(Manifest.from_rows(rows, dataset=facts, patient_ids="provided"))
    for number in range(N_SETS):
        spec = EncoderSpec(name=f"encoder{number}", clip_dim=DIM, frame_dim=DIM)
        index = [
            {
                "row": n,
                "clip_id": clip,
                "content_sha256": digest,
                "vector_key": hashlib.sha256(f"key {digest}".encode()).hexdigest(),
                "frame_row": n * n_frames,
                "n_frame_rows": n_frames,
            }
            for n, (clip, digest) in enumerate(zip(clips, digests, strict=True))
        ]
        draw = np.random.default_rng(number)
        with store.publishing():
            with SetWriter(store.layout.sets, dataset="mine", spec=spec) as writer:
                for kind, n_rows in (("clips", n_clips), ("frames", n_clips * n_frames)):
                    array = writer.array(kind, dim=DIM)
                    for start in range(0, n_rows, 8192):
                        shape = (min(8192, n_rows - start), DIM)
                        array.append(draw.standard_normal(shape, dtype=np.float32).astype(np.float16))
                frames = [{"clip_id": clip, "frame": number} for clip in clips for number in range(n_frames)]
                tables = {
                    "index.parquet": rows_to_table(index, INDEX_SCHEMA),
                    "frame_index.parquet": rows_to_table(frames, FRAME_INDEX_SCHEMA),
                    "failures.parquet": rows_to_table([], FAILURES_SCHEMA),
                }
                set_id = writer.finish(tables, provenance={})
            entry = store.entry_of(store.open_set(set_id))
            store.commit(partial(Snapshot.with_set, entry=entry), reason="benchmark")
    return store


PARTS = {
    "export": ("export, public ids", "export, pseudonyms"),
    "import": ("import",),
    "verify": ("sha256sum", "snapshot verify"),
}
COPY = "cp -r + sha256sum"
SYNCED = "cp -r + sha256sum + sync"


def sums(folder: Path) -> None:
    """``sha256sum`` of every file."""
    subprocess.run(["sha256sum", *files_of(folder)], check=True, stdout=subprocess.DEVNULL)


def make_cases(place: Path, stores: Mapping[str, Store]) -> dict[str, Case]:
    """Everything that is timed; what one made is gone, and on disk or not, before the next begins."""

    def fresh(name: str) -> None:
        shutil.rmtree(place / name, ignore_errors=True)
        subprocess.run(["sync"], check=True)

    def copy() -> None:
        subprocess.run(["cp", "-r", place / "sent", place / "copy"], check=True)
        sums(place / "copy")

    def copy_to_disk() -> None:
        copy()
        subprocess.run(["sync", "-f", place / "copy"], check=True)

    def export(ids: str) -> None:
        export_snapshot(stores[ids], ExportRequest(target=place / "out", recipient="b"))

    def take_in() -> None:
        import_snapshot(Store.create(place / "in"), place / "sent")

    return {
        COPY: Case(copy, before=lambda: fresh("copy")),
        SYNCED: Case(copy_to_disk, before=lambda: fresh("copy")),
        "export, public ids": Case(lambda: export("public"), before=lambda: fresh("out")),
        "export, pseudonyms": Case(lambda: export("private"), before=lambda: fresh("out")),
        "import": Case(take_in, before=lambda: fresh("in")),
        "sha256sum": Case(lambda: sums(place / "sent")),
        "snapshot verify": Case(lambda: check_snapshot(place / "sent")),
    }


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append", help="Time this alone; repeatable.")
    options = parser.parse_args()
    wanted = {name for part in options.part or PARTS for name in PARTS[part]} | {COPY, SYNCED}
    place = Path(tempfile.mkdtemp(prefix="embedstore-snapshot-", dir=options.folder))
    try:
        n_bytes = int(options.gigabytes * 1e9)
        kinds = ("private", "public") if options.part is None or "export" in options.part else ("public",)
        stores = {ids: make_store(place / ids, n_bytes=n_bytes, ids=ids) for ids in kinds}
        sent = export_snapshot(stores["public"], ExportRequest(target=place / "sent"))
        cases = {name: case for name, case in make_cases(place, stores).items() if name in wanted}
        seconds = time_rounds(cases, rounds=options.rounds)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    base = dict.fromkeys(cases, COPY) | dict.fromkeys(PARTS["verify"], "sha256sum")
    ratios = {name: seconds[name] / seconds[base[name]] for name in cases}
    disk = {name: seconds[name] / seconds[SYNCED] for name in cases if base[name] == COPY}
    print(f"{N_CLIPS} clips in {N_SETS} sets, private and public ids")
    print(f"{sent.snapshot.n_bytes / 1e9:.2f} GB in {len(sent.snapshot.files)} files, median of {options.rounds}")
    for name in cases:
        synced = f"   {disk[name]:.2f}x with sync" if name in disk else ""
        print(f"{name:<28} {seconds[name]:8.2f} s   {ratios[name]:.2f}x{synced}")
    print(f"load average {load_average()}, {machine()}")
    if options.part is None:
        result = {
            "machine": machine(),
            "load": load_average(),
            "bytes": sent.snapshot.n_bytes,
            "rounds": options.rounds,
            "limit": LIMIT,
            "seconds": seconds,
            "ratios": ratios,
            "ratios_with_sync": disk,
        }
        target = Path(__file__).parent / "results" / "snapshot.json"
        target.write_text(json.dumps(result, indent=1) + "\n")
    over = [name for name in (*PARTS["export"], *PARTS["import"]) if ratios.get(name, 0) > LIMIT]
    if over:
        print(f"above {LIMIT}x: {', '.join(over)}", file=sys.stderr)


if __name__ == "__main__":
    main()
