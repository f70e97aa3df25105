"""Reading ``.npy`` and ``.npz``: headers are held against sizes before anything is allocated; never unpickled."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from embedstore.disk import storage_errors
from embedstore.errors import FormatError, HostileInputError, UnknownNameError
from embedstore.ingest.id_table import read_id_table
from embedstore.ingest.source import (
    BLOCK_BYTES,
    CLIP_NAMES,
    FRAME_IDS_NAME,
    FRAME_NUMBERS_NAME,
    FRAMES_NAME,
    ID_NAMES,
    IngestSource,
    PlainRows,
    SourceRows,
    id_texts,
    refuse_bomb,
    require_frame_numbers,
    require_ids,
    require_vectors,
    rows_per_block,
    the_one_of,
)

__all__ = ["NpyHeader", "open_npy", "open_npz", "read_npy_header"]

# A header of a plain array takes 118 bytes; numpy itself refuses more than 10,000.
_MAX_HEADER_BYTES = 10_000
_MAX_MEMBERS = 10_000
# The fixed part of a ZIP local file header: APPNOTE.TXT 6.3.10, section 4.3.7.
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
# What numpy raises on text that is no header: it is evaluated as a literal, and tokenised when that fails.
_BAD_HEADER = (
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError)


@dataclass(frozen=True)
class NpyHeader:
    """What the header of a ``.npy`` file says, and where the values begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int


def read_npy_header(stream: IO[bytes], *, n_bytes: int, what: str) -> NpyHeader:
    """Read the header at the beginning of a stream and hold it against the size of the whole.

    Parameters
    ----------
    n_bytes : int
        Size of the file or archive member, header included.
    what : str
        Named in errors.

    Raises
    ------
    HostileInputError
        The array holds Python objects.
    FormatError
        It is no header, or the values take another number of bytes than there are.
    """
    start = stream.read(12)
    if len(start) < 12 or start[:6] != b"\x93NUMPY" or (start[6], start[7]) not in ((1, 0), (2, 0)):
        raise FormatError(f"{what} is no array in the .npy format")
    is_old = start[6] == 1
    size = struct.unpack("<H", start[8:10])[0] if is_old else struct.unpack("<I", start[8:12])[0]
    offset = size + (10 if is_old else 12)
    if size > _MAX_HEADER_BYTES or offset > n_bytes:
        raise FormatError(f"{what} has a header of {size} bytes, which cannot be")
    rest = io.BytesIO(start[8:] + stream.read(offset - 12))
    read = np.lib.format.read_array_header_1_0 if is_old else np.lib.format.read_array_header_2_0
    try:
        shape, fortran_order, dtype = read(rest, max_header_size=_MAX_HEADER_BYTES)
    except _BAD_HEADER as error:
        raise FormatError(f"{what} has a header that cannot be read") from error
    header = NpyHeader(dtype, shape, fortran_order, offset)
    if dtype.hasobject:
        raise HostileInputError(
            f"{what} holds Python objects, which are never unpickled; save vectors as float32 and ids as text, "
            "e.g. numpy.asarray(ids, str)"
        )
    wanted = math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or wanted != n_bytes - offset:
        raise FormatError(
            f"{what} claims the shape {shape} of {dtype}, which is {wanted} bytes, but holds {n_bytes - offset}; "
            "it is cut off or damaged"
        )
    return header


def _mapped_blocks(path: Path, header: NpyHeader, begin: int) -> Iterator[npt.NDArray[Any]]:
    order: Literal["F", "C"] = "F" if header.fortran_order else "C"
    with storage_errors(path, "read"):
        matrix = np.memmap(path, dtype=header.dtype, mode="r", offset=begin, shape=header.shape, order=order)
    step = rows_per_block(header.shape[1] * header.dtype.itemsize)
    for start in range(0, header.shape[0], step):
        yield matrix[start : start + step].view(np.ndarray)


