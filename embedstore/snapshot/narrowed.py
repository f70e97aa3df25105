"""Write a part of a set that came in as a set of its own: its clips without frames, or all but some clips."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from embedstore.embedding_set import TABLE_SCHEMAS, EmbeddingSet, SetWriter
from embedstore.layout import FAILURES_FILE, INDEX_FILE
from embedstore.snapshot.outgoing import SIDES, copy_rows, flat_rows, integers, with_column
from embedstore.store import Store

__all__ = ["NARROWED_FROM", "NOT_FINITE", "write_narrowed"]

NARROWED_FROM = "narrowed_from"  # in the provenance of a set of which a part was taken: the id of the whole
NOT_FINITE = "not-finite"  # the reason of a clip that was left out because of its vectors


def write_narrowed(
    store: Store, opened: EmbeddingSet, *, clips_only: bool = False, left_out: Collection[int] = ()
) -> str:
    """Write a part of a set into a store.

    Parameters
    ----------
    clips_only : bool
        Leave the vectors of frames and windows out.
    left_out : collection of int
        Rows of clips with a vector that is not finite: they become failures.

    Returns
    -------
    str
        Id of the new set.
    """
    out = sorted(left_out)
    kept = np.setdiff1d(np.arange(len(opened), dtype=np.int64), np.array(out, dtype=np.int64))
    index = with_column(opened.index.take(pa.array(kept)), "row", np.arange(len(kept), dtype=np.int64))
    tables = {FAILURES_FILE: _with_failures(opened, out)}
    with SetWriter(store.layout.sets, dataset=opened.dataset, spec=opened.spec) as writer:
        copy_rows(opened.clips, kept, writer.array("clips", dim=opened.clips.shape[1]))
        for kind, start_column, count_column, table_name in SIDES:
            if clips_only:
                nothing = pa.nulls(index.num_rows, pa.int64())
                index = with_column(with_column(index, start_column, nothing), count_column, nothing)
                continue
            array = opened.array(kind)
            if array is None:
                continue
            counts = integers(index, count_column)
            rows = flat_rows(integers(index, start_column), counts)
            copy_rows(array, rows, writer.array(kind, dim=array.shape[1]))
            tables[table_name] = opened.table(table_name).take(pa.array(rows)).combine_chunks()
            index = with_column(index, start_column, np.cumsum(counts) - counts)
        tables[INDEX_FILE] = index.combine_chunks()
        return writer.finish(tables, provenance={**opened.provenance, NARROWED_FROM: opened.set_id})


def _with_failures(opened: EmbeddingSet, rows: Collection[int]) -> pa.Table:
    """Return the failures, and among them the clips that are left out."""
    if not rows:
        return opened.failures
    schema = TABLE_SCHEMAS[FAILURES_FILE]
    clips = opened.index.take(pa.array(rows, pa.int64()))
    cells = {name: clips.column(name) for name in ("clip_id", "content_sha256", "vector_key")}
    cells |= {"reason": [NOT_FINITE] * len(rows), "detail": pa.nulls(len(rows), pa.string())}
    more = pa.table({name: cells[name] for name in schema.names}, schema=schema)
    return pa.concat_tables([opened.failures.cast(schema), more]).sort_by("clip_id").combine_chunks()
