"""Paths as a caller gives them: text is as good as a `Path` wherever a file or folder is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["settle_paths"]


def settle_paths(record: object, *names: str) -> None:
    """Make paths of the text in some fields of a frozen record, as the last step of its construction.

    A field may also be a mapping of names to paths; None stays None.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Request:
    ...     file: Path
    ...     def __post_init__(self):
    ...         settle_paths(self, "file")
    >>> Request("vectors.npz").file.suffix
    '.npz'
    """
    for name in names:
        given = getattr(record, name)
        if isinstance(given, str):
            object.__setattr__(record, name, Path(given))
        elif isinstance(given, Mapping):
            object.__setattr__(record, name, {key: Path(path) for key, path in given.items()})
