"""`VectorArray`: rows of a committed array, by the direct read path.

The data part of an uncompressed shard of a two-dimensional array with whole-row chunks *is* the C-order matrix, so
rows are read straight from it where the shard's index says so, and through zarr-python otherwise.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.abreast import map_abreast
from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError
from embedstore.json_files import read_json
from embedstore.shards import EMPTY, ArrayDescription, shard_index

__all__ = ["VectorArray"]

_BLOCK_BYTES = 8 << 20
# Each file begins with a short read-ahead: four readers, which wait most of the time, hide that of one another.
_READERS = 4
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
        """The same rows in the stored dtype, without a cast; what is mapped once serves both."""
        raw = VectorArray(self.folder, self.description, cast=None)
        raw._mapped, raw._is_direct = self._mapped, self._is_direct
        return raw

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

    @contextmanager
    def _open_shard(self, shard: int) -> Iterator[FileIO]:
        path = self.folder.joinpath("c", str(shard), "0")
        with storage_errors(path, "read"), path.open("rb", buffering=0) as handle:
            yield handle

    def _check_shard(self, shard: int, handle: FileIO) -> bool:
        """Return whether a shard's data part is the plain matrix; raise where its file cannot be ours."""
        if shard in self._is_direct:
            return self._is_direct[shard]
        path = Path(str(handle.name))
        data_bytes, index_bytes = self.description.shard_bytes(shard)
        size = handle.seek(0, 2)
        if size < index_bytes:
            raise CorruptionError(f"{path} is truncated: {size} bytes; run embedstore verify")
        handle.seek(size - index_bytes)
        stored = np.empty(index_bytes, np.uint8)
        _read_exactly(handle, stored)
        index = stored.tobytes()
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
        """Rows in order, by reading into the result: faster than mapping for long runs. Shards are read abreast."""
        described = self.description
        result = np.empty((stop - start, described.dim), dtype=self.dtype)

        def read(shard: int) -> None:
            first, last = described.shard_span(shard)
            begin, end = max(first, start), min(last, stop)
            self._read_run(shard, begin - first, result[begin - start : end - start])

        shards = range(start // described.shard_rows, -(-stop // described.shard_rows) if stop > start else 0)
        for _ in map_abreast(read, shards, n_threads=_READERS) if len(shards) > 1 else map(read, shards):
            pass
        return result

    def _read_run(self, shard: int, first: int, target: npt.NDArray[Any]) -> None:
        """Read rows of one shard, from its row ``first`` on, into ``target``."""
        described = self.description
        stored = np.dtype(described.dtype)
        with self._open_shard(shard) as handle:
            if not self._check_shard(shard, handle):
                begin = described.shard_span(shard)[0] + first
                target[...] = self._through_zarr(np.arange(begin, begin + len(target)))
                return
            handle.seek(first * described.row_bytes)
            if stored == target.dtype:
                _read_exactly(handle, target)
                return
            block = np.empty((min(max(1, _BLOCK_BYTES // described.row_bytes), len(target)), described.dim), stored)
            for at in range(0, len(target), len(block)):
                part = block[: len(target) - at]
                _read_exactly(handle, part)
                target[at : at + len(part)] = part

    def _map(self, shard: int) -> npt.NDArray[Any] | None:
        """Return the rows of a shard, mapped; None where its data part is not the plain matrix."""
        if shard not in self._mapped:
            with self._open_shard(shard) as handle:
                if not self._check_shard(shard, handle):
                    return None
                start, stop = self.description.shard_span(shard)
                n_bytes = (stop - start) * self.description.row_bytes
                mapped = mmap.mmap(handle.fileno(), n_bytes, access=mmap.ACCESS_READ)
            values = np.frombuffer(mapped, self.description.dtype)
            self._mapped[shard] = values.reshape(stop - start, self.description.dim)
        return self._mapped[shard]

    def _gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows in any order, from the mapped shards."""
        described = self.description
        if not rows.size:
            return np.empty((0, described.dim), dtype=self.dtype)
        if described.n_shards == 1 and (mapped := self._map(0)) is not None:
            return np.asarray(mapped.take(rows, axis=0, mode="clip"), dtype=self.dtype)
        shards = rows // described.shard_rows
        if self.dtype == described.dtype:
            used = {shard: self._map(shard) for shard in np.unique(shards).tolist()}
            plain = {shard: mapped for shard, mapped in used.items() if mapped is not None}
            if len(plain) == len(used):
                return _pick(plain, shards, rows - shards * described.shard_rows)
        result = np.empty((len(rows), described.dim), dtype=self.dtype)
        # Sixteen bits are sorted by counting, more of them by comparing.
        order = np.argsort(shards.astype(np.min_scalar_type(described.n_shards)), kind="stable")
        bounds = np.searchsorted(shards[order], np.arange(described.n_shards + 1)).tolist()
        local = (rows - shards * described.shard_rows)[order]
        for shard in range(described.n_shards):
            picked = slice(bounds[shard], bounds[shard + 1])
            if picked.start == picked.stop:
                continue
            if (mapped := self._map(shard)) is not None:
                _place(mapped, local[picked], result, order[picked])
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


def _pick(
    mapped: Mapping[int, npt.NDArray[Any]], shards: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Return rows that are known to be there, each from its mapped shard, copied once.

    The maps lie in one address space: a view that has a row at every byte from the first map to the end of the last
    holds the rows of all of them, and no other of its items is looked at.
    """
    addresses = {shard: int(part.__array_interface__["data"][0]) for shard, part in mapped.items()}
    lowest = min(addresses, key=addresses.__getitem__)
    n_bytes = mapped[lowest].shape[1] * mapped[lowest].itemsize
    offsets = np.zeros(max(mapped) + 1, np.int64)
    for shard, address in addresses.items():
        offsets[shard] = address - addresses[lowest]
    n_places = max(int(offsets[shard]) + (len(part) - 1) * n_bytes for shard, part in mapped.items()) + 1
    as_items = mapped[lowest].view(np.dtype((np.void, n_bytes)))[:, 0]
    everywhere = np.lib.stride_tricks.as_strided(as_items, (n_places,), (1,), writeable=False)
    picked: npt.NDArray[Any] = everywhere[offsets[shards] + rows * n_bytes]
    return picked.view(mapped[lowest].dtype).reshape(len(rows), -1)


def _place(
    mapped: npt.NDArray[Any], rows: npt.NDArray[np.int64], result: npt.NDArray[Any], places: npt.NDArray[np.int64]
) -> None:
    """Cast rows that are known to be there to their places in the result, by way of a block that stays in the cache.

    A row is taken as one item, which numpy does faster than as many numbers.
    """
    whole_row = np.dtype((np.void, mapped.shape[1] * mapped.itemsize))
    source = mapped.view(whole_row)[:, 0]
    step = max(1, _CACHED_BYTES // whole_row.itemsize)
    block = np.empty((min(step, len(rows)), mapped.shape[1]), mapped.dtype)
    for at in range(0, len(rows), step):
        part = places[at : at + step]
        held = block[: len(part)]
        source.take(rows[at : at + step], mode="clip", out=held.view(whole_row)[:, 0])
        result[part] = held


def _read_exactly(handle: FileIO, target: npt.NDArray[Any]) -> None:
    view = target.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = handle.readinto(view[done:])
        if not count:
            raise CorruptionError(f"{handle.name} ends early; run embedstore verify")
        done += count
