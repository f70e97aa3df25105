"""Forget a patient: a new snapshot without the patient's rows, then removal of all that still holds them.

Every set and manifest that holds a clip of the patient goes, whichever snapshot or tag lists it; a tag stays as a
name. Vectors of other patients are written again bit for bit. Out of reach are what was sent elsewhere, manifest
files outside the store, backups and the blocks of the disk; adding a manifest that has the patient brings them back.

The order of steps leaves a sound store wherever it is cut off, and the same command goes on from there: write the
sets without the patient, commit them, record what must go, remove sets and builds, and at last the manifests, which
say whose the clips are. No id of a clip or patient enters the log or a record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from embedstore.errors import BusyError
from embedstore.files import TEMPORARY_PREFIX
from embedstore.history import ManifestEntry, SetEntry, Snapshot
from embedstore.layout import STAGING_PREFIX, TRASH_PREFIX
from embedstore.locks import is_locked
from embedstore.manifest import Manifest
from embedstore.snapshot.disclosure import SentCopy, sent_copies
from embedstore.snapshot.pseudonyms import Kind, forget_names
from embedstore.snapshot.references import add_forgotten, to_forget
from embedstore.snapshot.tags import list_tags
from embedstore.store import Store
from embedstore.upkeep.builds import BuildState, read_builds, refuse_live_builds
from embedstore.upkeep.gc import sweep
from embedstore.upkeep.leftovers import WRITER_IDLE_H, Leftover, doomed, entries_of, freed_bytes, last_change
from embedstore.upkeep.rewrite import holds_any, write_without
from embedstore.upkeep.trace import Trace, trace_patient

__all__ = ["ForgetOutcome", "HeldSnapshot", "forget_patient"]

_WHY = "holds the patient"
_ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class HeldSnapshot:
    """A snapshot that held the patient: its log number, its id, the tags that name it."""

    number: int
    snapshot_id: str
    tags: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {"number": self.number, "snapshot": self.snapshot_id, "tags": list(self.tags)}


@dataclass(kw_only=True)
class ForgetOutcome:
    """What forgetting took away, or would.

    Attributes
    ----------
    is_dry : bool
    n_clips : mapping of str to int
        Clips of the patient, by data set.
    sets, manifests : mapping of str to str
        Those of any snapshot that held the patient: id to what it is.
    rewritten : dict of str to (str or None)
        Sets of the head, by id: the set in their place, None where nothing was left.
    builds : list of BuildState
        Unfinished builds that go, with the units that they finished.
    snapshots : list of HeldSnapshot
        Newest first; they can be listed but not restored afterwards.
    n_bytes_freed : int
    sent : list of SentCopy
        Snapshots with the patient that were sent to others, whom only a letter reaches.
    """

    is_dry: bool
    n_clips: Mapping[str, int] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    manifests: Mapping[str, str] = field(default_factory=dict)
    rewritten: dict[str, str | None] = field(default_factory=dict)
    builds: list[BuildState] = field(default_factory=list)
    snapshots: list[HeldSnapshot] = field(default_factory=list)
    n_bytes_freed: int = 0
    sent: list[SentCopy] = field(default_factory=list)

    @property
    def tags(self) -> list[str]:
        """Tags whose snapshots held the patient."""
        return sorted({tag for snapshot in self.snapshots for tag in snapshot.tags})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "dry_run": self.is_dry,
            "clips": dict(self.n_clips),
            "sets": [{"set": set_id, "what": what} for set_id, what in self.sets.items()],
            "manifests": [{"manifest": manifest_id, "what": what} for manifest_id, what in self.manifests.items()],
            "rewritten": [{"set": old, "new_set": new} for old, new in self.rewritten.items()],
            "builds": [
                {"build": build.key, "what": build.title, "units_done": len(build.receipts)} for build in self.builds
            ],
            "snapshots": [snapshot.to_dict() for snapshot in self.snapshots],
            "tags": self.tags,
            "bytes": self.n_bytes_freed,
            "sent": [copy.to_dict() for copy in self.sent],
        }


def _builds_with(store: Store, trace: Trace) -> list[BuildState]:
    """Return the builds that hold clips of the patient, and rests of builds, of which nobody can tell."""
    found = []
    for build in read_builds(store):
        if build.plan is None:
            if not build.is_live or build.folder.is_dir():
                found.append(build)
            continue
        clip_ids = trace.clips.get(build.plan.dataset, frozenset())
        if any(clip.clip_id in clip_ids for clip in build.plan.clips):
            found.append(build)
    return found


def _refuse_busy(store: Store, trace: Trace) -> None:
    """Raise where a build of this host would bring the patient back, or would miss a set that goes."""
    live = [build for build in read_builds(store) if build.is_live]
    concerned = [
        build
        for build in live
        if build.plan is None or build.plan.dataset in trace.clips or build.needs & set(trace.sets)
    ]
    refuse_live_builds(concerned, doing="forget the patient")


def _unfinished(store: Store) -> tuple[list[str], list[str]]:
    """Return the sets and manifests that an earlier forgetting left behind when it was cut off."""
    names, layout = to_forget(store), store.layout
    sets = [name for name in sorted(names.sets) if layout.set_folder(name).exists()]
    # The record of a manifest goes after its file.
    return sets, [name for name in sorted(names.manifests) if layout.manifest_record(name).exists()]


def _temporaries(store: Store, now: float) -> list[Leftover]:
    """Return what writers that ended left behind: anything of the patient may be in it."""
    layout = store.layout
    is_building = any(build.is_live for build in read_builds(store))
    found = []
    for path in entries_of(layout.sets):
        if path.name.startswith(STAGING_PREFIX):
            if is_building and (now - last_change(path)) / 3600 < WRITER_IDLE_H:
                raise BusyError(
                    "a set is being written on this machine and may hold the patient; forget the patient when the "
                    "build has ended"
                )
            found.append(doomed("staging", path, what="a set half written", why="may hold the patient"))
    for path in entries_of(layout.builds):
        if path.name.startswith(STAGING_PREFIX):
            if is_locked(path):
                raise BusyError(
                    "a snapshot is being pushed or pulled here and may hold the patient; forget the patient "
                    "when that has ended"
                )
            found.append(doomed("staging", path, what="a push or pull", why="may hold the patient"))
    for folder, prefix in (
        (layout.sets, TRASH_PREFIX),
        (layout.builds, TRASH_PREFIX),
        (layout.manifests, TEMPORARY_PREFIX),
        (layout.builds, TEMPORARY_PREFIX),
    ):
        for path in entries_of(folder):
            if path.name.startswith(prefix):
                kind = "trash" if prefix == TRASH_PREFIX else "partial"
                found.append(doomed(kind, path, what="a leftover", why="may hold the patient"))
    return found


def _vectors(store: Store, trace: Trace) -> list[Leftover]:
    """Return the builds and sets that must go."""
    layout = store.layout
    sets = {**dict.fromkeys(_unfinished(store)[0], "a set"), **trace.sets}
    found = [
        doomed("build", build.folder, what=f"build of {build.title}", why=_WHY)
        for build in _builds_with(store, trace)
        if build.folder.is_dir()
    ]
    return found + [doomed("set", layout.set_folder(name), what=what, why=_WHY) for name, what in sets.items()]


def _manifests(store: Store, trace: Trace) -> list[Leftover]:
    """Return the manifests that must go."""
    names = {**dict.fromkeys(_unfinished(store)[1], "a manifest"), **trace.manifests}
    return [doomed("manifest", store.layout.manifest_file(name), what=what, why=_WHY) for name, what in names.items()]


def _snapshots_with(store: Store, ids: Collection[str]) -> list[HeldSnapshot]:
    """Return the snapshots of the log and of tags that list one of these sets or manifests, newest first."""
    tags: dict[str, list[str]] = {}
    for tag in list_tags(store):
        tags.setdefault(tag.snapshot_id, []).append(tag.name)
    listing: dict[str, bool] = {}
    found = []
    for entry in store.log():
        if entry.snapshot_id not in listing:
            listing[entry.snapshot_id] = False
            if store.layout.snapshot_file(entry.snapshot_id).exists():
                snapshot = store.snapshot(entry.snapshot_id)
                listed = {e.set_id for e in snapshot.sets} | {e.manifest_id for e in snapshot.manifests}
                listing[entry.snapshot_id] = not listed.isdisjoint(ids)
        if listing[entry.snapshot_id]:
            named = tuple(sorted(tags.get(entry.snapshot_id, ())))
            found.append(HeldSnapshot(number=entry.number, snapshot_id=entry.snapshot_id, tags=named))
    return found


def _leave_out(store: Store, trace: Trace, written: dict[str, str | None]) -> Callable[[Snapshot], Snapshot]:
    """Return the change of the head: sets and manifests without the patient; ``written`` gathers the new sets."""

    def without(entry: SetEntry) -> SetEntry | None:
        clip_ids = trace.clips.get(entry.dataset, frozenset())
        if not clip_ids:
            return entry
        if entry.set_id not in written:
            opened = store.open_set(entry.set_id)
            if not holds_any(opened, clip_ids):
                return entry
            written[entry.set_id] = write_without(store, opened, clip_ids)
        new = written[entry.set_id]
        return None if new is None else replace(entry, set_id=new)

    def manifest_without(entry: ManifestEntry) -> ManifestEntry | None:
        clip_ids = trace.clips.get(entry.name, frozenset())
        if not clip_ids:
            return entry
        manifest = store.open_manifest(entry)
        keep = [clip_id not in clip_ids for clip_id in manifest.clip_ids]
        if all(keep):
            return entry
        return store.put_manifest(manifest.with_rows(keep)) if any(keep) else None

    def change(head: Snapshot) -> Snapshot:
        sets = [without(entry) for entry in head.sets]
        manifests = [manifest_without(entry) for entry in head.manifests]
        return replace(
            head,
            sets=tuple(sorted(entry for entry in sets if entry is not None)),
            manifests=tuple(sorted(entry for entry in manifests if entry is not None)),
        )

    return change


def _studies(store: Store, trace: Trace) -> dict[str, set[str]]:
    """Return the studies that hold the patient's clips, by data set."""
    found: dict[str, set[str]] = {name: set() for name in trace.clips}
    for manifest_id in trace.manifests:
        manifest = Manifest.read(store.layout.manifest_file(manifest_id))
        for clip_id, study in zip(manifest.clip_ids, manifest.column("study_id"), strict=True):
            if study is not None and clip_id in trace.clips[manifest.name]:
                found[manifest.name].add(study)
    return found


