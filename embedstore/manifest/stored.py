"""A manifest as one Parquet file: its table, and its header beside it. Reading refuses whatever is not ours."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedstore.dataset import DatasetFacts
from embedstore.errors import FormatError, ManifestError
from embedstore.identity import canonical_json
from embedstore.json_files import parse_json
from embedstore.manifest.fields import KEY_FRAMES_COLUMN, ManifestField, schema_of
from embedstore.manifest.table import MANIFEST_VERSION, Manifest

__all__ = ["HEADER_KEY", "format_manifest", "parse_manifest"]

HEADER_KEY = b"embedstore.manifest"

# What a file may ask for once it is unpacked: far above any data set, far below what takes a machine down.
_MAX_ROWS = 20_000_000
_MAX_COLUMNS = 2_000
_MAX_UNPACKED_BYTES = 8 << 30
_STATEMENTS = ("patient_ids", "split_rule", "recipe")


def format_manifest(manifest: Manifest) -> bytes:
    """Return the Parquet file of a manifest: equal manifests give equal bytes under one pyarrow version."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, manifest.table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(manifest.table, row_group_size=1 << 20)
        writer.add_key_value_metadata({HEADER_KEY: canonical_json(manifest.header())})
    return bytes(sink.getvalue())


def parse_manifest(payload: bytes, *, source: str) -> Manifest:
    """Read the bytes of a manifest; rules are not checked, the structure is.

    Raises
    ------
    FormatError
        They are no manifest, ask for more than a manifest may have, or are of a newer version; the message names
        ``source``.
    """
    try:
        with pq.ParquetFile(
            pa.BufferReader(payload), thrift_string_size_limit=256 << 20, thrift_container_size_limit=1 << 24
        ) as parquet:
            header_bytes = (parquet.metadata.metadata or {}).get(HEADER_KEY)
            if header_bytes is None:
                raise FormatError(f"{source} is no manifest: make one with embedstore manifest make")
            _require_bounded(parquet.metadata, source=source)
            table = parquet.read(use_threads=False)
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        # The bytes are in memory: an OSError here is pyarrow's word for pages that do not unpack.
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{source} is no manifest: it is no readable Parquet file") from error
    return _from_parts(table, parse_json(header_bytes, source=f"the header of {source}"), source=source)


def _from_parts(table: pa.Table, header: Any, *, source: str) -> Manifest:
    try:
        version = header["version"]
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise FormatError(f"{source} has a manifest version that is none: {version!r}")
        if version > MANIFEST_VERSION:
            raise FormatError(f"{source} is a manifest of version {version}: it needs a newer embedstore")
        fields = {entry["name"]: ManifestField.from_dict(entry) for entry in header["fields"]}
        dataset = DatasetFacts.model_validate(header["dataset"])
        statements = {key: header[key] for key in _STATEMENTS}
        unreadable = dict(header["unreadable"])
        if (
            len(fields) != len(header["fields"])
            or not all(isinstance(text, str) for text in [*statements.values(), *unreadable.values()])
            or not all(key.partition("\t")[0] in {*fields, KEY_FRAMES_COLUMN} for key in unreadable)
        ):
            raise ValueError("a statement is of another type, or a column stands twice")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        reason = " ".join(str(error).split())
        raise FormatError(f"{source} has a broken manifest header: {reason}") from error
    try:
        return Manifest(
            table=_checked_table(table, fields, source=source),
            fields=fields,
            dataset=dataset,
            unreadable=unreadable,
            **statements,
        )
    except ManifestError as error:
        raise FormatError(f"{source} has a broken manifest header: {error}") from error


def _checked_table(table: pa.Table, fields: dict[str, ManifestField], *, source: str) -> pa.Table:
    expected = schema_of(fields)
    if sorted(table.column_names) != sorted(expected.names):
        raise FormatError(f"{source} has other columns than its header says")
    for column in expected:
        if not _is_stored_as(table.schema.field(column.name).type, column.type):
            raise FormatError(f"{source} has the column {column.name!r} in another type than its header says")
    checked = pa.table({name: table.column(name).combine_chunks() for name in expected.names}).cast(expected)
    ids = checked.column("clip_id").fill_null("")  # the order of UTF-8 is that of its characters
    if pc.any(pc.greater(ids.slice(0, max(len(ids) - 1, 0)), ids.slice(1))).as_py():
        raise FormatError(f"{source} has rows that are not in the order of their clip ids")
    entries = checked.column(KEY_FRAMES_COLUMN)
    if entries.null_count or pc.list_flatten(entries).null_count:
        raise FormatError(f"{source} has empty places in its key-frame table")
    pa.default_memory_pool().release_unused()  # the columns as they were read
    return checked


def _is_stored_as(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a Parquet column is of the declared type; Parquet renames the entries of a list."""
    if pa.types.is_list(expected):
        return bool(pa.types.is_list(found) and found.value_type == expected.value_type)
    return bool(found == expected)


def _require_bounded(metadata: pq.FileMetaData, *, source: str) -> None:
    unpacked = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    for count, limit, what in (
        (metadata.num_rows, _MAX_ROWS, "rows"),
        (metadata.num_columns, _MAX_COLUMNS, "columns"),
        (unpacked, _MAX_UNPACKED_BYTES, "bytes"),
    ):
        if count > limit:
            raise FormatError(f"{source} asks for {count} {what}, more than the {limit} that a manifest may have")
