"""Complete a build whose units are all there: the last step of a build that several workers shared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from embedstore.build.commit import commit_build, drop_build
from embedstore.build.lock import build_lock
from embedstore.build.provenance import provenance_of
from embedstore.errors import BusyError, ContentError, UnknownNameError
from embedstore.store import Store
from embedstore.upkeep.builds import BuildState, read_builds

__all__ = ["CompletedBuild", "complete_build", "complete_builds"]


@dataclass(frozen=True, kw_only=True)
class CompletedBuild:
    """What became of one build.

    Attributes
    ----------
    set_id : str or None
        The committed set; None where units are open or a process works on it.
    state : {"committed", "open", "live", "overtaken", "damaged"}
        ``overtaken``: its set has been built otherwise since, so that committing it would lose clips.
    """

    build: str
    what: str
    state: str
    set_id: str | None = None
    units_done: int = 0
    units_open: int = 0
    clips_ok: int = 0
    clips_failed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        values = dict(vars(self))
        return {**values, "set": values.pop("set_id")}


def _state_of(build: BuildState) -> str:
    if build.is_live:
        return "live"
    if build.plan is None:
        return "damaged"
    if not build.is_current:
        return "overtaken"
    return "open" if build.open_units else "ready"


def _report(build: BuildState, state: str) -> CompletedBuild:
    return CompletedBuild(
        build=build.key,
        what=build.title,
        state=state,
        units_done=len(build.receipts),
        units_open=len(build.open_units),
        clips_ok=sum(receipt.rows["clips"] for receipt in build.receipts),
        clips_failed=sum(receipt.rows["failures"] for receipt in build.receipts),
    )


def complete_build(store: Store, build: BuildState) -> CompletedBuild:
    """Commit a build if its units are all there.

    Raises
    ------
    BusyError
        A process of this host works on it.
    ContentError
        It cannot be committed any more: its set has been built otherwise since, or its plan is damaged.
    UnknownNameError
        Another process committed or removed it meanwhile.
    NothingDecodedError
        Not one of its clips has vectors.
    """
    with build_lock(store.layout.builds, build.key, shared=False), store.publishing():
        found = {state.key: state for state in read_builds(store)}.get(build.key)
        if found is None or not found.folder.is_dir():
            raise UnknownNameError(f"the build {build.key[:12]} is gone: another process committed or removed it")
        state = _state_of(replace(found, is_live=False))  # the lock that makes it look live is ours
        if found.plan is None:
            raise ContentError(f"the build {build.key[:12]} has no readable plan; run the same build command again")
        if state == "overtaken":
            raise ContentError(
                f"the build of {found.title} grew from a set that is no longer the newest, and committing it could "
                "lose clips; run the same build command again"
            )
        if state == "open":
            return _report(found, state)
        reason = f"build {found.plan.spec.title} on {found.plan.dataset}"
        set_id = commit_build(
            store, found.plan, found.folder, provenance=provenance_of(found.plan, found.receipts), reason=reason
        )
        drop_build(found.folder, set_id)
        opened = store.open_set(set_id)
        return CompletedBuild(
            build=found.key,
            what=found.title,
            state="committed",
            set_id=set_id,
            units_done=len(found.receipts),
            clips_ok=len(opened),
            clips_failed=opened.n_failed,
        )


def complete_builds(store: Store) -> list[CompletedBuild]:
    """Commit every build whose units are all there, and say what keeps the others."""
    outcomes = []
    for build in read_builds(store):
        state = _state_of(build)
        if state == "ready":
            try:
                outcomes.append(complete_build(store, build))
            except BusyError:
                outcomes.append(_report(build, "live"))
            except UnknownNameError:
                continue  # another process was quicker
            continue
        outcomes.append(_report(build, state))
    return outcomes
