"""`DescribedFolder`: a committed folder of arrays and tables that its description names, and `StagedFolder`, which
makes one.

Sets and banks are such folders: the description is canonical JSON, its SHA-256 is the folder's name, and every other
file but the provenance stands in it with size and digest.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError, FormatError
from embedstore.files import FileRecord, read_file, write_file
from embedstore.folders import fsync_folder, rename_folder
from embedstore.identity import canonical_json, sha256_hex
from embedstore.json_files import parse_json, read_sealed_json, seal_json
from embedstore.layout import DESCRIPTION_FILE, FORMAT_VERSION, PROVENANCE_FILE, STAGING_PREFIX
from embedstore.shards import ArrayDescription, group_metadata
from embedstore.tables import write_table
from embedstore.vector_array import VectorArray

__all__ = ["DescribedFolder", "StagedFolder", "read_description"]

_MAX_DESCRIPTION_BYTES = 64 << 20


def read_description(folder: Path, *, expected_id: str) -> dict[str, Any]:
    """Read the description of a committed folder.

    Raises
    ------
    StorageError
        It is not there.
    CorruptionError
        It is not the one that the id names.
    FormatError
        It was written by a newer version.
    """
    path = folder / DESCRIPTION_FILE
    payload = read_file(path, max_bytes=_MAX_DESCRIPTION_BYTES)
    if sha256_hex(payload) != expected_id:
        raise CorruptionError(f"{path} is not what was written; run embedstore verify")
    described: dict[str, Any] = parse_json(payload, source=str(path))
    if described.get("format", 0) > FORMAT_VERSION:
        raise FormatError(f"{path} has format {described['format']}: it needs a newer embedstore")
    return described


class DescribedFolder:
    """The files of one committed folder; what they mean is the subclass's.

    Attributes
    ----------
    folder : Path
    described : mapping
        The parsed description.
    """

    folder: Path
    described: Mapping[str, Any]

    def array(self, kind: str) -> VectorArray | None:
        """Return an array by kind, None where there is none."""
        return self._array_at(kind) if kind in self.described["arrays"] else None

    def _array_at(self, kind: str) -> VectorArray:
        return VectorArray(self.folder / kind, ArrayDescription.from_dict(self.described["arrays"][kind]))

    def table(self, name: str) -> pa.Table:
        """Read a table by file name.

        Raises
        ------
        StorageError
            It is not there.
        CorruptionError
            It is no readable table.
        """
        path = self.folder / name
        with storage_errors(path, "read"):
            try:
                with pq.ParquetFile(path) as parquet:
                    return parquet.read(use_threads=False)
            except (pa.ArrowException, ValueError) as error:
                raise CorruptionError(f"{path} is no readable table; run embedstore verify") from error

    @property
    def n_bytes(self) -> int:
        """Bytes of all files that the description lists."""
        return sum(record.size for _, record in self.files())

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Versions, device and times of the making; outside the id."""
        path = self.folder / PROVENANCE_FILE
        return read_sealed_json(path) if path.exists() else {}

    def files(self) -> Iterator[tuple[str, FileRecord]]:
        """Yield (path inside the folder, size and digest) of every file of the description."""
        for kind, described in sorted(self.described["arrays"].items()):
            for name, record in sorted(described["files"].items()):
                yield f"{kind}/{name}", FileRecord(record["size"], record["sha256"])
        for part in ("tables", "metadata"):
            for name, record in sorted(self.described[part].items()):
                yield name, FileRecord(record["size"], record["sha256"])


class StagedFolder:
    """A folder under a staging name beside the committed ones; `publish` makes it visible under its id.

    Use as a context manager: what was not published is removed.

    Parameters
    ----------
    committed : Path
        Where the folder will stand; must be there.
    """

    def __init__(self, committed: Path) -> None:
        self._committed = committed
        self.path = committed / f"{STAGING_PREFIX}{uuid.uuid4().hex}"
        self._is_published = False

    def __enter__(self) -> Self:
        with storage_errors(self.path, "write"):
            self.path.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_published:
            shutil.rmtree(self.path, ignore_errors=True)

    def write_table(self, name: str, table: pa.Table) -> dict[str, Any]:
        """Write a table and return its entry of the description."""
        with write_file(self.path / name) as handle:
            write_table(handle, table)
        pa.default_memory_pool().release_unused()  # the columns' pages, which the next table would not use
        return {"size": handle.record.size, "sha256": handle.record.sha256, "rows": table.num_rows}

    def _write(self, name: str, payload: bytes) -> dict[str, Any]:
        with write_file(self.path / name) as handle:
            handle.write(payload)
        return {"size": handle.record.size, "sha256": handle.record.sha256}

    def publish(self, described: Mapping[str, Any], *, provenance: Mapping[str, Any]) -> str:
        """Write what is left and make the folder visible; a folder of the same id that is there already stays.

        Parameters
        ----------
        described : mapping
            The description without ``format`` and ``metadata``; arrays and tables are written already.
        provenance : mapping
            JSON values; outside the id.

        Returns
        -------
        str
            The id: SHA-256 of the description.
        """
        metadata = {"zarr.json": self._write("zarr.json", group_metadata())}
        self._write(PROVENANCE_FILE, seal_json(provenance))
        description = canonical_json({"format": FORMAT_VERSION, **described, "metadata": metadata})
        self._write(DESCRIPTION_FILE, description)
        with storage_errors(self.path, "write"):
            for sub in sorted(path for path in self.path.rglob("*") if path.is_dir()):
                fsync_folder(sub)
        own_id = sha256_hex(description)
        self._is_published = rename_folder(self.path, self._committed / own_id)
        return own_id
