"""Push an exported folder to a place: its files first, the pointer to them last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from embedstore.errors import CorruptionError, EnvironmentFailure, PolicyError, UnknownNameError
from embedstore.files import FileRecord, hash_file
from embedstore.identity import sha256_hex
from embedstore.snapshot.describe import (
    DOCUMENT_FILE,
    MAX_DOCUMENT_BYTES,
    SIDE_FILES,
    SIGNATURE_FILE,
    SentSnapshot,
)
from embedstore.snapshot.fetch import FetchOptions, read_remote
from embedstore.snapshot.place import LATEST_FILE, latest_bytes
from embedstore.snapshot.remotes import Broken, Remote
from embedstore.snapshot.selection import PARTIAL_FILE
from embedstore.snapshot.transfers import transfer_all

__all__ = ["PushOptions", "PushOutcome", "push_folder"]


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """How hard to try: files at a time, attempts a file, seconds before the second one, whom to tell of bytes."""

    n_parallel: int = 8
    attempts: int = 5
    first_pause_s: float = 1.0
    on_bytes: Callable[[int], None] = lambda count: None


@dataclass(frozen=True, kw_only=True)
class PushOutcome:
    """What a push did.

    Attributes
    ----------
    snapshot_id, url : str
    n_files, n_bytes : int
        Of the whole snapshot.
    n_sent : int
        Files that were written now; the rest was there.
    """

    snapshot_id: str
    url: str
    n_files: int
    n_bytes: int
    n_sent: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only, with the address that a recipient pins."""
        return {
            "snapshot": self.snapshot_id,
            "url": self.url,
            "pinned": f"{self.url}@sha256:{self.snapshot_id}",
            "files": self.n_files,
            "bytes": self.n_bytes,
            "files_sent": self.n_sent,
        }


def push_folder(folder: str | Path, remote: Remote, *, options: PushOptions | None = None) -> PushOutcome:
    """Write an exported snapshot below its id, then point ``latest.json`` at it.

    What an interrupted push left is gone on with. Nothing that is there already is changed but the pointer.

    Parameters
    ----------
    folder : str or Path
        What `embedstore snapshot export` made.

    Raises
    ------
    PolicyError
        The folder is an internal copy, or holds only a part; or the place does not let us write.
    CorruptionError
        A file of the folder is not what the snapshot lists; nothing was pointed at it.
    UnknownNameError
        The folder is no export, or the place is itself the folder of one snapshot.
    EnvironmentFailure
        The place is not reached.
    """
    chosen, folder = options or PushOptions(), Path(folder)
    if not (folder / DOCUMENT_FILE).is_file():
        raise UnknownNameError(f"there is no exported snapshot at {folder}: it has no {DOCUMENT_FILE}")
    snapshot = SentSnapshot.read(folder)
    if snapshot.internal:
        raise PolicyError(
            f"{folder} is an internal copy, from which nothing was taken out: it is not pushed; export without "
            "--internal"
        )
    if (folder / PARTIAL_FILE).exists():
        raise PolicyError(f"{folder} holds only a part of its snapshot; push the whole one, or export a smaller one")
    remote.require_writable()
    _require_place(remote, chosen)
    records = {file.path: file.record for file in snapshot.files}
    for name in (*SIDE_FILES, SIGNATURE_FILE):
        if (folder / name).is_file():
            records[name] = hash_file(folder / name)
    prefix = f"{snapshot.id}/"
    n_sent = _put_all(folder, remote, prefix, records, chosen)
    document = snapshot.to_bytes()
    for path, payload in ((prefix + DOCUMENT_FILE, document), (LATEST_FILE, latest_bytes(snapshot.id))):
        record = FileRecord(len(payload), sha256_hex(payload))
        _persist(partial(remote.put, path, payload, record=record), remote, chosen, Event())
    _persist(remote.finish, remote, chosen, Event())
    return PushOutcome(
        snapshot_id=snapshot.id,
        url=remote.url,
        n_files=len(records) + 1,
        n_bytes=sum(record.size for record in records.values()) + len(document),
        n_sent=n_sent,
    )


def _require_place(remote: Remote, options: PushOptions) -> None:
    """Raise where a snapshot lies at the top of the place: whoever pulls would go on seeing that one."""
    asking = FetchOptions(attempts=options.attempts, first_pause_s=options.first_pause_s)
    if read_remote(remote, DOCUMENT_FILE, max_bytes=MAX_DOCUMENT_BYTES, options=asking) is not None:
        raise UnknownNameError(f"{remote.url} is the folder of one snapshot; push to a folder beside it")


def _put_all(
    folder: Path, remote: Remote, prefix: str, records: Mapping[str, FileRecord], options: PushOptions
) -> int:
    # Large files first, so that none is left alone at the end.
    order = sorted(records, key=lambda path: (-records[path].size, path))

    def put(path: str, stop: Event) -> bool:
        return _put(folder, remote, prefix, path, records[path], options, stop)

    return sum(transfer_all(put, order, remote=remote, n_parallel=options.n_parallel))


def _put(
    folder: Path, remote: Remote, prefix: str, path: str, record: FileRecord, options: PushOptions, stop: Event
) -> bool:
    if stop.is_set():
        return False
    source = folder / path
    if hash_file(source) != record:
        raise CorruptionError(f"{source} is not what its snapshot lists; export it again")
    there: bool = _persist(partial(remote.holds, prefix + path, record), remote, options, stop)
    if not there:
        _persist(partial(remote.put, prefix + path, source, record=record), remote, options, stop)
    options.on_bytes(record.size)
    return not there


def _persist(act: Callable[[], Any], remote: Remote, options: PushOptions, stop: Event) -> Any:
    pause_s = options.first_pause_s
    for attempt in range(1, options.attempts + 1):
        try:
            return act()
        except Broken as error:
            if attempt == options.attempts or stop.is_set():
                raise EnvironmentFailure(
                    f"{remote.url} was not written in {attempt} attempts ({error}); run the same command again, "
                    "which goes on where it stopped"
                ) from error
            stop.wait(max(pause_s, error.wait_s))
            pause_s *= 2
    raise AssertionError("no attempt was made")
