"""Reading vectors from Parquet, row group by row group: one column of lists, or a column for each dimension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedstore.disk import storage_errors
from embedstore.errors import FormatError, HostileInputError, StorageError
from embedstore.ingest.source import (
    ID_NAMES,
    IngestSource,
    SourceRows,
    refuse_bomb,
    require_vectors,
    rows_per_block,
    the_one_of,
)

__all__ = ["open_parquet"]

_FRAME_COLUMN = "frame"
# What pandas writes for a row index without a name; it is no part of a vector.
_ROW_INDEX = "__index_level_0__"
_MAX_COLUMNS = 100_000
_MAX_ROWS = 1 << 32
_MAX_DIM = 65_536
_KEY_ROWS = 65_536
_BUFFERS_BYTES, _MIN_BUFFER_BYTES, _MAX_BUFFER_BYTES = 32 << 20, 16 << 10, 1 << 20


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into one sentence."""
    try:
        yield
    except (FormatError, HostileInputError, StorageError):
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            with storage_errors(path, "read"):
                raise
        raise FormatError(f"{path} is no readable Parquet file: it is cut off or damaged") from error


def _is_list(column_type: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(column_type) for is_kind in kinds)


def _plain(column: pa.Array) -> pa.Array:
    while isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column


def _plain_type(column_type: pa.DataType) -> pa.DataType:
    while isinstance(column_type, pa.BaseExtensionType):
        column_type = column_type.storage_type
    return column_type


