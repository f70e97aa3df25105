"""`add_candidates`: the studies that a model was published with, for retrieval, as a bank of the store.

A package registers a reader of its folder under the entry-point group ``embedstore.banks``: the format's name, and
``module:callable`` of a folder and of the pickles that the user trusts, which returns a `CandidateSource`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstore.bank import (
    SECTION_PHENOTYPES_FILE,
    SECTION_PHENOTYPES_SCHEMA,
    SECTION_WEIGHTS_FILE,
    BankHeader,
    write_bank,
)
from embedstore.build.bank_owner import BankOwner
from embedstore.build.banks import BankOutcome
from embedstore.encoder import resolve_string
from embedstore.errors import ContentError
from embedstore.identity import digest_json
from embedstore.layout import BANK_ROWS_FILE
from embedstore.store import Store
from embedstore.tables import rows_to_table

__all__ = ["FORMATS_GROUP", "CandidateSource", "add_candidates"]

FORMATS_GROUP = "embedstore.banks"


class CandidateSource(Protocol):
    """What a reader returns.

    Attributes
    ----------
    name : str
        Name of the bank.
    candidate_ids : sequence of str
        One a vector.
    phenotypes : mapping of str to (N,) float64
        NaN where it is not known.
    section_weights : mapping of str to mapping of str to float
        By section the weight of each view, in the published order.
    section_phenotypes : mapping of str to sequence of str
        By section, in the published order.
    files : mapping of str to str
        SHA-256 of every file that was read, by name.
    """

    name: str
    candidate_ids: Sequence[str]
    phenotypes: Mapping[str, npt.NDArray[np.float64]]
    section_weights: Mapping[str, Mapping[str, float]]
    section_phenotypes: Mapping[str, Sequence[str]]
    files: Mapping[str, str]

    def blocks(self) -> Iterable[npt.NDArray[np.float32]]:
        """Yield the vectors in order, as published."""


def _tables(source: CandidateSource) -> dict[str, pa.Table]:
    columns = {"candidate_id": pa.array(source.candidate_ids, pa.string())}
    for name, values in source.phenotypes.items():
        if name in columns:
            raise ContentError(f"a phenotype is called {name!r}, as the column of ids is")
        columns[name] = pa.array(values, pa.float64(), mask=np.isnan(values))
    sections = list(source.section_weights)
    views = list(source.section_weights[sections[0]])
    weights = {"section": pa.array(sections, pa.string())}
    for view in views:
        weights[view] = pa.array([source.section_weights[section][view] for section in sections], pa.float64())
    phenotypes = [
        {"position": position, "section": section, "phenotype": phenotype}
        for position, (section, names) in enumerate(source.section_phenotypes.items())
        for phenotype in names
    ]
    return {
        BANK_ROWS_FILE: pa.table(columns),
        SECTION_WEIGHTS_FILE: pa.table(weights),
        SECTION_PHENOTYPES_FILE: rows_to_table(phenotypes, SECTION_PHENOTYPES_SCHEMA),
    }


def add_candidates(
    store: Store, folder: Path, owner: BankOwner, file_format: str, pickles: Mapping[str, str]
) -> BankOutcome:
    """Convert a published folder of candidates, and publish it as a bank of an encoder.

    Raises
    ------
    ContentError
        The folder's parts do not fit each other.
    HostileInputError
        A pickle is not one that the user trusts, or asks for more than its allow-list.
    StorageError
        A file is not there.
    """
    began = time.perf_counter()
    (point, *_) = sorted(entry_points(group=FORMATS_GROUP, name=file_format), key=lambda point: point.value)
    source: CandidateSource = resolve_string(point.value)(folder, dict(pickles))
    fields = {**owner.fields(), "bank_digest": digest_json(dict(source.files)), "tokenizer": None}
    header = BankHeader(kind="candidates", name=source.name, encoder=owner.name, spec=fields)
    provenance = {
        "files": dict(source.files),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with store.publishing():
        bank_id = write_bank(
            store.layout.prompts, header, _checked(source), tables=_tables(source), provenance=provenance
        )
        store.add_bank(bank_id, reason=f"candidates bank {source.name} of {owner.name}")
    bank = store.open_bank(bank_id)
    return BankOutcome(
        encoder=owner.name,
        kind=bank.kind,
        name=bank.name,
        status="made",
        bank_id=bank_id,
        n_rows=len(bank),
        seconds=time.perf_counter() - began,
    )


def _checked(source: CandidateSource) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the vectors, and refuse another number of them than there are ids before anything is published."""
    count = 0
    for block in source.blocks():
        count += len(block)
        yield block
    if count != len(source.candidate_ids):
        n_ids = len(source.candidate_ids)
        raise ContentError(f"there are {count} embedded candidates and {n_ids} ids; do the files belong together?")
