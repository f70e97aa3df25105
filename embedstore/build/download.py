"""Download one file over HTTPS: resumed by Range where it broke off, hashed, and named only when it is whole.

What came so far lies beside the target as ``NAME.partial`` with a note of which version of the file it is part of
(``NAME.partial.json``). A server that has another version, or that knows no ranges, starts it again. Weights on the
Hugging Face hub come through huggingface_hub instead.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError, EnvironmentFailure, HostileInputError, PolicyError, StorageError
from embedstore.folders import fsync_folder
from embedstore.locks import host_lock

__all__ = ["Download", "download", "extract_member"]

_BLOCK_BYTES = 1 << 20
_ATTEMPTS = 5
_TIMEOUT_S = 30.0
_FIRST_PAUSE_S = 1.0
_MAX_REDIRECTS = 5
_MAX_BYTES = 64 << 30  # more than any published encoder
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file to fetch.

    Attributes
    ----------
    name : str
        The encoder that needs it.
    url : str
        https, or http on this machine.
    target : Path
    sha256 : str or None
        Digest that it must have, where one is published.
    tell : callable
        Told one sentence when the download begins.
    first_pause_s : float
        Seconds before the second attempt; doubled each time.
    """

    name: str
    url: str
    target: Path
    sha256: str | None = None
    tell: Callable[[str], None] = lambda sentence: None
    first_pause_s: float = _FIRST_PAUSE_S

    @property
    def hint(self) -> str:
        """What a user can do without the network."""
        return (
            f"fetch {self.url} on another machine and put it at {self.target}, or give it with "
            f"--weights {self.name}=FILE"
        )


