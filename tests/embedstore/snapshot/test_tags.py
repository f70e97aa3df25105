"""Tags and names of snapshots: fixed once made, never used again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_sets import add_set, drop_sets, manifest_of, run_program

from embedstore.errors import AmbiguousNameError, ContentError, CorruptionError, UnknownNameError
from embedstore.folders import remove_folder
from embedstore.json_files import seal_json
from embedstore.snapshot.tags import create_tag, delete_tag, find_snapshot, list_tags
from embedstore.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two commits of one set."""
    store = Store.create(tmp_path / "store")
    add_set(store, {"a": 1})
    add_set(store, {"a": 1, "b": 1})
    return store


def test_a_tag_is_fixed(store: Store) -> None:
    newest, oldest = (entry.snapshot_id for entry in store.log())
    made = create_tag(store, "paper-v1", snapshot_id=oldest)
    assert list_tags(store) == [made] and find_snapshot(store, "paper-v1") == oldest
    written = store.layout.tag_file("paper-v1").read_bytes()
    assert create_tag(store, "paper-v1", snapshot_id=oldest) == made
    with pytest.raises(ContentError, match=f"already names snapshot {oldest[:12]} and is fixed"):
        create_tag(store, "paper-v1", snapshot_id=newest)
    assert store.layout.tag_file("paper-v1").read_bytes() == written


def test_a_deleted_name_is_not_used_again(store: Store) -> None:
    newest, oldest = (entry.snapshot_id for entry in store.log())
    create_tag(store, "v1", snapshot_id=oldest)
    assert delete_tag(store, "v1").is_deleted
    assert list_tags(store) == [] and [tag.name for tag in list_tags(store, deleted=True)] == ["v1"]
    for snapshot_id in (oldest, newest):
        with pytest.raises(ContentError, match="was deleted and its name is not used again"):
            create_tag(store, "v1", snapshot_id=snapshot_id)
    with pytest.raises(UnknownNameError, match="no tag 'v1'"):
        delete_tag(store, "v1")
    with pytest.raises(UnknownNameError, match="no snapshot or tag 'v1'"):
        find_snapshot(store, "v1")


def test_a_tag_called_like_a_deleted_ones_end_stands_beside_it(store: Store) -> None:
    head = store.log()[0].snapshot_id
    for name in ("v1", "v1.deleted", "v1.json"):
        create_tag(store, name, snapshot_id=head)
    delete_tag(store, "v1")
    assert [tag.name for tag in list_tags(store)] == ["v1.deleted", "v1.json"]


@pytest.mark.parametrize("name", ["", "head", "HEAD", "../x", "a/b", ".hidden", "-x", "a b", "a\n", "é", "x" * 101])
def test_names_that_cannot_be(store: Store, name: str) -> None:
    with pytest.raises(UnknownNameError, match="a tag cannot be called"):
        create_tag(store, name, snapshot_id=store.log()[0].snapshot_id)
    assert list(store.layout.tags.iterdir()) == []


def test_a_snapshot_is_named_by_head_tag_or_beginning(store: Store) -> None:
    newest, oldest = (entry.snapshot_id for entry in store.log())
    assert find_snapshot(store) == find_snapshot(store, "head") == newest
    assert find_snapshot(store, oldest) == find_snapshot(store, oldest[:8].upper()) == oldest
    for text in (oldest[:3], "", "ffff" + oldest[4:], "nothing"):
        with pytest.raises(UnknownNameError, match="no snapshot or tag"):
            find_snapshot(store, text)
    # A tag that looks like the beginning of another snapshot's id goes on meaning what it meant.
    create_tag(store, newest[:8], snapshot_id=oldest)
    assert find_snapshot(store, newest[:8]) == oldest and find_snapshot(store, newest[:9]) == newest


def test_a_beginning_that_several_have(store: Store) -> None:
    parent = store.log()[0].snapshot_id
    twins = ["abcd" + digit * 60 for digit in "01"]
    for number, snapshot_id in enumerate(twins, start=3):
        entry = {"snapshot": snapshot_id, "parent": parent, "time": "", "reason": "test"}
        store.layout.log_entry(number).write_bytes(seal_json(entry))
    with pytest.raises(AmbiguousNameError, match=f"{twins[0][:16]}, {twins[1][:16]}"):
        find_snapshot(store, "abcd")
    assert find_snapshot(store, "abcd0") == twins[0]


def test_a_snapshot_that_lost_a_set_cannot_be_tagged(store: Store) -> None:
    oldest = store.log()[1].snapshot_id
    remove_folder(store.layout.set_folder(store.snapshot(oldest).sets[0].set_id))
    with pytest.raises(ContentError, match="removed 1 of its sets"):
        create_tag(store, "late", snapshot_id=oldest)
    assert list(store.layout.tags.iterdir()) == []


def test_a_damaged_tag_is_found(store: Store) -> None:
    create_tag(store, "v1", snapshot_id=store.log()[0].snapshot_id)
    path = store.layout.tag_file("v1")
    path.write_bytes(path.read_bytes().replace(b"snapshot", b"snapshoT"))
    with pytest.raises(CorruptionError, match=r"v1\.json is not what was written"):
        list_tags(store)


def test_a_copy_without_its_empty_folders(store: Store) -> None:
    for folder in (store.layout.tags, store.layout.prompts):
        folder.rmdir()
    assert list_tags(store) == [] and find_snapshot(store) == store.log()[0].snapshot_id
    create_tag(store, "v1", snapshot_id=find_snapshot(store))
    assert find_snapshot(store, "v1") == store.log()[0].snapshot_id


def test_an_empty_store_has_nothing_to_tag(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "empty")
    with pytest.raises(UnknownNameError, match="has no snapshot yet"):
        find_snapshot(store)


def test_the_commands(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = store.layout.root
    store.add_manifest(manifest_of({"a": "p1"}))

    def document(*arguments: str, code: int = 0) -> dict[str, object]:
        assert run_program(*arguments, "--store", path, "--json") == code
        parsed = json.loads(capsys.readouterr().out)
        assert isinstance(parsed, dict)
        return parsed

    ids = [entry.snapshot_id for entry in store.log()]
    made = document("tag", "v1", ids[1][:10])
    assert (made["tag"], made["snapshot"], made["deleted"]) == ("v1", ids[1], False)
    document("tag", "v1-too", "v1")
    drop_sets(store)
    listed = document("log")["log"]
    assert isinstance(listed, list)
    assert [(line["number"], line["tags"], line["restorable"]) for line in listed] == [
        (4, [], True),
        (3, [], True),
        (2, ["v1", "v1-too"], True),
        (1, [], True),
    ]
    assert [line["snapshot"] for line in listed[1:]] == ids
    assert [line["parent"] for line in listed] == [*ids, None]
    assert document("tag", "v1", "--delete")["deleted"] is True
    for arguments, code in (
        (("tag", "v1"), 4),
        (("tag", "v1-too", "head"), 4),
        (("tag", "no/name"), 2),
        (("tag", "x", "nothing"), 2),
        (("tag", "nothing", "--delete"), 2),
        (("tag", "v1-too", "head", "--delete"), 2),
    ):
        error = document(*arguments, code=code)["error"]
        assert isinstance(error, dict) and error["code"] == code
    assert run_program("log", "--store", path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].endswith("test  (v1-too)")
    assert run_program("log", "--store", path.parent / "none") == 2
