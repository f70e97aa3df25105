"""Verify: the files that stand alone, and what tags keep."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from small_sets import add_set, manifest_of, n_rows_of, spec_of

from embedstore.abreast import map_abreast
from embedstore.folders import remove_folder
from embedstore.json_files import seal_json
from embedstore.snapshot.tags import create_tag, delete_tag
from embedstore.snapshot.verify import _is_finite, verify_store
from embedstore.store import Store
from embedstore.upkeep.forget import forget_patient


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two tags, one of them given up, and a patient who was forgotten."""
    store = Store.create(tmp_path / "store")
    store.add_manifest(manifest_of({"a": "one", "b": "two"}))
    add_set(store, {"a": 1})
    create_tag(store, "v1", snapshot_id=store.log()[0].snapshot_id)
    create_tag(store, "v2", snapshot_id=store.log()[0].snapshot_id)
    delete_tag(store, "v2")
    add_set(store, {"a": 1, "b": 1})
    forget_patient(store, "two", apply=True)
    assert verify_store(store, quick=True).ok
    return store


def found(store: Store, *, quick: bool = True) -> list[tuple[str, str]]:
    return [(problem.file, problem.kind) for problem in verify_store(store, quick=quick).problems]


def standing_alone(store: Store) -> list[Path]:
    return sorted([*store.layout.tags.iterdir(), *store.layout.forgotten.iterdir()])


def test_they_are_counted(store: Store) -> None:
    names = [path.name for path in standing_alone(store)]
    assert names == ["000001.json", "v1.json", "v2.deleted", "v2.json"]
    before = verify_store(store, quick=True).files_checked
    create_tag(store, "v3", snapshot_id=store.log()[0].snapshot_id)
    assert verify_store(store, quick=True).files_checked == before + 1


def test_every_flipped_bit_and_cut_is_found(store: Store) -> None:
    draw = random.Random(0)
    for path in standing_alone(store):
        payload = path.read_bytes()
        name = path.relative_to(store.layout.root).as_posix()
        for bit in draw.sample(range(8 * len(payload)), 40):
            flipped = bytearray(payload)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert (name, "altered") in found(store), bit
        for length in (0, 1, len(payload) - 1):
            path.write_bytes(payload[:length])
            assert (name, "altered") in found(store)
        path.write_bytes(payload)
    assert found(store) == []


def test_what_is_missing_added_or_points_nowhere(store: Store) -> None:
    ended = store.layout.tag_file("v2")
    payload = ended.read_bytes()
    ended.unlink()
    assert found(store) == [("tags/v2.json", "missing")]
    ended.symlink_to(store.layout.tag_file("v1"))
    assert found(store) == [("tags/v2.json", "missing")]
    ended.unlink()
    ended.write_bytes(payload)
    record = store.layout.forgotten_record(1)
    record.rename(store.layout.forgotten_record(2))
    assert found(store) == [("forgotten/000001.json", "missing")]
    store.layout.forgotten_record(2).rename(record)
    for stranger in (store.layout.tags / "notes.txt", store.layout.forgotten / "README.json"):
        stranger.write_text("{}")
        assert found(store) == [(f"{stranger.parent.name}/{stranger.name}", "added")]
        stranger.unlink()
    store.layout.tag_file("v4").write_bytes(seal_json({"snapshot": "0" * 64, "time": "x"}))
    assert found(store) == [("tags/v4.json", "inconsistent")]


def test_a_set_that_a_tag_keeps_must_be_there(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    sets = [add_set(store, {"a": version}) for version in (1, 2, 3)]
    entries = store.log()
    create_tag(store, "v1", snapshot_id=entries[1].snapshot_id)
    for set_id in [entry.set_id for entry in store.snapshot(entries[2].snapshot_id).sets]:
        remove_folder(store.layout.set_folder(set_id))
    assert found(store) == []  # of an earlier commit alone
    (kept,) = [entry.set_id for entry in store.snapshot(entries[1].snapshot_id).sets]
    remove_folder(store.layout.set_folder(kept))
    assert found(store) == [(f"sets/{kept}", "missing")] and len(sets) == 3


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_by_row(store: Store, dtype: str, value: float) -> None:
    """A set that another program wrote: every digest fits."""
    spec = spec_of("stranger", dtype=dtype)
    add_set(store, {"a": 1, "b": 1, "c": 1, "d": 1}, spec=spec, shift={"b": value, "c": value})
    problems = verify_store(store, quick=False).problems
    assert {problem.kind for problem in problems} == {"inconsistent"}
    by_kind = {problem.file.rpartition("/")[2]: problem.rows for problem in problems}
    first, last = (sum(n_rows_of(clip_id, "frames") for clip_id in ids) for ids in ("a", "abc"))
    assert by_kind["clips"] == (1, 3) and by_kind["frames"] == (first, last) and "windows" in by_kind
    assert verify_store(store, quick=True).ok


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_finite(dtype: type) -> None:
    """Every float16, and float32 with the same upper half."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    values = bits.astype(np.uint16).view(np.float16) if dtype is np.float16 else (bits << 16).view(np.float32)
    expected = np.isfinite(values)
    assert 0 < expected.sum() < len(values)
    assert [_is_finite(values[at : at + 1]) for at in range(len(values))] == expected.tolist()
    assert _is_finite(values[expected]) and not _is_finite(values) and _is_finite(values[:0])


def test_files_are_looked_at_several_at_once_and_told_in_order() -> None:
    began = threading.Barrier(2 if len(os.sched_getaffinity(0)) > 1 else 1, timeout=20)
    before = threading.active_count()

    def act(number: int) -> int:
        if number < began.parties:
            began.wait()  # passes only where two run at a time
        if number == 7:
            raise ValueError("seven")
        return -number

    seen = []
    with pytest.raises(ValueError, match="seven"):
        for result in map_abreast(act, range(100)):
            seen.append(result)
    assert seen == [-number for number in range(7)]
    assert threading.active_count() == before
