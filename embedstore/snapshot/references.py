"""What a store still needs: what its head and its tags list, and what was forgotten for ever.

``forgotten/NNNNNN.json`` says which sets and manifests held a patient who was removed, which tags lost them by that,
and how far the log had come. The record is written before anything is removed, so that an interrupted removal is
finished by the next one. What a later commit lists again is an ordinary set or manifest.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError
from embedstore.files import create_file
from embedstore.json_files import read_sealed_json, seal_json
from embedstore.layout import log_number
from embedstore.snapshot.tags import Tag, list_tags
from embedstore.store import Store

__all__ = ["Forgotten", "SetsAndManifests", "add_forgotten", "needed", "read_forgotten", "to_forget"]


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """Sets and manifests that were removed for ever after a commit, and the tags that do not keep them."""

    commit: int
    sets: frozenset[str]
    manifests: frozenset[str]
    tags: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class SetsAndManifests:
    """Ids of sets, of manifests and, where they can be meant, of banks."""

    sets: frozenset[str]
    manifests: frozenset[str]
    banks: frozenset[str] = frozenset()


def _record_numbers(store: Store) -> list[int]:
    folder = store.layout.forgotten
    if not folder.is_dir():
        return []
    with storage_errors(folder, "read"):
        numbers = [log_number(entry.name) for entry in os.scandir(folder)]
    return sorted(number for number in numbers if number is not None)


def read_forgotten(store: Store) -> list[Forgotten]:
    """Return the records of what was forgotten, oldest first.

    Raises
    ------
    CorruptionError
        A record is not what was written.
    """
    records = []
    for number in _record_numbers(store):
        path = store.layout.forgotten_record(number)
        described = read_sealed_json(path, max_bytes=64 << 20)
        try:
            ids = {key: frozenset(described[key]) for key in ("sets", "manifests", "tags")}
            records.append(Forgotten(commit=int(described["commit"]), **ids))
        except (KeyError, TypeError) as error:
            raise CorruptionError(f"{path} is no record of what was forgotten: {error}") from error
    return records


def add_forgotten(store: Store, *, sets: Iterable[str], manifests: Iterable[str], tags: Iterable[str]) -> None:
    """Write one record; its ids are digests, it holds no clip and no patient."""
    reached = max((entry.number for entry in store.log()), default=0)
    document = seal_json(
        {"commit": reached, "sets": sorted(sets), "manifests": sorted(manifests), "tags": sorted(tags)}
    )
    with storage_errors(store.layout.forgotten, "write"):
        store.layout.forgotten.mkdir(exist_ok=True)
    number = max(_record_numbers(store), default=0) + 1
    while not create_file(store.layout.forgotten_record(number), document):
        number += 1


def _last_listed(store: Store) -> dict[str, int]:
    """Return the last commit that lists each set and manifest."""
    listed: dict[str, int] = {}
    for entry in reversed(store.log()):
        if store.layout.snapshot_file(entry.snapshot_id).exists():
            snapshot = store.snapshot(entry.snapshot_id)
            names = [s.set_id for s in snapshot.sets] + [m.manifest_id for m in snapshot.manifests]
            listed.update(dict.fromkeys(names, entry.number))
    return listed


def to_forget(store: Store) -> SetsAndManifests:
    """Return what must go whatever its age, where it is still there: what was forgotten and not listed since."""
    records = read_forgotten(store)
    listed = _last_listed(store) if records else {}
    return SetsAndManifests(
        sets=frozenset(name for record in records for name in record.sets if listed.get(name, 0) <= record.commit),
        manifests=frozenset(
            name for record in records for name in record.manifests if listed.get(name, 0) <= record.commit
        ),
    )


def needed(store: Store, *, tags: Collection[Tag] | None = None) -> SetsAndManifests:
    """Return what the head and the tags list, less what a tag lost because a patient was forgotten."""
    head = store.snapshot()
    sets = {entry.set_id for entry in head.sets}
    manifests = {entry.manifest_id for entry in head.manifests}
    banks = set(head.prompts)
    records = read_forgotten(store)
    for tag in list_tags(store) if tags is None else tags:
        tagged = store.snapshot(tag.snapshot_id)
        lost = [record for record in records if tag.name in record.tags]
        gone = frozenset().union(*(record.sets | record.manifests for record in lost))
        sets |= {entry.set_id for entry in tagged.sets} - gone
        manifests |= {entry.manifest_id for entry in tagged.manifests} - gone
        banks |= {*tagged.prompts}
    return SetsAndManifests(sets=frozenset(sets), manifests=frozenset(manifests), banks=frozenset(banks))
