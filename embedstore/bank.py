"""`VectorBank`: a committed, immutable bank of vectors that belong to an encoder and to no data set, and its writer.

Three kinds: ``prompts`` (embedded texts), ``heads`` (the linear heads that a model was published with, one weight row
an output) and ``candidates`` (embedded studies with known phenotypes, for retrieval). Row i of `rows` belongs to
``vectors[i]``. Nothing here needs torch or the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstore.described_folder import DescribedFolder, StagedFolder, read_description
from embedstore.disk import storage_errors
from embedstore.encoder import ACTIVATIONS, split_title
from embedstore.errors import AmbiguousNameError, ContentError, FormatError, UnknownNameError
from embedstore.layout import BANK_ARRAY, BANK_ROWS_FILE, BANK_TABLES, DESCRIPTION_FILE
from embedstore.shards import ArrayWriter, cast_for_storage
from embedstore.vector_array import VectorArray

__all__ = ["BANK_KINDS", "BankHeader", "VectorBank", "check_rows", "pick_bank", "write_bank"]

BANK_KINDS = ("prompts", "heads", "candidates")
PROMPT_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("label", pa.string()),
        ("value", pa.float64()),
        ("template", pa.int64()),
    ]
)
HEAD_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("output", pa.int64()),
        ("label", pa.string()),
        ("bias", pa.float64()),
        ("activation", pa.string()),
        ("unit", pa.string()),
    ]
)
# A candidate has an id and one nullable number a phenotype; the two other tables belong to candidates alone.
SECTION_WEIGHTS_FILE, SECTION_PHENOTYPES_FILE = BANK_TABLES[1:]
SECTION_PHENOTYPES_SCHEMA = pa.schema(
    [("position", pa.int64()), ("section", pa.string()), ("phenotype", pa.string())]
)
_NEVER_NULL = {
    "prompts": ("task", "prompt"),
    "heads": ("task", "output", "bias", "activation"),
    "candidates": ("candidate_id",),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DTYPE = "float32"  # thresholds and medians over prompts hang on the last digits of a cosine


@dataclass(frozen=True, kw_only=True)
class BankHeader:
    """What a bank is, beside its vectors and rows.

    Attributes
    ----------
    kind : {"prompts", "heads", "candidates"}
    name : str
        1 to 100 ASCII letters, digits, ``.``, ``_`` and ``-``, the first a letter or digit.
    encoder : str
        Registry name, without a variant: how frames are picked changes no bank.
    spec : mapping
        JSON values: ``bank_digest``, ``weights_sha256``, ``dim`` and, for prompts, ``tokenizer``, ``logit_scale``,
        ``logit_bias``. Two banks with equal specs hold the same vectors.
    """

    kind: str
    name: str
    encoder: str
    spec: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in BANK_KINDS:
            raise ValueError(f"no bank kind {self.kind!r}")
        if not _NAME.fullmatch(self.name):
            raise ContentError(
                f"a bank is called {self.name!r}: a name is 1 to 100 letters, digits, '.', '_' and '-' of ASCII"
            )


@dataclass(frozen=True)
class VectorBank(DescribedFolder):
    """A read view of one committed bank.

    Attributes
    ----------
    folder : Path
    bank_id : str
        SHA-256 of ``description.json``.
    described : mapping
        The parsed description.

    Notes
    -----
    Columns of `rows` for prompts: ``task``, ``prompt`` (exactly as embedded), ``label`` (the class, or null),
    ``value`` (the number in the text, or null), ``template`` (which sentence a number was put into, or null). For
    heads: ``task``, ``output``, ``label`` (the class), ``bias``, ``activation``, ``unit``. For candidates:
    ``candidate_id`` and one nullable number a phenotype.
    """

    folder: Path
    bank_id: str
    described: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, *, bank_id: str) -> VectorBank:
        """Open a committed bank.

        Raises
        ------
        StorageError
            It is not there.
        CorruptionError
            The description is not the one that the id names.
        FormatError
            It was written by a newer version, or is no bank.
        """
        described = read_description(folder, expected_id=bank_id)
        if described.get("kind") != "bank" or described.get("bank_kind") not in BANK_KINDS:
            raise FormatError(f"{folder / DESCRIPTION_FILE} describes no bank of a kind that this version knows")
        return cls(folder, bank_id, described)

    @property
    def kind(self) -> str:
        """``prompts``, ``heads`` or ``candidates``."""
        return str(self.described["bank_kind"])

    @property
    def name(self) -> str:
        """Name of the bank, e.g. ``embedstore-v1``."""
        return str(self.described["name"])

    @property
    def encoder(self) -> str:
        """Registry name of the encoder."""
        return str(self.described["encoder"])

    @property
    def spec(self) -> Mapping[str, Any]:
        """What made the vectors: see `BankHeader`."""
        spec: Mapping[str, Any] = self.described["spec"]
        return spec

    @property
    def weights_sha256(self) -> str | None:
        """Digest of the encoder's weights, as the specs of its sets have it."""
        weights: str | None = self.spec.get("weights_sha256")
        return weights

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Kind, encoder, name and weights: a head lists one bank of each."""
        return self.kind, self.encoder, self.name, self.weights_sha256 or ""

    @property
    def title(self) -> str:
        """For a person."""
        return f"{self.kind} bank {self.name} of {self.encoder}"

    def __len__(self) -> int:
        return int(self.described["arrays"][BANK_ARRAY]["n_rows"])

    def __repr__(self) -> str:
        return f"VectorBank({self.kind!r}, {self.name!r}, {self.encoder!r}, {len(self)} rows, {self.bank_id[:12]})"

    @cached_property
    def vectors(self) -> VectorArray:
        """(P, D), float32: of length one for prompts and candidates, weight rows for heads."""
        return self._array_at(BANK_ARRAY)

    @cached_property
    def rows(self) -> pa.Table:
        """A row a vector, in the order of `vectors`."""
        return self.table(BANK_ROWS_FILE)

    @cached_property
    def section_weights(self) -> pa.Table:
        """Of candidates: ``section`` and one number a view, in the order of the published file.

        Raises
        ------
        FormatError
            The bank has no such table.
        """
        return self._own_table(SECTION_WEIGHTS_FILE)

    @cached_property
    def section_phenotypes(self) -> pa.Table:
        """Of candidates: ``position``, ``section``, ``phenotype``, in the order of the published file."""
        return self._own_table(SECTION_PHENOTYPES_FILE)

    def _own_table(self, name: str) -> pa.Table:
        if name not in self.described["tables"]:
            raise FormatError(f"the {self.title} has no table {name}")
        return self.table(name)


def check_rows(kind: str, tables: Mapping[str, pa.Table], *, n_vectors: int) -> None:
    """Check that the tables of a bank are what its kind asks for.

    Raises
    ------
    ContentError
        Columns, types, cells or counts are others.
    """
    expected = set(BANK_TABLES) if kind == "candidates" else {BANK_ROWS_FILE}
    if set(tables) != expected:
        raise ContentError(f"a bank of {kind} has the tables {sorted(expected)}, not {sorted(tables)}")
    rows = tables[BANK_ROWS_FILE]
    if rows.num_rows != n_vectors:
        raise ContentError(f"a bank of {kind} has {n_vectors} vectors and {rows.num_rows} rows")
    found = dict(zip(rows.schema.names, rows.schema.types, strict=True))
    if kind == "candidates":
        wanted = {"candidate_id": pa.string(), **dict.fromkeys(rows.schema.names[1:], pa.float64())}
    else:
        schema = PROMPT_SCHEMA if kind == "prompts" else HEAD_SCHEMA
        wanted = dict(zip(schema.names, schema.types, strict=True))
    if found != wanted or len(found) != len(rows.schema.names):
        raise ContentError(f"the rows of a bank of {kind} have the columns {found}, not {wanted}")
    for column in _NEVER_NULL[kind]:
        if rows.column(column).null_count:
            raise ContentError(f"a row of a bank of {kind} has no {column}")
    if kind == "heads" and not set(rows.column("activation").to_pylist()) <= set(ACTIVATIONS):
        raise ContentError(f"a head has an activation that is none of {', '.join(ACTIVATIONS)}")
    if kind == "candidates":
        _check_sections(tables)


def _check_sections(tables: Mapping[str, pa.Table]) -> None:
    weights, phenotypes = tables[SECTION_WEIGHTS_FILE], tables[SECTION_PHENOTYPES_FILE]
    types = weights.schema.types
    if weights.schema.names[:1] != ["section"] or types != [pa.string(), *[pa.float64()] * (len(types) - 1)]:
        raise ContentError("the section weights are not a column section and numbers, one a view")
    if phenotypes.schema.names != SECTION_PHENOTYPES_SCHEMA.names:
        raise ContentError("the phenotypes of the sections have other columns")
    if any(column.null_count for table in (weights, phenotypes) for column in table.columns):
        raise ContentError("a table of the sections has an empty cell")


def write_bank(
    prompts: Path,
    header: BankHeader,
    vectors: npt.NDArray[np.float32] | Iterable[npt.NDArray[np.float32]],
    *,
    tables: Mapping[str, pa.Table],
    provenance: Mapping[str, Any],
) -> str:
    """Write a bank into a staging folder beside the banks, then make it visible under its id.

    Parameters
    ----------
    prompts : Path
        The store's folder of banks.
    vectors : (P, D) float32, or an iterable of such blocks
    tables : mapping of file name to pyarrow.Table
        ``rows.parquet``; for candidates the tables of their sections too.
    provenance : mapping
        JSON values; outside the id.

    Returns
    -------
    str
        The bank id.

    Raises
    ------
    VectorError
        A vector is not finite.
    ContentError
        Vectors and tables do not fit each other or the kind.
    """
    dim = int(header.spec["dim"])
    with storage_errors(prompts, "write"):
        prompts.mkdir(parents=True, exist_ok=True)
    with StagedFolder(prompts) as staged:
        with ArrayWriter(staged.path / BANK_ARRAY, dim=dim, dtype=_DTYPE) as writer:
            for block in [vectors] if isinstance(vectors, np.ndarray) else vectors:
                if block.ndim != 2 or block.shape[1] != dim:
                    raise ContentError(f"{header.encoder} has vectors of {dim} numbers, {header.name} {block.shape}")
                writer.append(cast_for_storage(block, _DTYPE, what=f"{header.kind} bank {header.name}"))
            array = writer.finish()
        check_rows(header.kind, tables, n_vectors=array.n_rows)
        described = {
            "kind": "bank",
            "bank_kind": header.kind,
            "name": header.name,
            "encoder": header.encoder,
            "spec": dict(header.spec),
            "arrays": {BANK_ARRAY: array.to_dict()},
            "tables": {name: staged.write_table(name, table) for name, table in sorted(tables.items())},
        }
        return staged.publish(described, provenance=provenance)


def pick_bank(
    banks: Sequence[VectorBank], *, kind: str, encoder: str, name: str | None, weights_sha256: str | None
) -> VectorBank:
    """Return the one bank that fits.

    Raises
    ------
    UnknownNameError
        None does; the message names what there is.
    AmbiguousNameError
        Several do; the message lists them.
    """
    owner = split_title(encoder)[0]
    of_encoder = [bank for bank in banks if bank.kind == kind and bank.encoder == owner]
    fitting = [
        bank for bank in of_encoder if name in (None, bank.name) and weights_sha256 in (None, bank.weights_sha256)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        listed = ", ".join(_listed(bank) for bank in fitting)
        raise AmbiguousNameError(f"several banks of {kind} of {owner!r} fit: {listed}; name one, or its weights")
    wanted = f"bank {name!r} of {kind}" if name else f"bank of {kind}"
    weights = f" with weights {weights_sha256[:12]}" if weights_sha256 else ""
    if of_encoder:
        known = ", ".join(_listed(bank) for bank in of_encoder)
    else:
        known = ", ".join(sorted({bank.title for bank in banks})) or "none"
    raise UnknownNameError(f"the store has no {wanted} of encoder {owner!r}{weights}; it has: {known}")


def _listed(bank: VectorBank) -> str:
    return f"{bank.name} (weights {(bank.weights_sha256 or 'none')[:12]}, bank {bank.bank_id[:12]})"
