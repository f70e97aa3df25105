"""The history of a store: what a snapshot lists, and the log of commits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from embedstore.errors import FormatError
from embedstore.identity import canonical_json, sha256_hex
from embedstore.json_files import parse_json
from embedstore.layout import FORMAT_VERSION

__all__ = ["LogEntry", "ManifestEntry", "SetEntry", "Snapshot"]


@dataclass(frozen=True, order=True, kw_only=True)
class SetEntry:
    """A set as a snapshot lists it."""

    dataset: str
    encoder: str
    variant: str
    fingerprint: str
    set_id: str

    @property
    def title(self) -> str:
        """``NAME`` or ``NAME@VARIANT``."""
        return self.encoder if self.variant == "published" else f"{self.encoder}@{self.variant}"


@dataclass(frozen=True, order=True, kw_only=True)
class ManifestEntry:
    """A manifest as a snapshot lists it, with both digests."""

    name: str
    manifest_id: str
    media_digest: str
    annotations_digest: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """An immutable list of sets, manifests and banks (``prompts`` holds the ids of banks of every kind).

    The id is the SHA-256 of the canonical description: the same content in any build order is the same id.
    """

    sets: tuple[SetEntry, ...] = ()
    manifests: tuple[ManifestEntry, ...] = ()
    prompts: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the canonical description."""
        return canonical_json(
            {
                "format": FORMAT_VERSION,
                "kind": "snapshot",
                "sets": [vars(entry) for entry in sorted(self.sets)],
                "manifests": [vars(entry) for entry in sorted(self.manifests)],
                "prompts": sorted(self.prompts),
            }
        )

    @property
    def id(self) -> str:
        """SHA-256 of `to_bytes`."""
        return sha256_hex(self.to_bytes())

    @classmethod
    def from_bytes(cls, payload: bytes, *, source: str) -> Snapshot:
        """Read the form of `to_bytes`.

        Raises
        ------
        FormatError
            It is no snapshot, or of a newer version.
        """
        described = parse_json(payload, source=source)
        try:
            if described["format"] > FORMAT_VERSION:
                raise FormatError(f"{source} has format {described['format']}: it needs a newer embedstore")
            return cls(
                sets=tuple(SetEntry(**entry) for entry in described["sets"]),
                manifests=tuple(ManifestEntry(**entry) for entry in described["manifests"]),
                prompts=tuple(described["prompts"]),
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"{source} is no snapshot description: {error}") from error

    def with_set(self, entry: SetEntry) -> Snapshot:
        """Return the snapshot with a set added, in place of one of the same data set and fingerprint."""
        kept = [old for old in self.sets if (old.dataset, old.fingerprint) != (entry.dataset, entry.fingerprint)]
        return replace(self, sets=tuple(sorted([*kept, entry])))

    def with_manifest(self, entry: ManifestEntry) -> Snapshot:
        """Return the snapshot with a manifest added, in place of one of the same name."""
        kept = [old for old in self.manifests if old.name != entry.name]
        return replace(self, manifests=tuple(sorted([*kept, entry])))

    def with_bank(self, bank_id: str, *, replacing: Collection[str] = ()) -> Snapshot:
        """Return the snapshot with a bank added, in place of others."""
        kept = {old for old in self.prompts if old not in replacing}
        return replace(self, prompts=tuple(sorted({*kept, bank_id})))


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One commit: its number, snapshot, parent and time. Order is by number, never by time."""

    number: int
    snapshot_id: str
    parent_id: str | None
    time: str
    reason: str
