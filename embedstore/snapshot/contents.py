"""What the files of a stranger's snapshot say: descriptions, metadata, tables, arrays; held against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedstore.bank import VectorBank, check_rows
from embedstore.embedding_set import TABLE_SCHEMAS, EmbeddingSet
from embedstore.errors import ContentError, FormatError, HostileInputError, VectorError
from embedstore.files import read_file
from embedstore.identity import canonical_json, sha256_hex
from embedstore.json_files import parse_json, read_sealed_json
from embedstore.layout import (
    BANK_ARRAY,
    DESCRIPTION_FILE,
    FAILURES_FILE,
    FORMAT_VERSION,
    FRAME_INDEX_FILE,
    INDEX_FILE,
    PROVENANCE_FILE,
    WINDOW_INDEX_FILE,
)
from embedstore.manifest import Manifest
from embedstore.manifest.stored import HEADER_KEY
from embedstore.shards import ArrayDescription, group_metadata
from embedstore.snapshot.array_checks import ShardCheck, odd_vectors
from embedstore.snapshot.array_metadata import MAX_ZARR_BYTES, array_of, check_zarr_json
from embedstore.snapshot.describe import SentSnapshot
from embedstore.snapshot.parts import PromptsPart, SentDataset, SentSet, one_line
from embedstore.snapshot.selection import Selection
from embedstore.snapshot.tables import bound_table, read_table
from embedstore.snapshot.verify import VerifyProblem, verify_bank, verify_set
from embedstore.spec import EncoderSpec

__all__ = ["Contents", "Findings"]

_DESCRIPTION_KEYS = {"format", "kind", "dataset", "spec", "fingerprint", "arrays", "tables", "metadata"}
_NEVER_NULL = {
    INDEX_FILE: ("row", "clip_id", "vector_key"),
    FAILURES_FILE: ("clip_id", "reason"),
    FRAME_INDEX_FILE: ("clip_id",),
    WINDOW_INDEX_FILE: ("clip_id",),
}
_SIDES = {
    "frames": (FRAME_INDEX_FILE, "frame_row", "n_frame_rows"),
    "windows": (WINDOW_INDEX_FILE, "window_row", "n_window_rows"),
}
_MAX_TEXT = 4_096
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found that refuses no snapshot.

    Attributes
    ----------
    notes : tuple of str
        What a person should know: vectors of zeros, copies, odd lengths.
    left_out : mapping of str to list of int
        For each set's folder, rows of its clips with a vector, their own or of a frame or window, that is not finite.
    """

    notes: tuple[str, ...]
    left_out: Mapping[str, list[int]]


