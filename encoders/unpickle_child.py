"""Run by `encoders.limited_pickle` as a process of its own: one pickle in, plain JSON and numbers out.

Only names of an allow-list are ever looked up: containers of builtins, numpy arrays and named pandas classes. The
process can write no file and has bounded memory and time. It imports nothing of this package.

Arguments: what the pickle holds (``labels`` or ``sections``), its path, its SHA-256, the memory limit in bytes. On
standard input for labels: a JSON list of ids. On standard output: one line of JSON, and for labels the numbers,
float64, one row a name.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import json
import pickle
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

_SECONDS = 1800  # of processor time: 50 million cells, the largest table that is published, take some minutes
_FILES = 16


class Refused(Exception):
    """What is not read, and which kind of error that is for the user."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What older protocols write for the bytes of an array."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("hostile", "it encodes text in another way than arrays do")
    return text.encode("latin1")


def _scalar(dtype: Any, payload: Any = None) -> Any:
    """A numpy number; one of the dtype object would hold anything."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(payload, bytes):
        raise Refused("hostile", "it holds a numpy scalar of objects")
    if len(payload) != dtype.itemsize:
        raise Refused("damaged", "a numpy scalar has another size than its type")
    return np.frombuffer(payload, dtype=dtype)[0]


def _frombuffer(payload: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """An array of protocol 5."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise Refused("hostile", "it holds an array of objects in a buffer")
    return np.frombuffer(payload, dtype=dtype).reshape(shape, order=order)


_PLAIN: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
for _module in ("builtins", "__builtin__"):
    for _class in (dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, bool, complex, slice, range):
        _PLAIN[_module, _class.__name__] = _class
    _PLAIN[_module, "unicode"] = str
for _core in ("numpy.core", "numpy._core"):
    _PLAIN[f"{_core}.multiarray", "_reconstruct"] = np.ndarray(0).__reduce__()[0]
    _PLAIN[f"{_core}.multiarray", "scalar"] = _scalar
    _PLAIN[f"{_core}.numeric", "_frombuffer"] = _frombuffer

# Where pandas of several releases keeps what a pickled table is made of. Indexes of numbers are plain ones today.
_PANDAS = {
    ("pandas", "DataFrame"): ("pandas", "DataFrame"),
    ("pandas", "Series"): ("pandas", "Series"),
    ("pandas", "Index"): ("pandas", "Index"),
    ("pandas", "RangeIndex"): ("pandas", "RangeIndex"),
    ("pandas.core.frame", "DataFrame"): ("pandas", "DataFrame"),
    ("pandas.core.series", "Series"): ("pandas", "Series"),
    ("pandas.core.indexes.base", "Index"): ("pandas", "Index"),
    ("pandas.core.indexes.range", "RangeIndex"): ("pandas", "RangeIndex"),
    ("pandas.core.indexes.numeric", "Int64Index"): ("pandas", "Index"),
    ("pandas.core.indexes.numeric", "Float64Index"): ("pandas", "Index"),
    ("pandas.core.indexes.base", "_new_Index"): ("pandas.core.indexes.base", "_new_Index"),
    ("pandas._libs.internals", "_unpickle_block"): ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.core.internals.managers", "BlockManager"): ("pandas.core.internals.managers", "BlockManager"),
    ("pandas.core.internals.managers", "SingleBlockManager"): (
        "pandas.core.internals.managers",
        "SingleBlockManager",
    ),
}


