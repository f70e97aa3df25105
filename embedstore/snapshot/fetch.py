"""Fetch the files of a snapshot: in parallel, resumed where they broke off, hashed as they come, never longer than
stated. A file has its name only when its digest is right.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Self

from embedstore.disk import SendAhead, storage_errors
from embedstore.errors import CorruptionError, EnvironmentFailure, HostileInputError
from embedstore.files import FileRecord, hash_file
from embedstore.folders import fsync_folder
from embedstore.snapshot.remotes.remote import BLOCK_BYTES, Broken, Remote
from embedstore.snapshot.transfers import transfer_all

__all__ = ["FetchOptions", "fetch_files", "read_remote"]

PARTIAL_SUFFIX = ".partial"
# A server that gives less than this over a whole window is as good as silent: one byte a second would take a year.
_SLOWEST_BYTES_PER_S = 1024
_WINDOW_S = 60.0
_PROGRESS_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How hard to try.

    Attributes
    ----------
    n_parallel : int
        Files at a time.
    attempts : int
        Attempts that each bring less than 64 KiB before a transfer fails.
    first_pause_s : float
        Seconds before the second attempt; doubled each time.
    window_s : float
        Over how many seconds the slowest accepted rate (1 KiB/s) is taken.
    on_bytes : callable
        Told the bytes of each block that came, and of what was there already; less than 0 for what is asked anew.

    Examples
    --------
    >>> FetchOptions(n_parallel=2).attempts
    5
    """

    n_parallel: int = 8
    attempts: int = 5
    first_pause_s: float = 1.0
    window_s: float = _WINDOW_S
    on_bytes: Callable[[int], None] = lambda count: None


class _Pace:
    """Watches that bytes keep coming."""

    def __init__(self, window_s: float) -> None:
        self._window_s, self._since, self._count = window_s, time.monotonic(), 0

    def add(self, count: int) -> None:
        self._count += count
        now = time.monotonic()
        if now - self._since >= self._window_s:
            if self._count < _SLOWEST_BYTES_PER_S * (now - self._since):
                raise Broken(f"only {self._count} bytes came in {now - self._since:.0f} s")
            self._since, self._count = now, 0


def read_remote(remote: Remote, path: str, *, max_bytes: int, options: FetchOptions | None = None) -> bytes | None:
    """Return a small file whose size and digest nobody states, None where there is none.

    Raises
    ------
    HostileInputError
        It is longer than it may be.
    EnvironmentFailure
        It was not got in as many attempts as the options allow.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from embedstore.snapshot.remotes import open_remote
    >>> read_remote(open_remote(mkdtemp()), "latest.json", max_bytes=4096) is None
    True
    """
    chosen = options or FetchOptions()
    pause_s = chosen.first_pause_s
    for attempt in range(1, chosen.attempts + 1):
        try:
            return _read_once(remote, path, max_bytes=max_bytes, window_s=chosen.window_s)
        except FileNotFoundError:
            return None
        except Broken as error:
            if attempt == chosen.attempts:
                raise EnvironmentFailure(
                    f"{remote.url} was not reached in {attempt} attempts ({error}); run the same command again"
                ) from error
            time.sleep(max(pause_s, error.wait_s))
            pause_s *= 2
    raise AssertionError("no attempt was made")


def _read_once(remote: Remote, path: str, *, max_bytes: int, window_s: float) -> bytes:
    pace, parts, size = _Pace(window_s), [], 0
    with remote.open(path) as stream:
        for block in stream.blocks:
            size += len(block)
            if size > max_bytes:
                raise HostileInputError(f"{remote.url}/{path} is larger than {max_bytes} bytes")
            parts.append(bytes(block))
            pace.add(len(block))
    return b"".join(parts)


@dataclass(frozen=True)
class _Wanted:
    path: str
    record: FileRecord
    target: Path

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + PARTIAL_SUFFIX)

    def partial_size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0


def fetch_files(
    remote: Remote,
    files: Sequence[tuple[str, FileRecord]],
    folder: Path,
    *,
    prefix: str = "",
    options: FetchOptions | None = None,
) -> None:
    """Fetch files into a folder below their paths; what an earlier call left there is gone on with.

    Parameters
    ----------
    files : sequence of (path, FileRecord)
        Checked paths, and what each must be.
    folder : Path
    prefix : str
        Where the paths begin in the remote place.

    Raises
    ------
    CorruptionError
        A file has another digest than is stated; it was removed.
    HostileInputError
        A file is longer than is stated.
    EnvironmentFailure
        A file is not there, or does not come.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from embedstore.snapshot.remotes import open_remote
    >>> there, here = Path(mkdtemp()), Path(mkdtemp())
    >>> _ = (there / "a").write_bytes(b"vectors")
    >>> fetch_files(open_remote(str(there)), [("a", hash_file(there / "a"))], here)
    >>> (here / "a").read_bytes()
    b'vectors'
    """
    chosen = options or FetchOptions()
    wanted = [_Wanted(prefix + path, record, folder / path) for path, record in files]
    # Large files first, so that none is left alone at the end.
    wanted.sort(key=lambda one: (-one.record.size, one.path))

    def fetch(one: _Wanted, stop: Event) -> None:
        _fetch(remote, one, chosen, stop)

    transfer_all(fetch, wanted, remote=remote, n_parallel=chosen.n_parallel)
    # Once for all: nobody reads before the document is there, which is written after this.
    written = {parent for one in wanted for parent in one.target.parents}
    with storage_errors(folder, "write"):
        for sub in sorted(parent for parent in written if parent.is_relative_to(folder)):
            fsync_folder(sub)


