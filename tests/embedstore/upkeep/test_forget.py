"""forget-patient: nothing of the patient is left in the store, everything of the others is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_sets import (
    add_set,
    content_of,
    count_operations,
    expected_content,
    kill_at,
    manifest_of,
    run_program,
    spec_of,
    start_build,
    tree_of,
    where_found,
    write_set,
)

import embedstore.build.plan
import embedstore.shards
from embedstore.build.lock import build_lock
from embedstore.errors import AmbiguousNameError, BusyError, CorruptionError, UnknownNameError
from embedstore.manifest import DatasetFacts, Manifest, ManifestField
from embedstore.snapshot.references import add_forgotten, needed, read_forgotten
from embedstore.snapshot.tags import create_tag, delete_tag, find_snapshot
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store
from embedstore.upkeep import forget as forget_module
from embedstore.upkeep import gc as gc_module
from embedstore.upkeep.forget import forget_patient
from embedstore.upkeep.gc import collect_garbage

# Clips of the patient bear a word that nothing else has, so that a search over all bytes tells.
PATIENTS = {
    "clip-quince-1": "pat-medlar",
    "clip-2": "pat-other",
    "clip-quince-3": "pat-medlar",
    "clip-4": "pat-third",
    "clip-5": "pat-third",
}
CLIPS = dict.fromkeys(PATIENTS, 1)
OTHERS = {clip_id: 1 for clip_id, patient in PATIENTS.items() if patient != "pat-medlar"}
WORDS = ("quince", "medlar")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def words_in(store: Store) -> list[str]:
    return sorted({path for word in WORDS for path in where_found(store.layout.root, word)})


def is_sound(store: Store) -> bool:
    outcome = verify_store(store, quick=False)
    assert outcome.ok, outcome.problems
    return True


def crowded(path: Path) -> Store:
    """A store that holds the patient in two data sets' worth of history, tags, builds and leftovers."""
    store = Store.create(path)
    store.add_manifest(manifest_of(PATIENTS))
    store.add_manifest(manifest_of({"clip-2": "pat-other"}, name="elsewhere"))
    add_set(store, {"clip-2": 1}, dataset="elsewhere")
    add_set(store, CLIPS)
    add_set(store, {**CLIPS, "clip-2": 2}, spec=spec_of("second"), failed=["clip-quince-9"])
    create_tag(store, "held", snapshot_id=store.log()[0].snapshot_id)
    rows = {**PATIENTS, "clip-quince-9": "pat-medlar"}
    store.add_manifest(manifest_of(rows))
    add_set(store, {**CLIPS, "clip-4": 2})
    write_set(store, {"clip-quince-1": 5})
    start_build(store, store.manifest("mine"), spec_of("built", unit="clip"), done=1)
    for folder in (
        store.layout.sets / ".staging-1",
        store.layout.sets / ".trash-2",
        store.layout.builds / ".trash-3",
        store.layout.builds / ".staging-pull-5",
    ):
        folder.mkdir()
        (folder / "index").write_bytes(b"clip-quince-1")
    (store.layout.manifests / ".partial-4").write_bytes(b"pat-medlar")
    return store


def copied(store: Store, path: Path) -> Store:
    shutil.copytree(store.layout.root, path)
    return Store.open(path)


def test_nothing_of_the_patient_is_left(tmp_path: Path) -> None:
    store = crowded(tmp_path / "store")
    assert len(words_in(store)) > 10
    held = [entry.snapshot_id for entry in store.log()]
    outcome = forget_patient(store, "pat-medlar", apply=True)
    assert words_in(store) == []
    assert outcome.n_clips == {"mine": 3} and outcome.tags == ["held"]
    assert [snapshot.number for snapshot in outcome.snapshots] == [7, 6, 5, 4, 3, 2, 1]
    assert [snapshot.snapshot_id for snapshot in outcome.snapshots] == held
    assert len(outcome.sets) == 4 and len(outcome.manifests) == 2 and len(outcome.builds) == 1
    assert {path.suffix for path in store.layout.builds.iterdir()} == {".lock"}
    assert not list(store.layout.sets.glob(".*"))
    assert store.log()[0].reason == "forget-patient" and len(store.log()) == 8
    assert is_sound(store)
    with pytest.raises(UnknownNameError, match="no manifest of the store has a patient 'pat-medlar'"):
        forget_patient(store, "pat-medlar", apply=True)


