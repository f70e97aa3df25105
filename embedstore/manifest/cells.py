"""One cell of a manifest: read as its column's kind, or kept as text that is reported. Pure functions."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

__all__ = ["composed", "read_cell", "to_json_cells"]

_TRUTH = {"true": True, "false": False, "yes": True, "no": False}
_INT64 = 1 << 63


def composed(text: str) -> str:
    """Return ``text`` in Unicode's composed form, in which digests see it: twins that look alike become equal."""
    return unicodedata.normalize("NFC", text)


def read_cell(value: Any, kind: str) -> tuple[Any, str | None]:
    """Return a cell as its kind, and the text found where it is none of that kind.

    Parameters
    ----------
    value : object
        None, text, number or bool; empty text is an empty cell.
    kind : {"text", "category", "number", "integer", "boolean"}

    Returns
    -------
    (cell, text)
        ``text`` is None where the cell could be read; else the cell is None.

    Examples
    --------
    >>> read_cell(" 55.5 ", "number"), read_cell("n/a", "number"), read_cell("", "number")
    ((55.5, None), (None, 'n/a'), (None, None))
    >>> read_cell("yes", "boolean"), read_cell("1.0", "boolean"), read_cell("1_000", "integer")
    ((True, None), (True, None), (None, '1_000'))
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, None
    if kind in ("text", "category"):
        return str(value), None
    text = str(value).strip()
    if kind == "boolean" and text.lower() in _TRUTH:
        return _TRUTH[text.lower()], None
    if isinstance(value, int) and kind == "integer":
        return (int(value), None) if -_INT64 <= value < _INT64 else (None, text)
    # Python reads "1_000" as a number; no CSV means one by it.
    number = None if "_" in text else _finite(text)
    if number is None:
        return None, text
    if kind == "boolean":
        return (bool(number), None) if number in (0, 1) else (None, text)
    if kind == "integer":
        return (int(number), None) if number == int(number) and abs(number) < _INT64 else (None, text)
    return number, None


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def to_json_cells(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return columns as JSON values: numbers that are not finite become text, since canonical JSON has none."""

    def cell(value: Any) -> Any:
        return repr(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {
        name: [cell(value) for value in values] if float in set(map(type, values)) else values
        for name, values in columns.items()
    }
