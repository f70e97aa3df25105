"""Export: make a snapshot that may be sent, as a folder or as archives.

In this order: apply the rules (`embedstore.snapshot.plan`), draw and keep the pseudonyms, write everything beside its
place, describe it, search it for what must not leave, note the disclosure, and only then let it be seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedstore.disk import storage_errors
from embedstore.errors import PolicyError, UnknownNameError
from embedstore.files import read_file, write_file
from embedstore.folders import rename_folder
from embedstore.snapshot.archive import archive_names, write_archives
from embedstore.snapshot.card import side_files
from embedstore.snapshot.describe import DOCUMENT_FILE, MAX_DOCUMENT_BYTES, SentSnapshot
from embedstore.snapshot.disclosure import note_disclosure
from embedstore.snapshot.leaks import scan_export
from embedstore.snapshot.outgoing import sent_manifest
from embedstore.snapshot.parts import SentFile, one_line
from embedstore.snapshot.plan import DatasetPlan, ExportPlan, ExportRequest, make_plan, require_allowed
from embedstore.snapshot.sent_folder import write_banks, write_dataset, write_sets
from embedstore.snapshot.staging import staging_folder, sync_folders
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
        described, written = write_dataset(store, dataset, manifests[dataset.manifest.name], folder)
        datasets.append(described)
        files.append(written)
    sets, set_files, left_out = write_sets(store, plan, folder, is_internal=request.internal)
    banks, bank_files = write_banks(plan, folder, is_internal=request.internal)
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
