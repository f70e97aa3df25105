"""gc: never what the head, a tag, a build or a reader within the grace period needs; sound wherever it is cut off."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_sets
from small_sets import (
    add_set,
    content_of,
    count_operations,
    drop_sets,
    expected_content,
    kill_at,
    manifest_of,
    run_program,
    spec_of,
    start_build,
    tree_of,
    write_set,
)

import embedstore.build.plan
import embedstore.shards
from embedstore.build.lock import build_lock
from embedstore.embedding_set import SetWriter
from embedstore.errors import BusyError, CorruptionError, EmbedstoreError
from embedstore.files import read_file
from embedstore.layout import STAGING_PREFIX
from embedstore.locks import host_lock
from embedstore.snapshot.tags import create_tag, delete_tag
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store
from embedstore.upkeep import gc as gc_module
from embedstore.upkeep.gc import GcOutcome, collect_garbage
from embedstore.upkeep.rewrite import write_without

HOUR = 3600


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def age(path: Path, hours: float) -> None:
    """Make a file or folder older, by its own modification time."""
    then = path.stat().st_mtime - hours * HOUR
    os.utime(path, (then, then))


def age_all(root: Path, hours: float) -> None:
    for path in (root, *root.rglob("*")):
        age(path, hours)


def sweep(store: Store, **options: object) -> GcOutcome:
    return collect_garbage(store, **{"grace_h": 0.0, "apply": True, **options})  # type: ignore[arg-type]


def kinds(outcome: GcOutcome) -> list[str]:
    return [leftover.kind for leftover in outcome.removed]


def is_sound(store: Store) -> bool:
    outcome = verify_store(store, quick=False)
    assert outcome.ok, outcome.problems
    return True


def test_a_dry_run_touches_nothing(store: Store) -> None:
    old = add_set(store, {"a": 1})
    add_set(store, {"a": 2})
    before = tree_of(store.layout.root)
    outcome = sweep(store, apply=False)
    assert tree_of(store.layout.root) == before
    assert [leftover.path.name for leftover in outcome.removed] == [old] and outcome.is_dry
    assert outcome.n_bytes_freed > 0


def test_what_the_head_and_tags_list_stays(store: Store) -> None:
    tagged = add_set(store, {"a": 1})
    store.add_manifest(manifest_of({"a": "p1"}))
    create_tag(store, "v1", snapshot_id=store.log()[0].snapshot_id)
    dropped = add_set(store, {"a": 2})
    store.add_manifest(manifest_of({"a": "p2"}))
    head = add_set(store, {"a": 3})
    manifest = store.manifest("mine").id
    outcome = sweep(store)
    assert [leftover.path.name for leftover in outcome.removed] == [dropped]
    assert {path.name for path in store.layout.sets.iterdir()} == {tagged, head}
    assert len(list(store.layout.manifests.glob("*.parquet"))) == 2
    assert is_sound(store)
    delete_tag(store, "v1")
    assert kinds(sweep(store)) == ["set", "manifest"]
    assert {path.name for path in store.layout.sets.iterdir()} == {head}
    assert {path.stem for path in store.layout.manifests.iterdir()} == {manifest}
    assert content_of(store.open_set(head)) == expected_content({"a": 3}, spec_of())
    assert is_sound(store) and len(store.log()) == 5


def test_the_grace_period_counts_from_the_entry_that_dropped_a_set(store: Store) -> None:
    old = add_set(store, {"a": 1})
    age(store.layout.set_folder(old), 500)
    age(store.layout.log_entry(1), 500)
    add_set(store, {"a": 2})
    outcome = sweep(store, grace_h=24.0)
    assert outcome.removed == [] and [leftover.path.name for leftover in outcome.waiting] == [old]
    assert outcome.waiting[0].why == "not listed since commit 2"
    age(store.layout.log_entry(2), 25)
    assert [leftover.path.name for leftover in sweep(store, grace_h=24.0).removed] == [old]


def test_a_reader_of_the_head_has_the_grace_period_to_finish(store: Store) -> None:
    add_set(store, {"a": 1})
    age_all(store.layout.root, 500)
    reader = store.get(dataset="mine", encoder="small")
    add_set(store, {"a": 2})
    sweep(store, grace_h=24.0)
    assert content_of(reader) == expected_content({"a": 1}, spec_of())


def test_the_grace_period_counts_from_the_end_of_a_tag(store: Store) -> None:
    old = add_set(store, {"a": 1})
    create_tag(store, "v1", snapshot_id=store.log()[0].snapshot_id)
    add_set(store, {"a": 2})
    for path in (store.layout.log_entry(2), store.layout.set_folder(old), store.layout.tag_file("v1")):
        age(path, 500)
    delete_tag(store, "v1")
    assert sweep(store, grace_h=24.0).removed == []
    age(store.layout.tag_end("v1"), 25)
    assert kinds(sweep(store, grace_h=24.0)) == ["set"]


def test_a_set_that_comes_back_begins_a_new_grace_period(store: Store) -> None:
    old = add_set(store, {"a": 1})
    add_set(store, {"a": 2})
    age_all(store.layout.root, 100)
    assert add_set(store, {"a": 1}) == old
    drop_sets(store)
    outcome = sweep(store, grace_h=24.0)
    assert outcome.removed == [] and {leftover.path.name for leftover in outcome.waiting} >= {old}


def test_a_set_that_was_never_committed_goes_after_its_grace_period(store: Store) -> None:
    add_set(store, {"a": 1})
    stray = write_set(store, {"a": 7}).set_id
    assert kinds(sweep(store, grace_h=24.0)) == []
    age(store.layout.set_folder(stray), 25)
    (leftover,) = sweep(store, grace_h=24.0).removed
    assert leftover.path.name == stray and leftover.why == "never committed"


def test_times_in_the_future_keep_what_they_belong_to(store: Store) -> None:
    old = add_set(store, {"a": 1})
    add_set(store, {"a": 2})
    age(store.layout.log_entry(2), -1000)
    assert sweep(store).removed == []
    assert store.layout.set_folder(old).is_dir()


def test_a_wrong_clock_does_not_matter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the host is a year ahead of the file system's."""
    add_set(store, {"a": 1})
    add_set(store, {"a": 2})
    ahead = time.time() + 365 * 24 * HOUR
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert sweep(store, grace_h=24.0).removed == []