def _rows_in_file(
    path: Path, header: NpyHeader, ids: Callable[[], Iterator[Sequence[str]]], *, begin: int, **more: Any
) -> SourceRows:
    """Return rows whose values lie in the file as they are, from ``begin`` on."""
    return SourceRows(
        n_rows=header.shape[0],
        dim=header.shape[1],
        dtype=header.dtype,
        ids=ids,
        blocks=partial(_mapped_blocks, path, header, begin),
        plain=None if header.fortran_order else PlainRows(path, begin),
        **more,
    )


def open_npy(path: Path, *, id_table: Path | None) -> IngestSource:
    """Open a matrix of clip vectors whose ids stand in a CSV, in row order.

    Raises
    ------
    UnknownNameError
        No CSV is given.
    FormatError, HostileInputError
        The file is no such matrix, or the CSV has another number of rows.
    """
    with storage_errors(path, "read"), path.open("rb") as handle:
        header = read_npy_header(handle, n_bytes=path.stat().st_size, what=str(path))
    require_vectors(header.dtype, header.shape, what=str(path))
    if id_table is None:
        raise UnknownNameError(f"{path.name} holds no ids; give them in row order with --ids FILE.csv")
    ids = read_id_table(id_table, n_rows=header.shape[0])
    return IngestSource(format="npy", clips=_rows_in_file(path, header, lambda: iter([ids]), begin=header.offset))


class _Archive:
    """The arrays of a ``.npz``, each checked before it is read."""

    def __init__(self, path: Path, opened: zipfile.ZipFile) -> None:
        self._path, self._zip = path, opened
        members = opened.infolist()
        names = [member.filename for member in members]
        if len(names) > _MAX_MEMBERS:
            raise HostileInputError(f"{path} holds {len(names)} members, more than the {_MAX_MEMBERS} allowed")
        if len(set(names)) != len(names):
            raise HostileInputError(f"{path} holds two members of one name")
        self._members = {
            member.filename.removesuffix(".npy"): member for member in members if member.filename.endswith(".npy")
        }

    @property
    def names(self) -> list[str]:
        return sorted(self._members)

    def what(self, name: str) -> str:
        return f"array {name!r} of {self._path}"

    def _open(self, name: str) -> IO[bytes]:
        return self._zip.open(self._members[name])

    def header(self, name: str) -> NpyHeader:
        """Read an array's header; nothing else of it is unpacked."""
        member = self._members[name]
        if member.flag_bits & 0x1:
            raise FormatError(f"{self.what(name)} is encrypted; save it without a password")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FormatError(f"{self.what(name)} is packed in a way that numpy does not write; save it again")
        if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            raise FormatError(f"{self.what(name)} has two sizes; the archive is damaged")
        try:
            with self._open(name) as stream:
                return read_npy_header(stream, n_bytes=member.file_size, what=self.what(name))
        except (*_UNREADABLE, OSError) as error:
            if isinstance(error, FormatError | HostileInputError):
                raise
            raise FormatError(f"{self.what(name)} cannot be read: the archive is damaged") from error

    def read(self, name: str, header: NpyHeader) -> Iterator[npt.NDArray[Any]]:
        """Yield blocks of an array along its first axis; its checksum is compared at the end."""
        row_shape = header.shape[1:]
        row_bytes = math.prod(row_shape) * header.dtype.itemsize
        step = rows_per_block(row_bytes)
        try:
            with self._open(name) as stream:
                stream.read(header.offset)
                for start in range(0, header.shape[0], step):
                    n_rows = min(step, header.shape[0] - start)
                    payload = stream.read(n_rows * row_bytes)
                    if len(payload) != n_rows * row_bytes:
                        raise EOFError
                    yield np.frombuffer(payload, dtype=header.dtype).reshape(n_rows, *row_shape)
                if stream.read(1):
                    raise EOFError
        except (*_UNREADABLE, OSError) as error:
            raise FormatError(f"{self.what(name)} cannot be unpacked: the archive is cut off or damaged") from error

    def ids(self, name: str, *, n_rows: int) -> Callable[[], Iterator[Sequence[str]]]:
        header = self.header(name)
        require_ids(header.dtype, header.shape, n_rows=n_rows, what=self.what(name))
        return lambda: (id_texts(block, what=self.what(name)) for block in self.read(name, header))

    def frame_numbers(self, name: str, *, n_rows: int) -> Callable[[], npt.NDArray[np.int64]]:
        header = self.header(name)
        require_frame_numbers(header.dtype, header.shape, n_rows=n_rows, what=self.what(name))
        return lambda: np.concatenate([block.astype(np.int64) for block in self.read(name, header)])

    def vectors(self, name: str, id_name: str, *, numbers_name: str | None = None) -> SourceRows:
        """Return the rows of an array of vectors: mapped where it is stored plainly, else unpacked in blocks."""
        member, header = self._members[name], self.header(name)
        require_vectors(header.dtype, header.shape, what=self.what(name))
        n_rows, dim = header.shape
        ids = self.ids(id_name, n_rows=n_rows)
        more: dict[str, Any] = {}
        if numbers_name is not None:
            more["frame_numbers"] = self.frame_numbers(numbers_name, n_rows=n_rows)
        if member.compress_type == zipfile.ZIP_STORED:
            begin = self._begin_of(name) + header.offset
            return _rows_in_file(self._path, header, ids, begin=begin, **more)
        refuse_bomb(member.file_size, member.compress_size, what=self.what(name))
        if header.fortran_order:
            raise FormatError(
                f"{self.what(name)} is compressed in column order; save numpy.ascontiguousarray({name}) instead"
            )
        blocks = partial(self.read, name, header)
        return SourceRows(n_rows=n_rows, dim=dim, dtype=header.dtype, ids=ids, blocks=blocks, **more)

    def _begin_of(self, name: str) -> int:
        """Return where the bytes of a stored member begin, its checksum compared."""
        member = self._members[name]
        with storage_errors(self._path, "read"), self._path.open("rb") as handle:
            handle.seek(member.header_offset)
            fixed = handle.read(_LOCAL_HEADER.size)
            if len(fixed) < _LOCAL_HEADER.size or fixed[:4] != b"PK\x03\x04":
                raise FormatError(f"{self.what(name)} cannot be read: the archive is damaged")
            *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(fixed)
            begin: int = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
            handle.seek(begin)
            left, checksum = member.file_size, 0
            while left and (block := handle.read(min(left, BLOCK_BYTES))):
                checksum = zlib.crc32(block, checksum)
                left -= len(block)
        if left or checksum != member.CRC:
            raise FormatError(f"{self.what(name)} does not have its checksum: the archive is cut off or damaged")
        return begin