class _Broken(Exception):
    """An attempt ended early; another may succeed."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _MAX_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            _check_url(newurl, origin=req.full_url)
        except HostileInputError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str, *, origin: str | None = None) -> None:
    parts = urlsplit(url)
    near = parts.hostname in _LOOPBACK and (origin is None or urlsplit(origin).hostname in _LOOPBACK)
    if parts.scheme == "https" or (parts.scheme == "http" and near):
        return
    where = f"{origin} leads to {url}" if origin is not None else f"weights are not fetched from {url}"
    raise HostileInputError(f"{where}, which is not https; give the file with --weights NAME=FILE")


def download(wanted: Download) -> Path:
    """Fetch a file unless it is there already, and return its path.

    Raises
    ------
    EnvironmentFailure
        The server is not reached, breaks off again and again, or has the file no more.
    PolicyError
        The server asks for a login.
    CorruptionError
        The file has another digest than is published; what came is removed.
    StorageError
        The disk refuses.
    HostileInputError
        The address is, or leads to, another scheme than https; or the answer has no end.
    """
    _check_url(wanted.url)
    with storage_errors(wanted.target.parent, "make the folder"):
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
    lock = wanted.target.with_name(f".{wanted.target.name}.lock")
    busy = f"another process fetches {wanted.target}; run the same command when it is done"
    with host_lock(lock, shared=False, wait_s=0.0, busy=busy):
        if not wanted.target.is_file():
            _fetch(wanted)
    return wanted.target


def _fetch(wanted: Download) -> None:
    partial = wanted.target.with_name(f"{wanted.target.name}.partial")
    note = partial.with_name(f"{partial.name}.json")
    pause_s = wanted.first_pause_s
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _attempt(wanted, partial, note)
            break
        except _Broken as error:
            if attempt == _ATTEMPTS:
                raise EnvironmentFailure(
                    f"{wanted.url} was not fetched in {_ATTEMPTS} attempts ({error}); run the same command again, "
                    f"which goes on where it stopped, or {wanted.hint}"
                ) from error
            time.sleep(pause_s)
            pause_s *= 2
    _settle(wanted, partial, note)


def _attempt(wanted: Download, partial: Path, note: Path) -> None:
    """Ask once for what is still missing, and append it."""
    known = _read_note(note, wanted.url)
    have = partial.stat().st_size if known is not None and partial.is_file() else 0
    headers = {"User-Agent": "embedstore", "Accept-Encoding": "identity"}
    if have and known is not None:
        if known["size"] == have:
            return
        headers |= {"Range": f"bytes={have}-", "If-Range": str(known["version"])}
    request = urllib.request.Request(wanted.url, headers=headers)
    opener = urllib.request.build_opener(_Redirects())
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            _receive(wanted, answer, have=have, partial=partial, note=note)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the file has changed, and is shorter now
            partial.unlink(missing_ok=True)
            raise _Broken("the server has another version of the file") from error
        _refuse(wanted, error.code, error)
    except urllib.error.URLError as error:
        raise _Broken(str(error.reason)) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Broken(str(error) or type(error).__name__) from error


def _refuse(wanted: Download, code: int, error: Exception) -> None:
    if code in _TRANSIENT:
        raise _Broken(f"the server answers {code}") from error
    if code in (401, 403, 407, 451):
        raise PolicyError(
            f"{wanted.url} is not open to this machine (the server answers {code}): its owners ask for a login or "
            f"consent; fetch the file in a browser and give it with --weights {wanted.name}=FILE"
        ) from error
    raise EnvironmentFailure(
        f"{wanted.url} is not there any more (the server answers {code}); look for the weights of {wanted.name!r} at "
        f"their authors and give them with --weights {wanted.name}=FILE"
    ) from error


def _receive(wanted: Download, answer: Any, *, have: int, partial: Path, note: Path) -> None:
    size, start = _extent(answer, have)
    if size is not None and size > _MAX_BYTES:
        raise HostileInputError(f"{wanted.url} states {size} bytes, which no weights have")
    if start == 0:
        told = f" ({size / 1e6:.0f} MB)" if size is not None else ""
        wanted.tell(f"fetching the weights of {wanted.name} from {wanted.url}{told}")
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    with storage_errors(partial, "write"), partial.open("r+b" if start else "wb") as handle:
        # A version that cannot be named, or a weak one, cannot be asked for again: such a file starts over.
        if start == 0 and version and not version.startswith("W/") and size is not None:
            note.write_text(json.dumps({"url": wanted.url, "version": version, "size": size}))
        elif start == 0:
            note.unlink(missing_ok=True)
        handle.seek(start)
        handle.truncate()
        written = start
        while block := _read(answer):
            handle.write(block)
            written += len(block)
            if written > (_MAX_BYTES if size is None else size):
                raise HostileInputError(f"{wanted.url} sends more than the {size} bytes that it stated")
    if size is not None and written < size:
        raise _Broken(f"the connection ended after {written} of {size} bytes")


def _read(answer: Any) -> bytes:
    try:
        block: bytes = answer.read(_BLOCK_BYTES)
    except http.client.IncompleteRead as error:
        return error.partial
    except OSError as error:  # before `storage_errors` takes it for the disk's
        raise _Broken(error.strerror or str(error) or type(error).__name__) from error
    return block


def _extent(answer: Any, have: int) -> tuple[int | None, int]:
    """Return the size of the whole file, and where in it this answer begins."""
    if answer.status == 206:
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise _Broken("the server sends another range than was asked for")
        return int(found[3]), have
    stated = answer.headers.get("Content-Length")
    return (int(stated) if stated is not None and stated.isdecimal() else None), 0


def _read_note(note: Path, url: str) -> dict[str, Any] | None:
    try:
        found = json.loads(note.read_text())
    except (OSError, ValueError):
        return None
    fits = isinstance(found, dict) and found.get("url") == url and isinstance(found.get("version"), str)
    return found if fits and isinstance(found.get("size"), int) else None


def _settle(wanted: Download, partial: Path, note: Path) -> None:
    """Hash what came, bring it to disk and give it its name."""
    with storage_errors(partial, "read"), partial.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
        os.fsync(handle.fileno())
    if wanted.sha256 is not None and found != wanted.sha256:
        with storage_errors(partial, "remove"):
            partial.unlink()
            note.unlink(missing_ok=True)
        raise CorruptionError(
            f"the file from {wanted.url} has SHA-256 {found}, published is {wanted.sha256}; it was removed: fetch it "
            f"again, and if it differs again ask its authors, or give a file that you trust with --weights "
            f"{wanted.name}=FILE"
        )
    with storage_errors(wanted.target, "write"):
        partial.replace(wanted.target)
        note.unlink(missing_ok=True)
        fsync_folder(wanted.target.parent)


def extract_member(archive: Path, member: str, target: Path, *, sha256: str | None, name: str) -> Path:
    """Take one file out of a zip archive: whole, checked and fsynced, or not at all.

    Raises
    ------
    CorruptionError
        The archive is damaged, or its file has another digest than is published.
    StorageError
        The archive has no such file, or the disk refuses.
    """
    partial = target.with_name(f"{target.name}.partial")
    digest = hashlib.sha256()
    with storage_errors(partial, "write"):
        try:
            with zipfile.ZipFile(archive) as opened, opened.open(member) as source, partial.open("wb") as handle:
                left = opened.getinfo(member).file_size
                while block := source.read(min(_BLOCK_BYTES, left + 1)):
                    left -= len(block)
                    if left < 0:
                        raise zipfile.BadZipFile("the file is longer than it states")
                    digest.update(block)
                    handle.write(block)
                handle.flush()
                os.fsync(handle.fileno())
        except KeyError as error:
            partial.unlink(missing_ok=True)
            raise StorageError(f"{archive} holds no {member}; give it with --weights {name}=FILE") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            partial.unlink(missing_ok=True)
            raise CorruptionError(f"archive {archive} is damaged ({error}); remove it and fetch it again") from error
        if sha256 is not None and digest.hexdigest() != sha256:
            partial.unlink()
            raise CorruptionError(
                f"{member} in {archive} has SHA-256 {digest.hexdigest()}, published is {sha256}; give a file "
                f"that you trust with --weights {name}=FILE"
            )
        partial.replace(target)
        fsync_folder(target.parent)
    return target
