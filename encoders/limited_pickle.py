"""Converting a published pickle, once, without letting it do anything.

A pickle can call any function of any installed package. Those that a model was published with are converted to plain
values in a process of their own, by an unpickler that knows an allow-list and nothing else, with bounded memory and
time, and only where the user names the file's SHA-256. Nothing else in this software unpickles a file.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import (
    ContentError,
    CorruptionError,
    FormatError,
    HostileInputError,
    MissingExtraError,
    StorageError,
)

__all__ = ["convert_labels", "convert_sections"]

_CHILD = Path(__file__).with_name("unpickle_child.py")
_TIMEOUT_S = 3600.0
# Objects of Python take many times the bytes that they have in a pickle: 28 for a number of 9, 100 and more for a
# cell of a mapping.
_MEMORY_PER_BYTE = 60
_MEMORY_BASE = 4 << 30
_ERRORS = {
    "hostile": HostileInputError,
    "digest": CorruptionError,
    "damaged": CorruptionError,
    "form": FormatError,
    "extra": MissingExtraError,
}


def convert_labels(path: Path, ids: Sequence[str], *, sha256: str | None) -> Mapping[str, npt.NDArray[np.float64]]:
    """Return the labels of a pickle by name, each in the order of ``ids``, NaN where there is none.

    It holds a mapping of names to mappings of ids to numbers, or a table of pandas of that form.

    Parameters
    ----------
    path : Path
    ids : sequence of str
    sha256 : str or None
        The digest that the user trusts; None where the user named none.

    Raises
    ------
    HostileInputError
        No digest was named, or the pickle asks for something that is not on the allow-list, or for too much.
    CorruptionError
        The file has another digest, or cannot be read.
    FormatError
        It holds something else.
    StorageError
        The file is not there.
    MissingExtraError
        It holds a table of pandas, which is not installed.
    """
    head, numbers = _convert("labels", path, ids, sha256)
    names = head["names"]
    if len(set(names)) < len(names):
        raise ContentError(f"{path} has two labels of one name")
    values = np.frombuffer(numbers, dtype="<f8").reshape(len(names), len(ids))
    return dict(zip(names, values, strict=True))


def convert_sections(path: Path, *, sha256: str | None) -> Mapping[str, Sequence[str]]:
    """Return the phenotypes of each section of a pickle, in its order.

    Raises
    ------
    HostileInputError, CorruptionError, FormatError, StorageError, MissingExtraError
        As `convert_labels`.
    """
    head, _ = _convert("sections", path, (), sha256)
    sections: Mapping[str, Sequence[str]] = head["sections"]
    return sections


def _convert(kind: str, path: Path, ids: Sequence[str], sha256: str | None) -> tuple[dict[str, Any], bytes]:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    if sha256 is None:
        raise HostileInputError(
            f"{path} is a pickle, which can run code; if you trust where it comes from, convert it once in a limited "
            f"process with --trust-pickle {path.name}={found}"
        )
    if found != sha256:
        raise CorruptionError(f"{path} has SHA-256 {found}, trusted by --trust-pickle is {sha256}: it is not opened")
    limit = _MEMORY_BASE + _MEMORY_PER_BYTE * size
    # Isolated: neither the working folder nor the user's settings decide what the process imports.
    command = [sys.executable, "-I", "-B", str(_CHILD), kind, str(path.resolve()), sha256, str(limit)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(list(ids)).encode("ascii"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
            cwd="/",
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise HostileInputError(f"{path} took longer than {_TIMEOUT_S:.0f} s to convert and was given up") from error
    line, _, numbers = done.stdout.partition(b"\n")
    if done.returncode != 0 or not line:
        raise HostileInputError(
            f"{path} ended the process that converted it (code {done.returncode}): it asks for too much"
        )
    head: dict[str, Any] = json.loads(line)
    if "kind" in head:
        raise _ERRORS[head["kind"]](f"{path} was not converted: {head['message']}")
    return head, numbers
