"""Diff: clips by id, bits and tolerance told apart, manifests by digest, memory bounded by a block."""

from __future__ import annotations

import json
import shutil
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_banks import add_bank
from small_sets import add_set, drop_sets, expected_content, manifest_of, run_program, spec_of, write_set

from embedstore.embedding_set import FAILURES_SCHEMA, INDEX_SCHEMA, EmbeddingSet, SetWriter
from embedstore.folders import remove_folder
from embedstore.snapshot import diff as diff_module
from embedstore.snapshot.diff import LEAST_COSINE, RELATIVE_TOLERANCE, diff_sets, diff_snapshots
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import rows_to_table

HALF_STEP = 1 + 2.0**-10  # moves a float16 value by at most one step


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def opened(store: Store, clips: dict[str, int], **options: object) -> EmbeddingSet:
    return store.open_set(write_set(store, clips, **options).set_id)  # type: ignore[arg-type]


def write_matrix(store: Store, rows: np.ndarray, *, ids: list[str] | None = None) -> EmbeddingSet:
    """A set of clip vectors only."""
    spec = EncoderSpec(name="matrix", clip_dim=rows.shape[1], dtype=str(rows.dtype))
    names = ids or [f"c{row}" for row in range(len(rows))]
    index = [{"row": row, "clip_id": clip_id, "vector_key": clip_id} for row, clip_id in enumerate(names)]
    with SetWriter(store.layout.sets, dataset="mine", spec=spec) as writer:
        writer.array("clips", dim=rows.shape[1]).append(rows)
        set_id = writer.finish(
            {
                "index.parquet": rows_to_table(index, INDEX_SCHEMA),
                "failures.parquet": rows_to_table([], FAILURES_SCHEMA),
            },
            provenance={},
        )
    return store.open_set(set_id)


def test_the_same_set_is_not_read(store: Store) -> None:
    a = opened(store, {"a": 1, "b": 2}, failed=["c"])
    found = diff_sets(a, a)
    assert (found.status, found.n_identical, found.failed_a, found.arrays) == ("identical", 2, 1, ())


def test_clips_are_matched_by_id_not_by_row(store: Store) -> None:
    a, b = opened(store, {"a": 1, "b": 1, "c": 1}), opened(store, {"c": 1, "a": 1, "b": 1})
    found = diff_sets(a, b)
    assert found.status == "same-vectors" and found.is_reordered and found.n_identical == 3
    assert {(array.kind, array.max_delta, array.min_cosine) for array in found.arrays} == {
        (kind, 0.0, 1.0) for kind in ("clips", "frames", "windows")
    }


def test_bits_and_tolerance_are_told_apart(store: Store) -> None:
    clips = {"a": 1, "b": 1, "c": 1, "d": 1}
    a = opened(store, clips)
    b = opened(store, {**clips, "c": 2, "e": 1}, shift={"b": HALF_STEP}, failed=["d2"])
    found = diff_sets(a, b)
    assert found.status == "changed"
    assert (found.n_identical, found.n_equivalent, found.changed, found.added, found.removed) == (
        2,
        1,
        ("c",),
        ("e",),
        (),
    )
    assert found.n_other_source == 1 and (found.failed_a, found.failed_b) == (0, 1)
    back = diff_sets(b, a)
    assert (back.added, back.removed, back.changed) == ((), ("e",), ("c",))


def test_only_equivalent(store: Store) -> None:
    a, b = opened(store, {"a": 1, "b": 1}), opened(store, {"a": 1, "b": 1}, shift={"b": HALF_STEP})
    found = diff_sets(a, b)
    assert (found.status, found.n_identical, found.n_equivalent) == ("equivalent", 1, 1)
    for array in found.arrays:
        assert array.max_delta is not None and array.min_cosine is not None
        assert 0 < array.max_delta < 0.01 and LEAST_COSINE < array.min_cosine <= 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_tolerance_is_the_stated_one(store: Store, dtype: str) -> None:
    """One value of a row moves by a little less, and a little more, than the tolerance of the largest value."""
    rows = np.zeros((2, 64), dtype=dtype)
    rows[:, :32] = 1
    moved = rows.copy()
    step = 2.0**-11 if dtype == "float16" else 2.0**-23
    moved[0, 0] = 1 - (RELATIVE_TOLERANCE[dtype] - 2 * step)
    moved[1, 0] = 1 - (RELATIVE_TOLERANCE[dtype] + 2 * step)
    found = diff_sets(write_matrix(store, rows), write_matrix(store, moved))
    assert (found.n_identical, found.n_equivalent, found.changed) == (0, 1, ("c1",))
    (array,) = found.arrays
    assert array.max_delta == pytest.approx(RELATIVE_TOLERANCE[dtype] + 2 * step, rel=1e-3)


