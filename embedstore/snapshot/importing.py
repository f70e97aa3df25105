"""Import: take a snapshot that was inspected into a store, whole or not at all.

Sets, manifests and banks are moved from quarantine to their places, where nobody looks for them yet; the document is
kept; and one commit makes all of it the head's. Nothing that is there is ever overwritten: a set or manifest of the
same name and another content is a conflict, unless it came from the same sender before.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedstore.errors import ContentError, PolicyError, UnknownNameError
from embedstore.given_paths import settle_paths
from embedstore.history import SetEntry, Snapshot
from embedstore.manifest import Manifest
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.narrowed import NARROWED_FROM
from embedstore.snapshot.parts import SentDataset
from embedstore.snapshot.placing import (
    QuarantinedClips,
    keep_document,
    place_banks,
    place_manifest,
    place_set,
    quarantined_clips,
)
from embedstore.snapshot.quarantine import Inspected, Quarantine, quarantine
from embedstore.snapshot.received import Received, read_received
from embedstore.snapshot.selection import Selection, read_partial
from embedstore.snapshot.signature import Signature, check_signature, read_signature
from embedstore.store import Store

__all__ = ["ImportOutcome", "ImportRequest", "QuarantinedClips", "import_snapshot", "take_in"]


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What the user asked for.

    Attributes
    ----------
    selection : Selection
        What to take of the snapshot.
    pinned_id : str or None
        The only id that is accepted.
    signer_key : Path, str or None
        A public key, or a file of allowed signers, one of which must have signed.
    allow_rollback : bool
        Accept an older snapshot of a sender of whom a newer one was imported.
    quarantine_rows : bool
        Leave clips out of which a vector is not finite, instead of refusing the snapshot.
    """

    selection: Selection = field(default_factory=Selection)
    pinned_id: str | None = None
    signer_key: Path | None = None
    allow_rollback: bool = False
    quarantine_rows: bool = False

    def __post_init__(self) -> None:
        settle_paths(self, "signer_key")


@dataclass(frozen=True, kw_only=True)
class ImportOutcome:
    """What was imported.

    Attributes
    ----------
    snapshot : SentSnapshot
    selection : Selection
    signature : Signature or None
    store_snapshot : str
        Id of the head afterwards.
    sets : tuple of str
        Ids of the sets, as they stand in the store.
    kept_manifests : tuple of str
        Data sets for which the store kept its own manifest.
    quarantined : tuple of QuarantinedClips
    notes : tuple of str
    """

    snapshot: SentSnapshot
    selection: Selection
    signature: Signature | None
    store_snapshot: str
    sets: tuple[str, ...]
    kept_manifests: tuple[str, ...] = ()
    quarantined: tuple[QuarantinedClips, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def trust(self) -> str:
        """``intact, unsigned`` or ``intact, signed by ...``."""
        return "intact, unsigned" if self.signature is None else f"intact, {self.signature.words}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "snapshot": self.snapshot.id,
            "trust": self.trust,
            "signed_by": None if self.signature is None else self.signature.signer,
            "store_snapshot": self.store_snapshot,
            "sets": list(self.sets),
            "datasets": sorted({entry.dataset for entry in self.snapshot.sets_of(self.selection)}),
            "kept_manifests": list(self.kept_manifests),
            "partial": not self.selection.is_whole,
            "quarantined": [entry.to_dict() for entry in self.quarantined],
            "notes": list(self.notes),
        }


