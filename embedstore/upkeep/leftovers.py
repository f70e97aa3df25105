"""Leftovers: everything in a store that nothing needs, with how long it has been of no use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.disk import storage_errors
from embedstore.errors import EmbedstoreError
from embedstore.files import TEMPORARY_PREFIX
from embedstore.layout import STAGING_PREFIX, TRASH_PREFIX, is_digest
from embedstore.locks import is_locked
from embedstore.snapshot.references import needed, to_forget
from embedstore.snapshot.tags import list_tags
from embedstore.store import Store
from embedstore.upkeep.builds import BuildState, read_builds

__all__ = ["WRITER_IDLE_H", "Leftover", "Survey", "doomed", "entries_of", "freed_bytes", "last_change"]

# Folders of writers that are not builds carry no lock: what changed within the hour may be a writer at work.
WRITER_IDLE_H = 1.0
_FORGOTTEN = "held a patient who was forgotten"


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something that nothing needs.

    Attributes
    ----------
    kind : {"set", "bank", "manifest", "build", "staging", "partial", "trash"}
    path : Path
    n_bytes : int
        Size of its files, those included that a kept set has as hard links.
    idle_h : float
        Hours that it has been of no use.
    least_h : float
        Hours after which it may go.
    what, why : str
        For a person.

    Examples
    --------
    >>> old = Leftover(kind="set", path=Path("x"), n_bytes=0, idle_h=25, least_h=24, what="a set", why="dropped")
    >>> old.may_go
    True
    """

    kind: str
    path: Path
    n_bytes: int
    idle_h: float
    least_h: float
    what: str
    why: str

    @property
    def may_go(self) -> bool:
        """Whether its grace period is over."""
        return self.idle_h >= self.least_h

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "kind": self.kind,
            "name": self.path.name,
            "bytes": self.n_bytes,
            "idle_hours": round(self.idle_h, 3),
            "hours_left": round(max(0.0, self.least_h - self.idle_h), 3),
            "what": self.what,
            "why": self.why,
        }