def _fetch(remote: Remote, wanted: _Wanted, options: FetchOptions, stop: Event) -> None:
    with storage_errors(wanted.target, "write"):
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        if wanted.target.is_file() and hash_file(wanted.target) == wanted.record:
            options.on_bytes(wanted.record.size)
            return
    found, in_one_go = _persist(remote, wanted, options, stop)
    if found != wanted.record.sha256 and not in_one_go:
        # What lay here may have been of another version, or what came in pieces: once more, from the start.
        _drop(wanted, options)
        found, _ = _persist(remote, wanted, options, stop)
    if found != wanted.record.sha256:
        _drop(wanted, options)
        raise CorruptionError(
            f"{wanted.path} of {remote.url} is not the file that its snapshot lists (SHA-256 {found[:12]}..., stated "
            f"{wanted.record.sha256[:12]}...): it was damaged, or replaced while this ran; it was removed"
        )
    with storage_errors(wanted.target, "write"):
        wanted.partial.replace(wanted.target)


def _drop(wanted: _Wanted, options: FetchOptions) -> None:
    with storage_errors(wanted.partial, "remove"):
        options.on_bytes(-wanted.partial.stat().st_size)
        wanted.partial.unlink()


def _persist(remote: Remote, wanted: _Wanted, options: FetchOptions, stop: Event) -> tuple[str, bool]:
    """Attempt until all bytes are there; return their digest, and whether they came in one go."""
    pause_s, idle, furthest = options.first_pause_s, 0, wanted.partial_size()
    in_one_go = not furthest
    while True:
        try:
            return _attempt(remote, wanted, options, stop), in_one_go
        except Broken as error:
            in_one_go = False
            # Progress is what lies well beyond all earlier attempts: a server that starts over, or gives a byte
            # an attempt, could go on for ever.
            if wanted.partial_size() >= furthest + _PROGRESS_BYTES:
                idle, pause_s, furthest = 0, options.first_pause_s, wanted.partial_size()
            else:
                idle += 1
            if idle >= options.attempts or stop.is_set():
                raise EnvironmentFailure(
                    f"{wanted.path} of {remote.url} did not come ({error}); run the same command again, which goes "
                    "on where it stopped"
                ) from error
            stop.wait(max(pause_s, error.wait_s))
            pause_s = min(2 * pause_s, 60.0)


def _attempt(remote: Remote, wanted: _Wanted, options: FetchOptions, stop: Event) -> str:
    """Ask for what is missing, append it, and return the digest of the whole file, which is then on disk."""
    with storage_errors(wanted.partial, "write"), _Partial(wanted, options) as partial:
        if partial.have < wanted.record.size or not wanted.record.size:
            try:
                _receive(remote, wanted, options, partial, stop)
            except Broken:
                partial.uncount()
                raise
        os.fsync(partial.fileno())
        return partial.digest.hexdigest()


def _receive(remote: Remote, wanted: _Wanted, options: FetchOptions, partial: _Partial, stop: Event) -> None:
    if stop.is_set():
        raise Broken("another file failed")
    with ExitStack() as held:
        try:
            stream = held.enter_context(remote.open(wanted.path, start=partial.have))
        except FileNotFoundError as error:
            raise EnvironmentFailure(
                f"{remote.url} lists {wanted.path} and does not have it: its upload may not be complete"
            ) from error
        if stream.start != partial.have:
            partial.start_over()
        pace = _Pace(options.window_s)
        for block in stream.blocks:
            if partial.have + len(block) > wanted.record.size:
                raise HostileInputError(
                    f"{wanted.path} of {remote.url} is longer than the {wanted.record.size} bytes that its snapshot "
                    "states"
                )
            partial.append(block)
            pace.add(len(block))
            if stop.is_set():
                raise Broken("another file failed")
    if partial.have < wanted.record.size:
        raise Broken(f"{partial.have} of {wanted.record.size} bytes came")


class _Partial:
    """The beginning of a file that is being fetched, its digest, and what of it the user was told."""

    def __init__(self, wanted: _Wanted, options: FetchOptions) -> None:
        self.digest, self.have = hashlib.sha256(), 0
        self._tell, self._told = options.on_bytes, 0
        # Unbuffered: what comes is large, and lies in one place already.
        self._handle = wanted.partial.open("a+b", buffering=0)
        self._ahead = SendAhead(self.fileno())
        there = os.fstat(self.fileno()).st_size
        if there > wanted.record.size:
            self._handle.truncate(0)
        elif there:
            self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._handle.close()

    def fileno(self) -> int:
        return self._handle.fileno()

    def _add(self, block: memoryview) -> None:
        self.digest.update(block)
        self.have += len(block)
        self._told += len(block)
        self._tell(len(block))

    def _read(self) -> None:
        """Hash what an earlier attempt left."""
        self._handle.seek(0)
        buffer = memoryview(bytearray(BLOCK_BYTES))
        while count := self._handle.readinto(buffer):
            self._add(buffer[:count])

    def append(self, block: memoryview) -> None:
        """Write a block and hash it while it is in the processor's cache."""
        done = 0
        while done < len(block):
            done += self._handle.write(block[done:])
        self._add(block)
        self._ahead.written(self.have)

    def uncount(self) -> None:
        """Take back what the user was told: the next attempt tells it again."""
        self._tell(-self._told)
        self._told = 0

    def start_over(self) -> None:
        """Forget what is there."""
        self.uncount()
        self._handle.truncate(0)
        self.digest, self.have = hashlib.sha256(), 0
        self._ahead = SendAhead(self.fileno())
