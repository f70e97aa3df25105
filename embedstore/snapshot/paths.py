"""Names of files inside a snapshot that is sent: what may be written on any system, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable

from embedstore.errors import HostileInputError
from embedstore.identity import sha256_hex

__all__ = ["MAX_PATH", "check_path", "check_paths", "path_name"]

MAX_PATH = 200  # characters; leaves room below Windows' 260 for the folder that a snapshot stands in
_SEGMENT = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
# Names that Windows takes for devices, whatever their extension.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(10))}


def _is_segment(segment: str) -> bool:
    return _SEGMENT.fullmatch(segment) is not None and segment.split(".")[0].lower() not in _DEVICES


def check_path(path: str) -> str:
    """Return ``path`` where it is a plain relative path on POSIX and on Windows.

    Raises
    ------
    HostileInputError
        It is absolute, leaves its folder, is too long, or holds anything but ``A-Z a-z 0-9 . _ -`` and ``/``.

    Examples
    --------
    >>> check_path("emb/mine/panecho/clips/c/0/0")
    'emb/mine/panecho/clips/c/0/0'
    """
    if len(path) > MAX_PATH or not all(_is_segment(segment) for segment in path.split("/")):
        raise HostileInputError(f"a file of the snapshot is called {path[:80]!r}, which no file of a snapshot may be")
    return path


def check_paths(paths: Iterable[str]) -> None:
    """Check paths one by one and together: none stands twice, however letters are cased, none is below another.

    Raises
    ------
    HostileInputError
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        folded = check_path(path).casefold()
        if folded in seen:
            raise HostileInputError(f"the snapshot holds {path!r} twice, or in two spellings of its letters")
        seen.add(folded)
        parts = folded.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    both = seen & folders
    if both:
        raise HostileInputError(f"the snapshot holds {min(both)!r} as a file and as a folder")


def path_name(name: str) -> str:
    """Return a name as one segment of a path: itself where it can be, else its letters and a digest of it.

    Examples
    --------
    >>> path_name("echonet-dynamic"), path_name("a b")
    ('echonet-dynamic', 'a-b-c8687a08')
    """
    if _is_segment(name) and len(name) <= 60:
        return name
    letters = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:40].strip("-") or "x"
    return f"{letters}-{sha256_hex(name.encode())[:8]}"
