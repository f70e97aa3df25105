"""The commands on published data sets: what a person sees, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = str(Path(sys.executable).parent / "embedstore")
Writer = Callable[..., Path]

HEADING = "FileName,EF,Sex,Age,Weight,Height,Split\n"


@pytest.fixture
def root(tmp_path: Path, write_avi: Writer) -> Path:
    folder = tmp_path / "pediatric"
    for seed, (view, fold) in enumerate([("A4C", 0), ("PSAX", 4)]):
        write_avi(folder / view / "Videos" / f"CR1-CR2-{seed}.avi", seed=seed)
        (folder / view / "FileList.csv").write_text(f"{HEADING}CR1-CR2-{seed}.avi,60,F,4,16,100,{fold}\n")
    return folder


def run(*arguments: str | Path, code: int = 0) -> str:
    """Run the program; return what it printed, both streams for a person, stdout alone with --json."""
    done = subprocess.run(
        [PROGRAM, "manifest", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if "--json" in arguments else done.stdout + done.stderr


def test_make_add_and_check_a_data_set_whose_patient_crosses(root: Path, tmp_path: Path) -> None:
    file, store = tmp_path / "p.parquet", tmp_path / "store"
    made = run("make", "echonet-pediatric", "--root", root, "-o", file, "--store", store)
    assert "1 patients stand in two splits, judged by file names" in made
    checked = run("check", file)
    assert "note: 2 of the 7,810 published clips are listed; other counts were not compared" in checked
    assert "note: 1 patients stand in two splits" in checked
    assert "no problem found" in checked
    document = json.loads(run("check", file, "--json"))
    assert document["ok"] is True
    assert [note["kind"] for note in document["notes"]] == ["incomplete", "patient-crossing"]
    assert document["notes"][1]["names"] == ["CR1 (test: A4C; train: PSAX)"]
    run("add", file, "--store", store)


@pytest.mark.parametrize(
    ("recipe", "change", "code", "message"),
    [
        ("camus", "", 2, "it looks like echonet-pediatric"),
        ("echonet-pediatric", "0.6", 4, "look like fractions of 1: CR1-CR2-0 (0.6); multiply them by 100"),
        ("echonet-pedatric", "", 2, "did you mean 'echonet-pediatric'"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(
    root: Path, tmp_path: Path, recipe: str, change: str, code: int, message: str
) -> None:
    if change:
        table = root / "A4C" / "FileList.csv"
        table.write_text(table.read_text().replace(",60,", f",{change},"))
    printed = run("make", recipe, "--root", root, "-o", tmp_path / "x.parquet", "--json", code=code)
    error = json.loads(printed)["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert not (tmp_path / "x.parquet").exists()
