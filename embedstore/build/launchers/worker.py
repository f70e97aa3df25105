"""One worker: its command line, and how it ended."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from embedstore.errors import EXIT_OK, EXIT_PARTIAL

__all__ = ["LaunchRequest", "Launcher", "WorkerEnd", "read_end", "worker_command"]


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """What to give to workers.

    Attributes
    ----------
    arguments : tuple of str
        Those of ``embedstore build`` without ``--shard``, ``--json`` and the launcher's own.
    n_workers : int
    scheduler_options : tuple of str
        For ``sbatch``, without the leading dashes, such as ``gres=gpu:1``.
    """

    arguments: tuple[str, ...]
    n_workers: int
    scheduler_options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WorkerEnd:
    """How a worker ended: its exit code (1 where a signal ended it), and the sentence of its error."""

    worker: int
    code: int
    message: str = ""

    @property
    def is_well(self) -> bool:
        """Whether its share is done; clips may have failed."""
        return self.code in (EXIT_OK, EXIT_PARTIAL)


class Launcher(Protocol):
    """Runs the workers and waits for them."""

    def __call__(self, request: LaunchRequest, *, note: Callable[[str], None]) -> list[WorkerEnd]:
        """Return how each worker ended; ``note`` is told what they say while they run."""


def worker_command(arguments: Sequence[str], *, shard: str, python: str = sys.executable) -> list[str]:
    """Return the command line of one worker.

    Examples
    --------
    >>> worker_command(["--encoder", "panecho"], shard="0/2", python="python")
    ['python', '-P', '-m', 'embedstore', 'build', '--encoder', 'panecho', '--json', '--shard', '0/2']
    """
    # -P: the folder that a worker runs in is no place for Python to find packages.
    return [python, "-P", "-m", "embedstore", "build", *arguments, "--json", "--shard", shard]


def read_end(worker: int, returncode: int, document: str) -> WorkerEnd:
    """Make sense of a worker's exit code and of the document on its stdout.

    Examples
    --------
    >>> read_end(1, -9, "")
    WorkerEnd(worker=1, code=1, message='it was ended by SIGKILL')
    """
    if returncode < 0:
        return WorkerEnd(worker=worker, code=1, message=f"it was ended by {signal.Signals(-returncode).name}")
    try:
        message = json.loads(document)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "" if returncode in (EXIT_OK, EXIT_PARTIAL) else f"exit code {returncode}"
    return WorkerEnd(worker=worker, code=returncode, message=str(message))