def test_small_values_that_turn_are_changed_by_their_cosine(store: Store) -> None:
    """Each value is within the tolerance of the largest, but together they turn the vector."""
    rows = np.full((1, 4096), 1e-3, dtype=np.float32)
    rows[0, 0] = 1
    moved = rows.copy()
    moved[0, 1:] += np.where(np.arange(4095) % 2, 9e-4, -9e-4).astype(np.float32)
    a, b = (rows.astype(np.float16), moved.astype(np.float16))
    found = diff_sets(write_matrix(store, a), write_matrix(store, b))
    (array,) = found.arrays
    assert array.max_delta is not None and array.max_delta < RELATIVE_TOLERANCE["float16"]
    assert array.min_cosine is not None and array.min_cosine < LEAST_COSINE
    assert found.changed == ("c0",)


def test_zero_and_huge_vectors(store: Store) -> None:
    rows = np.array([[0, 0], [0, 0], [3e38, 3e38]], dtype=np.float32)
    moved = np.array([[-0.0, 0], [1e-6, 0], [-3e38, 3e38]], dtype=np.float32)
    found = diff_sets(write_matrix(store, rows), write_matrix(store, moved))
    assert (found.n_identical, found.n_equivalent, found.changed) == (0, 1, ("c1", "c2"))
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.arrays[0].max_delta == pytest.approx(6e38) and found.arrays[0].min_cosine == 0.0


def test_other_dims_dtypes_and_kinds(store: Store) -> None:
    rows = np.ones((2, 4), dtype=np.float32)
    wide = diff_sets(write_matrix(store, rows), write_matrix(store, np.ones((2, 5), dtype=np.float32)))
    assert wide.changed == ("c0", "c1") and wide.arrays[0].max_delta is None and not wide.same_fingerprint
    half = diff_sets(write_matrix(store, rows), write_matrix(store, rows.astype(np.float16)))
    assert (half.status, half.n_identical, half.n_equivalent) == ("equivalent", 0, 2)
    bare = diff_sets(opened(store, {"a": 1}, kinds=("clips",)), opened(store, {"a": 1}, kinds=("clips", "frames")))
    assert bare.status == "changed" and bare.changed == () and bare.n_identical == 1
    assert {array.kind: array.only_in for array in bare.arrays} == {"clips": None, "frames": "b"}


def test_another_number_of_frames_is_a_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    a = opened(store, {"a": 1, "b": 1}, kinds=("clips", "frames"))
    monkeypatch.setattr("small_sets.n_rows_of", lambda clip_id, kind: 5 if clip_id == "a" else 2)
    b = opened(store, {"a": 1, "b": 1}, kinds=("clips", "frames"))
    assert "a" in diff_sets(a, b).changed


@settings(max_examples=25, deadline=None)
@given(
    before=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 2), min_size=1),
    after=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 2), min_size=1),
    near=st.sets(st.sampled_from("abcdefgh")),
    block_bytes=st.sampled_from([1, 200, 8 << 20]),
)
def test_against_a_plain_comparison(
    before: dict[str, int], after: dict[str, int], near: set[str], block_bytes: int
) -> None:
    folder = Path(tempfile.mkdtemp())
    old = diff_module._BLOCK_BYTES
    diff_module._BLOCK_BYTES = block_bytes
    try:
        store = Store.create(folder / "store")
        shift = dict.fromkeys(near, HALF_STEP)
        found = diff_sets(opened(store, before), opened(store, after, shift=shift))
    finally:
        diff_module._BLOCK_BYTES = old
        shutil.rmtree(folder)
    assert set(found.added) == set(after) - set(before) and set(found.removed) == set(before) - set(after)
    if before == after and not near & set(after):
        assert found.status in ("identical", "same-vectors")
        return
    common = set(before) & set(after)
    spec = spec_of()
    a, b = expected_content(before, spec), expected_content(after, spec)
    unequal = {clip_id for clip_id in common if a[clip_id] != b[clip_id]}
    assert set(found.changed) == unequal
    assert found.n_equivalent == len(common & near - unequal)
    assert found.n_identical == len(common - near - unequal)