def test_the_vectors_of_others_are_kept_bit_for_bit(tmp_path: Path) -> None:
    store = crowded(tmp_path / "store")
    before = {entry.encoder: content_of(store.open_set(entry.set_id)) for entry in store.entries()}
    untouched = store.get(dataset="elsewhere", encoder="small").set_id
    outcome = forget_patient(store, "pat-medlar", apply=True)
    first, second = store.get(dataset="mine", encoder="small"), store.get(dataset="mine", encoder="second")
    assert content_of(first) == expected_content({**OTHERS, "clip-4": 2}, spec_of())
    assert content_of(second) == expected_content({**OTHERS, "clip-2": 2}, spec_of("second"))
    assert content_of(second) == {k: v for k, v in before["second"].items() if "quince" not in k}
    assert [opened.n_failed for opened in (first, second)] == [0, 0]
    assert first.frame_index.column("clip_id").to_pylist() == [
        clip_id for clip_id, parts in content_of(first).items() for _ in range(len(parts["frames"]) // 12)
    ]
    assert first.provenance["made"] == "by a test"
    assert set(outcome.rewritten.values()) == {first.set_id, second.set_id}
    assert store.get(dataset="elsewhere", encoder="small").set_id == untouched
    manifest = store.manifest("mine")
    assert manifest.clip_ids == sorted(OTHERS) and store.manifest("elsewhere").clip_ids == ["clip-2"]
    manifest.require_valid()


def test_a_dry_run_lists_all_and_touches_nothing(tmp_path: Path) -> None:
    store = crowded(tmp_path / "store")
    before = tree_of(store.layout.root)
    dry = forget_patient(store, "pat-medlar")
    assert tree_of(store.layout.root) == before
    done = forget_patient(store, "pat-medlar", apply=True)
    for name in ("n_clips", "sets", "manifests", "snapshots", "tags", "n_bytes_freed"):
        assert getattr(dry, name) == getattr(done, name), name
    assert dry.is_dry and dry.rewritten == {} and dry.n_bytes_freed > 0


def test_a_tag_stays_as_a_name(tmp_path: Path) -> None:
    store = crowded(tmp_path / "store")
    create_tag(store, "late", snapshot_id=store.log()[0].snapshot_id)
    tagged = store.snapshot(find_snapshot(store, "held"))
    outcome = forget_patient(store, "pat-medlar", apply=True)
    assert outcome.tags == ["held", "late"] and find_snapshot(store, "held") == tagged.id
    # Of the tagged snapshot, what never held the patient is still kept.
    elsewhere = {entry.set_id for entry in tagged.sets if entry.dataset == "elsewhere"}
    assert {path.name for path in store.absent(tagged)} == {
        *(entry.set_id for entry in tagged.sets if entry.dataset == "mine"),
        *(f"{entry.manifest_id}.parquet" for entry in tagged.manifests if entry.name == "mine"),
    }
    assert elsewhere <= needed(store).sets and not needed(store).sets & set(outcome.sets)
    assert not needed(store).manifests & set(outcome.manifests)
    (record,) = read_forgotten(store)
    assert record.tags == {"held", "late"} and record.sets == set(outcome.sets)
    assert collect_garbage(store, grace_h=0, apply=True).removed == [] and is_sound(store)


def _cut_off_at(tmp_path: Path, *, every: int) -> None:
    template = crowded(tmp_path / "template")
    whole = copied(template, tmp_path / "whole")
    n_operations = count_operations(lambda: forget_patient(whole, "pat-medlar", apply=True))
    head = whole.snapshot()
    assert n_operations > 150
    for number in range(1, n_operations + 1, every):
        store = copied(template, tmp_path / str(number))
        assert kill_at(number, lambda store=store: forget_patient(store, "pat-medlar", apply=True))  # type: ignore[misc]
        assert is_sound(store), number
        forget_patient(store, "pat-medlar", apply=True)
        assert words_in(store) == [], number
        assert store.snapshot() == head and is_sound(store), number
        shutil.rmtree(store.layout.root)


def test_cut_off(tmp_path: Path) -> None:
    _cut_off_at(tmp_path, every=23)


@pytest.mark.slow
def test_cut_off_at_every_operation(tmp_path: Path) -> None:
    _cut_off_at(tmp_path, every=1)


def test_what_a_cut_off_run_left_goes_with_the_next_gc(tmp_path: Path) -> None:
    store = crowded(tmp_path / "store")
    outcome = forget_patient(store, "pat-medlar")
    add_forgotten(store, sets=outcome.sets, manifests=outcome.manifests, tags=outcome.tags)
    kept = {entry.set_id for entry in store.entries()}
    swept = {leftover.path.name for leftover in collect_garbage(store, grace_h=24, apply=True).removed}
    # The head's are kept as long as the head lists them, the tag's are not.
    assert set(outcome.sets) - kept <= swept and not kept & swept and is_sound(store)


def test_a_set_made_again_after_forgetting_is_an_ordinary_set(store: Store) -> None:
    store.add_manifest(manifest_of(PATIENTS))
    first = add_set(store, CLIPS)
    forget_patient(store, "pat-medlar", apply=True)
    manifest = store.add_manifest(manifest_of(PATIENTS)).manifest_id
    assert add_set(store, CLIPS) == first  # the patient agreed again
    create_tag(store, "again", snapshot_id=store.log()[0].snapshot_id)
    add_set(store, OTHERS)
    store.add_manifest(manifest_of({"clip-2": "pat-other"}))
    collect_garbage(store, grace_h=0, apply=True)
    assert first in needed(store).sets and store.layout.set_folder(first).is_dir()
    delete_tag(store, "again")
    assert collect_garbage(store, grace_h=24, apply=True).removed == []
    gone = {leftover.path.stem for leftover in collect_garbage(store, grace_h=0, apply=True).removed}
    assert gone == {first, manifest} and is_sound(store)


def test_the_same_id_in_two_data_sets(store: Store) -> None:
    for name in ("mine", "yours"):
        store.add_manifest(manifest_of({f"{name}-1": "p1", f"{name}-2": "p2"}, name=name))
        add_set(store, {f"{name}-1": 1, f"{name}-2": 1}, dataset=name)
    with pytest.raises(AmbiguousNameError, match=r"mine \(1 clips\), yours \(1 clips\); say which with --dataset"):
        forget_patient(store, "p1", apply=True)
    with pytest.raises(UnknownNameError, match="no manifest 'your'; did you mean 'yours'"):
        forget_patient(store, "p1", datasets=["your"])
    with pytest.raises(UnknownNameError, match="no manifest yours has a patient 'p3'"):
        forget_patient(store, "p3", datasets=["yours"])
    forget_patient(store, "p1", datasets=["yours"], apply=True)
    assert store.manifest("mine").clip_ids == ["mine-1", "mine-2"] and store.manifest("yours").clip_ids == ["yours-2"]
    assert set(content_of(store.get(dataset="mine", encoder="small"))) == {"mine-1", "mine-2"}
    forget_patient(store, "p2", datasets=["mine", "yours"], apply=True)
    assert store.manifest("mine").clip_ids == ["mine-1"]
    assert [entry.name for entry in store.manifests()] == ["mine"] and is_sound(store)
    assert [entry.dataset for entry in store.entries()] == ["mine"]


def test_a_patient_of_earlier_manifests_only(store: Store) -> None:
    store.add_manifest(manifest_of(PATIENTS))
    add_set(store, CLIPS)
    store.add_manifest(manifest_of({k: v for k, v in PATIENTS.items() if k in OTHERS}))
    add_set(store, OTHERS)
    before = store.log()
    outcome = forget_patient(store, "pat-medlar", apply=True)
    assert store.log() == before and outcome.rewritten == {}
    assert words_in(store) == [] and is_sound(store)


def test_the_newest_manifest_says_whose_a_clip_is(store: Store) -> None:
    """clip-4 was taken for the patient's first; the correction keeps it in the head, the wrong manifest goes."""
    store.add_manifest(manifest_of({**PATIENTS, "clip-4": "pat-medlar"}))
    add_set(store, CLIPS)
    store.add_manifest(manifest_of(PATIENTS))
    forget_patient(store, "pat-medlar", apply=True)
    assert set(content_of(store.get(dataset="mine", encoder="small"))) == set(OTHERS)
    assert words_in(store) == [] and len(list(store.layout.manifests.glob("*.parquet"))) == 1


def test_a_clip_without_a_patient(store: Store) -> None:
    store.add_manifest(manifest_of({"clip-1": None, "clip-2": None}))
    add_set(store, {"clip-1": 1, "clip-2": 1})
    forget_patient(store, "clip:clip-2", apply=True)
    assert where_found(store.layout.root, "clip-2") == [] and store.manifest("mine").clip_ids == ["clip-1"]


def test_labels_that_are_no_numbers_go_too(store: Store) -> None:
    rows = [
        {"clip_id": "clip-quince", "patient_id": "pat-medlar", "note": "quince jelly"},
        {"clip_id": "clip-2", "patient_id": "p2", "note": "-"},
    ]
    fields = [ManifestField(name="note", role="extra")]
    store.add_manifest(Manifest.from_rows(rows, dataset=DatasetFacts(name="mine", title="mine"), fields=fields))
    assert len(words_in(store)) == 1
    forget_patient(store, "pat-medlar", apply=True)
    assert words_in(store) == []


def test_whole_shards_of_others_are_not_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedstore.shards, "_SHARD_ROWS", 256)
    patients = {f"c{number:04d}": f"p{number:04d}" for number in range(700)}
    store.add_manifest(manifest_of(patients))
    clips = dict.fromkeys(patients, 1)
    old = store.layout.set_folder(add_set(store, clips))
    inode = (old / "clips/c/0/0").stat().st_ino
    for victim in ("p0300", "p0000"):
        forget_patient(store, victim, apply=True)
        clips.pop(victim.replace("p", "c"))
        opened = store.get(dataset="mine", encoder="small")
        assert content_of(opened) == expected_content(clips, spec_of())
        assert ((opened.folder / "clips/c/0/0").stat().st_ino == inode) == (victim == "p0300")
        assert is_sound(store)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedstore.build.plan, "UNIT_CLIPS", 2)


