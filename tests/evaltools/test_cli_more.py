"""`compare`, `curve`, `transfer`, and the options of `probe` for settings and folds, as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore import Manifest

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
Evaltools = Callable[..., tuple[int, str, str]]


@pytest.fixture
def two_sets(make_manifest: MakeManifest, make_source: Make, make_store: Make) -> Any:
    def elsewhere(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["sha256"] = row["sha256"][::-1]

    toy, other = make_manifest(60), make_manifest(60, name="other-site", seed=5, change=elsewhere)
    sources = [make_source(toy), make_source(toy, name="second", seed=3), make_source(other)]
    return make_store([toy, other], sources)


@pytest.mark.usefixtures("two_sets")
def test_compare_prints_a_table_and_one_document(evaltools: Evaltools, tmp_path: Path) -> None:
    asked = ("compare", "toy-encoder", "second", "--dataset", "toy", "--bootstrap", 100, "--permutations", 1000)
    code, out, err = evaltools(*asked, "--out", "results")
    assert code == 0 and err == "" and out.count("smallest attainable p") == 2
    assert "p Holm (suite)" in out and "not training again" in out and "2 pairs in 2 tasks corrected for" in out
    code, out, _ = evaltools(*asked, "--task", "lvef", "--json")
    document = json.loads(out)
    assert code == 0 and [one["task"] for one in document["comparisons"]] == ["lvef"]
    assert set(document["tie_groups"]) == {"lvef/toy/clip/ridge"}
    both = json.loads((tmp_path / "results/compare.json").read_text())["comparisons"]
    assert len(both) == 2 and both[0]["difference"] == document["comparisons"][0]["difference"]
    help_text = " ".join(evaltools("compare", "--help")[1].split())
    assert "sampling of test patients for the fitted probes, not training again" in help_text


@pytest.mark.usefixtures("two_sets")
def test_curve_and_transfer_print_and_write(evaltools: Evaltools, tmp_path: Path) -> None:
    quick = ("--task", "lvef", "--encoder", "toy-encoder", "--bootstrap", 50)
    points = ("--fractions", "20,100", "--repeats", 2, "--shuffles", 2, "--dataset", "toy")
    code, out, err = evaltools("curve", *quick, *points, "--out", "results")
    assert code == 0 and err == "" and "label efficiency" in out
    assert (tmp_path / "results/curve-lvef-toy.svg").is_file()
    code, out, _ = evaltools("curve", *quick, *points, "--json")
    results = json.loads(out)["results"]
    assert [(one["fraction"], one["repeat"]) for one in results] == [(0.2, 0), (1.0, 0), (0.2, 1)]
    code, out, _ = evaltools(
        "transfer", *quick, "--train-dataset", "toy", "--dataset", "other-site", "--out", "moved"
    )
    assert code == 0 and "on other-site [synthetic], fitted on toy" in out
    (moved,) = json.loads((tmp_path / "moved/transfer-lvef.json").read_text())["results"]
    assert moved["train_dataset"] == "toy" and (tmp_path / moved["predictions"]).is_file()


@pytest.mark.usefixtures("two_sets")
def test_probe_takes_settings_and_folds(evaltools: Evaltools) -> None:
    quick = ("probe", "--dataset", "toy", "--encoder", "toy-encoder", "--bootstrap", 50, "--set", "n_shuffles=3")
    code, out, _ = evaltools(*quick, "--task", "lvef", "--cv", "4x2", "--json")
    (result,) = json.loads(out)["results"]
    assert code == 0 and result["protocol"] == "ridge+n_shuffles=3" and result["primary"] is False
    assert result["n_scored"] == 180 and "4x2" in result["split_rule"]
    code, out, _ = evaltools(*quick, "--task", "view", "--protocol", "clip-logreg", "--search", "peak", "--json")
    (result,) = json.loads(out)["results"]
    assert code == 0 and result["protocol"] == "clip-logreg+n_shuffles=3+search=peak"
    code, out, _ = evaltools("protocols", "clip-logreg", "--set", "search=peak")
    assert code == 0 and '"search": "peak"' in out and "digest" in out and "differs: " in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["compare", "toy-encoder"], 2, "nothing to be compared with"),
        (["compare", "--dataset", "other-site"], 2, "one encoder only"),
        (["compare", "--baseline", "secnd", "--dataset", "toy", "--task", "lvef"], 2, "did you mean 'second'"),
        (["curve", "--fractions", "a"], 2, "no list of numbers"),
        (["curve", "--shots", "2.5"], 2, "no list of whole numbers"),
        (["curve", "--fractions", "0", "--dataset", "toy"], 2, "above 0"),
        (["transfer", "--train-dataset", "toy"], 2, "needs --dataset"),
        (["transfer", "--train-dataset", "toy", "--dataset", "toy", "--task", "lvef"], 2, "use evaltools probe"),
        (["transfer", "--train-dataset", "toy", "--dataset", "other-site", "--encoder", "second"], 2, "second"),
        (["probe", "--cv", "1", "--task", "lvef"], 2, "--cv must be"),
        (["probe", "--cv", "40", "--task", "lvef", "--dataset", "toy"], 4, "use fewer folds"),
        (["probe", "--set", "k=50", "--task", "lvef"], 2, "no setting 'k'"),
        (["probe", "--task", "lvef", "--protocol", "none.yaml"], 2, "no preset file"),
        (["protocols", "--set", "k=1"], 2, "none is named"),
    ],
)
@pytest.mark.usefixtures("two_sets")
def test_what_cannot_be_is_one_sentence_and_an_exit_code(
    evaltools: Evaltools, arguments: list[str], code: int, says: str
) -> None:
    found, out, err = evaltools(*arguments)
    assert found == code and out == ""
    assert says in err and err.startswith("Error: ") and len(err.splitlines()) == 1
