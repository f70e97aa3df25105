"""Make the golden store of format 1, and what stands in it as plain JSON. See `docs/format.md`.

    python tests/data/make_golden_store.py FOLDER

writes ``FOLDER/store`` and ``FOLDER/expected.json``. The copy in ``tests/data/stores/v1`` is never changed: this
script shows how it was made, and a test runs it again and compares.

The expected values are written from the numbers below, never from what a reader of the store returns. Every vector
follows from its row and column by whole-number arithmetic, so that no random generator has to stay the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from embedstore import shards
from embedstore.embedding_set import TABLE_SCHEMAS, EmbeddingSet, SetWriter
from embedstore.errors import MediaError
from embedstore.manifest import DatasetFacts, FieldFacts, Manifest, ManifestField
from embedstore.snapshot.references import add_forgotten
from embedstore.snapshot.tags import create_tag, delete_tag
from embedstore.spec import EncoderSpec, FrameSampling, ResolvedFrames
from embedstore.store import Store
from embedstore.tables import rows_to_table

# Small shards, so that a store of a few KiB has arrays of several; readers take the number from the description.
SHARD_ROWS = 512
# Rows of each array and table that stand in the expected values; a digest stands for all.
SHOWN = 12
PROVENANCE = {"versions": {"embedstore": "0.1.0"}, "device": "none", "wall_seconds": 1e-05, "note": "made by hand"}
LABEL_FIELDS = (
    ManifestField(name="lvef_pct", role="label", kind="number", unit="%", plausible=(1.0, 100.0), source="made up"),
    ManifestField(name="is_paced", role="label", kind="boolean"),
    ManifestField(name="n_beats", role="subgroup", kind="integer"),
)

FRAMES = EncoderSpec(
    name="golden-frames",
    weights_sha256=hashlib.sha256(b"golden weights").hexdigest(),
    preprocessing={"resize": [8, 8], "mean": [0.485, 1e-05, -0.0], "std": [1.0, 1e16, 0.1], "crop": None},
    sampling=FrameSampling("all"),
    clip_dim=6,
    frame_dim=6,
)
KEY_FRAMES = EncoderSpec(
    name="golden-frames",
    variant="ed",
    weights_sha256=FRAMES.weights_sha256,
    preprocessing=FRAMES.preprocessing,
    sampling=FrameSampling("keyframe:ed"),
    clip_dim=6,
    frame_dim=6,
)
WINDOWS = EncoderSpec(
    name="golden-windows",
    unit="clip",
    preprocessing={"näme": "Größe"},
    preprocessing_revision=3,
    sampling=FrameSampling("stride:2x8", n_windows=3, padding="zero"),
    pooling="mean",
    precision="bf16",
    dtype="float32",
    clip_dim=5,
    frame_dim=3,
)
BROUGHT = EncoderSpec(
    name="golden-brought",
    sampling=None,
    pooling="unknown",
    clip_dim=4,
    frame_dim=2,
    unknown=("weights_sha256", "sampling", "pooling", "preprocessing"),
)


def compact_json(value: Any) -> bytes:
    """JSON without white space, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def content_digest(clip_id: str) -> str:
    """Stands for the digest of a media file that there never was."""
    return hashlib.sha256(f"golden {clip_id}".encode()).hexdigest()


def vectors(n_rows: int, dim: int, *, tag: int, dtype: str) -> np.ndarray:
    """(n_rows, dim) numbers that float16 holds exactly; rows 256 to 511 are zero, row 3 has the extremes."""
    row, column = np.mgrid[:n_rows, :dim]
    values = ((row * 37 + column * 101 + tag * 911) % 2048 - 1024) / 512
    values[256:512] = 0.0
    if n_rows > 3:
        extremes = [65504.0, -65504.0, 2.0**-24, -0.0, 2.0**-14, 1.0]
        values[3] = extremes[:dim]
    if dtype == "float32":
        values = values * (1 + 2.0**-20)
    return values.astype(dtype)


