"""Builds under way, as their folders and locks show them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedstore.build.plan import BuildPlan
from embedstore.build.units import Receipt, read_receipts
from embedstore.disk import storage_errors
from embedstore.errors import AmbiguousNameError, BusyError, StorageError, UnknownNameError
from embedstore.layout import is_digest
from embedstore.locks import is_locked
from embedstore.store import Store

__all__ = ["BuildState", "find_build", "read_builds", "refuse_live_builds"]

_LOCK_SUFFIX = ".lock"


@dataclass(frozen=True, kw_only=True)
class BuildState:
    """One build under way.

    Attributes
    ----------
    key : str
        Name of its folder.
    folder : Path
    plan : BuildPlan or None
        None where the build is only starting, where its folder is the rest of one that ended, or where it is damaged.
    receipts : tuple of Receipt
        Finished units.
    is_live : bool
        Whether a process of this host works on it.
    is_current : bool
        Whether the set that it grows from is still the head's: the same build command goes on with it.
    is_damaged : bool
        Whether it has a plan that cannot be read.
    """

    key: str
    folder: Path
    plan: BuildPlan | None
    receipts: tuple[Receipt, ...]
    is_live: bool
    is_current: bool
    is_damaged: bool = False

    @property
    def n_units(self) -> int:
        """Work units of the plan."""
        return 0 if self.plan is None else len(self.plan.units)

    @property
    def open_units(self) -> list[int]:
        """Units without a receipt."""
        done = {receipt.unit for receipt in self.receipts}
        return [] if self.plan is None else [unit for unit in self.plan.units if unit not in done]

    @property
    def needs(self) -> frozenset[str]:
        """Ids of the sets whose rows it takes over."""
        if self.plan is None:
            return frozenset()
        sources = self.plan.clips.distinct("source_set")
        return frozenset(name for name in {self.plan.parent, *sources} if name is not None and is_digest(name))

    @property
    def title(self) -> str:
        """``ENCODER on DATASET``, or that it is not known."""
        if self.plan is None:
            return "damaged" if self.is_damaged else "not planned yet"
        return f"{self.plan.spec.title} on {self.plan.dataset}"


def _is_current(store: Store, plan: BuildPlan) -> bool:
    """Return whether a plan still grows from what the head has; a set without frames cannot grow into one with."""
    for entry in store.entries():
        if (entry.dataset, entry.fingerprint) == (plan.dataset, plan.spec.fingerprint):
            if plan.parent is not None or not plan.with_frames:
                return entry.set_id == plan.parent
            return "frames" not in store.open_set(entry.set_id).described["arrays"]
    return plan.parent is None


def read_builds(store: Store) -> list[BuildState]:
    """Return the builds under way, sorted by key."""
    builds = store.layout.builds
    if not builds.is_dir():
        return []
    with storage_errors(builds, "read"):
        names = {entry.name for entry in os.scandir(builds)}
    keys = {name.removesuffix(_LOCK_SUFFIX) for name in names}
    states = []
    for key in sorted(key for key in keys if is_digest(key)):
        folder = store.layout.build_folder(key)
        is_live = is_locked(store.layout.build_lock(key))
        if not is_live and not folder.is_dir():
            continue
        plan: BuildPlan | None = None
        receipts: tuple[Receipt, ...] = ()
        is_damaged = False
        try:
            plan = BuildPlan.read(folder)
            receipts = tuple(read_receipts(folder).values())
        except StorageError:
            if folder.is_dir():
                raise
            plan = None  # committed and dropped while we looked
        except (ValueError, KeyError, TypeError):
            plan, is_damaged = None, True
        states.append(
            BuildState(
                key=key,
                folder=folder,
                plan=plan,
                receipts=receipts,
                is_live=is_live,
                is_current=plan is not None and _is_current(store, plan),
                is_damaged=is_damaged,
            )
        )
    return states


def refuse_live_builds(builds: Sequence[BuildState], *, doing: str) -> None:
    """Raise where a build runs on this host.

    Raises
    ------
    BusyError
        The message names the build and what must wait for it.
    """
    live = [build for build in builds if build.is_live]
    if live:
        raise BusyError(f"a build is running on this machine ({live[0].title}); {doing} when it has ended")


def find_build(builds: Sequence[BuildState], text: str) -> BuildState:
    """Return the build whose key begins with ``text``.

    Raises
    ------
    UnknownNameError
        None does.
    AmbiguousNameError
        Several do.
    """
    matching = [build for build in builds if text and build.key.startswith(text)]
    if len(matching) > 1:
        listed = ", ".join(build.key[:16] for build in matching)
        raise AmbiguousNameError(f"several builds begin with {text!r}: {listed}")
    if not matching:
        listed = ", ".join(f"{build.key[:12]} ({build.title})" for build in builds) or "none"
        raise UnknownNameError(f"no build under way begins with {text!r}; under way: {listed}")
    return matching[0]
