"""A published model as it lies on disk: one checkpoint file, or a folder of weights, settings and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from embedstore.errors import CorruptionError, FormatError, HostileInputError, StorageError
from encoders.safetensors_file import read_header

__all__ = [
    "Shapes",
    "count_layers",
    "find_file",
    "open_state",
    "part_files",
    "read_settings",
    "shape_of",
    "shapes_of_state",
    "tensor_shapes",
    "weights_file",
]

Shapes = Mapping[str, tuple[int, ...]]

# Settings files are kilobytes and safetensors headers hundreds of kilobytes; more is not one of them.
_MAX_SETTINGS_BYTES = 1 << 22
_MAX_INDEX_BYTES = 1 << 26
_WRAPPERS = ("state_dict", "model_state_dict", "model", "weights")


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of these files that a folder holds; a file stands for the folder that it lies in."""
    base = folder if folder.is_dir() else folder.parent
    return next((base / name for name in names if (base / name).is_file()), None)


def weights_file(path: Path, names: Sequence[str]) -> Path:
    """Return the checkpoint: the file itself, or the first of ``names`` inside the folder.

    Raises
    ------
    StorageError
        The path is not there, or the folder holds none of them.
    """
    if path.is_dir():
        found = find_file(path, names)
        if found is None:
            raise StorageError(
                f"folder {path} holds none of {', '.join(names)}; give the folder or file of the weights"
            )
        return found
    if not path.is_file():
        raise StorageError(f"checkpoint {path} is not there")
    return path


def read_settings(path: Path, name: str) -> dict[str, Any] | None:
    """Return the JSON object in file ``name`` of a folder, or None where ``path`` is no folder or has no such file.

    Raises
    ------
    FormatError
        The file is no JSON object.
    """
    if not path.is_dir() or not (path / name).is_file():
        return None
    return _json_object(path / name, max_bytes=_MAX_SETTINGS_BYTES)


def _json_object(file: Path, *, max_bytes: int) -> dict[str, Any]:
    try:
        n_bytes = file.stat().st_size
        text = file.read_bytes() if n_bytes <= max_bytes else b""
    except OSError as error:
        raise StorageError(f"settings file {file} cannot be read: {error.strerror or error}") from error
    if n_bytes > max_bytes:
        raise HostileInputError(f"settings file {file} is larger than {max_bytes >> 20} MiB; it is no settings file")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"settings file {file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"settings file {file} holds a {type(found).__name__}, not an object")
    return found


def open_state(
    path: Path,
    *,
    names: Sequence[str],
    sha256: str | None = None,
    trusted_sha256: str | None = None,
    shapes_only: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Open the state dict of a file or folder on the CPU.

    An index of several safetensors files (``*.safetensors.index.json``) is followed. A state dict inside a training
    checkpoint (under ``state_dict``, ``model`` or ``weights``) is taken out, and the ``module.`` of data-parallel
    training too.

    Parameters
    ----------
    path : Path
        A checkpoint file, or a folder with one of ``names``.
    names : sequence of str
        File names of weights in a folder, best first.
    sha256 : str or None
        What the file must have, where ``path`` is a single file; a folder's digest covers more than its weights.
    trusted_sha256 : str or None
        As `encoders.checkpoint.open_checkpoint`.
    shapes_only : bool
        Whether only shapes are wanted, for which a file need not be trusted: what it holds is not used.

    Returns
    -------
    dict, Path
        Names to tensors, and the file they came from.

    Raises
    ------
    StorageError, CorruptionError, HostileInputError, FormatError
        As `encoders.checkpoint.open_checkpoint`.
    """
    from encoders.checkpoint import open_checkpoint

    file = weights_file(path, names)
    if file.name.endswith(".index.json"):
        return _open_parts(file), file
    state = open_checkpoint(
        file,
        sha256=None if path.is_dir() else sha256,
        trusted_sha256=trusted_sha256,
        stand_ins=shapes_only,
    )
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = dict(state[wrapper])
            break
    if state and all(str(key).startswith("module.") for key in state):
        state = {str(key).removeprefix("module."): value for key, value in state.items()}
    return state, file


def part_files(file: Path) -> tuple[Path, ...]:
    """Return a checkpoint's files: itself, and those that an index of several names.

    Raises
    ------
    StorageError, HostileInputError, FormatError
        The index cannot be read, names a file outside its folder, or one that is not there.
    """
    if not file.name.endswith(".index.json"):
        return (file,)
    return (file, *(file.parent / name for name in sorted(set(_index(file).values()))))


def _index(index: Path) -> dict[str, str]:
    """Return which file beside an index holds which tensor."""
    listed = _json_object(index, max_bytes=_MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise FormatError(f"index {index} has no weight_map of file names")
    for name in sorted(set(listed.values())):
        if PurePosixPath(name).name != name or "\\" in name:
            raise HostileInputError(f"index {index} names the file {name!r} outside its folder")
        if not (index.parent / name).is_file():
            raise StorageError(f"index {index} names {name}, which is not beside it; fetch it too")
    return listed


def _open_parts(index: Path) -> dict[str, Any]:
    from encoders.checkpoint import open_checkpoint

    listed = _index(index)
    state: dict[str, Any] = {}
    for part in part_files(index)[1:]:
        state.update(open_checkpoint(part))
    absent = sorted(set(listed) - set(state))
    if absent:
        raise CorruptionError(f"index {index} names {len(absent)} tensors that no file holds, first {absent[0]}")
    return state


def tensor_shapes(path: Path, *, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor; of a safetensors file only the header is read, and torch is not imported.

    Raises
    ------
    StorageError, HostileInputError, FormatError
        As `open_state`.
    """
    from encoders.checkpoint import check_head

    file = weights_file(path, names)
    if file.suffix != ".safetensors":
        return shapes_of_state(open_state(path, names=names, shapes_only=True)[0])
    check_head(file)
    return {name: tensor.shape for name, tensor in read_header(file).items()}


def shapes_of_state(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a state dict."""
    return {str(key): tuple(value.shape) for key, value in state.items() if hasattr(value, "shape")}


def shape_of(shapes: Shapes, key: str, *, n_sides: int, source: Path | str) -> tuple[int, ...]:
    """Return the shape of a tensor that the model cannot be without.

    Raises
    ------
    FormatError
        It is not there, or has not ``n_sides`` sides.
    """
    if key not in shapes:
        shown = ", ".join(sorted(shapes)[:4]) or "none"
        raise FormatError(
            f"checkpoint {source} does not fit: the key {key} is missing, its first keys are {shown}; "
            "is it another model's file?"
        )
    shape = shapes[key]
    if len(shape) != n_sides or 0 in shape:
        raise FormatError(
            f"checkpoint {source} does not fit: {key} has shape {shape}, not {n_sides} sides; is it another model's?"
        )
    return shape


def count_layers(shapes: Shapes, prefix: str) -> int:
    """Return how many blocks there are: one more than the highest number that follows ``prefix`` in a key.

    Examples
    --------
    >>> count_layers({"layer.0.weight": (1,), "layer.11.weight": (1,), "head": (1,)}, "layer.")
    12
    """
    numbers = (key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix))
    return max((int(number) + 1 for number in numbers if number.isdecimal() and len(number) < 5), default=0)
