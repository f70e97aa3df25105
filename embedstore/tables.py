"""Tables on their way to disk and back, a part at a time: memory does not grow with their rows.

A table's bytes depend on where its columns are cut, and its digest is part of a set's id. So rows that come in parts
are kept in files until all are there, and are written from there as whole columns, to the same bytes as ever.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError
from embedstore.files import scratch_file

__all__ = ["TableReader", "TableSpool", "rows_to_table", "table_bytes", "write_table"]

_ROW_GROUP_ROWS = 1 << 20
_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 8192
# Columns in which hardly two rows are alike: their dictionary takes 30 MB while it is made, and larger files. Shorter
# tables keep it, since the digests of tables that exist cover it.
_DISTINCT = frozenset(
    {"row", "frame_row", "window_row", "clip_id", "content_sha256", "vector_key", "covered_s", "effective_hz"}
)
_DICTIONARY_ROWS = 1 << 14


class _Blocks(io.RawIOBase):
    """Passes on what is written in blocks: Parquet writes each page header by itself."""

    def __init__(self, handle: Any) -> None:
        super().__init__()
        self._handle, self._held, self._size = handle, bytearray(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, payload: Any) -> int:
        view = memoryview(payload).cast("B")
        self._held += view
        self._size += len(view)
        if len(self._held) >= _BLOCK_BYTES:
            self.pass_on()
        return len(view)

    def pass_on(self) -> None:
        """Write what is held; `flush` is called by Parquet and by closing, and does nothing."""
        if self._held:
            self._handle.write(self._held)
            self._held = bytearray()


def write_table(handle: Any, table: pa.Table, **layout: Any) -> None:
    """Write a table as Parquet to a file object: equal tables give equal bytes under one pyarrow version.

    Columns of large strings are written as strings are. ``layout`` goes to `pyarrow.parquet.ParquetWriter`.
    """
    blocks = _Blocks(handle)
    if table.num_rows > _DICTIONARY_ROWS:
        layout.setdefault("use_dictionary", [name for name in table.column_names if name not in _DISTINCT])
    with pq.ParquetWriter(blocks, table.schema, compression="zstd", store_schema=False, **layout) as writer:
        writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
    blocks.pass_on()


def table_bytes(table: pa.Table, **layout: Any) -> bytes:
    """Return the Parquet file of a table, as `write_table` writes it."""
    sink = io.BytesIO()
    write_table(sink, table, **layout)
    return sink.getvalue()


def rows_to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of ``schema`` from one mapping a row; absent cells are null."""
    return pa.table(
        {name: pa.array([row.get(name) for row in rows], type=schema.field(name).type) for name in schema.names}
    )


class _Column:
    """The values of one column in files without a name: raw values, where strings end, which cells are not null."""

    def __init__(self, field: pa.Field, folder: Path) -> None:
        self._is_text = pa.types.is_string(field.type)
        self._type = pa.large_string() if self._is_text else field.type
        self._values, self._ends, self._present = (scratch_file(folder) for _ in range(3))
        self._n_chars = self._n_nulls = 0
        if self._is_text:
            self._ends.append(bytes(8))

    def append(self, cells: pa.Array) -> None:
        """Append cells of the column's type."""
        self._n_nulls += cells.null_count
        self._present.append(np.asarray(cells.is_valid()).tobytes())
        if not self._is_text:
            filled = cells.fill_null(0) if cells.null_count else cells
            self._values.append(filled.to_numpy().tobytes())
            return
        filled = cells.fill_null("") if cells.null_count else cells
        _, offsets, characters = filled.buffers()
        ends = np.frombuffer(offsets, np.int32, len(filled) + 1, 4 * filled.offset).astype(np.int64)
        if characters is not None:
            self._values.append(characters.slice(int(ends[0]), int(ends[-1] - ends[0])))
        self._ends.append((ends[1:] - ends[0] + self._n_chars).tobytes())
        self._n_chars += int(ends[-1] - ends[0])

    def array(self, n_rows: int) -> pa.Array:
        """Return all cells as one array over the mapped files."""
        bits = np.packbits(self._present.mapped(), bitorder="little") if self._n_nulls else None
        buffers = [None if bits is None else pa.py_buffer(bits)]
        if self._is_text:
            buffers.append(pa.py_buffer(self._ends.mapped()))
        buffers.append(pa.py_buffer(self._values.mapped()))
        return pa.Array.from_buffers(self._type, n_rows, buffers, null_count=self._n_nulls)

    def close(self) -> None:
        for file in (self._values, self._ends, self._present):
            file.close()


