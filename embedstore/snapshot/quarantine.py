"""`Quarantine`: a hidden folder of the store in which a stranger's snapshot is inspected by a child with limits.

Nothing in it can be seen by a reader of the store, and it goes when the import ends, however it ends; what a killed
import leaves is cleared by the next one, or by gc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.errors import (
    ContentError,
    CorruptionError,
    EmbedstoreError,
    FormatError,
    HostileInputError,
    ManifestError,
    PolicyError,
    StorageError,
    UnknownNameError,
    VectorError,
)
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.selection import Selection
from embedstore.snapshot.staging import staging_folder
from embedstore.store import Store

__all__ = ["Inspected", "Quarantine", "quarantine"]

_LONGEST_S = 24 * 3600  # the child's own limit, of processor time, is much lower
_BOOTSTRAP = (
    "import os, sys; sys.path[:] = sys.argv[1].split(os.pathsep); "
    "from embedstore.snapshot.inspection import main; main()"
)
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve address space in advance
}
_KINDS: dict[str, type[EmbedstoreError]] = {
    error.kind: error
    for error in (
        ContentError,
        CorruptionError,
        FormatError,
        HostileInputError,
        ManifestError,
        PolicyError,
        StorageError,
        UnknownNameError,
        VectorError,
    )
}


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """A snapshot that holds what it claims.

    Attributes
    ----------
    snapshot : SentSnapshot
    selection : Selection
        What of it lies in quarantine.
    notes : tuple of str
        What breaks no rule and deserves a word: vectors of zeros, copies.
    left_out : mapping of str to list of int
        For each set's folder, rows of clips with a vector that is not finite, where these were to be left out.
    """

    snapshot: SentSnapshot
    selection: Selection
    notes: tuple[str, ...]
    left_out: Mapping[str, list[int]]


@dataclass(frozen=True)
class Quarantine:
    """The folder, and `inspect`.

    A transfer that brings files itself (a pull) writes ``manifest.json`` and the files of a selection below `folder`,
    each under its path once its digest is right, and then calls `inspect` without a source.
    """

    folder: Path

    def inspect(
        self,
        source: Path | None,
        *,
        selection: Selection | None = None,
        is_partial: bool = False,
        quarantine_rows: bool = False,
    ) -> Inspected:
        """Inspect a snapshot in a child process, and copy it into quarantine.

        Parameters
        ----------
        source : Path or None
            Folder or archive; None where the files already lie in `folder`, each proven by its digest as it came:
            they are not hashed again.
        selection : Selection, optional
            What to take of it; all without.
        is_partial : bool
            Whether the source holds the selection only.
        quarantine_rows : bool
            Say which clips have vectors that are not finite, instead of refusing the snapshot.

        Raises
        ------
        ContentError
            One of its kinds: it breaks a rule. Nothing can be seen of it.
        StorageError
            The disk refused.
        """
        chosen = selection or Selection()
        request = {
            "source": None if source is None else str(source.resolve()),
            "quarantine": str(self.folder.resolve()),
            "selection": chosen.model_dump(mode="json"),
            "is_partial": is_partial,
            "quarantine_rows": quarantine_rows,
        }
        verdict = self._ask(request)
        if "refused" in verdict:
            error = _KINDS.get(str(verdict["refused"]["kind"]), HostileInputError)
            raise error(str(verdict["refused"]["message"]))
        snapshot = SentSnapshot.read(self.folder)
        if snapshot.id != verdict["ok"]["snapshot"]:
            raise HostileInputError(f"{DOCUMENT_FILE} changed while it was inspected")
        return Inspected(
            snapshot=snapshot,
            selection=chosen,
            notes=tuple(verdict["ok"]["notes"]),
            left_out=verdict["ok"]["left_out"],
        )

    @staticmethod
    def _ask(request: Mapping[str, object]) -> dict[str, Any]:
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path if isinstance(entry, str))
        child = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries in C write there as they like, what they read included
            env={**os.environ, **_ENVIRONMENT},
        )
        try:
            output, _ = child.communicate(json.dumps(request).encode(), timeout=_LONGEST_S)
        finally:
            child.kill()
            child.wait()
        try:
            verdict = json.loads(output)
        except ValueError as error:
            how = f"signal {-child.returncode}" if child.returncode < 0 else f"status {child.returncode}"
            raise HostileInputError(
                f"reading the snapshot took more memory, time or space than it may, or crashed its reader ({how}); "
                "it is refused"
            ) from error
        return dict(verdict)


@contextmanager
def quarantine(store: Store) -> Iterator[Quarantine]:
    """Yield a quarantine in a store."""
    with staging_folder(store.layout.sets / "import") as folder:
        yield Quarantine(folder)
