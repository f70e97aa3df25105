"""`SentSnapshot`: a snapshot as it is sent: the document ``manifest.json``, and the list of its files.

The document is canonical JSON and its SHA-256 is the id that a recipient pins. It lists every file with size and
digest, so a snapshot needs no directory listing: any static web server can hold one. Beside it lie files that are
derived from it (`SIDE_FILES`) and that nobody has to trust; a signature over the document; and, where somebody took
only a part, ``partial.json``, which says what is absent by choice.

Nothing in this module touches an array or a table: it says what a snapshot claims. `embedstore.snapshot.inspection`
finds out whether the claim holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import StrictBool, StrictInt, ValidationError, model_validator

from embedstore.errors import FormatError, HostileInputError, UnknownNameError, did_you_mean
from embedstore.files import FileRecord, read_file
from embedstore.identity import canonical_json, sha256_hex
from embedstore.json_files import parse_json
from embedstore.layout import FORMAT_VERSION
from embedstore.snapshot.parts import (
    Count,
    Digest,
    Name,
    Part,
    PromptsPart,
    SentDataset,
    SentFile,
    SentSet,
    Text,
    Token,
)
from embedstore.snapshot.paths import check_paths
from embedstore.snapshot.selection import Selection

__all__ = [
    "CARD_FILE",
    "CROISSANT_FILE",
    "DOCUMENT_FILE",
    "MAX_DOCUMENT_BYTES",
    "MAX_FILES",
    "SIDE_FILES",
    "SIGNATURE_FILE",
    "SUMS_FILE",
    "SentSnapshot",
]

DOCUMENT_FILE = "manifest.json"
SUMS_FILE = "manifest-sha256.txt"
CROISSANT_FILE = "croissant.json"
CARD_FILE = "README.md"
SIGNATURE_FILE = "manifest.json.sig"
SIDE_FILES = (SUMS_FILE, CROISSANT_FILE, CARD_FILE)

MAX_DOCUMENT_BYTES = 64 << 20
MAX_FILES = 2_000_000
MAX_TOTAL_BYTES = 1 << 40
_MAX_DEPTH = 32


class SentSnapshot(Part):
    """The document of a sent snapshot.

    Attributes
    ----------
    source : str
        Random name of the lineage: one store's sendings to one recipient. Tells an update from a stranger.
    version : int
        Rises with the content along a lineage; an older one is a rollback.
    parents : tuple of str
        Ids of sent snapshots from which something is passed on.
    internal : bool
        A whole copy for use within one lab: nothing was taken out. It is never pushed.
    """

    format: StrictInt = FORMAT_VERSION
    kind: Literal["sent-snapshot"] = "sent-snapshot"
    needs: Name = "0.1"
    source: Token
    version: Count
    parents: tuple[Digest, ...] = ()
    internal: StrictBool = False
    contact: Text = ""
    note: Text = ""
    datasets: tuple[SentDataset, ...]
    sets: tuple[SentSet, ...]
    prompts: tuple[PromptsPart, ...] = ()
    files: tuple[SentFile, ...]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [dataset.name for dataset in self.datasets]
        keys = [(entry.dataset, entry.fingerprint) for entry in self.sets]
        ids = [entry.set_id for entry in self.sets]
        if len(set(names)) != len(names) or len(set(keys)) != len(keys) or len(set(ids)) != len(ids):
            raise ValueError("a data set or a set of vectors stands twice")
        if {entry.dataset for entry in self.sets} - set(names):
            raise ValueError("a set of vectors belongs to a data set that is not there")
        if len(self.files) > MAX_FILES or self.n_bytes > MAX_TOTAL_BYTES:
            raise ValueError(f"more than {MAX_FILES} files or {MAX_TOTAL_BYTES} bytes")
        if [file.path for file in self.files] != sorted(file.path for file in self.files):
            raise ValueError("the files are not sorted")
        return self

    @property
    def n_bytes(self) -> int:
        """Bytes of all listed files."""
        return sum(file.size for file in self.files)

    def to_bytes(self) -> bytes:
        """Return the document: canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def id(self) -> str:
        """SHA-256 of the document."""
        return sha256_hex(self.to_bytes())

    @classmethod
    def from_bytes(cls, payload: bytes, *, source: str) -> SentSnapshot:
        """Read a document that anybody may have written.

        Raises
        ------
        FormatError
            It is none, or is of a newer version.
        HostileInputError
            It is not canonical, names files that may not be, or exceeds a limit.
        """
        if len(payload) > MAX_DOCUMENT_BYTES:
            raise HostileInputError(f"{source} is larger than {MAX_DOCUMENT_BYTES} bytes")
        described = parse_json(payload, source=source)
        _require_shallow(described, source=source)
        _require_printable(described, source=source)
        version = described.get("format") if isinstance(described, dict) else None
        if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT_VERSION:
            needs = str(described.get("needs", "a newer version"))[:20]
            raise FormatError(f"{source} has format {version}: it needs embedstore >= {needs}")
        try:
            found = cls.model_validate(described)
            canonical = found.to_bytes()
        except (ValidationError, ValueError, RecursionError) as error:
            reason = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(str(part) for part in reason["loc"])
            raise FormatError(f"{source} describes no snapshot: {where}: {reason['msg']}") from error
        if canonical != payload or found.format != FORMAT_VERSION:
            raise HostileInputError(f"{source} is not written in the one form that its id is taken over")
        check_paths(file.path for file in found.files)
        _require_places(found, source=source)
        return found

    @classmethod
    def read(cls, folder: Path) -> SentSnapshot:
        """Read the document of a snapshot's folder."""
        path = folder / DOCUMENT_FILE
        return cls.from_bytes(read_file(path, max_bytes=MAX_DOCUMENT_BYTES), source=str(path))

    # -- parts ----------------------------------------------------------------------------------------------

    def select(self, selection: Selection) -> tuple[SentFile, ...]:
        """Return the files of a selection: what a partial transfer moves.

        Raises
        ------
        UnknownNameError
            A data set or encoder is not in the snapshot.
        """
        sets = self.sets_of(selection)
        folders = tuple(f"{entry.folder}/" for entry in sets)
        datasets = {entry.dataset for entry in sets} if not selection.is_whole else {d.name for d in self.datasets}
        encoders = {entry.encoder for entry in sets}
        prompts = tuple(
            f"{bank.folder}/" for bank in self.prompts if not selection.encoders or bank.encoder in encoders
        )
        return tuple(
            file
            for file in self.files
            if (file.role == "manifest" and file.dataset in datasets)
            or file.path.startswith(prompts or ("\0",))
            or (file.path.startswith(folders or ("\0",)) and not (selection.clips_only and _is_beyond_clips(file)))
        )

    def sets_of(self, selection: Selection) -> tuple[SentSet, ...]:
        """Return the sets of a selection."""
        known = sorted({entry.dataset for entry in self.sets})
        for name in selection.datasets:
            if name not in known:
                raise UnknownNameError(f"the snapshot has no data set {name!r}{did_you_mean(name, known)}")
        titles = sorted({entry.title for entry in self.sets})
        for name in selection.encoders:
            if name not in titles and name not in {entry.encoder for entry in self.sets}:
                raise UnknownNameError(f"the snapshot has no encoder {name!r}{did_you_mean(name, titles)}")
        return tuple(
            entry
            for entry in self.sets
            if (not selection.datasets or entry.dataset in selection.datasets)
            and (not selection.encoders or {entry.title, entry.encoder} & set(selection.encoders))
        )

    def sums(self, sides: dict[str, FileRecord]) -> bytes:
        """Return ``manifest-sha256.txt``: lines that plain ``sha256sum -c`` accepts, itself not among them."""
        digests = {file.path: file.sha256 for file in self.files} | {DOCUMENT_FILE: self.id}
        digests |= {name: record.sha256 for name, record in sides.items()}
        return "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items())).encode()


