"""`Manifest`: which clips, whose, which split, which labels. A validated Parquet table, one row a clip.

The key-frame table is stored inside the same file as a nested column, so that one file is the whole manifest.
Two digests: *media* covers content and every value that decoding or sampling reads; *annotations* the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedstore.dataset import DatasetFacts
from embedstore.disk import storage_errors
from embedstore.errors import ManifestError, UnknownNameError, did_you_mean
from embedstore.files import read_file, replace_file
from embedstore.identity import digest_json, digest_json_parts
from embedstore.manifest.cells import composed, read_cell, to_json_cells
from embedstore.manifest.fields import (
    ARROW_TYPES,
    KEY_FRAMES_COLUMN,
    KEY_FRAMES_TYPE,
    STANDARD,
    ManifestField,
    schema_of,
)

__all__ = ["Manifest", "Problem"]

MANIFEST_VERSION = 1
_MAX_MANIFEST_BYTES = 2 << 30
_ROWS_NAMED = 8
_DIGEST_ROWS = 4096


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

    def __post_init__(self) -> None:
        for name, standard in STANDARD.items():
            found = self.fields.get(name)
            if found is None:
                raise ManifestError(f"a manifest needs the column {name!r}")
            same_role = found.role == standard.role or standard.role in ("label", "extra")
            if found.kind != standard.kind or not same_role:
                raise ManifestError(
                    f"column {name!r} is {standard.kind} in the role {standard.role!r}, "
                    f"got {found.kind} in the role {found.role!r}"
                )
        if any(name != declared.name for name, declared in self.fields.items()):
            raise ManifestError("a column is declared under another name than its own")
        if not self.table.schema.equals(schema_of(self.fields)):
            raise ManifestError("the table has other columns than are declared")

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
            A row has a column that no field declares, a field cannot be, or text is no valid Unicode.
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
                cell, text = read_cell(row.get(name), declared_field.kind)
                if text is not None:
                    unreadable[composed(f"{name}\t{row.get('clip_id')}")] = composed(text)
                cells.append(cell)
            try:
                columns[name] = pa.array(cells, type=ARROW_TYPES[declared_field.kind])
            except UnicodeEncodeError as error:
                raise ManifestError(
                    f"column {name!r} holds text that is no valid Unicode: {error.object!r}; rename that file or cell"
                ) from error
        frames_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for clip_id, role, frame in sorted(set(key_frames)):
            frames_of[clip_id].append({"role": role, "frame": frame})
        known = {str(row.get("clip_id")) for row in ordered}
        for clip_id in sorted(set(frames_of) - known):
            unreadable[composed(f"{KEY_FRAMES_COLUMN}\t{clip_id}")] = "no such clip"
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
        table = self.table.select(["clip_id", KEY_FRAMES_COLUMN])
        some = table.filter(pc.greater(pc.list_value_length(table[KEY_FRAMES_COLUMN]), 0))
        return {
            row["clip_id"]: [(entry["role"], entry["frame"]) for entry in row[KEY_FRAMES_COLUMN]]
            for row in some.to_pylist()
        }

    def labels(self) -> list[str]:
        """Names of the label columns that hold at least one value."""
        return [
            name
            for name, declared in self.fields.items()
            if declared.role == "label" and self.table.column(name).null_count < len(self)
        ]

    # -- identity -------------------------------------------------------------------------------------------

    def _digest_of(self, names: Iterable[str], extra: Mapping[str, Iterable[Any] | Mapping[str, Any]]) -> str:
        """Return the SHA-256 of ``{"columns": {name: cells}, **extra}`` as canonical JSON, made a part at a time."""
        columns = {name: self._json_cells(name) for name in ["clip_id", *names]}
        return digest_json_parts({"columns": columns, **extra})

    def _json_cells(self, name: str) -> Iterator[Any]:
        for batch in self.table.select([name]).to_batches(max_chunksize=_DIGEST_ROWS):
            yield from to_json_cells({name: batch.column(0).to_pylist()})[name]

    @cached_property
    def media_digest(self) -> str:
        """SHA-256 over content and every value that decoding or sampling reads; paths are not in it."""
        names = [f.name for f in self.fields.values() if f.role in ("media", "sampling") and f.name != "path"]
        return self._digest_of(sorted(names), {"key_frames": self._json_cells(KEY_FRAMES_COLUMN)})

    @cached_property
    def annotations_digest(self) -> str:
        """SHA-256 over labels, splits, patients, paths and every statement of the header."""
        names = [f.name for f in self.fields.values() if f.role not in ("media", "sampling")]
        header = self.header()
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

    def header(self) -> dict[str, Any]:
        """Return everything but the rows as JSON values: what stands beside the table in its file."""
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
        from embedstore.manifest.stored import format_manifest

        return format_manifest(self)

    def write(self, path: str | Path) -> None:
        """Write the manifest, replacing what is there in one step."""
        path = Path(path)
        with storage_errors(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, self.to_bytes())

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read a manifest; rules are not checked, the structure is.

        Raises
        ------
        FormatError
            The file is not a manifest, or is of a newer version.
        StorageError
            The file cannot be read.
        """
        from embedstore.manifest.stored import parse_manifest

        return parse_manifest(read_file(Path(path), max_bytes=_MAX_MANIFEST_BYTES), source=str(path))

    def with_rows(self, keep: Sequence[bool]) -> Manifest:
        """Return the manifest with the rows where ``keep`` is true, and what is reported about them."""
        table = self.table.filter(pa.array(keep, type=pa.bool_()))
        kept = {composed(str(clip_id)) for clip_id in table.column("clip_id").to_pylist()}
        unreadable = {key: text for key, text in self.unreadable.items() if key.partition("\t")[2] in kept}
        return replace(self, table=table, unreadable=unreadable)