class Contents:
    """The parts of a snapshot in quarantine.

    Parameters
    ----------
    snapshot : SentSnapshot
    folder : Path
        The quarantine.
    selection : Selection
    """

    def __init__(self, snapshot: SentSnapshot, folder: Path, selection: Selection) -> None:
        self._snapshot, self._folder, self._selection = snapshot, folder, selection
        self._listed = {file.path: file.record for file in snapshot.files}
        self._sets: list[tuple[SentSet, EmbeddingSet]] = []
        self._banks: list[tuple[PromptsPart, VectorBank]] = []
        self._clips: dict[str, frozenset[str]] = {}
        self._looked: dict[str, list[ShardCheck]] = {}

    # -- before the arrays ----------------------------------------------------------------------------------

    def check_small(self) -> Mapping[str, ShardCheck]:
        """Check everything but the arrays.

        Returns
        -------
        mapping of str to ShardCheck
            For each shard file, what looks at its bytes as they are copied.
        """
        chosen = {file.path for file in self._snapshot.select(self._selection)}
        for dataset in self._snapshot.datasets:
            if dataset.manifest_path in chosen:
                self._clips[dataset.name] = self._check_manifest(dataset)
        checks: dict[str, ShardCheck] = {}
        for entry in self._snapshot.sets_of(self._selection):
            checks |= self._check_set(entry)
        for part in self._snapshot.prompts:
            if f"{part.folder}/{DESCRIPTION_FILE}" in chosen:
                checks |= self._check_bank(part)
        return checks

    def _check_manifest(self, dataset: SentDataset) -> frozenset[str]:
        path = self._folder / dataset.manifest_path
        bound_table(path, n_rows=dataset.n_clips, keys=(HEADER_KEY,))
        manifest = Manifest.read(path)
        manifest.require_valid()
        found = (manifest.name, manifest.id, manifest.media_digest, manifest.annotations_digest)
        if found != (dataset.name, dataset.manifest_id, dataset.media_digest, dataset.annotations_digest):
            raise HostileInputError(f"{dataset.manifest_path} holds another manifest than the snapshot says")
        facts = manifest.dataset
        if (one_line(facts.licence), one_line(facts.title)) != (dataset.licence, dataset.title):
            raise HostileInputError(f"{dataset.manifest_path} states another licence than the snapshot says")
        for name in (name for name, declared in manifest.fields.items() if declared.kind in ("text", "category")):
            for text in manifest.table.column(name).unique().to_pylist():
                if text is not None and (len(text) > _MAX_TEXT or not text.isprintable()):
                    raise HostileInputError(
                        f"{dataset.manifest_path}: column {name!r} holds control characters or text that is too long"
                    )
        return frozenset(manifest.clip_ids)

    def _description(self, folder: str, set_id: str) -> dict[str, Any]:
        path = self._folder / folder / DESCRIPTION_FILE
        payload = read_file(path, max_bytes=64 << 20)
        described = parse_json(payload, source=f"{folder}/{DESCRIPTION_FILE}")
        if sha256_hex(payload) != set_id or not isinstance(described, dict):
            raise HostileInputError(f"{folder}/{DESCRIPTION_FILE} is not the description that its id names")
        try:
            is_canonical = canonical_json(described) == payload
        except (ValueError, TypeError, RecursionError) as error:
            raise HostileInputError(f"{folder}/{DESCRIPTION_FILE} is not canonical: {error}") from error
        if not is_canonical or described.get("format") != FORMAT_VERSION:
            raise HostileInputError(f"{folder}/{DESCRIPTION_FILE} is not written in the one form of its id")
        return described

    def _require_files(self, folder: str, files: Mapping[str, Any]) -> None:
        """The description's files are those of the document, with the same sizes and digests."""
        below = f"{folder}/"
        listed = {path.removeprefix(below): rec for path, rec in self._listed.items() if path.startswith(below)}
        if set(listed) != {*files, DESCRIPTION_FILE, PROVENANCE_FILE}:
            raise HostileInputError(f"{folder} has other files than its description lists")
        if any(listed[name] != record for name, record in files.items()):
            raise HostileInputError(f"{folder}: the description and the snapshot list a file with other digests")

    def _check_set(self, entry: SentSet) -> dict[str, ShardCheck]:
        folder = entry.folder
        described = self._description(folder, entry.set_id)
        where = f"{folder}/{DESCRIPTION_FILE}"
        if set(described) != _DESCRIPTION_KEYS or described["kind"] != "embedding-set":
            raise FormatError(f"{where} has other keys than a set's description")
        try:
            spec = EncoderSpec.from_dict(described["spec"])
            is_exact = spec.to_dict() == described["spec"] and spec.fingerprint == described["fingerprint"]
            opened = EmbeddingSet(self._folder / folder, entry.set_id, described)
            arrays = {kind: array_of(fields, source=where) for kind, fields in described["arrays"].items()}
            files = dict(opened.files())
            rows = {name: table["rows"] for name, table in described["tables"].items()}
        except ContentError:
            raise
        except (TypeError, AttributeError, ValueError, LookupError) as error:
            raise FormatError(f"{where} describes no set: {type(error).__name__}: {error}") from error
        counts = {"clips": entry.n_clips, "frames": entry.n_frames, "windows": entry.n_windows}
        dims = {"clips": entry.clip_dim, "windows": entry.clip_dim, "frames": entry.frame_dim}
        tables = {INDEX_FILE, FAILURES_FILE} | {_SIDES[kind][0] for kind in arrays if kind in _SIDES}
        stated = (described["dataset"], spec.name, spec.variant, described["fingerprint"], spec.unit, spec.dtype)
        agrees = (
            is_exact
            and stated == (entry.dataset, entry.encoder, entry.variant, entry.fingerprint, entry.unit, entry.dtype)
            and (spec.clip_dim, spec.frame_dim, spec.weights_sha256)
            == (entry.clip_dim, entry.frame_dim, entry.weights_sha256)
            and "clips" in arrays
            and set(arrays) <= set(counts)
            and all(arrays[kind].n_rows == counts[kind] for kind in arrays)
            and all(counts[kind] == 0 for kind in counts if kind not in arrays)
            and all((array.dim, array.dtype) == (dims[kind], spec.dtype) for kind, array in arrays.items())
            and set(rows) == tables
            and rows[FAILURES_FILE] == entry.n_failed
            and set(described["metadata"]) == {"zarr.json"}
        )
        if not agrees:
            raise HostileInputError(f"{where} and the snapshot contradict each other")
        self._require_files(folder, files)
        if self._read(folder, "zarr.json") != group_metadata():
            raise HostileInputError(f"{folder}/zarr.json is not that of a group")
        read_sealed_json(self._folder / folder / PROVENANCE_FILE)
        kept = {"clips": arrays["clips"]} if self._selection.clips_only else arrays
        for kind, array in kept.items():
            check_zarr_json(self._read(folder, f"{kind}/zarr.json"), array, source=f"{folder}/{kind}/zarr.json")
        self._check_tables(entry, kept, rows)
        self._sets.append((entry, opened))
        return self._shard_checks(folder, kept)

    def _read(self, folder: str, name: str) -> bytes:
        return read_file(self._folder / folder / name, max_bytes=MAX_ZARR_BYTES)

    def _shard_checks(self, folder: str, arrays: Mapping[str, ArrayDescription]) -> dict[str, ShardCheck]:
        made: dict[str, ShardCheck] = {}
        for kind, array in arrays.items():
            where = f"{folder}/{kind}"
            checks = [ShardCheck(array, shard, source=where) for shard in range(array.n_shards)]
            self._looked[where] = checks
            made |= {f"{where}/c/{shard}/0": check for shard, check in enumerate(checks)}
        return made

    def _check_tables(self, entry: SentSet, arrays: Mapping[str, ArrayDescription], rows: Mapping[str, int]) -> None:
        names = [INDEX_FILE, FAILURES_FILE, *(_SIDES[kind][0] for kind in arrays if kind in _SIDES)]
        folder = self._folder / entry.folder
        tables: dict[str, pa.Table] = {}
        for name in names:
            if type(rows[name]) is not int or not 0 <= rows[name] < 1 << 40:
                raise HostileInputError(f"{entry.folder}/{DESCRIPTION_FILE} lists an impossible number of rows")
            tables[name] = read_table(folder / name, TABLE_SCHEMAS[name], n_rows=rows[name])
            empty = [column for column in _NEVER_NULL[name] if tables[name].column(column).null_count]
            if empty:
                raise HostileInputError(f"{entry.folder}/{name} has empty cells in {empty[0]!r}")
            for column in ("reason", "detail", "frame_kind", "vector_key"):
                if column in tables[name].column_names:
                    self._require_printable(entry.folder, name, column, tables[name].column(column))
        index, failed = tables[INDEX_FILE], tables[FAILURES_FILE].column("clip_id").to_pylist()
        if index.num_rows != arrays["clips"].n_rows:
            raise HostileInputError(f"{entry.folder}: clips and index do not have the same rows")
        for kind in arrays:
            if kind in _SIDES:
                self._check_spans(entry, kind, index, tables[_SIDES[kind][0]], arrays[kind].n_rows)
        clips = index.column("clip_id").to_pylist()
        if len(set(clips)) != len(clips) or len(set(failed)) != len(failed) or set(clips) & set(failed):
            raise HostileInputError(f"{entry.folder}: a clip id stands twice")
        unknown = sorted((set(clips) | set(failed)) - self._clips.get(entry.dataset, frozenset()))
        if unknown:
            raise HostileInputError(f"{entry.folder}: {len(unknown)} clips stand in no manifest of the snapshot")

    @staticmethod
    def _require_printable(folder: str, name: str, column: str, cells: pa.ChunkedArray) -> None:
        for text in cells.unique().to_pylist():
            if text is not None and (len(text) > _MAX_TEXT or not text.isprintable()):
                raise HostileInputError(
                    f"{folder}/{name}: {column} holds control characters or text that is too long"
                )

    @staticmethod
    def _check_spans(entry: SentSet, kind: str, index: pa.Table, side: pa.Table, n_rows: int) -> None:
        _, start_column, count_column = _SIDES[kind]
        starts, counts = index.column(start_column), index.column(count_column)
        is_sound = not starts.null_count and not counts.null_count
        if is_sound and index.num_rows:
            is_sound = pc.min(counts).as_py() >= 0 and pc.max(counts).as_py() <= n_rows
            is_sound = is_sound and pc.sum(counts).as_py() == n_rows
        if not is_sound or side.num_rows != n_rows:
            raise HostileInputError(f"{entry.folder}: {kind} do not follow the index")

    def _check_bank(self, part: PromptsPart) -> dict[str, ShardCheck]:
        described = self._description(part.folder, part.id)
        where = f"{part.folder}/{DESCRIPTION_FILE}"
        try:
            bank = VectorBank.open(self._folder / part.folder, bank_id=part.id)
            array = array_of(described["arrays"][BANK_ARRAY], source=where)
            files = dict(bank.files())
            for name, table in described["tables"].items():
                bound_table(self._folder / part.folder / name, n_rows=table["rows"])
            tables = {name: bank.table(name) for name in described["tables"]}
            stated = (bank.kind, bank.name, bank.encoder, set(described["arrays"]), set(described["metadata"]))
        except ContentError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FormatError(f"{where} describes no bank: {error}") from error
        if stated != (part.kind, part.name, part.encoder, {BANK_ARRAY}, {"zarr.json"}):
            raise HostileInputError(f"{where} and the snapshot contradict each other")
        self._require_files(part.folder, files)
        check_rows(bank.kind, tables, n_vectors=array.n_rows)
        texts = (c for table in tables.values() for c in table.column_names if str(table.column(c).type) == "string")
        for column in texts:
            for name, table in tables.items():
                if column in table.column_names:
                    self._require_printable(part.folder, name, column, table.column(column))
        check_zarr_json(self._read(part.folder, f"{BANK_ARRAY}/zarr.json"), array, source=where)
        read_sealed_json(self._folder / part.folder / PROVENANCE_FILE)
        self._banks.append((part, bank))
        return self._shard_checks(part.folder, {BANK_ARRAY: array})

    # -- after the arrays -----------------------------------------------------------------------------------

    def check_arrays(self, *, quarantine_rows: bool = False) -> Findings:
        """Check what needs the arrays to be there.

        Parameters
        ----------
        quarantine_rows : bool
            Say which clips have vectors that are not finite, instead of refusing them.

        Raises
        ------
        VectorError
            A row is not finite.
        """
        notes: list[str] = []
        left_out = {}
        for entry, opened in self._sets:
            if not self._selection.clips_only:
                self._refuse_problems(verify_set(opened, quick=True, prefix=f"{entry.folder}/"))
            rows = self._not_finite(entry, opened, is_told=quarantine_rows)
            if rows:
                left_out[entry.folder] = rows
            if len(rows) == len(opened):
                raise VectorError(f"{entry.folder}: every clip has a vector that is not finite")
            notes += odd_vectors(opened, without=rows)
        for part, bank in self._banks:
            self._refuse_problems(verify_bank(bank, quick=True, prefix=f"{part.folder}/"))
            self._rows_of(f"{part.folder}/{BANK_ARRAY}", is_told=False)
        return Findings(notes=tuple(notes), left_out=left_out)

    def _rows_of(self, where: str, *, is_told: bool) -> list[int]:
        """Return the rows of an array that are not finite, or refuse them."""
        rows = sorted(row for check in self._looked.get(where, ()) for row in check.not_finite)
        if rows and not is_told:
            shown = ", ".join(map(str, rows[:_SHOWN])) + (f" and {len(rows) - _SHOWN} more" if rows[_SHOWN:] else "")
            hint = "" if where.startswith("prompts/") else "; --quarantine-rows leaves their clips out"
            raise VectorError(f"{where}: row {shown} is not finite, so the snapshot is refused{hint}")
        return rows

    def _not_finite(self, entry: SentSet, opened: EmbeddingSet, *, is_told: bool) -> list[int]:
        """Return the rows of clips of which some vector is not finite."""
        found = set(self._rows_of(f"{entry.folder}/clips", is_told=is_told))
        for kind, (_, start_column, _) in _SIDES.items():
            rows = self._rows_of(f"{entry.folder}/{kind}", is_told=is_told)
            if rows:
                # Rows of a clip without any begin where the next clip's do: the last of several is the owner.
                starts = opened.index.column(start_column).to_numpy()
                found.update((np.searchsorted(starts, rows, side="right") - 1).tolist())
        return sorted(found)

    @staticmethod
    def _refuse_problems(found: Any) -> None:
        for problem in found:
            if isinstance(problem, VerifyProblem):
                raise HostileInputError(f"{problem.file}: {problem.kind}: {problem.detail}")
