"""A laboratory with vectors of its own: ids, vectors, a manifest, and a writer for each format."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedstore.embedding_set import EmbeddingSet
from embedstore.ingest import IngestOutcome, IngestRequest, ingest_vectors
from embedstore.manifest import DatasetFacts, Manifest, ManifestField
from embedstore.store import Store


@dataclass
class Lab:
    """Clips c00 ... with vectors that float16 holds exactly, so that every source dtype means the same."""

    folder: Path
    n_clips: int = 7
    dim: int = 5
    ids: list[str] = field(init=False)
    clips: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ids = [f"c{number:02d}" for number in range(self.n_clips)]
        rng = np.random.default_rng(3)
        self.clips = rng.standard_normal((self.n_clips, self.dim)).astype(np.float16).astype(np.float32)
        self.write_manifest(self.ids)

    @property
    def manifest(self) -> Path:
        return self.folder / "mine.parquet"

    @property
    def store(self) -> Store:
        return Store.create(self.folder / "store")

    def write_manifest(self, ids: Sequence[str], **columns: Any) -> None:
        rows = [
            {"clip_id": clip_id, "patient_id": f"p-{clip_id}", "split": "train", "lvef_pct": 50.0 + at % 7}
            | {name: values[at] for name, values in columns.items()}
            for at, clip_id in enumerate(ids)
        ]
        label = ManifestField(name="lvef_pct", role="label", kind="number", unit="%")
        Manifest.from_rows(rows, dataset=DatasetFacts(name="mine", title="Mine"), fields=[label]).write(self.manifest)

    def write(
        self,
        form: str,
        *,
        ids: Sequence[str] | None = None,
        clips: np.ndarray | None = None,
        name: str = "vectors",
    ) -> dict[str, Path]:
        """Write clip vectors in one of the forms of `FORMS`; return the arguments of the request."""
        ids = list(self.ids if ids is None else ids)
        clips = self.clips if clips is None else clips
        stem = self.folder / name
        if form == "npy":
            np.save(stem.with_suffix(".npy"), clips)
            with stem.with_suffix(".csv").open("w", newline="") as handle:
                csv.writer(handle).writerows([["view", "clip_id"], *(["A4C", clip_id] for clip_id in ids)])
            return {"file": stem.with_suffix(".npy"), "id_table": stem.with_suffix(".csv")}
        if form in ("npz", "npz-packed"):
            save = np.savez if form == "npz" else np.savez_compressed
            save(stem.with_suffix(".npz"), ids=np.array(ids, dtype=str), clips=clips)
            return {"file": stem.with_suffix(".npz")}
        if form.startswith("parquet"):
            clips = np.ascontiguousarray(clips, dtype=clips.dtype.newbyteorder("="))  # Arrow has no other order
            flat = pa.array(clips.reshape(-1))
            if form == "parquet-wide":
                columns = {f"f{at}": pa.array(clips[:, at].copy()) for at in range(clips.shape[1])}
            elif form == "parquet-fixed":
                columns = {"embedding": pa.FixedSizeListArray.from_arrays(flat, clips.shape[1])}
            else:
                offsets = pa.array(np.arange(len(clips) + 1) * clips.shape[1], pa.int32())
                columns = {"embedding": pa.ListArray.from_arrays(offsets, flat)}
            table = pa.table({"clip_id": pa.array(ids, pa.string()), **columns})
            pq.write_table(table, stem.with_suffix(".parquet"), row_group_size=3)
            return {"file": stem.with_suffix(".parquet")}
        with h5py.File(stem.with_suffix(".h5"), "w") as opened:
            if form == "hdf5-keyed":
                for clip_id, vector in zip(ids, clips, strict=True):
                    opened[clip_id] = vector
            else:
                opened["ids"] = ids
                packing = {"compression": "gzip", "chunks": (2, clips.shape[1])} if form == "hdf5-packed" else {}
                opened.create_dataset("clips", data=clips, **packing)
        return {"file": stem.with_suffix(".h5")}

    def ingest(self, source: dict[str, Path] | Path, **options: Any) -> IngestOutcome:
        """Ingest as ``lab-net`` unless told otherwise."""
        named = {"file": source} if isinstance(source, Path) else source
        asked = {"manifest": str(self.manifest), "encoder": "lab-net", **named, **options}
        return ingest_vectors(self.store, IngestRequest(**asked))

    def opened(self, outcome: IngestOutcome) -> EmbeddingSet:
        return self.store.open_set(outcome.set_id)

    def is_untouched(self) -> bool:
        """Whether the store holds nothing: no commit, no set, no leftover."""
        layout = self.store.layout
        return self.store.log() == [] and not any(layout.sets.iterdir()) and not any(layout.manifests.iterdir())


@pytest.fixture(scope="session")
def make_lab() -> Callable[..., Lab]:
    """The class, for tests that make several."""
    return Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A laboratory in a folder of its own."""
    return Lab(tmp_path / "lab")
