"""Whole shards out: plain Zarr v3 arrays that any Zarr v3 reader opens. See `docs/format.md`.

An array is written once, shard after shard, uncompressed, each shard whole with its index at the end.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from embedstore.disk import storage_errors
from embedstore.errors import FormatError, VectorError
from embedstore.files import FileRecord, HashingFile, link_file, write_file

if TYPE_CHECKING:
    from embedstore.vector_array import VectorArray

__all__ = ["ArrayDescription", "ArrayWriter", "cast_for_storage", "group_metadata", "shard_index", "shard_rows_for"]

CHUNK_ROWS = 256
_SHARD_ROWS = 65_536
_MAX_SHARD_BYTES = 256 << 20
EMPTY = (1 << 64) - 1
_MAX_DIM = 65_536
_MAX_ROWS = 1 << 48
_FLOAT16_MAX = 65_504.0


def shard_rows_for(dim: int, dtype: str) -> int:
    """Return rows a shard: 65,536, halved until a shard is at most 256 MiB.

    Examples
    --------
    >>> shard_rows_for(768, "float16"), shard_rows_for(1536, "float32")
    (65536, 32768)
    """
    rows = _SHARD_ROWS
    while rows > CHUNK_ROWS and rows * dim * np.dtype(dtype).itemsize > _MAX_SHARD_BYTES:
        rows //= 2
    return rows


def cast_for_storage(vectors: npt.NDArray[Any], dtype: str, *, what: str) -> npt.NDArray[Any]:
    """Cast float vectors to the stored dtype, refusing what would not come back.

    Parameters
    ----------
    vectors : (N, D) float
    dtype : {"float16", "float32"}
    what : str
        Named in the error, e.g. ``"clips of panecho"``.

    Raises
    ------
    VectorError
        A value is not finite, or beyond float16's 65,504.
    """
    if not np.isfinite(vectors).all():
        row = int(np.argwhere(~np.isfinite(vectors).all(axis=1))[0, 0])
        raise VectorError(f"{what}: row {row} is not finite; the encoder gave NaN or infinity")
    if dtype == "float16" and vectors.size and float(np.abs(vectors).max()) > _FLOAT16_MAX:
        raise VectorError(f"{what}: values beyond 65504 do not fit float16; build with --dtype float32")
    return np.ascontiguousarray(vectors, dtype=np.dtype(dtype).newbyteorder("<"))


def group_metadata() -> bytes:
    """Return the ``zarr.json`` of a group."""
    return json.dumps({"attributes": {}, "zarr_format": 3, "node_type": "group"}, indent=2).encode()


@dataclass(frozen=True, kw_only=True)
class ArrayDescription:
    """Shape, dtype, layout and files of one array: what a set's description says of it."""

    n_rows: int
    dim: int
    dtype: str
    chunk_rows: int
    shard_rows: int
    files: Mapping[str, FileRecord]

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise FormatError(f"an array has the dtype {self.dtype!r}, which is not one of ours")
        sizes = (self.n_rows, self.dim, self.chunk_rows, self.shard_rows)
        if any(type(size) is not int for size in sizes):
            raise FormatError("an array's sizes are no whole numbers")
        if not (0 <= self.n_rows < _MAX_ROWS and 1 <= self.dim <= _MAX_DIM and self.chunk_rows >= 1):
            raise FormatError(f"an array has the impossible shape ({self.n_rows}, {self.dim})")
        if self.shard_rows < self.chunk_rows or self.shard_rows % self.chunk_rows:
            raise FormatError(f"an array has shards of {self.shard_rows} rows in chunks of {self.chunk_rows}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dim * np.dtype(self.dtype).itemsize

    @property
    def n_shards(self) -> int:
        """Number of shard files."""
        return -(-self.n_rows // self.shard_rows)

    def shard_span(self, shard: int) -> tuple[int, int]:
        """Rows ``[start, stop)`` of a shard that exist."""
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.n_rows)

    def shard_bytes(self, shard: int) -> tuple[int, int]:
        """Bytes of a shard's data part (last chunk padded) and of its index."""
        start, stop = self.shard_span(shard)
        chunks = -(-(stop - start) // self.chunk_rows)
        return chunks * self.chunk_rows * self.row_bytes, 16 * (self.shard_rows // self.chunk_rows) + 4

    def zarr_json(self) -> bytes:
        """Return the array's Zarr v3 metadata document."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "chunk_shape": [self.chunk_rows, self.dim],
            "codecs": [little],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        document = {
            "shape": [self.n_rows, self.dim],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, self.dim]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
        return json.dumps(document, indent=2).encode()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "n_rows": self.n_rows,
            "dim": self.dim,
            "dtype": self.dtype,
            "chunk_rows": self.chunk_rows,
            "shard_rows": self.shard_rows,
            "files": {name: {"size": r.size, "sha256": r.sha256} for name, r in sorted(self.files.items())},
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ArrayDescription:
        """Read the form of `to_dict`."""
        values = dict(fields)
        files = {name: FileRecord(**record) for name, record in values.pop("files").items()}
        return cls(**values, files=files)


@lru_cache(maxsize=16)
def shard_index(n_chunks: int, chunk_bytes: int, chunks_per_shard: int) -> bytes:
    """Return the index of a shard whose first ``n_chunks`` chunks stand one after the other, with its CRC-32C."""
    import google_crc32c

    pairs = [number for chunk in range(n_chunks) for number in (chunk * chunk_bytes, chunk_bytes)]
    pairs += [EMPTY, EMPTY] * (chunks_per_shard - n_chunks)
    index = struct.pack(f"<{len(pairs)}Q", *pairs)
    return index + struct.pack("<I", google_crc32c.value(index))


class ArrayWriter:
    """Writes one array shard by shard, hashing while writing; the folder must be empty and nobody reading it.

    Use as a context manager; `finish` returns the description.

    Parameters
    ----------
    folder : Path
        Created here.
    dim : int
    dtype : {"float16", "float32"}
    """

    def __init__(self, folder: Path, *, dim: int, dtype: str) -> None:
        self._folder, self._dim, self._dtype = folder, dim, dtype
        self._shard_rows = shard_rows_for(dim, dtype)
        self._row_bytes = dim * np.dtype(dtype).itemsize
        self._files: dict[str, FileRecord] = {}
        self._n_rows = 0
        self._open: tuple[Any, HashingFile] | None = None
        with storage_errors(folder, "write"):
            (folder / "c").mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            context, self._open = self._open[0], None
            context.__exit__(kind or RuntimeError, error or RuntimeError("the array was not finished"), trace)

    def _shard_name(self, shard: int) -> str:
        return f"c/{shard}/0"

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Append ``(n, D)`` rows of the stored dtype.

        Raises
        ------
        StorageError
            The disk refused.
        ValueError
            The rows have another shape or dtype.
        """
        if rows.ndim != 2 or rows.shape[1] != self._dim or rows.dtype != np.dtype(self._dtype):
            raise ValueError(f"expected (n, {self._dim}) {self._dtype}, got {rows.shape} {rows.dtype}")
        done = 0
        while done < len(rows):
            if self._open is None:
                shard_file = self._folder / self._shard_name(self._n_rows // self._shard_rows)
                with storage_errors(shard_file, "write"):
                    shard_file.parent.mkdir()
                context = write_file(shard_file)
                self._open = (context, context.__enter__())
            room = self._shard_rows - self._n_rows % self._shard_rows
            block = np.ascontiguousarray(rows[done : done + room])
            with storage_errors(self._folder, "write"):
                self._open[1].write(block.view(np.uint8))
            self._n_rows += len(block)
            done += len(block)
            if self._n_rows % self._shard_rows == 0:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._open is None:
            return
        context, handle = self._open
        in_shard = (self._n_rows - 1) % self._shard_rows + 1
        n_chunks = -(-in_shard // CHUNK_ROWS)
        with storage_errors(self._folder, "write"):
            padding = (n_chunks * CHUNK_ROWS - in_shard) * self._row_bytes
            if padding:
                handle.write(bytes(padding))
            chunk_bytes = CHUNK_ROWS * self._row_bytes
            handle.write(shard_index(n_chunks, chunk_bytes, self._shard_rows // CHUNK_ROWS))
        self._open = None
        context.__exit__(None, None, None)
        self._files[self._shard_name((self._n_rows - 1) // self._shard_rows)] = handle.record

    def adopt(self, parent: VectorArray, n_rows: int) -> None:
        """Take over the first ``n_rows`` rows of a committed array: whole shards as hard links, the tail copied.

        Only as the first call, and for an array of the same dim, dtype and layout.

        Raises
        ------
        StorageError
            The disk refused.
        ValueError
            It is not the first call, or the array is another.
        """
        described = parent.description
        same = (described.dim, described.dtype, described.shard_rows, described.chunk_rows) == (
            self._dim,
            self._dtype,
            self._shard_rows,
            CHUNK_ROWS,
        )
        if self._n_rows or not same:
            raise ValueError("rows are adopted first, and from an array of the same layout")
        while n_rows - self._n_rows >= self._shard_rows:
            name = self._shard_name(self._n_rows // self._shard_rows)
            target = self._folder / name
            with storage_errors(target, "write"):
                target.parent.mkdir()
            if not link_file(parent.folder / name, target):
                target.parent.rmdir()
                break
            self._files[name] = described.files[name]
            self._n_rows += self._shard_rows
        for block in parent.raw.blocks(self._n_rows, n_rows):
            self.append(block)

    def finish(self) -> ArrayDescription:
        """Close the last shard, write ``zarr.json`` and return the description."""
        self._close_shard()
        described = ArrayDescription(
            n_rows=self._n_rows,
            dim=self._dim,
            dtype=self._dtype,
            chunk_rows=CHUNK_ROWS,
            shard_rows=self._shard_rows,
            files={},
        )
        with write_file(self._folder / "zarr.json") as handle:
            handle.write(described.zarr_json())
        self._files["zarr.json"] = handle.record
        values = {key: value for key, value in described.to_dict().items() if key != "files"}
        return ArrayDescription(**values, files=self._files)