class _Table:
    """An open Parquet file and the columns that make its vectors."""

    def __init__(self, path: Path, parquet: pq.ParquetFile) -> None:
        self._path, self._parquet = path, parquet
        self.n_rows = int(parquet.metadata.num_rows)
        self._schema = parquet.schema_arrow
        names = list(self._schema.names)
        if len(set(names)) != len(names):
            raise FormatError(f"{path} has two columns of one name")
        if len(names) > _MAX_COLUMNS or not 1 <= self.n_rows <= _MAX_ROWS:
            raise FormatError(f"{path} has {self.n_rows} rows and {len(names)} columns")
        found = the_one_of(ID_NAMES, names, what=str(path))
        if found is None:
            raise FormatError(f"{path} has no column 'clip_id'; it has {', '.join(names[:10])}")
        self._id_name = found
        self.has_frames = _FRAME_COLUMN in names
        self.vector_names, self.is_list = self._vector_columns(names)
        self._refuse_bombs()
        self.dim, self.dtype = self._shape()

    def _vector_columns(self, names: Sequence[str]) -> tuple[list[str], bool]:
        rest = [name for name in names if name not in (self._id_name, _FRAME_COLUMN, _ROW_INDEX)]
        types = {name: _plain_type(self._schema.field(name).type) for name in rest}
        lists = [name for name in rest if _is_list(types[name])]
        if len(lists) > 1:
            raise FormatError(f"{self._path} has several columns of lists ({', '.join(lists)}); leave the vectors")
        if lists:
            return lists, True
        if not rest:
            raise FormatError(f"{self._path} has no column of vectors beside {self._id_name!r}")
        for name in rest:
            if not pa.types.is_floating(types[name]):
                raise FormatError(
                    f"{self._path} has the column {name!r} of {types[name]} among its vectors; drop it, or put the "
                    "vectors into one column of lists"
                )
        return rest, False

    def _refuse_bombs(self) -> None:
        """Hold the values that the file claims against its size, before any is decoded."""
        metadata = self._parquet.metadata
        wanted = set(self.vector_names)
        n_values = sum(
            group.column(at).num_values
            for group in (metadata.row_group(number) for number in range(metadata.num_row_groups))
            for at in range(group.num_columns)
            if group.column(at).path_in_schema.split(".")[0] in wanted or group.column(at).path_in_schema in wanted
        )
        refuse_bomb(4 * n_values, self._path.stat().st_size, what=str(self._path))
        if n_values > self.n_rows * _MAX_DIM:
            raise FormatError(f"{self._path} claims {n_values} values in {self.n_rows} rows")

    def _shape(self) -> tuple[int, np.dtype[Any]]:
        if not self.is_list:
            types = {_plain_type(self._schema.field(name).type) for name in self.vector_names}
            dtype = np.result_type(*(column_type.to_pandas_dtype() for column_type in types))
            return len(self.vector_names), np.dtype(dtype)
        column_type = _plain_type(self._schema.field(self.vector_names[0]).type)
        if pa.types.is_fixed_size_list(column_type):
            dim = int(column_type.list_size)
        else:
            first = next(self._batches(self.vector_names, 1)).column(0)
            dim = len(_plain(first)[0]) if first.null_count == 0 else 0
        if not pa.types.is_floating(column_type.value_type):
            raise FormatError(
                f"column {self.vector_names[0]!r} of {self._path} holds lists of {column_type.value_type}, "
                "not of float16, float32 or float64"
            )
        return dim, np.dtype(column_type.value_type.to_pandas_dtype())

    def _batches(self, names: Sequence[str], n_rows: int) -> Iterator[pa.RecordBatch]:
        with _readable(self._path):
            yield from self._parquet.iter_batches(batch_size=n_rows, columns=list(names), use_threads=False)

    def ids(self) -> Iterator[Sequence[str]]:
        """Yield the ids in blocks."""
        for batch in self._batches([self._id_name], _KEY_ROWS):
            column = _plain(batch.column(0))
            is_whole = pa.types.is_integer(column.type)
            is_text = pa.types.is_dictionary(column.type) or pa.types.is_string(column.type)
            if column.null_count or not (is_whole or is_text or pa.types.is_large_string(column.type)):
                what = "an empty cell" if column.null_count else str(column.type)
                raise FormatError(f"column {self._id_name!r} of {self._path} holds {what}, not an id in each row")
            with _readable(self._path):
                yield column.cast(pa.string()).to_pylist()

    def frame_numbers(self) -> npt.NDArray[np.int64]:
        """Return the frame number of each row."""
        parts = []
        for batch in self._batches([_FRAME_COLUMN], _KEY_ROWS):
            column = _plain(batch.column(0))
            if column.null_count or not pa.types.is_integer(column.type):
                what = "an empty cell" if column.null_count else str(column.type)
                raise FormatError(f"column 'frame' of {self._path} holds {what}, not a whole number in each row")
            with _readable(self._path):
                parts.append(column.cast(pa.int64()).to_numpy())
        return np.concatenate(parts)

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the vectors in blocks."""
        at = 0
        for batch in self._batches(self.vector_names, rows_per_block(self.dim * self.dtype.itemsize)):
            yield self._lists(batch.column(0), at) if self.is_list else self._columns(batch, at)
            at += batch.num_rows

    def _lists(self, column: pa.Array, at: int) -> npt.NDArray[Any]:
        lists = _plain(column)
        name = self.vector_names[0]
        lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy()
        wrong = np.flatnonzero(lengths != self.dim)
        if wrong.size:
            length = int(lengths[wrong[0]])
            found = "no vector" if length < 0 else f"{length} dimensions"
            raise FormatError(
                f"column {name!r} of {self._path} has {found} in row {at + int(wrong[0])}, "
                f"but {self.dim} dimensions in the first row"
            )
        values = lists.flatten()
        if values.null_count:
            raise FormatError(f"column {name!r} of {self._path} has an empty place in a vector after row {at}")
        return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(lists), self.dim)

    def _columns(self, batch: pa.RecordBatch, at: int) -> npt.NDArray[Any]:
        block = np.empty((batch.num_rows, self.dim), dtype=self.dtype)
        for number, name in enumerate(self.vector_names):
            column = _plain(batch.column(number))
            if column.null_count:
                raise FormatError(f"column {name!r} of {self._path} has an empty cell after row {at}")
            block[:, number] = column.to_numpy(zero_copy_only=False)
        return block


def _open(path: Path, *, buffer_bytes: int) -> pq.ParquetFile:
    return pq.ParquetFile(
        path,
        buffer_size=buffer_bytes,
        pre_buffer=False,
        thrift_string_size_limit=256 << 20,
        thrift_container_size_limit=1 << 24,
        page_checksum_verification=True,
    )


def open_parquet(path: Path) -> IngestSource:
    """Open a table of a clip id and a vector a row; with a column ``frame`` its rows are frames.

    Raises
    ------
    FormatError, HostileInputError
        It has no such columns, is damaged, or would exhaust the machine.
    """
    with ExitStack() as stack, _readable(path):
        with _open(path, buffer_bytes=_MIN_BUFFER_BYTES) as looked_at:
            n_columns = max(1, looked_at.metadata.num_columns)
        # Each column has a buffer of its own.
        buffer_bytes = min(max(_MIN_BUFFER_BYTES, _BUFFERS_BYTES // n_columns), _MAX_BUFFER_BYTES)
        parquet = stack.enter_context(_open(path, buffer_bytes=buffer_bytes))
        table = _Table(path, parquet)
        require_vectors(table.dtype, (table.n_rows, table.dim), what=str(path))
        rows = SourceRows(
            n_rows=table.n_rows,
            dim=table.dim,
            dtype=table.dtype,
            ids=table.ids,
            blocks=table.blocks,
            frame_numbers=table.frame_numbers if table.has_frames else None,
        )
        return IngestSource(
            format="parquet",
            clips=None if table.has_frames else rows,
            frames=rows if table.has_frames else None,
            column_names=table.vector_names,
            resources=stack.pop_all(),
        )
