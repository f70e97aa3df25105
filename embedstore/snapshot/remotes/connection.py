"""Connections to web servers: no answer is waited for longer than the time-out, however slowly it trickles in, and a
redirect leads nowhere that the user could not have meant.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import urllib.request
from contextlib import suppress
from functools import cached_property, partial
from typing import Any
from urllib.parse import urlsplit

from embedstore.errors import HostileInputError
from embedstore.snapshot.remotes.remote import Broken

__all__ = ["LiveAnswers", "expect_more", "is_private_host", "make_opener"]

TIMEOUT_S = 30.0
_MAX_REDIRECTS = 3
_BUFFER_BYTES = 16 << 10  # for status and headers; the body goes past it


def _is_private(address: str) -> bool:
    return not ipaddress.ip_address(address.partition("%")[0]).is_global


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
    return any(_is_private(address) for address in found)


# -- answers that do not keep anybody waiting ---------------------------------------------------------------


class LiveAnswers:
    """The sockets from which answers are being read, so that another thread can end the waiting."""

    def __init__(self) -> None:
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    def add(self, sock: socket.socket) -> None:
        """Note that an answer is read from here."""
        with self._lock:
            self._sockets.add(sock)

    def discard(self, sock: socket.socket) -> None:
        """Note that it no longer is."""
        with self._lock:
            self._sockets.discard(sock)

    def abort(self) -> None:
        """End all of them: who reads sees the connection end."""
        with self._lock:
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class _Received(io.RawIOBase):
    """What a socket brings before a deadline, which `expect` sets anew.

    A socket's own time-out starts again with every byte, so a server could hold a reader of headers for days.
    """

    def __init__(self, sock: socket.socket, kept: io.BufferedIOBase, live: LiveAnswers) -> None:
        super().__init__()
        self._sock, self._kept, self._live, self._set_s = sock, kept, live, 0.0
        self._live.add(sock)
        self.expect()

    def expect(self) -> None:
        """Wait for `TIMEOUT_S` from now."""
        self._until = time.monotonic() + TIMEOUT_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        if not 0.9 * self._set_s < left_s <= self._set_s:  # a system call, which a close enough one saves
            self._sock.settimeout(left_s)
            self._set_s = left_s
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._live.discard(self._sock)
            self._kept.close()  # it keeps the socket open after its connection object let go
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, live: LiveAnswers, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.received = _Received(sock, self.fp, live)
        self.fp = io.BufferedReader(self.received, _BUFFER_BYTES)


def expect_more(answer: Any) -> None:
    """Start the time-out of what is read next of an answer."""
    if isinstance(answer, _Answer):
        answer.received.expect()


# -- redirects ----------------------------------------------------------------------------------------------


class _Led(urllib.request.Request):
    """A request to where a public server redirected: it must not end at a private address."""


class _Connected:
    """Checks at which address a connection really ended: a name may have another one by then."""

    response_class: Any

    def __init__(self, host: str, *, live: LiveAnswers, forbids_private: bool, **named: Any) -> None:
        super().__init__(host, **named)  # type: ignore[call-arg]
        self.response_class = partial(_Answer, live=live)
        self._forbids_private = forbids_private

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        sock: socket.socket = self.sock  # type: ignore[attr-defined]
        if self._forbids_private and _is_private(str(sock.getpeername()[0])):
            raise HostileInputError(
                "a redirect led to a name whose address is inside a private network: nothing was fetched from there"
            )


class _Plain(_Connected, http.client.HTTPConnection):
    pass


class _Secure(_Connected, http.client.HTTPSConnection):
    pass


class _Opens:
    """Makes the connections of a handler; mixed into urllib's."""

    def __init__(self, live: LiveAnswers, **named: Any) -> None:
        super().__init__(**named)
        self._live = live

    def do_open(self, http_class: Any, req: urllib.request.Request, **named: Any) -> Any:
        kind = _Secure if issubclass(http_class, http.client.HTTPSConnection) else _Plain
        # A proxy is the machine's own choice, and inside its network; it alone sees the address behind it.
        is_direct = req.host == urlsplit(req.full_url).netloc and not getattr(req, "_tunnel_host", None)
        connection = partial(kind, live=self._live, forbids_private=is_direct and isinstance(req, _Led))
        return super().do_open(connection, req, **named)  # type: ignore[misc]


class _PlainHandler(_Opens, urllib.request.HTTPHandler):
    pass


class _SecureHandler(_Opens, urllib.request.HTTPSHandler):
    def __init__(self, live: LiveAnswers) -> None:
        super().__init__(live, context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # trusts nobody, and is not used

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        """This machine's certificates, read once and only for HTTPS: that takes longer than a small file."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(http.client.HTTPSConnection, req, context=self._trust)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _MAX_REDIRECTS

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:  # no address, or one that is refused
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        is_from_public = isinstance(req, _Led) or not _leads_inside(before.hostname)
        refused = None
        if after.scheme not in ("http", "https") or after.username or not after.hostname:
            refused = "which is no plain web address"
        elif before.scheme == "https" and after.scheme != "https":
            refused = "which is not encrypted"
        elif is_from_public and _leads_inside(after.hostname):
            refused = "which is inside a private network"
        if refused is not None:
            raise HostileInputError(
                f"{req.full_url} redirects to {newurl}, {refused}: nothing was fetched from there"
            )
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed is None:
            return None
        if before.netloc != after.netloc:
            followed.remove_header("Authorization")
        if not is_from_public:
            return followed
        origin = followed.origin_req_host
        return _Led(followed.full_url, headers=followed.headers, origin_req_host=origin, unverifiable=True)


def _leads_inside(host: str | None) -> bool:
    """Return whether a host is private; a name that only a proxy can look up is not."""
    try:
        return is_private_host(str(host))
    except Broken:
        return False


def make_opener(live: LiveAnswers) -> urllib.request.OpenerDirector:
    """Return an opener; proxies that the environment names are used, since hospital networks have them."""
    return urllib.request.build_opener(_PlainHandler(live), _SecureHandler(live), _Redirects())
