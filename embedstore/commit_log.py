"""`CommitLog`: the log of a store's snapshots. Readers take no lock and see the old or the new.

A commit writes immutable files, then a snapshot that lists them, then one log entry by a create-only link: that
link is the compare-and-swap. Whoever loses it applies the change to the new head and tries again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError, StorageError, UnconfirmedError
from embedstore.files import create_file, mark_used, read_file, replace_file
from embedstore.folders import confirm_names
from embedstore.history import LogEntry, Snapshot
from embedstore.identity import sha256_hex
from embedstore.json_files import read_sealed_json, seal_json
from embedstore.layout import StoreLayout, log_number
from embedstore.locks import host_lock

__all__ = ["CommitLog"]

_PUBLISH_WAIT_S = 60.0


class CommitLog:
    """The snapshots of one store, newest last, and the one way to add another.

    Parameters
    ----------
    layout : StoreLayout
    """

    def __init__(self, layout: StoreLayout) -> None:
        self.layout = layout

    def _head_number(self) -> int:
        with storage_errors(self.layout.log, "read"):
            return max((log_number(entry.name) or 0 for entry in os.scandir(self.layout.log)), default=0)

    def log_entry(self, number: int) -> LogEntry:
        """Read one log entry.

        Raises
        ------
        StorageError
            It is not there.
        CorruptionError
            It is not what was written.
        """
        path = self.layout.log_entry(number)
        described = read_sealed_json(path)
        try:
            return LogEntry(
                number=number,
                snapshot_id=described["snapshot"],
                parent_id=described["parent"],
                time=described["time"],
                reason=described["reason"],
            )
        except (KeyError, TypeError) as error:
            raise CorruptionError(f"{path} is no log entry: {error}") from error

    def log(self) -> list[LogEntry]:
        """Return all log entries, newest first."""
        return [self.log_entry(number) for number in range(self._head_number(), 0, -1)]

    def snapshot(self, snapshot_id: str | None = None) -> Snapshot:
        """Return a snapshot by id; the head without one; an empty one for a store without commits.

        Raises
        ------
        CorruptionError
            The snapshot file is not what its name says.
        """
        if snapshot_id is None:
            number = self._head_number()
            if number == 0:
                return Snapshot()
            snapshot_id = self.log_entry(number).snapshot_id
        path = self.layout.snapshot_file(snapshot_id)
        payload = read_file(path, max_bytes=64 << 20)
        if sha256_hex(payload) != snapshot_id:
            raise CorruptionError(f"{path} is not what was written; run embedstore verify")
        return Snapshot.from_bytes(payload, source=str(path))

    def commit(self, change: Callable[[Snapshot], Snapshot], *, reason: str) -> str:
        """Apply ``change`` to the head and publish the result; a change that changes nothing adds no entry.

        Parameters
        ----------
        change : callable
            From the head's snapshot to the new one; called again where another commit came first.
        reason : str
            For the log; no ids of clips or patients.

        Returns
        -------
        str
            The head's snapshot id afterwards.

        Raises
        ------
        StorageError
            The disk refused. The message says so where the commit is made all the same; the same call again then
            changes nothing and confirms it.
        """
        while True:
            number = self._head_number()
            parent = None if number == 0 else self.log_entry(number).snapshot_id
            before = self.snapshot(parent) if parent else Snapshot()
            after = change(before)
            if parent is not None and after == before:
                self.confirm()
                return parent
            entry = {
                "snapshot": after.id,
                "parent": parent,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "reason": reason,
            }
            with self.publishing():
                self.claim(after, but_not=before)
                create_file(self.layout.snapshot_file(after.id), after.to_bytes())
                if self._link_entry(number + 1, seal_json(entry)):
                    return after.id

    def _link_entry(self, number: int, payload: bytes) -> bool:
        """Make a log entry, unless its number is taken; say so where the disk fails after that."""
        path = self.layout.log_entry(number)
        try:
            if not create_file(path, payload):
                return False
        except UnconfirmedError as error:
            if read_file(path, max_bytes=1 << 20) == payload:
                error.add_note(f"commit {number} is made and readers see it")
            raise
        try:
            replace_file(self.layout.log_mark, seal_json({"number": number}))
        except StorageError as error:
            error.add_note(f"commit {number} is made and on disk; the next one mends this file")
            raise
        return True

    def confirm(self) -> None:
        """Bring to disk that the head is the head, where a commit that failed at its very end left that open.

        Raises
        ------
        UnconfirmedError
            The disk refused.
        """
        number = self._head_number()
        if number:
            confirm_names(self.layout.log_entry(number))

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Keep gc of this host away while sets and manifests are written that no log entry lists yet.

        Whoever writes a set and commits it holds this from before the one to after the other; it is shared.
        """
        busy = f"the store at {self.layout.root} is being swept; try again when embedstore gc has ended"
        with host_lock(self.layout.publish_lock, shared=True, wait_s=_PUBLISH_WAIT_S, busy=busy):
            yield

    def claim(self, snapshot: Snapshot, *, but_not: Snapshot | None = None) -> None:
        """Mark what a snapshot lists, and ``but_not`` does not, as used now, so that gc of any host lets it be.

        Raises
        ------
        StorageError
            A set, a bank or a manifest is not in the store.
        """
        known = set() if but_not is None else set(self._paths(but_not))
        for path in self._paths(snapshot):
            if path not in known and not mark_used(path):
                raise StorageError(
                    f"{path} is not in the store any more: gc or forget-patient removed it; make it again"
                )

    def _paths(self, snapshot: Snapshot) -> list[Path]:
        sets = [self.layout.set_folder(entry.set_id) for entry in snapshot.sets]
        banks = [self.layout.bank_folder(bank_id) for bank_id in snapshot.prompts]
        return sets + banks + [self.layout.manifest_file(entry.manifest_id) for entry in snapshot.manifests]

    def absent(self, snapshot: Snapshot) -> list[Path]:
        """Return the sets, banks and manifests that a snapshot lists and the store no longer has."""
        return [path for path in self._paths(snapshot) if not path.exists()]
