"""The disclosure log: what was sent to whom, with which permission. Kept here, never sent.

An entry is written before what it speaks of can be seen, so it may speak of a sending that was cut off, and never
misses one. It holds ids of sets and manifests, by which forget-patient finds who must be told.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError
from embedstore.files import create_file
from embedstore.json_files import read_sealed_json, seal_json
from embedstore.layout import StoreLayout, log_number
from embedstore.snapshot.pseudonyms import all_maps
from embedstore.store import Store

__all__ = ["Disclosure", "SentCopy", "note_disclosure", "read_disclosures", "sent_copies"]


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """One sending.

    Attributes
    ----------
    number : int
    time : str
        ISO 8601, UTC.
    recipient : str
    snapshot_id : str
        Id of the sent snapshot.
    sets, manifests : tuple of str
        Ids, in this store, of what it was made from.
    datasets, columns : tuple of str
        Data sets, and the columns that were named.
    permission_ref : str
    internal : bool
    """

    number: int
    time: str
    recipient: str
    snapshot_id: str
    sets: tuple[str, ...]
    manifests: tuple[str, ...]
    datasets: tuple[str, ...]
    columns: tuple[str, ...] = ()
    permission_ref: str = ""
    internal: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def _numbers(layout: StoreLayout) -> list[int]:
    folder = layout.private / "disclosures"
    if not folder.is_dir():
        return []
    with storage_errors(folder, "read"):
        numbers = [log_number(entry.name) for entry in os.scandir(folder)]
    return sorted(number for number in numbers if number is not None)


def read_disclosures(layout: StoreLayout) -> list[Disclosure]:
    """Return all disclosures, oldest first.

    Raises
    ------
    CorruptionError
        An entry is not what was written.
    """
    found = []
    for number in _numbers(layout):
        path = layout.private / "disclosures" / f"{number:06d}.json"
        described = read_sealed_json(path, max_bytes=64 << 20)
        try:
            values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in described.items()}
            found.append(Disclosure(**{**values, "number": number}))
        except TypeError as error:
            raise CorruptionError(f"{path} is no entry of the disclosure log: {error}") from error
    return found


def note_disclosure(
    store: Store,
    *,
    recipient: str,
    snapshot_id: str,
    sets: Collection[str],
    manifests: Collection[str],
    datasets: Collection[str],
    columns: Collection[str] = (),
    permission_ref: str = "",
    internal: bool = False,
) -> Disclosure:
    """Write one entry; the same sending again, as after an interruption, adds none."""
    layout = store.layout
    before = read_disclosures(layout)
    entry = Disclosure(
        number=len(before) + 1,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        recipient=recipient,
        snapshot_id=snapshot_id,
        sets=tuple(sorted(sets)),
        manifests=tuple(sorted(manifests)),
        datasets=tuple(sorted(datasets)),
        columns=tuple(sorted(columns)),
        permission_ref=permission_ref,
        internal=internal,
    )
    for old in before:
        if {**old.to_dict(), "number": 0, "time": ""} == {**entry.to_dict(), "number": 0, "time": ""}:
            return old
    folder = layout.private / "disclosures"
    with storage_errors(folder, "write"):
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    number = max((old.number for old in before), default=0) + 1
    document = {name: value for name, value in entry.to_dict().items() if name != "number"}
    while not create_file(folder / f"{number:06d}.json", seal_json({**document, "number": number}), private=True):
        number += 1
    return entry


@dataclass(frozen=True, kw_only=True)
class SentCopy:
    """A sending that held, or may have held, a patient.

    Attributes
    ----------
    disclosure : Disclosure
    patient : str
        What the patient is called there.
    is_certain : bool
        False where the sets that it was made from are gone, so that nobody can tell.
    """

    disclosure: Disclosure
    patient: str
    is_certain: bool

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "snapshot": self.disclosure.snapshot_id,
            "recipient": self.disclosure.recipient,
            "time": self.disclosure.time,
            "patient": self.patient,
            "certain": self.is_certain,
        }


def sent_copies(store: Store, patient_id: str, *, datasets: Collection[str], ids: Collection[str]) -> list[SentCopy]:
    """Return the sendings that held a patient: who must be told, of whom, under which name.

    Parameters
    ----------
    datasets : collection of str
        Where the patient stands.
    ids : collection of str
        Sets and manifests of this store that hold the patient.
    """
    layout, found = store.layout, []
    maps = {names.recipient: names for names in all_maps(layout)}
    for entry in read_disclosures(layout):
        named = sorted(set(datasets) & set(entry.datasets))
        if not named:
            continue
        sources = {*entry.sets, *entry.manifests}
        gone = any(not layout.set_folder(set_id).exists() for set_id in entry.sets) or any(
            not layout.manifest_file(manifest_id).exists() for manifest_id in entry.manifests
        )
        if not sources & set(ids) and not gone:
            continue
        names = None if entry.internal else maps.get(entry.recipient)
        pseudonym = None if names is None else names.known(named[0], "patient", patient_id)
        copy = SentCopy(disclosure=entry, patient=pseudonym or patient_id, is_certain=bool(sources & set(ids)))
        found.append(copy)
    return found
