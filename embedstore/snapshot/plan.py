"""`ExportPlan`: what an export will do, worked out before anything is written: sets, names, columns, licences.

Making a plan applies every rule that can refuse an export without looking at vectors. ``--dry-run`` prints it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedstore.bank import BANK_KINDS, VectorBank
from embedstore.errors import PolicyError, UnknownNameError, did_you_mean
from embedstore.given_paths import settle_paths
from embedstore.history import ManifestEntry, SetEntry, Snapshot
from embedstore.manifest import Manifest
from embedstore.snapshot.outgoing import Naming
from embedstore.snapshot.parts import one_line
from embedstore.snapshot.policy import (
    MIN_GROUP,
    ColumnRule,
    manifest_rules,
    require_licence,
    require_named_columns,
    smallest_group,
    table_rules,
)
from embedstore.snapshot.pseudonyms import PUBLIC_RECIPIENT, Pseudonyms, new_recipient, read_join_key
from embedstore.snapshot.received import Received, read_received
from embedstore.snapshot.unfinished import UnnamedRecipient
from embedstore.store import Store

__all__ = ["DatasetPlan", "ExportPlan", "ExportRequest", "make_plan", "refusal", "require_allowed", "version_of"]


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What the user asked for.

    Attributes
    ----------
    target : Path
        Folder to make, or file with ``archive``.
    snapshot_id : str or None
        The head without.
    datasets, encoders : collection of str
        What to send of it; all without.
    recipient : str or None
        Whose pseudonyms are used; a new one without.
    unnamed : UnnamedRecipient or None
        Who it is where nobody is named and names must be drawn; somebody new without.
    named, dropped : collection of str
        Columns to send beyond the default, and columns to leave out.
    map_file : Path, str or None
        Where the map of pseudonyms is written for an agreed recipient.
    join_key : Path, str or None
        Key that both labs hold.
    permission_ref : str or None
        Where the permission to pass the data on stands.
    accept_group : int
        Fewest patients that may share their quasi-identifiers.
    internal : bool
        A whole copy for use within the lab.
    archive : bool
    split_bytes : int
        Largest archive.
    """

    target: Path
    snapshot_id: str | None = None
    datasets: Collection[str] = ()
    encoders: Collection[str] = ()
    recipient: str | None = None
    unnamed: UnnamedRecipient | None = None
    named: Collection[str] = ()
    dropped: Collection[str] = ()
    map_file: Path | None = None
    join_key: Path | None = None
    permission_ref: str | None = None
    accept_group: int = MIN_GROUP
    contact: str = ""
    note: str = ""
    internal: bool = False
    archive: bool = False
    split_bytes: int = 50_000_000_000  # what one Zenodo record holds

    def __post_init__(self) -> None:
        """Check that nothing is asked of a whole copy that it would not do.

        Raises
        ------
        UnknownNameError
            Columns, pseudonyms or groups of an internal copy, from which nothing is taken out.
        """
        settle_paths(self, "target", "map_file", "join_key")
        of_others = {
            "--with-labels": self.named,
            "--drop": self.dropped,
            "--with-map": self.map_file,
            "--join-key": self.join_key,
            "--accept-k": self.accept_group != MIN_GROUP,
        }
        idle = [option for option, given in of_others.items() if given]
        if self.internal and idle:
            raise UnknownNameError(
                f"{idle[0]} has no part in an internal copy, which holds all as it is; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """One data set: its manifest, its sets, what its clips are called, what happens to each column."""

    manifest: Manifest
    entry: ManifestEntry
    sets: tuple[SetEntry, ...]
    naming: Naming
    rules: tuple[ColumnRule, ...]
    redistribution: str
    permission_refs: tuple[str, ...]
    group: int | None
    group_columns: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "dataset": self.manifest.name,
            "ids": self.naming.ids,
            "digests": self.naming.digests,
            "licence": self.manifest.dataset.licence,
            "redistribution": self.redistribution,
            "clips": len(self.manifest),
            "smallest_group": self.group,
            "sets": [entry.title for entry in self.sets],
            "columns": [rule.to_dict() for rule in self.rules],
        }


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """What an export will do."""

    snapshot: Snapshot
    datasets: tuple[DatasetPlan, ...]
    banks: tuple[VectorBank, ...]
    recipient: str
    pseudonyms: Pseudonyms
    received: Received = field(default_factory=Received)
    version: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "recipient": self.recipient,
            "datasets": [dataset.to_dict() for dataset in self.datasets],
            "prompts": [bank.name for bank in self.banks],
        }


def version_of(store: Store, snapshot: Snapshot) -> int:
    """Return the first commit that listed all sets and manifests of a snapshot: it rises along a lineage."""
    wanted = {*snapshot.sets, *snapshot.manifests}
    for entry in reversed(store.log()):
        if store.layout.snapshot_file(entry.snapshot_id).exists():
            listed = store.snapshot(entry.snapshot_id)
            if wanted <= {*listed.sets, *listed.manifests}:
                return entry.number
    return 0


def select_snapshot(snapshot: Snapshot, *, datasets: Collection[str], encoders: Collection[str]) -> Snapshot:
    """Return the part of a snapshot that has these data sets and encoders, with the manifests that it needs.

    Raises
    ------
    UnknownNameError
        A data set or encoder is not in it, or nothing is left.
    """
    known = sorted({entry.dataset for entry in snapshot.sets})
    titles = sorted({entry.title for entry in snapshot.sets})
    for name in datasets:
        if name not in known:
            raise UnknownNameError(f"the snapshot has no set of data set {name!r}{did_you_mean(name, known)}")
    for name in encoders:
        if name not in titles and name not in {entry.encoder for entry in snapshot.sets}:
            raise UnknownNameError(f"the snapshot has no set of encoder {name!r}{did_you_mean(name, titles)}")
    sets = tuple(
        entry
        for entry in snapshot.sets
        if (not datasets or entry.dataset in datasets)
        and (not encoders or {entry.title, entry.encoder} & set(encoders))
    )
    if not sets:
        raise UnknownNameError("the snapshot has no set that fits; see embedstore ls")
    needed = {entry.dataset for entry in sets}
    manifests = tuple(entry for entry in snapshot.manifests if entry.name in needed)
    missing = sorted(needed - {entry.name for entry in manifests})
    if missing:
        raise PolicyError(
            f"the snapshot has vectors of {missing[0]!r} and no manifest of it, so nobody can tell whose they are; "
            "add its manifest (embedstore manifest add) and export again"
        )
    return Snapshot(sets=sets, manifests=manifests, prompts=snapshot.prompts)


def make_plan(store: Store, request: ExportRequest) -> ExportPlan:
    """Work out what an export does.

    Raises
    ------
    PolicyError
        A licence, a column or a small group forbids it.
    UnknownNameError
        A data set, encoder or column is not there.
    """
    whole = store.snapshot(request.snapshot_id)
    if not whole.sets:
        raise UnknownNameError("the store has no set to export")
    snapshot = select_snapshot(whole, datasets=request.datasets, encoders=request.encoders)
    manifests = {entry.name: store.open_manifest(entry) for entry in snapshot.manifests}
    require_named_columns({*request.named, *request.dropped}, manifests.values())
    received = read_received(store.layout)
    encoders = {entry.encoder for entry in snapshot.sets}
    banks = [store.open_bank(bank_id) for bank_id in snapshot.prompts]
    # Candidates are other patients' studies: they go with the weights they came with, not with a snapshot.
    kinds = BANK_KINDS if request.internal else ("prompts", "heads")
    sent_banks = tuple(bank for bank in banks if bank.kind in kinds and bank.encoder in encoders)
    is_private = any(
        manifest.ids == "private" and not received.of_dataset(name, manifest.media_digest)
        for name, manifest in manifests.items()
    )
    unnamed = request.unnamed.name if request.unnamed is not None else new_recipient()
    recipient = request.recipient or (unnamed if is_private and not request.internal else PUBLIC_RECIPIENT)
    pseudonyms = Pseudonyms(store.layout, recipient)
    join_key = None if request.join_key is None else read_join_key(request.join_key)
    plans = []
    for entry in snapshot.manifests:
        manifest = manifests[entry.name]
        sets = tuple(item for item in snapshot.sets if item.dataset == entry.name)
        naming = _naming(manifest, received, pseudonyms, join_key=join_key, internal=request.internal)
        rules: list[ColumnRule] = []
        group: int | None = None
        columns: tuple[str, ...] = ()
        if not request.internal:
            rules = manifest_rules(
                manifest, ids=naming.ids, digests=naming.digests, named=request.named, dropped=request.dropped
            )
            group, columns = smallest_group(manifest, request.named)
            rules += table_rules(ids=naming.ids, digests=naming.digests)
        set_ids = [item.set_id for item in sets]
        before = [ref for dataset in received.binding(entry.name, set_ids) for ref in dataset.permission_refs]
        refs = [*before, one_line(request.permission_ref)] if request.permission_ref else before
        plans.append(
            DatasetPlan(
                manifest=manifest,
                entry=entry,
                sets=sets,
                naming=naming,
                rules=tuple(rules),
                redistribution=received.redistribution(entry.name, set_ids, manifest.dataset.redistribution),
                permission_refs=tuple(dict.fromkeys(refs)),
                group=group,
                group_columns=columns,
            )
        )
    return ExportPlan(
        snapshot=Snapshot(
            sets=snapshot.sets, manifests=snapshot.manifests, prompts=tuple(bank.bank_id for bank in sent_banks)
        ),
        datasets=tuple(plans),
        banks=sent_banks,
        recipient=recipient,
        pseudonyms=pseudonyms,
        received=received,
        version=version_of(store, snapshot),
    )


def refusal(plan: ExportPlan, request: ExportRequest) -> str | None:
    """Return why the export would be refused, as far as that can be told before it is written."""
    try:
        require_allowed(plan, request)
    except PolicyError as error:
        return str(error)
    return None


def require_allowed(plan: ExportPlan, request: ExportRequest) -> None:
    """Raise where a licence or a group of patients that is too small forbids the export.

    Raises
    ------
    PolicyError
    """
    if request.internal:
        return
    require_licence(
        {dataset.manifest.name: dataset.redistribution for dataset in plan.datasets},
        permission_ref=request.permission_ref,
    )
    for dataset in plan.datasets:
        if dataset.group is not None and dataset.group < request.accept_group:
            raise PolicyError(
                f"{dataset.manifest.name!r} has {dataset.group} patients who alone share their values in "
                f"{', '.join(dataset.group_columns)}, fewer than {request.accept_group}: they could be recognised; "
                f"leave a column out, make it coarser, or accept it with --accept-k {dataset.group}"
            )


def _naming(
    manifest: Manifest, received: Received, pseudonyms: Pseudonyms, *, join_key: bytes | None, internal: bool
) -> Naming:
    if internal:
        ids, digests = "public", "kept"
    elif received.of_dataset(manifest.name, manifest.media_digest):
        ids, digests = "kept", "kept"  # the names and digests that whoever sent them gave
    else:
        ids = "public" if manifest.ids == "public" else "pseudonyms"
        digests = "keyed" if join_key is None else "join-key"
    return Naming(dataset=manifest.name, ids=ids, digests=digests, pseudonyms=pseudonyms, join_key=join_key)
