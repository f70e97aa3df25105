"""What a reader gives: rows of vectors with the ids they belong to, and what the file says about them.

Readers of other packages are found by the entry-point group ``embedstore.ingest`` and give objects with the same
attributes; they need not import this module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import FormatError, HostileInputError

__all__ = [
    "BLOCK_BYTES",
    "CLIP_NAMES",
    "FRAMES_NAME",
    "FRAME_IDS_NAME",
    "FRAME_NUMBERS_NAME",
    "ID_NAMES",
    "IngestSource",
    "PlainRows",
    "SourceRows",
    "id_texts",
    "refuse_bomb",
    "require_vectors",
    "rows_per_block",
    "the_one_of",
]

# Names under which files hold ids and clip vectors: ours first, then what other programs write. One place.
ID_NAMES = ("ids", "clip_id", "clip_ids")
CLIP_NAMES = ("clips", "embeddings", "vectors", "features")
FRAMES_NAME, FRAME_IDS_NAME, FRAME_NUMBERS_NAME = "frames", "frame_ids", "frame_numbers"

BLOCK_BYTES = 4 << 20
_MAX_DIM = 65_536
_MAX_ID_BYTES = 4_096
# A file may grow so many times when unpacked: floating-point vectors never shrink by much more than half, and
# deflate alone can reach 1,029.
_MAX_RATIO = 200
_RATIO_FLOOR_BYTES = 1 << 20


@dataclass(frozen=True)
class PlainRows:
    """Where a matrix lies plainly in a file: row after row from ``offset`` on."""

    path: Path
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class SourceRows:
    """Vectors of one kind in the order of their file.

    Attributes
    ----------
    n_rows, dim : int
    dtype : numpy dtype
        A floating-point dtype of 2, 4 or 8 bytes, of either byte order.
    ids : callable
        Returns the clip id of each row, in blocks of text.
    blocks : callable
        Returns the (n, dim) vectors in blocks of bounded size, in the same order.
    frame_numbers : callable or None
        Returns the (n_rows,) int64 frame numbers; None for clip vectors.
    plain : PlainRows or None
        Where the matrix lies, if any row of it can be read by itself.
    """

    n_rows: int
    dim: int
    dtype: np.dtype[Any]
    ids: Callable[[], Iterable[Sequence[str]]]
    blocks: Callable[[], Iterable[npt.NDArray[Any]]]
    frame_numbers: Callable[[], npt.NDArray[np.int64]] | None = None
    plain: PlainRows | None = None


@dataclass(kw_only=True)
class IngestSource:
    """An open file or folder of vectors. Use as a context manager.

    Attributes
    ----------
    format : str
        ``npy``, ``npz``, ``parquet``, ``hdf5`` or a reader's own name.
    clips : SourceRows or None
        One row a clip; None where clip vectors are to be pooled from frames.
    frames : SourceRows or None
        One row a frame.
    column_names : sequence of str
        Table columns that the vectors were taken from; none may be a column of the manifest.
    known : mapping of str to value
        Fields of the `EncoderSpec` that the format states: ``unit``, ``pooling``, ``precision``, ``preprocessing``.
    failed : mapping of str to str
        Clip id to one sentence, where the file itself says that a clip has no vector.
    notes : sequence of str
        Sentences for a person.
    """

    format: str
    clips: SourceRows | None = None
    frames: SourceRows | None = None
    column_names: Sequence[str] = ()
    known: Mapping[str, Any] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    resources: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Close the file."""
        self.resources.close()


