"""Pull a snapshot, or a part of it: the very files that were exported, each proven by its digest, into a folder or,
after their inspection, into a store.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.disk import storage_errors
from embedstore.errors import UnknownNameError
from embedstore.files import create_file, read_file, replace_file
from embedstore.folders import remove_folder
from embedstore.locks import folder_lock
from embedstore.snapshot.card import side_files
from embedstore.snapshot.describe import (
    DOCUMENT_FILE,
    MAX_DOCUMENT_BYTES,
    SIGNATURE_FILE,
    SUMS_FILE,
    SentSnapshot,
)
from embedstore.snapshot.fetch import FetchOptions, fetch_files, read_remote
from embedstore.snapshot.importing import ImportOutcome, ImportRequest, import_snapshot
from embedstore.snapshot.place import Found, find_snapshot
from embedstore.snapshot.remotes import Remote
from embedstore.snapshot.selection import PARTIAL_FILE, Selection, partial_bytes, read_partial
from embedstore.snapshot.signature import check_signature
from embedstore.store import Store

__all__ = ["PullOutcome", "pull_folder", "pull_snapshot"]

_MAX_SIGNATURE_BYTES = 64 << 10


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
    folder: str | Path,
    *,
    found: Found | None = None,
    selection: Selection | None = None,
    signer_key: str | Path | None = None,
    options: FetchOptions | None = None,
) -> PullOutcome:
    """Fetch the files of a snapshot into a folder; an interrupted pull is gone on with.

    The document is written last: a folder without ``manifest.json`` is no snapshot yet. What follows from the
    document (card, sums, ``croissant.json``) is made here.

    Parameters
    ----------
    found : Found, optional
        What `find_snapshot` found there; the place's newest snapshot without.
    selection : Selection, optional
        What to take; all of it without one. ``partial.json`` then says what is absent by choice.
    signer_key : str or Path, optional
        A public key, or a file of allowed signers, one of which must have signed; asked before anything is fetched.

    Raises
    ------
    UnknownNameError
        There is no such snapshot, data set or encoder; or the folder holds something else.
    PolicyError
        It lacks the signature.
    BusyError
        Another pull into this folder is under way.
    CorruptionError, HostileInputError, EnvironmentFailure
        As `fetch_files` raises them.
    """
    chosen, folder = selection or Selection(), Path(folder)
    place = found or find_snapshot(remote, options=options)
    snapshot = place.snapshot
    files = snapshot.select(chosen)
    _require_fitting(folder, snapshot, chosen)
    signature = read_remote(remote, place.prefix + SIGNATURE_FILE, max_bytes=_MAX_SIGNATURE_BYTES, options=options)
    check_signature(snapshot.to_bytes(), signature, key=signer_key)
    with storage_errors(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, busy=f"another pull into {folder} is under way; wait for it"):
        fetch_files(
            remote, [(file.path, file.record) for file in files], folder, prefix=place.prefix, options=options
        )
        if signature is not None:
            replace_file(folder / SIGNATURE_FILE, signature)
        _write_sides(snapshot, [file.path for file in files], folder)
        if not chosen.is_whole:
            create_file(folder / PARTIAL_FILE, partial_bytes(snapshot.id, chosen))
        create_file(folder / DOCUMENT_FILE, snapshot.to_bytes())
    return PullOutcome(
        snapshot=snapshot,
        folder=folder,
        selection=chosen,
        n_files=len(files),
        n_bytes=sum(file.size for file in files),
        n_absent=len(snapshot.files) - len(files),
    )


def pull_snapshot(
    store: Store,
    remote: Remote,
    *,
    found: Found | None = None,
    request: ImportRequest | None = None,
    options: FetchOptions | None = None,
) -> tuple[PullOutcome, ImportOutcome]:
    """Fetch a snapshot, or a part of it, into a hidden folder of a store, inspect it there, and import it.

    What an interrupted or refused pull fetched stays for the next one, until ``embedstore gc`` takes it.

    Raises
    ------
    EmbedstoreError
        As `pull_folder` and `import_snapshot` raise them.
    """
    asked = request or ImportRequest()
    place = found or find_snapshot(remote, options=options)
    folder = store.layout.pull_folder(place.snapshot.id, asked.selection.digest)
    pulled = pull_folder(
        remote, folder, found=place, selection=asked.selection, signer_key=asked.signer_key, options=options
    )
    with folder_lock(folder, busy=f"another pull into {folder} is under way; wait for it"):
        imported = import_snapshot(store, folder, asked, in_place=True)
        remove_folder(folder)
    return pulled, imported


def _write_sides(snapshot: SentSnapshot, paths: Collection[str], folder: Path) -> None:
    """Write what follows from the document; of the sums, the lines of what was taken."""
    sides = side_files(snapshot)
    taken = {path.encode() for path in (*paths, *sides, DOCUMENT_FILE)}
    lines = sides[SUMS_FILE].splitlines(keepends=True)
    sides[SUMS_FILE] = b"".join(line for line in lines if line[66:].rstrip(b"\n") in taken)
    for name, payload in sides.items():
        replace_file(folder / name, payload)


def _require_fitting(folder: Path, snapshot: SentSnapshot, selection: Selection) -> None:
    document = folder / DOCUMENT_FILE
    if document.exists():
        there = read_file(document, max_bytes=MAX_DOCUMENT_BYTES)
        if there != snapshot.to_bytes() or read_partial(folder, snapshot.id) != selection:
            raise UnknownNameError(f"{folder} already holds another snapshot, or another part; name another folder")
