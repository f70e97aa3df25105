"""Verify: does the store hold what was written? Two levels, and it never repairs.

*quick* checks structure, sizes and counts; *full* reads every byte, compares every digest, and checks rows against
tables, finite values and unique ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.abreast import map_abreast
from embedstore.bank import VectorBank, check_rows
from embedstore.embedding_set import EmbeddingSet
from embedstore.errors import ContentError, EmbedstoreError, EnvironmentFailure
from embedstore.files import FileRecord, hash_file
from embedstore.json_files import read_sealed_json
from embedstore.layout import (
    BANK_ARRAY,
    DESCRIPTION_FILE,
    FRAME_INDEX_FILE,
    INDEX_FILE,
    PROVENANCE_FILE,
    WINDOW_INDEX_FILE,
)
from embedstore.manifest import Manifest
from embedstore.snapshot.references import needed
from embedstore.snapshot.seals import check_seals
from embedstore.store import Store
from embedstore.vector_array import VectorArray

__all__ = ["VerifyOutcome", "VerifyProblem", "verify_bank", "verify_set", "verify_store"]


@dataclass(frozen=True)
class VerifyProblem:
    """One problem: the file below the store, its kind, and the rows concerned as [start, stop), where known.

    ``kind`` is one of missing, truncated, added, swapped, altered, unreadable, inconsistent.
    """

    file: str
    kind: str
    rows: tuple[int, int] | None = None
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        rows = None if self.rows is None else list(self.rows)
        return {"file": self.file, "kind": self.kind, "rows": rows, "detail": self.detail}


@dataclass
class VerifyOutcome:
    """What a verification found."""

    level: str
    files_checked: int = 0
    problems: list[VerifyProblem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of the command's JSON."""
        return {
            "ok": self.ok,
            "level": self.level,
            "files_checked": self.files_checked,
            "problems": [problem.to_dict() for problem in self.problems],
        }


def _rows_of_file(opened: EmbeddingSet | VectorBank, name: str) -> tuple[int, int] | None:
    """Return the rows that a shard file holds."""
    kind, _, rest = name.partition("/")
    if not rest.startswith("c/"):
        return None
    array = opened.array(kind)
    return None if array is None else array.description.shard_span(int(rest.split("/")[1]))


