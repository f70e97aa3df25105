"""What a stranger's arrays hold: `ShardCheck` looks at bytes as they are copied, `odd_vectors` at what they say."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from embedstore.embedding_set import EmbeddingSet
from embedstore.errors import HostileInputError, VectorError
from embedstore.shards import ArrayDescription, shard_index

__all__ = ["ShardCheck", "odd_vectors"]

_MAX_ROWS = 100_000  # of an array, which are told one by one
# A vector of ten times the median length, or a tenth of it, comes from something else than the others: pixels that
# were not scaled, another precision. Vectors of one encoder differ by much less.
_OUTLIER = 10.0
_LENGTH_TOLERANCE = 1e-3


class ShardCheck:
    """Looks at a shard's bytes as they pass: zero padding, the exact index; and which rows are not finite.

    Parameters
    ----------
    described : ArrayDescription
    shard : int
    source : str
        Named in errors.

    Attributes
    ----------
    not_finite : set of int
        Rows of the array with a value that is not finite.
    """

    def __init__(self, described: ArrayDescription, shard: int, *, source: str) -> None:
        self._source, self._row_bytes = source, described.row_bytes
        self._start, stop = described.shard_span(shard)
        self._rows_bytes = (stop - self._start) * described.row_bytes
        self._data_bytes, _ = described.shard_bytes(shard)
        chunk_bytes = described.chunk_rows * described.row_bytes
        self._index = shard_index(
            self._data_bytes // chunk_bytes, chunk_bytes, described.shard_rows // described.chunk_rows
        )
        # A number is not finite where all bits of its exponent are set.
        is_half = described.dtype == "float16"
        self._word: np.dtype[Any] = np.dtype("<u2") if is_half else np.dtype("<u4")
        self._mask: Any = self._word.type(0x7C00 if is_half else 0x7F800000)
        self.not_finite: set[int] = set()

    def __call__(self, at: int, block: memoryview) -> None:
        """Look at a block of the shard's file that begins at byte ``at``.

        Raises
        ------
        HostileInputError
            Padding or index are not what they must be.
        VectorError
            So many rows are not finite that they are not told one by one.
        """
        inside = block[: max(0, min(len(block), self._rows_bytes - at))]
        values: Any = np.frombuffer(inside[: len(inside) - len(inside) % self._word.itemsize], dtype=self._word)
        wrong = np.flatnonzero((values & self._mask) == self._mask)
        if wrong.size:
            rows = self._start + (at + wrong * self._word.itemsize) // self._row_bytes
            self.not_finite.update(np.unique(rows).tolist())
            if len(self.not_finite) > _MAX_ROWS:
                raise VectorError(
                    f"{self._source}: more than {_MAX_ROWS} rows are not finite; the snapshot is refused"
                )
        padding = block[max(0, self._rows_bytes - at) : max(0, self._data_bytes - at)]
        if bytes(padding).strip(b"\0"):
            raise HostileInputError(f"{self._source}: other bytes stand behind the last row")
        if at + len(block) > self._data_bytes:
            first = max(0, at - self._data_bytes)
            found = block[max(0, self._data_bytes - at) :]
            if bytes(found) != self._index[first : first + len(found)]:
                raise HostileInputError(f"{self._source}: the shard's index is not the one of its rows")


def odd_vectors(opened: EmbeddingSet, *, without: Collection[int] = ()) -> list[str]:
    """Return a note where clips have vectors of zeros, the same vector as another clip, or an odd length.

    Parameters
    ----------
    without : collection of int
        Rows that are not looked at.
    """
    raw = opened.clips.raw
    is_seen = np.ones(len(raw), np.bool_)
    is_seen[list(without)] = False
    lengths: list[Any] = []
    vectors: list[Any] = []
    at = 0
    for whole in raw.blocks(0, len(raw)):
        block = whole[is_seen[at : at + len(whole)]]
        at += len(whole)
        # One zero, not two: in the bits, since adding 0.0 to float16 takes 70 times as long.
        bits = block.view(np.dtype(f"<u{block.itemsize}"))
        bits[bits == 1 << (8 * block.itemsize - 1)] = 0
        vectors.append(block.view(np.dtype((np.void, block.shape[1] * block.itemsize))).ravel())
        lengths.append(np.linalg.norm(block.astype(np.float64), axis=1))
    if not lengths:
        return []
    return [f"{opened.spec.title} on {opened.dataset}: {what}" for what in _odd(opened, lengths, vectors)]


def _odd(opened: EmbeddingSet, lengths: list[Any], vectors: list[Any]) -> Iterator[str]:
    length = np.concatenate(lengths)
    n_zero = int((length == 0).sum())
    if n_zero:
        yield f"{n_zero} clips have a vector of zeros"
    n_same = len(length) - len(np.unique(np.concatenate(vectors)))
    if n_same:
        yield f"{n_same} clips have the same vector as another"
    nonzero = length[length > 0]
    middle = float(np.median(nonzero)) if nonzero.size else 0.0
    n_odd = int(((nonzero > _OUTLIER * middle) | (nonzero < middle / _OUTLIER)).sum())
    if n_odd:
        yield f"{n_odd} clips have a vector of more than ten times, or less than a tenth of, the median length"
    pooling = "" if "pooling" in opened.spec.unknown else opened.spec.pooling
    beyond = nonzero > 1 + _LENGTH_TOLERANCE
    if pooling == "mean-l2" and beyond.any():
        yield f"{int(beyond.sum())} clips have a vector longer than 1, and no mean of vectors of length 1 is"
    beyond |= nonzero < 1 - _LENGTH_TOLERANCE
    if pooling == "mean-l2-l2" and beyond.any():
        yield f"{int(beyond.sum())} clips have a vector of another length than 1, which the set's pooling gives"