def _files_of(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of a file, or of all files in a folder; what vanishes meanwhile is left out."""
    if path.is_dir() and not path.is_symlink():
        for root, _, names in os.walk(path):
            for name in names:
                yield from _files_of(Path(root, name))
        return
    try:
        yield path.lstat()
    except FileNotFoundError:
        return


def entries_of(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing where there is no folder."""
    if not folder.is_dir():
        return []
    with storage_errors(folder, "read"):
        return sorted(folder.iterdir())


def doomed(kind: str, path: Path, *, what: str, why: str) -> Leftover:
    """Return something that goes whatever its age."""
    n_bytes = sum(status.st_size for status in _files_of(path))
    return Leftover(kind=kind, path=path, n_bytes=n_bytes, idle_h=0.0, least_h=0.0, what=what, why=why)


def last_change(path: Path) -> float:
    """Return the newest modification time in a tree, folders included."""
    newest = path.lstat().st_mtime
    for root, folders, names in os.walk(path):
        for name in (*folders, *names):
            try:
                newest = max(newest, Path(root, name).lstat().st_mtime)
            except FileNotFoundError:
                continue
    return newest


def freed_bytes(leftovers: list[Leftover]) -> int:
    """Return the bytes of files of which no hard link stays."""
    links: dict[tuple[int, int], int] = {}
    freed = 0
    for leftover in leftovers:
        for status in _files_of(leftover.path):
            inode = (status.st_dev, status.st_ino)
            links[inode] = links.get(inode, 0) + 1
            if links[inode] == status.st_nlink:
                freed += status.st_size
    return freed


class Survey:
    """Everything in a store that nothing needs, with its age.

    Parameters
    ----------
    now : float
        Seconds since 1970 by the clock of the store's file system.
    """

    def __init__(self, store: Store, *, grace_h: float, now: float, abandoned: bool) -> None:
        self._store, self._layout = store, store.layout
        self._grace_h, self._now, self._abandoned = grace_h, now, abandoned
        self._builds = read_builds(store)
        self._live = [build for build in self._builds if build.is_live]
        self._needed = needed(store)
        self._to_forget = to_forget(store)
        self._dropped: dict[str, tuple[float, str]] = {}
        self._titles: dict[str, str] = {}
        self._fingerprints: dict[str, tuple[str, str]] = {}
        self._read_history()
        self.unfinished = [build for build in self._builds if not self._is_over(build)]

    def _read_history(self) -> None:
        """Note when each set and manifest was dropped by the head or by a tag."""
        entries = self._store.log()
        seen: set[str] = set()
        for position, entry in enumerate(entries):
            if entry.snapshot_id in seen or not self._layout.snapshot_file(entry.snapshot_id).exists():
                continue
            seen.add(entry.snapshot_id)
            why = "the head lists it"
            since = self._now
            if position:
                number = entries[position - 1].number
                since = self._layout.log_entry(number).stat().st_mtime
                why = f"not listed since commit {number}"
            self._note(entry.snapshot_id, since, why)
        for tag in list_tags(self._store, deleted=True):
            if tag.is_deleted:
                since = self._layout.tag_end(tag.name).stat().st_mtime
                self._note(tag.snapshot_id, since, f"not listed since tag {tag.name} was deleted")

    def _note(self, snapshot_id: str, since: float, why: str) -> None:
        snapshot = self._store.snapshot(snapshot_id)
        for entry in snapshot.sets:
            self._titles[entry.set_id] = f"{entry.title} on {entry.dataset}"
            self._fingerprints[entry.set_id] = (entry.dataset, entry.fingerprint)
        for manifest in snapshot.manifests:
            self._titles[manifest.manifest_id] = f"manifest {manifest.name}"
        sets_and_banks = [entry.set_id for entry in snapshot.sets] + list(snapshot.prompts)
        for name in sets_and_banks + [m.manifest_id for m in snapshot.manifests]:
            if name not in self._dropped or since > self._dropped[name][0]:
                self._dropped[name] = (since, why)

    def _is_over(self, build: BuildState) -> bool:
        """Return whether no command will go on with a build, or whoever calls gives the unfinished ones up."""
        if build.is_live:
            return False
        if build.plan is None and not build.is_damaged:
            return True
        return self._abandoned or (build.plan is not None and not build.is_current)

    def _leftover(self, kind: str, path: Path, since: float, least_h: float, *, what: str, why: str) -> Leftover:
        return Leftover(
            kind=kind,
            path=path,
            n_bytes=sum(status.st_size for status in _files_of(path)),
            idle_h=(self._now - since) / 3600,
            least_h=least_h,
            what=what,
            why=why,
        )

    def _each(self, find: Callable[[Path], Leftover | None], folder: Path) -> Iterator[Leftover]:
        for path in entries_of(folder):
            try:
                leftover = find(path)
            except FileNotFoundError:
                continue  # gone while we looked
            if leftover is not None:
                yield leftover

    def _set(self, path: Path) -> Leftover | None:
        name = path.name
        if name.startswith(STAGING_PREFIX):
            if self._live:
                return None
            idle_h = max(self._grace_h, WRITER_IDLE_H)
            return self._leftover(
                "staging", path, last_change(path), idle_h, what="a set half written", why="its writer ended"
            )
        if not is_digest(name) or name in self._needed.sets or self._is_of_a_build(name):
            return None
        what = self._titles.get(name, "a set")
        since, why = self._dropped.get(name, (0.0, "never committed"))
        if name in self._to_forget.sets:
            return doomed("set", path, what=what, why=_FORGOTTEN)
        since = max(since, path.stat().st_mtime)
        return self._leftover("set", path, since, self._grace_h, what=what, why=why)

    def _is_of_a_build(self, set_id: str) -> bool:
        """Return whether a build needs the set, or is just about to commit it."""
        if any(set_id in build.needs for build in self.unfinished):
            return True
        if any(build.plan is None for build in self._live):
            return True
        making = {(build.plan.dataset, build.plan.spec.fingerprint) for build in self._live if build.plan}
        return bool(making) and self._fingerprints.get(set_id) in (None, *making)

    def _bank(self, path: Path) -> Leftover | None:
        name = path.name
        if name.startswith(STAGING_PREFIX):
            idle_h = max(self._grace_h, WRITER_IDLE_H)
            return self._leftover(
                "staging", path, last_change(path), idle_h, what="a bank half written", why="its writer ended"
            )
        if not is_digest(name) or name in self._needed.banks:
            return None
        try:
            what = self._store.open_bank(name).title
        except EmbedstoreError:
            what = "a bank"
        since, why = self._dropped.get(name, (0.0, "never committed"))
        since = max(since, path.stat().st_mtime)
        return self._leftover("bank", path, since, self._grace_h, what=what, why=why)

    def _manifest(self, path: Path) -> Leftover | None:
        name = path.stem
        if not is_digest(name) or name in self._needed.manifests:
            return None
        what = self._titles.get(name, "a manifest")
        since, why = self._dropped.get(name, (0.0, "never committed"))
        if name in self._to_forget.manifests:
            return doomed("manifest", path, what=what, why=_FORGOTTEN)
        since = max(since, path.stat().st_mtime)
        if path.suffix == ".json" and path.with_suffix(".parquet").exists():
            return None  # goes with its manifest
        return self._leftover("manifest", path, since, self._grace_h, what=what, why=why)

    def _build(self, build: BuildState) -> Leftover | None:
        if build in self.unfinished or not build.folder.is_dir():
            return None
        why, least_h = "the rest of a build that ended", max(self._grace_h, WRITER_IDLE_H)
        if build.plan is not None:
            why, least_h = "its set has been built otherwise since", self._grace_h
        if build.is_current or build.is_damaged:
            why, least_h = "nobody went on with it", self._grace_h
        what = f"build of {build.title}, {len(build.receipts)} of {build.n_units} units done"
        return self._leftover("build", build.folder, last_change(build.folder), least_h, what=what, why=why)

    def _temporary(self, path: Path) -> Leftover | None:
        if path.name.startswith(TRASH_PREFIX):
            return doomed("trash", path, what="a removed folder", why="its removal was interrupted")
        if not path.name.startswith(TEMPORARY_PREFIX):
            return None
        least_h = max(self._grace_h, WRITER_IDLE_H)
        return self._leftover(
            "partial", path, path.stat().st_mtime, least_h, what="a file half written", why="its writer ended"
        )

    def _transfer(self, path: Path) -> Leftover | None:
        if not path.name.startswith(STAGING_PREFIX) or is_locked(path):
            return None
        least_h = max(self._grace_h, WRITER_IDLE_H)
        return self._leftover(
            "staging", path, last_change(path), least_h, what="a push or pull", why="nobody went on with it"
        )

    def leftovers(self) -> list[Leftover]:
        """Return all leftovers, in the order in which they are to be removed."""
        layout = self._layout
        found = [*self._each(self._set, layout.sets), *self._each(self._bank, layout.prompts)]
        # A manifest's file before its record: a record alone is nothing, a file without its record is damage.
        found += sorted(
            self._each(self._manifest, layout.manifests), key=lambda leftover: leftover.path.suffix != ".parquet"
        )
        for build in self._builds:
            try:
                leftover = self._build(build)
            except FileNotFoundError:
                continue
            found += [] if leftover is None else [leftover]
        found += self._each(self._transfer, layout.builds)
        kept = [build.folder for build in self.unfinished]
        inside = [folder for build in kept for folder in (build, build / "receipts", build / "units")]
        for folder in (layout.root, *layout.folders, layout.forgotten, *inside):
            found += self._each(self._temporary, folder)
        return found