def test_a_commit_of_a_set_that_was_swept_says_so(store: Store) -> None:
    entry = write_set(store, {"a": 1})
    sweep(store)
    with pytest.raises(EmbedstoreError, match="not in the store any more"):
        store.commit(lambda head: head.with_set(entry), reason="test")
    assert store.log() == [] and is_sound(store)


def test_writers_and_sweepers_of_a_host_keep_apart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_module, "_LOCK_WAIT_S", 0.1)
    add_set(store, {"a": 1})
    with store.publishing():
        entry = write_set(store, {"a": 2})
        with pytest.raises(BusyError, match="being written or committed"):
            sweep(store)
        with store.publishing():  # writers share
            store.commit(lambda head: head.with_set(entry), reason="test")
    assert kinds(sweep(store)) == ["set"]
    monkeypatch.setattr("embedstore.commit_log._PUBLISH_WAIT_S", 0.1)
    with (
        host_lock(store.layout.publish_lock, shared=False, wait_s=0, busy=""),
        pytest.raises(BusyError, match="being swept"),
    ):
        add_set(store, {"a": 3})


def test_manifests_go_with_their_records(store: Store) -> None:
    store.add_manifest(manifest_of({"a": "p1"}))
    store.add_manifest(manifest_of({"a": "p2"}))
    assert kinds(sweep(store, grace_h=24.0)) == []
    assert kinds(sweep(store)) == ["manifest"]
    assert len(list(store.layout.manifests.iterdir())) == 2 and is_sound(store)


