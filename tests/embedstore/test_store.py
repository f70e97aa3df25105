"""The store: opening, manifests, the log, sets by name."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

import embedstore
from embedstore import disk
from embedstore.embedding_set import FAILURES_SCHEMA, FRAME_INDEX_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.errors import (
    AmbiguousNameError,
    CorruptionError,
    FormatError,
    ManifestError,
    StorageError,
    StoreNotFoundError,
    UnknownNameError,
)
from embedstore.json_files import seal_json
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import rows_to_table


def write_set(store: Store, *, dataset: str = "mine", spec: EncoderSpec | None = None, n_clips: int = 5) -> str:
    """Write and publish a set of random vectors, two frames a clip."""
    spec = spec or EncoderSpec(name="random", clip_dim=4, frame_dim=4)
    rng = np.random.default_rng(0)
    index = [
        {"row": row, "clip_id": f"c{row}", "vector_key": f"k{row}", "frame_row": 2 * row, "n_frame_rows": 2}
        for row in range(n_clips)
    ]
    frames = [{"clip_id": f"c{row // 2}", "frame": row % 2} for row in range(2 * n_clips)]
    with SetWriter(store.layout.sets, dataset=dataset, spec=spec) as writer:
        writer.array("clips", dim=4).append(rng.standard_normal((n_clips, 4)).astype(spec.dtype))
        writer.array("frames", dim=4).append(rng.standard_normal((2 * n_clips, 4)).astype(spec.dtype))
        tables = {
            "index.parquet": rows_to_table(index, INDEX_SCHEMA),
            "frame_index.parquet": rows_to_table(frames, FRAME_INDEX_SCHEMA),
            "failures.parquet": rows_to_table([], FAILURES_SCHEMA),
        }
        set_id = writer.finish(tables, provenance={"made": "by a test"})
    entry = store.entry_of(store.open_set(set_id))
    store.commit(lambda head: head.with_set(entry), reason="test")
    return set_id


def manifest(name: str = "mine", *, split: str = "train") -> Manifest:
    rows = [{"clip_id": f"c{row}", "patient_id": f"p{row}", "split": split} for row in range(3)]
    return Manifest.from_rows(rows, dataset=DatasetFacts(name=name, title=name))


def test_reading_never_makes_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no store at"):
        embedstore.open(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        embedstore.open(tmp_path / "store")


def test_a_store_path_that_is_a_file_or_something_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("x")
    for path, message in ((tmp_path / "file", "is a file"), (tmp_path / "photos", "holds other things")):
        with pytest.raises(UnknownNameError, match=message):
            Store.create(path)
    with pytest.raises(StoreNotFoundError, match="is a file"):
        Store.open(tmp_path / "file")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_newer_store_is_refused_untouched(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    newer = seal_json({"format": 99, "kind": "store", "needs": "9.1"})
    store.layout.store_file.write_bytes(newer)
    for opened in (Store.open, Store.create):
        with pytest.raises(FormatError, match=r"needs embedstore >= 9\.1"):
            opened(tmp_path / "store")
    assert store.layout.store_file.read_bytes() == newer


def test_a_set_is_read_back(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    set_id = write_set(store)
    opened = embedstore.open(tmp_path / "store").get(dataset="mine", encoder="random")
    assert opened.set_id == set_id and len(opened) == 5
    assert opened.clips.shape == (5, 4) and opened.frames[[9, 0]].shape == (2, 4)
    assert opened.index.column("clip_id").to_pylist() == [f"c{row}" for row in range(5)]
    assert opened.frame_index.num_rows == 10 and opened.failures.num_rows == 0 and opened.windows is None
    assert opened.provenance == {"made": "by a test"}


def test_the_same_content_is_the_same_set_and_snapshot(tmp_path: Path) -> None:
    first, second = Store.create(tmp_path / "a"), Store.create(tmp_path / "b")
    other = EncoderSpec(name="other", clip_dim=4, frame_dim=4)
    write_set(first)
    write_set(first, spec=other)
    write_set(second, spec=other)
    write_set(second)
    assert first.log()[0].snapshot_id == second.log()[0].snapshot_id
    before = first.log()
    write_set(first)
    assert first.log() == before


def test_names_and_variants(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    published, stride = (
        EncoderSpec(name="pan", variant=v, clip_dim=4, frame_dim=4) for v in ("published", "stride2")
    )
    write_set(store, spec=stride)
    assert store.get(dataset="mine", encoder="pan").spec.variant == "stride2"
    write_set(store, spec=published)
    assert store.get(dataset="mine", encoder="pan").spec.variant == "published"
    assert store.get(dataset="mine", encoder="pan@stride2").spec.variant == "stride2"
    write_set(store, spec=EncoderSpec(name="pan", clip_dim=4, frame_dim=4, weights_sha256="1" * 64))
    with pytest.raises(AmbiguousNameError, match="several sets"):
        store.get(dataset="mine", encoder="pan")
    for dataset, encoder in (("mine", "pam"), ("mime", "pan"), ("mine", "pan@published2")):
        with pytest.raises(UnknownNameError, match="did you mean|known:"):
            store.get(dataset=dataset, encoder=encoder)


def test_manifests_replace_by_name_and_keep_history(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    store.add_manifest(manifest())
    first = store.log()[0].snapshot_id
    changed = manifest(split="test")
    store.add_manifest(changed)
    assert store.manifest("mine").id == changed.id
    assert [entry.parent_id for entry in store.log()] == [first, None]
    assert store.snapshot(first).manifests[0].manifest_id == manifest().id
    assert store.snapshot(first).manifests[0].media_digest == store.manifests()[0].media_digest
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        store.manifest("mein")


def test_a_manifest_is_read_once_and_a_changed_one_again(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    store.add_manifest(manifest())
    first = store.manifest("mine")
    assert store.manifest("mine") is first
    store.add_manifest(manifest(split="test"))
    assert store.manifest("mine").id == manifest(split="test").id != first.id


def test_a_broken_manifest_is_not_added(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    with pytest.raises(ManifestError, match="split"):
        store.add_manifest(manifest(split="fold3"))
    assert store.log() == [] and list(store.layout.manifests.iterdir()) == []


def test_roots_stay_on_this_machine(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    (tmp_path / "media").mkdir()
    store.add_manifest(manifest(), root=tmp_path / "media")
    assert store.roots() == {"mine": (tmp_path / "media").resolve()}
    for path in store.layout.root.rglob("*"):
        if path.is_file() and path != store.layout.local_file:
            assert str(tmp_path).encode() not in path.read_bytes()
    with pytest.raises(StorageError, match="no folder"):
        store.remember_root("mine", tmp_path / "gone")


def test_reading_another_set_than_its_id_is_an_error(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    one = write_set(store)
    two = write_set(store, n_clips=6)
    folder = store.layout.set_folder(one)
    (folder / "description.json").write_bytes((store.layout.set_folder(two) / "description.json").read_bytes())
    with pytest.raises(CorruptionError, match="not what was written"):
        store.open_set(one)


def _add(path: str, name: str) -> None:
    Store.open(path).add_manifest(manifest(name))


def test_commits_at_once_lose_nothing(tmp_path: Path) -> None:
    Store.create(tmp_path / "store")
    names = [f"set-{number}" for number in range(8)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add, args=(str(tmp_path / "store"), name)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    store = Store.open(tmp_path / "store")
    assert [entry.name for entry in store.manifests()] == names
    assert [entry.number for entry in store.log()] == list(range(8, 0, -1))


@pytest.mark.parametrize(("failing", "words"), [(1, "000001.json.*did not confirm"), (2, "reached.json")])
def test_a_disk_that_fails_when_the_commit_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, words: str
) -> None:
    """The sentence says that it is made; the same again makes no other commit and brings it to disk."""
    store = Store.create(tmp_path / "store")
    seen, broken = 0, True

    def fault(operation: str, path: Path) -> None:
        nonlocal seen
        if operation == "fsync" and path == store.layout.log:
            seen += 1
            if broken and seen == failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "fault_hook", fault)
    with pytest.raises(StorageError, match=words) as failed:
        store.add_manifest(manifest())
    assert "commit 1 is made" in failed.value.__notes__[0]
    assert [entry.name for entry in store.manifests()] == ["mine"]
    seen, broken = 0, False
    store.add_manifest(manifest())
    assert len(store.log()) == 1 and seen == 1


def test_the_public_names_are_those_that_can_be_imported() -> None:
    for name in embedstore.__all__:
        assert getattr(embedstore, name) is not None
    with pytest.raises(AttributeError):
        _ = embedstore.nothing  # type: ignore[attr-defined]
