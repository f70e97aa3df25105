"""Values of options that several commands read the same way."""

from __future__ import annotations

import re
from pathlib import Path

from embedstore.errors import UnknownNameError

__all__ = ["named_digests", "named_paths"]


def named_paths(values: tuple[str, ...], *, option: str, default_name: str | None = None) -> dict[str, Path]:
    """Read ``NAME=PATH`` values.

    Parameters
    ----------
    default_name : str or None
        The name of a value without ``NAME=``; None where a name must be given.

    Raises
    ------
    UnknownNameError
        A value has no name where one must be given, or a name stands twice.

    Examples
    --------
    >>> named_paths(("panecho=w.pt",), option="--weights")
    {'panecho': PosixPath('w.pt')}
    """
    found: dict[str, Path] = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not separator:
            if default_name is None:
                raise UnknownNameError(f"{option} needs NAME=PATH, got {value!r}")
            name, path = default_name, value
        if name in found:
            raise UnknownNameError(f"{option} names {name or 'a default'!r} twice")
        found[name] = Path(path)
    return found


def named_digests(values: tuple[str, ...], *, option: str) -> dict[str, str]:
    """Read ``NAME=SHA256`` values.

    Raises
    ------
    UnknownNameError
        A value is no name and digest, or a name stands twice.

    Examples
    --------
    >>> named_digests(("panecho=" + "0A" * 32,), option="--trust-checkpoint")["panecho"][:4]
    '0a0a'
    """
    found: dict[str, str] = {}
    for value in values:
        name, _, digest = value.partition("=")
        if not name or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise UnknownNameError(f"{option} needs NAME=SHA256 with 64 hexadecimal digits, got {value!r}")
        if name in found:
            raise UnknownNameError(f"{option} names {name!r} twice")
        found[name] = digest.lower()
    return found
