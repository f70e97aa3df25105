"""Write manifests and sets as they may be sent: other names, other order, fewer columns; the vectors bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedstore.embedding_set import EmbeddingSet, SetWriter
from embedstore.layout import FAILURES_FILE, FRAME_INDEX_FILE, INDEX_FILE, WINDOW_INDEX_FILE
from embedstore.manifest import DatasetFacts, Manifest, ManifestField
from embedstore.manifest.fields import KEY_FRAMES_COLUMN, STANDARD, schema_of
from embedstore.shards import ArrayWriter
from embedstore.snapshot.policy import ColumnRule, coarsen, require_table_rules
from embedstore.snapshot.pseudonyms import Pseudonyms, keyed_digest
from embedstore.vector_array import VectorArray

__all__ = ["KEYED_SOURCE", "Naming", "sent_manifest", "sent_provenance", "write_sent_set"]

KEYED_SOURCE = "HMAC-SHA-256 of the media file's digest under a key that was not sent"
JOIN_SOURCE = "HMAC-SHA-256 of the media file's digest under a key that both labs hold"
_BLOCK_BYTES = 8 << 20
SIDES = (
    ("frames", "frame_row", "n_frame_rows", FRAME_INDEX_FILE),
    ("windows", "window_row", "n_window_rows", WINDOW_INDEX_FILE),
)
# What a recipient needs to judge vectors; hosts, times and digests of the sender's files are not among it.
_PROVENANCE = ("versions", "device", "batch_size", "licence", "licence_forbids", "content_digests")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What the clips, patients and files of one data set are called in what is sent.

    Attributes
    ----------
    ids : {"public", "pseudonyms", "kept"}
    digests : {"keyed", "join-key", "kept", "none"}
    pseudonyms : Pseudonyms
        Whose keys, and for ``pseudonyms`` whose names, are used.
    join_key : bytes or None
    """

    dataset: str
    ids: str
    digests: str
    pseudonyms: Pseudonyms
    join_key: bytes | None = None

    def clip(self, clip_id: str) -> str:
        """Return the name of a clip."""
        return self._name("clip", clip_id) or ""

    def patient(self, patient_id: str | None) -> str | None:
        """Return the name of a patient."""
        return self._name("patient", patient_id)

    def study(self, study_id: str | None) -> str | None:
        """Return the name of a study."""
        return self._name("study", study_id)

    def _name(self, kind: Any, original: str | None) -> str | None:
        if self.ids != "pseudonyms":
            return original
        return self.pseudonyms.name(self.dataset, kind, original)

    def draw(self, manifest: Manifest) -> None:
        """Draw the names of all clips, patients and studies, so that looking them up changes nothing afterwards."""
        for clip_id in manifest.clip_ids:
            self.clip(clip_id)
        for patient_id in manifest.column("patient_id"):
            self.patient(patient_id)
        for study_id in manifest.column("study_id"):
            self.study(study_id)

    def digest(self, sha256: str | None) -> str | None:
        """Return what stands for the digest of a media file."""
        if sha256 is None or self.digests == "none":
            return None
        if self.digests == "kept":
            return sha256
        key = self.join_key if self.digests == "join-key" else self.pseudonyms.key("content")
        assert key is not None
        return keyed_digest(key, sha256)

    def vector_key(self, key: str | None) -> str | None:
        """Return what stands for a vector key, which whoever has the file could compute."""
        if key is None or self.ids in ("public", "kept"):
            return key
        return keyed_digest(self.pseudonyms.key("vector key"), key)


# -- manifests ----------------------------------------------------------------------------------------------


def sent_manifest(
    manifest: Manifest, rules: Sequence[ColumnRule], naming: Naming
) -> tuple[Manifest, list[ColumnRule]]:
    """Return the manifest as it may be sent, and the rules with what was done to named columns."""
    told = list(rules)
    fields: dict[str, ManifestField] = {}
    columns: dict[str, list[Any]] = {}
    for position, rule in enumerate(rules):
        if rule.column == KEY_FRAMES_COLUMN:
            continue
        declared = manifest.fields[rule.column]
        if rule.action == "left out" and rule.column not in STANDARD:
            continue
        cells, note = _cells(manifest, declared, rule, naming)
        if note:
            told[position] = replace(rule, why=f"{rule.why}; {note}")
        fields[rule.column] = _sent_field(declared, naming)
        columns[rule.column] = cells
    key_frames = manifest.table.column(KEY_FRAMES_COLUMN).to_pylist()
    if any(rule.column == KEY_FRAMES_COLUMN and rule.action != "kept" for rule in rules):
        key_frames = [[] for _ in key_frames]
    schema = schema_of(fields)
    columns[KEY_FRAMES_COLUMN] = key_frames
    table = pa.table({name: pa.array(columns[name], type=schema.field(name).type) for name in schema.names})
    order = sorted(range(len(manifest)), key=columns["clip_id"].__getitem__)
    is_kept = naming.ids == "kept"
    split_rule = manifest.split_rule
    if naming.ids == "pseudonyms" and not split_rule.startswith("drawn"):
        split_rule = "provided"
    found = Manifest(
        table=table.take(pa.array(order, pa.int64())).combine_chunks(),
        fields=fields,
        dataset=manifest.dataset if is_kept else _sent_facts(manifest.dataset, fields),
        patient_ids=manifest.patient_ids,
        split_rule=split_rule,
        recipe=manifest.recipe,
    )
    return found, told


