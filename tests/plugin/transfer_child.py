"""A process that pushes or pulls, in a process of its own each time, and dies at a chosen point of it.

Reads lines of JSON ``{"kill": N, "root": FOLDER, "arguments": [...]}`` and answers each with ``{"status",
"points"}``. A point is an operation on files below the folder, a connection, or a block of bytes that came; at the
N-th the process is killed as the kernel would, at none for 0. It forks, so what is imported once is there for all,
and has no threads when it does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
from typing import Any

from small_sets import run_program

import embedstore.cli.transfer
import embedstore.snapshot.export
import embedstore.snapshot.pull
import embedstore.snapshot.push  # noqa: F401
from embedstore.cli.progress import Bar

EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


class Points:
    """Counts points, and ends the process at one of them."""

    def __init__(self, number: int, root: str) -> None:
        self.seen, self._number, self._root = 0, number, root
        self._lock = threading.Lock()

    def hit(self) -> None:
        with self._lock:
            self.seen += 1
            if self.seen == self._number:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" or (event in EVENTS and str(arguments[0]).startswith(self._root)):
            self.hit()


def act(asked: dict[str, Any]) -> tuple[int, int]:
    """Run the program; return its exit code and the points that it passed."""
    points = Points(asked["kill"], asked["root"])
    add = Bar.add

    def counted(bar: Bar, count: int, **named: Any) -> None:
        points.hit()
        add(bar, count, **named)

    Bar.add = counted  # type: ignore[method-assign]
    sys.addaudithook(points.audit)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        status = run_program(*asked["arguments"])
    if status:
        sys.stderr.write(errors.getvalue())
    return status, points.seen


def main() -> None:
    """Answer every line."""
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            status, seen = act(json.loads(line))
            os.write(writing, str(seen).encode())
            os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            seen = pipe.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(json.dumps({"status": status, "points": int(seen or 0)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