@dataclass
class GoldenSet:
    """One set as plain rows: what is written, and what is expected."""

    dataset: str
    spec: EncoderSpec
    tag: int
    index: list[dict[str, Any]] = field(default_factory=list)
    frames: list[dict[str, Any]] | None = None
    windows: list[dict[str, Any]] | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Rows by file name."""
        found = {"index.parquet": self.index, "failures.parquet": self.failures}
        if self.frames is not None:
            found["frame_index.parquet"] = self.frames
        if self.windows is not None:
            found["window_index.parquet"] = self.windows
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """Vectors by kind."""
        shapes = {"clips": (len(self.index), self.spec.clip_dim)}
        if self.frames is not None:
            shapes["frames"] = (len(self.frames), self.spec.frame_dim or 0)
        if self.windows is not None:
            shapes["windows"] = (len(self.windows), self.spec.clip_dim)
        order = ("clips", "frames", "windows")
        return {
            kind: vectors(*shape, tag=self.tag + 10 * order.index(kind), dtype=self.spec.dtype)
            for kind, shape in shapes.items()
        }


# -- what is in it ------------------------------------------------------------------------------------------------


def loop_rows(n_clips: int, *, fixed: bool) -> list[dict[str, Any]]:
    """Rows of the manifest of loops; ``fixed`` corrects a label and a split."""
    rows = []
    for clip in range(n_clips):
        clip_id = f"loop-{clip:02d}"
        split = ("train", "val", "test", None)[clip // 2 % 4]
        rows.append(
            {
                "clip_id": clip_id,
                "patient_id": f"p{clip // 2:02d}" if clip != 7 else None,
                "study_id": f"p{clip // 2:02d}/s{clip % 2}",
                "path": f"loops/{clip_id}.avi",
                "sha256": content_digest(clip_id),
                "n_frames": 9 if clip == 5 else 30,
                "fps": [30.0, 29.97, 50.0][clip % 3],
                "height": 112,
                "width": 112,
                "view": ["a4c", "a2c", "plax"][clip % 3],
                "split": None if fixed and clip == 1 else split,
                # The same letter in its decomposed form: digests see the composed one.
                "site": "Zu\u0308rich" if clip % 2 else "Z\u00fcrich",
                "spacing_x_mm": 0.1 + clip / 64,
                "lvef_pct": (55.5 if fixed else 54.0) if clip == 0 else 30.0 + clip,
                "is_paced": None if clip == 2 else clip % 5 == 0,
                "n_beats": clip % 4,
            }
        )
    rows[6]["patient_id"] = None
    return rows


def loop_key_frames(n_clips: int) -> list[tuple[str, str, int]]:
    """Two roles in every second clip."""
    return [
        (f"loop-{clip:02d}", role, frame + clip % 3)
        for clip in range(0, n_clips, 2)
        for role, frame in (("es", 2), ("ed", 20), ("ed", 3))
    ]


def loops(n_clips: int, *, fixed: bool = False) -> Manifest:
    """The manifest of the data set ``golden-loops``."""
    facts = DatasetFacts(
        name="golden-loops",
        title="Loops that never were",
        licence="CC0-1.0",
        redistribution="yes",
        ids="public",
        synthetic=True,
        fields={"EF": FieldFacts(role="label", kind="number", unit="%", plausible=(1, 100))},
        traps=("None: it is made up.",),
    )
    return Manifest.from_rows(
        loop_rows(n_clips, fixed=fixed),
        dataset=facts,
        fields=LABEL_FIELDS,
        key_frames=loop_key_frames(n_clips),
        patient_ids="provided",
        split_rule="made up",
        recipe="golden 1",
    )


def stills() -> Manifest:
    """The manifest of the data set ``golden-stills``: little is known of it."""
    rows = [{"clip_id": f"still {still}", "sha256": content_digest(f"still {still}")} for still in range(12)]
    rows[4]["sha256"] = None
    return Manifest.from_rows(rows, dataset=DatasetFacts(name="golden-stills", title="Stills", unit="image"))


def resolve(spec: EncoderSpec, row: Mapping[str, Any], manifest: Manifest) -> ResolvedFrames:
    """The frames that a manifest's row leads to."""
    roles: dict[str, list[int]] = {}
    for role, frame in manifest.key_frames_of.get(row["clip_id"], ()):
        roles.setdefault(role, []).append(frame)
    assert spec.sampling is not None
    return spec.sampling.resolve(n_frames=row["n_frames"], fps=row["fps"], key_frames=roles)


