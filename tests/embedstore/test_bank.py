"""Banks: written whole, read equal, found by name, verified, kept and swept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from small_banks import DIM, add_bank, header_of, tables_of, vectors_of
from small_sets import run_program

import embedstore
from embedstore.bank import write_bank
from embedstore.errors import (
    AmbiguousNameError,
    ContentError,
    CorruptionError,
    StorageError,
    UnknownNameError,
    VectorError,
)
from embedstore.history import Snapshot
from embedstore.snapshot.diff import diff_snapshots
from embedstore.snapshot.tags import create_tag
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store
from embedstore.upkeep.gc import collect_garbage


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.mark.parametrize("kind", ["prompts", "heads", "candidates"])
def test_a_bank_comes_back_as_written(store: Store, kind: str) -> None:
    made = add_bank(store, kind)
    (bank,) = embedstore.open(store.layout.root).banks()
    assert (bank.kind, bank.name, bank.encoder, bank.bank_id) == (kind, "mine", "small", made.bank_id)
    assert store.snapshot().prompts == (bank.bank_id,)
    expected = vectors_of(header_of(kind), 5)
    assert bank.vectors.shape == (5, DIM) and bank.vectors[:].dtype == np.float32
    np.testing.assert_array_equal(bank.vectors[:], expected)
    assert bank.rows.to_pylist() == tables_of(kind, 5)["rows.parquet"].to_pylist()
    assert bank.spec["dim"] == DIM and bank.weights_sha256 is None and bank.provenance == {"made": "by a test"}
    if kind == "candidates":
        assert bank.section_weights.column("A2C").to_pylist() == [0.5, 0.0]
        assert bank.section_phenotypes.column("phenotype").to_pylist() == ["ef"]


def test_any_zarr_reader_opens_the_vectors(store: Store) -> None:
    import zarr

    bank = add_bank(store, "prompts")
    array = zarr.open_array(str(bank.folder / "vectors"), mode="r", zarr_format=3)
    np.testing.assert_array_equal(array[:], bank.vectors[:])


def test_the_same_content_is_the_same_bank_and_no_new_commit(store: Store) -> None:
    first = add_bank(store, "prompts")
    number = len(store.log())
    assert add_bank(store, "prompts").bank_id == first.bank_id and len(store.log()) == number


def test_a_new_version_replaces_the_old_one_of_the_same_name_and_weights(store: Store) -> None:
    old = add_bank(store, "prompts")
    others = [
        add_bank(store, "heads"),
        add_bank(store, "prompts", "theirs"),
        add_bank(store, "prompts", encoder="other"),
        add_bank(store, "prompts", weights_sha256="a" * 64),
    ]
    new = add_bank(store, "prompts", version=2)
    assert old.bank_id != new.bank_id
    assert {bank.bank_id for bank in store.banks()} == {new.bank_id, *(bank.bank_id for bank in others)}
    assert len(store.banks(kind="prompts", encoder="small@uniform16")) == 3


def test_a_bank_is_found_by_name_or_the_choice_is_named(store: Store) -> None:
    mine, theirs = add_bank(store, "prompts"), add_bank(store, "prompts", "theirs", weights_sha256="b" * 64)
    assert store.bank(kind="prompts", encoder="small", name="mine").bank_id == mine.bank_id
    assert store.bank(kind="prompts", encoder="small", weights_sha256="b" * 64).bank_id == theirs.bank_id
    with pytest.raises(AmbiguousNameError, match="mine .*theirs"):
        store.bank(kind="prompts", encoder="small")
    with pytest.raises(UnknownNameError, match="no bank of heads of encoder 'small'; it has: prompts bank mine"):
        store.bank(kind="heads", encoder="small")
    with pytest.raises(UnknownNameError, match="with weights cccccccccccc"):
        store.bank(kind="prompts", encoder="small", weights_sha256="c" * 64)


def test_what_does_not_fit_is_refused_and_leaves_nothing(store: Store) -> None:
    header, tables = header_of("prompts"), tables_of("prompts", 5)
    vectors = vectors_of(header, 5)
    nan = vectors.copy()
    nan[2, 1] = np.nan
    with pytest.raises(VectorError, match="row 2 is not finite"):
        write_bank(store.layout.prompts, header, nan, tables=tables, provenance={})
    for wrong in (vectors[:4], vectors[:, :5]):
        with pytest.raises(ContentError):
            write_bank(store.layout.prompts, header, wrong, tables=tables, provenance={})
    with pytest.raises(ContentError, match="columns"):
        write_bank(store.layout.prompts, header, vectors, tables=tables_of("heads", 5), provenance={})
    with pytest.raises(ContentError, match="tables"):
        write_bank(store.layout.prompts, header_of("candidates"), vectors, tables=tables, provenance={})
    with pytest.raises(ContentError, match="a bank is called"):
        header_of("prompts", "../up")
    assert list(store.layout.prompts.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["vectors/c/0/0", "vectors/zarr.json", "rows.parquet", "provenance.json", "zarr.json"]
)
def test_verify_finds_a_flipped_bit_in_every_file_of_a_bank(store: Store, name: str) -> None:
    bank = add_bank(store, "candidates")
    assert verify_store(store, quick=False).ok and verify_store(store, quick=True).ok
    path = bank.folder / name
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 1
    path.write_bytes(payload)
    problems = verify_store(store, quick=False).problems
    assert [problem.file.startswith(f"prompts/{bank.bank_id}/") for problem in problems] == [True]


def test_verify_finds_a_lost_bank_and_a_changed_description(store: Store) -> None:
    bank = add_bank(store, "prompts")
    path = bank.folder / "description.json"
    path.write_bytes(path.read_bytes().replace(b'"mine"', b'"mime"'))
    (problem,) = verify_store(store, quick=True).problems
    assert (problem.file, problem.kind) == (f"prompts/{bank.bank_id}/description.json", "altered")
    with pytest.raises(CorruptionError, match="run embedstore verify"):
        store.open_bank(bank.bank_id)
    bank.folder.rename(store.layout.root.parent / "gone")
    (problem,) = verify_store(store, quick=True).problems
    assert (problem.file, problem.kind) == (f"prompts/{bank.bank_id}", "missing")
    with pytest.raises(StorageError):
        store.banks()
    assert store.absent(store.snapshot()) == [store.layout.bank_folder(bank.bank_id)]


def test_gc_keeps_banks_of_the_head_and_of_tags_and_sweeps_the_rest(store: Store) -> None:
    tagged = add_bank(store, "prompts")
    create_tag(store, "paper", snapshot_id=store.snapshot().id)
    dropped, head = (add_bank(store, "prompts", version=version) for version in (2, 3))
    (store.layout.prompts / ".staging-left").mkdir()
    (found,) = [one for one in collect_garbage(store, grace_h=0).removed if one.kind == "bank"]
    assert found.path.name == dropped.bank_id and found.what == "prompts bank mine of small"
    assert not collect_garbage(store, grace_h=24, apply=True).removed
    os.utime(store.layout.prompts / ".staging-left", (0, 0))
    gone = collect_garbage(store, grace_h=0, apply=True).removed
    assert {one.path.name for one in gone} == {dropped.bank_id, ".staging-left"}
    assert {path.name for path in store.layout.prompts.iterdir()} == {tagged.bank_id, head.bank_id}
    assert verify_store(store, quick=False).ok


def test_a_commit_of_a_bank_that_was_swept_is_refused(store: Store) -> None:
    with pytest.raises(StorageError, match="not in the store any more"):
        store.commit(lambda head: head.with_bank("e" * 64), reason="never written")


def test_diff_names_banks_by_what_they_are(store: Store) -> None:
    before = add_bank(store, "prompts")
    a = store.snapshot()
    after = add_bank(store, "prompts", version=2)
    heads = add_bank(store, "heads")
    found = diff_snapshots(store, a, store.snapshot())
    assert found.prompts_added == tuple(sorted([after.bank_id, heads.bank_id]))
    assert found.prompts_removed == (before.bank_id,)
    assert diff_snapshots(store, Snapshot(), a).prompts_added == (before.bank_id,)


@pytest.mark.parametrize("kind", ["prompts", "heads", "candidates"])
def test_listings_show_a_bank(store: Store, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    bank = add_bank(store, kind)
    assert run_program("ls", "--store", store.layout.root, "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)["banks"]
    assert (listed["bank"], listed["kind"], listed["rows"], listed["dim"]) == (bank.bank_id, kind, 5, DIM)
    assert run_program("show", bank.bank_id[:12], "--store", store.layout.root, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["spec"] == dict(bank.spec) and shown["tasks"] == listed["tasks"]
    assert (shown["table"] is None) == (kind == "candidates")
    assert run_program("show", bank.bank_id[:12], "--store", store.layout.root) == 0
    text = capsys.readouterr().out
    assert bank.bank_id in text and {"prompts": "'EF 0%. '", "heads": "softmax", "candidates": "ef"}[kind] in text
