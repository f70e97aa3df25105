"""Reading vectors from HDF5: the arrays of the ``.npz`` form, or one vector a clip, named by its id."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.disk import storage_errors
from embedstore.errors import FormatError, HostileInputError, MissingExtraError, StorageError
from embedstore.ingest.source import (
    CLIP_NAMES,
    FRAME_IDS_NAME,
    FRAME_NUMBERS_NAME,
    FRAMES_NAME,
    ID_NAMES,
    IngestSource,
    SourceRows,
    id_texts,
    refuse_bomb,
    require_frame_numbers,
    require_ids,
    require_vectors,
    rows_per_block,
    the_one_of,
)

__all__ = ["open_hdf5"]

# Filters that come with HDF5 and h5py: deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf.
# Others are plug-ins.
_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
_MAX_CHUNK_BYTES = 256 << 20
_MAX_DATASETS = 10_000_000


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into one sentence."""
    try:
        yield
    except (FormatError, HostileInputError, StorageError):
        raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            with storage_errors(path, "read"):
                raise
        raise FormatError(f"{path} is no readable HDF5 file: it is cut off or damaged") from error


class _File:
    """An open HDF5 file whose arrays are checked before they are read."""

    def __init__(self, path: Path, opened: Any) -> None:
        self._path, self._opened = path, opened

    def what(self, name: str) -> str:
        return f"array {name!r} of {self._path}"

    def names(self) -> list[str]:
        return list(self._opened.keys())

    def _packed_bytes(self, array: Any) -> int:
        """Bytes that an array can really take in the file, whatever it claims."""
        return min(int(array.id.get_storage_size()), self._path.stat().st_size)

    def _require_inside(self, name: str, array: Any) -> None:
        """Refuse values that lie in another file, need a plug-in to unpack, or would exhaust the machine."""
        import h5py

        if not isinstance(array, h5py.Dataset):
            raise FormatError(f"{self.what(name)} is a group, not an array")
        if array.is_virtual or array.external or array.file.filename != self._opened.filename:
            raise HostileInputError(f"{self.what(name)} lies in another file; copy it into one")
        if array.shape is None:
            raise FormatError(f"{self.what(name)} is empty")
        plan = array.id.get_create_plist()
        filters = {plan.get_filter(at)[0] for at in range(plan.get_nfilters())}
        if filters - _FILTERS:
            raise FormatError(f"{self.what(name)} is packed by a plug-in of HDF5; save it again with gzip or without")
        if array.chunks and math.prod(array.chunks) * array.dtype.itemsize > _MAX_CHUNK_BYTES:
            raise HostileInputError(f"{self.what(name)} has chunks of more than {_MAX_CHUNK_BYTES} bytes")

    def array(self, name: str) -> Any:
        import h5py

        link = self._opened.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise HostileInputError(f"{self.what(name)} lies in another file; copy it into one")
        array = self._opened[name]
        self._require_inside(name, array)
        return array

    def _is_text(self, array: Any) -> bool:
        import h5py

        return h5py.check_string_dtype(array.dtype) is not None and array.dtype.kind == "O"

    def ids(self, name: str, *, n_rows: int) -> Callable[[], Iterator[Sequence[str]]]:
        array = self.array(name)
        if self._is_text(array):
            if array.shape != (n_rows,):
                raise FormatError(f"{self.what(name)} has the shape {array.shape}, but there are {n_rows} vectors")
        else:
            require_ids(array.dtype, array.shape, n_rows=n_rows, what=self.what(name))
        # An id takes a place in the file: more ids than bytes means that they were never written.
        refuse_bomb(n_rows, self._packed_bytes(array), what=self.what(name))
        return lambda: self._id_blocks(name, array)

    def _id_blocks(self, name: str, array: Any) -> Iterator[list[str]]:
        step = rows_per_block(max(64, array.dtype.itemsize))
        for start in range(0, array.shape[0], step):
            with _readable(self._path):
                block = array[start : start + step]
            if not self._is_text(array):
                yield id_texts(block, what=self.what(name))
                continue
            try:
                yield [value.decode() if isinstance(value, bytes) else str(value) for value in block]
            except UnicodeDecodeError as error:
                raise FormatError(f"{self.what(name)} holds an id that is no valid Unicode text") from error

    def frame_numbers(self, name: str, *, n_rows: int) -> Callable[[], npt.NDArray[np.int64]]:
        array = self.array(name)
        require_frame_numbers(array.dtype, array.shape, n_rows=n_rows, what=self.what(name))
        refuse_bomb(n_rows, self._packed_bytes(array), what=self.what(name))

        def read() -> npt.NDArray[np.int64]:
            with _readable(self._path):
                return np.asarray(array[()]).astype(np.int64)

        return read

    def vectors(self, name: str, id_name: str, *, numbers_name: str | None = None) -> SourceRows:
        array = self.array(name)
        require_vectors(array.dtype, array.shape, what=self.what(name))
        n_rows, dim = array.shape
        n_bytes = n_rows * dim * array.dtype.itemsize
        refuse_bomb(n_bytes, self._packed_bytes(array), what=self.what(name))
        numbers = None if numbers_name is None else self.frame_numbers(numbers_name, n_rows=n_rows)
        return SourceRows(
            n_rows=n_rows,
            dim=dim,
            dtype=array.dtype,
            ids=self.ids(id_name, n_rows=n_rows),
            blocks=partial(self._blocks, array),
            frame_numbers=numbers,
        )

    def _blocks(self, array: Any) -> Iterator[npt.NDArray[Any]]:
        step = rows_per_block(array.shape[1] * array.dtype.itemsize)
        if array.chunks:
            # Whole chunks at a time: a chunk that is cut is unpacked twice.
            step = max(array.chunks[0], step // array.chunks[0] * array.chunks[0])
        for start in range(0, array.shape[0], step):
            with _readable(self._path):
                block = array[start : start + step]
            yield block

    def keyed(self) -> SourceRows:
        """Return the rows of a file that holds one vector a clip, named by its id; groups stand for ``/`` in it."""
        import h5py

        arrays: dict[str, Any] = {}

        def visit(name: str, member: Any) -> None:
            if isinstance(member, h5py.Dataset):
                arrays[name] = member
                if len(arrays) > _MAX_DATASETS:
                    raise HostileInputError(f"{self._path} holds more than {_MAX_DATASETS} arrays")

        self._opened.visititems(visit)
        if not arrays:
            raise FormatError(f"{self._path} holds no array; needed are 'ids' and 'clips', or one vector a clip")
        ordered = sorted(arrays)
        first = arrays[ordered[0]]
        for name in ordered:
            array = arrays[name]
            if array.ndim != 1 or array.shape != first.shape:
                raise FormatError(
                    f"{self._path} holds neither 'ids' and 'clips' nor one vector a clip: array {name!r} has the "
                    f"shape {array.shape}; frames need 'frames', 'frame_ids' and 'frame_numbers'"
                )
            self._require_inside(name, array)
            require_vectors(array.dtype, (1, *array.shape), what=self.what(name))
            refuse_bomb(array.size * array.dtype.itemsize, self._packed_bytes(array), what=self.what(name))
        dim = int(first.shape[0])
        dtype = np.result_type(*{arrays[name].dtype for name in ordered})
        step = rows_per_block(dim * dtype.itemsize)

        def blocks() -> Iterator[npt.NDArray[Any]]:
            for start in range(0, len(ordered), step):
                with _readable(self._path):
                    block = np.stack([arrays[name][()] for name in ordered[start : start + step]])
                yield block.astype(dtype, copy=False)

        return SourceRows(n_rows=len(ordered), dim=dim, dtype=dtype, ids=lambda: iter([ordered]), blocks=blocks)


def open_hdf5(path: Path) -> IngestSource:
    """Open the arrays ``ids`` and ``clips``, ``frames`` with ``frame_ids`` and ``frame_numbers``, or a vector a clip.

    Raises
    ------
    MissingExtraError
        h5py is not installed.
    FormatError, HostileInputError
        It has not these arrays, is damaged, refers to other files, or would exhaust the machine.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError(
            f"{path.name} needs the package h5py, which is not installed; "
            "install the extra with: pip install 'embedstore[hdf5]'"
        ) from error
    with ExitStack() as stack, _readable(path):
        opened = _File(path, stack.enter_context(h5py.File(path, "r")))
        names = opened.names()
        clip_name = the_one_of(CLIP_NAMES, names, what=str(path))
        id_name = the_one_of(ID_NAMES, names, what=str(path))
        clips = frames = None
        if clip_name is not None and id_name is not None:
            clips = opened.vectors(clip_name, id_name)
        if FRAMES_NAME in names:
            for needed in (FRAME_IDS_NAME, FRAME_NUMBERS_NAME):
                if needed not in names:
                    raise FormatError(f"{path} holds {FRAMES_NAME!r} but no {needed!r}: one for each frame vector")
            frames = opened.vectors(FRAMES_NAME, FRAME_IDS_NAME, numbers_name=FRAME_NUMBERS_NAME)
        if clip_name is not None and id_name is None:
            raise FormatError(f"{path} holds {clip_name!r} but no 'ids': one for each vector")
        if clips is None and frames is None:
            clips = opened.keyed()
        return IngestSource(format="hdf5", clips=clips, frames=frames, resources=stack.pop_all())
