"""Opening a checkpoint file safely, and loading it exactly.

No file runs code here: torch files open with ``weights_only=True``, others as safetensors. Nothing is skipped in
silence: every key that is missing, left over or of another shape is named.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.errors import CorruptionError, FormatError, HostileInputError, MissingExtraError, StorageError

if TYPE_CHECKING:
    import torch

__all__ = ["load_exactly", "open_checkpoint", "sha256_of_file"]

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ANNEX_POINTER = b"/annex/objects/"
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")
_HEAD_BYTES = 512
_NAMED_KEYS = 8

# How torch/_weights_only_unpickler.py names a class or function outside its allow-list.
_REFUSED_CODE = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")

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


def open_checkpoint(path: Path, *, sha256: str | None = None) -> dict[str, Any]:
    """Open a torch or safetensors file on the CPU, running none of its code.

    Parameters
    ----------
    path : Path
        The file; its content, not its suffix, says which format it is.
    sha256 : str or None
        The digest that the file must have, where one is known.

    Returns
    -------
    dict
        What the file holds: a state dict, or a mapping that has one.

    Raises
    ------
    StorageError
        The file is not there, is empty, is a download that went wrong, or is cut off: fetch it again.
    CorruptionError
        The file has another digest.
    HostileInputError
        The file needs code to be run on opening.
    FormatError
        The file opens, but holds no mapping.
    """
    head = _head(path)
    if sha256 is not None:
        found = sha256_of_file(path)
        if found != sha256:
            raise CorruptionError(
                f"checkpoint {path} has SHA-256 {found}, not {sha256}: it is another file or damaged; fetch it again"
            )
    if path.suffix == ".safetensors" or _is_safetensors(head, path.stat().st_size):
        return _open_safetensors(path)
    return _open_torch(path)


def _head(path: Path) -> bytes:
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
    try:
        return load_file(path)
    except SafetensorError as error:
        raise StorageError(
            f"checkpoint {path} is no readable safetensors file ({error}): it is cut off or damaged; fetch it again"
        ) from error


def _open_torch(path: Path) -> dict[str, Any]:
    import torch

    try:
        with warnings.catch_warnings():
            # What cannot be read fails below, in one sentence; what can be read needs no comment on its age.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
            opened = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        refused = _REFUSED_CODE.search(str(error))
        if refused is not None:
            raise HostileInputError(
                f"checkpoint {path} wants to call {refused[1]} on opening, which is refused: weights need no code"
            ) from error
        raise StorageError(
            f"checkpoint {path} is no readable torch file ({_reason(error)}): it is cut off or damaged; "
            "fetch it again"
        ) from error
    if not isinstance(opened, Mapping):
        raise FormatError(f"checkpoint {path} holds a {type(opened).__name__}, not a mapping of names to tensors")
    return dict(opened)


def _reason(error: BaseException) -> str:
    """Return the first line of torch's long messages; the restricted unpickler's advice is no help to the user."""
    lines = str(error).strip().splitlines()
    if not lines or "Weights only load failed" in lines[0]:
        return "its index is damaged"
    return lines[0].rstrip(".:")[:200]


def load_exactly(
    model: torch.nn.Module,
    state: Mapping[str, Any],
    *,
    source: Path | str,
    may_miss: Collection[str] = (),
    may_ignore: Collection[str] = (),
) -> None:
    """Copy a state dict into a model, accounting for every key.

    Parameters
    ----------
    model : torch.nn.Module
        The model to fill.
    state : mapping of str to tensor
        The state dict.
    source : Path or str
        What to call the checkpoint in an error.
    may_miss, may_ignore : collection of str
        Keys that the published file is known to lack, and to have beyond the model's.

    Raises
    ------
    FormatError
        Keys are missing, unexpected, no tensors, or of another shape; the first ones are named.
    """
    import torch

    wanted = model.state_dict()
    missing = sorted(wanted.keys() - state.keys() - set(may_miss))
    unexpected = sorted(str(key) for key in state.keys() - wanted.keys() - set(may_ignore))
    shared = [key for key in wanted if key in state]
    not_tensors = [key for key in shared if not isinstance(state[key], torch.Tensor)]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in shared
        if key not in not_tensors and state[key].shape != wanted[key].shape
    ]
    faults = [
        f"{len(keys)} {title}: {_named(keys)}"
        for title, keys in (
            ("keys are missing", missing),
            ("keys are unexpected", unexpected),
            ("keys are no tensors", not_tensors),
            ("tensors have another shape", reshaped),
        )
        if keys
    ]
    if faults:
        raise FormatError(
            f"checkpoint {source} does not fit {type(model).__name__}: {'; '.join(faults)}; "
            "is it another model's file?"
        )
    model.load_state_dict({key: state[key] for key in shared}, strict=False)


def _named(keys: list[str]) -> str:
    shown = ", ".join(keys[:_NAMED_KEYS])
    return shown if len(keys) <= _NAMED_KEYS else f"{shown} and {len(keys) - _NAMED_KEYS} more"
