"""gc: take away what nothing needs any more, once it has been of no use for a grace period.

What stays, whatever its age: all that the head lists, all that a tag lists, the sets that a build under way grows
from or copies from, unfinished builds, and every set while a build is only starting. The log and the snapshots' own
files stay for ever; a snapshot whose sets were swept can be listed but not restored. To keep one restorable, tag it.

A reader takes no lock, so age protects it: a set is of no use since the log entry that dropped it was made, or its
tag deleted, or since it was last written or claimed by a commit, whichever came last. Whoever opened it while it was
the head's or a tag's has the whole grace period (24 hours unless it is said otherwise) to finish. These times are
modification times of files of the store, compared with the clock of its file system. Clocks decide how long a
leftover stays and never what is current: that is the log's order alone. What has a time in the future stays.

Writers of this host are kept out while things are taken away (`Store.publishing`); against writers of other hosts
the grace period protects, so ``--grace 0`` is for a store that no other machine writes to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedstore.build.lock import build_lock
from embedstore.errors import BusyError
from embedstore.files import mark_used, remove_file
from embedstore.folders import remove_folder, trash_folder
from embedstore.locks import host_lock
from embedstore.store import Store
from embedstore.upkeep.builds import BuildState
from embedstore.upkeep.leftovers import Leftover, Survey, freed_bytes

__all__ = ["GRACE_H", "GcOutcome", "collect_garbage", "sweep"]

GRACE_H = 24.0
_LOCK_WAIT_S = 30.0


@dataclass(kw_only=True)
class GcOutcome:
    """What gc took away, or would.

    Attributes
    ----------
    is_dry : bool
    removed : list of Leftover
    waiting : list of Leftover
        Within their grace period.
    unfinished : list of BuildState
        Builds that are kept, since the same command goes on with them.
    n_bytes_freed : int
        Bytes of the files of ``removed`` that no kept file shares.
    """

    is_dry: bool
    removed: list[Leftover] = field(default_factory=list)
    waiting: list[Leftover] = field(default_factory=list)
    unfinished: list[BuildState] = field(default_factory=list)
    n_bytes_freed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "dry_run": self.is_dry,
            "bytes": self.n_bytes_freed,
            "removed": [leftover.to_dict() for leftover in self.removed],
            "waiting": [leftover.to_dict() for leftover in self.waiting],
            "unfinished_builds": [
                {"build": build.key, "what": build.title, "units_done": len(build.receipts), "live": build.is_live}
                for build in self.unfinished
            ],
        }


def _file_clock(path: Path) -> float:
    """Return the time by the clock of the file system that holds ``path``."""
    mark_used(path)
    return path.stat().st_mtime


def _take_away(store: Store, leftover: Leftover) -> list[Path]:
    """Make a leftover disappear; return the folders that are then to be deleted."""
    if leftover.kind in ("set", "bank", "staging"):
        return [trash_folder(leftover.path)]
    if leftover.kind == "build":
        with build_lock(store.layout.builds, leftover.path.name, shared=False):
            return [trash_folder(leftover.path)]
    if leftover.kind == "trash":
        return [leftover.path]
    remove_file(leftover.path)
    if leftover.kind == "manifest":
        remove_file(leftover.path.with_suffix(".json"))
    return []


def sweep(store: Store, *, choose: Callable[[float], list[Leftover]]) -> list[Leftover]:
    """Take leftovers away while no writer of this host is between writing and committing.

    Parameters
    ----------
    choose : callable
        Told the time by the store's file system; returns what is to go, in order.

    Returns
    -------
    list of Leftover
        What is gone; a build that somebody took up meanwhile stays.
    """
    busy = f"a set of the store at {store.layout.root} is being written or committed; try again when that has ended"
    lock = store.layout.publish_lock
    gone: list[Leftover] = []
    trash: list[Path] = []
    with host_lock(lock, shared=False, wait_s=_LOCK_WAIT_S, busy=busy):
        for leftover in choose(_file_clock(lock)):
            try:
                trash += _take_away(store, leftover)
            except BusyError:
                continue
            gone.append(leftover)
    for folder in trash:
        remove_folder(folder)
    return gone


def collect_garbage(
    store: Store, *, grace_h: float = GRACE_H, apply: bool = False, abandoned: bool = False
) -> GcOutcome:
    """Find what nothing needs any more, and with ``apply`` remove it.

    Parameters
    ----------
    grace_h : float
        Hours that something must have been of no use.
    apply : bool
        Remove; otherwise nothing is touched.
    abandoned : bool
        Give unfinished builds up too, with the units that they finished.

    Raises
    ------
    CorruptionError
        The log, a snapshot or a tag is damaged: what is needed cannot be known, so nothing is removed.
    BusyError
        A set is being written or committed all the time.
    """
    outcome = GcOutcome(is_dry=not apply)

    def choose(now: float) -> list[Leftover]:
        survey = Survey(store, grace_h=grace_h, now=now, abandoned=abandoned)
        found = survey.leftovers()
        outcome.waiting = [leftover for leftover in found if not leftover.may_go]
        outcome.unfinished = survey.unfinished
        going = [leftover for leftover in found if leftover.may_go]
        outcome.n_bytes_freed = freed_bytes(going)
        return going

    outcome.removed = sweep(store, choose=choose) if apply else choose(time.time())
    return outcome
