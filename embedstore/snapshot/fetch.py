"""Fetch the files of a snapshot: in parallel, resumed where they broke off, hashed as they come, never longer than
stated. A file has its name only when its digest is right.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from embedstore.errors import CorruptionError, EnvironmentFailure, HostileInputError
from embedstore.files import FileRecord, fsync_folder, hash_file, storage_errors
from embedstore.snapshot.remotes import Broken, Remote

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
        Told the bytes of each block that came, and of what was there already.
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
            time.sleep(pause_s)
            pause_s *= 2
    raise AssertionError("no attempt was made")


def _read_once(remote: Remote, path: str, *, max_bytes: int, window_s: float) -> bytes:
    pace, parts, size = _Pace(window_s), [], 0
    with remote.open(path) as stream:
        for block in stream.blocks:
            size += len(block)
            if size > max_bytes:
                raise HostileInputError(f"{remote.url}/{path} is larger than {max_bytes} bytes")
            parts.append(block)
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
    """
    chosen = options or FetchOptions()
    stop = Event()
    wanted = [_Wanted(prefix + path, record, folder / path) for path, record in files]
    # Large files first, so that none is left alone at the end.
    wanted.sort(key=lambda one: (-one.record.size, one.path))
    with ThreadPoolExecutor(max_workers=max(1, chosen.n_parallel)) as pool:
        running = [pool.submit(_fetch, remote, one, chosen, stop) for one in wanted]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        failed = [future for future in running if future in done and future.exception() is not None]
        if failed:
            stop.set()
            pool.shutdown(cancel_futures=True)
            failed[0].result()


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
        fsync_folder(wanted.target.parent)


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
        except FileNotFoundError as error:
            raise EnvironmentFailure(
                f"{remote.url} lists {wanted.path} and does not have it: its upload may not be complete"
            ) from error
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
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, 60.0)


def _attempt(remote: Remote, wanted: _Wanted, options: FetchOptions, stop: Event) -> str:
    """Ask for what is missing, append it, and return the digest of the whole file."""
    digest, size = hashlib.sha256(), wanted.record.size
    with storage_errors(wanted.partial, "write"), wanted.partial.open("a+b") as handle:
        handle.seek(0)
        while block := handle.read(1 << 20):
            digest.update(block)
        have = handle.tell()
        if have > size:
            handle.truncate(0)
            have, digest = 0, hashlib.sha256()
        counted = have
        options.on_bytes(have)
        if have == size and size:
            return digest.hexdigest()
        try:
            with remote.open(wanted.path, start=have) as stream:
                if stream.start != have:
                    handle.truncate(0)
                    have, digest = 0, hashlib.sha256()
                    options.on_bytes(-counted)
                    counted = 0
                pace = _Pace(options.window_s)
                for block in stream.blocks:
                    have += len(block)
                    if have > size:
                        raise HostileInputError(
                            f"{wanted.path} of {remote.url} is longer than the {size} bytes that its snapshot states"
                        )
                    handle.write(block)
                    digest.update(block)
                    counted += len(block)
                    options.on_bytes(len(block))
                    pace.add(len(block))
                    if stop.is_set():
                        raise Broken("another file failed")
            if have < size:
                raise Broken(f"{have} of {size} bytes came")
            handle.flush()
            os.fsync(handle.fileno())
        except Broken:
            options.on_bytes(-counted)
            raise
    return digest.hexdigest()
