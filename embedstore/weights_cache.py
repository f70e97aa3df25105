"""Where weights that were downloaded from a plain URL lie on this machine; the hub has a cache of its own."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

__all__ = ["cache_folder", "cached_path", "is_offline"]

_TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its switches


def cache_folder() -> Path:
    """Return ``$EMBEDSTORE_CACHE``, else ``embedstore`` in ``$XDG_CACHE_HOME``, else ``~/.cache/embedstore``."""
    stated = os.environ.get("EMBEDSTORE_CACHE")
    if stated:
        return Path(stated).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "embedstore"


def cached_path(name: str, url: str, *, member: str = "") -> Path:
    """Return where the file of an encoder lies, or would.

    Parameters
    ----------
    name : str
        The encoder's.
    url : str
    member : str
        Path inside, where the URL is a zip archive.

    Examples
    --------
    >>> cached_path("panecho", "https://host/v1.0/panecho.pt").parts[-3:]
    ('weights', 'panecho', 'panecho.pt')
    """
    file = PurePosixPath(member or unquote(urlsplit(url).path)).name
    return cache_folder() / "weights" / name / file


def is_offline() -> bool:
    """Return whether the user forbids downloads: ``HF_HUB_OFFLINE`` speaks for every source."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
