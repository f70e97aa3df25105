from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedstore import Manifest
from embedstore.errors import StorageError
from evaltools.metrics import classification_metrics
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.report.figures import draw_result
from evaltools.report.files import write_results
from evaltools.report.text import format_results
from evaltools.result import Result, file_name
from evaltools.task import get_task

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def make_results(make_manifest: MakeManifest, make_source: Make) -> Callable[..., list[Result]]:
    def make(task: str, *, n_patients: int = 60, **options: Any) -> list[Result]:
        manifest = make_manifest(n_patients)
        sources = [make_source(manifest), make_source(manifest, name="other", seed=4)]
        return probe_manifest(sources, manifest, task=get_task(task), options=ProbeOptions(draws=100, **options))

    return make


@pytest.mark.parametrize(("task", "first"), [("lvef", "mae"), ("view", "balanced_accuracy")])
def test_the_table_shows_values_controls_and_counts(make_results: Make, task: str, first: str) -> None:
    results = make_results(task, by=("sex",))
    text = format_results(results)
    lines = text.splitlines()
    assert "on toy [synthetic]" in lines[0] and "(primary)" in lines[0]
    assert "72 of 72 test clips scored, 24 patients" in lines[1] and "0 unlabelled" in lines[1]
    assert "leakage checked" in text and "100 draws" in text
    rows = [line.split("  ")[0] or line.strip().split("  ")[0] for line in lines]
    order = ["encoder", "toy-encoder", "shuffled labels", "random vectors", "other", "shuffled labels"]
    order += ["random vectors", "mean or majority of train", "metadata only"]
    table = lines[lines.index(next(line for line in lines if line.startswith("encoder"))) :]
    assert [row for row, name in zip(table, order, strict=False) if row.strip().startswith(name)] == table[
        : len(order)
    ]
    assert rows and max(len(line) for line in lines) < 140
    value = results[0].metrics[first]
    assert f"{value.value:.2f}" in text or f"{value.value:.1f}" in text
    assert any(line.startswith("F    toy-encoder") for line in lines)


def test_what_is_missing_or_refused_is_said(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(20, patient_ids="unknown")
    sources = [make_source(manifest), make_source(manifest, name="other", drop=["p003-A4C"])]
    options = ProbeOptions(draws=50, allow_missing=True, where="view in (A4C, A2C)")
    text = format_results(probe_manifest(sources, manifest, task=get_task("lvef"), options=options))
    assert "15 of 16 test clips scored, 15 patients" in text
    assert "leakage unchecked" in text and "only view in (A4C, A2C)" in text
    assert "other clip: 1 labelled clips without vectors, 0 left out" in text
    assert "toy-encoder clip: 0 labelled clips without vectors, 1 left out" in text
    assert "no interval (15 patients, fewer than 20)" in text


@pytest.mark.parametrize("task", ["lvef", "view"])
def test_files_hold_the_numbers(make_results: Make, tmp_path: Path, task: str) -> None:
    results = make_results(task)
    documents = write_results(results, tmp_path / "deep/out", command="probe")
    stored = json.loads((tmp_path / f"deep/out/probe-{task}.json").read_text())
    assert stored == {"results": documents} and len(documents) == 2
    for result, document in zip(results, documents, strict=True):
        table = pq.read_table(document["predictions"])
        assert table.column_names[:5] == ["clip_id", "patient_id", "split", "y_true", "y_pred"]
        assert table.num_rows == document["n_scored"] and set(table["split"].to_pylist()) == {"test"}
        y_true = table["y_true"].to_pylist()
        if task == "view":
            classes = [name.removeprefix("prob_") for name in table.column_names[5:]]
            probabilities = np.column_stack([table[f"prob_{name}"] for name in classes])
            again = classification_metrics([classes.index(name) for name in y_true], probabilities)
            assert again["auroc"] == pytest.approx(document["metrics"]["auroc"]["value"])
        else:
            error = np.abs(np.array(y_true) - np.array(table["y_pred"].to_pylist())).mean()
            assert error == pytest.approx(document["metrics"]["mae"]["value"])
        figure = tmp_path / f"deep/out/figures/{result.stem}"
        assert figure.with_name(f"{figure.name}.png").read_bytes().startswith(PNG)
        assert figure.with_name(f"{figure.name}.svg").read_bytes().startswith(b"<?xml")
    assert not list(tmp_path.rglob(".partial-*"))


def test_sets_of_one_title_do_not_overwrite_each_other(make_results: Make, tmp_path: Path) -> None:
    one = make_results("view")[0]
    other = replace(one, provenance=replace(one.provenance, fingerprint="f" * 64))
    documents = write_results([one, other], tmp_path, command="probe")
    assert len({document["predictions"] for document in documents}) == 2


def test_an_output_folder_that_cannot_be_is_one_sentence(make_results: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot make the folder"):
        write_results(make_results("view"), tmp_path / "file/out", command="probe")


@pytest.mark.parametrize("task", ["lvef", "view"])
def test_figures_are_the_same_each_time_and_name_what_they_show(make_results: Make, task: str) -> None:
    result = make_results(task)[0]
    first, second = draw_result(result), draw_result(result)
    assert first["svg"] == second["svg"] and first["png"] == second["png"]
    assert b"<dc:date>" not in first["svg"]
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        text = draw_result(result)["svg"].decode()
    for words in (result.task.title, "on toy (synthetic)", "toy-encoder, clip pooling", "72 clips of 24 patients"):
        assert words in text
    assert ("predicted - true (%)" if task == "lvef" else "A4C (n=24)") in text


def test_limits_of_agreement_are_bias_and_196_deviations(make_results: Make) -> None:
    import matplotlib as mpl

    result = make_results("lvef")[0]
    predictions = replace(
        result.predictions,
        y_true=np.array([50.0, 60.0, 70.0, 40.0]),
        y_pred=np.array([52.0, 59.0, 73.0, 40.0]),
    )
    with mpl.rc_context({"svg.fonttype": "none"}):
        text = draw_result(replace(result, predictions=predictions))["svg"].decode()
    spread = 1.96 * np.std([2, -1, 3, 0], ddof=1)
    for words in ("bias 1.00 %", f"upper limit {1 + spread:.2f} %", f"lower limit {1 - spread:.2f} %"):
        assert words in text


@pytest.mark.parametrize("name", ["$x$_{y}", "<b>&", "a\x1b[31mb"])
def test_odd_names_are_drawn_and_filed_as_they_are(make_results: Make, tmp_path: Path, name: str) -> None:
    result = replace(make_results("lvef")[0], dataset=name)
    (document,) = write_results([result], tmp_path, command="probe")
    assert Path(document["predictions"]).parent == tmp_path / "predictions"
    assert "<b>&" not in (tmp_path / f"figures/{result.stem}.svg").read_text()


def test_file_names_stay_apart_and_inside() -> None:
    names = ["../../etc", ".hidden", "a/b", "a_b", "a b", "", "EF (%)", "ä"]
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert all("/" not in name and not name.startswith(".") and name for name in made)


def test_drawing_imports_matplotlib_and_nothing_before_does() -> None:
    code = (
        "import sys, evaltools.probe, evaltools.report.files, evaltools.report.text\n"
        "heavy = {'torch', 'matplotlib', 'sklearn', 'scipy.optimize'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
