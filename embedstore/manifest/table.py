"""`Manifest`: which clips, whose, which split, which labels. A validated Parquet table, one row a clip.

The key-frame table is stored inside the same file as a nested column, so that one file is the whole manifest.
Two digests: *media* covers content and every value that decoding or sampling reads; *annotations* the rest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedstore.dataset import DatasetFacts
from embedstore.errors import FormatError, ManifestError, UnknownNameError, did_you_mean
from embedstore.files import parse_json, replace_file, storage_errors
from embedstore.identity import canonical_json, digest_json
from embedstore.manifest.fields import ARROW_TYPES, KEY_FRAMES_COLUMN, KEY_FRAMES_TYPE, STANDARD, ManifestField

__all__ = ["Manifest", "Problem"]

MANIFEST_VERSION = 1
HEADER_KEY = b"embedstore.manifest"
_MAX_MANIFEST_BYTES = 4 << 30
_ROWS_NAMED = 8


@dataclass(frozen=True)
class Problem:
    """A broken rule of a manifest: its short name, one sentence, the clip ids (or row numbers) concerned."""

    rule: str
    message: str
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A table of clips with its header. Structurally sound from construction; rules are asked by `problems`.

    Parameters
    ----------
    table : pyarrow.Table
        All standard columns, then labels, subgroups and extras, sorted by ``clip_id``, and the nested
        ``key_frames`` column.
    fields : mapping of str to ManifestField
        Every column but ``key_frames``.
    dataset : DatasetFacts
    patient_ids : str
        ``provided``, ``derived(RULE)``, ``one-clip-per-patient(SOURCE)`` or ``unknown``.
    split_rule : str
        Where the split comes from.
    recipe : str
        Name and revision of the recipe.
    unreadable : mapping of str to str
        Label cells that are no number: ``"column\\tclip_id"`` to the text found.
    """

    table: pa.Table
    fields: Mapping[str, ManifestField]
    dataset: DatasetFacts
    patient_ids: str = "unknown"
    split_rule: str = "provided"
    recipe: str = ""
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.dataset.name

    @property
    def ids(self) -> str:
        """``public`` or ``private``."""
        return self.dataset.ids

    def __len__(self) -> int:
        return int(self.table.num_rows)

    # -- making ---------------------------------------------------------------------------------------------

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        *,
        dataset: DatasetFacts,
        fields: Iterable[ManifestField] = (),
        key_frames: Iterable[tuple[str, str, int]] = (),
        patient_ids: str = "unknown",
        split_rule: str = "provided",
        recipe: str = "",
    ) -> Manifest:
        """Build a manifest from one mapping a clip.

        Parameters
        ----------
        rows : sequence of mapping
            Values by column; a column that is absent is null. Text that is no number in a column of kind
            ``number`` or ``integer`` becomes a problem that `problems` reports, not an exception.
        fields : iterable of ManifestField
            The columns beyond the standard ones, and standard ones whose facts differ.
        key_frames : iterable of (clip_id, role, frame)

        Raises
        ------
        ManifestError
            A row has a column that no field declares.
        """
        declared = {**STANDARD, **{extra.name: extra for extra in fields}}
        ordered = sorted(rows, key=lambda row: str(row.get("clip_id") or ""))
        for row in ordered:
            stray = set(row) - set(declared)
            if stray:
                raise ManifestError(f"column {sorted(stray)[0]!r} has no declared role")
        unreadable: dict[str, str] = {}
        columns: dict[str, pa.Array] = {}
        for name, declared_field in declared.items():
            cells = []
            for row in ordered:
                cell, text = _read_cell(row.get(name), declared_field.kind)
                if text is not None:
                    unreadable[f"{name}\t{row.get('clip_id')}"] = text
                cells.append(cell)
            columns[name] = pa.array(cells, type=ARROW_TYPES[declared_field.kind])
        frames_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for clip_id, role, frame in sorted(set(key_frames)):
            frames_of[clip_id].append({"role": role, "frame": frame})
        known = {str(row.get("clip_id")) for row in ordered}
        for clip_id in sorted(set(frames_of) - known):
            unreadable[f"{KEY_FRAMES_COLUMN}\t{clip_id}"] = "no such clip"
        columns[KEY_FRAMES_COLUMN] = pa.array(
            [frames_of.get(str(row.get("clip_id")), []) for row in ordered], type=KEY_FRAMES_TYPE
        )
        return cls(
            table=pa.table(columns),
            fields=declared,
            dataset=dataset,
            patient_ids=patient_ids,
            split_rule=split_rule,
            recipe=recipe,
            unreadable=unreadable,
        )

    # -- reading values -------------------------------------------------------------------------------------

    def column(self, name: str) -> list[Any]:
        """Return one column as Python values, in row order.

        Raises
        ------
        UnknownNameError
            There is no such column.
        """
        if name not in self.fields:
            raise UnknownNameError(
                f"manifest {self.name!r} has no column {name!r}{did_you_mean(name, list(self.fields))}"
            )
        return list(self.table.column(name).to_pylist())

    @cached_property
    def clip_ids(self) -> list[str]:
        """Ids in row order."""
        return self.column("clip_id")

    @cached_property
    def patients(self) -> list[str]:
        """Patient of each row; a clip without a known patient counts as its own."""
        pairs = zip(self.clip_ids, self.column("patient_id"), strict=True)
        return [f"clip:{clip_id}" if patient is None else patient for clip_id, patient in pairs]

    @cached_property
    def key_frames(self) -> pa.Table:
        """The key-frame table: clip_id, role, frame."""
        flat = [(clip_id, role, frame) for clip_id, roles in self.key_frames_of.items() for role, frame in roles]
        names = ("clip_id", "role", "frame")
        types = (pa.string(), pa.string(), pa.int64())
        return pa.table({name: pa.array([row[at] for row in flat], type=types[at]) for at, name in enumerate(names)})

    @cached_property
    def key_frames_of(self) -> dict[str, list[tuple[str, int]]]:
        """Key frames by clip: ``{clip_id: [(role, frame), ...]}``."""
        nested = self.table.column(KEY_FRAMES_COLUMN).to_pylist()
        return {
            clip_id: [(entry["role"], entry["frame"]) for entry in entries]
            for clip_id, entries in zip(self.clip_ids, nested, strict=True)
            if entries
        }

    def labels(self) -> list[str]:
        """Names of the label columns that hold at least one value."""
        return [
            name
            for name, declared in self.fields.items()
            if declared.role == "label" and self.table.column(name).null_count < len(self)
        ]

    # -- identity -------------------------------------------------------------------------------------------

    def _digest_of(self, names: Iterable[str], extra: Mapping[str, Any]) -> str:
        columns = {name: self.table.column(name).to_pylist() for name in ["clip_id", *names]}
        return digest_json({"columns": _jsonable(columns), **extra})

    @cached_property
    def media_digest(self) -> str:
        """SHA-256 over content and every value that decoding or sampling reads; paths are not in it."""
        names = [f.name for f in self.fields.values() if f.role in ("media", "sampling") and f.name != "path"]
        nested = self.table.column(KEY_FRAMES_COLUMN).to_pylist()
        return self._digest_of(sorted(names), {"key_frames": nested})

    @cached_property
    def annotations_digest(self) -> str:
        """SHA-256 over labels, splits, patients, paths and every statement of the header."""
        names = [f.name for f in self.fields.values() if f.role not in ("media", "sampling")]
        header = self._header()
        return self._digest_of(sorted({*names, "path"} - {"clip_id"}), {"header": header})

    @property
    def id(self) -> str:
        """SHA-256 over both digests."""
        return digest_json({"media": self.media_digest, "annotations": self.annotations_digest})

    # -- rules ----------------------------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        """Return every broken rule, naming rows; empty for a valid manifest."""
        from embedstore.manifest.rules import find_problems

        return find_problems(self)

    def require_valid(self) -> None:
        """Raise where a rule is broken.

        Raises
        ------
        ManifestError
            One sentence with the first problem, its rows and how many more there are.
        """
        problems = self.problems()
        if problems:
            first = problems[0]
            rows = ", ".join(first.rows[:_ROWS_NAMED]) + (", ..." if len(first.rows) > _ROWS_NAMED else "")
            more = f" (and {len(problems) - 1} more problems; see embedstore manifest check)" if problems[1:] else ""
            raise ManifestError(f"manifest {self.name!r}: {first.message}: {rows}{more}")

    # -- files ----------------------------------------------------------------------------------------------

    def _header(self) -> dict[str, Any]:
        return {
            "version": MANIFEST_VERSION,
            "dataset": self.dataset.to_dict(),
            "fields": [declared.to_dict() for declared in self.fields.values()],
            "patient_ids": self.patient_ids,
            "split_rule": self.split_rule,
            "recipe": self.recipe,
            "unreadable": dict(self.unreadable),
        }

    def to_bytes(self) -> bytes:
        """Return the Parquet file: equal manifests give equal bytes under one pyarrow version."""
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, self.table.schema, compression="zstd", store_schema=False) as writer:
            writer.write_table(self.table, row_group_size=1 << 20)
            writer.add_key_value_metadata({HEADER_KEY: canonical_json(self._header())})
        return bytes(sink.getvalue())

    def write(self, path: Path) -> None:
        """Write the manifest, replacing what is there in one step."""
        with storage_errors(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, self.to_bytes())

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest; rules are not checked, the structure is.

        Raises
        ------
        FormatError
            The file is not a manifest, or is of a newer version.
        StorageError
            The file cannot be read.
        """
        with storage_errors(path, "read"):
            if path.stat().st_size > _MAX_MANIFEST_BYTES:
                raise FormatError(f"{path} is too large for a manifest")
            try:
                with pq.ParquetFile(
                    path, thrift_string_size_limit=256 << 20, thrift_container_size_limit=1 << 24
                ) as parquet:
                    header_bytes = (parquet.metadata.metadata or {}).get(HEADER_KEY)
                    table = parquet.read()
            except (pa.ArrowException, ValueError) as error:
                raise FormatError(f"{path} is no manifest: it is no readable Parquet file") from error
        if header_bytes is None:
            raise FormatError(f"{path} is no manifest: make one with embedstore manifest make")
        return cls._from_parts(table, parse_json(header_bytes, source=str(path)), source=str(path))

    @classmethod
    def _from_parts(cls, table: pa.Table, header: Any, *, source: str) -> Manifest:
        try:
            version = header["version"]
            if version > MANIFEST_VERSION:
                raise FormatError(f"{source} is a manifest of version {version}: it needs a newer embedstore")
            fields = {entry["name"]: ManifestField.from_dict(entry) for entry in header["fields"]}
            dataset = DatasetFacts.model_validate(header["dataset"])
            statements = {key: header[key] for key in ("patient_ids", "split_rule", "recipe", "unreadable")}
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{source} has a broken manifest header: {error}") from error
        expected = pa.schema(
            [(name, ARROW_TYPES[declared.kind]) for name, declared in fields.items()]
            + [(KEY_FRAMES_COLUMN, KEY_FRAMES_TYPE)]
        )
        columns = {name: table.column(name) for name in expected.names if name in table.column_names}
        missing = set(expected.names) - set(columns)
        if missing or set(STANDARD) - set(fields) or table.num_columns != len(expected):
            raise FormatError(f"{source} has other columns than its header says")
        try:
            cast = pa.table({name: columns[name].combine_chunks() for name in expected.names}).cast(expected)
        except (pa.ArrowException, ValueError) as error:
            raise FormatError(f"{source} has columns of another type than its header says") from error
        return cls(table=cast.replace_schema_metadata(None), fields=fields, dataset=dataset, **statements)

    def with_rows(self, keep: Sequence[bool]) -> Manifest:
        """Return the manifest with the rows where ``keep`` is true."""
        return replace(self, table=self.table.filter(pa.array(keep)))


def _jsonable(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    def cell(value: Any) -> Any:
        return repr(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {name: [cell(value) for value in values] for name, values in columns.items()}


def _read_cell(value: Any, kind: str) -> tuple[Any, str | None]:
    """Return the cell, and the text found where it is not of its kind."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, None
    if kind in ("text", "category"):
        return str(value), None
    text = str(value).strip()
    if kind == "boolean":
        if isinstance(value, bool):
            return value, None
        read = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}.get(text.lower())
        return read, None if read is not None else text
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None, text
    if not math.isfinite(number):
        return None, text
    if kind == "integer":
        return (int(number), None) if number == int(number) else (None, text)
    return number, None
