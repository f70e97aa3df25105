"""Join the recipient's own labels to an imported data set: by clip id, by a map of pseudonyms, or by a join key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from embedstore.disk import storage_errors
from embedstore.errors import ContentError, FormatError, UnknownNameError
from embedstore.layout import is_digest
from embedstore.manifest import Manifest, ManifestField
from embedstore.manifest.cells import composed, read_cell
from embedstore.manifest.fields import KEY_FRAMES_COLUMN, STANDARD, schema_of
from embedstore.manifest.stored import HEADER_KEY
from embedstore.snapshot.pseudonyms import keyed_digest
from embedstore.snapshot.tables import bound_table
from embedstore.store import Store

__all__ = ["JoinOutcome", "LabelTable", "join_labels", "read_labels"]

# What a table of labels may set in a manifest: the rest is the sender's word.
_OPEN_ROLES = ("label", "subgroup", "extra")


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Labels by clip.

    Attributes
    ----------
    clip_ids : tuple of str or None
    digests : tuple of str or None
        SHA-256 of the media files, for a join by key.
    fields : tuple of ManifestField
    columns : mapping of str to list
    """

    clip_ids: tuple[str | None, ...]
    digests: tuple[str | None, ...]
    fields: tuple[ManifestField, ...]
    columns: Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class JoinOutcome:
    """How a table of labels fitted a data set.

    Attributes
    ----------
    dataset : str
    columns : tuple of str
    n_matched : int
        Clips of the data set that have a row in the table.
    n_unmatched : int
        Clips that have none.
    n_unused : int
        Rows of the table that belong to no clip.
    """

    dataset: str
    columns: tuple[str, ...]
    n_matched: int
    n_unmatched: int
    n_unused: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {**vars(self), "columns": list(self.columns)}


