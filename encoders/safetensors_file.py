"""The header of a safetensors file, read and checked before any tensor is: what it holds, and that it does not lie.

The format (huggingface/safetensors, README): eight bytes of header length, little-endian; a JSON object of names to
``dtype``, ``shape`` and ``data_offsets``; the tensors, back to back, without gap or overlap, to the file's end.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.errors import HostileInputError, StorageError

__all__ = ["StoredTensor", "read_header"]

_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
_LENGTH_BYTES = 8
# safetensors/src/tensor.rs, Dtype; types of less than a byte are left to the library.
_DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True)
class StoredTensor:
    """Shape of one tensor, and the bytes of the tensor part that it takes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a safetensors file by name.

    Raises
    ------
    StorageError
        The file cannot be read, is cut off, or its header is no header.
    HostileInputError
        The header is larger than any header is, or says what cannot be: tensors that overlap or leave a gap, or
        whose bytes are not those of their shape.
    """
    try:
        n_bytes = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            begins = stream.read(1) == b"{"
            if begins and length > _MAX_HEADER_BYTES:
                raise HostileInputError(
                    f"checkpoint {path} states a safetensors header of {length} bytes, and no weights have more than "
                    f"{_MAX_HEADER_BYTES}; it is refused"
                )
            whole = begins and length <= n_bytes - _LENGTH_BYTES
            text = b"{" + stream.read(length - 1) if whole and length else None
    except OSError as error:
        raise StorageError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    if not begins:
        raise _unreadable(path, "its header does not say what it holds")
    if text is None:
        raise _unreadable(path, f"its header should take {length} bytes of a file of {n_bytes}")
    try:
        header = json.loads(text)
        tensors = {str(key): _entry(entry) for key, entry in header.items() if key != "__metadata__"}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable(path, "its header does not say what it holds") from error
    _check_extents(path, tensors, n_bytes=n_bytes - _LENGTH_BYTES - length)
    return tensors


def _entry(entry: Any) -> StoredTensor:
    start, stop = (int(offset) for offset in entry["data_offsets"])
    return StoredTensor(str(entry["dtype"]), tuple(int(side) for side in entry["shape"]), start, stop)


def _check_extents(path: Path, tensors: dict[str, StoredTensor], *, n_bytes: int) -> None:
    at, before = 0, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].stop)):
        size = _DTYPE_BYTES.get(tensor.dtype)
        wanted = tensor.stop - tensor.start if size is None else size * math.prod(tensor.shape)
        if min(tensor.shape, default=0) < 0 or tensor.stop - tensor.start != wanted:
            raise _lie(
                path, f"{name} of shape {tensor.shape} in {tensor.stop - tensor.start} bytes of {tensor.dtype}"
            )
        if tensor.start != at:
            raise _lie(path, f"{name} {'overlaps' if tensor.start < at else 'leaves a gap after'} {before}")
        at, before = tensor.stop, name
    if at > n_bytes:
        raise _unreadable(path, f"its tensors should take {at} bytes, and {n_bytes} are there")
    if at < n_bytes:
        raise _lie(path, f"{n_bytes - at} bytes follow the last tensor")


def _unreadable(path: Path, reason: str) -> StorageError:
    return StorageError(
        f"checkpoint {path} is no readable safetensors file ({reason}): it is cut off or damaged; fetch it again"
    )


def _lie(path: Path, what: str) -> HostileInputError:
    return HostileInputError(
        f"the header of checkpoint {path} contradicts itself ({what}); it is damaged or made to deceive: fetch it "
        "again from its authors"
    )
