"""Addresses that a user types: where a snapshot lies, and perhaps which one it must be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from embedstore.errors import UnknownNameError
from embedstore.snapshot.remotes.folder import FolderRemote
from embedstore.snapshot.remotes.http import HttpRemote
from embedstore.snapshot.remotes.hub import HubRemote
from embedstore.snapshot.remotes.remote import Remote, without_password
from embedstore.snapshot.remotes.s3 import S3Remote

__all__ = ["Address", "open_remote"]

_PIN = re.compile(r"(.+)@sha256:([0-9a-fA-F]{64})")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True)
class Address:
    """``URL[@sha256:ID]``.

    Examples
    --------
    >>> Address.parse("https://lab.example/echo@sha256:" + "ab" * 32).url
    'https://lab.example/echo'
    >>> Address.parse("/mnt/share/echo").snapshot_id is None
    True
    """

    url: str
    snapshot_id: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read what a user typed.

        Raises
        ------
        UnknownNameError
            What follows ``@sha256:`` is no digest.
        """
        found = _PIN.fullmatch(text)
        if found is not None:
            return cls(found[1], found[2].lower())
        if "@sha256:" in text:
            raise UnknownNameError(
                f"{without_password(text)!r} ends in no snapshot id: write 64 hexadecimal digits after @sha256:"
            )
        return cls(text)


def open_remote(url: str) -> Remote:
    """Open a place of snapshots; nothing is read yet.

    Raises
    ------
    UnknownNameError
        The scheme is not one of these, or the address is incomplete.

    Examples
    --------
    >>> open_remote("/mnt/share/echo").url, open_remote("https://lab.example/echo/").url
    ('/mnt/share/echo', 'https://lab.example/echo')
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        return FolderRemote(Path(url))
    match scheme[1].lower():
        case "file":
            return FolderRemote(Path(url[len("file://") :]))
        case "http" | "https":
            return HttpRemote(url)
        case "s3":
            return S3Remote(url)
        case "hf":
            return HubRemote(url)
    raise UnknownNameError(
        f"{without_password(url)!r}: snapshots lie in a folder, or at https://, s3://BUCKET/FOLDER or hf://datasets/OWNER/NAME"
    )