def test_a_record_without_its_manifest_is_no_trap(store: Store) -> None:
    first = store.add_manifest(manifest_of({"a": "p1"}))
    store.add_manifest(manifest_of({"a": "p2"}))
    path, record = store.layout.manifest_file(first.manifest_id), store.layout.manifest_record(first.manifest_id)
    stale = read_file(record, max_bytes=1 << 20)
    path.unlink()
    assert is_sound(store)
    # As if another version of pyarrow had written the file that the record is of.
    record.write_bytes(stale.replace(b'"size":', b'"size":1'))
    store.add_manifest(manifest_of({"a": "p1"}))
    assert record.read_bytes() == stale and is_sound(store)
    store.add_manifest(manifest_of({"a": "p2"}))
    path.unlink()
    assert kinds(sweep(store)) == ["manifest"] and not record.exists()


def test_leftovers_of_writers(store: Store) -> None:
    add_set(store, {"a": 1})
    writer = SetWriter(store.layout.sets, dataset="mine", spec=spec_of()).__enter__()
    writer.array("clips", dim=small_sets.DIM).append(np.zeros((1, small_sets.DIM), np.float16))
    partial = store.layout.log / ".partial-abc"
    partial.write_bytes(b"half")
    trash = store.layout.sets / ".trash-abc"
    (trash / "c").mkdir(parents=True)
    (trash / "c" / "0").write_bytes(b"x" * 100)
    assert kinds(sweep(store)) == ["trash"]  # the others changed within the hour
    age_all(writer.folder, 2)
    age(partial, 2)
    outcome = sweep(store, grace_h=24.0)
    assert outcome.removed == [] and len(outcome.waiting) == 2
    age(writer.folder / "clips", -1.5)  # a writer at work on one file deep inside
    assert kinds(sweep(store)) == ["partial"]
    age(writer.folder / "clips", 1.5)
    assert kinds(sweep(store)) == ["staging"]
    assert not list(store.layout.sets.glob(f"{STAGING_PREFIX}*")) and is_sound(store)
    with pytest.raises((EmbedstoreError, FileNotFoundError)):
        writer.finish({}, provenance={})  # a writer that was taken for dead cannot bring half a set back


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedstore.build.plan, "UNIT_CLIPS", 2)


@pytest.mark.usefixtures("small_units")
def test_builds(store: Store) -> None:
    spec = spec_of(unit="clip")
    manifest = manifest_of({clip_id: f"p{clip_id}" for clip_id in "abcde"})
    store.add_manifest(manifest)
    folder = start_build(store, manifest, spec, done=2)
    age_all(folder, 500)
    outcome = sweep(store)
    assert outcome.removed == [] and [build.key for build in outcome.unfinished] == [folder.name]
    # Another build of the same set is committed: nobody goes on with the first.
    add_set(store, {"a": 1}, spec=spec)
    assert kinds(sweep(store, apply=False)) == ["build"]
    with build_lock(store.layout.builds, folder.name, shared=True):
        assert sweep(store).removed == []
    assert kinds(sweep(store)) == ["build"] and not folder.exists()
    # An unfinished one goes only when it is given up.
    folder = start_build(store, manifest, spec, done=1)
    age_all(folder, 500)
    assert sweep(store, grace_h=24.0).removed == []
    (leftover,) = sweep(store, grace_h=24.0, abandoned=True).removed
    assert leftover.what == "build of small on mine, 1 of 3 units done" and not folder.exists()
    assert is_sound(store)


@pytest.mark.usefixtures("small_units")
def test_a_build_keeps_what_it_grows_from_and_copies_from(store: Store) -> None:
    spec = spec_of(unit="clip")
    patients = {clip_id: f"p{clip_id}" for clip_id in "abcd"}
    manifest = manifest_of(patients)
    store.add_manifest(manifest)
    start_build(store, manifest, spec, done=2)
    assert run_program("commit", "--store", store.layout.root) == 0
    parent = store.entries()[0].set_id
    grown = manifest_of({**patients, "e": "pe"})
    folder = start_build(store, grown, spec, done=0)
    for _ in range(2):
        assert sweep(store).removed == []
    drop_sets(store)  # now the head has no set, and the plan grows from one that it no longer lists
    with build_lock(store.layout.builds, folder.name, shared=False):
        assert sweep(store).removed == [] and store.layout.set_folder(parent).is_dir()
    assert kinds(sweep(store)) == ["set", "build"]


