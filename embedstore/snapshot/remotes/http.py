"""A web server as a remote: plain files over HTTPS, by range where the server can. Read only.

A host that the user typed may be anywhere, since hospital object stores are private. A redirect is the server's
word: it may not lead from a public host to a private one, down to plain HTTP, or on and on.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from embedstore.errors import EnvironmentFailure, HostileInputError, PolicyError
from embedstore.files import FileRecord
from embedstore.snapshot.remotes.remote import BLOCK_BYTES, Broken, Stream

__all__ = ["HttpRemote", "is_private_host"]

_TIMEOUT_S = 30.0
_MAX_REDIRECTS = 3
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_DENIED = {401, 403, 407, 451}
_ABSENT = {404, 410}


def is_private_host(host: str) -> bool:
    """Return whether any address of a host is private, loopback, link-local or otherwise not public.

    Raises
    ------
    Broken
        The name has no address now.

    Examples
    --------
    >>> is_private_host("127.0.0.1"), is_private_host("169.254.169.254"), is_private_host("93.184.216.34")
    (True, True, False)
    """
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise Broken(f"the host {host!r} is not found") from error
    return any(not ipaddress.ip_address(address.partition("%")[0]).is_global for address in found)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _MAX_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        refused = None
        if after.scheme not in ("http", "https") or after.username or not after.hostname:
            refused = "which is no plain web address"
        elif before.scheme == "https" and after.scheme != "https":
            refused = "which is not encrypted"
        elif is_private_host(after.hostname) and not is_private_host(str(before.hostname)):
            refused = "which is inside a private network"
        if refused is not None:
            fp.close()
            raise HostileInputError(
                f"{req.full_url} redirects to {newurl}, {refused}: nothing was fetched from there"
            )
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed is not None and before.netloc != after.netloc:
            followed.remove_header("Authorization")
        return followed


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
    HostileInputError
        The address carries a password, or is plain HTTP to a public host.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        if parts.username or parts.password:
            raise HostileInputError("an address that carries a password is not used: it would end up in logs")
        if not parts.hostname or parts.query or parts.fragment:
            raise HostileInputError(f"{url!r} is no address of a folder on a web server")
        if parts.scheme == "http" and not is_private_host(parts.hostname):
            raise HostileInputError(f"{url} is plain HTTP over a public network; use https")
        self.url = url.rstrip("/")
        self._headers = {"User-Agent": "embedstore", "Accept-Encoding": "identity", **(headers or {})}
        # No proxy handler is left out: hospital networks have proxies, and the environment names them.
        self._opener = urllib.request.build_opener(_Redirects())

    @contextmanager
    def open(self, path: str, *, start: int = 0) -> Iterator[Stream]:
        """Open a file for reading; `FileNotFoundError` where the server has none."""
        url = f"{self.url}/{quote(path)}"
        request = urllib.request.Request(url, headers=self._headers)
        if start:
            request.add_header("Range", f"bytes={start}-")
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                yield Stream(_begins_at(answer, start), _blocks(answer))
        except urllib.error.HTTPError as error:
            error.close()
            self._refuse(url, error, start=start)
        except urllib.error.URLError as error:
            raise Broken(str(error.reason)) from error
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise Broken(str(error) or type(error).__name__) from error

    @staticmethod
    def _refuse(url: str, error: urllib.error.HTTPError, *, start: int) -> None:
        if error.code in _ABSENT:
            raise FileNotFoundError(url) from error
        if error.code in _TRANSIENT or (error.code == 416 and start):
            raise Broken(f"the server answers {error.code}") from error
        if error.code in _DENIED:
            raise PolicyError(f"{url} is not open to this machine: the server answers {error.code}") from error
        if 300 <= error.code < 400:
            raise HostileInputError(f"{url} redirects on and on: nothing was fetched") from error
        raise EnvironmentFailure(f"{url} cannot be fetched: the server answers {error.code}") from error

    def put(self, path: str, content: Any, *, record: FileRecord) -> None:
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


def _begins_at(answer: Any, start: int) -> int:
    if answer.status != 206:
        return 0
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start:
        raise Broken("the server sends another range than was asked for")
    return start


def _blocks(answer: Any) -> Iterator[bytes]:
    stated = answer.headers.get("Content-Length")
    left = int(stated) if stated is not None and stated.isdecimal() else None
    while left is None or left > 0:
        try:
            # One receive a block: `read` would wait for a whole block, however slowly it trickles in.
            block: bytes = answer.read1(BLOCK_BYTES)
        except (http.client.HTTPException, OSError) as error:
            raise Broken(str(error) or type(error).__name__) from error
        if not block:
            if left:
                raise Broken(f"the connection ended {left} bytes early")
            return
        if left is not None:
            left -= len(block)
        yield block
