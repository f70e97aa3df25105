"""Check a sent snapshot where it lies, in a folder or an archive: is every file the one that its document lists?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.errors import HostileInputError, PolicyError, UnknownNameError
from embedstore.files import FileRecord
from embedstore.snapshot.card import side_files
from embedstore.snapshot.describe import DOCUMENT_FILE, MAX_DOCUMENT_BYTES, SIDE_FILES, SIGNATURE_FILE, SentSnapshot
from embedstore.snapshot.parts import SentFile
from embedstore.snapshot.selection import PARTIAL_FILE, read_partial
from embedstore.snapshot.signature import Signature, check_signature, read_signature
from embedstore.snapshot.sources import SnapshotSource, open_source
from embedstore.snapshot.verify import VerifyOutcome, VerifyProblem

__all__ = ["CheckOutcome", "check_snapshot"]

_MAX_SIDE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class CheckOutcome:
    """What was found.

    Attributes
    ----------
    snapshot : SentSnapshot
    outcome : VerifyOutcome
    signature : Signature or None
    n_absent : int
        Files that are absent by choice.
    """

    snapshot: SentSnapshot
    outcome: VerifyOutcome
    signature: Signature | None
    n_absent: int

    @property
    def trust(self) -> str:
        """``intact, unsigned``, ``intact, signed by ...``, or ``damaged``."""
        if not self.outcome.ok:
            return "damaged"
        return "intact, unsigned" if self.signature is None else f"intact, {self.signature.words}"

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of the command's JSON."""
        return {
            **self.outcome.to_dict(),
            "snapshot": self.snapshot.id,
            "trust": self.trust,
            "signed_by": None if self.signature is None else self.signature.signer,
            "files_absent_by_choice": self.n_absent,
        }


def check_snapshot(
    path: str | Path, *, quick: bool = False, pinned_id: str | None = None, signer_key: str | Path | None = None
) -> CheckOutcome:
    """Check a snapshot.

    Parameters
    ----------
    quick : bool
        Names and sizes only.
    pinned_id : str, optional
        The id, or its beginning, that it must have.
    signer_key : str or Path, optional
        A public key, or a file of allowed signers, one of which must have signed.

    Raises
    ------
    UnknownNameError
        There is nothing.
    HostileInputError, FormatError
        It is no snapshot.
    PolicyError
        It has another id, or lacks the signature.
    """
    path = Path(path)
    if not path.exists():
        raise UnknownNameError(f"there is no snapshot at {path}")
    source = open_source(path)
    if DOCUMENT_FILE not in source.sizes:
        raise HostileInputError(f"{path} is no snapshot: it has no {DOCUMENT_FILE}")
    if source.sizes[DOCUMENT_FILE] > MAX_DOCUMENT_BYTES:
        raise HostileInputError(f"{DOCUMENT_FILE} is larger than {MAX_DOCUMENT_BYTES} bytes")
    payload = b"".join(bytes(block) for block in source.read(DOCUMENT_FILE, MAX_DOCUMENT_BYTES))
    snapshot = SentSnapshot.from_bytes(payload, source=DOCUMENT_FILE)
    if pinned_id is not None and not snapshot.id.startswith(pinned_id):
        raise PolicyError(f"the snapshot is {snapshot.id}, not {pinned_id}, which was asked for")
    signature = check_signature(payload, read_signature(path), key=signer_key)
    selection = read_partial(path, snapshot.id)
    wanted = snapshot.select(selection)
    outcome = VerifyOutcome("quick" if quick else "full")
    outcome.files_checked = len(wanted) + 1
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda file: _check_file(source, file, quick=quick), wanted):
            outcome.problems += found
    outcome.problems += _check_sides(source, snapshot, is_whole=selection.is_whole)
    known = {file.path for file in snapshot.files} | {DOCUMENT_FILE, PARTIAL_FILE, SIGNATURE_FILE, *SIDE_FILES}
    outcome.problems += [
        VerifyProblem(name, "added", None, f"{DOCUMENT_FILE} does not list this file")
        for name in sorted(set(source.sizes) - known)
    ]
    return CheckOutcome(
        snapshot=snapshot, outcome=outcome, signature=signature, n_absent=len(snapshot.files) - len(wanted)
    )


def _check_file(source: SnapshotSource, file: SentFile, *, quick: bool) -> list[VerifyProblem]:
    size = source.sizes.get(file.path)
    if size is None:
        return [VerifyProblem(file.path, "missing", None, "no regular file")]
    if size != file.size:
        kind = "truncated" if size < file.size else "altered"
        return [VerifyProblem(file.path, kind, None, f"{size} of {file.size} bytes")]
    if quick or _hash(source.read(file.path, file.size)) == file.record:
        return []
    return [VerifyProblem(file.path, "altered", None, "the bytes are not those that were written")]


def _hash(blocks: Iterator[memoryview]) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
    return FileRecord(size, digest.hexdigest())


def _check_sides(source: SnapshotSource, snapshot: SentSnapshot, *, is_whole: bool) -> Iterator[VerifyProblem]:
    """Yield where a derived file is there and is not the one that follows from the document."""
    for name, payload in side_files(snapshot).items():
        if name in source.sizes and (is_whole or name != SIDE_FILES[0]):
            found = b"".join(bytes(block) for block in source.read(name, min(len(payload) + 1, _MAX_SIDE_BYTES)))
            if found != payload:
                yield VerifyProblem(name, "altered", None, f"it does not follow from {DOCUMENT_FILE}")