def add_clip(golden: GoldenSet, row: Mapping[str, Any], resolved: ResolvedFrames) -> None:
    """Add one clip's rows to the tables of a set."""
    clip_id, fps = row["clip_id"], row["fps"]
    frame_rows, window_rows = [], []
    for window in resolved.windows:
        real = [frame for frame in window if frame >= 0]
        if golden.spec.unit == "frame":
            spans = [(frame, frame + 1, "frame") for frame in window]
        else:
            half = len(real) // 2
            spans = [(min(part), max(part) + 1, "tubelet") for part in (real[:half], real[half:])]
            window_rows.append(
                {
                    "clip_id": clip_id,
                    "frame_start": min(real),
                    "frame_stop": max(real) + 1,
                    "n_padded": len(window) - len(set(real)),
                }
            )
        frame_rows += [
            {
                "clip_id": clip_id,
                "frame": start,
                "time_s": start / fps,
                "frame_start": start,
                "frame_stop": stop,
                "frame_kind": kind,
            }
            for start, stop, kind in spans
        ]
    golden.index.append(
        {
            "row": len(golden.index),
            "clip_id": clip_id,
            "content_sha256": row["sha256"],
            "vector_key": golden.spec.vector_key(content_sha256=row["sha256"], resolved_digest=resolved.digest),
            "n_frames": row["n_frames"],
            "n_header_frames": row["n_frames"] + 1,
            "n_decode_errors": 0,
            "n_pts_gaps": 1,
            "fps": fps,
            "fps_header": None if fps == 50.0 else fps,
            "height": 112,
            "width": 112,
            "covered_s": resolved.covered_s,
            "effective_hz": resolved.effective_hz,
            "n_padded": resolved.n_padded,
            "frame_row": None if golden.frames is None else len(golden.frames),
            "n_frame_rows": 0 if golden.frames is None else len(frame_rows),
            "window_row": None if golden.windows is None else len(golden.windows),
            "n_window_rows": len(window_rows),
        }
    )
    if golden.frames is not None:
        golden.frames += frame_rows
    if golden.windows is not None:
        golden.windows += window_rows


def add_failure(golden: GoldenSet, row: Mapping[str, Any], *, resolved: str, reason: str, detail: str) -> None:
    """Add a clip without vectors."""
    golden.failures.append(
        {
            "clip_id": row["clip_id"],
            "content_sha256": row["sha256"],
            "vector_key": golden.spec.vector_key(content_sha256=row["sha256"], resolved_digest=resolved),
            "reason": reason,
            "detail": detail,
        }
    )


def set_of_loops(spec: EncoderSpec, manifest: Manifest, *, tag: int, corrupt: Sequence[str] = ()) -> GoldenSet:
    """A set of ``golden-loops``: every clip that can be sampled and is not corrupt; key frames alone are not kept."""
    golden = GoldenSet(manifest.name, spec, tag, windows=[] if spec.unit == "clip" else None)
    if spec is not KEY_FRAMES:
        golden.frames = []
    for row in manifest.table.to_pylist():
        try:
            resolved = resolve(spec, row, manifest)
        except MediaError as error:
            add_failure(golden, row, resolved="refused", reason=error.reason, detail=str(error))
            continue
        if row["clip_id"] in corrupt:
            add_failure(golden, row, resolved=resolved.digest, reason="corrupt", detail="no frame decodes")
        else:
            add_clip(golden, row, resolved)
    return golden


