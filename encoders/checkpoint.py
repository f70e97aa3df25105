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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.errors import CorruptionError, FormatError, HostileInputError, MissingExtraError, StorageError

if TYPE_CHECKING:
    import torch

__all__ = ["load_exactly", "open_checkpoint", "sha256_of_file", "without_initialisation"]

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ANNEX_POINTER = b"/annex/objects/"
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")
_HEAD_BYTES = 512
_NAMED_KEYS = 8

# In-place draws of random numbers that models make in their constructors besides the functions of torch.nn.init.
_DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "erfinv_"})

# How torch.load names a file written by torch.jit.save, which holds a program beside the weights.
_PROGRAM = "TorchScript archive"

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


def open_checkpoint(path: Path, *, sha256: str | None = None, trusted_sha256: str | None = None) -> dict[str, Any]:
    """Open a torch or safetensors file on the CPU, running none of its code.

    Parameters
    ----------
    path : Path
        The file; its content, not its suffix, says which format it is.
    sha256 : str or None
        The digest that the file must have, where one is known.
    trusted_sha256 : str or None
        The digest of a file that its user trusts to run code on opening; code runs only where the file needs it and
        has this digest.

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
        The file needs code to be run on opening, or is a program.
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
    return _open_torch(path, trusted_sha256=trusted_sha256)


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


def _open_torch(path: Path, *, trusted_sha256: str | None) -> dict[str, Any]:
    import torch

    try:
        with warnings.catch_warnings():
            # What cannot be read fails below, in one sentence; what can be read needs no comment on its age.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*TorchScript archive", category=UserWarning)
            opened = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if _PROGRAM in str(error):
            raise HostileInputError(
                f"checkpoint {path} is a TorchScript program, which is never run; give the weights alone, "
                "as a .safetensors file or a state dict"
            ) from error
        refused = _REFUSED_CODE.search(str(error))
        if refused is None:
            raise _unreadable(path, error) from error
        found = sha256_of_file(path)
        if trusted_sha256 != found:
            raise HostileInputError(
                f"checkpoint {path} wants to call {refused[1]} on opening, which is refused: weights need no code; "
                f"only if you trust its authors, give its SHA-256 {found} with --trust-checkpoint"
            ) from error
        opened = _open_trusted(path)
    if not isinstance(opened, Mapping):
        raise FormatError(f"checkpoint {path} holds a {type(opened).__name__}, not a mapping of names to tensors")
    return dict(opened)


def _open_trusted(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


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


def load_exactly(
    model: torch.nn.Module,
    state: Mapping[str, Any],
    *,
    source: Path | str,
    may_miss: Collection[str] = (),
    may_ignore: Collection[str] = (),
    only: str | tuple[str, ...] = "",
    spelled: Callable[[str], str] = str,
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
        Keys that the published file is known to lack, and to have beyond the model's; the latter may be patterns, as
        ``decoder_blocks.[0-7].norm1.*``.
    only : str or tuple of str
        Prefixes of the keys that are copied, for one tower of a model of which the rest is checked and then dropped.
    spelled : callable
        How the file itself spells a key of the model, for the error, where the loader has spelled it anew.

    Raises
    ------
    FormatError
        Keys are missing, unexpected, no tensors, or of another shape; the first ones are named.
    """
    import torch

    wanted = model.state_dict()
    missing = sorted({spelled(key) for key in wanted.keys() - state.keys() - set(may_miss)})
    unexpected = sorted(
        str(key)
        for key in state.keys() - wanted.keys()
        if not any(key == known or fnmatchcase(str(key), known) for known in may_ignore)
    )
    shared = [key for key in wanted if key in state]
    not_tensors = [key for key in shared if not isinstance(state[key], torch.Tensor)]
    reshaped = [
        f"{spelled(key)} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
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
    model.load_state_dict({key: state[key] for key in shared if key.startswith(only)}, strict=False)


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build modules inside the block without drawing their random weights, which a checkpoint replaces anyway.

    The values are whatever memory holds until `load_exactly` has filled them. Buffers that are computed are right.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class _NoDraws(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            named = kwargs or {}
            if getattr(func, "__module__", None) == "torch.nn.init" or getattr(func, "__name__", "") in _DRAWS:
                return named["tensor"] if "tensor" in named else args[0]
            return func(*args, **named)

    with _NoDraws(), torch.no_grad():
        yield


def _named(keys: list[str]) -> str:
    shown = ", ".join(keys[:_NAMED_KEYS])
    return shown if len(keys) <= _NAMED_KEYS else f"{shown} and {len(keys) - _NAMED_KEYS} more"