@pytest.mark.usefixtures("small_units")
def test_a_running_build_is_not_robbed(store: Store) -> None:
    manifest = manifest_of(PATIENTS)
    store.add_manifest(manifest)
    add_set(store, CLIPS)
    folder = start_build(store, manifest, spec_of(unit="clip"), done=1)
    before = tree_of(store.layout.root)
    with build_lock(store.layout.builds, folder.name, shared=True):
        with pytest.raises(BusyError, match="a build is running on this machine .small on mine.; forget the patient"):
            forget_patient(store, "pat-medlar", apply=True)
        assert len(forget_patient(store, "pat-medlar").builds) == 1
    with build_lock(store.layout.builds, "0" * 64, shared=False), pytest.raises(BusyError, match="not planned yet"):
        forget_patient(store, "pat-medlar", apply=True)
    after = tree_of(store.layout.root)
    assert {k: v for k, v in after.items() if "lock" not in k and k != "builds"} == {
        k: v for k, v in before.items() if "lock" not in k and k != "builds"
    }
    # A build of another data set does not stand in the way.
    other = manifest_of({"x": "px"}, name="other")
    store.add_manifest(other)
    beside = start_build(store, other, spec_of(unit="clip"), done=0)
    with build_lock(store.layout.builds, beside.name, shared=False):
        assert [build.key for build in forget_patient(store, "pat-medlar", apply=True).builds] == [folder.name]
        assert beside.is_dir() and words_in(store) == []


