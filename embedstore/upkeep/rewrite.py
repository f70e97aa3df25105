"""Write a set again without some of its clips: the other rows keep their order and their bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedstore.embedding_set import EmbeddingSet, SetWriter
from embedstore.layout import FAILURES_FILE, FRAME_INDEX_FILE, INDEX_FILE, WINDOW_INDEX_FILE
from embedstore.shards import CHUNK_ROWS, ArrayWriter, shard_rows_for
from embedstore.store import Store
from embedstore.vector_array import VectorArray

__all__ = ["holds_any", "write_without"]

_SIDES = (
    ("frames", "frame_row", "n_frame_rows", FRAME_INDEX_FILE),
    ("windows", "window_row", "n_window_rows", WINDOW_INDEX_FILE),
)


def _is_among(column: pa.ChunkedArray, clip_ids: Collection[str]) -> npt.NDArray[np.bool_]:
    found = pc.is_in(column.combine_chunks(), value_set=pa.array(sorted(clip_ids), pa.string()))
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool)


def holds_any(opened: EmbeddingSet, clip_ids: Collection[str]) -> int:
    """Return how many of the clips a set has vectors or failures of."""
    tables = (opened.index, opened.failures)
    return sum(int(_is_among(table.column("clip_id"), clip_ids).sum()) for table in tables)


def _spans(keep: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield runs of kept rows."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
    yield from ((int(start), int(stop)) for start, stop in edges.reshape(-1, 2))


def _copy_rows(source: VectorArray, target: ArrayWriter, keep: npt.NDArray[np.bool_]) -> None:
    described = source.description
    is_our_layout = (described.chunk_rows, described.shard_rows) == (
        CHUNK_ROWS,
        shard_rows_for(described.dim, described.dtype),
    )
    for start, stop in _spans(keep):
        if start == 0 and is_our_layout:
            target.adopt(source, stop)  # whole shards before the first row that goes become hard links
            continue
        for block in source.raw.blocks(start, stop):
            target.append(block)


def _integers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    column = pc.fill_null(table.column(name).combine_chunks(), 0)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)


def _with_column(table: pa.Table, name: str, values: npt.NDArray[np.int64]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.int64()))


def write_without(store: Store, opened: EmbeddingSet, clip_ids: Collection[str]) -> str | None:
    """Write the set that is left without some clips; hold `Store.publishing` until it is committed.

    Returns
    -------
    str or None
        Id of the new set; None where no vector is left.
    """
    index = opened.index
    keep = ~_is_among(index.column("clip_id"), clip_ids)
    if not keep.any():
        return None
    failures = opened.failures
    tables = {FAILURES_FILE: failures.filter(pa.array(~_is_among(failures.column("clip_id"), clip_ids)))}
    left = _with_column(index.filter(pa.array(keep)), "row", np.arange(int(keep.sum()), dtype=np.int64))
    with SetWriter(store.layout.sets, dataset=opened.dataset, spec=opened.spec) as writer:
        clips = opened.clips
        _copy_rows(clips, writer.array("clips", dim=clips.shape[1]), keep)
        for kind, start_column, count_column, table_name in _SIDES:
            array = opened.array(kind)
            if array is None:
                continue
            # The rows of a clip stand together, in the order of the index.
            keep_rows = np.repeat(keep, _integers(index, count_column))
            _copy_rows(array, writer.array(kind, dim=array.shape[1]), keep_rows)
            tables[table_name] = opened.table(table_name).filter(pa.array(keep_rows))
            counts = _integers(left, count_column)
            left = _with_column(left, start_column, np.cumsum(counts) - counts)
        tables[INDEX_FILE] = left
        written = datetime.now(UTC).isoformat(timespec="seconds")
        return writer.finish(tables, provenance={**opened.provenance, "rewritten": written})
