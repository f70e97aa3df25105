"""What a store received from others: the documents of imported snapshots, and what follows from them.

``imports/<id>/manifest.json`` is the document as it came, under its own id; beside it ``received.json`` says when and
by whom it was signed. They bind: a licence, a permission, a pseudonym that came in with a set goes out with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError
from embedstore.json_files import read_sealed_json
from embedstore.layout import StoreLayout, is_digest
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.parts import SentDataset, SentSet
from embedstore.snapshot.policy import strictest

__all__ = ["RECEIVED_FILE", "Received", "read_received"]

RECEIVED_FILE = "received.json"


@dataclass(frozen=True)
class Received:
    """All imports of a store, oldest first where they are of one lineage.

    Attributes
    ----------
    snapshots : tuple of SentSnapshot
    notes : tuple of dict
        ``received.json`` of each: ``time``, ``signed_by``.
    """

    snapshots: tuple[SentSnapshot, ...] = ()
    notes: tuple[dict[str, Any], ...] = ()

    def of_set(self, set_id: str) -> tuple[SentSet, SentSnapshot] | None:
        """Return how a set came in, None where it was made here."""
        for snapshot in self.snapshots:
            for entry in snapshot.sets:
                if entry.set_id == set_id:
                    return entry, snapshot
        return None

    def of_dataset(self, name: str, media_digest: str) -> list[tuple[SentDataset, SentSnapshot]]:
        """Return the imports whose manifest has these clips and media facts, whatever labels were added since."""
        return [
            (dataset, snapshot)
            for snapshot in self.snapshots
            for dataset in snapshot.datasets
            if (dataset.name, dataset.media_digest) == (name, media_digest)
        ]

    def binding(self, name: str, set_ids: Iterable[str]) -> list[SentDataset]:
        """Return what imports say of a data set from which one of these sets came, or which has this name."""
        wanted = set(set_ids)
        return [
            dataset
            for snapshot in self.snapshots
            for dataset in snapshot.datasets
            if dataset.name == name
            or any(entry.dataset == dataset.name and entry.set_id in wanted for entry in snapshot.sets)
        ]

    def redistribution(self, name: str, set_ids: Iterable[str], own: str) -> str:
        """Return the strictest word on a data set: the store's own and those that came in with its sets."""
        return strictest([own, *(dataset.redistribution for dataset in self.binding(name, set_ids))])


def read_received(layout: StoreLayout) -> Received:
    """Return what a store received.

    Raises
    ------
    CorruptionError
        A document is not what was received.
    """
    if not layout.imports.is_dir():
        return Received()
    with storage_errors(layout.imports, "read"):
        names = sorted(entry.name for entry in os.scandir(layout.imports) if is_digest(entry.name))
    found: list[tuple[SentSnapshot, dict[str, Any]]] = []
    for name in names:
        snapshot = SentSnapshot.read(layout.imports / name)
        if snapshot.id != name:
            raise CorruptionError(f"{layout.imports / name / DOCUMENT_FILE} is not what was received")
        found.append((snapshot, read_sealed_json(layout.imports / name / RECEIVED_FILE)))
    found.sort(key=lambda pair: (pair[0].source, pair[0].version, pair[0].id))
    return Received(tuple(snapshot for snapshot, _ in found), tuple(note for _, note in found))
