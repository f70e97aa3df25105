"""A snapshot that is sent, checked and taken in, each place named by relative text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_sets import add_set, manifest_of

from embedstore import Store
from embedstore.snapshot.check import check_snapshot
from embedstore.snapshot.export import export_snapshot
from embedstore.snapshot.importing import import_snapshot
from embedstore.snapshot.labels import read_labels
from embedstore.snapshot.plan import ExportRequest
from embedstore.snapshot.pseudonyms import read_join_key
from embedstore.snapshot.pull import pull_folder
from embedstore.snapshot.push import push_folder
from embedstore.snapshot.remotes import open_remote


def test_from_one_store_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clips = {f"clip{number}": 1 for number in range(12)}
    store = Store.create("store")
    manifest = manifest_of({clip_id: clip_id for clip_id in clips})
    store.add_manifest(manifest)
    add_set(store, clips)
    asked: dict[str, Any] = {"target": "sent", "map_file": "pseudonyms.json"}
    export_snapshot(store, ExportRequest(recipient="lab-b", permission_ref="letter of 2 May", **asked))
    assert check_snapshot("sent").outcome.ok and Path("pseudonyms.json").is_file()

    push_folder("sent", open_remote("place"))
    pulled = pull_folder(open_remote("place"), "pulled")
    assert pulled.folder == Path("pulled")
    assert import_snapshot(Store.create("theirs"), "pulled").sets

    manifest.write("mine.parquet")
    assert read_labels("mine.parquet").clip_ids == tuple(sorted(clips))
    Path("key").write_text(bytes(range(32)).hex())
    assert read_join_key("key") == bytes(range(32))
