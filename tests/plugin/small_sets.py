"""Small sets and manifests whose every vector follows from a clip's id and version, for tests of the store."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from embedstore import disk
from embedstore.embedding_set import (
    FAILURES_SCHEMA,
    FRAME_INDEX_SCHEMA,
    INDEX_SCHEMA,
    WINDOW_INDEX_SCHEMA,
    EmbeddingSet,
    SetWriter,
)
from embedstore.history import SetEntry
from embedstore.identity import derive_seed
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import rows_to_table

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


def manifest_of(
    patients: Mapping[str, str | None], *, name: str = "mine", split: str = "train", **facts: Any
) -> Manifest:
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


def where_found(root: Path, *words: str) -> list[str]:
    """Every file below ``root`` whose name, bytes or unpacked Parquet content has one of ``words``."""
    return [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if _holds(path, words)]


def _holds(path: Path, words: Sequence[str]) -> bool:
    if any(word in path.name for word in words):
        return True
    if not path.is_file():
        return False
    payload = path.read_bytes()
    texts = list(_texts(path))
    return any(word.encode() in payload or any(word in text for text in texts) for word in words)


def count_operations(act: Callable[[], object]) -> int:
    """Run and count the operations on files and folders, as `embedstore.disk` announces them."""
    seen = 0

    def hook(operation: str, path: Path) -> None:
        nonlocal seen
        seen += 1

    disk.fault_hook = hook
    try:
        act()
    finally:
        disk.fault_hook = None
    return seen


def kill_at(number: int, act: Callable[[], object]) -> bool:
    """Run in a child process that dies without any cleanup at its ``number``-th operation; return whether it did."""
    child = os.fork()
    if child == 0:
        status, seen = 99, 0

        def hook(operation: str, path: Path) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os._exit(9)

        try:
            disk.fault_hook = hook
            act()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), f"the child ended with {status}"
    return status == 9


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


def start_build(store: Store, manifest: Manifest, spec: EncoderSpec, *, done: int, with_frames: bool = True) -> Path:
    """Plan a build and finish its first ``done`` units, as a worker would; return the build's folder."""
    from dataclasses import replace

    from embedstore.build.commit import array_kinds
    from embedstore.build.plan import make_plan
    from embedstore.build.units import ClipVectors, UnitResult, write_unit

    plan = replace(make_plan(store, manifest, spec, with_frames=with_frames), batch_size=4)
    folder = store.layout.build_folder(plan.key)
    plan.write(folder)
    kinds = array_kinds(plan)
    casts = {kind: lambda rows: rows.astype(spec.dtype) for kind in kinds}
    for unit, clips in list(plan.units.items())[:done]:
        result = UnitResult(unit=unit)
        for clip in clips:
            rows = {kind: vectors_of(clip.clip_id, 1, kind, spec).astype(np.float32) for kind in kinds}
            index = {
                "clip_id": clip.clip_id,
                "vector_key": clip.vector_key,
                **{f"n_{kind[:-1]}_rows": len(rows[kind]) for kind in kinds if kind != "clips"},
            }
            sides = {
                f"{kind[:-1]}_rows": [{"clip_id": clip.clip_id, "frame_start": n} for n in range(len(rows[kind]))]
                for kind in kinds
                if kind != "clips"
            }
            others = {kind: rows[kind] for kind in kinds if kind != "clips"}
            result.vectors.append(ClipVectors(index=index, clip=rows["clips"][0], **others, **sides))
        write_unit(folder, result, kinds=kinds, cast=casts)
    return folder