def read_labels(path: str | Path) -> LabelTable:
    """Read labels from a manifest, another Parquet file, or a CSV: a column ``clip_id`` or ``sha256``, and labels.

    Raises
    ------
    FormatError
        It has neither column, or is no table.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
        with storage_errors(path, "read"):
            try:
                table = pyarrow.csv.read_csv(path, convert_options=options)
            except (pa.ArrowException, ValueError) as error:
                raise FormatError(f"{path} is no readable CSV: {error}") from error
        return _from_table(table, path)
    with storage_errors(path, "read"):
        try:
            with pq.ParquetFile(path) as parquet:
                is_manifest = HEADER_KEY in (parquet.metadata.metadata or {})
                table = None if is_manifest else parquet.read(use_threads=False)
        except (pa.ArrowException, ValueError) as error:
            raise FormatError(f"{path} is no readable Parquet file; labels come as Parquet or CSV") from error
    if table is not None:
        return _from_table(table, path)
    bound_table(path, keys=(HEADER_KEY,))
    manifest = Manifest.read(path)
    manifest.require_valid()
    fields = tuple(f for f in manifest.fields.values() if f.role in _OPEN_ROLES and _has_values(manifest, f.name))
    return LabelTable(
        clip_ids=tuple(manifest.clip_ids),
        digests=tuple(manifest.column("sha256")),
        fields=fields,
        columns={field.name: manifest.column(field.name) for field in fields},
    )


def _has_values(manifest: Manifest, name: str) -> bool:
    return bool(manifest.table.column(name).null_count < len(manifest))


def _from_table(table: pa.Table, path: Path) -> LabelTable:
    names = table.column_names
    if len(set(names)) != len(names) or not {"clip_id", "sha256"} & set(names):
        raise FormatError(
            f"{path} needs a column clip_id, or sha256 for a join by key; it has {', '.join(names[:8])}"
        )
    none = [None] * table.num_rows
    texts = {
        name: [None if cell is None else composed(str(cell)) for cell in table.column(name).to_pylist()]
        for name in ("clip_id", "sha256")
        if name in names
    }
    fields, columns = [], {}
    for name in names:
        standard = STANDARD.get(name)
        if name == KEY_FRAMES_COLUMN or (standard is not None and standard.role not in _OPEN_ROLES):
            continue
        cells = table.column(name).to_pylist()
        field = standard or ManifestField(name=name, role="label", kind=_kind(table.column(name).type, cells))
        fields.append(field)
        columns[name] = [read_cell(cell, field.kind)[0] for cell in cells]
    return LabelTable(
        clip_ids=tuple(texts.get("clip_id", none)),
        digests=tuple(texts.get("sha256", none)),
        fields=tuple(fields),
        columns=columns,
    )


def _kind(found: pa.DataType, cells: Sequence[Any]) -> str:
    if pa.types.is_boolean(found):
        return "boolean"
    if pa.types.is_integer(found) or pa.types.is_floating(found):
        return "number"
    present = [cell for cell in cells if cell is not None]
    is_number = bool(present) and all(read_cell(str(cell), "number")[1] is None for cell in present)
    return "number" if is_number else "category"


def join_labels(
    store: Store,
    table: LabelTable,
    *,
    datasets: Sequence[str],
    pseudonyms: Mapping[str, Mapping[str, str]] | None = None,
    join_key: bytes | None = None,
) -> list[JoinOutcome]:
    """Put labels into the manifests of imported data sets, and commit them.

    Parameters
    ----------
    datasets : sequence of str
    pseudonyms : mapping, optional
        Data set to {original clip id: pseudonym}, from `embedstore.snapshot.pseudonyms.read_map`.
    join_key : bytes, optional
        Key that both labs hold.

    Returns
    -------
    list of JoinOutcome
        One a data set.

    Raises
    ------
    UnknownNameError
        The table has no label.
    ContentError
        Not one row belongs to a clip, or a clip has two rows.
    """
    if not table.fields:
        raise UnknownNameError("the table has no column of labels beside its ids")
    outcomes, changed = [], []
    for name in datasets:
        manifest = store.manifest(name)
        row_of = _rows(manifest, table, (pseudonyms or {}).get(name), join_key)
        matched = [row_of.get(clip_id) for clip_id in manifest.clip_ids]
        n_matched = sum(row is not None for row in matched)
        outcomes.append(
            JoinOutcome(
                dataset=name,
                columns=tuple(field.name for field in table.fields),
                n_matched=n_matched,
                n_unmatched=len(matched) - n_matched,
                n_unused=len(table.clip_ids) - n_matched,
            )
        )
        if n_matched:
            changed.append(_labelled(manifest, table, matched))
    if not changed:
        raise ContentError(
            "no row of the table belongs to a clip of the snapshot: its ids may be pseudonyms; give the sender's map "
            "with --map, or the key that both labs hold with --join-key"
        )
    for manifest in changed:
        store.add_manifest(manifest)
    return outcomes


def _rows(
    manifest: Manifest, table: LabelTable, pseudonyms: Mapping[str, str] | None, join_key: bytes | None
) -> dict[str, int]:
    """Return the row of the table of each clip that has one."""
    known = set(manifest.clip_ids)
    clip_of: dict[str, str] = {}
    if join_key is not None:
        pairs = zip(manifest.column("sha256"), manifest.clip_ids, strict=True)
        clip_of = {digest: clip_id for digest, clip_id in pairs if digest is not None}
    found: dict[str, int] = {}
    for row, (clip_id, digest) in enumerate(zip(table.clip_ids, table.digests, strict=True)):
        if join_key is not None:
            is_usable = digest is not None and is_digest(digest.lower())
            target = clip_of.get(keyed_digest(join_key, str(digest).lower())) if is_usable else None
        else:
            target = clip_id if pseudonyms is None else pseudonyms.get(clip_id or "")
        if target is None or target not in known:
            continue
        if target in found:
            raise ContentError(f"the table has two rows for the clip {target!r}; keep one")
        found[target] = row
    return found


def _labelled(manifest: Manifest, table: LabelTable, rows: Sequence[int | None]) -> Manifest:
    fields = {**manifest.fields}
    columns = {name: manifest.column(name) for name in manifest.fields}
    for field in table.fields:
        own = fields.get(field.name)
        if own is not None and own.role not in _OPEN_ROLES:
            continue
        fields[field.name] = field
        cells = table.columns[field.name]
        columns[field.name] = [None if row is None else cells[row] for row in rows]
    schema = schema_of(fields)
    columns[KEY_FRAMES_COLUMN] = manifest.table.column(KEY_FRAMES_COLUMN).to_pylist()
    made = pa.table({name: pa.array(columns[name], type=schema.field(name).type) for name in schema.names})
    return replace(manifest, table=made, fields=fields)
