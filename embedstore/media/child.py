"""`WorkerProcess`: the parent's handle on one child process that serves jobs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from embedstore.errors import EnvironmentFailure
from embedstore.media.worker import receive, send

__all__ = ["WorkerProcess"]

_START_TIMEOUT_S = 60.0
_WAIT_FOR_EXIT_S = 5.0
_SOCKET_BUFFER_BYTES = 1 << 20
_BOOTSTRAP = (
    "import os, sys; sys.path[:] = sys.argv[3].split(os.pathsep); from embedstore.media.worker import main; main()"
)
# Workers share the cores among themselves: one thread each, whatever library they load.
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}


class WorkerProcess:
    """One child process and the socket to it.

    Parameters
    ----------
    function : bytes
        The pickled function.
    memory_limit_bytes : int or None

    Raises
    ------
    OSError
        The system starts no process.
    """

    def __init__(self, function: bytes, *, memory_limit_bytes: int | None) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path if isinstance(entry, str))
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, str(theirs.fileno()), str(os.getpid()), path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the parent's may carry a JSON document
                stderr=subprocess.DEVNULL,  # decoders in C write there as they like, ids included
                env={**os.environ, **_ONE_THREAD},
                process_group=0,  # Ctrl-C goes to the parent, which ends its workers
            )
        self._channel = ours
        self._first_message = (function, memory_limit_bytes)

    def greet(self) -> None:
        """Wait until it can take jobs.

        Raises
        ------
        OSError, EOFError
            It died, or did not answer in time.
        EnvironmentFailure
            It cannot import the function.
        """
        self._channel.settimeout(_START_TIMEOUT_S)
        send(self._channel, self._first_message)
        kind, text = receive(self._channel)
        if kind != "ready":
            raise EnvironmentFailure(f"a decode worker cannot load its function ({text})")

    def ask(self, job: Any, *, timeout_s: float) -> tuple[str, Any]:
        """Send a job and wait for the answer.

        Raises
        ------
        TimeoutError
            It took longer than ``timeout_s``.
        OSError, EOFError
            It died.
        """
        channel = _Deadline(self._channel, time.monotonic() + timeout_s)
        send(channel, job)
        answer: tuple[str, Any] = receive(channel)
        return answer

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def how_it_died(self) -> str:
        """Return how, after the socket has closed."""
        try:
            code = self._process.wait(_WAIT_FOR_EXIT_S)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        if code >= 0:
            return f"it exited with status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if -code == signal.SIGKILL:
            return f"{name}: by hand, or by the system for want of memory"
        return name

    def kill(self) -> None:
        """End the process at once; callable from any thread."""
        self._process.kill()

    def end(self) -> None:
        """End the process, wait for it, and give back what it held."""
        self._process.kill()
        self._process.wait()
        self._channel.close()


class _Deadline:
    """A socket whose every call must end by one point in time."""

    def __init__(self, channel: socket.socket, deadline: float) -> None:
        self._channel = channel
        self._deadline = deadline

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._channel.settimeout(left)

    def sendall(self, content: Any) -> None:
        self._arm()
        self._channel.sendall(content)

    def recv_into(self, target: memoryview) -> int:
        self._arm()
        return self._channel.recv_into(target)