def test_a_set_being_written_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_module, "_LOCK_WAIT_S", 0.1)
    store.add_manifest(manifest_of(PATIENTS))
    add_set(store, CLIPS)
    with store.publishing(), pytest.raises(BusyError, match="being written or committed"):
        forget_patient(store, "pat-medlar", apply=True)
    assert words_in(store) != []
    forget_patient(store, "pat-medlar", apply=True)
    assert words_in(store) == []


def test_somebody_commits_the_patient_again_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_manifest(manifest_of(PATIENTS))
    add_set(store, CLIPS)
    real, times = forget_module.sweep, []

    def sweep_after_a_commit(*arguments: object, **options: object) -> object:
        if len(times) < 2:
            add_set(store, {**CLIPS, "clip-2": len(times) + 2})
            store.add_manifest(manifest_of({**PATIENTS, f"clip-quince-{len(times)}": "pat-medlar"}))
        times.append(1)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(forget_module, "sweep", sweep_after_a_commit)
    forget_patient(store, "pat-medlar", apply=True)
    assert words_in(store) == [] and is_sound(store)
    assert content_of(store.get(dataset="mine", encoder="small")) == expected_content(
        {**OTHERS, "clip-2": 3}, spec_of()
    )
    monkeypatch.setattr(forget_module, "_ATTEMPTS", 3)
    add_set(store, CLIPS)
    store.add_manifest(manifest_of(PATIENTS))
    times[:] = []
    monkeypatch.setattr(forget_module, "_ATTEMPTS", 2)
    with pytest.raises(BusyError, match="again and again"):
        forget_patient(store, "pat-medlar", apply=True)


