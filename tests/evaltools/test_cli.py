from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore import Manifest

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
Evaltools = Callable[..., tuple[int, str, str]]


@pytest.fixture
def toy_store(make_manifest: MakeManifest, make_source: Make, make_store: Make) -> Any:
    manifest = make_manifest(60)
    return make_store([manifest], [make_source(manifest), make_source(manifest, name="other", seed=3)])


@pytest.mark.usefixtures("toy_store")
def test_probe_prints_one_json_document(evaltools: Evaltools) -> None:
    code, out, err = evaltools(
        "probe", "--task", "lvef", "--encoder", "toy-encoder", "--pool", "clip", "--pool", "meanstd",
        "--bootstrap", 100, "--by", "sex", "--json",
    )  # fmt: skip
    assert code == 0 and err == ""
    results = json.loads(out)["results"]
    assert [(one["encoder"], one["pool"]) for one in results] == [("toy-encoder", "clip"), ("toy-encoder", "meanstd")]
    assert results[0]["predictions"] is None and results[0]["bootstrap"] == 100


@pytest.mark.usefixtures("toy_store")
def test_probe_prints_a_table_and_writes_files(evaltools: Evaltools, tmp_path: Path) -> None:
    code, out, err = evaltools("probe", "--bootstrap", 100, "--out", "results")
    assert code == 0 and err == ""
    assert "Left ventricular ejection fraction on toy" in out and "Echocardiographic view on toy" in out
    assert out.count("metadata only") == 2 and out.rstrip().endswith("results, predictions and figures: results")
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == ["figures", "predictions", "probe-lvef.json", "probe-view.json"]
    document = json.loads((tmp_path / "results/probe-view.json").read_text())["results"][0]
    assert (tmp_path / document["predictions"]).is_file()


@pytest.mark.usefixtures("toy_store")
def test_a_label_column_and_a_task_file(evaltools: Evaltools, tmp_path: Path) -> None:
    code, out, _ = evaltools("probe", "--label", "sex", "--bootstrap", 0, "--json")
    results = json.loads(out)["results"]
    assert code == 0 and {one["task"] for one in results} == {"sex"} and results[0]["kind"] == "classification"
    assert results[0]["metrics"]["auroc"]["ci_reason"] == "no bootstrap was asked for"
    lines = ("name: mine", "title: Mine", "kind: regression", "column: lvef_pct", "metrics: [r2]", "main_metric: r2")
    (tmp_path / "mine.yaml").write_text("\n".join([*lines, "protocol: ridge"]))
    code, out, _ = evaltools("probe", "--task", "mine.yaml", "--encoder", "other", "--bootstrap", 50)
    assert code == 0 and "Mine on toy" in out and "R2" in out and "MAE" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["probe", "--task", "lvfe"], 2, "did you mean 'lvef'"),
        (["probe", "--task", "lvef", "--encoder", "toy-encodr"], 2, "did you mean 'toy-encoder'"),
        (["probe", "--task", "lvef", "--dataset", "tooy"], 2, "did you mean 'toy'"),
        (["probe", "--task", "lvef", "--pool", "meen"], 2, "did you mean 'mean'"),
        (["probe", "--task", "lvef", "--protocol", "logreg"], 2, "is for classification"),
        (["probe", "--task", "lvef", "--where", "view = A4C"], 2, "equality is =="),
        (["probe", "--task", "lvef", "--where", "view == PSAX"], 4, "no labelled clip"),
        (["probe", "--task", "view", "--where", "view == A4C"], 4, "one class only, 'A4C'"),
        (["probe", "--task", "lvef", "--where", "split != val"], 4, "no labelled clip in the split 'val'"),
        (["probe", "--label", "nothing"], 2, "no manifest has the column 'nothing'"),
        (["probe", "--bootstrap", "many"], 2, "Invalid value for '--bootstrap'"),
        (["probe", "--store", "nowhere"], 2, "no store at nowhere"),
        (["tasks", "--store", "nowhere"], 2, "no store at nowhere"),
        (["protocols", "rigde"], 2, "did you mean 'ridge'"),
        (["prob"], 2, "did you mean 'probe'"),
    ],
)
@pytest.mark.usefixtures("toy_store")
def test_what_cannot_be_is_one_sentence_and_an_exit_code(
    evaltools: Evaltools, arguments: list[str], code: int, says: str
) -> None:
    found, out, err = evaltools(*arguments)
    assert found == code and out == ""
    assert says in err and err.startswith("Error: ") and len(err.splitlines()) == 1 and "Traceback" not in err
    found, out, _ = evaltools(*arguments, "--json")
    assert found == code and says in json.loads(out)["error"]["message"] and json.loads(out)["error"]["code"] == code


def test_tasks_and_protocols_list_without_a_store(evaltools: Evaltools) -> None:
    code, out, _ = evaltools("tasks")
    assert code == 0 and "lvef: Left ventricular ejection fraction (%)" in out and "no store here" in out
    code, out, _ = evaltools("protocols", "ridge", "--json")
    (ridge,) = json.loads(out)["protocols"]
    assert code == 0 and len(ridge["settings"]["strengths"]) >= 45 and len(ridge["digest"]) == 64
    code, out, _ = evaltools("protocols")
    assert code == 0 and "logreg" in out and "ridge" in out
    assert not Path("store").exists()


@pytest.mark.usefixtures("toy_store")
def test_tasks_says_what_can_run_now(evaltools: Evaltools) -> None:
    code, out, _ = evaltools("tasks")
    assert code == 0 and "toy: 180 labelled clips in lvef_pct; other, toy-encoder" in out
    code, out, _ = evaltools("tasks", "--json")
    lvef = next(task for task in json.loads(out)["tasks"] if task["name"] == "lvef")
    assert lvef["runs"][0]["encoders"] == ["other", "toy-encoder"] and lvef["runs"][0]["reason"] is None


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom evaltools.cli.main import program\n"
        "try:\n    program.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'scipy', 'sklearn', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "probe" in done.stdout and "tasks" in done.stdout


def test_a_probe_opens_no_socket_and_imports_no_torch(toy_store: Any) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs):\n    raise AssertionError('a socket')\n"
        "socket.socket.connect = socket.socket.bind = refuse\n"
        "import embedstore, evaltools.probe\n"
        f"store = embedstore.open({str(toy_store.layout.root)!r})\n"
        "evaltools.probe.probe(store, task='lvef', options=evaltools.probe.ProbeOptions(draws=50))\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
