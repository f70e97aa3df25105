"""Commit: pack finished units, kept rows and copies into one immutable set, at disk speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstore.build.lock import build_lock
from embedstore.build.plan import BuildPlan, PlannedClip
from embedstore.build.units import Receipt, read_receipts
from embedstore.embedding_set import (
    FAILURES_SCHEMA,
    FRAME_INDEX_SCHEMA,
    INDEX_SCHEMA,
    WINDOW_INDEX_SCHEMA,
    EmbeddingSet,
    SetWriter,
    rows_to_table,
)
from embedstore.errors import BusyError, CorruptionError, NothingDecodedError, StorageError
from embedstore.files import read_json, remove_file, remove_folder
from embedstore.history import SetEntry, Snapshot
from embedstore.layout import FAILURES_FILE, FRAME_INDEX_FILE, INDEX_FILE, WINDOW_INDEX_FILE
from embedstore.spec import EncoderSpec
from embedstore.store import Store

__all__ = ["array_kinds", "commit_build", "drop_build", "drop_stale_builds", "open_units"]

# Rows of so many clips are moved at once: bounded memory, few calls.
_RUN_CLIPS = 256


def array_kinds(plan: BuildPlan) -> dict[str, int]:
    """Return the arrays that the set of a plan has, with their dims."""
    kinds = {"clips": plan.spec.clip_dim}
    if plan.with_frames and plan.spec.frame_dim is not None:
        kinds["frames"] = plan.spec.frame_dim
    if plan.spec.unit == "clip":
        kinds["windows"] = plan.spec.clip_dim
    return kinds


def open_units(plan: BuildPlan, build_folder: Path) -> list[int]:
    """Return the units of a plan that have no receipt yet."""
    done = read_receipts(build_folder)
    return [unit for unit in plan.units if unit not in done]


@dataclass(frozen=True)
class _ClipRows:
    """Where the rows of one clip lie: in a unit or in a set."""

    source: Any
    row: int
    index: Mapping[str, Any]


class _SetSource:
    """Rows of a committed set."""

    def __init__(self, opened: EmbeddingSet) -> None:
        self._opened = opened
        self._index = opened.index.to_pylist()
        self._tables: dict[str, pa.Table] = {}

    def index_row(self, row: int) -> Mapping[str, Any]:
        return dict(self._index[row])

    def rows(self, kind: str, start: int, stop: int) -> npt.NDArray[Any]:
        array = self._opened.array(kind)
        if array is None:
            raise CorruptionError(f"the set {self._opened.set_id[:12]} holds no {kind}")
        return array.raw[start:stop]

    def table(self, name: str, start: int, stop: int) -> pa.Table:
        if name not in self._tables:
            self._tables[name] = self._opened.table(name)
        return self._tables[name].slice(start, stop - start)


class _UnitSource:
    """Rows of a finished unit."""

    def __init__(self, receipt: Receipt, dtype: str) -> None:
        receipt.check()
        self._receipt, self._dtype = receipt, dtype
        self._index = receipt.table("index.parquet").to_pylist()
        self._tables: dict[str, pa.Table] = {}
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self.row_of = {row["clip_id"]: at for at, row in enumerate(self._index)}
        self.failed = {row["clip_id"]: row for row in receipt.table("failures.parquet").to_pylist()}

    def index_row(self, row: int) -> Mapping[str, Any]:
        return dict(self._index[row])

    def rows(self, kind: str, start: int, stop: int) -> npt.NDArray[Any]:
        if kind not in self._arrays:
            self._arrays[kind] = self._receipt.rows_of(kind, self._dtype)
        return self._arrays[kind][start:stop]

    def table(self, name: str, start: int, stop: int) -> pa.Table:
        if name not in self._tables:
            self._tables[name] = self._receipt.table(name)
        return self._tables[name].slice(start, stop - start)


class _Packer:
    """Resolves each planned clip to its rows, and streams them into a set."""

    def __init__(self, store: Store, plan: BuildPlan, build_folder: Path) -> None:
        self._store, self._plan = store, plan
        self._receipts = read_receipts(build_folder)
        self._sets: dict[str, _SetSource] = {}
        self._units: dict[int, _UnitSource] = {}
        self._unit_of = {clip.clip_id: clip.unit for clip in plan.clips if clip.action == "encode"}
        self.failed: list[Mapping[str, Any]] = []

    def _set_source(self, set_id: str) -> _SetSource:
        if set_id not in self._sets:
            self._sets[set_id] = _SetSource(self._store.open_set(set_id))
        return self._sets[set_id]

    def _unit_source(self, unit: int) -> _UnitSource:
        if unit not in self._units:
            self._units[unit] = _UnitSource(self._receipts[unit], self._plan.spec.dtype)
        return self._units[unit]

    def _encoded(self, clip: PlannedClip, encoded_as: str) -> _ClipRows | None:
        unit = self._unit_of[encoded_as]
        assert unit is not None
        source = self._unit_source(unit)
        if encoded_as in source.failed:
            failure = dict(source.failed[encoded_as])
            self.failed.append({**failure, "clip_id": clip.clip_id})
            return None
        row = source.row_of[encoded_as]
        return _ClipRows(source, row, source.index_row(row))

    def locate(self) -> Iterator[tuple[PlannedClip, _ClipRows]]:
        """Yield each clip that has vectors with their place; failures are collected on the way."""
        for clip in self._plan.clips:
            if clip.action == "fail":
                keys = ("clip_id", "content_sha256", "vector_key", "reason", "detail")
                self.failed.append({key: getattr(clip, key) for key in keys})
                continue
            rows: _ClipRows | None
            if clip.action in ("keep", "copy"):
                set_id = self._plan.parent if clip.action == "keep" else clip.source_set
                assert set_id is not None and clip.source_row is not None
                source = self._set_source(set_id)
                rows = _ClipRows(source, clip.source_row, source.index_row(clip.source_row))
            else:
                rows = self._encoded(clip, clip.clip_id if clip.action == "encode" else clip.detail or "")
            if rows is not None:
                yield clip, rows


def _span(index: Mapping[str, Any], kind: str) -> tuple[int, int]:
    if kind == "clips":
        return index["row"], index["row"] + 1
    start, count = (
        (index["frame_row"], index["n_frame_rows"])
        if kind == "frames"
        else (
            index["window_row"],
            index["n_window_rows"],
        )
    )
    return start, start + count


def _adoptable(plan: BuildPlan) -> int:
    """Return how many clips of the parent are kept in place from its first row on."""
    count = 0
    for clip in plan.clips:
        if clip.action != "keep" or clip.source_row != count:
            break
        count += 1
    return count


def _runs(placed: list[tuple[PlannedClip, _ClipRows]]) -> Iterator[list[tuple[PlannedClip, _ClipRows]]]:
    """Group clips whose rows stand one after the other in one source; kept and new clips never share a group."""
    run: list[tuple[PlannedClip, _ClipRows]] = []
    for clip, rows in placed:
        if run:
            before, last = run[-1]
            follows = rows.source is last.source and rows.row == last.row + 1
            if not follows or (before.action == "keep") != (clip.action == "keep") or len(run) >= _RUN_CLIPS:
                yield run
                run = []
        run.append((clip, rows))
    if run:
        yield run


def _pack(
    store: Store,
    plan: BuildPlan,
    placed: list[tuple[PlannedClip, _ClipRows]],
    failed: list[Mapping[str, Any]],
    *,
    provenance: Mapping[str, Any],
) -> str:
    """Write the set of the clips that have vectors, and of those that failed; return its id."""
    kinds = array_kinds(plan)
    adopted = _adoptable(plan)
    index_rows: list[dict[str, Any]] = []
    side_tables: dict[str, list[pa.Table]] = {"frames": [], "windows": []}
    tables_of = {"frames": FRAME_INDEX_FILE, "windows": WINDOW_INDEX_FILE}
    schemas = {"frames": FRAME_INDEX_SCHEMA, "windows": WINDOW_INDEX_SCHEMA}
    offsets = dict.fromkeys(("clips", "frames", "windows"), 0)
    with SetWriter(store.layout.sets, dataset=plan.dataset, spec=plan.spec) as writer:
        arrays = {kind: writer.array(kind, dim=dim) for kind, dim in kinds.items()}
        if adopted and plan.parent is not None:
            parent = store.open_set(plan.parent)
            last = placed[adopted - 1][1].index
            for kind, array in arrays.items():
                parent_array = parent.array(kind)
                assert parent_array is not None
                array.adopt(parent_array, _span(last, kind)[1])
        for run in _runs(placed):
            for kind in kinds:
                start, stop = _span(run[0][1].index, kind)[0], _span(run[-1][1].index, kind)[1]
                source = run[0][1].source
                if len(index_rows) >= adopted:
                    arrays[kind].append(np.asarray(source.rows(kind, start, stop)))
                if kind in tables_of:
                    part = source.table(tables_of[kind], start, stop)
                    spans = [_span(rows.index, kind) for _, rows in run]
                    counts = [last - first for first, last in spans]
                    ids = np.repeat(np.array([clip.clip_id for clip, _ in run], dtype=object), counts)
                    side_tables[kind].append(part.set_column(0, "clip_id", pa.array(ids, type=pa.string())))
            for clip, rows in run:
                row = {**rows.index, "clip_id": clip.clip_id, "row": offsets["clips"]}
                for kind in kinds:
                    start, stop = _span(rows.index, kind)
                    if kind in tables_of:
                        prefix = "frame" if kind == "frames" else "window"
                        row[f"{prefix}_row"], row[f"n_{prefix}_rows"] = offsets[kind], stop - start
                    offsets[kind] += stop - start
                if "frames" not in kinds:
                    row["frame_row"], row["n_frame_rows"] = None, 0
                index_rows.append(row)
        tables = {
            INDEX_FILE: rows_to_table(index_rows, INDEX_SCHEMA),
            FAILURES_FILE: rows_to_table(sorted(failed, key=lambda f: f["clip_id"]), FAILURES_SCHEMA),
        }
        for kind, name in tables_of.items():
            if kind in kinds:
                parts = [part.cast(schemas[kind]) for part in side_tables[kind]]
                tables[name] = pa.concat_tables(parts).combine_chunks() if parts else schemas[kind].empty_table()
        return writer.finish(tables, provenance=provenance)


def drop_stale_builds(store: Store, dataset: str, fingerprint: str) -> None:
    """Remove builds of a set that nothing goes on with, such as one killed between its commit and its clean-up.

    A build's key covers the set that it grows from: one that grows from another set than the head's never matches
    again. One that a live process holds stays.
    """
    named = (dataset, fingerprint)
    heads = {entry.set_id for entry in store.entries() if (entry.dataset, entry.fingerprint) == named}
    for path in sorted(store.layout.builds.glob("[0-9a-f]*/plan.json")):
        header = read_json(path)
        spec = EncoderSpec.from_dict(header["spec"])
        if (header["dataset"], spec.fingerprint) != named or not heads - {header["replaces"]}:
            continue
        with suppress(BusyError), build_lock(store.layout.builds, path.parent.name, shared=False):
            remove_folder(path.parent)


def commit_build(
    store: Store, plan: BuildPlan, build_folder: Path, *, provenance: Mapping[str, Any], reason: str
) -> str:
    """Pack a complete build into a set and publish it in the log; `drop_build` then removes the units.

    Parameters
    ----------
    provenance : mapping
        JSON values; lies beside the description, outside the id.
    reason : str
        For the log.

    Returns
    -------
    str
        The set id.

    Raises
    ------
    NothingDecodedError
        Not one clip has vectors.
    CorruptionError
        A unit's files are not those of its receipt; its receipt is removed, so that a new run encodes it again.
    """
    packer = _Packer(store, plan, build_folder)
    try:
        placed = list(packer.locate())
    except CorruptionError as error:
        for receipt in read_receipts(build_folder).values():
            try:
                receipt.check()
            except CorruptionError:
                remove_file(build_folder / "receipts" / f"{receipt.unit:06d}.json")
        error.add_note("run the same build again: it encodes this unit anew")
        raise
    if not placed:
        remove_folder(build_folder)
        reasons = sorted({str(row["reason"]) for row in packer.failed})
        raise NothingDecodedError(
            f"no clip of {plan.dataset!r} could be decoded (reasons: {', '.join(reasons) or 'none selected'}); "
            "check the media root (--root) and the files"
        )
    with store.publishing():
        set_id = _pack(store, plan, placed, packer.failed, provenance=provenance)
        entry = store.entry_of(store.open_set(set_id))
        store.commit(lambda head: _grown(head, entry, plan.replaces), reason=reason)
    return set_id


def drop_build(build_folder: Path, set_id: str) -> None:
    """Remove the units of a build whose set is committed.

    Raises
    ------
    StorageError
        The disk refused; the message says that the set is whole all the same.
    """
    try:
        remove_folder(build_folder)
    except StorageError as error:
        error.add_note(
            f"the set {set_id[:12]} is committed and whole; embedstore gc removes what is left of its build"
        )
        raise


def _grown(head: Snapshot, entry: SetEntry, replaces: str | None) -> Snapshot:
    """Put a set in the place of the one that its plan began from; refuse where another build came first."""
    named = (entry.dataset, entry.fingerprint)
    current = [old.set_id for old in head.sets if (old.dataset, old.fingerprint) == named]
    if current and current[0] not in (replaces, entry.set_id):
        raise BusyError(
            "another build of this set, with another selection of clips, was committed meanwhile; run the same "
            "command again: it keeps what is there and adds what is missing"
        )
    return head.with_set(entry)
