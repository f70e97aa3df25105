"""Pull a snapshot, or a part of it, into a folder: the very files that were exported, each proven by its digest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.errors import UnknownNameError
from embedstore.files import FileRecord, create_file, hash_file, read_file, replace_file, storage_errors
from embedstore.snapshot.describe import (
    CARD_FILE,
    CROISSANT_FILE,
    DOCUMENT_FILE,
    MAX_DOCUMENT_BYTES,
    SIGNATURE_FILE,
    SUMS_FILE,
    SentSnapshot,
)
from embedstore.snapshot.fetch import FetchOptions, fetch_files, read_remote
from embedstore.snapshot.place import Found, find_snapshot
from embedstore.snapshot.remotes import Remote
from embedstore.snapshot.selection import PARTIAL_FILE, Selection, partial_bytes, read_partial

__all__ = ["PullOutcome", "pull_folder"]

# Derived files that nobody has to trust; the sums are made anew for what was taken.
_SIDES = {CROISSANT_FILE: 16 << 20, CARD_FILE: 4 << 20, SIGNATURE_FILE: 64 << 10}


@dataclass(frozen=True, kw_only=True)
class PullOutcome:
    """What was pulled.

    Attributes
    ----------
    snapshot : SentSnapshot
    folder : Path
    selection : Selection
    n_files, n_bytes : int
        What the selection has; of the snapshot's own files.
    n_absent : int
        Files of the snapshot that were left out by choice.
    """

    snapshot: SentSnapshot
    folder: Path
    selection: Selection
    n_files: int
    n_bytes: int
    n_absent: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "snapshot": self.snapshot.id,
            "folder": str(self.folder),
            "files": self.n_files,
            "bytes": self.n_bytes,
            "files_absent": self.n_absent,
            "selection": self.selection.model_dump(mode="json"),
        }


def pull_folder(
    remote: Remote,
    folder: Path,
    *,
    snapshot_id: str | None = None,
    selection: Selection | None = None,
    options: FetchOptions | None = None,
) -> PullOutcome:
    """Fetch the files of a snapshot into a folder; an interrupted pull is gone on with.

    The document is written last: a folder without ``manifest.json`` is no snapshot yet.

    Parameters
    ----------
    snapshot_id : str, optional
        The id that it must have; the place's newest without one.
    selection : Selection, optional
        What to take; all of it without one. ``partial.json`` then says what is absent by choice.

    Raises
    ------
    UnknownNameError
        There is no such snapshot, data set or encoder; or the folder holds something else.
    CorruptionError, HostileInputError, EnvironmentFailure
        As `fetch_files` raises them.
    """
    chosen = selection or Selection()
    found = find_snapshot(remote, snapshot_id=snapshot_id, options=options)
    _require_fitting(folder, found.snapshot, chosen)
    files = found.snapshot.select(chosen)
    _fetch(remote, found, [(file.path, file.record) for file in files], folder, options)
    _write_sides(remote, found, [file.path for file in files], folder, options)
    if not chosen.is_whole:
        create_file(folder / PARTIAL_FILE, partial_bytes(found.snapshot.id, chosen))
    create_file(folder / DOCUMENT_FILE, found.snapshot.to_bytes())
    return PullOutcome(
        snapshot=found.snapshot,
        folder=folder,
        selection=chosen,
        n_files=len(files),
        n_bytes=sum(file.size for file in files),
        n_absent=len(found.snapshot.files) - len(files),
    )


def _fetch(
    remote: Remote,
    found: Found,
    files: list[tuple[str, FileRecord]],
    folder: Path,
    options: FetchOptions | None,
) -> None:
    with storage_errors(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
    fetch_files(remote, files, folder, prefix=found.prefix, options=options)


def _write_sides(
    remote: Remote, found: Found, paths: Collection[str], folder: Path, options: FetchOptions | None
) -> None:
    for name, max_bytes in _SIDES.items():
        payload = read_remote(remote, found.prefix + name, max_bytes=max_bytes, options=options)
        if payload is not None:
            replace_file(folder / name, payload)
    records = {name: hash_file(folder / name) for name in (CROISSANT_FILE, CARD_FILE) if (folder / name).is_file()}
    lines = found.snapshot.sums(records).splitlines(keepends=True)
    taken = {path.encode() for path in paths} | {name.encode() for name in (*records, DOCUMENT_FILE)}
    replace_file(folder / SUMS_FILE, b"".join(line for line in lines if line[66:].rstrip(b"\n") in taken))


def _require_fitting(folder: Path, snapshot: SentSnapshot, selection: Selection) -> None:
    document = folder / DOCUMENT_FILE
    if document.exists():
        there = read_file(document, max_bytes=MAX_DOCUMENT_BYTES)
        if there != snapshot.to_bytes() or read_partial(folder, snapshot.id) != selection:
            raise UnknownNameError(f"{folder} already holds another snapshot, or another part; name another folder")
