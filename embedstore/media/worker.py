"""The child's side of `embedstore.media.pool.WorkerPool`, and the messages between the two.

A message is a pickle whose large buffers (NumPy arrays) travel beside it, uncopied (pickle protocol 5). Pickle is
spoken only between a parent and the child that it started itself, over an unnamed socket pair.
"""

from __future__ import annotations

import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from embedstore.errors import EmbedstoreError, MediaError, MissingExtraError

__all__ = ["Channel", "JobFailure", "main", "perform", "receive", "send"]

_HEAD = struct.Struct("<QI")  # bytes of the pickle, number of buffers
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class JobFailure:
    """Why one job has no result.

    Attributes
    ----------
    reason : str
        A MediaError's reason, or ``decoder-died``, ``timeout``, ``out-of-memory``, ``decoder-error``.
    message : str
        One sentence.
    """

    reason: str
    message: str


class Channel(Protocol):
    """What of a stream socket the messages need."""

    def sendall(self, content: Any, /) -> None:
        """Send all of ``content``."""

    def recv_into(self, target: memoryview, /) -> int:
        """Fill the beginning of ``target`` and return how much; 0 when the other side has closed."""


def send(channel: Channel, message: object) -> None:
    """Send one message.

    Raises
    ------
    OSError
        The other side is gone, or a time limit that is set on ``channel`` has passed.
    """
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
    channel.sendall(_HEAD.pack(len(body), len(views)) + sizes + body)
    for view in views:
        channel.sendall(view)


def _receive_exactly(channel: Channel, n_bytes: int) -> memoryview:
    found = np.empty(n_bytes, dtype=np.uint8).data
    at = 0
    while at < n_bytes:
        got = channel.recv_into(found[at:])
        if got == 0:
            raise EOFError("the other side is gone")
        at += got
    return found


def receive(channel: Channel) -> Any:
    """Receive one message; its arrays own their memory and can be written.

    Raises
    ------
    EOFError, OSError
        The other side is gone, or a time limit that is set on ``channel`` has passed.
    """
    body_size, n_buffers = _HEAD.unpack(_receive_exactly(channel, _HEAD.size))
    sizes = struct.unpack(f"<{n_buffers}Q", _receive_exactly(channel, 8 * n_buffers))
    body = _receive_exactly(channel, body_size)
    buffers = [_receive_exactly(channel, size) for size in sizes]
    return pickle.loads(body, buffers=buffers)  # noqa: S301 - from our own child or parent


def perform(function: Callable[[Any], Any], job: Any) -> Any:
    """Return what ``function`` makes of ``job``, or a `JobFailure`.

    Raises
    ------
    MissingExtraError
        Every other job would fail for the same want of a package.
    """
    try:
        return function(job)
    except MissingExtraError:
        raise
    except MediaError as error:
        return JobFailure(error.reason, str(error))
    except EmbedstoreError as error:
        return JobFailure(error.kind, str(error))
    except MemoryError:
        return JobFailure("out-of-memory", "decoding took more memory than a worker may have")
    # Whatever a decoder raises on hostile bytes costs its one clip, never the build.
    except Exception as error:  # noqa: BLE001
        return JobFailure("decoder-error", f"{type(error).__name__}: {error}")


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends (Linux)."""
    import os

    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(1)


def _limit(memory_limit_bytes: int | None) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a patient's images
    if memory_limit_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = memory_limit_bytes if hard == resource.RLIM_INFINITY else min(memory_limit_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _serve(channel: socket.socket) -> None:
    body, memory_limit_bytes = receive(channel)
    try:
        function = pickle.loads(body)  # noqa: S301 - the name of a function, from our own parent
    except (ImportError, AttributeError) as error:
        send(channel, ("cannot-start", f"{type(error).__name__}: {error}"))
        return
    _limit(memory_limit_bytes)
    send(channel, ("ready", None))
    while True:
        try:
            job = receive(channel)
        except (EOFError, OSError):
            return
        try:
            outcome = ("done", perform(function, job))
        except MissingExtraError as error:
            outcome = ("missing-extra", str(error))
        try:
            send(channel, outcome)
        except MemoryError:
            send(channel, ("done", JobFailure("out-of-memory", "the result took more memory than a worker may have")))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            send(channel, ("done", JobFailure("decoder-error", f"the result cannot be sent: {error}")))


def main() -> None:
    """Serve jobs on the socket whose number is the first argument, until the other side closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor, parent = (int(argument) for argument in sys.argv[1:3])
    _die_with_parent(parent)
    with socket.socket(fileno=descriptor) as channel:
        try:
            _serve(channel)
        except (EOFError, OSError):
            return