def brought_key(row: Mapping[str, Any], frames: Sequence[int]) -> str:
    """The key of vectors that were brought from elsewhere."""
    picked = np.array(frames, "<i8").tobytes()
    resolved = hashlib.sha256(b"ingested\0" + row["clip_id"].encode() + b"\0" + picked).hexdigest()
    return BROUGHT.vector_key(content_sha256=row["sha256"] or "unknown", resolved_digest=resolved)


def set_of_stills(manifest: Manifest) -> GoldenSet:
    """A set of vectors from elsewhere: next to nothing known, and one clip lacks them."""
    golden = GoldenSet(manifest.name, BROUGHT, 5, frames=[])
    for at, row in enumerate(manifest.table.to_pylist()):
        numbers = [] if at == 3 else list(range(0, 2 * (at % 3 + 1), 2))
        key = brought_key(row, numbers)
        cells = {"clip_id": row["clip_id"], "content_sha256": row["sha256"], "vector_key": key}
        if at == 7:
            golden.failures.append({**cells, "vector_key": brought_key(row, []), "reason": "no-vector"})
            continue
        assert golden.frames is not None
        counts = {"frame_row": len(golden.frames), "n_frame_rows": len(numbers), "n_window_rows": 0}
        golden.index.append({"row": len(golden.index), **cells, **counts})
        golden.frames += [{"clip_id": row["clip_id"], "frame": number} for number in numbers]
    return golden


# -- writing it ---------------------------------------------------------------------------------------------------


@contextmanager
def fixed_surroundings() -> Iterator[None]:
    """One second passes from commit to commit; shards are small."""
    seconds = iter(range(10_000))

    class Clock:
        @staticmethod
        def now(_zone: Any) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(seconds))

    with (
        mock.patch("embedstore.commit_log.datetime", Clock),
        mock.patch("embedstore.snapshot.tags.datetime", Clock),
        mock.patch.object(shards, "_SHARD_ROWS", SHARD_ROWS),
    ):
        yield


def write_set(store: Store, golden: GoldenSet, *, parent: EmbeddingSet | None = None, n_kept: int = 0) -> str:
    """Write and publish a set; with a parent, take its first ``n_kept`` clips over in place."""
    with SetWriter(store.layout.sets, dataset=golden.dataset, spec=golden.spec) as writer:
        for kind, rows in golden.arrays().items():
            array, n_rows = writer.array(kind, dim=rows.shape[1]), 0
            if parent is not None:
                n_rows = n_kept if kind == "clips" else int(golden.index[n_kept]["frame_row"])
                old = parent.array(kind)
                assert old is not None
                array.adopt(old, n_rows)
            array.append(rows[n_rows:])
        tables = {name: rows_to_table(rows, TABLE_SCHEMAS[name]) for name, rows in golden.tables().items()}
        set_id = writer.finish(tables, provenance=PROVENANCE)
    entry = store.entry_of(store.open_set(set_id))
    store.commit(lambda head: head.with_set(entry), reason=f"build {golden.spec.title} on {golden.dataset}")
    return set_id


def expected_set(golden: GoldenSet) -> dict[str, Any]:
    """A set as plain JSON: the first rows of its tables and arrays (bytes as hexadecimal digits), a digest of all."""
    tables = {}
    for name, rows in golden.tables().items():
        columns = TABLE_SCHEMAS[name].names
        cells = [[row.get(column) for column in columns] for row in rows]
        digest = hashlib.sha256(compact_json(cells)).hexdigest()
        tables[name] = {"columns": columns, "n_rows": len(rows), "rows": cells[:SHOWN], "json_sha256": digest}
    arrays = {}
    for kind, rows in golden.arrays().items():
        first = [row.tobytes().hex() for row in rows[:SHOWN]]
        digest = hashlib.sha256(rows.tobytes()).hexdigest()
        arrays[kind] = {"shape": list(rows.shape), "dtype": rows.dtype.name, "rows": first, "bytes_sha256": digest}
    return {"dataset": golden.dataset, "encoder": golden.spec.title, "arrays": arrays, "tables": tables}