def import_snapshot(
    store: Store, source: str | Path, request: ImportRequest | None = None, *, in_place: bool = False
) -> ImportOutcome:
    """Import a snapshot from a folder or an archive.

    Parameters
    ----------
    in_place : bool
        The source is a hidden folder of this store, which a transfer just filled, each file proven by its digest:
        it is inspected where it lies, and what is taken is moved out of it.

    Raises
    ------
    ContentError
        It breaks a rule, is not the pinned one, conflicts with the store, or is older than what was imported before.
    UnknownNameError
        There is nothing at ``source``, or it has no such data set or encoder.
    """
    asked, source = request or ImportRequest(), Path(source)
    if not source.exists():
        raise UnknownNameError(f"there is no snapshot at {source}")
    present = _present_part(source)
    selection = asked.selection if present.is_whole else _narrowed(asked.selection, present)
    with nullcontext(Quarantine(source)) if in_place else quarantine(store) as held:
        inspected = held.inspect(
            None if in_place else source,
            selection=selection,
            is_partial=not present.is_whole,
            quarantine_rows=asked.quarantine_rows,
        )
        signature = read_signature(source)
        return take_in(store, held, inspected, asked, signature=signature)


def _present_part(source: Path) -> Selection:
    if not source.is_dir() or not (source / DOCUMENT_FILE).is_file():
        return Selection()
    return read_partial(source, SentSnapshot.read(source).id)


def _narrowed(wanted: Selection, present: Selection) -> Selection:
    return Selection(
        datasets=wanted.datasets or present.datasets,
        encoders=wanted.encoders or present.encoders,
        clips_only=wanted.clips_only or present.clips_only,
    )


def take_in(
    store: Store, held: Quarantine, inspected: Inspected, request: ImportRequest, *, signature: bytes | None
) -> ImportOutcome:
    """Take an inspected snapshot into the store.

    Parameters
    ----------
    signature : bytes or None
        The signature that came with it.

    Raises
    ------
    ContentError
        As in `import_snapshot`.
    """
    snapshot = inspected.snapshot
    if request.pinned_id is not None and not snapshot.id.startswith(request.pinned_id):
        raise PolicyError(f"the snapshot is {snapshot.id}, not {request.pinned_id}, which was asked for")
    signed = check_signature(snapshot.to_bytes(), signature, key=request.signer_key)
    received = read_received(store.layout)
    _refuse_other_signer(snapshot, received, signed)
    if not request.allow_rollback:
        _refuse_rollback(store, snapshot, received)
    sets = snapshot.sets_of(inspected.selection)
    with store.publishing():
        head = store.snapshot()
        quarantined = quarantined_clips(held, inspected)
        kept = tuple(d.name for d in _wanted(inspected) if _keeps_own(store, held, head, d, inspected, received))
        there = {entry.set_id for entry in head.sets}
        entries = [
            entry.entry if entry.set_id in there else place_set(store, held, entry, inspected) for entry in sets
        ]
        _refuse_conflicts(store, head, entries, snapshot, received)
        manifests = [place_manifest(store, held, d) for d in _wanted(inspected) if d.name not in kept]
        banks = place_banks(store, held, inspected)
        keep_document(store, snapshot, signed)

        def change(before: Snapshot) -> Snapshot:
            _refuse_conflicts(store, before, entries, snapshot, received)
            after = before
            for entry in entries:
                after = after.with_set(entry)
            for manifest in manifests:
                after = after.with_manifest(manifest)
            return replace(after, prompts=tuple(sorted({*after.prompts, *banks})))

        head_id = store.commit(change, reason=f"import {snapshot.id[:12]}")
    return ImportOutcome(
        snapshot=snapshot,
        selection=inspected.selection,
        signature=signed,
        store_snapshot=head_id,
        sets=tuple(entry.set_id for entry in entries),
        kept_manifests=kept,
        quarantined=tuple(quarantined),
        notes=inspected.notes,
    )


def _wanted(inspected: Inspected) -> list[SentDataset]:
    present = {file.path for file in inspected.snapshot.select(inspected.selection)}
    return [dataset for dataset in inspected.snapshot.datasets if dataset.manifest_path in present]


# -- what may not be ----------------------------------------------------------------------------------------


def _sent_id(store: Store, entry: SetEntry, received: Received) -> str:
    """Return the id under which a set came in: of one that was taken in part, the id of the whole."""
    if received.of_set(entry.set_id) is not None:
        return entry.set_id
    return str(store.open_set(entry.set_id).provenance.get(NARROWED_FROM, entry.set_id))


