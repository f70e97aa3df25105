"""`confine`: take from this process what reading a snapshot never needs: the network, other programs, pickles.

Two fences, and each holds alone. An audit hook hears what Python code does and raises. Where the kernel can (Linux on
x86-64 and ARM64, no privilege needed) a seccomp filter makes the calls themselves fail, whoever makes them: a library
in C passes no audit hook. Neither can be taken away again, and threads that are started later have both.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

from embedstore.errors import HostileInputError

__all__ = ["confine"]

_EVENTS = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.",
    "pickle.",
    "webbrowser.",
)
# prctl(2), seccomp(2), linux/filter.h, linux/audit.h.
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # the call fails with EPERM
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# socket, connect, execve, execveat, ptrace, io_uring_setup (through which sockets can be had): asm/unistd.h.
_CALLS = {"x86_64": (41, 42, 59, 322, 101, 425), "aarch64": (198, 203, 221, 281, 117, 425)}
_X32 = 0x40000000  # calls of the x32 interface have this bit, and other numbers


def confine() -> bool:
    """Give up the network, other programs and pickles for the rest of this process.

    Returns
    -------
    bool
        Whether the kernel holds the fence too.
    """
    sys.addaudithook(_refuse)
    return _filter_calls()


def _refuse(event: str, arguments: object) -> None:
    if event.startswith(_EVENTS):
        raise HostileInputError(f"reading the snapshot led to {event!r}, which no snapshot asks for")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter_calls() -> bool:
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in _ARCHITECTURES:
        return False
    calls = _CALLS[machine]
    n_tests = len(calls) + 1

    def step(code: int, operand: int, *, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, operand)

    # The two returns stand at the end, allow before refuse; jumps count the steps that are passed over.
    program = [step(_LOAD, 4), step(_EQUAL, _ARCHITECTURES[machine], otherwise=n_tests + 2), step(_LOAD, 0)]
    program.append(step(_AT_LEAST, _X32, then=n_tests))
    program += [step(_EQUAL, call, then=n_tests - 1 - place) for place, call in enumerate(calls)]
    program += [step(_RETURN, _ALLOW), step(_RETURN, _REFUSE)]
    library = ctypes.CDLL(None, use_errno=True)
    given = _Program(len(program), b"".join(program))
    if library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(library.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(given), 0, 0) == 0)
