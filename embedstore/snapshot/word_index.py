"""`WordIndex`: many words at once, looked for in bytes; and how words are spelled in hexadecimal and in base64.

Words of one length stand in a matrix (n, length) of bytes, so that tens of thousands of them are spelled, cut and
compared in a few calls. What is searched is cut into aligned pieces of four bytes. A piece goes through sieves, each
dearer and finer than the one before: the bits that all pieces of all words have in common (every letter of ASCII is
below 128); two tables of hashed pieces; the beginnings of the words; and at last the words themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["Matrix", "WordIndex", "base64_inside", "hexadecimal", "in_matrices"]

Matrix = npt.NDArray[np.uint8]

_PIECE = 4
_BLOCK_PIECES = 1 << 18  # what the sieves look at in one go stays in the processor's cache
_TABLE_BITS = (16, 24)  # at least and at most
_SPARSE_BITS = 4  # a table has 16 places for each piece
# Odd multipliers of Fibonacci hashing: 2^32 / golden ratio, and another without a simple relation to it.
_MULTIPLIERS = (np.uint32(2_654_435_761), np.uint32(2_246_822_519))
_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint8).reshape(256, 2)
_BASE64 = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)


def in_matrices(spelled: Iterable[tuple[str, bytes]]) -> list[tuple[list[str], Matrix]]:
    """Return words and how they are spelled as one matrix (n, length) for each length, beside its n words."""
    groups: dict[int, tuple[list[str], list[bytes]]] = defaultdict(lambda: ([], []))
    for word, form in spelled:
        words, forms = groups[len(form)]
        words.append(word)
        forms.append(form)
    return [
        (words, np.frombuffer(b"".join(forms), np.uint8).reshape(len(words), length))
        for length, (words, forms) in sorted(groups.items())
    ]


def hexadecimal(rows: Matrix) -> Matrix:
    """Return words in hexadecimal.

    Examples
    --------
    >>> hexadecimal(np.array([[97, 98]], np.uint8)).tobytes()
    b'6162'
    """
    return _HEX[rows].reshape(len(rows), -1)


def base64_inside(rows: Matrix, shift: int) -> Matrix:
    """Return what of the words' base64 does not depend on their neighbours.

    Base64 takes three bytes at a time; ``shift`` (0, 1 or 2) bytes of something else stand before the word.

    Examples
    --------
    >>> [base64_inside(np.array([[97, 98, 99, 100]], np.uint8), shift).tobytes() for shift in range(3)]
    [b'YWJjZ', b'FiY2', b'hYmNk']
    """
    length = shift + rows.shape[1]
    padded = np.zeros((len(rows), -(-length // 3) * 3), np.uint8)
    padded[:, shift:length] = rows
    first, second, third = (padded[:, offset::3] for offset in range(3))
    sixes = (
        first >> 2,
        (first & 0x03) << 4 | second >> 4,
        (second & 0x0F) << 2 | third >> 6,
        third & 0x3F,
    )
    letters = _BASE64[np.stack(sixes, axis=2).reshape(len(rows), -1)]
    return letters[:, -(-8 * shift // 6) : 8 * length // 6]


class WordIndex:
    """Words, for searching bytes.

    Parameters
    ----------
    matrices : iterable of (n, length) uint8
        The words, of at least ``least`` bytes; shorter ones are left out.
    least : int
        Bytes by which a word is recognised first.
    step : {1, 4}
        Search at every offset, or at every fourth: then a word needs at least seven bytes, so that four aligned ones
        lie within it.
    """

    def __init__(self, matrices: Iterable[Matrix], *, least: int, step: int) -> None:
        if least < _PIECE + step - 1 or least > 8:
            raise ValueError(f"words of {least} bytes cannot be looked for at every {step}-th offset")
        self._step, self._least = step, least
        self._matrices = [rows for rows in matrices if len(rows) and rows.shape[1] >= least]
        parts = [_numbers(rows[:, at : at + _PIECE]) for rows in self._matrices for at in range(step)]
        pieces: npt.NDArray[np.uint32] = _unique(parts).astype(np.uint32)
        self._beginnings = _unique([_numbers(rows[:, :least]) for rows in self._matrices])
        ones = np.bitwise_and.reduce(pieces) if len(pieces) else np.uint32(0)
        zeros = ~np.bitwise_or.reduce(pieces) if len(pieces) else np.uint32(0)
        self._common, self._expected = ones | zeros, ones
        bits = int(len(pieces)).bit_length() + _SPARSE_BITS
        self._shift = np.uint32(32 - min(max(bits, _TABLE_BITS[0]), _TABLE_BITS[1]))
        self._tables = []
        for multiplier in _MULTIPLIERS:
            table = np.zeros(1 << (32 - int(self._shift)), np.bool_)
            table[self._hashed(pieces, multiplier)] = True
            self._tables.append(table)

    @property
    def counts(self) -> Mapping[int, int]:
        """Number of words of each length in bytes."""
        found: dict[int, int] = defaultdict(int)
        for rows in self._matrices:
            found[rows.shape[1]] += len(rows)
        return found

    @cached_property
    def _words(self) -> dict[int, frozenset[bytes]]:
        """The words by length; needed only where a beginning was found."""
        found: dict[int, set[bytes]] = defaultdict(set)
        for rows in self._matrices:
            length = rows.shape[1]
            joined = rows.tobytes()
            found[length].update(joined[at : at + length] for at in range(0, len(joined), length))
        return {length: frozenset(words) for length, words in sorted(found.items())}

    def _hashed(self, pieces: npt.NDArray[np.uint32], multiplier: np.uint32) -> npt.NDArray[np.uint32]:
        return (pieces * multiplier) >> self._shift

    def search(self, payload: bytes | bytearray | memoryview) -> set[bytes]:
        """Return the words that stand in ``payload``; the offsets searched begin at 0."""
        if not self._matrices or len(payload) < self._least:
            return set()
        found: set[bytes] = set()
        whole = np.frombuffer(payload, np.uint8)
        for begin in self._beginnings_in(whole):
            for length, words in self._words.items():
                word = whole[begin : begin + length].tobytes()
                if word in words:
                    found.add(word)
        return found

    def _beginnings_in(self, whole: Matrix) -> Iterator[int]:
        for shift in range(0, _PIECE, self._step):
            n_pieces = (len(whole) - shift) // _PIECE
            for start in range(0, n_pieces, _BLOCK_PIECES):
                count = min(_BLOCK_PIECES, n_pieces - start)
                offset = shift + _PIECE * start
                at = self._likely(np.frombuffer(whole, "<u4", count=count, offset=offset))
                if at.size:
                    yield from self._begun(whole, offset + _PIECE * at)

    def _likely(self, pieces: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """Return which pieces pass all sieves but the words' beginnings."""
        at = np.flatnonzero((pieces & self._common) == self._expected)
        for table, multiplier in zip(self._tables, _MULTIPLIERS, strict=True):
            if not at.size:
                break
            at = at[table[self._hashed(pieces[at], multiplier)]]
        return at

    def _begun(self, whole: Matrix, positions: npt.NDArray[np.int64]) -> Iterator[int]:
        """Yield where a word's beginning stands around pieces at these positions."""
        for before in range(self._step):
            begins = positions - before
            begins = begins[(begins >= 0) & (begins <= len(whole) - self._least)]
            found = _numbers(whole[begins[:, None] + np.arange(self._least)])
            near = np.searchsorted(self._beginnings, found).clip(max=len(self._beginnings) - 1)
            yield from begins[self._beginnings[near] == found].tolist()


def _numbers(rows: Matrix) -> npt.NDArray[np.uint64]:
    """Return rows of at most eight bytes as numbers, the first byte the lowest."""
    padded = np.zeros((len(rows), 8), np.uint8)
    padded[:, : rows.shape[1]] = rows
    return padded.view("<u8").ravel().astype(np.uint64, copy=False)


def _unique(parts: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