def rows_per_block(row_bytes: int) -> int:
    """Return how many rows make a block of a few MiB, at least one."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def require_vectors(dtype: np.dtype[Any], shape: Sequence[int], *, what: str) -> None:
    """Check that an array is a matrix of floating-point vectors.

    Parameters
    ----------
    what : str
        Named in the error, e.g. ``"array 'clips' of mine.npz"``.

    Raises
    ------
    HostileInputError
        It holds Python objects.
    FormatError
        It is another kind of array.
    """
    if dtype.hasobject:
        raise HostileInputError(f"{what} holds Python objects, which are never unpickled; save it as float32")
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise FormatError(f"{what} holds {dtype}, not float16, float32 or float64; convert it to float32")
    if len(shape) != 2:
        raise FormatError(f"{what} has the shape {tuple(shape)}, not (rows, dimensions)")
    if not 1 <= shape[1] <= _MAX_DIM:
        raise FormatError(f"{what} has vectors of {shape[1]} dimensions; from 1 to {_MAX_DIM} can be stored")
    if shape[0] < 1:
        raise FormatError(f"{what} holds no row")


def refuse_bomb(n_bytes: int, packed_bytes: int, *, what: str) -> None:
    """Refuse what would unpack to far more than any vectors could.

    Raises
    ------
    HostileInputError
        The unpacked size is above 1 MiB and more than 200 times the packed one.
    """
    if n_bytes > max(_RATIO_FLOOR_BYTES, _MAX_RATIO * packed_bytes):
        raise HostileInputError(
            f"{what} claims {n_bytes} bytes packed into {packed_bytes}: "
            f"more than {_MAX_RATIO} times, which no vectors reach; it is damaged or made to exhaust the machine"
        )


def id_texts(block: npt.NDArray[Any], *, what: str) -> list[str]:
    """Return ids as text: unicode as it is, bytes as UTF-8, whole numbers in decimal.

    Raises
    ------
    FormatError
        They are none of these, or no valid text.
    """
    try:
        if block.dtype.kind == "U":
            codes = np.ascontiguousarray(block).view(np.dtype(np.uint32).newbyteorder(block.dtype.byteorder))
            if codes.size and codes.max() > sys.maxunicode:
                raise ValueError("beyond Unicode")
            texts: list[str] = block.tolist()
            "".join(texts).encode()  # a lone surrogate is no text
            return texts
        if block.dtype.kind == "S":
            return [value.decode() for value in block.tolist()]
    except (UnicodeError, ValueError) as error:
        raise FormatError(f"{what} holds an id that is no valid Unicode text") from error
    if block.dtype.kind in "iu":
        return [str(value) for value in block.tolist()]
    raise FormatError(f"{what} holds {block.dtype}, not ids as text or whole numbers")


def require_ids(dtype: np.dtype[Any], shape: Sequence[int], *, n_rows: int, what: str) -> None:
    """Check that an array can hold one id a row, before any of it is read.

    Raises
    ------
    HostileInputError
        It holds Python objects.
    FormatError
        It is of another kind, or has another number of rows than the vectors.
    """
    if dtype.hasobject:
        raise HostileInputError(
            f"{what} holds Python objects, which are never unpickled; save ids as text, e.g. numpy.asarray(ids, str)"
        )
    if dtype.kind not in "USiu" or not 1 <= dtype.itemsize <= _MAX_ID_BYTES:
        raise FormatError(f"{what} holds {dtype}, not ids as text or whole numbers")
    if tuple(shape) != (n_rows,):
        raise FormatError(f"{what} has the shape {tuple(shape)}, but there are {n_rows} vectors")


def require_frame_numbers(dtype: np.dtype[Any], shape: Sequence[int], *, n_rows: int, what: str) -> None:
    """Check that an array can hold one frame number a row, before any of it is read.

    Raises
    ------
    FormatError
        It is of another kind, or has another number of rows than the vectors.
    """
    if dtype.kind not in "iu":
        raise FormatError(f"{what} holds {dtype}, not whole frame numbers")
    if tuple(shape) != (n_rows,):
        raise FormatError(f"{what} has the shape {tuple(shape)}, but there are {n_rows} frame vectors")


def the_one_of(wanted: Sequence[str], found: Iterable[str], *, what: str) -> str | None:
    """Return the one name of several that stand for the same thing; None where there is none.

    Raises
    ------
    FormatError
        There are two.

    Examples
    --------
    >>> the_one_of(("ids", "clip_id"), ["clip_id", "clips"], what="mine.npz")
    'clip_id'
    """
    present = [name for name in wanted if name in set(found)]
    if len(present) > 1:
        raise FormatError(f"{what} holds both {present[0]!r} and {present[1]!r}; leave one of them")
    return present[0] if present else None
