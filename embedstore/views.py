"""Plain views of a set for other libraries: a sequence for torch's DataLoader, an Arrow table, a pandas frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstore.errors import FormatError, MissingExtraError, UnknownNameError, did_you_mean
from embedstore.layout import ARRAY_KINDS
from embedstore.vector_array import VectorArray

if TYPE_CHECKING:
    import pandas as pd

    from embedstore.embedding_set import EmbeddingSet

__all__ = ["VECTOR_COLUMN", "VectorSequence", "arrow_table", "pandas_frame", "vector_sequence"]

VECTOR_COLUMN = "vector"
# What stands beside a vector in a sequence: no empty cells, so that any collate function takes it.
_KEY_COLUMNS = {
    "clips": ("clip_id",),
    "frames": ("clip_id", "frame"),
    "windows": ("clip_id", "frame_start", "frame_stop"),
}


class VectorSequence(Sequence[Any]):
    """The vectors of a set, one by one, each with what it belongs to.

    An element is ``(vector, clip_id)`` for clips, ``(vector, {"clip_id", "frame"})`` for frames and ``(vector,
    {"clip_id", "frame_start", "frame_stop"})`` for windows; the vector is a (D,) float32 array of its own. It can be
    pickled, holds no vectors itself, and answers a list of rows at once by ``__getitems__``, as torch's DataLoader
    asks for a batch.

    Examples
    --------
    ``torch.utils.data.DataLoader(opened.as_dataset(), batch_size=32, shuffle=True)`` gives batches of
    ``(vectors, clip_ids)``.
    """

    def __init__(self, array: VectorArray, keys: pa.Table) -> None:
        self._array = array
        self._keys = keys.combine_chunks()

    def __reduce__(self) -> tuple[Any, ...]:
        # The array's mapped files stay behind; whoever unpickles maps them anew.
        return _unpickled, (self._array.folder, self._array.description, self._keys)

    def __len__(self) -> int:
        return len(self._array)

    def __repr__(self) -> str:
        return f"VectorSequence({len(self)} x {self._array.shape[1]}, {', '.join(self._keys.column_names)})"

    def _key(self, row: int) -> Any:
        names = self._keys.column_names
        cells = [self._keys.column(name)[row].as_py() for name in names]
        return cells[0] if len(names) == 1 else dict(zip(names, cells, strict=True))

    @overload
    def __getitem__(self, row: int) -> tuple[npt.NDArray[np.float32], Any]: ...

    @overload
    def __getitem__(self, row: slice) -> list[tuple[npt.NDArray[np.float32], Any]]: ...

    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return self.__getitems__(list(range(*row.indices(len(self)))))
        position = range(len(self))[row]
        return self._array[[position]][0], self._key(position)

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[npt.NDArray[np.float32], Any]]:
        """Return the elements of many rows, read at once."""
        positions = [range(len(self))[row] for row in rows]
        vectors = self._array[positions]
        return [(vector, self._key(row)) for vector, row in zip(vectors, positions, strict=True)]


def _unpickled(folder: Any, description: Any, keys: pa.Table) -> VectorSequence:
    return VectorSequence(VectorArray(folder, description), keys)


def _array_and_table(opened: EmbeddingSet, kind: str) -> tuple[VectorArray, pa.Table]:
    if kind not in ARRAY_KINDS:
        raise UnknownNameError(f"a set has no vectors of kind {kind!r}{did_you_mean(kind, list(ARRAY_KINDS))}")
    array = opened.array(kind)
    if array is None:
        raise FormatError(f"the set of {opened.spec.title} on {opened.dataset} holds no {kind[:-1]} vectors")
    tables = {"clips": "index", "frames": "frame_index", "windows": "window_index"}
    table: pa.Table = getattr(opened, tables[kind])
    return array, table


def vector_sequence(opened: EmbeddingSet, kind: str = "clips") -> VectorSequence:
    """Return the vectors of one kind as a sequence.

    Raises
    ------
    UnknownNameError
        There is no such kind.
    FormatError
        The set has no vectors of this kind.
    """
    array, table = _array_and_table(opened, kind)
    return VectorSequence(array, table.select(list(_KEY_COLUMNS[kind])))


def arrow_table(opened: EmbeddingSet, kind: str = "clips") -> pa.Table:
    """Return the index columns of one kind and its vectors as a fixed-size list column ``vector`` of float32.

    Raises
    ------
    UnknownNameError
        There is no such kind.
    FormatError
        The set has no vectors of this kind.
    """
    array, table = _array_and_table(opened, kind)
    values = pa.array(array[:].reshape(-1), type=pa.float32())
    return table.append_column(VECTOR_COLUMN, pa.FixedSizeListArray.from_arrays(values, array.shape[1]))


def pandas_frame(opened: EmbeddingSet, kind: str = "clips") -> pd.DataFrame:
    """Return the index columns of one kind and its vectors, a (D,) float32 array in each cell of ``vector``.

    ``numpy.stack(frame["vector"])`` is the matrix.

    Raises
    ------
    MissingExtraError
        pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError(
            "a frame of vectors needs the package pandas, which is not installed; install it with: pip install pandas"
        ) from error
    array, table = _array_and_table(opened, kind)
    frame: pd.DataFrame = table.to_pandas()
    frame[VECTOR_COLUMN] = pd.Series(list(array[:]), dtype=object, index=frame.index)
    return frame
