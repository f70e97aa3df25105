"""Pull into a store: fetched once, inspected where it lies, kept for the next attempt where it is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fault_server import FaultServer, fault_server
from sent_snapshots import copied, edit_json, export_of, hospital_store, reseal, tree_bytes
from small_sets import add_set

from embedstore.errors import BusyError, ContentError, EnvironmentFailure, PolicyError
from embedstore.layout import STAGING_PREFIX
from embedstore.locks import folder_lock
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.fetch import FetchOptions
from embedstore.snapshot.importing import ImportRequest, import_snapshot
from embedstore.snapshot.pull import pull_folder, pull_snapshot
from embedstore.snapshot.remotes import open_remote
from embedstore.snapshot.selection import Selection
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store
from embedstore.upkeep.forget import forget_patient
from embedstore.upkeep.gc import collect_garbage

QUICK = FetchOptions(n_parallel=4, attempts=2, first_pause_s=0.01)


def transfers(store: Store) -> list[Path]:
    return [path for path in store.layout.builds.iterdir() if path.name.startswith(STAGING_PREFIX)]


def asked_for(server: FaultServer, snapshot: SentSnapshot) -> list[str]:
    listed = {file.path for file in snapshot.files}
    return sorted(path[1:] for path, _ in server.requests if path[1:] in listed)


def test_each_byte_comes_once_and_is_what_an_import_would_have_put_there(
    exported: Path, served: FaultServer, tmp_path: Path, in_a_child: None
) -> None:
    store, other = Store.create(tmp_path / "b"), Store.create(tmp_path / "c")
    pulled, imported = pull_snapshot(store, open_remote(served.url), options=QUICK)
    assert imported.trust == "intact, unsigned" and pulled.n_absent == 0
    snapshot = SentSnapshot.read(exported)
    assert asked_for(served, snapshot) == sorted(file.path for file in snapshot.files)
    assert sum(path == f"/{DOCUMENT_FILE}" for path, _ in served.requests) == 1
    import_snapshot(other, exported)
    assert store.snapshot().id == other.snapshot().id
    assert tree_bytes(store.layout.sets) == tree_bytes(other.layout.sets)
    assert verify_store(store, quick=False).ok and not transfers(store)


def test_what_was_fetched_serves_the_next_attempt(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "b")
    served.fail("500", only=r"small.*clips/c/0/0")
    with pytest.raises(EnvironmentFailure):
        pull_snapshot(store, open_remote(served.url), options=FetchOptions(n_parallel=1, attempts=1))
    assert not store.entries() and len(transfers(store)) == 1
    served.fail(None)
    served.requests.clear()
    snapshot = SentSnapshot.read(exported)
    pull_snapshot(store, open_remote(served.url), options=QUICK)
    assert 0 < len(asked_for(served, snapshot)) < len(snapshot.files)
    assert len(store.entries()) == 2 and not transfers(store)


def test_what_changed_since_an_attempt_is_fetched_again(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    store, other = Store.create(tmp_path / "b"), Store.create(tmp_path / "c")
    served.fail("500", only=r"small.*clips/c/0/0")
    with pytest.raises(EnvironmentFailure):
        pull_snapshot(store, open_remote(served.url), options=FetchOptions(n_parallel=1, attempts=1))
    served.fail(None)
    (left,) = transfers(store)
    shards = [path for path in left.rglob("0") if path.is_file()]
    assert shards
    for path in shards:
        payload = bytearray(path.read_bytes())
        payload[0] ^= 1  # still finite: only its digest tells
        path.write_bytes(payload)
    pull_snapshot(store, open_remote(served.url), options=QUICK)
    import_snapshot(other, exported)
    assert tree_bytes(store.layout.sets) == tree_bytes(other.layout.sets)


def test_a_missing_signature_is_told_before_anything_is_fetched(
    exported: Path, served: FaultServer, tmp_path: Path
) -> None:
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAA nobody")
    with pytest.raises(PolicyError, match="is not signed"):
        pull_folder(open_remote(served.url), tmp_path / "got", signer_key=key, options=QUICK)
    assert not asked_for(served, SentSnapshot.read(exported)) and not (tmp_path / "got").exists()


def test_a_hostile_snapshot_is_refused_where_it_lies(exported: Path, tmp_path: Path, in_a_child: None) -> None:
    bad = copied(exported, tmp_path / "bad")
    edit_json(next(bad.rglob("clips/zarr.json")), lambda document: document.update(fill_value=1))
    reseal(bad)
    store = Store.create(tmp_path / "b")
    with fault_server(bad) as server, pytest.raises(ContentError):
        pull_snapshot(store, open_remote(server.url), options=QUICK)
    assert not store.entries() and verify_store(store, quick=False).ok
    assert not list(store.layout.sets.iterdir())


def test_two_pulls_of_the_same_do_not_mix(served: FaultServer, tmp_path: Path) -> None:
    folder = tmp_path / "got"
    folder.mkdir()
    with (
        folder_lock(folder, busy="it is held"),
        pytest.raises(BusyError, match="another pull into .* is under way"),
    ):
        pull_folder(open_remote(served.url), folder, options=QUICK)
    pull_folder(open_remote(served.url), folder, options=QUICK)


def test_gc_takes_an_interrupted_pull_when_nobody_goes_on_with_it(served: FaultServer, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "b")
    served.fail("500", only=r"small.*clips/c/0/0")
    with pytest.raises(EnvironmentFailure):
        pull_snapshot(store, open_remote(served.url), options=FetchOptions(n_parallel=1, attempts=1))
    (left,) = transfers(store)
    assert collect_garbage(store, grace_h=24.0, apply=True).removed == []
    long_ago = time.time() - 48 * 3600
    for path in (left, *left.rglob("*")):
        os.utime(path, (long_ago, long_ago))
    with folder_lock(left, busy="it is held"):
        assert collect_garbage(store, grace_h=24.0, apply=True).removed == []
    assert [leftover.path for leftover in collect_garbage(store, grace_h=24.0, apply=True).removed] == [left]
    assert not transfers(store)


def test_a_patient_is_not_forgotten_while_a_pull_may_bring_them(
    served: FaultServer, tmp_path: Path, exported: Path
) -> None:
    store = Store.create(tmp_path / "b")
    pull_snapshot(store, open_remote(served.url), options=QUICK)
    patient = str(store.manifest("mine").table["patient_id"][0])
    left = store.layout.pull_folder("ab" * 32, Selection().digest)
    left.mkdir()
    with folder_lock(left, busy="it is held"), pytest.raises(BusyError, match="pushed or pulled"):
        forget_patient(store, patient, apply=True)
    forget_patient(store, patient, apply=True)
    assert not left.exists()


def test_a_part_that_was_pulled_is_completed_later(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "b")
    part = ImportRequest(selection=Selection(encoders=("small",), clips_only=True))
    pull_snapshot(store, open_remote(served.url), request=part, options=QUICK)
    (entry,) = store.entries()
    assert store.open_set(entry.set_id).array("frames") is None
    pull_snapshot(store, open_remote(served.url), options=QUICK)
    whole = Store.create(tmp_path / "c")
    import_snapshot(whole, exported)
    assert store.snapshot().sets == whole.snapshot().sets
    before = store.snapshot().id
    pull_snapshot(store, open_remote(served.url), request=part, options=QUICK)
    assert store.snapshot().id == before, "the frames that were there went away"


def test_a_part_follows_its_sender_and_goes_back_with_a_flag_only(tmp_path: Path) -> None:
    sender = hospital_store(tmp_path / "a", n_clips=8)
    export_of(sender, tmp_path / "v1")
    add_set(sender, dict.fromkeys(sender.manifest("mine").clip_ids, 2))
    export_of(sender, tmp_path / "v2")
    store, part = Store.create(tmp_path / "b"), Selection(encoders=("small",), clips_only=True)
    ids = []
    for name in ("v1", "v2"):
        pull_snapshot(store, open_remote(str(tmp_path / name)), request=ImportRequest(selection=part))
        ids.append(store.entries()[0].set_id)
    assert ids[0] != ids[1] and len(store.entries()) == 1
    old = open_remote(str(tmp_path / "v1"))
    with pytest.raises(PolicyError, match="--allow-rollback"):
        pull_snapshot(store, old, request=ImportRequest(selection=part))
    pull_snapshot(store, old, request=ImportRequest(selection=part, allow_rollback=True))
    assert store.entries()[0].set_id == ids[0]
