"""The folder that is sent: manifests, sets and banks of a plan written into it, and what is said of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from embedstore.bank import VectorBank
from embedstore.disk import storage_errors
from embedstore.embedding_set import EmbeddingSet
from embedstore.files import FileRecord, read_file, write_file
from embedstore.folders import rename_folder
from embedstore.history import SetEntry
from embedstore.identity import sha256_hex
from embedstore.json_files import seal_json
from embedstore.layout import ARRAY_KINDS, DESCRIPTION_FILE, PROVENANCE_FILE
from embedstore.snapshot.outgoing import sent_provenance, write_sent_set
from embedstore.snapshot.parts import PromptsPart, SentDataset, SentFile, SentSet, one_line
from embedstore.snapshot.paths import path_name
from embedstore.snapshot.plan import DatasetPlan, ExportPlan
from embedstore.snapshot.staging import copy_files
from embedstore.store import Store

__all__ = ["write_banks", "write_dataset", "write_sets"]


def write_dataset(
    store: Store, dataset: DatasetPlan, made: tuple[Any, tuple[Any, ...]], folder: Path
) -> tuple[SentDataset, SentFile]:
    """Write the manifest of a data set, and say what of it is sent.

    Parameters
    ----------
    made : (Manifest, tuple)
        As it is sent, and what is told of its columns; nothing for a copy within the lab.
    """
    manifest, told = made
    path = f"manifests/{path_name(dataset.manifest.name)}.parquet"
    target = folder / path
    with storage_errors(target, "write"):
        target.parent.mkdir(exist_ok=True)
    if manifest.id == dataset.entry.manifest_id:
        # What came in goes out in the same bytes, whatever version of pyarrow wrote it.
        record = copy_files([(store.layout.manifest_file(manifest.id), target, None)])[0]
    else:
        with write_file(target) as handle:
            handle.write(manifest.to_bytes())
        record = handle.record
    facts, naming = manifest.dataset, dataset.naming
    is_internal = not told
    patients = None if manifest.patient_ids == "unknown" else len(set(manifest.patients))
    sent = SentDataset(
        name=manifest.name,
        title=one_line(facts.title),
        licence=one_line(facts.licence),
        redistribution=dataset.redistribution,
        citation=one_line(facts.citation),
        source=one_line(facts.source),
        synthetic=facts.synthetic,
        ids="internal" if is_internal else naming.ids,
        digests="internal" if is_internal else naming.digests,
        permission_refs=dataset.permission_refs,
        manifest_path=path,
        manifest_id=manifest.id,
        media_digest=manifest.media_digest,
        annotations_digest=manifest.annotations_digest,
        n_clips=len(manifest),
        n_patients=patients,
        columns=tuple(name for name in manifest.fields if manifest.table.column(name).null_count < len(manifest)),
    )
    return sent, _sent_file(path, record, role="manifest", dataset=manifest.name)


def _sent_file(path: str, record: FileRecord, **fields: Any) -> SentFile:
    return SentFile(path=path, size=record.size, sha256=record.sha256, **fields)


def _folders(entries: Iterable[SetEntry]) -> Mapping[str, str]:
    """Return where each set goes, ``emb/DATASET/ENCODER``; sets whose folders would be one get their fingerprint."""
    places: dict[str, list[SetEntry]] = {}
    for entry in entries:
        folder = f"emb/{path_name(entry.dataset)}/{path_name(entry.title.replace('@', '.'))}"
        places.setdefault(folder.casefold(), []).append(entry)
    found = {}
    for group in places.values():
        for entry in group:
            name = path_name(entry.title.replace("@", "."))
            suffix = f"-{entry.fingerprint[:12]}" if len(group) > 1 else ""
            found[entry.set_id] = f"emb/{path_name(entry.dataset)}/{name}{suffix}"
    return found


def write_sets(
    store: Store, plan: ExportPlan, folder: Path, *, is_internal: bool
) -> tuple[list[SentSet], list[SentFile], int]:
    """Write the sets of a plan; return what they are, their files, and how many clips stayed here."""
    folders = _folders(plan.snapshot.sets)
    work = folder.parent / "sets"
    with storage_errors(work, "write"):
        work.mkdir()
    jobs = [(dataset, entry) for dataset in plan.datasets for entry in dataset.sets]

    def write(job: tuple[DatasetPlan, SetEntry]) -> tuple[SentSet, list[SentFile], int]:
        dataset, entry = job
        opened = store.open_set(entry.set_id)
        known = frozenset(dataset.manifest.clip_ids)
        is_foreign = plan.received.of_set(entry.set_id) is not None and _all_known(opened, known)
        target = folder / folders[entry.set_id]
        if is_internal or is_foreign:
            _copy_set(opened, target)
            sent_id, left_out = entry.set_id, 0
        else:
            sent_id, left_out = write_sent_set(opened, known, dataset.naming, work)
            with storage_errors(target, "write"):
                target.parent.mkdir(parents=True, exist_ok=True)
            rename_folder(work / sent_id, target)
        sent = EmbeddingSet.open(target, set_id=sent_id)
        described, written = _describe_set(sent, folders[entry.set_id])
        return described, written, left_out

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(write, jobs))
    sets = sorted((described for described, _, _ in found), key=lambda entry: entry.folder)
    return sets, [file for _, written, _ in found for file in written], sum(count for _, _, count in found)


def _all_known(opened: EmbeddingSet, known: Collection[str]) -> bool:
    clips = [*opened.index.column("clip_id").to_pylist(), *opened.failures.column("clip_id").to_pylist()]
    return set(clips) <= set(known)


def _copy_set(opened: EmbeddingSet, target: Path) -> None:
    pairs: list[tuple[Path, Path, FileRecord | None]] = [
        (opened.folder / name, target / name, record) for name, record in opened.files()
    ]
    pairs.append((opened.folder / DESCRIPTION_FILE, target / DESCRIPTION_FILE, None))
    pairs.append((opened.folder / PROVENANCE_FILE, target / PROVENANCE_FILE, None))
    copy_files(pairs)


def _role_of(name: str) -> tuple[str, str | None]:
    kind = name.partition("/")[0]
    if kind in ARRAY_KINDS:
        return ("metadata" if name.endswith("zarr.json") else "array"), kind
    return ("table" if name.endswith(".parquet") else "metadata"), None


def _describe_set(sent: EmbeddingSet, folder: str) -> tuple[SentSet, list[SentFile]]:
    spec, described = sent.spec, sent.described["arrays"]
    owner: dict[str, Any] = {"dataset": sent.dataset, "encoder": spec.title}
    files = []
    for name, record in sent.files():
        role, kind = _role_of(name)
        if name in ("frame_index.parquet", "window_index.parquet"):
            kind = f"{name.partition('_')[0]}s"
        files.append(_sent_file(f"{folder}/{name}", record, role=role, kind=kind, **owner))
    for name, role in ((DESCRIPTION_FILE, "description"), (PROVENANCE_FILE, "provenance")):
        payload = read_file(sent.folder / name, max_bytes=64 << 20)
        files.append(_sent_file(f"{folder}/{name}", _record(payload), role=role, **owner))
    entry = SentSet(
        dataset=sent.dataset,
        encoder=spec.name,
        variant=spec.variant,
        fingerprint=sent.fingerprint,
        set_id=sent.set_id,
        folder=folder,
        unit=spec.unit,
        dtype=spec.dtype,
        n_clips=len(sent),
        n_frames=described["frames"]["n_rows"] if "frames" in described else 0,
        n_windows=described["windows"]["n_rows"] if "windows" in described else 0,
        clip_dim=spec.clip_dim,
        frame_dim=spec.frame_dim,
        n_failed=sent.n_failed,
        weights_sha256=spec.weights_sha256,
        licence=one_line(str(sent.provenance.get("licence") or "unknown")),
        licence_forbids=one_line(str(sent.provenance.get("licence_forbids") or "")),
    )
    return entry, files


def _record(payload: bytes) -> FileRecord:
    return FileRecord(len(payload), sha256_hex(payload))


def write_banks(plan: ExportPlan, folder: Path, *, is_internal: bool) -> tuple[list[PromptsPart], list[SentFile]]:
    """Copy the banks of prompts of a plan; return what they are, and their files."""
    parts, files = [], []
    for bank in plan.banks:
        place = f"prompts/{bank.bank_id}"
        target = folder / place
        pairs: list[tuple[Path, Path, FileRecord | None]] = [
            (bank.folder / name, target / name, record) for name, record in bank.files()
        ]
        copy_files([*pairs, (bank.folder / DESCRIPTION_FILE, target / DESCRIPTION_FILE, None)])
        provenance = bank.provenance if is_internal else sent_provenance(bank.provenance)
        with write_file(target / PROVENANCE_FILE) as handle:
            handle.write(seal_json(provenance))
        records = {**dict(bank.files()), PROVENANCE_FILE: handle.record}
        records[DESCRIPTION_FILE] = _record(read_file(target / DESCRIPTION_FILE, max_bytes=64 << 20))
        files += [_sent_file(f"{place}/{name}", record, role="prompts") for name, record in records.items()]
        parts.append(_bank_part(bank, place))
    return parts, files


def _bank_part(bank: VectorBank, place: str) -> PromptsPart:
    licence = one_line(str(bank.provenance.get("licence") or "unknown"))
    return PromptsPart(
        id=bank.bank_id, folder=place, kind=bank.kind, name=bank.name, encoder=bank.encoder, licence=licence
    )