def open_npz(path: Path) -> IngestSource:
    """Open an archive of the arrays ``ids`` and ``clips``, and ``frames`` with ``frame_ids`` and ``frame_numbers``.

    Raises
    ------
    FormatError, HostileInputError
        It has not these arrays, is damaged, or would run code or exhaust the machine.
    """
    with ExitStack() as stack, storage_errors(path, "read"):
        try:
            archive = _Archive(path, stack.enter_context(zipfile.ZipFile(path)))
        except _UNREADABLE as error:
            if isinstance(error, FormatError | HostileInputError):
                raise
            raise FormatError(f"{path} is no readable archive: it is cut off or damaged") from error
        clip_name = the_one_of(CLIP_NAMES, archive.names, what=str(path))
        id_name = the_one_of(ID_NAMES, archive.names, what=str(path))
        clips = frames = None
        if clip_name is not None and id_name is not None:
            clips = archive.vectors(clip_name, id_name)
        if FRAMES_NAME in archive.names:
            for needed in (FRAME_IDS_NAME, FRAME_NUMBERS_NAME):
                if needed not in archive.names:
                    raise FormatError(f"{path} holds {FRAMES_NAME!r} but no {needed!r}: one for each frame vector")
            frames = archive.vectors(FRAMES_NAME, FRAME_IDS_NAME, numbers_name=FRAME_NUMBERS_NAME)
        if clips is None and (frames is None or clip_name is not None):
            raise FormatError(
                f"{path} holds the arrays {', '.join(archive.names) or 'none'}; needed are 'ids' and 'clips', or "
                "'frames', 'frame_ids' and 'frame_numbers'"
            )
        return IngestSource(format="npz", clips=clips, frames=frames, resources=stack.pop_all())
