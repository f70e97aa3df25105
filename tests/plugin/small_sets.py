"""Small sets and manifests whose every vector follows from a clip's id and version, for tests of the store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from embedstore import files
from embedstore.embedding_set import (
    FAILURES_SCHEMA,
    FRAME_INDEX_SCHEMA,
    INDEX_SCHEMA,
    WINDOW_INDEX_SCHEMA,
    EmbeddingSet,
    SetWriter,
    rows_to_table,
)
from embedstore.history import SetEntry
from embedstore.identity import derive_seed
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.spec import EncoderSpec
from embedstore.store import Store

DIM = 6


def spec_of(name: str = "small", **fields: Any) -> EncoderSpec:
    """A spec with vectors of `DIM` values."""
    return EncoderSpec(name=name, **{"clip_dim": DIM, "frame_dim": DIM, **fields})


def n_rows_of(clip_id: str, kind: str) -> int:
    """How many frame or window vectors a clip has."""
    return 1 + derive_seed(clip_id, kind) % 3


def vectors_of(clip_id: str, version: int, kind: str, spec: EncoderSpec) -> np.ndarray:
    """The rows of one clip, in the stored dtype."""
    count = 1 if kind == "clips" else n_rows_of(clip_id, kind)
    rng = np.random.default_rng(derive_seed(clip_id, version, kind, spec.name))
    return rng.standard_normal((count, spec.clip_dim)).astype(spec.dtype)


def write_set(
    store: Store,
    clips: Mapping[str, int],
    *,
    dataset: str = "mine",
    spec: EncoderSpec | None = None,
    failed: Sequence[str] = (),
    kinds: Sequence[str] = ("clips", "frames", "windows"),
    shift: Mapping[str, float] | None = None,
) -> SetEntry:
    """Write a set of clips (id to version) in that order, without committing it.

    ``shift`` multiplies the vectors of a clip.
    """
    spec = spec or spec_of()
    index: list[dict[str, Any]] = []
    frames: list[dict[str, Any]] = []
    windows: list[dict[str, Any]] = []
    with SetWriter(store.layout.sets, dataset=dataset, spec=spec) as writer:
        arrays = {kind: writer.array(kind, dim=spec.clip_dim) for kind in kinds}
        for clip_id, version in clips.items():
            row: dict[str, Any] = {"row": len(index), "clip_id": clip_id, "vector_key": f"{clip_id}-{version}"}
            for kind, rows, prefix in (("frames", frames, "frame"), ("windows", windows, "window")):
                if kind in kinds:
                    count = n_rows_of(clip_id, kind)
                    row |= {f"{prefix}_row": len(rows), f"n_{prefix}_rows": count}
                    rows += [{"clip_id": clip_id, "frame_start": number} for number in range(count)]
            index.append(row)
            for kind, array in arrays.items():
                factor = np.asarray((shift or {}).get(clip_id, 1.0), dtype=np.float32)
                array.append((vectors_of(clip_id, version, kind, spec) * factor).astype(spec.dtype))
        tables = {
            "index.parquet": rows_to_table(index, INDEX_SCHEMA),
            "failures.parquet": rows_to_table(
                [{"clip_id": clip_id, "reason": "corrupt", "detail": "cut"} for clip_id in sorted(failed)],
                FAILURES_SCHEMA,
            ),
        }
        if "frames" in kinds:
            tables["frame_index.parquet"] = rows_to_table(frames, FRAME_INDEX_SCHEMA)
        if "windows" in kinds:
            tables["window_index.parquet"] = rows_to_table(windows, WINDOW_INDEX_SCHEMA)
        set_id = writer.finish(tables, provenance={"made": "by a test"})
    return store.entry_of(store.open_set(set_id))


def add_set(store: Store, clips: Mapping[str, int], **options: Any) -> str:
    """Write and commit a set; return its id."""
    with store.publishing():
        entry = write_set(store, clips, **options)
        store.commit(lambda head: head.with_set(entry), reason="test")
    return entry.set_id


def drop_sets(store: Store) -> None:
    """Commit a head without sets."""
    from dataclasses import replace

    store.commit(lambda head: replace(head, sets=()), reason="drop")


def manifest_of(patients: Mapping[str, str | None], *, name: str = "mine", split: str = "train", **facts: Any) -> Manifest:
    """A manifest of clips (id to patient)."""
    rows = [
        {"clip_id": clip_id, "patient_id": patient, "study_id": patient and f"study-of-{patient}", "split": split}
        for clip_id, patient in patients.items()
    ]
    return Manifest.from_rows(rows, dataset=DatasetFacts(name=name, title=name, **facts))


def content_of(opened: EmbeddingSet) -> dict[str, dict[str, bytes]]:
    """Every clip's bytes by kind, read through the index."""
    found: dict[str, dict[str, bytes]] = {}
    spans = {"frames": ("frame_row", "n_frame_rows"), "windows": ("window_row", "n_window_rows")}
    for row in opened.index.to_pylist():
        parts = {"clips": opened.clips.raw[row["row"]].tobytes()}
        for kind, (start, count) in spans.items():
            array = opened.array(kind)
            if array is not None:
                parts[kind] = array.raw[row[start] : row[start] + row[count]].tobytes()
        found[row["clip_id"]] = parts
    return found


def expected_content(
    clips: Mapping[str, int], spec: EncoderSpec, kinds: Sequence[str] = ("clips", "frames", "windows")
) -> dict[str, dict[str, bytes]]:
    """What `content_of` returns for a set of these clips."""
    return {
        clip_id: {kind: vectors_of(clip_id, version, kind, spec).tobytes() for kind in kinds}
        for clip_id, version in clips.items()
    }


def tree_of(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and modification time."""
    return {
        path.relative_to(root).as_posix(): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
    }


def _texts(path: Path) -> Iterator[str]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as parquet:
            yield json.dumps(parquet.read().to_pylist(), default=str)
            yield repr(parquet.metadata.metadata)
            for group in range(parquet.metadata.num_row_groups):
                for column in range(parquet.metadata.num_columns):
                    yield repr(parquet.metadata.row_group(group).column(column).statistics)


def where_found(root: Path, word: str) -> list[str]:
    """Every file below ``root`` whose name, bytes or unpacked Parquet content has ``word``."""
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if word in path.name
        or (
            path.is_file()
            and (word.encode() in path.read_bytes() or any(word in text for text in _texts(path)))
        )
    ]


class Cut(BaseException):
    """A process that is killed: nothing catches it, so what it leaves is what a kill leaves."""


def cut_at(number: int) -> list[str]:
    """Cut off at the ``number``-th operation from now; the list gathers those seen. Undo with ``no_cut``."""
    seen: list[str] = []

    def hook(operation: str, path: Path) -> None:
        seen.append(operation)
        if len(seen) >= number:
            # A killed process runs no cleanup: from the cut on, every operation fails too.
            raise Cut(f"{operation} {path}")

    files.fault_hook = hook
    return seen


def no_cut() -> None:
    """Let operations pass again."""
    files.fault_hook = None


def run_program(*arguments: str | Path) -> int:
    """Run the program in this process under its contract; return the exit code."""
    from embedstore.cli.contract import run
    from embedstore.cli.main import program

    try:
        run(program, [str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    finally:
        sys.stdout.flush()
