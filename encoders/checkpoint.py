"""Opening a checkpoint file safely.

No file runs code here: torch files open with ``weights_only=True``, others as safetensors. A torch file that names
code besides torch's own (a training run's options, say) is refused unless its user trusts it by its SHA-256; then
each name stands for an empty object, so that even a trusted file runs nothing.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.errors import CorruptionError, FormatError, HostileInputError, MissingExtraError, StorageError
from encoders.safetensors_file import read_header

if TYPE_CHECKING:
    import torch

__all__ = ["check_head", "check_whole", "open_checkpoint", "open_tensor", "sha256_of_file"]

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ANNEX_POINTER = b"/annex/objects/"
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")
_ZIP = b"PK\x03\x04"
_HEAD_BYTES = 512

# How torch.load names a file written by torch.jit.save, which holds a program beside the weights.
_PROGRAM = "TorchScript archive"

# How torch/_weights_only_unpickler.py names a class or function outside its allow-list.
_REFUSED_CODE = re.compile(r"GLOBAL (\S+) (was not an allowed global|whose module)")
_BLOCKED = "whose module"  # of os, sys and the like
_MAX_STAND_INS = 256  # names that one file may have stood in for

# What torch's readers raise on bytes that are no checkpoint, besides OSError: the zip reader a RuntimeError, the
# restricted unpickler nearly anything, since damaged opcodes pop an empty stack or index what is not there.
_UNREADABLE = (
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits.

    Raises
    ------
    StorageError
        The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error


class _StandIn:
    """What a trusted checkpoint gets in place of any class or function that it names: it does and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def open_checkpoint(
    path: Path, *, sha256: str | None = None, trusted_sha256: str | None = None, stand_ins: bool = False
) -> dict[str, Any]:
    """Open a torch or safetensors file on the CPU, running none of its code.

    Parameters
    ----------
    path : Path
        The file; its content, not its suffix, says which format it is.
    sha256 : str or None
        The digest that the file must have, where one is known.
    trusted_sha256 : str or None
        The digest of a torch file that its user trusts although it names code. None of it runs: an object of a
        class that is not torch's own is left empty.
    stand_ins : bool
        Whether names of code are passed over without trust, for a look at shapes alone.

    Returns
    -------
    dict
        What the file holds: a state dict, or a mapping that has one.

    Raises
    ------
    StorageError
        The file is not there, is empty, is a download that went wrong, or is cut off: fetch it again.
    CorruptionError
        The file has another digest, or not the trusted one.
    HostileInputError
        The file names code, is a program, or has a header that lies.
    FormatError
        The file opens, but holds no mapping.
    """
    head = check_head(path)
    if sha256 is not None:
        found = sha256_of_file(path)
        if found != sha256:
            raise CorruptionError(
                f"checkpoint {path} has SHA-256 {found}, not {sha256}: it is another file or damaged; fetch it again"
            )
    if path.suffix == ".safetensors" or _is_safetensors(head, path.stat().st_size):
        return _open_safetensors(path)
    if trusted_sha256 is not None:
        found = sha256_of_file(path)
        if found != trusted_sha256:
            raise CorruptionError(
                f"checkpoint {path} has SHA-256 {found}, trusted by --trust-checkpoint is {trusted_sha256}; it is "
                "another file, and is not opened"
            )
    return _open_torch(path, stand_ins=stand_ins or trusted_sha256 is not None)


def check_head(path: Path) -> bytes:
    """Return the first bytes of a checkpoint, unless they show that it is none.

    Raises
    ------
    StorageError
        The path is a folder or cannot be read; the file is empty, a pointer that was left in place of the weights, or
        a web page.
    """
    if path.is_dir():
        raise StorageError(f"checkpoint {path} is a folder; give the file inside it")
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise StorageError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise StorageError(f"checkpoint {path} is empty; fetch it again")
    if head.startswith(_LFS_POINTER):
        raise StorageError(f"checkpoint {path} is a Git LFS pointer, not the weights; run: git lfs pull")
    if len(head) < _HEAD_BYTES and _ANNEX_POINTER in head:
        raise StorageError(f"checkpoint {path} is a git-annex pointer, not the weights; run: git annex get")
    if head.lstrip().lower().startswith(_PAGE_STARTS):
        raise StorageError(
            f"checkpoint {path} is a web page, not weights: the download was answered with a login or error page; "
            "fetch it again"
        )
    return head


