"""Canonical JSON, SHA-256 digests and seeds: pure functions, no I/O.

Every id in a store is the SHA-256 of canonical JSON: keys sorted, no white space, UTF-8 without escapes, NFC
strings, finite numbers. Times, hosts, paths and thread counts never enter a digest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["canonical_json", "derive_seed", "digest_json", "digest_json_parts", "sha256_hex"]


_PART_ENTRIES = 4096
_PLAIN = frozenset({str, int, float, bool, type(None)})


def _is_canonical(values: Sequence[Any]) -> bool:
    """Whether a list holds nothing that normalising would change or refuse: a column of a table, mostly."""
    kinds = set(map(type, values))
    if not kinds <= _PLAIN:
        return False
    if float in kinds and not all(math.isfinite(value) for value in values if type(value) is float):
        return False
    return str not in kinds or all(value.isascii() for value in values if type(value) is str)


def _normalise(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"canonical JSON holds finite numbers only, got {value!r}")
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("canonical JSON keys are strings")
        return {unicodedata.normalize("NFC", key): _normalise(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value) if _is_canonical(value) else [_normalise(entry) for entry in value]
    raise TypeError(f"canonical JSON cannot hold a {type(value).__name__}")


def canonical_json(value: Any) -> bytes:
    """Encode ``value`` so that equal values give equal bytes.

    Examples
    --------
    >>> canonical_json({"b": 1, "a": [True, None, 0.5]})
    b'{"a":[true,null,0.5],"b":1}'
    """
    text = json.dumps(_normalise(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def sha256_hex(payload: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of ``payload`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(payload).hexdigest()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of ``value``.

    Examples
    --------
    >>> digest_json({"a": 1})[:8]
    '015abd7f'
    """
    return sha256_hex(canonical_json(value))


def digest_json_parts(value: Any) -> str:
    """Return `digest_json` of a value whose arrays may be iterators, without holding more than a part of it.

    Raises
    ------
    TypeError
        A key is no string.

    Examples
    --------
    >>> digest_json_parts({"a": iter([1, 2])}) == digest_json({"a": [1, 2]})
    True
    """
    digest = hashlib.sha256()
    for part in _json_parts(value):
        digest.update(part)
    return digest.hexdigest()


def _json_parts(value: Any) -> Iterator[bytes]:
    """Yield the canonical JSON of a value; entries of an iterator are encoded so many at a time."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("canonical JSON keys are strings")
        named = {unicodedata.normalize("NFC", key): entry for key, entry in value.items()}
        yield b"{"
        for number, key in enumerate(sorted(named)):
            yield b"," * (number > 0) + canonical_json(key) + b":"
            yield from _json_parts(named[key])
        yield b"}"
    elif isinstance(value, Iterator):
        yield b"["
        is_first = True
        while part := list(itertools.islice(value, _PART_ENTRIES)):
            yield b"," * (not is_first) + canonical_json(part)[1:-1]
            is_first = False
        yield b"]"
    else:
        yield canonical_json(value)


def derive_seed(*names: str | int) -> int:
    """Return a 64-bit seed from names, so that adding a task or a fold changes no other's draws.

    Examples
    --------
    >>> derive_seed("lvef", "ridge", 0) == derive_seed("lvef", "ridge", 0)
    True
    >>> derive_seed("lvef", "ridge", 0) != derive_seed("lvef", "ridge", 1)
    True
    """
    return int(digest_json([str(name) for name in names])[:16], 16)
