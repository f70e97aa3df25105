"""Export: make a snapshot that may be sent, as a folder or as archives.

In this order: apply the rules (`embedstore.snapshot.plan`), draw and keep the pseudonyms, write everything beside its
place, describe it, search it for what must not leave, note the disclosure, and only then let it be seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedstore.bank import VectorBank
from embedstore.disk import storage_errors
from embedstore.embedding_set import EmbeddingSet
from embedstore.errors import PolicyError, UnknownNameError
from embedstore.files import FileRecord, read_file, write_file
from embedstore.folders import rename_folder
from embedstore.history import SetEntry
from embedstore.identity import sha256_hex
from embedstore.json_files import seal_json
from embedstore.layout import ARRAY_KINDS, DESCRIPTION_FILE, PROVENANCE_FILE
from embedstore.snapshot.archive import archive_names, write_archives
from embedstore.snapshot.card import side_files
from embedstore.snapshot.describe import DOCUMENT_FILE, MAX_DOCUMENT_BYTES, SentSnapshot
from embedstore.snapshot.disclosure import note_disclosure
from embedstore.snapshot.leaks import scan_export
from embedstore.snapshot.outgoing import sent_manifest, sent_provenance, write_sent_set
from embedstore.snapshot.parts import PromptsPart, SentDataset, SentFile, SentSet, one_line
from embedstore.snapshot.paths import path_name
from embedstore.snapshot.plan import DatasetPlan, ExportPlan, ExportRequest, make_plan, require_allowed
from embedstore.snapshot.staging import copy_files, staging_folder, sync_folders
from embedstore.snapshot.unfinished import unfinished_draw
from embedstore.store import Store

__all__ = ["ExportOutcome", "export_snapshot"]


@dataclass(frozen=True, kw_only=True)
class ExportOutcome:
    """What was exported.

    Attributes
    ----------
    snapshot : SentSnapshot
    plan : ExportPlan
    paths : tuple of Path
        The folder, or the archives.
    left_out : int
        Clips that no manifest has; they stayed here.
    """

    snapshot: SentSnapshot
    plan: ExportPlan
    paths: tuple[Path, ...]
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "snapshot": self.snapshot.id,
            "recipient": self.plan.recipient,
            "internal": self.snapshot.internal,
            "paths": [str(path) for path in self.paths],
            "bytes": self.snapshot.n_bytes,
            "files": len(self.snapshot.files),
            "clips_left_out": self.left_out,
            **{key: value for key, value in self.plan.to_dict().items() if key != "recipient"},
        }


def export_snapshot(store: Store, request: ExportRequest) -> ExportOutcome:
    """Export a snapshot of a store; what was interrupted is made again with the names that were drawn for it.

    Raises
    ------
    PolicyError
        A licence, a column, a small group or a leak forbids it; nothing can be seen of it.
    UnknownNameError
        The target is taken, or a name is not known.
    """
    if request.recipient is not None or request.unnamed is not None:
        return _export(store, request)
    with unfinished_draw(store.layout, place=str(request.target.absolute())) as unnamed:
        return _export(store, replace(request, unnamed=unnamed))


def _export(store: Store, request: ExportRequest) -> ExportOutcome:
    targets = archive_names(request.target) if request.archive else [request.target]
    plan = make_plan(store, request)
    require_allowed(plan, request)
    with staging_folder(request.target) as staging:
        folder = staging / "snapshot"
        with storage_errors(folder, "write"):
            folder.mkdir()
        snapshot, left_out = _write(store, plan, request, folder)
        same = _already_there(request, snapshot)
        if not same:
            _refuse_taken(targets)
        if not request.internal:
            scan_export(store, plan, folder, snapshot)
        note_disclosure(
            store,
            recipient=plan.recipient,
            snapshot_id=snapshot.id,
            sets={entry.set_id for entry in plan.snapshot.sets},
            manifests={entry.manifest_id for entry in plan.snapshot.manifests},
            datasets={dataset.manifest.name for dataset in plan.datasets},
            columns=request.named,
            permission_ref=request.permission_ref or "",
            internal=request.internal,
        )
        if request.map_file is not None:
            plan.pseudonyms.hand_over(request.map_file, [dataset.manifest.name for dataset in plan.datasets])
        if same:
            return ExportOutcome(snapshot=snapshot, plan=plan, paths=tuple(targets), left_out=left_out)
        paths = [request.target]
        if request.archive:
            paths = write_archives(folder, snapshot, request.target, split_bytes=request.split_bytes)
        else:
            sync_folders(folder)
            if not rename_folder(folder, request.target):
                _refuse_taken([request.target])
    return ExportOutcome(snapshot=snapshot, plan=plan, paths=tuple(paths), left_out=left_out)


def _already_there(request: ExportRequest, snapshot: SentSnapshot) -> bool:
    document = request.target / DOCUMENT_FILE
    if request.archive or not document.is_file():
        return False
    return read_file(document, max_bytes=MAX_DOCUMENT_BYTES) == snapshot.to_bytes()


def _refuse_taken(targets: Iterable[Path]) -> None:
    for target in targets:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UnknownNameError(f"{target} is already there and holds something else; name another target")


# -- writing ------------------------------------------------------------------------------------------------


def _write(store: Store, plan: ExportPlan, request: ExportRequest, folder: Path) -> tuple[SentSnapshot, int]:
    with plan.pseudonyms.hold():
        plan.pseudonyms.reload()
        manifests = {d.manifest.name: _manifest_of(d, is_internal=request.internal) for d in plan.datasets}
        for dataset in plan.datasets:
            dataset.naming.draw(dataset.manifest)
        if request.unnamed is not None and request.unnamed.name == plan.recipient:
            request.unnamed.keep()
        plan.pseudonyms.save()
    files: list[SentFile] = []
    datasets = []
    for dataset in plan.datasets:
        described, written = _write_dataset(store, dataset, manifests[dataset.manifest.name], folder)
        datasets.append(described)
        files.append(written)
    sets, set_files, left_out = _write_sets(store, plan, folder, is_internal=request.internal)
    banks, bank_files = _write_banks(plan, folder, is_internal=request.internal)
    files = sorted([*files, *set_files, *bank_files], key=lambda file: file.path)
    snapshot = _passed_on(plan, request, files) or SentSnapshot(
        source=plan.pseudonyms.source,
        version=plan.version,
        parents=tuple(sorted(_parents(plan))),
        internal=request.internal,
        contact=one_line(request.contact),
        note=one_line(request.note),
        datasets=tuple(datasets),
        sets=tuple(sets),
        prompts=tuple(banks),
        files=tuple(files),
    )
    for name, payload in {DOCUMENT_FILE: snapshot.to_bytes(), **side_files(snapshot)}.items():
        with write_file(folder / name) as handle:
            handle.write(payload)
    return snapshot, left_out


def _manifest_of(dataset: DatasetPlan, *, is_internal: bool) -> tuple[Any, tuple[Any, ...]]:
    if is_internal:
        return dataset.manifest, ()
    rules = [rule for rule in dataset.rules if rule.role != "table"]
    manifest, told = sent_manifest(dataset.manifest, rules, dataset.naming)
    return manifest, tuple(told)


def _write_dataset(
    store: Store, dataset: DatasetPlan, made: tuple[Any, tuple[Any, ...]], folder: Path
) -> tuple[SentDataset, SentFile]:
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


def _write_sets(
    store: Store, plan: ExportPlan, folder: Path, *, is_internal: bool
) -> tuple[list[SentSet], list[SentFile], int]:
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


def _write_banks(plan: ExportPlan, folder: Path, *, is_internal: bool) -> tuple[list[PromptsPart], list[SentFile]]:
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


# -- passing on ---------------------------------------------------------------------------------------------


def _parents(plan: ExportPlan) -> set[str]:
    """Return the ids of sent snapshots from which a set or a manifest is passed on."""
    of_sets = (plan.received.of_set(entry.set_id) for entry in plan.snapshot.sets)
    found = {origin[1].id for origin in of_sets if origin is not None}
    for dataset in plan.datasets:
        if dataset.naming.ids == "kept":
            imports = plan.received.of_dataset(dataset.manifest.name, dataset.manifest.media_digest)
            found |= {snapshot.id for _, snapshot in imports}
    return found


def _passed_on(plan: ExportPlan, request: ExportRequest, files: list[SentFile]) -> SentSnapshot | None:
    """Return the document of an import where this is it, whole and unchanged: the same snapshot, not a new one."""
    if request.permission_ref or request.contact or request.note or request.internal:
        return None
    listed = {(file.path, file.sha256) for file in files}
    for snapshot in plan.received.snapshots:
        if {(file.path, file.sha256) for file in snapshot.files} == listed:
            return snapshot
    return None


def refuse_internal(snapshot: SentSnapshot) -> None:
    """Raise where a snapshot is a whole copy for use within one lab: it is never pushed.

    Raises
    ------
    PolicyError
    """
    if snapshot.internal:
        raise PolicyError(
            f"snapshot {snapshot.id[:12]} is an internal copy, with ids, labels and paths in it; it is not pushed; "
            "export it without --internal"
        )
