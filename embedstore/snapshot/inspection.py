"""Inspect a stranger's snapshot: parse, bound, validate, copy into quarantine. Runs in a confined child with limits.

    python -m embedstore.snapshot.inspection

reads one JSON request from stdin and writes one JSON verdict to stdout. Nothing outside the quarantine folder is
written, no address in the snapshot is followed, and no code, index or pickle in it is read: the arrays are held to
the one Zarr v3 document that embedstore writes, so zarr itself is never asked.

The order: names and sizes; the document; descriptions, metadata and tables; and only then the arrays, whose values
are checked while they are copied.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError, EmbedstoreError, HostileInputError, StorageError
from embedstore.files import FileRecord, write_file
from embedstore.snapshot.confinement import confine
from embedstore.snapshot.describe import DOCUMENT_FILE, MAX_DOCUMENT_BYTES, SIDE_FILES, SIGNATURE_FILE, SentSnapshot
from embedstore.snapshot.parts import SentFile
from embedstore.snapshot.selection import PARTIAL_FILE, Selection
from embedstore.snapshot.sources import SnapshotSource, open_source

__all__ = ["Inspection", "answer", "inspect", "main"]

MEMORY_BYTES = 3 << 30  # of address space: numpy and pyarrow map about 1 GiB before they do anything
FILE_BYTES = 2 << 30
_START_CPU_S = 60
_BYTES_PER_CPU_S = 20 << 20
_MAX_SMALL_BYTES = {"description": 64 << 20, "metadata": 1 << 20, "provenance": 1 << 20}
_SPARE_BYTES = 64 << 20
_ALWAYS_THERE = {DOCUMENT_FILE, PARTIAL_FILE, SIGNATURE_FILE, *SIDE_FILES}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What to inspect.

    Attributes
    ----------
    source : Path or None
        A folder or archive; None where the files already lie in quarantine, each proven by its digest as it came.
    quarantine : Path
        An empty folder, or the one in which they lie.
    selection : Selection
        What must be there; the rest is not looked at.
    is_partial : bool
        Whether the source itself holds the selection only.
    quarantine_rows : bool
        Say which clips have vectors that are not finite, instead of refusing the snapshot.
    is_child : bool
        Whether this process is here for the inspection alone and may have its limits set.
    """

    source: Path | None
    quarantine: Path
    selection: Selection
    is_partial: bool = False
    quarantine_rows: bool = False
    is_child: bool = False


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (soft, hard))


