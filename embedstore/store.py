"""`Store`: sets, banks and manifests by name, on top of the log of snapshots."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedstore.bank import VectorBank, pick_bank
from embedstore.commit_log import CommitLog
from embedstore.disk import storage_errors
from embedstore.embedding_set import EmbeddingSet
from embedstore.encoder import split_title
from embedstore.errors import (
    AmbiguousNameError,
    CorruptionError,
    FormatError,
    StorageError,
    StoreNotFoundError,
    UnknownNameError,
    did_you_mean,
)
from embedstore.files import create_file, hash_file, replace_file
from embedstore.history import ManifestEntry, SetEntry, Snapshot
from embedstore.identity import canonical_json, sha256_hex
from embedstore.json_files import read_json, seal_json
from embedstore.layout import FORMAT_VERSION, StoreLayout, is_digest
from embedstore.manifest import Manifest

__all__ = ["Store"]

_MANIFESTS_KEPT = 32  # of those that were read; one of 17,000 clips takes some 10 MB


class Store(CommitLog):
    """A folder of sets, manifests and snapshots.

    Open one with `Store.open` (it must be there) or `Store.create` (made where it is not).
    """

    def __init__(self, layout: StoreLayout) -> None:
        super().__init__(layout)
        self._manifests: dict[str, Manifest] = {}  # by id, which is of the content

    def __repr__(self) -> str:
        return f"Store({str(self.layout.root)!r})"

    # -- opening --------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store for reading or adding.

        Raises
        ------
        StoreNotFoundError
            There is no store; reading never makes one.
        FormatError
            It was written by a newer version; nothing was touched.
        """
        layout = StoreLayout(Path(path))
        if layout.root.exists() and not layout.root.is_dir():
            raise StoreNotFoundError(f"the store path {layout.root} is a file, not a folder")
        if not layout.store_file.exists():
            raise StoreNotFoundError(
                f"there is no store at {layout.root}; build one, or name another with --store or $EMBEDSTORE"
            )
        cls._check_format(layout)
        return cls(layout)

    @staticmethod
    def _check_format(layout: StoreLayout) -> None:
        described = read_json(layout.store_file, max_bytes=1 << 16)
        version = described.get("format") if isinstance(described, dict) else None
        if not isinstance(version, int) or described.get("kind") != "store":
            raise FormatError(f"{layout.store_file} does not describe a store")
        if version > FORMAT_VERSION:
            needs = described.get("needs", "a newer version")
            raise FormatError(f"the store at {layout.root} has format {version}: it needs embedstore >= {needs}")

    @classmethod
    def create(cls, path: str | Path) -> Store:
        """Open the store at ``path``, making it where there is none.

        Raises
        ------
        UnknownNameError
            The path is a file, or a folder with other content.
        StorageError
            The folder cannot be made.
        """
        layout = StoreLayout(Path(path))
        if layout.root.exists() and not layout.root.is_dir():
            raise UnknownNameError(f"the store path {layout.root} is a file, not a folder")
        if not layout.store_file.exists():
            with storage_errors(layout.root, "create the store"):
                layout.root.mkdir(parents=True, exist_ok=True)
                strangers = {entry.name for entry in os.scandir(layout.root)} - {
                    folder.name for folder in layout.folders
                }
                if any(not name.startswith(".") for name in strangers):
                    raise UnknownNameError(
                        f"the folder {layout.root} holds other things ({sorted(strangers)[0]}) and is no store; "
                        "name an empty or new folder"
                    )
                for folder in layout.folders:
                    folder.mkdir(exist_ok=True)
            create_file(layout.log_mark, seal_json({"number": 0}))
            create_file(layout.store_file, seal_json({"format": FORMAT_VERSION, "kind": "store", "needs": "0.1"}))
        cls._check_format(layout)
        return cls(layout)

    # -- sets -----------------------------------------------------------------------------------------------

    def entries(self) -> list[SetEntry]:
        """Return the head's sets, sorted."""
        return sorted(self.snapshot().sets)

    def open_set(self, set_id: str) -> EmbeddingSet:
        """Open a committed set by id; raises as `EmbeddingSet.open`."""
        return EmbeddingSet.open(self.layout.set_folder(set_id), set_id=set_id)

    def get(self, *, dataset: str, encoder: str) -> EmbeddingSet:
        """Return the one set of a data set and an encoder.

        Parameters
        ----------
        dataset : str
            Name of the data set.
        encoder : str
            ``NAME`` (the published variant, or the only one there is) or ``NAME@VARIANT``.

        Raises
        ------
        UnknownNameError
            The head has no such set.
        AmbiguousNameError
            Several sets match; the message lists them.
        """
        entries = self.entries()
        if dataset not in {entry.dataset for entry in entries}:
            known = sorted({entry.dataset for entry in entries})
            raise UnknownNameError(f"the store has no set of data set {dataset!r}{did_you_mean(dataset, known)}")
        of_dataset = [entry for entry in entries if entry.dataset == dataset]
        name, variant = split_title(encoder)
        matching = [entry for entry in of_dataset if entry.encoder == name and variant in (None, entry.variant)]
        if variant is None and len(matching) > 1:
            published = [entry for entry in matching if entry.variant == "published"]
            matching = published or matching
        if not matching:
            known = [entry.title for entry in of_dataset]
            raise UnknownNameError(f"the store has no {encoder!r} set of {dataset!r}{did_you_mean(encoder, known)}")
        if len(matching) > 1:
            listed = ", ".join(f"{entry.title} ({entry.fingerprint[:12]})" for entry in matching)
            raise AmbiguousNameError(
                f"several sets of {dataset!r} match {encoder!r}: {listed}; name one NAME@VARIANT"
            )
        return self.open_set(matching[0].set_id)

    @staticmethod
    def entry_of(opened: EmbeddingSet) -> SetEntry:
        """Return how a snapshot lists a set."""
        return SetEntry(
            dataset=opened.dataset,
            encoder=opened.spec.name,
            variant=opened.spec.variant,
            fingerprint=opened.fingerprint,
            set_id=opened.set_id,
        )

    # -- banks ----------------------------------------------------------------------------------------------

    def open_bank(self, bank_id: str) -> VectorBank:
        """Open a committed bank by its id.

        Raises
        ------
        CorruptionError
            The id is no digest.
        StorageError, CorruptionError, FormatError
            As `VectorBank.open`.
        """
        if not is_digest(bank_id):
            raise CorruptionError(f"a snapshot lists the bank {bank_id!r}, which is no digest; run embedstore verify")
        return VectorBank.open(self.layout.bank_folder(bank_id), bank_id=bank_id)

    def banks(self, *, kind: str | None = None, encoder: str | None = None) -> list[VectorBank]:
        """Return the head's banks by encoder, kind and name, those of one kind or encoder where asked.

        Parameters
        ----------
        kind : {"prompts", "heads", "candidates"}, optional
        encoder : str, optional
            ``NAME`` or ``NAME@VARIANT``; a bank belongs to every variant.
        """
        owner = None if encoder is None else split_title(encoder)[0]
        opened = [self.open_bank(bank_id) for bank_id in self.snapshot().prompts]
        found = [bank for bank in opened if kind in (None, bank.kind) and owner in (None, bank.encoder)]
        return sorted(found, key=lambda bank: (bank.encoder, bank.kind, bank.name, bank.weights_sha256 or ""))

    def bank(
        self, *, kind: str, encoder: str, name: str | None = None, weights_sha256: str | None = None
    ) -> VectorBank:
        """Return the one bank of a kind, an encoder and, where several fit, a name or weights.

        Raises
        ------
        UnknownNameError
            The head has no such bank; the message names those that it has.
        AmbiguousNameError
            Several fit; the message lists them.
        """
        return pick_bank(self.banks(), kind=kind, encoder=encoder, name=name, weights_sha256=weights_sha256)

    def add_bank(self, bank_id: str, *, reason: str) -> str:
        """Publish a written bank, in place of the head's of the same key; hold `publishing` since it was written.

        Returns
        -------
        str
            The head's snapshot id afterwards.
        """
        key = self.open_bank(bank_id).key

        def change(head: Snapshot) -> Snapshot:
            there = [name for name in head.prompts if self.layout.bank_folder(name).is_dir()]
            return head.with_bank(bank_id, replacing=[name for name in there if self.open_bank(name).key == key])

        return self.commit(change, reason=reason)

    # -- manifests ------------------------------------------------------------------------------------------

    def add_manifest(self, manifest: Manifest, *, root: str | Path | None = None) -> ManifestEntry:
        """Add a manifest, in place of one of the same name; remember its media root on this machine.

        Raises
        ------
        ManifestError
            The manifest breaks a rule.
        """
        manifest.require_valid()
        with self.publishing():
            entry = self.put_manifest(manifest)
            self.commit(lambda head: head.with_manifest(entry), reason=f"manifest {manifest.name}")
        if root is not None:
            self.remember_root(manifest.name, root)
        return entry

    def put_manifest(self, manifest: Manifest) -> ManifestEntry:
        """Write a manifest's file and record, for a commit that lists it; hold `publishing` until then."""
        entry = ManifestEntry(
            name=manifest.name,
            manifest_id=manifest.id,
            media_digest=manifest.media_digest,
            annotations_digest=manifest.annotations_digest,
        )
        path, record = self.layout.manifest_file(entry.manifest_id), self.layout.manifest_record(entry.manifest_id)
        payload, head = manifest.to_bytes(), {"manifest": entry.manifest_id}
        if path.exists():
            create_file(record, seal_json({**head, **vars(hash_file(path))}))
            return entry
        # A record without its file is nothing, a file without its record is damage: the record first. One of a file
        # that is gone may be there, and another version of pyarrow writes an equal manifest in other bytes.
        replace_file(record, seal_json({**head, "size": len(payload), "sha256": sha256_hex(payload)}))
        if not create_file(path, payload):
            replace_file(record, seal_json({**head, **vars(hash_file(path))}))  # somebody was quicker
        return entry

    def manifests(self) -> list[ManifestEntry]:
        """Return the head's manifests, sorted by name."""
        return sorted(self.snapshot().manifests)

    def manifest(self, name: str | Path) -> Manifest:
        """Return a manifest by data set name, or read it from a manifest file.

        Raises
        ------
        UnknownNameError
            Neither a manifest of the head nor a file has this name.
        """
        text = str(name)
        entries = {entry.name: entry for entry in self.manifests()}
        if text in entries:
            return self.open_manifest(entries[text])
        if Path(text).is_file():
            return Manifest.read(Path(text))
        raise UnknownNameError(f"the store has no manifest {text!r}{did_you_mean(text, list(entries))}")

    def open_manifest(self, entry: ManifestEntry) -> Manifest:
        """Read a manifest of the store and check that it is the one that the entry names; once for each `Store`.

        Raises
        ------
        CorruptionError
            It is another.
        StorageError, FormatError
            As `Manifest.read`.
        """
        kept = self._manifests.pop(entry.manifest_id, None)
        if kept is None:
            path = self.layout.manifest_file(entry.manifest_id)
            kept = Manifest.read(path)
            if kept.id != entry.manifest_id:
                raise CorruptionError(f"{path} is not what was written; run embedstore verify")
            while len(self._manifests) >= _MANIFESTS_KEPT:
                del self._manifests[next(iter(self._manifests))]
        self._manifests[entry.manifest_id] = kept
        return kept

    # -- settings of this machine ---------------------------------------------------------------------------

    def _local(self) -> dict[str, Any]:
        if not self.layout.local_file.exists():
            return {}
        settings = read_json(self.layout.local_file, max_bytes=1 << 20)
        return settings if isinstance(settings, dict) else {}

    def roots(self) -> Mapping[str, Path]:
        """Return the media root of each data set on this machine."""
        return {name: Path(path) for name, path in self._local().get("roots", {}).items()}

    def remember_root(self, dataset: str, root: str | Path) -> None:
        """Keep the media root of a data set in the settings of this machine, never in manifests or exports.

        Raises
        ------
        StorageError
            The root is no folder.
        """
        root = Path(root)
        if not root.is_dir():
            raise StorageError(f"the media root {root} is no folder")
        settings = self._local()
        settings["roots"] = {**settings.get("roots", {}), dataset: str(root.resolve())}
        replace_file(self.layout.local_file, canonical_json(settings))
