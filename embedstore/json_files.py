"""JSON documents on disk: read strictly, and some of them sealed.

Strict means no key twice, no NaN or Infinity, no bottomless nesting, no more bytes than such a file may have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedstore.errors import CorruptionError, FormatError
from embedstore.files import read_file
from embedstore.identity import canonical_json, digest_json

__all__ = ["parse_json", "read_json", "read_sealed_json", "seal_json"]


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def parse_json(payload: bytes, *, source: str) -> Any:
    """Parse strict JSON: no duplicate keys, no NaN or Infinity, no bottomless nesting.

    Raises
    ------
    FormatError
        It is not JSON of that kind; the message names ``source``.
    """
    try:
        return json.loads(payload, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FormatError(f"{source} is no valid JSON: {reason}") from error


def seal_json(document: Mapping[str, Any]) -> bytes:
    """Return canonical JSON of ``document`` with a ``seal``: the SHA-256 of the rest.

    For small files whose digest stands nowhere else, so that verify finds a flipped bit in them too.
    """
    return canonical_json({**document, "seal": digest_json(document)})


def read_sealed_json(path: Path, *, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """Read what `seal_json` wrote.

    Raises
    ------
    CorruptionError
        The seal does not fit the rest.
    """
    document = read_json(path, max_bytes=max_bytes)
    seal = document.pop("seal", None) if isinstance(document, dict) else None
    if seal is None or seal != digest_json(document):
        raise CorruptionError(f"{path} is not what was written; run embedstore verify")
    return dict(document)


def read_json(path: Path, *, max_bytes: int = 64 << 20) -> Any:
    """Read a JSON file strictly and within a size limit."""
    return parse_json(read_file(path, max_bytes=max_bytes), source=str(path))
