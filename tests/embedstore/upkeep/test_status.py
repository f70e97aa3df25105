"""status and commit: what is done, failed, missing, and builds whose units others finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_sets import (
    add_set,
    content_of,
    expected_content,
    manifest_of,
    run_program,
    spec_of,
    start_build,
    tree_of,
    vectors_of,
)

import embedstore.build.plan
from embedstore.build.lock import build_lock
from embedstore.errors import AmbiguousNameError, BusyError, ContentError, CorruptionError, UnknownNameError
from embedstore.manifest import Manifest
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store
from embedstore.upkeep.builds import find_build, read_builds
from embedstore.upkeep.complete import complete_build, complete_builds
from embedstore.upkeep.status import read_status

SPEC = spec_of(unit="clip")
PATIENTS = {clip_id: f"p{clip_id}" for clip_id in "abcde"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(embedstore.build.plan, "UNIT_CLIPS", 2)
    return Store.create(tmp_path / "store")


@pytest.fixture
def manifest(store: Store) -> Manifest:
    made = manifest_of(PATIENTS)
    store.add_manifest(made)
    return made


def counts(store: Store) -> dict[tuple[str, str], tuple[int | None, int, int, int | None]]:
    return {
        (line.dataset, line.title): (line.expected, line.ok, line.failed, line.missing) for line in read_status(store)
    }


def test_every_manifest_and_every_encoder(store: Store, manifest: Manifest) -> None:
    store.add_manifest(manifest_of({"x": "px"}, name="other"))
    add_set(store, {"a": 1, "b": 1, "gone": 1}, failed=["c", "gone-too"])
    add_set(store, {"x": 1}, dataset="other", spec=spec_of("wide", variant="stride2"))
    add_set(store, {"y": 1}, dataset="no-manifest")
    assert counts(store) == {
        ("mine", "small"): (5, 2, 1, 2),
        ("mine", "wide@stride2"): (5, 0, 0, 5),
        ("other", "small"): (1, 0, 0, 1),
        ("other", "wide@stride2"): (1, 1, 0, 0),
        ("no-manifest", "small"): (None, 1, 0, None),
    }


def test_a_build_under_way(store: Store, manifest: Manifest) -> None:
    folder = start_build(store, manifest, SPEC, done=2)
    (line,) = read_status(store)
    (build,) = line.builds
    assert (line.set_id, line.ok, line.missing) == (None, 0, 5)
    assert (build.build, build.units_done, build.units_open, build.clips_ok) == (folder.name, 2, 1, 4)
    assert not build.live and build.resumable
    with build_lock(store.layout.builds, folder.name, shared=True):
        assert next(read_status(store)).builds[0].live
    assert not next(read_status(store)).builds[0].live
    add_set(store, {"a": 1}, spec=SPEC)
    assert not next(read_status(store)).builds[0].resumable


def test_builds_whose_units_are_all_there_are_committed(store: Store, manifest: Manifest) -> None:
    start_build(store, manifest, SPEC, done=2)
    (outcome,) = complete_builds(store)
    assert (outcome.state, outcome.set_id, outcome.units_open) == ("open", None, 1) and store.log()[0].number == 1
    start_build(store, manifest, SPEC, done=3)
    start_build(store, manifest, spec_of("half", unit="clip"), done=1)
    outcomes = {outcome.what: outcome for outcome in complete_builds(store)}
    assert outcomes["half on mine"].state == "open"
    committed = outcomes["small on mine"]
    assert (committed.state, committed.clips_ok, committed.clips_failed, committed.units_done) == (
        "committed",
        5,
        0,
        3,
    )
    opened = store.get(dataset="mine", encoder="small")
    assert opened.set_id == committed.set_id
    assert content_of(opened) == expected_content(dict.fromkeys("abcde", 1), SPEC)
    assert opened.provenance["clips_encoded"] == 5
    assert [build.title for build in read_builds(store)] == ["half on mine"]
    assert verify_store(store, quick=False).ok


def test_a_build_that_runs_is_left_alone(store: Store, manifest: Manifest) -> None:
    folder = start_build(store, manifest, SPEC, done=3)
    with build_lock(store.layout.builds, folder.name, shared=True):
        (build,) = read_builds(store)
        with pytest.raises(BusyError):
            complete_build(store, build)
        assert [outcome.state for outcome in complete_builds(store)] == ["live"]
    assert folder.is_dir() and len(store.log()) == 1


def test_a_build_that_was_overtaken_would_lose_clips(store: Store, manifest: Manifest) -> None:
    start_build(store, manifest, SPEC, done=3)
    newer = add_set(store, {"a": 1, "z": 1}, spec=SPEC)
    (build,) = read_builds(store)
    with pytest.raises(ContentError, match="could lose clips"):
        complete_build(store, build)
    assert [outcome.state for outcome in complete_builds(store)] == ["overtaken"]
    assert store.entries()[0].set_id == newer


def test_a_build_that_is_gone_or_damaged(store: Store, manifest: Manifest) -> None:
    folder = start_build(store, manifest, SPEC, done=3)
    (build,) = read_builds(store)
    complete_builds(store)
    with pytest.raises(UnknownNameError, match="is gone"):
        complete_build(store, build)
    folder = start_build(store, manifest_of({**PATIENTS, "f": "pf"}), SPEC, done=1)
    (folder / "plan.json").write_bytes(b"[")
    assert [outcome.state for outcome in complete_builds(store)] == ["damaged"]
    with pytest.raises(ContentError, match="no readable plan"):
        complete_build(store, read_builds(store)[0])


def test_a_damaged_unit_is_not_committed(store: Store, manifest: Manifest) -> None:
    folder = start_build(store, manifest, SPEC, done=3)
    (part,) = (folder / "units").glob("000001-*/clips.bin")
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptionError, match="damaged"):
        complete_builds(store)
    assert read_builds(store)[0].open_units == [1] and len(store.log()) == 1


def test_a_set_without_frames_grows_into_one_with_frames(store: Store, manifest: Manifest) -> None:
    start_build(store, manifest, SPEC, done=3, with_frames=False)
    complete_builds(store)
    assert "frames" not in store.get(dataset="mine", encoder="small").described["arrays"]
    start_build(store, manifest, SPEC, done=3)
    assert read_builds(store)[0].is_current
    complete_builds(store)
    frames = store.get(dataset="mine", encoder="small").frames
    assert frames.raw[0].tobytes() == vectors_of("a", 1, "frames", SPEC)[0].tobytes()


def test_builds_are_found_by_the_beginning_of_their_key(store: Store, manifest: Manifest) -> None:
    keys = [start_build(store, manifest, spec_of(name, unit="clip"), done=0).name for name in ("x", "y")]
    builds = read_builds(store)
    for key in keys:
        assert find_build(builds, key[:12]).key == key
    for text in ("", "zz", keys[0] + "0"):
        with pytest.raises(UnknownNameError, match="under way: "):
            find_build(builds, text)
    with pytest.raises(AmbiguousNameError, match="several builds"):
        find_build([builds[0], builds[0]], builds[0].key[:4])


def test_the_commands(store: Store, manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    path = store.layout.root

    def document(*arguments: str, code: int = 0) -> dict[str, object]:
        assert run_program(*arguments, "--store", path, "--json") == code
        parsed = json.loads(capsys.readouterr().out)
        assert isinstance(parsed, dict)
        return parsed

    assert document("status") == {"status": []} and document("commit") == {"sets": []}
    folder = start_build(store, manifest, SPEC, done=2)
    before = tree_of(path)
    (line,) = document("status")["status"]  # type: ignore[misc]
    assert line["clips_expected"] == 5 and line["builds"][0]["units_open"] == 1
    assert tree_of(path) == before
    (left,) = document("commit", folder.name[:8])["sets"]  # type: ignore[misc]
    assert left["set"] is None and left["units_open"] == 1
    document("commit", "zz", code=2)
    with build_lock(store.layout.builds, folder.name, shared=True):
        document("commit", folder.name[:8], code=5)
        assert run_program("status", "--store", path) == 0
        assert "2 units done, 1 open, 4 clips done, 0 failed; running" in capsys.readouterr().out
    start_build(store, manifest, SPEC, done=3)
    assert run_program("status", "--store", path) == 0
    assert "complete; embedstore commit packs it" in capsys.readouterr().out
    (done,) = document("commit")["sets"]  # type: ignore[misc]
    assert done["set"] == store.entries()[0].set_id and done["clips_ok"] == 5
    assert run_program("status", "--store", path) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["data", "set", "encoder", "clips", "done", "failed", "missing"]
    assert shown[1].split() == ["mine", "small", "5", "5", "0", "0"] and len(shown) == 2
    assert run_program("commit", "--store", path) == 0
    assert "no build is under way" in capsys.readouterr().out
    assert run_program("status", "--store", path.parent / "none") == 2