def _require_printable(described: Any, *, source: str) -> None:
    if isinstance(described, str):
        if not described.isprintable():
            raise HostileInputError(f"{source} holds control characters")
    elif isinstance(described, list):
        for child in described:
            _require_printable(child, source=source)
    elif isinstance(described, dict):
        for key, child in described.items():
            _require_printable(key, source=source)
            _require_printable(child, source=source)


def _is_beyond_clips(file: SentFile) -> bool:
    return file.kind in ("frames", "windows")


def _require_shallow(described: Any, *, source: str) -> None:
    level: list[Any] = [described]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise HostileInputError(f"{source} is nested more than {_MAX_DEPTH} deep")


def _require_places(snapshot: SentSnapshot, *, source: str) -> None:
    """Every file stands where its role puts it, and no two parts share a folder."""

    def refuse(what: str) -> None:
        raise HostileInputError(f"{source}: {what}")

    manifests = {f"manifests/{Path(d.manifest_path).name}" for d in snapshot.datasets}
    if len(manifests) != len(snapshot.datasets) or manifests != {d.manifest_path for d in snapshot.datasets}:
        refuse("manifests do not stand one by one under manifests/")
    folders = [entry.folder for entry in snapshot.sets] + [bank.folder for bank in snapshot.prompts]
    if len({folder.casefold() for folder in folders}) != len(folders):
        refuse("two sets share a folder")
    for entry in snapshot.sets:
        if not entry.folder.startswith("emb/") or entry.folder.count("/") != 2:
            refuse(f"the set folder {entry.folder[:80]!r} is not below emb/")
    if any(bank.folder != f"prompts/{bank.id}" for bank in snapshot.prompts):
        refuse("a prompt bank does not stand under its id")
    owned = dict(zip(folders, [*snapshot.sets, *snapshot.prompts], strict=True))
    for file in snapshot.files:
        parts = file.path.split("/")
        folder = "/".join(parts[:2] if parts[0] == "prompts" else parts[:3])
        if file.path in manifests:
            if file.role != "manifest":
                refuse(f"{file.path} is no manifest")
        elif folder not in owned or (parts[0] == "prompts") != (file.role == "prompts"):
            refuse(f"the file {file.path} belongs to no part of the snapshot")
    if manifests - {file.path for file in snapshot.files}:
        refuse("a manifest is not among the files")