class _AllowList(pickle.Unpickler):
    """An unpickler that finds nothing but what is on the list."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        key = (module_name, global_name)
        if key in _PLAIN:
            return _PLAIN[key]
        if key not in _PANDAS:
            raise Refused("hostile", f"it asks for {module_name}.{global_name}, which is not on the allow-list")
        home, name = _PANDAS[key]
        try:
            return getattr(import_module(home), name)
        except ImportError as error:
            raise Refused("extra", "it holds a table of pandas, which is not installed") from error

    def persistent_load(self, pid: Any) -> NoReturn:
        raise Refused("hostile", "it points to objects outside of itself")


def _word(key: Any) -> str:
    """The text of an id: whole numbers are the same whatever type they have."""
    if isinstance(key, float | np.floating) and float(key).is_integer():
        key = int(key)
    if isinstance(key, str):
        return key
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return str(int(key))
    raise Refused("form", f"an id is a {type(key).__name__}, neither text nor a whole number")


def _pairs(table: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values of a mapping, or of a column of pandas."""
    if isinstance(table, Mapping):
        return iter(table.items())
    if hasattr(table, "index") and hasattr(table, "to_numpy"):
        return iter(zip(table.index.tolist(), table.to_numpy().tolist(), strict=True))
    raise Refused("form", f"a part of it is a {type(table).__name__}, neither a mapping nor a column of a table")


def _number(value: Any) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        return float(value)
    raise Refused("form", f"a label is a {type(value).__name__}, not a number")


def _labels(opened: Any, ids: list[str]) -> tuple[dict[str, Any], bytes]:
    """Put the labels of each name in the order of the ids; NaN where there is none."""
    named = opened.items() if isinstance(opened, Mapping) or hasattr(opened, "columns") else None
    if named is None:
        raise Refused("form", f"it holds a {type(opened).__name__}, not labels by name")
    names, rows = [], []
    for name, table in named:
        found = {_word(key): _number(value) for key, value in _pairs(table)}
        rows.append(np.array([found.get(word, np.nan) for word in ids], dtype="<f8"))
        names.append(_word(name))
    return {"names": names, "ids": len(ids)}, b"".join(row.tobytes() for row in rows)


def _sections(opened: Any) -> dict[str, Any]:
    if not isinstance(opened, Mapping):
        raise Refused("form", f"it holds a {type(opened).__name__}, not phenotypes by section")
    found: dict[str, list[str]] = {}
    for section, names in opened.items():
        if isinstance(names, set | frozenset):
            names = sorted(names)
        listed = names.tolist() if hasattr(names, "tolist") else names
        if not isinstance(section, str) or not isinstance(listed, list | tuple):
            raise Refused("form", "a section is no text, or its phenotypes are no list")
        if not all(isinstance(name, str) for name in listed):
            raise Refused("form", f"a phenotype of {section[:40]!r} is no text")
        found[section] = list(listed)
    return {"sections": found}


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _convert(kind: str, payload: bytes, ids: list[str]) -> tuple[dict[str, Any], bytes]:
    try:
        opened = _AllowList(io.BytesIO(payload)).load()
    except Refused:
        raise
    # A pickle that is damaged or made to do harm fails in any way; none of it is worth more than this sentence.
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise Refused("damaged", f"it cannot be read ({type(error).__name__})") from error
    return _labels(opened, ids) if kind == "labels" else (_sections(opened), b"")


def main(kind: str, path: str, sha256: str, memory_bytes: str) -> None:
    """Convert one file."""
    ids = json.loads(sys.stdin.buffer.read())
    write: Callable[[bytes], Any] = sys.stdout.buffer.write
    try:
        payload = Path(path).read_bytes()
        if hashlib.sha256(payload).hexdigest() != sha256:
            raise Refused("digest", "it changed while it was read")
        if b"pandas" in payload:
            with contextlib.suppress(ImportError):
                import_module("pandas")  # before the limits: it opens many files of its own
        _limit(int(memory_bytes))
        head, numbers = _convert(kind, payload, ids)
    except Refused as error:
        head, numbers = {"kind": error.kind, "message": str(error)}, b""
    except MemoryError:
        head, numbers = {"kind": "hostile", "message": "it needs more memory than such a file may"}, b""
    write(json.dumps(head).encode("ascii") + b"\n")
    write(numbers)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
