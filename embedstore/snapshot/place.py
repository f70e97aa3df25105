"""Where the files of a snapshot stand in a remote place.

A place holds one exported folder as it is (``manifest.json`` at its top), or what `embedstore snapshot push` wrote:
every snapshot in a folder of its own, named by its id and never changed, and ``latest.json``, written last, which
names the newest. So whoever pulls while somebody pushes sees the old snapshot or the new one, and an id that was
pinned in a paper stays where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedstore.errors import CorruptionError, FormatError, UnknownNameError
from embedstore.identity import canonical_json, sha256_hex
from embedstore.json_files import parse_json
from embedstore.layout import is_digest
from embedstore.snapshot.describe import DOCUMENT_FILE, MAX_DOCUMENT_BYTES, SentSnapshot
from embedstore.snapshot.fetch import FetchOptions, read_remote
from embedstore.snapshot.remotes import Remote

__all__ = ["LATEST_FILE", "Found", "find_snapshot", "latest_bytes"]

LATEST_FILE = "latest.json"


@dataclass(frozen=True)
class Found:
    """A snapshot in a place: its document, and the prefix of its files."""

    snapshot: SentSnapshot
    prefix: str


def latest_bytes(snapshot_id: str) -> bytes:
    """Return ``latest.json``.

    Examples
    --------
    >>> latest_bytes("ab" * 32)[:16]
    b'{"snapshot":"aba'
    """
    return canonical_json({"snapshot": snapshot_id})


def find_snapshot(remote: Remote, *, snapshot_id: str | None = None, options: FetchOptions | None = None) -> Found:
    """Return the snapshot with an id, or without one the newest of a place.

    Raises
    ------
    UnknownNameError
        There is none.
    CorruptionError
        The document has another digest than its id, or than was pinned.
    FormatError, HostileInputError
        It is no snapshot that this version reads.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from embedstore.snapshot.remotes import open_remote
    >>> try:
    ...     find_snapshot(open_remote(mkdtemp()))
    ... except UnknownNameError as error:
    ...     print(str(error).partition(":")[2])
     neither manifest.json nor latest.json
    """
    prefix = ""
    payload = read_remote(remote, DOCUMENT_FILE, max_bytes=MAX_DOCUMENT_BYTES, options=options)
    at_top = None if payload is None else sha256_hex(payload)
    if snapshot_id is not None and at_top != snapshot_id:
        prefix = f"{snapshot_id}/"
    elif payload is None:
        prefix = f"{_latest(remote, options)}/"
    if prefix:
        payload = read_remote(remote, prefix + DOCUMENT_FILE, max_bytes=MAX_DOCUMENT_BYTES, options=options)
        if payload is None:
            there = f", which holds {at_top[:12]}..." if at_top is not None else ""
            raise UnknownNameError(f"there is no snapshot {prefix[:12]}... at {remote.url}{there}")
        if sha256_hex(payload) != prefix[:-1]:
            raise CorruptionError(
                f"the snapshot at {remote.url} does not have the id {prefix[:12]}...: it was damaged or replaced"
            )
    assert payload is not None
    return Found(SentSnapshot.from_bytes(payload, source=f"{remote.url}/{prefix}{DOCUMENT_FILE}"), prefix)


def _latest(remote: Remote, options: FetchOptions | None) -> str:
    payload = read_remote(remote, LATEST_FILE, max_bytes=4096, options=options)
    if payload is None:
        raise UnknownNameError(f"there is no snapshot at {remote.url}: neither {DOCUMENT_FILE} nor {LATEST_FILE}")
    source = f"{remote.url}/{LATEST_FILE}"
    described = parse_json(payload, source=source)
    found = described.get("snapshot") if isinstance(described, dict) else None
    if not isinstance(found, str) or not is_digest(found):
        raise FormatError(f"{source} names no snapshot")
    return found
