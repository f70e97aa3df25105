"""Values on their way into a set: read in any order in bounded memory, checked, digested, cast for storage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from embedstore.disk import storage_errors
from embedstore.errors import FormatError, VectorError
from embedstore.files import write_file
from embedstore.ingest.keys import named
from embedstore.ingest.source import PlainRows, SourceRows, rows_per_block

__all__ = ["Matrix", "check_rows", "spool_rows", "whole_clips"]

Rows = npt.NDArray[np.int64]


def spool_rows(rows: SourceRows, path: Path) -> PlainRows:
    """Write what can only be read in order to a plain file: rows can then be had in any order.

    Raises
    ------
    FormatError
        The source gives other rows than it announced.
    StorageError
        The disk refused.
    """
    n_rows = 0
    with write_file(path) as handle, storage_errors(path, "write"):
        for block in rows.blocks():
            if block.ndim != 2 or block.shape[1] != rows.dim or n_rows + len(block) > rows.n_rows:
                raise FormatError(f"the source gives a block of {block.shape} within ({rows.n_rows}, {rows.dim})")
            handle.write(np.ascontiguousarray(block, dtype=rows.dtype).view(np.uint8))
            n_rows += len(block)
    if n_rows != rows.n_rows:
        raise FormatError(f"the source gives {n_rows} vectors and announced {rows.n_rows}")
    return PlainRows(path)


class Matrix:
    """The rows of a source, read in any order, block after block into the same memory. Use as a context manager.

    Parameters
    ----------
    rows : SourceRows
    plain : PlainRows
        Where they lie: in the source's own file, or where `spool_rows` wrote them.
    dtype : {"float16", "float32"}
        Stored dtype.
    on_rows : callable
        Told how many rows were read, block after block.
    """

    def __init__(
        self, rows: SourceRows, plain: PlainRows, *, dtype: str, on_rows: Callable[[int], object] = lambda count: None
    ) -> None:
        self._on_rows = on_rows
        self.dim, self.dtype = rows.dim, np.dtype(dtype)
        self._source_dtype, self._plain = rows.dtype, plain
        with storage_errors(plain.path, "read"):
            self._descriptor = os.open(plain.path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as the file has it."""
        return self.dim * int(self._source_dtype.itemsize)

    def spans(self, n_rows: int) -> Iterator[tuple[int, int]]:
        """Yield ``[start, stop)`` of blocks of a few MiB."""
        step = rows_per_block(self.row_bytes)
        return ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))

    def blocks(self, order: Rows, spans: Iterator[tuple[int, int]]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (start, rows ``order[start:stop]``) for each span, as the file has them.

        A block is valid until the next one.
        """
        memory = bytearray()
        for start, stop in spans:
            n_bytes = (stop - start) * self.row_bytes
            if len(memory) < n_bytes:
                memory = bytearray(n_bytes)
            rows = order[start:stop]
            cuts = np.flatnonzero(np.diff(rows) != 1) + 1
            view = memoryview(memory)
            with storage_errors(self._plain.path, "read"):
                for first, last in pairwise([0, *cuts.tolist(), len(rows)]):
                    part = view[first * self.row_bytes : last * self.row_bytes]
                    self._read(part, self._plain.offset + int(rows[first]) * self.row_bytes)
            block = np.frombuffer(memory, dtype=self._source_dtype, count=(stop - start) * self.dim)
            yield start, block.reshape(stop - start, self.dim)
            self._on_rows(stop - start)

    def _read(self, part: memoryview, offset: int) -> None:
        done = 0
        while done < len(part):
            count = os.preadv(self._descriptor, [part[done:]], offset + done)
            if not count:
                raise FormatError(f"{self._plain.path} ends early: it changed while it was read")
            done += count

    def cast(self, block: npt.NDArray[Any], buffer: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Cast a block into the beginning of ``buffer``; what does not fit was refused before."""
        stored = buffer[: len(block)]
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            np.copyto(stored, block, casting="same_kind")
        return stored

    def buffer(self, n_rows: int) -> npt.NDArray[Any]:
        """Return memory for `cast`."""
        return np.empty((n_rows, self.dim), dtype=self.dtype)


def whole_clips(counts: Rows, *, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield ``[first, last)`` of runs of clips whose rows together make a block of a few MiB, or of one clip.

    Examples
    --------
    >>> list(whole_clips(np.array([3, 3, 3]), row_bytes=1 << 20))
    [(0, 1), (1, 2), (2, 3)]
    """
    most = rows_per_block(row_bytes)
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield first, last
        first = last


def _peaks(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the largest magnitude of each row; NaN where the row has one."""
    if block.dtype.itemsize == 2:
        # Without their sign, the bits of finite, infinite and NaN halves are in this order as integers.
        halves = np.ascontiguousarray(block, dtype=np.float16).view(np.uint16) & np.uint16(0x7FFF)
        return np.asarray(halves.max(axis=1).view(np.float16), dtype=np.float32)
    return np.asarray(np.maximum(block.max(axis=1), -block.min(axis=1)))


@dataclass
class _Faults:
    """Rows of each kind that cannot be stored, or that a person should know of."""

    not_finite: list[Rows]
    too_large: list[Rows]
    vanishing: list[Rows]
    zero: list[Rows]


def check_rows(
    matrix: Matrix, order: Rows, *, is_wanted: npt.NDArray[np.bool_], name_of: Callable[[Rows], Sequence[str]]
) -> tuple[str, list[str]]:
    """Read all rows once: refuse what cannot be stored, and digest the rest as it will be stored.

    Parameters
    ----------
    order : (N,) int64
        Rows in the order of their ids.
    is_wanted : (N,) bool, in that order
        Which rows belong to clips of the manifest; the others are digested but not checked.
    name_of : callable
        Returns names for rows, for errors.

    Returns
    -------
    (sha256, notes)
        SHA-256 of the rows in the stored dtype; sentences on rows that are all zero.

    Raises
    ------
    VectorError
        Values are not finite, too large for the stored dtype, or so small that whole vectors would become zero.
    """
    digest = hashlib.sha256()
    faults = _Faults([], [], [], [])
    largest = float(np.finfo(matrix.dtype).max)
    smallest = float(np.finfo(matrix.dtype).smallest_subnormal) / 2
    buffer = matrix.buffer(0)
    for start, block in matrix.blocks(order, matrix.spans(len(order))):
        if len(buffer) < len(block):
            buffer = matrix.buffer(len(block))
        peaks = _peaks(block)
        is_odd = ~((peaks > smallest) & (peaks <= largest)) & is_wanted[start : start + len(block)]
        if is_odd.any():
            at = np.flatnonzero(is_odd)
            rows, odd = order[start + at], peaks[at]
            faults.not_finite.append(rows[~np.isfinite(odd)])
            faults.too_large.append(rows[np.isfinite(odd) & (odd > largest)])
            faults.vanishing.append(rows[(odd > 0) & (odd <= smallest)])
            faults.zero.append(rows[odd == 0])
        stored = matrix.cast(block, buffer)
        digest.update(stored.astype(stored.dtype.newbyteorder("<"), copy=False).data)
    _refuse(faults, matrix.dtype.name, name_of)
    zero = _named(faults.zero, name_of)
    return digest.hexdigest(), [f"vectors that are all zero: {zero}"] if zero else []


def _named(rows: list[Rows], name_of: Callable[[Rows], Sequence[str]]) -> str:
    found = np.concatenate(rows) if rows else np.empty(0, np.int64)
    return named(list(name_of(found))) if found.size else ""


def _refuse(faults: _Faults, dtype: str, name_of: Callable[[Rows], Sequence[str]]) -> None:
    if names := _named(faults.not_finite, name_of):
        raise VectorError(f"vectors that are not finite: {names}; mend or drop these rows")
    larger = "" if dtype == "float32" else "; give --dtype float32"
    if names := _named(faults.too_large, name_of):
        raise VectorError(f"vectors with values beyond {np.finfo(dtype).max:g}, the most of {dtype}: {names}{larger}")
    if names := _named(faults.vanishing, name_of):
        raise VectorError(f"vectors so small that they would become zero in {dtype}: {names}{larger}")