def _compare(path: Path, expected: FileRecord, *, quick: bool, others: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (kind, detail) where a file is not what was written."""
    try:
        if not path.is_file() or path.is_symlink():
            return "missing", "no regular file"
        size = path.stat().st_size
        if size < expected.size:
            return "truncated", f"{size} of {expected.size} bytes"
        if quick:
            return None if size == expected.size else ("altered", f"{size} bytes, written {expected.size}")
        found = hash_file(path)
    except (OSError, EnvironmentFailure) as error:
        return "unreadable", str(error)
    if found == expected:
        return None
    if found.sha256 in others:
        return "swapped", f"holds the bytes of {others[found.sha256]}"
    return "altered", "the bytes are not those that were written"


def _verify_files(opened: EmbeddingSet | VectorBank, *, quick: bool, prefix: str) -> Iterator[VerifyProblem | int]:
    """Yield where files of a set or bank are not those that its description lists, and 1 for each file checked."""
    listed = dict(opened.files())
    others = {record.sha256: name for name, record in listed.items()}

    def compared(name: str) -> tuple[str, str] | None:
        return _compare(opened.folder / name, listed[name], quick=quick, others=others)

    for name, problem in zip(listed, map_abreast(compared, listed), strict=True):
        yield 1
        if problem is not None:
            rows = _rows_of_file(opened, name)
            yield VerifyProblem(prefix + name, problem[0], rows, problem[1])
    if not (opened.folder / PROVENANCE_FILE).is_file():
        yield VerifyProblem(prefix + PROVENANCE_FILE, "missing")
    known = {*listed, DESCRIPTION_FILE, PROVENANCE_FILE}
    for path in sorted(opened.folder.rglob("*")):
        name = path.relative_to(opened.folder).as_posix()
        if not path.is_dir() and name not in known:
            yield VerifyProblem(prefix + name, "added", None, "the description does not list this file")


def _is_damage(found: VerifyProblem | int) -> bool:
    """Return whether a listed file is not what was written, so that what it holds need not be looked at."""
    return isinstance(found, VerifyProblem) and found.kind != "added" and not found.file.endswith(PROVENANCE_FILE)


def verify_set(opened: EmbeddingSet, *, quick: bool, prefix: str = "") -> Iterator[VerifyProblem | int]:
    """Yield problems of one set, and 1 for each file checked.

    Parameters
    ----------
    prefix : str
        Put before file names.
    """
    found = list(_verify_files(opened, quick=quick, prefix=prefix))
    yield from found
    if not any(_is_damage(one) for one in found):
        yield from _inconsistencies(opened, quick=quick, prefix=prefix)


def verify_bank(opened: VectorBank, *, quick: bool, prefix: str = "") -> Iterator[VerifyProblem | int]:
    """Yield problems of one bank, and 1 for each file checked."""
    found = list(_verify_files(opened, quick=quick, prefix=prefix))
    yield from found
    if any(_is_damage(one) for one in found):
        return
    try:
        opened.vectors.check_metadata()
        _ = opened.provenance
        tables = {name: opened.table(name) for name in opened.described["tables"]}
        check_rows(opened.kind, tables, n_vectors=len(opened))
    except (ContentError, EnvironmentFailure) as error:
        yield VerifyProblem(prefix + DESCRIPTION_FILE, "inconsistent", None, str(error))
        return
    if not quick:
        yield from _not_finite(opened.vectors, name=f"{prefix}{BANK_ARRAY}")


def _inconsistencies(opened: EmbeddingSet, *, quick: bool, prefix: str) -> Iterator[VerifyProblem]:
    """Yield where rows, tables and arrays of an undamaged set contradict each other."""
    try:
        for kind in opened.described["arrays"]:
            array = opened.array(kind)
            assert array is not None
            array.check_metadata()
        _ = opened.provenance
        index = opened.index
        ids = index.column("clip_id").to_pylist()
        failed = opened.failures.column("clip_id").to_pylist()
        if len(set(ids)) != len(ids) or set(ids) & set(failed):
            yield VerifyProblem(prefix + INDEX_FILE, "inconsistent", None, "a clip id stands twice")
        if index.column("row").to_pylist() != list(range(len(opened))):
            yield VerifyProblem(prefix + INDEX_FILE, "inconsistent", None, "rows are not numbered in order")
        sides = (
            ("frames", "frame_row", "n_frame_rows", FRAME_INDEX_FILE),
            ("windows", "window_row", "n_window_rows", WINDOW_INDEX_FILE),
        )
        for kind, start_column, count_column, table_name in sides:
            if kind not in opened.described["arrays"]:
                continue
            starts = np.array(index.column(start_column).to_pylist(), dtype=np.int64)
            counts = np.array(index.column(count_column).to_pylist(), dtype=np.int64)
            expected = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else counts
            owners = opened.table(table_name).column("clip_id").to_pylist()
            in_order = [clip_id for clip_id, count in zip(ids, counts, strict=True) for _ in range(count)]
            if (starts != expected).any() or owners != in_order:
                yield VerifyProblem(prefix + table_name, "inconsistent", None, f"{kind} do not follow the index")
    except (ContentError, EnvironmentFailure) as error:
        yield VerifyProblem(prefix + DESCRIPTION_FILE, "inconsistent", None, str(error))
        return
    if quick:
        return
    for kind in opened.described["arrays"]:
        array = opened.array(kind)
        assert array is not None
        yield from _not_finite(array, name=f"{prefix}{kind}")


def _not_finite(array: VectorArray, *, name: str) -> Iterator[VerifyProblem]:
    at = 0
    for block in array.raw.blocks(0, len(array)):
        if not _is_finite(block):
            wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
            rows = (at + int(wrong[0]), at + int(wrong[-1]) + 1)
            yield VerifyProblem(name, "inconsistent", rows, "values that are not finite")
        at += len(block)


def _is_finite(block: npt.NDArray[Any]) -> bool:
    if block.dtype != np.float16:
        return bool(np.isfinite(block).all())
    # In infinity and NaN all bits of the exponent are set (IEEE 754); numpy's own test takes 20 times as long.
    magnitudes = block.view(np.uint16) & 0x7FFF
    return bool(magnitudes.max(initial=0) < 0x7C00)


def verify_store(store: Store, *, quick: bool) -> VerifyOutcome:
    """Verify the log, tags, and each snapshot, manifest, set and bank that the head or an earlier snapshot still has.

    A set, bank or manifest that neither the head nor a tag needs may have been removed by gc and is then no problem.
    """
    outcome = VerifyOutcome("quick" if quick else "full")
    sets: set[str] = set()
    manifests: set[str] = set()
    banks: set[str] = set()
    try:
        read_sealed_json(store.layout.store_file)
        entries = store.log()
        reached = read_sealed_json(store.layout.log_mark)["number"]
    except EmbedstoreError as error:
        outcome.problems.append(VerifyProblem("log", "unreadable", None, str(error)))
        return outcome
    outcome.problems += [
        VerifyProblem(f"log/{number:06d}.json", "missing", None, "the log has reached this entry")
        for number in range(len(entries) + 1, reached + 1)
    ]
    for found in check_seals(store):
        outcome.files_checked += 1
        if found is not None:
            outcome.problems.append(VerifyProblem(found[0], found[1], None, found[2]))
    for position, entry in enumerate(entries):
        outcome.files_checked += 2
        before = entries[position + 1].snapshot_id if position + 1 < len(entries) else None
        if entry.parent_id != before:
            detail = "its parent is not the entry before it"
            outcome.problems.append(VerifyProblem(f"log/{entry.number:06d}.json", "altered", None, detail))
        try:
            snapshot = store.snapshot(entry.snapshot_id)
        except EmbedstoreError as error:
            path = store.layout.snapshot_file(entry.snapshot_id)
            how = ("altered", None, str(error)) if path.exists() else ("missing",)
            outcome.problems.append(VerifyProblem(path.relative_to(store.layout.root).as_posix(), *how))
            continue
        sets |= {listed.set_id for listed in snapshot.sets}
        banks |= set(snapshot.prompts)
        manifests |= {listed.manifest_id for listed in snapshot.manifests}
    kept = _kept(store)
    for manifest_id in sorted(manifests):
        outcome.files_checked += 1
        outcome.problems += _verify_manifest(store, manifest_id, is_needed=manifest_id in kept, quick=quick)
    for folder in [store.layout.set_folder(name) for name in sorted(sets)] + [
        store.layout.bank_folder(name) for name in sorted(banks)
    ]:
        _verify_folder(store, folder, outcome, is_needed=folder.name in kept, quick=quick)
    return outcome


def _kept(store: Store) -> frozenset[str]:
    """Return the ids of what the head and the tags need; of the head alone where tags or records are damaged."""
    try:
        found = needed(store)
    except EmbedstoreError:
        try:
            head = store.snapshot()
        except EmbedstoreError:
            return frozenset()  # reported before
        ids = [entry.set_id for entry in head.sets] + [entry.manifest_id for entry in head.manifests]
        return frozenset([*ids, *head.prompts])
    return found.sets | found.manifests | found.banks


def _verify_folder(store: Store, folder: Path, outcome: VerifyOutcome, *, is_needed: bool, quick: bool) -> None:
    """Verify the folder of a set or bank; one that only earlier snapshots list may be gone."""
    name = f"{folder.parent.name}/{folder.name}"
    if not folder.is_dir():
        if is_needed:
            outcome.problems.append(VerifyProblem(name, "missing"))
        return
    prefix = f"{name}/"
    outcome.files_checked += 1
    try:
        problems = (
            verify_bank(store.open_bank(folder.name), quick=quick, prefix=prefix)
            if folder.parent == store.layout.prompts
            else verify_set(store.open_set(folder.name), quick=quick, prefix=prefix)
        )
    except EmbedstoreError as error:
        kind = "altered" if (folder / DESCRIPTION_FILE).exists() else "missing"
        outcome.problems.append(VerifyProblem(prefix + DESCRIPTION_FILE, kind, None, str(error)))
        return
    for found in problems:
        if isinstance(found, VerifyProblem):
            outcome.problems.append(found)
        else:
            outcome.files_checked += found


def _verify_manifest(store: Store, manifest_id: str, *, is_needed: bool, quick: bool) -> list[VerifyProblem]:
    path = store.layout.manifest_file(manifest_id)
    name = path.relative_to(store.layout.root).as_posix()
    if not path.exists():
        return [VerifyProblem(name, "missing")] if is_needed else []
    try:
        written = read_sealed_json(store.layout.manifest_record(manifest_id))
        record = FileRecord(written["size"], written["sha256"])
        problem = _compare(path, record, quick=quick, others={})
        if problem is not None:
            return [VerifyProblem(name, problem[0], None, problem[1])]
        if not quick and Manifest.read(path).id != manifest_id:
            return [VerifyProblem(name, "swapped", None, "holds another manifest")]
    except (EmbedstoreError, KeyError) as error:
        return [VerifyProblem(name, "altered", None, str(error))]
    return []
