"""Whatever names a file or folder may be text, and relative: of the library's functions and of their requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedstore
from embedstore import Manifest, Store
from embedstore.build.run import BuildRequest, build_sets
from embedstore.ingest import IngestRequest, ingest_vectors
from embedstore.manifest import RecipeRequest, get_recipe
from embedstore.phantom import write_phantom
from embedstore.prompts import read_prompt_bank


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_from_clips_to_vectors(clip_folder: Callable[..., Path]) -> None:
    clip_folder(2)
    asked: dict[str, Any] = {"root": "clips", "table": "clips.csv"}
    made = get_recipe("folder").make(RecipeRequest(**asked)).manifest
    made.write("tables/clips.parquet")
    assert Manifest.read("tables/clips.parquet").id == made.id
    store = Store.create("store")
    store.add_manifest(Manifest.read("tables/clips.parquet"), root="clips")
    roots: dict[str, Any] = {"clips": "clips"}
    (outcome,) = build_sets(store, BuildRequest(encoders=("stub",), n_workers=0, roots=roots))
    assert outcome.n_ok == 4

    np.savez("vectors.npz", clip_id=np.array(made.clip_ids), clips=np.ones((4, 3), np.float16))
    file: Any = "vectors.npz"
    ingest_vectors(store, IngestRequest(file=file, manifest="tables/clips.parquet", encoder="brought"))
    assert embedstore.open("store").get(dataset="clips", encoder="brought").clips.shape == (4, 3)


def test_what_is_read_or_made_alone() -> None:
    assert write_phantom("hearts", n_patients=1).out == Path("hearts")
    Path("bank.yaml").write_text("name: mine\ntasks:\n  as:\n    classes:\n      severe: [severe aortic stenosis]\n")
    assert read_prompt_bank("bank.yaml").name == "mine"