def check_whole(path: Path) -> None:
    """See that a checkpoint, or a settings file beside it, has its end, without torch.

    Raises
    ------
    StorageError
        As `check_head`; or the file is cut off.
    HostileInputError
        Its header lies.
    """
    head = check_head(path)
    if path.suffix == ".safetensors" or _is_safetensors(head, path.stat().st_size):
        read_header(path)
    elif head.startswith(_ZIP) and not zipfile.is_zipfile(path):  # its list of members stands at the end
        raise StorageError(f"checkpoint {path} is cut off or damaged; fetch it again")


def _is_safetensors(head: bytes, n_bytes: int) -> bool:
    """A safetensors file starts with the length of its JSON header, little-endian, and then the header."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= n_bytes


def _open_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtraError(
            "a .safetensors checkpoint needs the package safetensors, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        ) from error
    read_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise StorageError(
            f"checkpoint {path} is no readable safetensors file ({error}): it is cut off or damaged; fetch it again"
        ) from error


def open_tensor(path: Path) -> torch.Tensor:
    """Open a torch file that holds one tensor, on the CPU, running none of its code.

    Raises
    ------
    StorageError, CorruptionError, HostileInputError
        As `open_checkpoint`.
    FormatError
        The file opens, but holds something else.
    """
    import torch

    check_head(path)
    opened = _open_anything(path, stand_ins=False)
    if not isinstance(opened, torch.Tensor):
        raise FormatError(f"{path} holds a {type(opened).__name__}, not a tensor")
    return opened


def _open_torch(path: Path, *, stand_ins: bool) -> dict[str, Any]:
    opened = _open_anything(path, stand_ins=stand_ins)
    if not isinstance(opened, Mapping):
        raise FormatError(f"checkpoint {path} holds a {type(opened).__name__}, not a mapping of names to tensors")
    return dict(opened)


def _open_anything(path: Path, *, stand_ins: bool) -> Any:
    names: set[str] = set()
    while True:
        try:
            return _load(path, names)
        except _UNREADABLE as error:
            if _PROGRAM in str(error):
                raise HostileInputError(
                    f"checkpoint {path} is a TorchScript program, which is never run; give the weights alone, "
                    "as a .safetensors file or a state dict"
                ) from error
            refused = _REFUSED_CODE.search(str(error))
            if refused is None:
                raise _unreadable(path, error) from error
            name, why = refused[1], refused[2]
            if why == _BLOCKED or name in names or len(names) >= _MAX_STAND_INS:
                raise HostileInputError(
                    f"checkpoint {path} wants to call {name} on opening, which is refused even in a file that is "
                    "trusted: weights need no code; ask its authors for the weights alone"
                ) from error
            if not stand_ins:
                raise HostileInputError(
                    f"checkpoint {path} wants to call {name} on opening, which is refused: weights need no code; "
                    f"only if you trust its authors, give --trust-checkpoint NAME={sha256_of_file(path)} (even then "
                    "the code is not run)"
                ) from error
            # torch names a builtin without its module.
            names |= {name, f"builtins.{name}"}


def _load(path: Path, names: set[str]) -> Any:
    """Open with the restricted unpickler; classes and functions of these names are stood in for."""
    import torch

    with warnings.catch_warnings(), torch.serialization.safe_globals([(_StandIn, name) for name in sorted(names)]):
        # What cannot be read fails, in one sentence; what can be read needs no comment on its age.
        warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*TorchScript archive", category=UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: BaseException) -> StorageError:
    return StorageError(
        f"checkpoint {path} is no readable torch file ({_reason(error)}): it is cut off or damaged; fetch it again"
    )


def _reason(error: BaseException) -> str:
    """Return the first line of torch's long messages; the restricted unpickler's advice is no help to the user."""
    lines = str(error).strip().splitlines()
    if not lines or "Weights only load failed" in lines[0]:
        return "its index is damaged"
    return lines[0].rstrip(".:")[:200]
