"""What a store still needs: the sets and manifests that its head and its tags list, and what was forgotten for ever.

``forgotten/NNNNNN.json`` says which sets and manifests held a patient who was removed, and which tags lost them by
that. The record is written before anything is removed, so that an interrupted removal is finished by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from embedstore.errors import CorruptionError
from embedstore.files import create_file, read_sealed_json, seal_json, storage_errors
from embedstore.layout import log_number
from embedstore.snapshot.tags import Tag, list_tags
from embedstore.store import Store

__all__ = ["Forgotten", "Needed", "add_forgotten", "needed", "read_forgotten"]


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """Sets and manifests that were removed for ever, and the tags that do not keep them."""

    sets: frozenset[str]
    manifests: frozenset[str]
    tags: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Needed:
    """Ids of the sets and manifests that must stay."""

    sets: frozenset[str]
    manifests: frozenset[str]


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
            records.append(Forgotten(**{key: frozenset(described[key]) for key in ("sets", "manifests", "tags")}))
        except (KeyError, TypeError) as error:
            raise CorruptionError(f"{path} is no record of what was forgotten: {error}") from error
    return records


def add_forgotten(store: Store, *, sets: Iterable[str], manifests: Iterable[str], tags: Iterable[str]) -> None:
    """Write one record; its ids are digests, it holds no clip and no patient."""
    document = seal_json({"sets": sorted(sets), "manifests": sorted(manifests), "tags": sorted(tags)})
    with storage_errors(store.layout.forgotten, "write"):
        store.layout.forgotten.mkdir(exist_ok=True)
    number = max(_record_numbers(store), default=0) + 1
    while not create_file(store.layout.forgotten_record(number), document):
        number += 1


def needed(store: Store, *, tags: Collection[Tag] | None = None) -> Needed:
    """Return what the head and the tags list, less what a tag lost because a patient was forgotten."""
    head = store.snapshot()
    sets = {entry.set_id for entry in head.sets}
    manifests = {entry.manifest_id for entry in head.manifests}
    records = read_forgotten(store)
    for tag in list_tags(store) if tags is None else tags:
        tagged = store.snapshot(tag.snapshot_id)
        lost = [record for record in records if tag.name in record.tags]
        gone = frozenset().union(*(record.sets | record.manifests for record in lost))
        sets |= {entry.set_id for entry in tagged.sets} - gone
        manifests |= {entry.manifest_id for entry in tagged.manifests} - gone
    return Needed(sets=frozenset(sets), manifests=frozenset(manifests))
