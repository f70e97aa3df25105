"""Commit: pack finished units, kept rows and copies into one immutable set, at disk speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstore.abreast import map_abreast
from embedstore.build.lock import build_lock
from embedstore.build.plan import BuildPlan
from embedstore.build.planned import PlannedClip
from embedstore.build.units import Receipt, read_receipts
from embedstore.embedding_set import FAILURES_SCHEMA, TABLE_SCHEMAS, EmbeddingSet, SetWriter
from embedstore.errors import BusyError, CorruptionError, NothingDecodedError, StorageError
from embedstore.files import remove_file
from embedstore.folders import remove_folder
from embedstore.history import SetEntry, Snapshot
from embedstore.json_files import read_json
from embedstore.layout import FAILURES_FILE, FRAME_INDEX_FILE, INDEX_FILE, WINDOW_INDEX_FILE
from embedstore.shards import ArrayWriter
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import TableReader, TableSpool, rows_to_table

__all__ = ["array_kinds", "commit_build", "drop_build", "drop_stale_builds", "open_units"]

# Rows of so many clips are moved at once: bounded memory, few calls.
_RUN_CLIPS = 256
# Units whose tables are held: one is enough but for twins, whose rows lie in earlier units.
_OPEN_UNITS = 8
# The table of each kind that has several rows a clip, and how the columns of the index begin that point into it.
_SIDE_TABLES = {"frames": (FRAME_INDEX_FILE, "frame"), "windows": (WINDOW_INDEX_FILE, "window")}


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


class _SetSource:
    """Rows of a committed set."""

    def __init__(self, opened: EmbeddingSet) -> None:
        self._opened = opened
        self._tables: dict[str, TableReader] = {}

    def vectors(self, kind: str, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        array = self._opened.array(kind)
        if array is None:
            raise CorruptionError(f"the set {self._opened.set_id[:12]} holds no {kind}")
        return array.raw.blocks(start, stop)

    def table(self, name: str, start: int, stop: int) -> pa.Table:
        if name not in self._tables:
            self._tables[name] = TableReader(self._opened.folder / name)
        return self._tables[name].rows(start, stop)


class _UnitSource:
    """Rows of a finished unit, whose files were compared with its receipt."""

    def __init__(self, receipt: Receipt, dtype: str) -> None:
        self._receipt, self._dtype = receipt, dtype
        self._tables: dict[str, pa.Table] = {}
        self.row_of = {clip_id: row for row, clip_id in enumerate(self._table(INDEX_FILE)["clip_id"].to_pylist())}

    def _table(self, name: str) -> pa.Table:
        if name not in self._tables:
            self._tables[name] = self._receipt.table(name)
        return self._tables[name]

    def vectors(self, kind: str, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        yield self._receipt.rows_of(kind, self._dtype)[start:stop]

    def table(self, name: str, start: int, stop: int) -> pa.Table:
        return self._table(name).slice(start, stop - start)


_Source = _SetSource | _UnitSource


@dataclass(frozen=True)
class _Run:
    """Clips whose rows stand one after the other in one source."""

    source: _Source
    first_row: int
    is_kept: bool
    clip_ids: list[str]

    def takes(self, source: _Source, row: int, *, is_kept: bool) -> bool:
        """Whether a clip may come next; kept and new clips never share a run."""
        follows = self.source is source and row == self.first_row + len(self.clip_ids)
        return follows and self.is_kept == is_kept and len(self.clip_ids) < _RUN_CLIPS


def _encoded_as(clip: PlannedClip) -> str | None:
    """Return the clip whose unit holds the vectors, None where they are not from this build."""
    if clip.action == "encode":
        return clip.clip_id
    return clip.detail or "" if clip.action == "twin" else None


class _Packer:
    """Resolves each planned clip to its rows, and streams them into a set.

    Attributes
    ----------
    failed : list of mappings
        Rows of the table of failures.
    n_placed : int
        Clips that have vectors.
    """

    def __init__(self, store: Store, plan: BuildPlan, build_folder: Path) -> None:
        self._store, self._plan = store, plan
        self._receipts = read_receipts(build_folder)
        self._sets: dict[str, _SetSource] = {}
        self._units: dict[int, _UnitSource] = {}
        originals = {clip.detail for clip in plan.clips if clip.action == "twin"}
        self._unit_of = {
            clip.clip_id: clip.unit for clip in plan.clips if clip.action == "encode" and clip.clip_id in originals
        }
        failures = self._checked_failures()
        self._failed_ids = set(failures)
        self.failed: list[Mapping[str, Any]] = []
        for clip in plan.clips:
            if clip.action == "fail":
                keys = ("clip_id", "content_sha256", "vector_key", "reason", "detail")
                self.failed.append({key: getattr(clip, key) for key in keys})
            elif (encoded_as := _encoded_as(clip)) in failures:
                self.failed.append({**failures[str(encoded_as)], "clip_id": clip.clip_id})
        self.n_placed = len(plan.clips) - len(self.failed)

    def _checked_failures(self) -> dict[str, Mapping[str, Any]]:
        """Compare every unit with its receipt before anything is written, and return its failed clips by id."""
        found: dict[str, Mapping[str, Any]] = {}
        for _ in map_abreast(lambda unit: self._receipts[unit].check(), self._plan.units):
            pass
        for unit in self._plan.units:
            found |= {row["clip_id"]: row for row in self._receipts[unit].table(FAILURES_FILE).to_pylist()}
        return found

    def _set_source(self, set_id: str) -> _SetSource:
        if set_id not in self._sets:
            self._sets[set_id] = _SetSource(self._store.open_set(set_id))
        return self._sets[set_id]

    def _unit_source(self, unit: int) -> _UnitSource:
        source = self._units.pop(unit, None) or _UnitSource(self._receipts[unit], self._plan.spec.dtype)
        self._units[unit] = source  # the last one used stands last
        if len(self._units) > _OPEN_UNITS:
            del self._units[next(iter(self._units))]
        return source

    def _place(self, clip: PlannedClip) -> tuple[_Source, int] | None:
        """Return where the rows of a clip lie, None where it failed."""
        if clip.action == "fail":
            return None
        if clip.action in ("keep", "copy"):
            set_id = self._plan.parent if clip.action == "keep" else clip.source_set
            assert set_id is not None and clip.source_row is not None
            return self._set_source(set_id), clip.source_row
        encoded_as = _encoded_as(clip)
        assert encoded_as is not None
        if encoded_as in self._failed_ids:
            return None
        unit = clip.unit if clip.action == "encode" else self._unit_of[encoded_as]
        assert unit is not None
        source = self._unit_source(unit)
        return source, source.row_of[encoded_as]

    def runs(self) -> Iterator[_Run]:
        """Yield the clips that have vectors, in the plan's order."""
        run: _Run | None = None
        for clip in self._plan.clips:
            place = self._place(clip)
            if place is None:
                continue
            is_kept = clip.action == "keep"
            if run is None or not run.takes(*place, is_kept=is_kept):
                if run is not None:
                    yield run
                run = _Run(*place, is_kept, [])
            run.clip_ids.append(clip.clip_id)
        if run is not None:
            yield run


