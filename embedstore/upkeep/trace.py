"""Where a patient stands in a store: in which manifests, with which clips, in which sets of any snapshot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from embedstore.errors import AmbiguousNameError, UnknownNameError, did_you_mean
from embedstore.layout import is_digest
from embedstore.manifest import Manifest
from embedstore.store import Store
from embedstore.upkeep.leftovers import entries_of
from embedstore.upkeep.rewrite import holds_any

__all__ = ["Trace", "trace_patient"]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Where a patient stands.

    Attributes
    ----------
    clips : mapping of str to frozenset of str
        The patient's clip ids, by data set.
    manifests, sets : mapping of str to str
        Id to what it is, of all in the store that hold the patient.
    """

    clips: Mapping[str, frozenset[str]] = field(default_factory=dict)
    manifests: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)


def _stored_manifests(store: Store) -> dict[str, Manifest]:
    """Return every manifest in the store by id, the newest first: by the log's order, then those that none lists."""
    ordered: dict[str, None] = {}
    for entry in store.log():
        if store.layout.snapshot_file(entry.snapshot_id).exists():
            ordered.update(dict.fromkeys(m.manifest_id for m in store.snapshot(entry.snapshot_id).manifests))
    on_disk = sorted(path.stem for path in store.layout.manifests.glob("*.parquet") if is_digest(path.stem))
    names = [name for name in ordered if name in set(on_disk)] + [name for name in on_disk if name not in ordered]
    return {name: Manifest.read(store.layout.manifest_file(name)) for name in names}


def _clips_of(manifests: Collection[Manifest], patient_id: str) -> dict[str, frozenset[str]]:
    """Return the patient's clips by data set; whose a clip is, the newest manifest that has it says."""
    owners: dict[str, dict[str, str]] = {}
    named: set[str] = set()
    for manifest in manifests:
        owner_of = owners.setdefault(manifest.name, {})
        for clip_id, patient in zip(manifest.clip_ids, manifest.patients, strict=True):
            owner_of.setdefault(clip_id, patient)
            if patient == patient_id:
                named.add(manifest.name)
    return {
        name: frozenset(clip_id for clip_id, patient in owners[name].items() if patient == patient_id)
        for name in sorted(named)
    }


def trace_patient(
    store: Store, patient_id: str, *, datasets: Collection[str] = (), allow_none: bool = False
) -> Trace:
    """Find a patient in every manifest and set of the store, those of earlier snapshots included.

    Parameters
    ----------
    datasets : collection of str
        Data sets to look in; without, the patient may stand in one only.
    allow_none : bool
        Return an empty trace where the patient is not found.

    Raises
    ------
    UnknownNameError
        No manifest has the patient, or no manifest is called like one of ``datasets``.
    AmbiguousNameError
        Several data sets have such a patient.
    CorruptionError, FormatError
        A manifest or set cannot be read, so that nobody can tell whom it holds.
    """
    stored = _stored_manifests(store)
    known = sorted({manifest.name for manifest in stored.values()})
    for name in datasets:
        if name not in known and not allow_none:
            raise UnknownNameError(f"the store has no manifest {name!r}{did_you_mean(name, known)}")
    clips = _clips_of(list(stored.values()), patient_id)
    if datasets:
        clips = {name: clip_ids for name, clip_ids in clips.items() if name in datasets}
    elif len(clips) > 1:
        listed = ", ".join(f"{name} ({len(clip_ids)} clips)" for name, clip_ids in clips.items())
        raise AmbiguousNameError(
            f"several data sets have a patient {patient_id!r}: {listed}; say which with --dataset, once for each"
        )
    if not clips and not allow_none:
        where = f"manifest {', '.join(datasets)}" if datasets else "manifest of the store"
        raise UnknownNameError(f"no {where} has a patient {patient_id!r}")
    manifests = {
        manifest_id: f"manifest {manifest.name}"
        for manifest_id, manifest in stored.items()
        if manifest.name in clips
        and (patient_id in set(manifest.patients) or not clips[manifest.name].isdisjoint(manifest.clip_ids))
    }
    return Trace(clips=clips, manifests=manifests, sets=_sets_with(store, clips))


def _sets_with(store: Store, clips: Mapping[str, frozenset[str]]) -> dict[str, str]:
    found = {}
    for folder in entries_of(store.layout.sets):
        if not is_digest(folder.name):
            continue
        opened = store.open_set(folder.name)
        clip_ids = clips.get(opened.dataset)
        if clip_ids and holds_any(opened, clip_ids):
            found[folder.name] = f"{opened.spec.title} on {opened.dataset}"
    return found