def _refuse_rollback(store: Store, snapshot: SentSnapshot, received: Received) -> None:
    """Raise where something newer from the same sender is in the head, and this would put the old in its place."""
    head = store.snapshot()
    ours = {_sent_id(store, entry, received) for entry in head.sets}
    listed = {(entry.name, entry.media_digest) for entry in head.manifests}
    mine = {(entry.dataset, entry.fingerprint): entry.set_id for entry in snapshot.sets}
    names = {dataset.name: dataset.manifest_id for dataset in snapshot.datasets}
    for other in received.snapshots:
        if other.source != snapshot.source or other.version <= snapshot.version:
            continue
        replaced = any(
            entry.set_id in ours and mine.get((entry.dataset, entry.fingerprint), entry.set_id) != entry.set_id
            for entry in other.sets
        )
        older = any(
            (dataset.name, dataset.media_digest) in listed
            and names.get(dataset.name, dataset.manifest_id) != dataset.manifest_id
            for dataset in other.datasets
        )
        if replaced or older:
            raise PolicyError(
                f"snapshot {snapshot.id[:12]} is older than {other.id[:12]}, which this store has from the same "
                "sender; give --allow-rollback to go back to it"
            )


def _refuse_other_signer(snapshot: SentSnapshot, received: Received, signed: Signature | None) -> None:
    """Raise where earlier snapshots of this lineage were signed, and this one is not, or by another key."""
    for other, note in zip(received.snapshots, received.notes, strict=True):
        before = note.get("key")
        if other.source == snapshot.source and before and (signed is None or signed.fingerprint != before):
            raise PolicyError(
                f"earlier snapshots of this sender were signed with the key {before}, and this one is "
                f"{'not signed' if signed is None else f'signed with {signed.fingerprint}'}; ask the sender"
            )


def _refuse_conflicts(
    store: Store, head: Snapshot, entries: list[SetEntry], snapshot: SentSnapshot, received: Received
) -> None:
    """Raise where the head has another set for a data set and fingerprint that did not come from the same sender."""
    for entry in entries:
        for old in head.sets:
            if (old.dataset, old.fingerprint) != (entry.dataset, entry.fingerprint) or old.set_id == entry.set_id:
                continue
            origin = received.of_set(_sent_id(store, old, received))
            if origin is None or origin[1].source != snapshot.source:
                raise ContentError(
                    f"the store has other vectors of {entry.title} on {entry.dataset!r} ({old.set_id[:12]}); nothing "
                    "is overwritten: import into another store (--store) and compare with embedstore snapshot diff "
                    "--other-store"
                )


def _keeps_own(
    store: Store,
    held: Quarantine,
    head: Snapshot,
    dataset: SentDataset,
    inspected: Inspected,
    received: Received,
) -> bool:
    """Return whether the store's own manifest stays: it has all clips that come in, under published ids.

    Raises
    ------
    ContentError
        The store has another data set of this name.
    """
    own = next((entry for entry in head.manifests if entry.name == dataset.name), None)
    if own is None or own.manifest_id == dataset.manifest_id:
        return False
    origins = received.of_dataset(own.name, own.media_digest)
    is_update = any(snapshot.source == inspected.snapshot.source for _, snapshot in origins)
    if any(own.manifest_id == origin.manifest_id for origin, _ in origins):
        return False  # as it came in: nothing of this store's own is lost with it
    if own.media_digest == dataset.media_digest and is_update:
        # The same clips. Labels that were joined to them stay, unless the sender's own annotations are others now.
        return any(origin.annotations_digest == dataset.annotations_digest for origin, _ in origins)
    if is_update:
        return False
    manifest = store.open_manifest(own)
    if manifest.ids == "public" and dataset.ids in ("public", "kept"):
        incoming = Manifest.read(held.folder / dataset.manifest_path)
        if set(incoming.clip_ids) <= set(manifest.clip_ids):
            return True
    raise ContentError(
        f"the store has another data set called {dataset.name!r}; nothing is overwritten: import into another store "
        "(--store)"
    )