def _cells(manifest: Manifest, declared: ManifestField, rule: ColumnRule, naming: Naming) -> tuple[list[Any], str]:
    cells = manifest.column(rule.column)
    if rule.action in ("emptied", "left out"):
        return [None] * len(cells), ""
    if rule.column == "clip_id":
        return [naming.clip(cell) for cell in cells], ""
    if rule.column == "patient_id":
        return [naming.patient(cell) for cell in cells], ""
    if rule.column == "study_id":
        return [naming.study(cell) for cell in cells], ""
    if rule.column == "sha256":
        return [naming.digest(cell) for cell in cells], ""
    if rule.action == "named":
        return coarsen(declared, cells)
    return list(cells), ""


def _sent_field(declared: ManifestField, naming: Naming) -> ManifestField:
    if naming.ids == "kept":
        return declared
    source = None
    if declared.name == "sha256":
        source = {"keyed": KEYED_SOURCE, "join-key": JOIN_SOURCE}.get(naming.digests)
    return replace(declared, source=source)


def _sent_facts(facts: DatasetFacts, fields: Collection[str]) -> DatasetFacts:
    """Facts of the columns that are sent; of a private data set nothing that its owner wrote for himself."""
    kept = {name: entry.model_copy(update={"source": None}) for name, entry in facts.fields.items() if name in fields}
    changed: dict[str, Any] = {"fields": kept}
    if facts.ids == "private":
        changed |= {"summary": "", "source": "", "official_split": "", "traps": (), "expected_counts": {}}
    return facts.model_copy(update=changed)


# -- sets ---------------------------------------------------------------------------------------------------


def sent_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a set's provenance is sent.

    Examples
    --------
    >>> sent_provenance({"device": "cpu", "host_class": "Linux-x86_64-16", "ingested": {"format": "npz", "size": 3}})
    {'device': 'cpu', 'ingested': {'format': 'npz'}}
    """
    kept = {name: provenance[name] for name in _PROVENANCE if provenance.get(name) is not None}
    ingested = provenance.get("ingested")
    if isinstance(ingested, Mapping) and "format" in ingested:
        kept["ingested"] = {"format": ingested["format"]}
    return kept


def integers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    column = pc.fill_null(table.column(name).combine_chunks(), 0)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    position = table.column_names.index(name)
    return table.set_column(position, name, pa.array(values, table.schema.field(name).type))


def copy_rows(source: VectorArray, rows: npt.NDArray[np.int64], target: ArrayWriter) -> None:
    raw = source.raw
    if len(rows) and rows[0] == 0 and (np.diff(rows) == 1).all():
        for block in raw.blocks(0, len(rows)):
            target.append(block)
        return
    step = max(1, _BLOCK_BYTES // raw.description.row_bytes)
    for start in range(0, len(rows), step):
        target.append(raw[rows[start : start + step]])


def flat_rows(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    firsts = np.cumsum(counts) - counts
    return np.repeat(starts - firsts, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def _renamed(table: pa.Table, naming: Naming) -> pa.Table:
    changes = {"clip_id": naming.clip, "content_sha256": naming.digest, "vector_key": naming.vector_key}
    for column, rename in changes.items():
        if column in table.column_names:
            table = with_column(table, column, [rename(cell) for cell in table.column(column).to_pylist()])
    if "detail" in table.column_names:
        table = with_column(table, "detail", [None] * table.num_rows)
    return table


def write_sent_set(opened: EmbeddingSet, known: Collection[str], naming: Naming, folder: Path) -> tuple[str, int]:
    """Write a set as it may be sent below ``folder``, under its new id; rows in the order of their new names.

    Parameters
    ----------
    known : collection of str
        Clips of the manifest; rows of others stay here, since nobody says whose they are.

    Returns
    -------
    (set_id, n_left_out)
    """
    for table_name in opened.described["tables"]:
        require_table_rules(table_name, opened.table(table_name).column_names)
    ids = opened.index.column("clip_id").to_pylist()
    kept = [row for row, clip_id in enumerate(ids) if clip_id in known]
    names = {row: naming.clip(ids[row]) for row in kept}
    rows = np.array(sorted(kept, key=names.__getitem__), dtype=np.int64)
    index = opened.index.take(pa.array(rows, pa.int64()))
    index = with_column(index, "row", np.arange(len(rows), dtype=np.int64))
    failures = opened.failures
    failed = [row for row, clip_id in enumerate(failures.column("clip_id").to_pylist()) if clip_id in known]
    left_out = len(ids) - len(rows) + failures.num_rows - len(failed)
    failures = _renamed(failures.take(pa.array(failed, pa.int64())), naming).sort_by("clip_id")
    tables = {FAILURES_FILE: failures}
    with SetWriter(folder, dataset=opened.dataset, spec=opened.spec) as writer:
        clips = opened.clips
        copy_rows(clips, rows, writer.array("clips", dim=clips.shape[1]))
        for kind, start_column, count_column, table_name in SIDES:
            array = opened.array(kind)
            if array is None:
                continue
            counts = integers(index, count_column)
            flat = flat_rows(integers(index, start_column), counts)
            copy_rows(array, flat, writer.array(kind, dim=array.shape[1]))
            side = opened.table(table_name).take(pa.array(flat, pa.int64()))
            owners = np.repeat(np.arange(len(rows)), counts)
            side = side.set_column(
                side.column_names.index("clip_id"),
                "clip_id",
                pa.array([names[row] for row in rows.tolist()], pa.string()).take(pa.array(owners)),
            )
            tables[table_name] = side
            index = with_column(index, start_column, np.cumsum(counts) - counts)
        tables[INDEX_FILE] = _renamed(index, naming)
        tables = {name: table.combine_chunks() for name, table in tables.items()}
        provenance = sent_provenance(opened.provenance)
        if naming.digests in ("keyed", "join-key"):
            # So that nobody holds them against the digests of files.
            provenance["content_digests"] = naming.digests
        set_id = writer.finish(tables, provenance=provenance)
    return set_id, left_out
