"""A web server as a remote: plain files over HTTPS, by range where the server can. Read only.

A host that the user typed may be anywhere, since hospital object stores are private. A redirect is the server's
word: it may not lead from a public host to a private one, down to plain HTTP, or on and on.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from embedstore.errors import EmbedstoreError, EnvironmentFailure, HostileInputError, PolicyError, UnknownNameError
from embedstore.files import FileRecord
from embedstore.snapshot.remotes.connection import TIMEOUT_S, LiveAnswers, expect_more, is_private_host, make_opener
from embedstore.snapshot.remotes.remote import BLOCK_BYTES, BLOCK_S, Broken, Stream, without_password

__all__ = ["HttpRemote"]

_LONGEST_WAIT_S = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_DENIED = {401, 403, 407, 451}
_ABSENT = {404, 410}


class HttpRemote:
    """Snapshots below an address of a web server.

    Parameters
    ----------
    url : str
        ``https://`` address, or ``http://`` of a host on this machine or a private network.
    headers : mapping, optional
        Sent with every request, such as ``Authorization``; the latter never to another host.

    Raises
    ------
    UnknownNameError
        It is no address of a folder.
    HostileInputError
        The address carries a password, or is plain HTTP to a public host.
    EnvironmentFailure
        The host of a plain HTTP address is not found.

    Examples
    --------
    >>> HttpRemote("https://lab.example/echo/").url
    'https://lab.example/echo'
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None) -> None:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise UnknownNameError(f"{without_password(url)!r} is no address of a web server: {error}") from error
        if parts.username or parts.password:
            raise HostileInputError("an address that carries a password is not used: it would end up in logs")
        if not parts.hostname or parts.query or parts.fragment or not url.isprintable() or " " in url:
            raise HostileInputError(f"{url!r} is no address of a folder on a web server")
        if parts.scheme.lower() == "http" and not self._is_private(parts.hostname):
            raise HostileInputError(f"{url} is plain HTTP over a public network; use https")
        self.url = url.rstrip("/")
        self._headers = {"User-Agent": "embedstore", "Accept-Encoding": "identity", **(headers or {})}
        self._live = LiveAnswers()
        self._opener = make_opener(self._live)

    @staticmethod
    def _is_private(host: str) -> bool:
        try:
            return is_private_host(host)
        except Broken as error:
            raise EnvironmentFailure(f"{error}; check the address and the network") from error

    @contextmanager
    def open(self, path: str, *, start: int = 0) -> Iterator[Stream]:
        """Open a file for reading; `FileNotFoundError` where the server has none."""
        url = f"{self.url}/{quote(path)}"
        with self._ask(url, start) as answer:
            yield Stream(_begins_at(answer, start), _blocks(answer))

    def _ask(self, url: str, start: int) -> Any:
        request = urllib.request.Request(url, headers=self._headers)
        if start:
            request.add_header("Range", f"bytes={start}-")
        try:
            return self._opener.open(request, timeout=TIMEOUT_S)
        except EmbedstoreError:
            raise
        except urllib.error.HTTPError as error:
            error.close()
            raise _refusal(url, error, start=start) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise EnvironmentFailure(
                    f"{self.url} does not prove who it is ({error.reason.verify_message}): check the address, this "
                    "machine's clock and its certificates"
                ) from error
            raise Broken(_words(error.reason)) from error
        except (http.client.HTTPException, OSError) as error:
            raise Broken(_words(error)) from error
        except ValueError as error:
            raise HostileInputError(f"{url} redirects to what is no address: nothing was fetched") from error

    def put(self, path: str, content: Any, *, record: FileRecord) -> None:
        """Refuse: a static web server takes no files."""
        self.require_writable()

    def require_writable(self) -> None:
        """Refuse: a static web server takes no files."""
        raise PolicyError(
            f"{self.url} is a web server, which takes no files: export to a folder and upload that, or push to s3:// "
            "or hf://"
        )

    def holds(self, path: str, record: FileRecord) -> bool:
        """Return False: nothing is ever put here."""
        return False

    def finish(self) -> None:
        """Do nothing: nothing was put."""

    def abort(self) -> None:
        """End every transfer that is under way."""
        self._live.abort()


def _words(error: object) -> str:
    """Return a few words of an error, which may quote what a server sent."""
    text = str(error) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


def _refusal(url: str, error: urllib.error.HTTPError, *, start: int) -> Exception:
    code = error.code
    if code in _ABSENT:
        return FileNotFoundError(url)
    if code in _TRANSIENT or (code == 416 and start):
        return Broken(f"the server answers {code}", wait_s=_retry_after(error.headers.get("Retry-After")))
    if code in _DENIED:
        return PolicyError(f"{url} is not open to this machine: the server answers {code}")
    if 300 <= code < 400:
        return HostileInputError(f"{url} redirects on and on, or to what is no web address: nothing was fetched")
    return EnvironmentFailure(f"{url} cannot be fetched: the server answers {code}")


def _retry_after(text: str | None) -> float:
    """Return the seconds that a server asks us to wait, at most a minute; 0 where it does not say.

    Examples
    --------
    >>> _retry_after("7"), _retry_after("86400"), _retry_after("soon"), _retry_after(None)
    (7.0, 60.0, 0.0, 0.0)
    """
    if text is None:
        return 0.0
    try:
        wait_s = float(int(text)) if text.isascii() else 0.0
    except ValueError:
        try:
            wait_s = (parsedate_to_datetime(text).astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except ValueError:
            return 0.0
    return min(max(wait_s, 0.0), _LONGEST_WAIT_S)


def _begins_at(answer: Any, start: int) -> int:
    if answer.status != 206:
        return 0
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start:
        raise Broken("the server sends another range than was asked for")
    return start


def _blocks(answer: Any) -> Iterator[memoryview]:
    """Yield what comes, from one buffer that is filled again and again."""
    left: int | None = answer.length
    buffer = memoryview(bytearray(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)))
    while left is None or left > 0:
        count, broken = _fill(answer, buffer if left is None else buffer[:left])
        if left is not None:
            left -= count
        if count:
            yield buffer[:count]
        elif left and broken is None:
            broken = Broken(f"the connection ended {left} bytes early")
        if broken is not None:
            raise broken
        if not count:
            return


def _fill(answer: Any, buffer: memoryview) -> tuple[int, Broken | None]:
    """Receive until a buffer is full, the answer ends or some time has passed; return how many bytes came."""
    count, until = 0, time.monotonic() + BLOCK_S
    try:
        while count < len(buffer) and (not count or time.monotonic() < until):
            expect_more(answer)
            if answer.chunked:
                block = answer.read1(len(buffer) - count)
                buffer[count : count + len(block)] = block
                came = len(block)
            else:
                # Past the answer itself, which has no way to receive into a buffer once.
                came = answer.fp.readinto1(buffer[count:])
            if not came:
                break
            count += came
    except (http.client.HTTPException, OSError, ValueError) as error:
        return count, Broken(_words(error))
    return count, None
