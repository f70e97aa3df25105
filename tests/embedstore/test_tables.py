"""Tables that come and go in parts: the same bytes and rows as whole ones."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedstore import disk
from embedstore.errors import CorruptionError, StorageError
from embedstore.tables import TableReader, TableSpool, table_bytes, write_table

SCHEMA = pa.schema([("clip_id", pa.string()), ("frame", pa.int64()), ("time_s", pa.float64()), ("note", pa.string())])


def make_table(n_rows: int, *, seed: int = 0) -> pa.Table:
    """Ids too many for one dictionary page, and cells that are null, empty and not ASCII."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "clip_id": [f"{number:064x}" for number in range(n_rows)],
            "frame": pa.array(rng.integers(0, 9, n_rows), mask=rng.random(n_rows) < 0.1),
            "time_s": rng.random(n_rows),
            "note": [(None, "", "é", "a note")[choice] for choice in rng.integers(0, 4, n_rows)],
        },
        schema=SCHEMA,
    )


@pytest.mark.parametrize("n_rows", [0, 1, 7, 50_000])
def test_parts_give_the_bytes_of_the_whole(tmp_path: Path, n_rows: int) -> None:
    whole = make_table(n_rows)
    cuts = sorted(np.random.default_rng(1).integers(0, n_rows + 1, 20).tolist())
    with TableSpool(SCHEMA, tmp_path) as spool:
        for start, stop in zip([0, *cuts], [*cuts, n_rows], strict=True):
            spool.append(whole.slice(start, stop - start))
        found = spool.table()
        written = io.BytesIO()
        write_table(written, found)
        assert found.num_rows == n_rows
        assert found.cast(SCHEMA).equals(whole)
        assert written.getvalue() == table_bytes(whole)
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_are_those_of_a_plain_parquet_writer() -> None:
    whole, sink = make_table(16_384), io.BytesIO()
    pq.write_table(whole, sink, row_group_size=1 << 20, compression="zstd", store_schema=False)
    assert table_bytes(whole) == sink.getvalue()


def test_long_columns_of_ids_and_row_numbers_have_no_dictionary() -> None:
    long, sink = make_table(16_385), io.BytesIO()
    pq.write_table(
        long,
        sink,
        row_group_size=1 << 20,
        compression="zstd",
        store_schema=False,
        use_dictionary=["frame", "time_s", "note"],
    )
    assert table_bytes(long) == sink.getvalue()
    columns = pq.read_metadata(io.BytesIO(table_bytes(long))).row_group(0)
    assert [columns.column(at).has_dictionary_page for at in range(4)] == [False, True, True, True]


def test_a_column_that_a_part_lacks_is_null(tmp_path: Path) -> None:
    whole = make_table(5)
    with TableSpool(SCHEMA, tmp_path) as spool:
        spool.append(whole.drop_columns(["note"]))
        spool.append(whole.select(["note", "time_s", "frame", "clip_id"]))
        assert spool.table()["note"].to_pylist() == [None] * 5 + whole["note"].to_pylist()


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        TableSpool(SCHEMA, tmp_path / "file")


@pytest.mark.parametrize("n_rows", [7, 50_000])
def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_rows: int) -> None:
    """Whether the write that fails is one of many or the last, which waits for `table`."""
    seen = 0

    def counted(operation: str, path: Path) -> None:
        nonlocal seen
        seen += operation == "write"
        if operation == "write" and seen == fail:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def act() -> None:
        with TableSpool(SCHEMA, tmp_path) as spool:
            spool.append(make_table(n_rows))
            spool.table()

    monkeypatch.setattr(disk, "fault_hook", counted)
    fail = 0
    act()
    for fail in range(1, seen + 1):  # noqa: B007 - read by the hook
        seen = 0
        with pytest.raises(StorageError, match=f"cannot write {tmp_path}: the disk is full"):
            act()
    assert fail > 3 and list(tmp_path.iterdir()) == []


def test_ranges_forward_and_back(tmp_path: Path) -> None:
    whole = make_table(30_000)
    path = tmp_path / "rows.parquet"
    path.write_bytes(table_bytes(whole))
    reader = TableReader(path)
    for start, stop in [(0, 0), (0, 5), (5, 9000), (9000, 9001), (20_000, 30_000), (100, 300), (29_999, 30_000)]:
        assert reader.rows(start, stop).equals(whole.slice(start, stop - start)), (start, stop)
    with pytest.raises(CorruptionError, match="ends before row 30001"):
        TableReader(path).rows(29_000, 30_001)


def test_what_is_no_table_is_corruption(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(CorruptionError, match="rows.parquet is no readable table"):
        TableReader(path).rows(0, 1)
