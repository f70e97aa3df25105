"""What the files of a stranger's snapshot say: descriptions, metadata, tables, arrays; held against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedstore.bank import VectorBank, check_rows
from embedstore.embedding_set import TABLE_SCHEMAS, EmbeddingSet
from embedstore.errors import ContentError, EmbedstoreError, FormatError, HostileInputError, VectorError
from embedstore.files import parse_json, read_file, read_sealed_json
from embedstore.identity import canonical_json, sha256_hex
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
from embedstore.shards import ArrayDescription, group_metadata, shard_index
from embedstore.snapshot.describe import SentSnapshot
from embedstore.snapshot.parts import PromptsPart, SentDataset, SentSet, one_line
from embedstore.snapshot.selection import Selection
from embedstore.snapshot.tables import bound_table, read_table
from embedstore.snapshot.verify import VerifyProblem, verify_bank, verify_set
from embedstore.spec import EncoderSpec

__all__ = ["Contents", "check_zarr_json"]

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
_CODECS = {"bytes", "crc32c", "sharding_indexed"}
_MAX_CHUNK_BYTES = 256 << 20
_MAX_ZARR_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_TEXT = 4_096
Check = Callable[[int, memoryview], None]


def check_zarr_json(payload: bytes, described: ArrayDescription, *, source: str) -> None:
    """Hold an array's ``zarr.json`` to the one document that embedstore writes for it, on raw JSON.

    Raises
    ------
    HostileInputError
        It is anything else; the message says what is wrong first.
    """
    if len(payload) > _MAX_ZARR_BYTES:
        raise HostileInputError(f"{source} is larger than {_MAX_ZARR_BYTES} bytes")
    document = parse_json(payload, source=source)
    if not isinstance(document, dict) or document.get("zarr_format") != 3:
        raise HostileInputError(f"{source} is no Zarr v3 metadata; older formats can run code and are not read")
    if document.get("data_type") not in ("float16", "float32"):
        raise HostileInputError(f"{source} has the data type {str(document.get('data_type'))[:40]!r}")
    strange = sorted(_codec_names(document.get("codecs"), 0) - _CODECS)
    if strange or document.get("storage_transformers"):
        raise HostileInputError(f"{source} asks for the codec {(strange or ['a storage transformer'])[0][:40]!r}")
    if payload != described.zarr_json() and document != parse_json(described.zarr_json(), source=source):
        raise HostileInputError(f"{source} describes another array than the set's description")


def _codec_names(codecs: Any, depth: int) -> set[str]:
    found: set[str] = set()
    if depth > _MAX_DEPTH:
        return {"nested codecs"}
    for codec in codecs if isinstance(codecs, list) else []:
        if not isinstance(codec, dict):
            found.add(str(codec))
            continue
        found.add(str(codec.get("name")))
        configuration = codec.get("configuration")
        if isinstance(configuration, dict):
            for key in ("codecs", "index_codecs"):
                found |= _codec_names(configuration.get(key), depth + 1)
    return found


def _array_of(fields: Any, *, source: str) -> ArrayDescription:
    try:
        described = ArrayDescription.from_dict(fields)
        names = {"zarr.json", *(f"c/{shard}/0" for shard in range(min(described.n_shards, len(fields["files"]))))}
        sizes = {f"c/{shard}/0": sum(described.shard_bytes(shard)) for shard in range(len(names) - 1)}
    except EmbedstoreError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise FormatError(f"{source} describes an array that is none: {error}") from error
    if described.chunk_rows * described.row_bytes > _MAX_CHUNK_BYTES:
        raise HostileInputError(f"{source} has chunks of more than {_MAX_CHUNK_BYTES} bytes")
    if described.shard_rows * described.row_bytes > 2 * _MAX_CHUNK_BYTES:
        raise HostileInputError(f"{source} has shards of more than {2 * _MAX_CHUNK_BYTES} bytes")
    if set(described.files) != names or len(names) != described.n_shards + 1:
        raise HostileInputError(f"{source} lists other files of an array than its shape asks for")
    if any(described.files[name].size != size for name, size in sizes.items()):
        raise HostileInputError(f"{source} lists a shard in another size than its shape asks for")
    return described


def _shard_check(described: ArrayDescription, shard: int, *, source: str) -> Check:
    """Return a function that looks at a shard's bytes as they pass: finite values, zero padding, the exact index."""
    start, stop = described.shard_span(shard)
    rows_bytes = (stop - start) * described.row_bytes
    data_bytes, _ = described.shard_bytes(shard)
    n_chunks = data_bytes // (described.chunk_rows * described.row_bytes)
    index = shard_index(
        n_chunks, described.chunk_rows * described.row_bytes, described.shard_rows // described.chunk_rows
    )
    # A number is not finite where all bits of its exponent are set.
    word, exponent = (np.dtype("<u2"), 0x7C00) if described.dtype == "float16" else (np.dtype("<u4"), 0x7F800000)
    mask: Any = word.type(exponent)

    def check(at: int, block: memoryview) -> None:
        inside = block[: max(0, min(len(block), rows_bytes - at))]
        values: Any = np.frombuffer(inside[: len(inside) - len(inside) % word.itemsize], dtype=word)
        wrong = np.flatnonzero((values & mask) == mask)
        if wrong.size:
            row = start + (at + int(wrong[0]) * word.itemsize) // described.row_bytes
            raise VectorError(f"{source}: row {row} is not finite; the snapshot is refused")
        padding = block[max(0, rows_bytes - at) : max(0, data_bytes - at)]
        if bytes(padding).strip(b"\0"):
            raise HostileInputError(f"{source}: other bytes stand behind the last row")
        if at + len(block) > data_bytes:
            first = max(0, at - data_bytes)
            found = block[max(0, data_bytes - at) :]
            if bytes(found) != index[first : first + len(found)]:
                raise HostileInputError(f"{source}: the shard's index is not the one of its rows")

    return check


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

    # -- before the arrays ----------------------------------------------------------------------------------

    def check_small(self) -> Mapping[str, Check]:
        """Check everything but the arrays.

        Returns
        -------
        mapping of str to callable
            For each shard file, what to do with its bytes as they are copied.
        """
        chosen = {file.path for file in self._snapshot.select(self._selection)}
        for dataset in self._snapshot.datasets:
            if dataset.manifest_path in chosen:
                self._clips[dataset.name] = self._check_manifest(dataset)
        checks: dict[str, Check] = {}
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

    def _check_set(self, entry: SentSet) -> dict[str, Check]:
        folder = entry.folder
        described = self._description(folder, entry.set_id)
        where = f"{folder}/{DESCRIPTION_FILE}"
        if set(described) != _DESCRIPTION_KEYS or described["kind"] != "embedding-set":
            raise FormatError(f"{where} has other keys than a set's description")
        try:
            spec = EncoderSpec.from_dict(described["spec"])
            is_exact = spec.to_dict() == described["spec"] and spec.fingerprint == described["fingerprint"]
            opened = EmbeddingSet(self._folder / folder, entry.set_id, described)
            arrays = {kind: _array_of(fields, source=where) for kind, fields in described["arrays"].items()}
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
        return read_file(self._folder / folder / name, max_bytes=_MAX_ZARR_BYTES)

    @staticmethod
    def _shard_checks(folder: str, arrays: Mapping[str, ArrayDescription]) -> dict[str, Check]:
        return {
            f"{folder}/{kind}/c/{shard}/0": _shard_check(array, shard, source=f"{folder}/{kind}")
            for kind, array in arrays.items()
            for shard in range(array.n_shards)
        }

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

    def _check_bank(self, part: PromptsPart) -> dict[str, Check]:
        described = self._description(part.folder, part.id)
        where = f"{part.folder}/{DESCRIPTION_FILE}"
        try:
            bank = VectorBank.open(self._folder / part.folder, bank_id=part.id)
            array = _array_of(described["arrays"][BANK_ARRAY], source=where)
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

    def check_arrays(self) -> list[str]:
        """Check what needs the arrays to be there, and return what a person should know."""
        notes = []
        for entry, opened in self._sets:
            if not self._selection.clips_only:
                self._refuse_problems(verify_set(opened, quick=True, prefix=f"{entry.folder}/"))
            notes += _odd_rows(opened)
        for part, bank in self._banks:
            self._refuse_problems(verify_bank(bank, quick=True, prefix=f"{part.folder}/"))
        return notes

    @staticmethod
    def _refuse_problems(found: Any) -> None:
        for problem in found:
            if isinstance(problem, VerifyProblem):
                raise HostileInputError(f"{problem.file}: {problem.kind}: {problem.detail}")


def _odd_rows(opened: EmbeddingSet) -> list[str]:
    """Return a note where clips have vectors of zeros, or the same vector as another clip."""
    raw = opened.clips.raw
    n_zero, digests = 0, []
    for block in raw.blocks(0, len(raw)):
        n_zero += int((~block.any(axis=1)).sum())
        block = block + block.dtype.type(0)  # one zero, not two
        digests.append(block.view(np.dtype((np.void, block.shape[1] * block.itemsize))).ravel())
    title = f"{opened.spec.title} on {opened.dataset}"
    notes = [f"{title}: {n_zero} clips have a vector of zeros"] if n_zero else []
    rows = np.concatenate(digests) if digests else np.empty(0)
    n_same = len(rows) - len(np.unique(rows)) if len(rows) else 0
    return [*notes, f"{title}: {n_same} clips have the same vector as another"] if n_same else notes