def _adoptable(plan: BuildPlan) -> int:
    """Return how many clips of the parent are kept in place from its first row on."""
    count = 0
    for clip in plan.clips:
        if clip.action != "keep" or clip.source_row != count:
            break
        count += 1
    return count


def _replaced(table: pa.Table, name: str, cells: Any) -> pa.Table:
    at = table.schema.get_field_index(name)
    field = table.schema.field(at)
    return table.set_column(at, field, pa.array(cells, type=field.type))


class _Rows:
    """Copies runs into the arrays and tables of a new set."""

    def __init__(self, packer: _Packer, arrays: Mapping[str, ArrayWriter], spools: Mapping[str, TableSpool]) -> None:
        self._packer, self._arrays, self._spools = packer, arrays, spools
        self.n_rows = dict.fromkeys(arrays, 0)

    def append(self, run: _Run, *, with_vectors: bool) -> None:
        """Append the rows of a run; its vectors too where they are not adopted from the parent."""
        first, last = run.first_row, run.first_row + len(run.clip_ids)
        index = run.source.table(INDEX_FILE, first, last)
        rows = np.arange(self.n_rows["clips"], self.n_rows["clips"] + len(run.clip_ids))
        packed = _replaced(_replaced(index, "row", rows), "clip_id", run.clip_ids)
        for kind in self._arrays:
            start, stop = first, last
            if kind != "clips":
                name, prefix = _SIDE_TABLES[kind]
                starts, counts = (index[column].to_numpy() for column in (f"{prefix}_row", f"n_{prefix}_rows"))
                start, stop = int(starts[0]), int(starts[-1] + counts[-1])
                packed = _replaced(packed, f"{prefix}_row", self.n_rows[kind] + np.cumsum(counts) - counts)
                clip_ids = np.repeat(np.array(run.clip_ids, dtype=object), counts)
                part = run.source.table(name, start, stop)
                self._spools[name].append(_replaced(part, "clip_id", clip_ids))
            if with_vectors:
                for block in run.source.vectors(kind, start, stop):
                    self._arrays[kind].append(block)
            self.n_rows[kind] += stop - start
        if "frames" not in self._arrays:
            none = pa.nulls(len(rows), pa.int64())
            packed = _replaced(_replaced(packed, "frame_row", none), "n_frame_rows", np.zeros(len(rows), np.int64))
        self._spools[INDEX_FILE].append(packed)

    def adopt(self, parent: EmbeddingSet) -> None:
        """Take the vectors of all rows so far from the parent, whose first rows they are."""
        for kind, array in self._arrays.items():
            parent_array = parent.array(kind)
            assert parent_array is not None
            array.adopt(parent_array, self.n_rows[kind])