def test_what_cannot_be_read_is_not_passed_over(store: Store) -> None:
    store.add_manifest(manifest_of(PATIENTS))
    old = add_set(store, CLIPS)
    add_set(store, {**CLIPS, "clip-2": 2})
    path = store.layout.set_folder(old) / "index.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptionError, match="no readable table"):
        forget_patient(store, "pat-medlar", apply=True)
    assert len(store.log()) == 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = crowded(tmp_path / "store")
    path = store.layout.root
    assert run_program("forget-patient", "pat-medlar", "--store", path) == 0
    shown = capsys.readouterr().out
    assert "would be removed: build" in shown and "1 finished units are lost" in shown
    assert "held the patient: snapshot" in shown and "tagged held" in shown
    assert "nothing was touched, run again with --yes" in shown and words_in(store)
    assert run_program("forget-patient", "pat-medlar", "--dataset", "mine", "--yes", "--store", path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["clips"] == {"mine": 3} and document["tags"] == ["held"] and document["dry_run"] is False
    assert len(document["snapshots"]) == 7 and len(document["rewritten"]) == 2
    assert words_in(store) == []
    for arguments in (("pat-medlar",), ("pat-medlar", "--yes"), ("pat-other", "--dataset", "no")):
        assert run_program("forget-patient", *arguments, "--store", path) == 2
    assert run_program("forget-patient", "pat-other", "--store", path) == 2
    assert "say which with --dataset" in capsys.readouterr().err
    assert run_program("log", "--store", path) == 0
    shown = capsys.readouterr().out
    assert "(held)  [no longer restorable]" in shown and "medlar" not in shown
    assert run_program("verify", "--store", path) == 0