class _Forgetting:
    """One run: what is known of the patient is looked up again whenever others may have committed."""

    def __init__(self, store: Store, patient_id: str, datasets: Collection[str]) -> None:
        self._store, self._patient_id, self._datasets = store, patient_id, datasets
        self._trace = trace_patient(store, patient_id, datasets=datasets, allow_none=any(_unfinished(store)))
        self._n_going = 0
        self._is_back = False

    def _look_again(self) -> None:
        """Look the patient up again, and whether the head holds them once more."""
        self._trace = trace_patient(self._store, self._patient_id, datasets=self._datasets, allow_none=True)
        head = self._store.snapshot()
        listed = {entry.set_id for entry in head.sets} | {entry.manifest_id for entry in head.manifests}
        self._is_back = not listed.isdisjoint({*self._trace.sets, *self._trace.manifests})

    def _choose_vectors(self, now: float) -> list[Leftover]:
        self._look_again()
        if self._is_back:
            return []
        trace = self._trace
        _refuse_busy(self._store, trace)
        going = _vectors(self._store, trace) + _temporaries(self._store, now)
        if trace.sets or trace.manifests:
            held = _snapshots_with(self._store, {*trace.sets, *trace.manifests})
            tags = {tag for snapshot in held for tag in snapshot.tags}
            add_forgotten(self._store, sets=trace.sets, manifests=trace.manifests, tags=tags)
        self._n_going = len(going)
        return going

    def _choose_manifests(self, now: float) -> list[Leftover]:
        self._look_again()
        return [] if self._is_back else _manifests(self._store, self._trace)

    def run(self, *, apply: bool) -> ForgetOutcome:
        store, trace = self._store, self._trace
        outcome = ForgetOutcome(
            is_dry=not apply,
            n_clips={name: len(clip_ids) for name, clip_ids in trace.clips.items()},
            sets=trace.sets,
            manifests=trace.manifests,
            builds=_builds_with(store, trace),
            snapshots=_snapshots_with(store, {*trace.sets, *trace.manifests}),
            n_bytes_freed=freed_bytes(_vectors(store, trace) + _manifests(store, trace)),
            sent=sent_copies(store, self._patient_id, datasets=trace.clips, ids={*trace.sets, *trace.manifests}),
        )
        studies = _studies(store, trace)
        if not apply:
            return outcome
        for _ in range(_ATTEMPTS):
            _refuse_busy(store, self._trace)
            with store.publishing():
                store.commit(_leave_out(store, self._trace, outcome.rewritten), reason="forget-patient")
            gone = sweep(store, choose=self._choose_vectors)
            if len(gone) < self._n_going:
                raise BusyError("a build of this store began meanwhile; run the same command again when it has ended")
            if not self._is_back:
                sweep(store, choose=self._choose_manifests)
            if not self._is_back:
                for dataset, clip_ids in trace.clips.items():
                    originals: dict[Kind, Collection[str]] = {
                        "patient": [self._patient_id],
                        "study": studies[dataset],
                        "clip": clip_ids,
                    }
                    forget_names(store.layout, dataset, originals)
                return outcome
        raise BusyError("other processes commit the patient again and again; stop them and run the same command")


def forget_patient(
    store: Store, patient_id: str, *, datasets: Collection[str] = (), apply: bool = False
) -> ForgetOutcome:
    """Remove a patient's clips from the store, or list what that takes.

    Parameters
    ----------
    patient_id : str
        As the manifests have it; ``clip:ID`` for a clip without a known patient.
    datasets : collection of str
        Data sets to look in; without, the patient may stand in one only, since the same id in two data sets is
        usually not the same person.
    apply : bool
        Remove; otherwise nothing is touched.

    Raises
    ------
    UnknownNameError
        No manifest of the store has the patient, or the data set is not known.
    AmbiguousNameError
        Several data sets have such a patient, and none was named.
    BusyError
        A build on this machine makes or needs a set with the patient.
    """
    return _Forgetting(store, patient_id, datasets).run(apply=apply)
