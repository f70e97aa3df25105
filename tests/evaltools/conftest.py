"""A small data set in memory: a manifest, and vectors that know the labels as well as they are told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedstore import DatasetFacts, EncoderSpec, Manifest, ManifestField, Store
from embedstore.cli.contract import run
from embedstore.embedding_set import FAILURES_SCHEMA, FRAME_INDEX_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.identity import sha256_hex
from embedstore.tables import rows_to_table
from evaltools.cli.main import program

VIEWS = ("A4C", "A2C", "PLAX")
FRAMES = 4

MakeManifest = Callable[..., Manifest]
MakeSource = Callable[..., "ArraySource"]
MakeStore = Callable[..., Store]


@dataclass
class ArraySource:
    """What `evaltools.features.VectorSource` asks for, from arrays."""

    dataset: str
    spec: EncoderSpec
    clips: np.ndarray
    index: pa.Table
    frames: np.ndarray | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    failures: pa.Table = field(default_factory=lambda: pa.table({"clip_id": pa.array([], pa.string()),
                                                                 "reason": pa.array([], pa.string())}))  # fmt: skip
    set_id: str = "0" * 64

    @property
    def fingerprint(self) -> str:
        return self.spec.fingerprint

    @property
    def frame_index(self) -> pa.Table:
        """Frames 50 ms apart, in the order of `index`."""
        counts = self.index.column("n_frame_rows").to_numpy()
        return pa.table({"time_s": np.concatenate([np.arange(count) / 20 for count in counts])})

    def array(self, kind: str) -> np.ndarray | None:
        return {"clips": self.clips, "frames": self.frames}.get(kind)


def _rows(n_patients: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(n_patients):
        lvef = float(np.clip(rng.normal(55, 12), 15, 80))
        split = ("train", "train", "val", "test", "test")[patient % 5]
        for view in VIEWS:
            clip_id = f"p{patient:03d}-{view}"
            rows.append({
                "clip_id": clip_id, "patient_id": f"p{patient:03d}", "study_id": f"s{patient:03d}",
                "path": f"{clip_id}.avi", "sha256": sha256_hex(clip_id.encode()),
                "n_frames": int(rng.integers(30, 90)),
                "fps": float(rng.choice([25.0, 30.0, 50.0])), "height": 112, "width": 112, "view": view,
                "split": split, "manufacturer": str(rng.choice(["A", "B"])), "lvef_pct": lvef,
                "sex": "FM"[patient % 2],
            })  # fmt: skip
    return rows


@pytest.fixture
def make_manifest() -> MakeManifest:
    """Return a function that makes a manifest of ``n_patients`` with three clips each; ``change`` edits its rows."""

    def make(
        n_patients: int = 60,
        *,
        seed: int = 0,
        name: str = "toy",
        change: Callable[[list[dict[str, Any]]], object] = lambda rows: None,
        fields: Sequence[ManifestField] = (),
        patient_ids: str = "provided",
    ) -> Manifest:
        rows = _rows(n_patients, seed)
        change(rows)
        labels = (
            ManifestField(name="lvef_pct", role="label", kind="number", unit="%"),
            ManifestField(name="sex", role="subgroup", kind="category"),
        )
        facts = DatasetFacts(name=name, title="Toy", synthetic=True)
        return Manifest.from_rows(rows, dataset=facts, fields=[*labels, *fields], patient_ids=patient_ids)

    return make


@pytest.fixture
def make_source() -> MakeSource:
    """Return a function that makes vectors for a manifest: views in the clip vectors, LVEF in the frames' spread."""

    def make(
        manifest: Manifest, *, name: str = "toy-encoder", dim: int = 12, drop: Sequence[str] = (), seed: int = 1
    ) -> ArraySource:
        rng = np.random.default_rng(seed)
        kept = [row for row in manifest.table.to_pylist() if row["clip_id"] not in drop]
        kept = [kept[row] for row in rng.permutation(len(kept))]  # not in the manifest's order
        motion = rng.normal(size=dim)
        places = {view: rng.normal(size=dim) for view in VIEWS}
        frames = []
        for row in kept:
            base = rng.normal(size=dim) + 2 * places.get(row["view"], 0)
            beat = np.array([-1.5, -0.5, 0.5, 1.5])[:, None] * motion * (row["lvef_pct"] or 0) / 20
            frames.append(base + beat + rng.normal(0, 0.1, (FRAMES, dim)))
        stacked = np.concatenate(frames).astype(np.float32)
        index = pa.table({
            "clip_id": [row["clip_id"] for row in kept],
            "content_sha256": [row["sha256"] for row in kept],
            "frame_row": np.arange(len(kept)) * FRAMES,
            "n_frame_rows": np.full(len(kept), FRAMES),
        })  # fmt: skip
        return ArraySource(
            dataset=manifest.name,
            spec=EncoderSpec(name=name, clip_dim=dim, frame_dim=dim),
            clips=stacked.reshape(len(kept), FRAMES, dim).mean(axis=1),
            index=index,
            frames=stacked,
        )

    return make


def _write_set(store: Store, source: ArraySource) -> None:
    with SetWriter(store.layout.sets, dataset=source.dataset, spec=source.spec) as writer:
        assert source.frames is not None
        for kind, vectors in (("clips", source.clips), ("frames", source.frames)):
            writer.array(kind, dim=vectors.shape[1]).append(vectors.astype(source.spec.dtype))
        clips = [{"row": row, **clip} for row, clip in enumerate(source.index.to_pylist())]
        frames = [
            {"clip_id": clip["clip_id"], "frame": frame, "time_s": frame / 20}
            for clip in clips
            for frame in range(FRAMES)
        ]
        tables = {
            "index.parquet": rows_to_table(clips, INDEX_SCHEMA),
            "frame_index.parquet": rows_to_table(frames, FRAME_INDEX_SCHEMA),
            "failures.parquet": rows_to_table(source.failures.to_pylist(), FAILURES_SCHEMA),
        }
        set_id = writer.finish(tables, provenance={})
    entry = store.entry_of(store.open_set(set_id))
    store.commit(lambda head: head.with_set(entry), reason="test")


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Return a function that writes a real store of manifests and vectors on disk."""

    def make(manifests: Sequence[Manifest], sources: Sequence[ArraySource], *, name: str = "store") -> Store:
        store = Store.create(tmp_path / name)
        for manifest in manifests:
            store.add_manifest(manifest)
        for source in sources:
            _write_set(store, source)
        return store

    return make


@pytest.fixture
def evaltools(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the program in an empty folder and gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(program, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return call