@pytest.mark.usefixtures("small_units")
def test_while_a_build_starts_or_commits_sets_stay(store: Store) -> None:
    old = add_set(store, {"a": 1}, spec=spec_of("other"))
    drop_sets(store)
    with build_lock(store.layout.builds, "0" * 64, shared=False):
        assert sweep(store).removed == []  # nobody knows yet what it will need
    spec = spec_of(unit="clip")
    manifest = manifest_of({"a": "p1"})
    store.add_manifest(manifest)
    folder = start_build(store, manifest, spec, done=1)
    with build_lock(store.layout.builds, folder.name, shared=False):
        packed = write_set(store, {"a": 1}, spec=spec).set_id  # the set that it is about to commit
        stale = store.layout.sets / ".staging-abc"
        stale.mkdir()
        age(stale, 500)
        assert [leftover.path.name for leftover in sweep(store).removed] == [old]
        assert store.layout.set_folder(packed).is_dir() and stale.is_dir()
    assert sorted(kinds(sweep(store))) == ["set", "staging"]


@pytest.mark.usefixtures("small_units")
def test_a_damaged_plan_is_kept_until_it_is_given_up(store: Store) -> None:
    manifest = manifest_of({"a": "p1"})
    store.add_manifest(manifest)
    folder = start_build(store, manifest, spec_of(unit="clip"), done=1)
    (folder / "plan.json").write_bytes(b"{")
    age_all(folder, 500)
    assert sweep(store).removed == []
    assert kinds(sweep(store, abandoned=True)) == ["build"]
    rest = store.layout.build_folder("1" * 64)
    (rest / "units").mkdir(parents=True)
    assert sweep(store).removed == []
    age_all(rest, 2)
    assert kinds(sweep(store)) == ["build"]


def test_freed_bytes_leave_out_what_a_kept_set_shares(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedstore.shards, "_SHARD_ROWS", 256)
    clips = {f"c{number:04d}": 1 for number in range(600)}
    first = add_set(store, clips, kinds=("clips",))
    with store.publishing():
        second = write_without(store, store.open_set(first), {"c0590"})
        assert second is not None
        entry = store.entry_of(store.open_set(second))
        store.commit(lambda head: head.with_set(entry), reason="test")
    shared = [store.layout.set_folder(name) / "clips/c/0/0" for name in (first, second)]
    assert shared[0].stat().st_ino == shared[1].stat().st_ino and shared[0].stat().st_nlink == 2
    (leftover,) = (outcome := sweep(store)).removed
    assert 0 < outcome.n_bytes_freed < leftover.n_bytes - 2 * 256 * small_sets.DIM * 2
    assert shared[1].stat().st_nlink == 1 and is_sound(store)


def test_what_is_needed_cannot_be_known(store: Store) -> None:
    add_set(store, {"a": 1})
    create_tag(store, "v1", snapshot_id=store.log()[0].snapshot_id)
    add_set(store, {"a": 2})
    before = sorted(path.name for path in store.layout.sets.iterdir())
    victims = (
        store.layout.log_entry(1),
        store.layout.tag_file("v1"),
        store.layout.snapshot_file(store.log()[1].snapshot_id),
    )
    for path in victims:
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + b"xx}")
        with pytest.raises((CorruptionError, ValueError)):
            sweep(store)
        path.write_bytes(whole)
        assert sorted(path.name for path in store.layout.sets.iterdir()) == before
    assert sweep(store).removed == []