def _pack(store: Store, plan: BuildPlan, packer: _Packer, *, provenance: Mapping[str, Any]) -> str:
    """Write the set of the clips that have vectors, and of those that failed; return its id."""
    kinds = array_kinds(plan)
    n_adopted = _adoptable(plan)
    names = [INDEX_FILE, *(name for kind, (name, _) in _SIDE_TABLES.items() if kind in kinds)]
    with SetWriter(store.layout.sets, dataset=plan.dataset, spec=plan.spec) as writer, ExitStack() as stack:
        spools = {name: stack.enter_context(TableSpool(TABLE_SCHEMAS[name], writer.folder)) for name in names}
        rows = _Rows(packer, {kind: writer.array(kind, dim=dim) for kind, dim in kinds.items()}, spools)
        for run in packer.runs():
            rows.append(run, with_vectors=rows.n_rows["clips"] >= n_adopted)
            if rows.n_rows["clips"] == n_adopted and plan.parent is not None:
                rows.adopt(store.open_set(plan.parent))
        tables = {name: spool.table() for name, spool in spools.items()}
        tables[FAILURES_FILE] = rows_to_table(sorted(packer.failed, key=lambda row: row["clip_id"]), FAILURES_SCHEMA)
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
    try:
        packer = _Packer(store, plan, build_folder)
    except CorruptionError as error:
        for receipt in read_receipts(build_folder).values():
            try:
                receipt.check()
            except CorruptionError:
                remove_file(build_folder / "receipts" / f"{receipt.unit:06d}.json")
        error.add_note("run the same build again: it encodes this unit anew")
        raise
    if not packer.n_placed:
        remove_folder(build_folder)
        reasons = sorted({str(row["reason"]) for row in packer.failed})
        raise NothingDecodedError(
            f"no clip of {plan.dataset!r} could be decoded (reasons: {', '.join(reasons) or 'none selected'}); "
            "check the media root (--root) and the files"
        )
    pa.default_memory_pool().release_unused()  # what reading the plan took is free, and would be kept
    with store.publishing():
        set_id = _pack(store, plan, packer, provenance=provenance)
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
