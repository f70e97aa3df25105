"""Diff: what changed between two snapshots. Bit-identical and numerically equivalent vectors are told apart.

Sets are matched by data set and encoder title, clips by id and never by row. Only vectors whose bytes differ are
compared as numbers; memory is bounded by a block of rows, not by the sets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedstore.embedding_set import EmbeddingSet
from embedstore.history import ManifestEntry, SetEntry, Snapshot
from embedstore.store import Store
from embedstore.vector_array import VectorArray

__all__ = [
    "LEAST_COSINE",
    "RELATIVE_TOLERANCE",
    "ArrayDiff",
    "ManifestDiff",
    "SetDiff",
    "SnapshotDiff",
    "diff_sets",
    "diff_snapshots",
]

# Two vectors are numerically equivalent when no value differs by more than this part of the largest value of the
# vector, and their cosine is at least LEAST_COSINE. float16 has 10 fraction bits, so neighbouring values lie at most
# 2**-10 of their size apart: two such steps, what another kernel or another GPU may cost. float32: the differences
# of float32 forwards between devices, about 1e-5 of the largest value, with a margin of ten. Sets of two dtypes are
# held to the coarser one.
RELATIVE_TOLERANCE = {"float16": 2.0**-9, "float32": 1e-4}
LEAST_COSINE = 1 - 1e-4  # what storing as float16 was measured to cost at most

_BLOCK_BYTES = 8 << 20
_SPANS = {"frames": ("frame_row", "n_frame_rows"), "windows": ("window_row", "n_window_rows")}


@dataclass(frozen=True, kw_only=True)
class ArrayDiff:
    """The vectors of one kind, over the clips that both sets have.

    Attributes
    ----------
    n_rows : int
        Vectors compared.
    max_delta : float or None
        Largest absolute difference of two values; None where nothing could be compared.
    min_cosine : float or None
    only_in : {"a", "b"} or None
        The side that has such an array, where the other has none.
    """

    kind: str
    n_rows: int = 0
    max_delta: float | None = None
    min_cosine: float | None = None
    only_in: str | None = None


@dataclass(frozen=True, kw_only=True)
class SetDiff:
    """One set of two snapshots.

    Attributes
    ----------
    status : str
        ``identical`` (the same set), ``same-vectors`` (the same bytes for the same clips in other files),
        ``equivalent`` (within the tolerance), ``changed``, ``added``, ``removed``, or ``not-restorable`` (gc or
        forget-patient removed one of the two).
    added, removed, changed : tuple of str
        Clip ids.
    n_identical, n_equivalent : int
        Common clips whose vectors are equal in every bit; and those that differ within the tolerance.
    n_other_source : int
        Common clips whose vector key differs: another content, sampling or encoder.
    is_reordered : bool
        Whether the common clips stand in another order.
    failed_a, failed_b : int
        Clips without vectors.
    """

    dataset: str
    encoder: str
    status: str
    set_a: str | None
    set_b: str | None
    same_fingerprint: bool = True
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    n_identical: int = 0
    n_equivalent: int = 0
    n_other_source: int = 0
    is_reordered: bool = False
    failed_a: int = 0
    failed_b: int = 0
    arrays: tuple[ArrayDiff, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {**values, "arrays": [vars(array) for array in self.arrays]}


@dataclass(frozen=True, kw_only=True)
class ManifestDiff:
    """One manifest of two snapshots: ``same``, ``added``, ``removed`` or ``changed``, and which digests differ."""

    name: str
    status: str
    media_changed: bool = False
    annotations_changed: bool = False


@dataclass(frozen=True, kw_only=True)
class SnapshotDiff:
    """What differs between two snapshots."""

    a: str
    b: str
    sets: tuple[SetDiff, ...]
    manifests: tuple[ManifestDiff, ...]
    prompts_added: tuple[str, ...] = ()
    prompts_removed: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "a": self.a,
            "b": self.b,
            "tolerance": {"relative": RELATIVE_TOLERANCE, "least_cosine": LEAST_COSINE},
            "sets": [entry.to_dict() for entry in self.sets],
            "manifests": [vars(entry) for entry in self.manifests],
            "prompts_added": list(self.prompts_added),
            "prompts_removed": list(self.prompts_removed),
        }


@dataclass
class _Common:
    """The clips that two sets share: their rows on both sides, and what was found about each."""

    rows_a: npt.NDArray[np.int64]
    rows_b: npt.NDArray[np.int64]
    same_bits: npt.NDArray[np.bool_] = field(init=False)
    is_close: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.same_bits = np.ones(len(self.rows_a), dtype=bool)
        self.is_close = np.ones(len(self.rows_a), dtype=bool)


def _column(opened: EmbeddingSet, name: str) -> npt.NDArray[np.int64]:
    column = opened.index.column(name).combine_chunks()
    return np.asarray(pc.fill_null(column, 0).to_numpy(zero_copy_only=False), dtype=np.int64)


def _rows_from(array: VectorArray, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Read rows; a run of rows in order is one read."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
        return array[int(rows[0]) : int(rows[-1]) + 1]
    return array[rows]


def _blocks(counts: npt.NDArray[np.int64], block_rows: int) -> Iterator[tuple[int, int]]:
    """Yield spans of clips that hold at most ``block_rows`` rows, or one clip."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + block_rows, side="right")))
        yield start, stop
        start = stop


