"""The parts that a sent snapshot's document lists: files, data sets, sets of vectors, banks; what each claims.

They are strict: no key beside those named here, no number as text, every text and count within a limit.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from embedstore.files import FileRecord
from embedstore.history import ManifestEntry, SetEntry

__all__ = [
    "Count",
    "Digest",
    "Name",
    "Part",
    "PromptsPart",
    "SentDataset",
    "SentFile",
    "SentSet",
    "Text",
    "Token",
    "one_line",
]

_TEXT = 20_000

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Token = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=_TEXT)]
Count = Annotated[StrictInt, Field(ge=0, lt=1 << 48)]
Dim = Annotated[StrictInt, Field(ge=1, le=65_536)]


class Part(BaseModel):
    """A frozen record that takes its own keys alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SentFile(Part):
    """One file: path below the snapshot's folder, size, digest, and what it belongs to."""

    path: Annotated[str, Field(max_length=5_000)]
    size: Count
    sha256: Digest
    role: Literal["manifest", "description", "provenance", "metadata", "table", "array", "prompts"]
    dataset: Name | None = None
    encoder: Name | None = None
    kind: Literal["clips", "frames", "windows"] | None = None

    @property
    def record(self) -> FileRecord:
        """Size and digest."""
        return FileRecord(self.size, self.sha256)


class SentDataset(Part):
    """A data set: who may pass it on, how its clips are named, and what became of its columns."""

    name: Name
    title: Text
    licence: Text
    redistribution: Literal["no", "ask", "yes"]
    citation: Text = ""
    source: Text = ""
    synthetic: StrictBool = False
    ids: Literal["public", "pseudonyms", "kept", "internal"]
    digests: Literal["none", "keyed", "join-key", "kept", "internal"]
    permission_refs: tuple[Text, ...] = ()
    manifest_path: Text
    manifest_id: Digest
    media_digest: Digest
    annotations_digest: Digest
    n_clips: Count
    n_patients: Count | None
    columns: tuple[Name, ...]

    @property
    def entry(self) -> ManifestEntry:
        """The manifest as a store's snapshot lists it."""
        return ManifestEntry(
            name=self.name,
            manifest_id=self.manifest_id,
            media_digest=self.media_digest,
            annotations_digest=self.annotations_digest,
        )


class SentSet(Part):
    """A set of vectors: what made it, how large it is, where it stands."""

    dataset: Name
    encoder: Name
    variant: Name
    fingerprint: Digest
    set_id: Digest
    folder: Text
    unit: Literal["frame", "clip"]
    dtype: Literal["float16", "float32"]
    n_clips: Count
    n_frames: Count
    n_windows: Count
    clip_dim: Dim
    frame_dim: Dim | None
    n_failed: Count
    weights_sha256: Digest | None
    licence: Text
    licence_forbids: Text = ""

    @property
    def title(self) -> str:
        """``NAME`` or ``NAME@VARIANT``."""
        return self.encoder if self.variant == "published" else f"{self.encoder}@{self.variant}"

    @property
    def entry(self) -> SetEntry:
        """The set as a store's snapshot lists it."""
        return SetEntry(
            dataset=self.dataset,
            encoder=self.encoder,
            variant=self.variant,
            fingerprint=self.fingerprint,
            set_id=self.set_id,
        )


class PromptsPart(Part):
    """A bank of embedded prompts, published heads or candidates: its id, whose it is, where it stands."""

    id: Digest
    folder: Text
    kind: Literal["prompts", "heads", "candidates"]
    name: Name
    encoder: Name
    licence: Text = ""


def one_line(text: str) -> str:
    """Return text as a document may hold it: one line, without characters that steer a terminal.

    Examples
    --------
    >>> one_line("A data set\\n  of clips\\x1b[31m")
    'A data set of clips?[31m'
    """
    flat = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in flat)