def crowded(path: Path) -> Store:
    """A store with something of every kind to sweep."""
    store = Store.create(path)
    manifest = manifest_of({"a": "p1"})
    store.add_manifest(manifest)
    start_build(store, manifest, spec_of("clipwise", unit="clip"), done=1)
    add_set(store, {"a": 1}, spec=spec_of("clipwise", unit="clip"))
    add_set(store, {"a": 2})
    store.add_manifest(manifest_of({"a": "p2"}))
    add_set(store, {"a": 3})
    return store


def copied(store: Store, path: Path) -> Store:
    """A copy with the same times."""
    shutil.copytree(store.layout.root, path)
    return Store.open(path)


def _cut_off_at(tmp_path: Path, *, every: int) -> None:
    template = crowded(tmp_path / "template")
    whole = copied(template, tmp_path / "whole")
    n_operations = count_operations(lambda: sweep(whole))
    assert n_operations > 30
    expected = set(tree_of(whole.layout.root))
    for number in range(1, n_operations + 1, every):
        store = copied(template, tmp_path / str(number))
        assert kill_at(number, lambda store=store: sweep(store))  # type: ignore[misc]
        assert is_sound(store), number
        assert content_of(store.get(dataset="mine", encoder="small")) == expected_content({"a": 3}, spec_of())
        sweep(store)
        assert set(tree_of(store.layout.root)) == expected, number
        assert is_sound(store)


def test_cut_off(tmp_path: Path) -> None:
    _cut_off_at(tmp_path, every=4)


@pytest.mark.slow
def test_cut_off_at_every_operation(tmp_path: Path) -> None:
    _cut_off_at(tmp_path, every=1)


def _commit_again_and_again(path: str, worker: int, until: float) -> None:
    store = Store.open(path)
    spec = spec_of(f"worker{worker}")
    number = 0
    while time.time() < until:
        # Few versions, so that sets that were swept, or are just being swept, are made and committed again.
        number += 1
        add_set(store, {"a": number % 3, "b": worker}, spec=spec)
        store.add_manifest(manifest_of({"a": f"p{number % 2}"}, name=f"m{worker}"))
        opened = store.get(dataset="mine", encoder=spec.title)
        assert content_of(opened) == expected_content({"a": number % 3, "b": worker}, spec)


def _sweep_again_and_again(path: str, until: float) -> None:
    store = Store.open(path)
    while time.time() < until:
        sweep(store)


def _together(targets: list[tuple[Callable[..., None], tuple[object, ...]]]) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=arguments) for target, arguments in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_beside_committers(store: Store) -> None:
    path, until = str(store.layout.root), time.time() + 3
    targets: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (_commit_again_and_again, (path, worker, until)) for worker in range(2)
    ]
    assert _together([*targets, (_sweep_again_and_again, (path, until))]) == [0, 0, 0]
    assert is_sound(store) and len(store.log()) > 10
    sweep(store)
    assert len(list(store.layout.sets.iterdir())) == 2


def test_the_command(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = store.layout.root
    old = add_set(store, {"a": 1})
    add_set(store, {"a": 2})
    assert run_program("gc", "--store", path) == 0
    shown = capsys.readouterr().out
    assert f"kept for 24.0 h more: set {old[:20]} (small on mine): not listed since commit 2" in shown
    assert "nothing to remove that has been of no use for 24 h" in shown
    assert run_program("gc", "--grace", "0", "--store", path) == 0
    assert "nothing was touched, run again with --yes" in capsys.readouterr().out
    assert store.layout.set_folder(old).is_dir()
    assert run_program("gc", "--grace", "0", "--yes", "--store", path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dry_run"] is False and document["grace_hours"] == 0 and document["bytes"] > 0
    assert [(entry["kind"], entry["name"]) for entry in document["removed"]] == [("set", old)]
    assert not store.layout.set_folder(old).exists()
    for arguments, code in ((("--grace", "-1"), 2), (("--grace", "x"), 2)):
        assert run_program("gc", *arguments, "--store", path) == code