def _flat_rows(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return all rows of clips that begin at ``starts`` and have ``counts`` rows each.

    Examples
    --------
    >>> _flat_rows(np.array([7, 0]), np.array([2, 3])).tolist()
    [7, 8, 0, 1, 2]
    """
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    return np.repeat(starts - firsts, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def _cosines(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(norms > 0, np.clip(dots / np.where(norms > 0, norms, 1), -1, 1), both_zero.astype(np.float64))


def _compare_kind(kind: str, a: EmbeddingSet, b: EmbeddingSet, common: _Common) -> ArrayDiff:
    """Compare one kind of array over the common clips, noting in ``common`` what was found about each clip."""
    array_a, array_b = a.array(kind), b.array(kind)
    if array_a is None or array_b is None:
        return ArrayDiff(kind=kind, only_in="b" if array_a is None else "a")
    if kind == "clips":
        starts_a, starts_b = common.rows_a, common.rows_b
        counts = np.ones(len(starts_a), dtype=np.int64)
    else:
        start_column, count_column = _SPANS[kind]
        starts_a, starts_b = _column(a, start_column)[common.rows_a], _column(b, start_column)[common.rows_b]
        counts, counts_b = _column(a, count_column)[common.rows_a], _column(b, count_column)[common.rows_b]
        other_count = counts != counts_b
        common.same_bits[other_count] = common.is_close[other_count] = False
        counts = np.where(other_count, 0, counts)
    if array_a.shape[1] != array_b.shape[1]:
        common.same_bits[:] = common.is_close[:] = False
        return ArrayDiff(kind=kind)
    raw_a, raw_b = array_a.raw, array_b.raw
    tolerance = max(RELATIVE_TOLERANCE[raw.description.dtype] for raw in (raw_a, raw_b))
    max_delta, min_cosine = 0.0, 1.0
    for start, stop in _blocks(counts, max(1, _BLOCK_BYTES // (8 * array_a.shape[1]))):
        here = counts[start:stop]
        block_a = _rows_from(raw_a, _flat_rows(starts_a[start:stop], here))
        block_b = _rows_from(raw_b, _flat_rows(starts_b[start:stop], here))
        differ = np.ones(len(block_a), dtype=bool)
        if block_a.dtype == block_b.dtype:
            bits = np.dtype(f"u{block_a.dtype.itemsize}")
            differ = (block_a.view(bits) != block_b.view(bits)).any(axis=1)
        if not differ.any():
            continue
        owners = np.repeat(np.arange(start, stop), here)[differ]
        common.same_bits[owners] = False
        values_a, values_b = block_a[differ].astype(np.float64), block_b[differ].astype(np.float64)
        deltas = np.abs(values_a - values_b).max(axis=1)
        cosines = _cosines(values_a, values_b)
        far = (deltas > tolerance * np.abs(values_a).max(axis=1)) | (cosines < LEAST_COSINE)
        common.is_close[owners[far]] = False
        max_delta, min_cosine = max(max_delta, float(deltas.max())), min(min_cosine, float(cosines.min()))
    n_rows = int(counts.sum())
    if not n_rows:
        return ArrayDiff(kind=kind)
    return ArrayDiff(kind=kind, n_rows=n_rows, max_delta=max_delta, min_cosine=min_cosine)


def _ids_at(ids: pa.Array, mask: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(ids.filter(pa.array(mask)).to_pylist())


def diff_sets(a: EmbeddingSet, b: EmbeddingSet) -> SetDiff:
    """Compare two sets clip by clip; they may stand in different stores.

    Raises
    ------
    CorruptionError
        A file is not what was written.
    """
    if a.set_id == b.set_id:
        return SetDiff(
            dataset=b.dataset,
            encoder=b.spec.title,
            status="identical",
            set_a=a.set_id,
            set_b=b.set_id,
            n_identical=len(a),
            failed_a=a.n_failed,
            failed_b=b.n_failed,
        )
    ids_a, ids_b = (opened.index.column("clip_id").combine_chunks() for opened in (a, b))
    found = pc.index_in(ids_a, value_set=ids_b).to_numpy(zero_copy_only=False)
    in_both = ~np.isnan(found.astype(np.float64))
    common = _Common(np.flatnonzero(in_both).astype(np.int64), found[in_both].astype(np.int64))
    kinds = sorted({*a.described["arrays"], *b.described["arrays"]})
    arrays = tuple(_compare_kind(kind, a, b, common) for kind in kinds)
    keys_a, keys_b = (opened.index.column("vector_key").combine_chunks() for opened in (a, b))
    same_key = pc.equal(keys_a.take(pa.array(common.rows_a)), keys_b.take(pa.array(common.rows_b)))
    in_b = np.zeros(len(ids_b), dtype=bool)
    in_b[common.rows_b] = True
    added, removed = _ids_at(ids_b, ~in_b), _ids_at(ids_a, ~in_both)
    changed = _ids_at(ids_a.take(pa.array(common.rows_a)), ~common.is_close)
    n_identical = int(common.same_bits.sum())
    n_equivalent = int((common.is_close & ~common.same_bits).sum())
    if added or removed or changed or any(array.only_in for array in arrays):
        status = "changed"
    else:
        status = "equivalent" if n_equivalent else "same-vectors"
    return SetDiff(
        dataset=b.dataset,
        encoder=b.spec.title,
        status=status,
        set_a=a.set_id,
        set_b=b.set_id,
        same_fingerprint=a.fingerprint == b.fingerprint,
        added=added,
        removed=removed,
        changed=changed,
        n_identical=n_identical,
        n_equivalent=n_equivalent,
        n_other_source=len(same_key) - int(pc.sum(pc.fill_null(same_key, False)).as_py() or 0),
        is_reordered=bool((np.diff(common.rows_b) < 0).any()),
        failed_a=a.n_failed,
        failed_b=b.n_failed,
        arrays=arrays,
    )


def _pair(a: Sequence[SetEntry], b: Sequence[SetEntry]) -> Iterator[tuple[SetEntry | None, SetEntry | None]]:
    """Pair the sets of one data set and title: the same set, then the same fingerprint, then the only two left."""
    left, right = sorted(a), sorted(b)
    for key in ("set_id", "fingerprint"):
        for entry in list(left):
            twin = next((other for other in right if getattr(other, key) == getattr(entry, key)), None)
            if twin is not None:
                left.remove(entry)
                right.remove(twin)
                yield entry, twin
    if len(left) == len(right) == 1:
        yield left[0], right[0]
        return
    yield from ((entry, None) for entry in left)
    yield from ((None, entry) for entry in right)


def _diff_pair(store_a: Store, a: SetEntry | None, store_b: Store, b: SetEntry | None) -> SetDiff:
    present = b or a
    assert present is not None
    found = SetDiff(
        dataset=present.dataset,
        encoder=present.title,
        status="not-restorable",
        set_a=None if a is None else a.set_id,
        set_b=None if b is None else b.set_id,
    )
    sides = [(store, entry) for store, entry in ((store_a, a), (store_b, b)) if entry is not None]
    if any(not store.layout.set_folder(entry.set_id).is_dir() for store, entry in sides):
        return found
    if a is not None and b is not None:
        return diff_sets(store_a.open_set(a.set_id), store_b.open_set(b.set_id))
    store, entry = sides[0]
    opened = store.open_set(entry.set_id)
    clip_ids = tuple(opened.index.column("clip_id").to_pylist())
    if a is None:
        return replace(found, status="added", added=clip_ids, failed_b=opened.n_failed)
    return replace(found, status="removed", removed=clip_ids, failed_a=opened.n_failed)


def _diff_manifests(a: Sequence[ManifestEntry], b: Sequence[ManifestEntry]) -> Iterator[ManifestDiff]:
    before, after = ({entry.name: entry for entry in entries} for entries in (a, b))
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield ManifestDiff(name=name, status="added" if name in after else "removed")
            continue
        media = before[name].media_digest != after[name].media_digest
        annotations = before[name].annotations_digest != after[name].annotations_digest
        yield ManifestDiff(
            name=name,
            status="changed" if media or annotations else "same",
            media_changed=media,
            annotations_changed=annotations,
        )


def diff_snapshots(store: Store, a: Snapshot, b: Snapshot, *, store_b: Store | None = None) -> SnapshotDiff:
    """Compare two snapshots.

    Parameters
    ----------
    store : Store
        Where ``a`` stands, and ``b`` too without ``store_b``.

    Raises
    ------
    CorruptionError
        A file is not what was written.
    """
    other = store_b or store
    groups: dict[tuple[str, str], tuple[list[SetEntry], list[SetEntry]]] = defaultdict(lambda: ([], []))
    for side, snapshot in enumerate((a, b)):
        for entry in snapshot.sets:
            groups[(entry.dataset, entry.title)][side].append(entry)
    sets = [
        _diff_pair(store, entry_a, other, entry_b)
        for _, (side_a, side_b) in sorted(groups.items())
        for entry_a, entry_b in _pair(side_a, side_b)
    ]
    return SnapshotDiff(
        a=a.id,
        b=b.id,
        sets=tuple(sets),
        manifests=tuple(_diff_manifests(a.manifests, b.manifests)),
        prompts_added=tuple(sorted({*b.prompts} - {*a.prompts})),
        prompts_removed=tuple(sorted({*a.prompts} - {*b.prompts})),
    )
