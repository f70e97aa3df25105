"""Search an export for what its plan must have taken out: which words these are, and what was sent on purpose."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from embedstore.errors import PolicyError
from embedstore.manifest import Manifest
from embedstore.snapshot.card import card_bytes, croissant_bytes
from embedstore.snapshot.describe import SentSnapshot
from embedstore.snapshot.leakscan import LeakScan, words_of_path
from embedstore.snapshot.parts import SentDataset, SentFile, SentSet
from embedstore.snapshot.plan import DatasetPlan, ExportPlan
from embedstore.store import Store

__all__ = ["scan_export"]

_SHOWN = 3


def scan_export(store: Store, plan: ExportPlan, folder: Path, snapshot: SentSnapshot) -> None:
    """Search a finished export.

    Raises
    ------
    PolicyError
        Something that must not leave stands in it; the message names files and words.
    """
    words: set[str] = set()
    kept: set[str] = set()
    for dataset in plan.datasets:
        more, sent = _words_of(store, dataset)
        words |= more
        kept |= sent
    leaks = LeakScan(words, kept=kept, vocabulary=_vocabulary(plan, snapshot)).scan(folder)
    if leaks:
        listed = ", ".join(f"{leak.word!r} in {leak.file}" for leak in leaks[:_SHOWN])
        more_ = f" and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else ""
        raise PolicyError(
            f"the export was stopped: what must not leave was found in it ({listed}{more_}); take it out of the "
            "columns, titles or notes that hold it, and export again"
        )


def _words_of(store: Store, dataset: DatasetPlan) -> tuple[set[str], set[str]]:
    """Return what of a data set must not be found, and what was sent on purpose."""
    manifest, naming = dataset.manifest, dataset.naming
    if naming.ids == "kept":
        return set(), set()
    tables = [table for entry in dataset.sets for table in _tables(store, entry.set_id)]
    digests = {cell for table in tables for cell in table.column("content_sha256").to_pylist()}
    digests |= set(manifest.column("sha256"))
    paths = {word for path in manifest.column("path") if path for word in words_of_path(path)}
    ids = _ids(manifest) | {cell for table in tables for cell in table.column("clip_id").to_pylist()}
    words = {word for word in digests | paths if word}
    if naming.ids == "public":
        return words - ids, ids
    keys = {cell for table in tables for cell in table.column("vector_key").to_pylist() if cell}
    sent = {naming.clip(clip_id) for clip_id in manifest.clip_ids}
    sent |= {name for name in map(naming.patient, manifest.column("patient_id")) if name}
    sent |= {name for name in map(naming.study, manifest.column("study_id")) if name}
    return words | ids | keys, sent


def _tables(store: Store, set_id: str) -> list[pa.Table]:
    opened = store.open_set(set_id)
    return [opened.index, opened.failures]


def _ids(manifest: Manifest) -> set[str]:
    columns = (manifest.clip_ids, manifest.column("patient_id"), manifest.column("study_id"))
    return {text for column in columns for text in column if text}


def _vocabulary(plan: ExportPlan, snapshot: SentSnapshot) -> str:
    """Return the fixed text of the files beside a snapshot, and the names of data sets, encoders and columns."""
    empty = SentSnapshot(source="0" * 32, version=0, datasets=(), sets=(), files=())
    fixed = [card_bytes(empty).decode(), croissant_bytes(empty).decode()]
    fixed += [name for part in (SentDataset, SentSet, SentFile, SentSnapshot) for name in part.model_fields]
    for dataset in plan.datasets:
        fixed += [dataset.manifest.name, *dataset.manifest.fields]
        fixed += [name for entry in dataset.sets for name in (entry.encoder, entry.variant)]
    fixed += [file.path for file in snapshot.files]
    return "\n".join(fixed)
