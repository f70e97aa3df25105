"""Banks on disk: a reader written from the document alone finds what was written, and what was written stays."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from small_banks import add_bank

import embedstore
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store

GOLDEN = Path(__file__).parent.parent / "data" / "stores" / "v1-banks"


def _second_reader() -> ModuleType:
    path = Path(__file__).with_name("second_reader.py")
    spec = importlib.util.spec_from_file_location("second_reader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["second_reader"] = module
    spec.loader.exec_module(module)
    return module


second = _second_reader()


@pytest.mark.parametrize("kind", ["prompts", "heads", "candidates"])
def test_the_second_reader_finds_what_was_written(tmp_path: Path, kind: str) -> None:
    store = Store.create(tmp_path / "store")
    bank = add_bank(store, kind, n_rows=300)
    whole = second.read_store(store.layout.root)
    found = whole.banks[bank.bank_id]
    np.testing.assert_array_equal(found.vectors, bank.vectors[:])
    assert found.described == dict(bank.described) and found.provenance == dict(bank.provenance)
    assert {name: bank.table(name).to_pylist() for name in found.tables} == found.tables


def test_the_golden_banks_are_read_for_ever() -> None:
    expected: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
    store = embedstore.open(GOLDEN / "store")
    assert verify_store(store, quick=False).ok
    whole = second.read_store(GOLDEN / "store")
    assert set(store.snapshot().prompts) == set(expected) == set(whole.banks)
    for bank_id, values in expected.items():
        bank, found = store.open_bank(bank_id), whole.banks[bank_id]
        assert (bank.kind, bank.name, dict(bank.spec)) == (values["kind"], values["name"], values["spec"])
        for vectors in (bank.vectors[:], found.vectors):
            assert list(vectors.shape) == values["shape"]
            assert hashlib.sha256(vectors.astype("<f4").tobytes()).hexdigest() == values["vectors_sha256"]
        assert {name: bank.table(name).to_pylist() for name in values["tables"]} == values["tables"] == found.tables


@pytest.mark.parametrize("name", ["vectors/c/0/0", "rows.parquet", "description.json", "provenance.json"])
def test_the_second_reader_refuses_a_changed_bank(tmp_path: Path, name: str) -> None:
    shutil.copytree(GOLDEN / "store", tmp_path / "store")
    bank_id = sorted(json.loads((GOLDEN / "expected.json").read_text()))[0]
    path = tmp_path / "store" / "prompts" / bank_id / name
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 3] ^= 1
    path.write_bytes(payload)
    with pytest.raises(Exception, match=r"\S"):
        second.read_store(tmp_path / "store")
    assert not verify_store(Store.open(tmp_path / "store"), quick=False).ok