def expected_manifest(manifest: Manifest, rows: Sequence[Mapping[str, Any]], key_frames: Any) -> dict[str, Any]:
    """A manifest as plain JSON, from the rows that it was made from."""
    return {
        "name": manifest.name,
        "media_digest": manifest.media_digest,
        "annotations_digest": manifest.annotations_digest,
        "rows": [dict(row) for row in rows],
        "key_frames": sorted([list(entry) for entry in key_frames]),
    }


def write_and_forget(store: Store, manifest: Manifest) -> None:
    """A set that was published and tagged, and then had to go: its tag lacks it, its record stays."""
    gone = set_of_stills(manifest)
    gone.spec = replace(BROUGHT, variant="gone")
    set_id = write_set(store, gone)
    create_tag(store, "sent", snapshot_id=store.log()[0].snapshot_id)
    store.commit(
        lambda head: replace(head, sets=tuple(entry for entry in head.sets if entry.set_id != set_id)),
        reason="forget",
    )
    add_forgotten(store, sets=[set_id], manifests=[], tags=["sent"])
    shutil.rmtree(store.layout.set_folder(set_id))


def make(folder: Path) -> None:
    """Write the store and its expected values into a folder that is empty or new."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store.create(folder / "store")
    first, second, still = loops(20), loops(30, fixed=True), stills()
    few = set_of_loops(FRAMES, first, tag=1)
    many = set_of_loops(FRAMES, second, tag=1, corrupt=("loop-22", "loop-29"))
    sets = [few, many, set_of_loops(KEY_FRAMES, second, tag=2), set_of_loops(WINDOWS, first, tag=3)]
    sets.append(set_of_stills(still))
    with fixed_surroundings():
        store.add_manifest(first)
        ids = [write_set(store, few)]
        create_tag(store, "first", snapshot_id=store.log()[0].snapshot_id)
        store.add_manifest(still)
        store.add_manifest(second)
        ids.append(write_set(store, many, parent=store.open_set(ids[0]), n_kept=len(few.index)))
        ids += [write_set(store, golden) for golden in sets[2:]]
        write_and_forget(store, still)
        create_tag(store, "paper-1.0", snapshot_id=store.log()[0].snapshot_id)
        create_tag(store, "mistake", snapshot_id=store.log()[2].snapshot_id)
        delete_tag(store, "mistake")
    manifests = {
        first.id: expected_manifest(first, loop_rows(20, fixed=False), loop_key_frames(20)),
        second.id: expected_manifest(second, loop_rows(30, fixed=True), loop_key_frames(30)),
        still.id: expected_manifest(still, still.table.select(["clip_id", "sha256"]).to_pylist(), ()),
    }
    log = [
        {"number": entry.number, "snapshot": entry.snapshot_id, "parent": entry.parent_id, "time": entry.time}
        for entry in reversed(store.log())
    ]
    expected = {
        "made_with": {"pyarrow": pa.__version__},
        "log": log,
        "tags": {"first": log[1]["snapshot"], "paper-1.0": log[-1]["snapshot"], "sent": log[-2]["snapshot"]},
        "fingerprints": {golden.spec.title: golden.spec.fingerprint for golden in sets},
        "provenance": PROVENANCE,
        "growth": ids[:2],
        "manifests": manifests,
        "values": "bytes_sha256: of the rows, C order, little-endian; json_sha256: of all rows as compact JSON",
        "sets": {set_id: expected_set(golden) for set_id, golden in zip(ids, sets, strict=True)},
    }
    (folder / "expected.json").write_bytes(compact_json(expected).replace(b"],[", b"],\n[") + b"\n")
    # What git would not keep, and what is private.
    shutil.rmtree(store.layout.builds)
    store.layout.prompts.rmdir()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
