"""`VectorArray`: rows of a committed array, by the direct read path.

The data part of an uncompressed shard of a two-dimensional array with whole-row chunks *is* the C-order matrix, so
rows are read straight from it where the shard's index says so, and through zarr-python otherwise.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError
from embedstore.json_files import read_json
from embedstore.shards import EMPTY, ArrayDescription, shard_index

__all__ = ["VectorArray"]

_BLOCK_BYTES = 8 << 20
# Less than the second level cache of a core, of which a gather uses the rest for what it reads and writes.
_CACHED_BYTES = 384 << 10


class VectorArray:
    """Rows of a committed array, read on demand. Indexing gives float32; `raw` gives the stored dtype.

    Rows are picked by an int, a slice, a sequence of ints or a boolean mask; a gather does not read the rest.

    Examples
    --------
    ``store.get(dataset="phantom", encoder="pixel-stats").clips[:4]`` is a ``(4, D)`` float32 array.
    """

    def __init__(self, folder: Path, description: ArrayDescription, *, cast: str | None = "float32") -> None:
        self.folder = folder
        self.description = description
        self._cast = cast
        self._mapped: dict[int, npt.NDArray[Any]] = {}
        self._is_direct: dict[int, bool] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.description.n_rows, self.description.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype that indexing returns."""
        return np.dtype(self._cast or self.description.dtype)

    @property
    def raw(self) -> VectorArray:
        """The same rows in the stored dtype, without a cast."""
        return VectorArray(self.folder, self.description, cast=None)

    def __len__(self) -> int:
        return self.description.n_rows

    def __repr__(self) -> str:
        return f"VectorArray(shape={self.shape}, dtype={self.dtype}, stored={self.description.dtype})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a VectorArray is on disk; an array of it is always a copy")
        rows: npt.NDArray[Any] = self[:]
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        if isinstance(key, int | np.integer):
            position = int(key) + (len(self) if key < 0 else 0)
            if not 0 <= position < len(self):
                raise IndexError(f"row {int(key)} of {len(self)}")
            row: npt.NDArray[Any] = self._scan(position, position + 1)[0]
            return row
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._scan(start, max(start, stop))
            return self._gather(np.arange(start, stop, step))
        rows = np.asarray(key)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of {rows.shape} for {len(self)} rows")
            rows = np.flatnonzero(rows)
        if rows.size == 0:
            rows = rows.astype(np.int64)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise IndexError("rows are picked by an int, a slice, a sequence of ints or a mask")
        rows = rows.astype(np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"a row outside the {len(self)} rows")
        return self._gather(rows)

    def blocks(self, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """Yield rows ``[start, stop)`` in blocks of a few MiB."""
        step = max(1, _BLOCK_BYTES // self.description.row_bytes)
        for first in range(start, stop, step):
            yield self._scan(first, min(first + step, stop))

    def _check_shard(self, shard: int) -> bool:
        """Return whether a shard's data part is the plain matrix; raise where its file cannot be ours."""
        if shard in self._is_direct:
            return self._is_direct[shard]
        path = self.folder / "c" / str(shard) / "0"
        data_bytes, index_bytes = self.description.shard_bytes(shard)
        with storage_errors(path, "read"), path.open("rb") as handle:
            size = handle.seek(0, 2)
            if size < index_bytes:
                raise CorruptionError(f"{path} is truncated: {size} bytes; run embedstore verify")
            handle.seek(size - index_bytes)
            index = handle.read(index_bytes)
        start, stop = self.description.shard_span(shard)
        chunk_bytes = self.description.chunk_rows * self.description.row_bytes
        n_chunks = -(-(stop - start) // self.description.chunk_rows)
        expected = shard_index(n_chunks, chunk_bytes, self.description.shard_rows // self.description.chunk_rows)
        direct = index == expected and size == data_bytes + index_bytes
        if not direct:
            self._check_foreign_index(path, index, n_chunks)
        self._is_direct[shard] = direct
        return direct

    @staticmethod
    def _check_foreign_index(path: Path, index: bytes, n_chunks: int) -> None:
        import google_crc32c

        if google_crc32c.value(index[:-4]) != struct.unpack("<I", index[-4:])[0]:
            raise CorruptionError(f"{path} has a damaged shard index; run embedstore verify")
        pairs = struct.unpack(f"<{2 * n_chunks}Q", index[: 16 * n_chunks])
        if EMPTY in pairs:
            raise CorruptionError(f"{path} lacks a chunk of rows; run embedstore verify")

    def _through_zarr(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        import zarr

        array = zarr.open_array(str(self.folder), mode="r", zarr_format=3)
        return np.asarray(array.get_orthogonal_selection((rows, slice(None))))

    def _scan(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows in order, by reading into the result: faster than mapping for long runs."""
        described = self.description
        stored = np.dtype(described.dtype)
        result = np.empty((stop - start, described.dim), dtype=self.dtype)
        for shard in range(start // described.shard_rows, -(-stop // described.shard_rows) if stop > start else 0):
            first, last = described.shard_span(shard)
            begin, end = max(first, start), min(last, stop)
            target = result[begin - start : end - start]
            if not self._check_shard(shard):
                target[...] = self._through_zarr(np.arange(begin, end))
                continue
            path = self.folder / "c" / str(shard) / "0"
            with storage_errors(path, "read"), path.open("rb", buffering=0) as handle:
                handle.seek((begin - first) * described.row_bytes)
                if stored == result.dtype:
                    _read_exactly(handle, target, path)
                    continue
                step = max(1, _BLOCK_BYTES // described.row_bytes)
                block = np.empty((min(step, end - begin), described.dim), dtype=stored)
                for at in range(0, end - begin, step):
                    part = block[: min(step, end - begin - at)]
                    _read_exactly(handle, part, path)
                    target[at : at + len(part)] = part
        return result

    def _map(self, shard: int) -> npt.NDArray[Any]:
        if shard not in self._mapped:
            start, stop = self.description.shard_span(shard)
            path = self.folder / "c" / str(shard) / "0"
            n_values = (stop - start) * self.description.dim
            with storage_errors(path, "read"), path.open("rb", buffering=0) as handle:
                n_bytes = n_values * np.dtype(self.description.dtype).itemsize
                mapped = mmap.mmap(handle.fileno(), n_bytes, access=mmap.ACCESS_READ)
            values = np.frombuffer(mapped, self.description.dtype, n_values)
            self._mapped[shard] = values.reshape(stop - start, self.description.dim)
        return self._mapped[shard]

    def _gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows in any order, from the mapped shards."""
        described = self.description
        if not rows.size:
            return np.empty((0, described.dim), dtype=self.dtype)
        if described.n_shards == 1 and self._check_shard(0):
            return np.asarray(self._map(0).take(rows, axis=0, mode="clip"), dtype=self.dtype)
        result = np.empty((len(rows), described.dim), dtype=self.dtype)
        shards = rows // described.shard_rows
        # Sixteen bits are sorted by counting, more of them by comparing.
        order = np.argsort(shards.astype(np.min_scalar_type(described.n_shards)), kind="stable")
        bounds = np.searchsorted(shards[order], np.arange(described.n_shards + 1)).tolist()
        local = (rows - shards * described.shard_rows)[order]
        for shard in range(described.n_shards):
            picked = slice(bounds[shard], bounds[shard + 1])
            if picked.start == picked.stop:
                continue
            if self._check_shard(shard):
                _place(self._map(shard), local[picked], result, order[picked])
            else:
                result[order[picked]] = self._through_zarr(rows[order[picked]])
        return result

    def check_metadata(self) -> None:
        """Compare ``zarr.json`` with the description.

        Raises
        ------
        CorruptionError
            They differ.
        """
        found = read_json(self.folder / "zarr.json", max_bytes=1 << 20)
        if found != json.loads(self.description.zarr_json()):
            raise CorruptionError(f"{self.folder / 'zarr.json'} differs from the set's description")


def _place(
    mapped: npt.NDArray[Any], rows: npt.NDArray[np.int64], result: npt.NDArray[Any], places: npt.NDArray[np.int64]
) -> None:
    """Copy rows that are known to be there to their places in the result, by way of a block that stays in the cache.

    A row is moved as one item, which numpy does faster than as many numbers, and by the faster of its two ways.
    """
    whole_row = np.dtype((np.void, mapped.shape[1] * mapped.itemsize))
    source = mapped.view(whole_row)[:, 0]
    step = max(1, _CACHED_BYTES // whole_row.itemsize)
    block = np.empty((min(step, len(rows)), mapped.shape[1]), mapped.dtype)
    for at in range(0, len(rows), step):
        part = places[at : at + step]
        held = block[: len(part)]
        source.take(rows[at : at + step], mode="clip", out=held.view(whole_row)[:, 0])
        if result.dtype == mapped.dtype:
            result.view(whole_row)[part, 0] = held.view(whole_row)[:, 0]
        else:
            result[part] = held


def _read_exactly(handle: Any, target: npt.NDArray[Any], path: Path) -> None:
    view = target.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = handle.readinto(view[done:])
        if not count:
            raise CorruptionError(f"{path} ends early; run embedstore verify")
        done += count
