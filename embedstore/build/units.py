"""Finished work units on disk: their files, and the create-only receipt that says they are whole.

A receipt holds file names, digests and counts; no clip or patient id.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embedstore.disk import storage_errors
from embedstore.embedding_set import FAILURES_SCHEMA, FRAME_INDEX_SCHEMA, INDEX_SCHEMA, WINDOW_INDEX_SCHEMA
from embedstore.errors import CorruptionError
from embedstore.files import FileRecord, create_file, hash_file, write_file
from embedstore.folders import fsync_folder
from embedstore.identity import canonical_json
from embedstore.json_files import read_json
from embedstore.tables import rows_to_table, table_bytes

__all__ = ["ClipVectors", "FailedClip", "Receipt", "UnitResult", "read_receipts", "write_unit"]

_TABLES = {
    "index.parquet": INDEX_SCHEMA,
    "frame_index.parquet": FRAME_INDEX_SCHEMA,
    "window_index.parquet": WINDOW_INDEX_SCHEMA,
    "failures.parquet": FAILURES_SCHEMA,
}


@dataclass(frozen=True, kw_only=True)
class ClipVectors:
    """All vectors of one clip, float32, and its rows of the tables.

    Attributes
    ----------
    index : mapping
        Cells of the index row but for row numbers.
    clip : (D,) float32
    frames : (K, D') float32 or None
    windows : (W, D) float32 or None
    frame_rows, window_rows : sequences of mappings
        Rows of the frame and window tables, as many as vectors.
    """

    index: Mapping[str, Any]
    clip: npt.NDArray[np.float32]
    frames: npt.NDArray[np.float32] | None = None
    windows: npt.NDArray[np.float32] | None = None
    frame_rows: Sequence[Mapping[str, Any]] = ()
    window_rows: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class FailedClip:
    """A clip without vectors."""

    clip_id: str
    content_sha256: str | None
    vector_key: str | None
    reason: str
    detail: str


@dataclass(kw_only=True)
class UnitResult:
    """What a unit gave, in the order of its clips."""

    unit: int
    vectors: list[ClipVectors] = field(default_factory=list)
    failed: list[FailedClip] = field(default_factory=list)
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A finished unit: the folder of its files, what they must be, how many rows, how long it took, who made it."""

    unit: int
    folder: Path
    files: Mapping[str, FileRecord]
    rows: Mapping[str, int]
    decode_seconds: float
    encode_seconds: float
    made: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Compare every file with its digest.

        Raises
        ------
        CorruptionError
            A file is missing or altered.
        """
        for name, record in self.files.items():
            path = self.folder / name
            if not path.exists() or hash_file(path) != record:
                raise CorruptionError(f"{path} of a finished work unit is damaged")

    def table(self, name: str) -> pa.Table:
        """Read one of the unit's tables."""
        with storage_errors(self.folder / name, "read"), pq.ParquetFile(self.folder / name) as parquet:
            return parquet.read(use_threads=False)

    def rows_of(self, kind: str, dtype: str) -> npt.NDArray[Any]:
        """Map the rows of one array kind."""
        shape = (self.rows[kind], self.rows[f"{kind}_dim"])
        if shape[0] == 0:
            return np.empty(shape, dtype=dtype)
        return np.memmap(self.folder / f"{kind}.bin", dtype=dtype, mode="r", shape=shape).view(np.ndarray)


def _stacked(parts: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    present = list(parts)
    return np.concatenate(present) if present else None


def _numbered(clips: Iterable[ClipVectors]) -> Iterator[dict[str, Any]]:
    """Yield index rows with the places of their vectors inside the unit."""
    frame_row = window_row = 0
    for row, vectors in enumerate(clips):
        yield {**vectors.index, "row": row, "frame_row": frame_row, "window_row": window_row}
        frame_row += len(vectors.frame_rows)
        window_row += len(vectors.window_rows)


def write_unit(
    build_folder: Path,
    result: UnitResult,
    *,
    kinds: Mapping[str, int],
    cast: Mapping[str, Any],
    made: Mapping[str, Any] | None = None,
) -> Receipt | None:
    """Write a unit's files, then its receipt.

    Parameters
    ----------
    kinds : mapping of array kind to dim
        The arrays that the set will have.
    cast : mapping of array kind to callable
        From float32 rows to rows of the stored dtype; refuses what does not fit.
    made : mapping, optional
        JSON values about the worker, for the set's provenance.

    Returns
    -------
    Receipt or None
        None where another worker finished the same unit first; this one's files are removed.
    """
    folder = build_folder / "units" / f"{result.unit:06d}-{uuid.uuid4().hex}"
    with storage_errors(folder, "write"):
        folder.mkdir()
    arrays = {
        "clips": _stacked(vectors.clip[None] for vectors in result.vectors),
        "frames": _stacked(vectors.frames for vectors in result.vectors if vectors.frames is not None),
        "windows": _stacked(vectors.windows for vectors in result.vectors if vectors.windows is not None),
    }
    tables: dict[str, list[Mapping[str, Any]]] = {
        "index.parquet": list(_numbered(result.vectors)),
        "frame_index.parquet": [row for vectors in result.vectors for row in vectors.frame_rows],
        "window_index.parquet": [row for vectors in result.vectors for row in vectors.window_rows],
        "failures.parquet": [vars(failed) for failed in result.failed],
    }
    files: dict[str, FileRecord] = {}
    rows: dict[str, int] = {}
    for kind, dim in kinds.items():
        stored = cast[kind](arrays[kind]) if arrays[kind] is not None else np.empty((0, dim))
        rows[kind], rows[f"{kind}_dim"] = len(stored), dim
        with write_file(folder / f"{kind}.bin") as handle:
            handle.write(np.ascontiguousarray(stored).reshape(-1).view(np.uint8))
        files[f"{kind}.bin"] = handle.record
    for name, table_rows in tables.items():
        with write_file(folder / name) as handle:
            handle.write(table_bytes(rows_to_table(table_rows, _TABLES[name])))
        files[name] = handle.record
    rows["failures"] = len(result.failed)
    with storage_errors(folder, "write"):
        fsync_folder(folder)
        fsync_folder(folder.parent)
    receipt = Receipt(
        unit=result.unit,
        folder=folder,
        files=files,
        rows=rows,
        decode_seconds=result.decode_seconds,
        encode_seconds=result.encode_seconds,
        made=made or {},
    )
    document = {
        "unit": result.unit,
        "folder": folder.name,
        "files": {name: vars(record) for name, record in files.items()},
        "rows": rows,
        "decode_seconds": round(result.decode_seconds, 6),
        "encode_seconds": round(result.encode_seconds, 6),
        "made": dict(receipt.made),
    }
    if create_file(build_folder / "receipts" / f"{result.unit:06d}.json", canonical_json(document)):
        return receipt
    shutil.rmtree(folder, ignore_errors=True)
    return None


def read_receipts(build_folder: Path) -> dict[int, Receipt]:
    """Return the receipts of a build by unit."""
    found: dict[int, Receipt] = {}
    folder = build_folder / "receipts"
    if not folder.is_dir():
        return found
    for path in sorted(folder.glob("[0-9]*.json")):
        document = read_json(path, max_bytes=1 << 20)
        found[document["unit"]] = Receipt(
            unit=document["unit"],
            folder=build_folder / "units" / document["folder"],
            files={name: FileRecord(**record) for name, record in document["files"].items()},
            rows=document["rows"],
            decode_seconds=document["decode_seconds"],
            encode_seconds=document["encode_seconds"],
            made=document.get("made", {}),
        )
    return found