def inspect(asked: Inspection) -> dict[str, Any]:
    """Inspect a snapshot and copy it into quarantine.

    Returns
    -------
    dict
        ``snapshot`` (id), ``notes`` (list of str), ``left_out`` (rows of clips to leave out, by their set's folder).

    Raises
    ------
    HostileInputError
        It breaks a rule that honest software does not break.
    CorruptionError
        A file is not the one that the document lists.
    FormatError, ManifestError, VectorError
        Its content breaks a rule.
    """
    source: SnapshotSource = open_source(asked.source or asked.quarantine)
    sizes = source.sizes
    if DOCUMENT_FILE not in sizes:
        raise HostileInputError(f"this is no snapshot: it has no {DOCUMENT_FILE}")
    if sizes[DOCUMENT_FILE] > MAX_DOCUMENT_BYTES:
        raise HostileInputError(f"{DOCUMENT_FILE} is larger than {MAX_DOCUMENT_BYTES} bytes")
    payload = b"".join(bytes(block) for block in source.read(DOCUMENT_FILE, sizes[DOCUMENT_FILE]))
    snapshot = SentSnapshot.from_bytes(payload, source=DOCUMENT_FILE)
    if asked.is_child:
        _limit(resource.RLIMIT_CPU, _START_CPU_S + snapshot.n_bytes // _BYTES_PER_CPU_S)
    wanted = snapshot.select(asked.selection)
    _check_listing(snapshot, sizes, wanted, is_partial=asked.is_partial)
    total = sum(file.size for file in wanted)
    if asked.source is not None and shutil.disk_usage(asked.quarantine).free < total + _SPARE_BYTES:
        raise StorageError(f"cannot import {total} bytes: the disk is full")
    copier = _Copier(source, asked.quarantine, is_there=asked.source is None)
    if asked.source is not None:
        with write_file(asked.quarantine / DOCUMENT_FILE) as handle:
            handle.write(payload)
    copier.copy([file for file in wanted if file.role != "array" and not file.path.endswith("/0")])

    from embedstore.snapshot.contents import Contents  # numpy and pyarrow only for what got so far

    contents = Contents(snapshot, asked.quarantine, asked.selection)
    arrays = contents.check_small()
    rest = [file for file in wanted if file.role == "array" or file.path.endswith("/0")]
    copier.copy(rest, checks=arrays)
    found = contents.check_arrays(quarantine_rows=asked.quarantine_rows)
    return {"snapshot": snapshot.id, "notes": found.notes, "left_out": found.left_out}


def _check_listing(
    snapshot: SentSnapshot, sizes: Mapping[str, int], wanted: tuple[SentFile, ...], *, is_partial: bool
) -> None:
    """Every wanted file is there in its size, and nothing is there that the document does not list."""
    listed = {file.path for file in snapshot.files}
    strangers = sorted(set(sizes) - listed - _ALWAYS_THERE)
    if strangers:
        raise HostileInputError(f"the snapshot holds {strangers[0]!r}, which its {DOCUMENT_FILE} does not list")
    if is_partial:
        beyond = sorted(set(sizes) - {file.path for file in wanted} - _ALWAYS_THERE)
        if beyond:
            raise HostileInputError(f"the snapshot holds {beyond[0]!r}, which {PARTIAL_FILE} says it leaves out")
    for file in wanted:
        if file.path not in sizes:
            raise CorruptionError(f"the snapshot lacks {file.path}, which its {DOCUMENT_FILE} lists")
        if sizes[file.path] != file.size:
            raise CorruptionError(f"{file.path} of the snapshot has {sizes[file.path]} bytes, listed {file.size}")
        if file.size > _MAX_SMALL_BYTES.get(file.role, FILE_BYTES):
            raise HostileInputError(f"{file.path} of the snapshot is too large for what it is")


class _Copier:
    """Copies listed files into quarantine, hashing, stopping at the listed size; or only looks at what lies there."""

    def __init__(self, source: SnapshotSource, quarantine: Path, *, is_there: bool) -> None:
        self._source, self._quarantine, self._is_there = source, quarantine, is_there

    def copy(self, files: list[SentFile], *, checks: Mapping[str, Any] | None = None) -> None:
        """Copy files, two at a time; ``checks`` maps a path to a function of (offset, block) that may raise."""
        if not self._is_there:
            with storage_errors(self._quarantine, "write"):
                for folder in sorted({(self._quarantine / file.path).parent for file in files}):
                    folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool:
            for _ in pool.map(lambda file: self._copy_one(file, (checks or {}).get(file.path)), files):
                pass

    def _copy_one(self, file: SentFile, check: Any) -> None:
        if self._is_there:
            if check is not None:
                self._look(file, check)
        elif self._write(file, check) != file.record:
            raise CorruptionError(f"{file.path} of the snapshot is not the file that its {DOCUMENT_FILE} lists")

    def _blocks(self, file: SentFile, check: Any) -> Iterator[memoryview]:
        at = 0
        for block in self._source.read(file.path, file.size):
            if check is not None:
                check(at, block)
            at += len(block)
            yield block

    def _write(self, file: SentFile, check: Any) -> FileRecord:
        with write_file(self._quarantine / file.path) as handle:
            for block in self._blocks(file, check):
                handle.write(block)
        return handle.record

    def _look(self, file: SentFile, check: Any) -> None:
        for _ in self._blocks(file, check):
            pass


def answer(request: Mapping[str, Any], *, is_child: bool) -> dict[str, Any]:
    """Return the verdict on a request: what `inspect` returns as ``ok``, or what it raised as ``refused``."""
    asked = Inspection(
        source=None if request["source"] is None else Path(request["source"]),
        quarantine=Path(request["quarantine"]),
        selection=Selection.model_validate(request["selection"]),
        is_partial=request["is_partial"],
        quarantine_rows=request.get("quarantine_rows", False),
        is_child=is_child,
    )
    try:
        return {"ok": inspect(asked)}
    except EmbedstoreError as error:
        return {"refused": {"kind": error.kind, "message": str(error)[:2000]}}
    except (MemoryError, RecursionError, OverflowError) as error:
        message = f"reading the snapshot asks for too much ({error!r:.100})"
        return {"refused": {"kind": "hostile", "message": message}}


def main() -> None:
    """Read the request, set the limits, inspect, write the verdict."""
    request = json.loads(sys.stdin.read())
    confine()
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    _limit(resource.RLIMIT_CPU, _START_CPU_S)
    _limit(resource.RLIMIT_CORE, 0)
    sys.stdout.write(json.dumps(answer(request, is_child=True)))


if __name__ == "__main__":
    main()
