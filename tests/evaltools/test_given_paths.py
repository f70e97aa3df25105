"""Whatever names a file or folder may be text, and relative."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest
from evaltools.cardiobench.export import read_results as read_predictions
from evaltools.probe import ProbeOptions, probe
from evaltools.protocols.presets import read_preset
from evaltools.query import Search, find_neighbours
from evaltools.report.files import write_results
from evaltools.report.paper_table import read_results
from evaltools.report.retrieval_files import write_retrievals
from evaltools.retrieve import RetrieveOptions, retrieve
from evaltools.run import run
from evaltools.suite import get_suite
from evaltools.task import read_task

Make = Callable[..., Any]
EVALTOOLS = Path(__file__).parents[2] / "evaltools"


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("tasks/view.yaml", "presets/ridge.yaml"):
        shutil.copy(EVALTOOLS / place, Path(place).name)


def test_from_a_store_to_files(make_manifest: Make, make_source: Make, make_store: Make) -> None:
    manifest: Manifest = make_manifest()
    store = make_store([manifest], [make_source(manifest)])
    manifest.write("mine.parquet")
    quick = ProbeOptions(controls=False, draws=100)
    results = probe(store, task="view.yaml", dataset="mine.parquet", options=quick)
    (document,) = write_results(results, "out", command="probe")
    assert document["task"] == "view" and Path(document["predictions"]).is_file()
    assert read_results(["out"])[0]["task"] == "view" and len(read_predictions("out")) == 1

    found = retrieve(
        store, tasks=[read_task("view.yaml")], datasets=["mine.parquet"], options=RetrieveOptions(ks=(3,), draws=100)
    )
    assert write_retrievals(found, "retrieved")
    np.save("query.npy", np.ones((1, 12), np.float32))
    asked = {"datasets": ["mine.parquet"], "encoders": ["toy-encoder"], "search": Search(k=2)}
    assert find_neighbours(store, "query.npy", **asked) == find_neighbours(store, Path("query.npy"), **asked)


def test_a_suite_and_a_preset(make_manifest: Make, make_source: Make, make_store: Make) -> None:
    assert read_preset("ridge.yaml").name == "ridge"
    manifest = make_manifest()
    store = make_store([manifest], [make_source(manifest)])
    Path("small.yaml").write_text("name: small\ntasks: [view]\nentries:\n  - {command: knn}\n")
    assert run(store, get_suite("small.yaml"), out="run", workers=1).n_computed == 1
    assert run(store, get_suite("small.yaml"), out=Path("run"), workers=1).n_computed == 0
