"""A web server over a folder, on loopback, that can fail in one way: for the first few requests or for all."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = (
    "reset",
    "stall",
    "trickle",
    "short",
    "long",
    "wrong-bytes",
    "wrong-range",
    "500",
    "429",
    "redirect-loop",
    "redirect-private",
    "endless",
    "changed-behind-range",
)


class FaultServer:
    """What is served, how it fails, and what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fault: str | None = None
        self.times = 10**9
        self.only = ".*"
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.url = ""
        self.lock = threading.Lock()

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
        target = owner.root / path.lstrip("/")
        if not target.is_file():
            return self._status(404)
        body = target.read_bytes()
        fault = owner.take(path)
        start = 0
        found = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if found and owner.ranges:
            start = int(found[1])
        if fault == "500" or fault == "429":
            return self._status(int(fault))
        if fault == "redirect-loop":
            return self._status(302, {"Location": f"{owner.url}{path}"})
        if fault == "redirect-private":
            return self._status(302, {"Location": "http://169.254.169.254/latest/meta-data/"})
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self._status(200, length=len(body))
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return None
        part = body[start:]
        if fault == "wrong-bytes":
            part = bytes(byte ^ 0xFF for byte in part)
        if fault == "changed-behind-range" and start:
            part = bytes(byte ^ 0xFF for byte in part)
        headers = {}
        if start:
            first = start + 1 if fault == "wrong-range" else start
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        code = 206 if start else 200
        try:
            self._send(code, headers, part, fault)
        except OSError:
            self.close_connection = True

    def _send(self, code: int, headers: dict[str, str], part: bytes, fault: str | None) -> None:
        if fault in ("stall", "trickle"):
            self._status(code, headers, length=len(part))
            for at in range(len(part) if fault == "trickle" else 1):
                self.wfile.write(part[at : at + 1])
                self.wfile.flush()
                time.sleep(0.05 if fault == "trickle" else 3.0)
            self.close_connection = True
        elif fault == "short":
            self._status(code, headers, length=len(part))
            self.wfile.write(part[: max(1, len(part) // 2)])
            self.close_connection = True
        elif fault == "long":
            self._status(code, headers, length=len(part) + 100)
            self.wfile.write(part + b"x" * 100)
        elif fault == "endless":
            self._status(code, headers, length=None)
            self.wfile.write(part)
            for _ in range(200):
                self.wfile.write(b"x" * 65536)
            self.close_connection = True
        else:
            self._status(code, headers, length=len(part))
            self.wfile.write(part)
            with self.owner.lock:
                self.owner.sent += len(part)


@contextmanager
def fault_server(root: Path) -> Iterator[FaultServer]:
    """Serve a folder on a free loopback port."""
    owner = FaultServer(root)
    handler = type("Handler", (_Handler,), {"owner": owner})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    owner.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield owner
    finally:
        server.shutdown()
        server.server_close()
