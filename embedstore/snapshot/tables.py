"""Parquet files of strangers: bounded before they are read, then held to one exact schema."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embedstore.errors import HostileInputError

__all__ = ["read_table"]

_THRIFT_STRING_BYTES = 16 << 20
_THRIFT_CONTAINERS = 1 << 20
_MAX_ROW_GROUPS = 10_000
_MAX_COLUMNS = 2_000
# A file may unpack to 200 times its size, and to a megabyte whatever its size: text that repeats packs well, and no
# table of ours packs better.
_RATIO = 200
_FREE_BYTES = 1 << 20
_MAX_UNPACKED_BYTES = 1 << 30
_CODECS = ("ZSTD", "UNCOMPRESSED")


def _refuse(path: Path, what: str) -> HostileInputError:
    return HostileInputError(f"{path.parent.name}/{path.name} is no table of a snapshot: {what}")


def bound_table(path: Path, *, n_rows: int | None = None, keys: tuple[bytes, ...] = ()) -> None:
    """Raise where a Parquet file asks for more than it may, is packed otherwise, or holds metadata that is not ours.

    Parameters
    ----------
    n_rows : int, optional
        Rows that it must have.
    keys : tuple of bytes
        Keys of key-value metadata that it may have.

    Raises
    ------
    HostileInputError
    """
    size = path.stat().st_size
    try:
        with pq.ParquetFile(
            path, thrift_string_size_limit=_THRIFT_STRING_BYTES, thrift_container_size_limit=_THRIFT_CONTAINERS
        ) as parquet:
            metadata = parquet.metadata
            if not set(metadata.metadata or {}) <= set(keys):
                raise _refuse(path, "it holds metadata of its own")
            if metadata.num_row_groups > _MAX_ROW_GROUPS or metadata.num_columns > _MAX_COLUMNS:
                raise _refuse(path, "it has too many row groups or columns")
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            counted = sum(group.num_rows for group in groups)
            if counted != metadata.num_rows or (n_rows is not None and counted != n_rows):
                raise _refuse(path, f"it has {counted} rows, the description says {n_rows}")
            columns = [group.column(number) for group in groups for number in range(group.num_columns)]
            unpacked = sum(max(0, column.total_uncompressed_size) for column in columns)
            if unpacked > max(_FREE_BYTES, min(_RATIO * size, _MAX_UNPACKED_BYTES)):
                raise _refuse(path, f"its {size} bytes ask for {unpacked}")
            for column in columns:
                if column.compression not in _CODECS:
                    raise _refuse(path, f"it is compressed with {column.compression}")
                if column.num_values < 0 or column.file_path:
                    raise _refuse(path, "a column is broken, or stands in another file")
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, HostileInputError):
            raise
        raise _refuse(path, "it is no readable Parquet file") from error


def read_table(path: Path, schema: pa.Schema, *, n_rows: int) -> pa.Table:
    """Read a table of a stranger.

    Parameters
    ----------
    schema : pyarrow.Schema
        Its columns, in order and type.
    n_rows : int

    Raises
    ------
    HostileInputError
        It is anything else.
    """
    bound_table(path, n_rows=n_rows)
    try:
        with pq.ParquetFile(path, arrow_extensions_enabled=False) as parquet:
            found = parquet.schema_arrow
            if found.names != schema.names or [str(kind) for kind in found.types] != [str(t) for t in schema.types]:
                raise _refuse(path, "its columns are not those of such a table")
            table = parquet.read(use_threads=False)
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, HostileInputError):
            raise
        raise _refuse(path, "its pages do not unpack") from error
    if table.num_rows != n_rows:
        raise _refuse(path, f"it unpacks to {table.num_rows} rows, not {n_rows}")
    return table
