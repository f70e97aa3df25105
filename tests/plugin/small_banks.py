"""Small banks whose every vector follows from their name, for tests of the store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from embedstore.bank import HEAD_SCHEMA, PROMPT_SCHEMA, SECTION_PHENOTYPES_SCHEMA, BankHeader, VectorBank, write_bank
from embedstore.identity import derive_seed, digest_json
from embedstore.store import Store
from embedstore.tables import rows_to_table

DIM = 6


def header_of(kind: str, name: str = "mine", *, encoder: str = "small", version: int = 1, **spec: Any) -> BankHeader:
    """A header with vectors of `DIM` numbers."""
    fields: dict[str, Any] = {"bank_digest": digest_json([name, version]), "weights_sha256": None, "dim": DIM}
    if kind == "prompts":
        tokenizer = {"kind": "letters", "sha256": digest_json("abc"), "context": 8}
        fields |= {"tokenizer": tokenizer, "text_files": {}, "logit_scale": 100.0, "logit_bias": None}
    fields |= spec
    return BankHeader(kind=kind, name=name, encoder=encoder, spec=fields)


def vectors_of(header: BankHeader, n_rows: int) -> np.ndarray:
    """Rows of length one."""
    rng = np.random.default_rng(derive_seed(header.kind, header.name, header.encoder, header.spec["bank_digest"]))
    vectors = rng.standard_normal((n_rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def tables_of(kind: str, n_rows: int) -> dict[str, pa.Table]:
    """Rows of a kind, with empty cells where there may be some."""
    if kind == "heads":
        heads = [
            {"task": "EF", "output": 0, "label": None, "bias": 50.0, "activation": "identity", "unit": "pct"},
            *(
                {"task": "size", "output": n, "label": f"class {n}", "bias": -n / 2, "activation": "softmax"}
                for n in range(n_rows - 1)
            ),
        ]
        return {"rows.parquet": rows_to_table(heads, HEAD_SCHEMA)}
    if kind == "prompts":
        prompts: list[dict[str, Any]] = [
            {"task": "lvef", "prompt": f"EF {n}%. ", "value": float(n), "template": 0} for n in range(n_rows - 1)
        ]
        prompts.append({"task": "as", "prompt": "NO AORTIC STENOSIS", "label": "0"})
        return {"rows.parquet": rows_to_table(prompts, PROMPT_SCHEMA)}
    ids = [f"study-{n}" for n in range(n_rows)]
    return {
        "rows.parquet": pa.table({"candidate_id": ids, "ef": pa.array([None, *range(1, n_rows)], pa.float64())}),
        "section_weights.parquet": pa.table({"section": ["Left Ventricle", "Aortic Valve"], "A2C": [0.5, 0.0]}),
        "section_phenotypes.parquet": rows_to_table(
            [{"position": 0, "section": "Left Ventricle", "phenotype": "ef"}], SECTION_PHENOTYPES_SCHEMA
        ),
    }


def add_bank(store: Store, kind: str, name: str = "mine", *, n_rows: int = 5, **fields: Any) -> VectorBank:
    """Write a bank and publish it."""
    header = header_of(kind, name, **fields)
    with store.publishing():
        bank_id = write_bank(
            store.layout.prompts,
            header,
            vectors_of(header, n_rows),
            tables=tables_of(kind, n_rows),
            provenance={"made": "by a test"},
        )
        store.add_bank(bank_id, reason="bank")
    return store.open_bank(bank_id)
