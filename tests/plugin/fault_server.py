"""A web server over a folder, on loopback, that can fail in one way: for the first few requests or for all."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_STATUSES = {"500": 500, "503": 503, "429": 429}
_DRIP_S = 0.05


def flipped(payload: bytes) -> bytes:
    """Return other bytes of the same length."""
    return bytes(byte ^ 0xFF for byte in payload)


class FaultServer:
    """What is served, how it fails, and what was asked for.

    Attributes
    ----------
    retry_after : str
        What a 429 asks for.
    ranges, chunked : bool
        Whether ranges are answered, and whether bodies come in chunks.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fault: str | None = None
        self.times = 10**9
        self.only = ".*"
        self.ranges, self.chunked = True, False
        self.retry_after = "0"
        self.requests: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def fail(self, fault: str | None, *, times: int = 10**9, only: str = ".*") -> None:
        """Fail the next ``times`` requests for paths that match ``only``."""
        with self.lock:
            self.fault, self.times, self.only = fault, times, only

    def take(self, path: str) -> str | None:
        """Return how this request fails."""
        with self.lock:
            if self.fault is None or self.times <= 0 or not re.search(self.only, path):
                return None
            self.times -= 1
            return self.fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def _status(self, code: int, headers: dict[str, str] | None = None, length: int | None = 0) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        else:
            self.send_header("Connection", "close")
        self.end_headers()

    def do_GET(self) -> None:
        owner, path = self.owner, self.path
        asked = self.headers.get("Range")
        with owner.lock:
            owner.requests.append((path, asked))
            owner.headers.append(dict(self.headers.items()))
        target = owner.root / path.lstrip("/")
        if not target.is_file():
            return self._status(404)
        body = target.read_bytes()
        with suppress(OSError):  # the client may go away
            self._answer(body, asked, owner.take(path))
        return None

    def _answer(self, body: bytes, asked: str | None, fault: str | None) -> None:
        if fault in _STATUSES:
            return self._status(_STATUSES[fault], {"Retry-After": self.owner.retry_after})
        if fault is not None and hasattr(self, f"_{fault.replace('-', '_')}"):
            self.close_connection = True
            getattr(self, f"_{fault.replace('-', '_')}")(body)
            return None
        found = re.fullmatch(r"bytes=(\d+)-", asked or "")
        start = int(found[1]) if found and self.owner.ranges else 0
        part = body[start:]
        # "stale": the file was replaced by another version while a client had half of the first.
        if fault == "wrong-bytes" or (fault == "stale" and start):
            part = flipped(part)
        is_halved = fault in ("stale", "wrong-range") and not start
        headers = {}
        if start:
            first = start + 1 if fault == "wrong-range" else start
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        self._send(206 if start else 200, headers, part, "short" if is_halved else fault)
        return None

    def _send(self, code: int, headers: dict[str, str], part: bytes, fault: str | None) -> None:
        if fault in ("stall", "trickle"):
            self._status(code, headers, length=len(part))
            self.close_connection = True
            for at in range(len(part)):
                self.wfile.write(part[at : at + 1])
                self.wfile.flush()
                if self.owner.closing.wait(_DRIP_S if fault == "trickle" else 30.0):
                    return
        elif fault == "short":
            self._status(code, headers, length=len(part))
            self.wfile.write(part[: max(1, len(part) // 2)])
            self.close_connection = True
        elif fault == "long":
            self._status(code, headers, length=len(part) + 100)
            self.wfile.write(part + b"x" * 100)
        elif self.owner.chunked and fault is None:
            self._status(code, {**headers, "Transfer-Encoding": "chunked"}, length=None)
            for at in range(0, len(part), 1000):
                block = part[at : at + 1000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
            self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True
        else:
            self._status(code, headers, length=len(part))
            self.wfile.write(part)

    # -- faults that are no answers in any sense ------------------------------------------------------------

    def _reset(self, body: bytes) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self._status(200, length=len(body))
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.connection.close()

    def _silence(self, body: bytes) -> None:
        self.owner.closing.wait(30.0)

    def _hang_up(self, body: bytes) -> None:
        pass

    def _garbage(self, body: bytes) -> None:
        self.wfile.write(b"\x1b]0;owned\x07\x00\xff" * 20)

    def _drip(self, line: bytes) -> None:
        """Write byte by byte, each in time, the whole never."""
        for at in range(len(line)):
            self.wfile.write(line[at : at + 1])
            self.wfile.flush()
            if self.owner.closing.wait(_DRIP_S):
                return

    def _drip_headers(self, body: bytes) -> None:
        self._drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000)

    def _drip_chunks(self, body: bytes) -> None:
        self._status(200, {"Transfer-Encoding": "chunked"}, length=None)
        self._drip(b"1;slow=" + b"a" * 10_000)

    def _endless(self, body: bytes) -> None:
        self._status(200, length=None)
        self.wfile.write(body)
        until = time.monotonic() + 20
        while time.monotonic() < until and not self.owner.closing.is_set():
            self.wfile.write(b"x" * 65536)

    def _compressed(self, body: bytes) -> None:
        import gzip

        packed = gzip.compress(body)
        self._status(200, {"Content-Encoding": "gzip"}, length=len(packed))
        self.wfile.write(packed)

    def _redirect_loop(self, body: bytes) -> None:
        self._status(302, {"Location": f"{self.owner.url}{self.path}"})

    def _redirect_private(self, body: bytes) -> None:
        self._status(302, {"Location": "http://169.254.169.254/latest/meta-data/"})

    def _redirect_file(self, body: bytes) -> None:
        self._status(302, {"Location": "file:///etc/passwd"})

    def _redirect_nowhere(self, body: bytes) -> None:
        self._status(302, {"Location": "http://[::1/"})

    def _redirect_other(self, body: bytes) -> None:
        """Lead to another host of the same server, as stores of large files do."""
        port = self.owner.url.rpartition(":")[2]
        self._status(307, {"Location": f"http://localhost:{port}{self.path}"})


@contextmanager
def fault_server(root: Path, *, tls: ssl.SSLContext | None = None) -> Iterator[FaultServer]:
    """Serve a folder on a free loopback port, over TLS with a context that has a certificate."""
    owner = FaultServer(root)
    handler = type("Handler", (_Handler,), {"owner": owner})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    owner.url = f"http{'' if tls is None else 's'}://127.0.0.1:{server.server_address[1]}"
    try:
        yield owner
    finally:
        owner.closing.set()
        server.shutdown()
        server.server_close()