def test_memory_is_bounded_by_the_block(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff_module, "_BLOCK_BYTES", 1 << 20)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40_000, 256), dtype=np.float32)
    moved = rows + np.float32(1e-6)
    order = rng.permutation(len(rows))
    ids = [f"c{row}" for row in range(len(rows))]
    a, b = write_matrix(store, rows), write_matrix(store, moved[order], ids=[ids[row] for row in order])
    _ = a.index, b.index
    del rows, moved
    tracemalloc.start()
    found = diff_sets(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.n_equivalent == 40_000 and found.is_reordered
    assert peak < 16e6, f"{peak / 1e6:.1f} MB for two sets of 41 MB"


def test_sets_are_matched_by_dataset_and_title(store: Store, tmp_path: Path) -> None:
    add_set(store, {"a": 1})
    add_set(store, {"a": 1}, spec=spec_of("gone"))
    add_set(store, {"a": 1}, spec=spec_of("weights", weights_sha256="1" * 64))
    add_set(store, {"a": 1}, dataset="other")
    first = store.snapshot()
    drop_sets(store)
    add_set(store, {"a": 1})
    add_set(store, {"a": 1}, spec=spec_of("weights", weights_sha256="2" * 64))
    add_set(store, {"a": 1}, dataset="other")
    add_set(store, {"a": 2}, dataset="other", spec=spec_of(variant="stride2"))
    found = diff_snapshots(store, first, store.snapshot())
    assert {(entry.dataset, entry.encoder, entry.status, entry.same_fingerprint) for entry in found.sets} == {
        ("mine", "small", "identical", True),
        ("mine", "gone", "removed", True),
        ("mine", "weights", "same-vectors", False),
        ("other", "small", "identical", True),
        ("other", "small@stride2", "added", True),
    }
    # The same two snapshots, the second one in a copy of the store.
    shutil.copytree(store.layout.root, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    assert diff_snapshots(store, first, copy.snapshot(), store_b=copy) == found


def test_several_sets_of_one_title_are_not_paired_by_chance(store: Store) -> None:
    for digit in "12":
        add_set(store, {"a": 1}, spec=spec_of(weights_sha256=digit * 64))
    first = store.snapshot()
    drop_sets(store)
    for digit in "23":
        add_set(store, {"a": 1, "b": 1}, spec=spec_of(weights_sha256=digit * 64))
    found = diff_snapshots(store, first, store.snapshot()).sets
    assert sorted((entry.status, entry.same_fingerprint) for entry in found) == [
        ("changed", False),
        ("changed", True),
    ]


def test_a_set_that_gc_removed_cannot_be_compared(store: Store) -> None:
    add_set(store, {"a": 1})
    first = store.snapshot()
    add_set(store, {"a": 2})
    remove_folder(store.layout.set_folder(first.sets[0].set_id))
    (entry,) = diff_snapshots(store, first, store.snapshot()).sets
    assert entry.status == "not-restorable" and entry.set_a == first.sets[0].set_id


def test_manifests_say_which_digest_changed(store: Store) -> None:
    store.add_manifest(manifest_of({"a": "p1", "b": "p2"}))
    store.add_manifest(manifest_of({"a": "p1"}, name="gone"))
    store.add_manifest(manifest_of({"a": "p1"}, name="same"))
    first = store.snapshot()
    bank = add_bank(store, "prompts").bank_id
    store.commit(
        lambda head: replace(head, manifests=tuple(m for m in head.manifests if m.name != "gone")),
        reason="test",
    )
    store.add_manifest(manifest_of({"a": "p1", "b": "p2"}, split="val"))
    store.add_manifest(manifest_of({"a": "p1"}, name="new"))
    found = diff_snapshots(store, first, store.snapshot())
    assert {(m.name, m.status, m.media_changed, m.annotations_changed) for m in found.manifests} == {
        ("mine", "changed", False, True),
        ("gone", "removed", False, False),
        ("new", "added", False, False),
        ("same", "same", False, False),
    }
    assert found.prompts_added == (bank,) and found.prompts_removed == ()
    middle = store.snapshot()
    store.add_manifest(manifest_of({"a": "p1", "b": "p2", "c": "p3"}, split="val"))
    (changed,) = [m for m in diff_snapshots(store, middle, store.snapshot()).manifests if m.status != "same"]
    assert (changed.name, changed.media_changed, changed.annotations_changed) == ("mine", True, True)


def test_the_command(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = store.layout.root
    add_set(store, {"a": 1, "b": 1, "c\x1b[31m": 1})
    add_set(store, {"a": 1, "b": 1, "d": 1}, shift={"b": HALF_STEP})
    oldest = store.log()[1].snapshot_id
    assert run_program("snapshot", "diff", oldest[:8], "head", "--store", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (entry,) = found["sets"]
    assert (entry["added"], entry["removed"], entry["n_identical"], entry["n_equivalent"]) == (
        ["d"],
        ["c\x1b[31m"],
        1,
        1,
    )
    assert found["tolerance"]["relative"] == RELATIVE_TOLERANCE
    assert run_program("snapshot", "diff", oldest[:8], "--store", path) == 0
    shown = capsys.readouterr().out
    assert "1 clips bit-identical, 1 clips numerically equivalent, 1 clips added, 1 clips removed" in shown
    assert "min cosine 0.999" in shown or "min cosine 1.0" in shown
    assert "\x1b" not in shown and "c\\x1b[31m" in shown
    assert run_program("snapshot", "diff", "head", "nothing", "--store", path) == 2
    assert run_program("snapshot", "nonsense", "--store", path) == 2
    remove_folder(store.layout.set_folder(entry["set_a"]))
    capsys.readouterr()
    assert run_program("snapshot", "diff", oldest[:8], "--store", path) == 0
    assert "not-restorable" in capsys.readouterr().out