def _nulls(n_rows: int, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(n_rows, kind)])


class TableSpool:
    """A table that comes in parts: rows wait in files of ``folder``, and `table` shows them as whole columns.

    Use as a context manager; the files have no name, so nothing of them is left whatever happens.

    Parameters
    ----------
    schema : pyarrow.Schema
        Strings, whole numbers and floats.
    folder : Path
        On the disk that the table goes to.
    """

    def __init__(self, schema: pa.Schema, folder: Path) -> None:
        self._schema, self._folder = schema, folder
        self._n_rows = 0
        with storage_errors(folder, "write"):
            self._columns = [_Column(field, folder) for field in schema]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors(self._folder, "write"):
            for column in self._columns:
                column.close()

    def append(self, part: pa.Table) -> None:
        """Append rows; columns that the part lacks are null, and columns that the schema lacks are left out."""
        with storage_errors(self._folder, "write"):
            for column, field in zip(self._columns, self._schema, strict=True):
                is_there = field.name in part.column_names
                cells = part[field.name].cast(field.type) if is_there else _nulls(part.num_rows, field.type)
                for chunk in cells.chunks:
                    column.append(chunk)
        self._n_rows += part.num_rows

    def table(self) -> pa.Table:
        """Return all rows, mapped from the files; strings are large strings here, which have no limit of 2 GiB."""
        with storage_errors(self._folder, "write"):  # the last of the cells still wait for the disk
            arrays = [column.array(self._n_rows) for column in self._columns]
        return pa.table(arrays, names=self._schema.names)


class TableReader:
    """Row ranges of a Parquet file. Ranges that only go forward are read batch by batch.

    The first range that goes back reads the whole table: who asks for rows in any order needs all of it.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole: pa.Table | None = None
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._held: list[pa.RecordBatch] = []
        self._first = 0  # row of the table that the held batches begin with

    def parts(self, columns: Sequence[str] | None = None, *, n_rows: int) -> Iterator[pa.Table]:
        """Yield the table from front to back, at most so many rows at a time, or some of its columns.

        Raises
        ------
        CorruptionError
            The file is no readable table.
        """
        batches = self._stream(columns, n_rows=n_rows)
        while True:
            with storage_errors(self._path, "read"):
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, ValueError) as error:
                    raise CorruptionError(f"{self._path} is no readable table; run embedstore verify") from error
            if batch is None:
                return
            yield pa.Table.from_batches([batch])

    def rows(self, start: int, stop: int) -> pa.Table:
        """Return rows ``[start, stop)``.

        Raises
        ------
        CorruptionError
            The file is no readable table, or ends before.
        """
        with storage_errors(self._path, "read"):
            try:
                found = self._rows(start, stop)
            except (pa.ArrowException, ValueError) as error:
                raise CorruptionError(f"{self._path} is no readable table; run embedstore verify") from error
        if found.num_rows != stop - start:
            raise CorruptionError(f"{self._path} ends before row {stop}; run embedstore verify")
        return found

    def _rows(self, start: int, stop: int) -> pa.Table:
        if start < self._first and self._whole is None:
            self._batches, self._held = None, []
            with pq.ParquetFile(self._path) as parquet:
                self._whole = parquet.read(use_threads=False)
        if self._whole is not None:
            return self._whole.slice(start, stop - start)
        if self._batches is None:
            self._batches = self._stream()
        n_held = sum(batch.num_rows for batch in self._held)
        while self._held and self._first + self._held[0].num_rows <= start:
            n_held -= self._held[0].num_rows
            self._first += self._held.pop(0).num_rows
        while self._first + n_held < stop and (batch := next(self._batches, None)) is not None:
            if not self._held and self._first + batch.num_rows <= start:
                self._first += batch.num_rows
                continue
            self._held.append(batch)
            n_held += batch.num_rows
        schema = self._held[0].schema if self._held else pq.read_schema(self._path)
        return pa.Table.from_batches(self._held, schema).slice(start - self._first, stop - start)

    def _stream(self, columns: Sequence[str] | None = None, *, n_rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self._path, buffer_size=_BLOCK_BYTES, pre_buffer=False) as parquet:
            yield from parquet.iter_batches(batch_size=n_rows, columns=columns, use_threads=False)
