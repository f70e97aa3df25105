"""Put what came out of quarantine in its place in a store, where nobody looks for it until a commit lists it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from embedstore.disk import storage_errors
from embedstore.embedding_set import EmbeddingSet
from embedstore.files import create_file, hash_file, read_file
from embedstore.folders import rename_folder
from embedstore.history import ManifestEntry, SetEntry
from embedstore.json_files import seal_json
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.narrowed import write_narrowed
from embedstore.snapshot.parts import SentDataset, SentSet
from embedstore.snapshot.quarantine import Inspected, Quarantine
from embedstore.snapshot.received import RECEIVED_FILE
from embedstore.snapshot.signature import Signature
from embedstore.snapshot.staging import staging_folder, sync_folders
from embedstore.store import Store

__all__ = [
    "QuarantinedClips",
    "keep_document",
    "place_banks",
    "place_manifest",
    "place_set",
    "quarantined_clips",
]


@dataclass(frozen=True, kw_only=True)
class QuarantinedClips:
    """Clips of one set that were left out, because a vector of theirs is not finite.

    Attributes
    ----------
    dataset, encoder : str
    clips : tuple of str
        Ids, as they came in.
    """

    dataset: str
    encoder: str
    clips: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {**vars(self), "clips": list(self.clips)}


def place_set(store: Store, held: Quarantine, sent: SentSet, inspected: Inspected) -> SetEntry:
    """Move a set to its place; of a set of which something is left out, write the rest as a set of its own."""
    folder = held.folder / sent.folder
    clips_only, left_out = inspected.selection.clips_only, inspected.left_out.get(sent.folder, [])
    if clips_only or left_out:
        opened = EmbeddingSet.open(folder, set_id=sent.set_id)
        return replace(sent.entry, set_id=write_narrowed(store, opened, clips_only=clips_only, left_out=left_out))
    target = store.layout.set_folder(sent.set_id)
    if not target.exists():
        sync_folders(folder)
        rename_folder(folder, target)
    return sent.entry


def quarantined_clips(held: Quarantine, inspected: Inspected) -> list[QuarantinedClips]:
    """Return the clips that are left out because of their vectors."""
    found = []
    for sent in inspected.snapshot.sets_of(inspected.selection):
        rows = inspected.left_out.get(sent.folder)
        if rows:
            ids = EmbeddingSet.open(held.folder / sent.folder, set_id=sent.set_id).index.column("clip_id")
            clips = tuple(ids.take(pa.array(rows, pa.int64())).to_pylist())
            found.append(QuarantinedClips(dataset=sent.dataset, encoder=sent.title, clips=clips))
    return found


def place_manifest(store: Store, held: Quarantine, dataset: SentDataset) -> ManifestEntry:
    """Put a manifest under its id, in the bytes in which it came."""
    source = held.folder / dataset.manifest_path
    path, record = store.layout.manifest_file(dataset.manifest_id), store.layout.manifest_record(dataset.manifest_id)
    head = {"manifest": dataset.manifest_id}
    if not path.exists():
        create_file(record, seal_json({**head, **vars(hash_file(source))}))
        create_file(path, read_file(source, max_bytes=2 << 30))
    return dataset.entry


def place_banks(store: Store, held: Quarantine, inspected: Inspected) -> list[str]:
    present = {file.path for file in inspected.snapshot.select(inspected.selection)}
    placed = []
    for part in inspected.snapshot.prompts:
        if not any(path.startswith(f"{part.folder}/") for path in present):
            continue
        target = store.layout.bank_folder(part.id)
        if not target.exists():
            sync_folders(held.folder / part.folder)
            rename_folder(held.folder / part.folder, target)
        placed.append(part.id)
    return placed


def keep_document(store: Store, snapshot: SentSnapshot, signature: Signature | None) -> None:
    """Keep the document under its id: what it says of licences and ids goes on to bind."""
    target = store.layout.imports / snapshot.id
    if (target / RECEIVED_FILE).exists():
        return
    with storage_errors(target, "write"):
        store.layout.imports.mkdir(exist_ok=True)
    note = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "signed_by": None if signature is None else signature.signer,
        "key": None if signature is None else signature.fingerprint,
    }
    with staging_folder(target) as folder:
        create_file(folder / DOCUMENT_FILE, snapshot.to_bytes())
        create_file(folder / RECEIVED_FILE, seal_json(note))
        rename_folder(folder, target)
