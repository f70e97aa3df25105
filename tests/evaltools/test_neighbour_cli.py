"""``evaltools knn``, ``retrieve`` and ``align`` on a real store."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
Evaltools = Callable[..., tuple[int, str, str]]


@pytest.fixture
def toy_store(make_manifest: MakeManifest, make_source: Make, make_store: Make) -> Any:
    manifest = make_manifest(40)
    return make_store([manifest], [make_source(manifest), make_source(manifest, name="other", seed=3, dim=8)])


@pytest.mark.usefixtures("toy_store")
def test_knn_prints_and_writes(evaltools: Evaltools, tmp_path: Path) -> None:
    code, out, err = evaltools("knn", "--bootstrap", 50, "--json", "--out", "results")
    results = json.loads(out)["results"]
    assert code == 0 and err == ""
    assert {(one["task"], one["encoder"], one["protocol"]) for one in results} == {
        (task, encoder, "knn") for task in ("lvef", "view") for encoder in ("toy-encoder", "other")
    }
    assert all((tmp_path / one["predictions"]).is_file() for one in results)
    code, out, err = evaltools("knn", "--task", "view", "--k", 5, "--metric", "l2", "--bootstrap", 50)
    assert code == 0 and "protocol knn+k=5+metric=l2 (secondary)" in out and "shuffled labels" in out


@pytest.mark.usefixtures("toy_store")
def test_protocols_lists_the_presets_of_neighbours(evaltools: Evaltools) -> None:
    code, out, _ = evaltools("protocols")
    assert code == 0 and all(name in out for name in ("ridge", "knn (", "dinov2-knn (", "simpleshot ("))
    code, out, _ = evaltools("protocols", "dinov2-knn")
    assert code == 0 and '"temperature": 0.07' in out and "differs: k is chosen on validation" in out


@pytest.mark.usefixtures("toy_store")
def test_retrieve_prints_and_writes(evaltools: Evaltools) -> None:
    code, out, err = evaltools("retrieve", "--task", "view", "--k", 1, "--k", 3, "--bootstrap", 50, "--json",
                               "--out", "found")  # fmt: skip
    results = json.loads(out)["results"]
    assert code == 0 and err == "" and Path(results[0]["predictions"]).is_file()
    assert set(results[0]["metrics"]) == {"map", "recall@1", "ndcg@1", "recall@3", "ndcg@3"}
    code, out, _ = evaltools(
        "retrieve", "--encoder", "other", "--bootstrap", 50, "--index", "ivf", "--level", "frame"
    )
    assert code == 0 and "frame-to-clip by cosine, ivf" in out and "of the exact neighbours" in out


def test_a_clip_has_neighbours_with_labels(evaltools: Evaltools, toy_store: Any) -> None:
    code, out, _ = evaltools("retrieve", "--query", "p003-A4C", "--encoder", "toy-encoder", "--k", 4, "--json")
    found = json.loads(out)["neighbours"]
    assert code == 0 and [one["rank"] for one in found] == [1, 2, 3, 4]
    assert set(found[0]) >= {"query", "clip_id", "score", "rank", "distance", "labels"}
    assert all(one["query"] == "p003-A4C" and not one["clip_id"].startswith("p003") for one in found)
    store_set = toy_store.get(dataset="toy", encoder="toy-encoder")
    ids = store_set.index.column("clip_id").to_pylist()
    X = store_set.clips[:].astype(np.float64)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    cosine = X @ X[ids.index("p003-A4C")]
    order = [ids[row] for row in np.argsort(-cosine) if not ids[row].startswith("p003")]
    assert [one["clip_id"] for one in found] == order[:4]
    assert found[0]["score"] == pytest.approx(cosine[ids.index(order[0])], abs=1e-9)
    assert found[0]["distance"] == pytest.approx(1 - found[0]["score"])
    code, out, _ = evaltools("retrieve", "--query", "p003-A4C", "--index", "hnsw", "--where", "view == PLAX")
    assert code == 0 and "in toy, toy-encoder" in out and "in toy, other" in out and "lvef_pct" in out
    assert "hnsw found" in out and "-A2C" not in out


def test_a_file_of_vectors_has_neighbours(evaltools: Evaltools, toy_store: Any, tmp_path: Path) -> None:
    store_set = toy_store.get(dataset="toy", encoder="other")
    ids = store_set.index.column("clip_id").to_pylist()
    np.save(tmp_path / "asked.npy", store_set.clips[:][:2])
    code, out, _ = evaltools("retrieve", "--query", "asked.npy", "--encoder", "other", "--k", 1, "--json")
    found = json.loads(out)["neighbours"]
    assert code == 0 and [one["query"] for one in found] == ["asked.npy[0]", "asked.npy[1]"]
    assert [one["clip_id"] for one in found] == ids[:2] and found[0]["score"] == pytest.approx(1, abs=1e-9)
    code, _, err = evaltools("retrieve", "--query", "asked.npy")
    assert code == 2 and "say with --encoder which of" in err
    code, _, err = evaltools("retrieve", "--query", "asked.npy", "--encoder", "toy-encoder")
    assert code == 4 and "vectors of 8 dimensions, and those of toy-encoder have 12" in err


@pytest.mark.usefixtures("toy_store")
def test_a_hostile_file_is_never_unpickled(evaltools: Evaltools, tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "canary"),))

    np.save(tmp_path / "objects.npy", np.array([Canary()], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Canary()))
    whole = tmp_path / "whole.npy"
    np.save(whole, np.zeros((3, 8), np.float32))
    (tmp_path / "cut.npy").write_bytes(whole.read_bytes()[:-4])
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 8)))
    np.save(tmp_path / "whole_numbers.npy", np.zeros(8, np.int64))
    np.save(tmp_path / "empty.npy", np.zeros((0, 8)))
    np.save(tmp_path / "nan.npy", np.full(8, np.nan))
    for name, says in (
        ("objects", "Python objects"), ("pickle", "no array in the .npy format"), ("cut", "cut off or damaged"),
        ("cube", "shape (2, 2, 8)"), ("whole_numbers", "int64"), ("empty", "shape (0, 8)"), ("nan", "not finite"),
    ):  # fmt: skip
        code, out, err = evaltools("retrieve", "--query", f"{name}.npy", "--encoder", "other")
        assert code == 4 and out == "" and says in err and len(err.splitlines()) == 1, name
    assert not (tmp_path / "canary").exists()


@pytest.mark.usefixtures("toy_store")
def test_align_prints_and_writes(evaltools: Evaltools) -> None:
    code, out, err = evaltools("align", "--draws", 20, "--components", 3, "--json", "--out", "found")
    alignments = json.loads(out)["alignments"]
    assert code == 0 and err == "" and json.loads(Path("found/align.json").read_text())["alignments"] == alignments
    assert [one["method"] for one in alignments] == ["cka", "cka-unbiased", "cka-cardiobench", "mutual-knn", "cca"]
    assert {(one["a"], one["b"], one["dataset"]) for one in alignments} == {("other", "toy-encoder", "toy")}
    code, out, _ = evaltools("align", "--method", "cka-cardiobench", "--split", "all", "--draws", 20)
    assert code == 0 and "cka-cardiobench" in out and "cka-unbiased" not in out and "120 clips of 40 patients" in out
    assert "without replacement" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["knn", "--task", "lvfe"], 2, "did you mean 'lvef'"),
        (["knn", "--protocol", "dinov2knn"], 2, "did you mean 'dinov2-knn'"),
        (["knn", "--task", "view", "--k", "900"], 4, "give a smaller --k"),
        (["knn", "--metric", "dot"], 2, "Invalid value for '--metric'"),
        (["knn", "--task", "lvef", "--where", "split != val"], 4, "needed to choose k"),
        (["retrieve", "--query", "p003-A4X"], 2, "did you mean 'p003-A4C'"),
        (["retrieve", "--query", "nowhere.npy"], 2, "there is no file and no clip 'nowhere.npy'"),
        (["retrieve", "--query", "p003-A4C", "--k", "1", "--k", "2"], 2, "takes one --k"),
        (["retrieve", "--query", "p003-A4C", "--k", "118"], 4, "only 117 clips of other patients"),
        (["retrieve", "--query", "p003-A4C", "--task", "lvef"], 2, "--task has no part in --query"),
        (["retrieve", "--task", "lvef", "--k", "900"], 4, "give a smaller --k"),
        (["retrieve", "--query", "p003-A4C", "--seed", "0"], 2, "--seed has no part in --query"),
        (["retrieve", "--query", "p003-A4C", "--from", "frame"], 2, "--level has no part in --query"),
        (["align", "--method", "text-axis", "--pool", "mean"], 2, "--pool is of the measures between encoders"),
        (["align", "--method", "text-axis", "--k", "10"], 2, "--k is of the measures between encoders"),
        (["align", "--method", "text-axis", "--components", "3"], 2, "--components is of the measures"),
        (["align", "--method", "cka", "--method", "text-axis", "--k", "3"], 2, "--k is of --method mutual-knn"),
        (["align", "--method", "mutual-knn", "--components", "3"], 2, "--components is of --method cca"),
        (["align", "--task", "lvef"], 2, "--task is of --method text-axis"),
        (["align", "--method", "cca", "--bank", "words"], 2, "--bank is of --method text-axis"),
        (["run", "--no-controls", "--n-shuffles", "5"], 2, "--n-shuffles is of a control, and --no-controls runs"),
        (["export", "--out", "out", "--bootstrap", "5"], 2, "--bootstrap is of intervals, and none are written"),
        (["export", "--out", "out", "--results", "there", "--task", "lvef"], 2, "--task is of a probe"),
        (["align", "--encoder", "other"], 2, "other is alone on 'toy'"),
        (["align", "--method", "cka-linear"], 2, "unknown method 'cka-linear'"),
        (["align", "--dataset", "tooy"], 2, "did you mean 'toy'"),
    ],
)
@pytest.mark.usefixtures("toy_store")
def test_what_cannot_be_is_one_sentence_and_an_exit_code(
    evaltools: Evaltools, arguments: list[str], code: int, says: str
) -> None:
    found, out, err = evaltools(*arguments)
    assert found == code and out == "" and says in err and len(err.splitlines()) == 1 and "Traceback" not in err


def test_a_store_with_one_encoder_has_nothing_to_align(
    evaltools: Evaltools, make_manifest: MakeManifest, make_source: Make, make_store: Make
) -> None:
    manifest = make_manifest(20)
    make_store([manifest], [make_source(manifest)])
    code, _, err = evaltools("align")
    assert code == 2 and "no data set with vectors of two encoders" in err


@pytest.mark.parametrize("command", ["knn", "retrieve", "align"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom evaltools.cli.main import program\n"
        f"try:\n    program.main([{command!r}, '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'faiss', 'torch', 'numpy', 'pyarrow', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
