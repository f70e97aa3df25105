"""The benchmark's prompts.py: read as values, never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedstore.errors import ContentError, EmbedstoreError, FormatError, HostileInputError, StorageError
from embedstore.prompts.cardiobench import read_cardiobench

# Texts of our own, under the benchmark's names.
PROMPTS = """
zero_shot_prompts = {
    "ejection_fraction": ["EF OF <#>% ", "LVEF <#>%. "],
    "as_present": ["NARROW VALVE. ", "STENOSIS"], "as_absent": ["WIDE VALVE. "],
    "wall_motion_abnormality": ["A WALL STANDS STILL. "], "normal_wall_motion": ["ALL MOVE. "],
    "stemi": ["INFARCTION. "], "no_stemi": ["NO INFARCTION. "],
}
view_prompt = {"A2C": ["two chambers "], "PLAX": ["long axis"]}
"""
REGRESSION = """
import os
@dataclass
class LvhRegressionConfig(TextModelConfig):
    csv_name: str = "x.csv"
    lvidd_prompts: Tuple[str, ...] = ("CAVITY <#> CM. ", "LVIDD <#>. ")
    ivsd_prompts: Tuple[str, ...] = ("SEPTUM <#> CM. ",)
"""


def clone(tmp_path: Path, prompts: str = PROMPTS, regression: str | None = REGRESSION) -> Path:
    folder = tmp_path / "clone" / "src"
    folder.mkdir(parents=True)
    (folder / "prompts.py").write_text(prompts)
    if regression is not None:
        (folder / "regression.py").write_text(regression)
    return folder.parent


def test_prompts_are_those_that_the_benchmark_embeds(tmp_path: Path) -> None:
    root = clone(tmp_path)
    bank = read_cardiobench(root)
    assert bank.name == "cardiobench"
    assert bank.digest == read_cardiobench(root / "src" / "prompts.py").digest
    rows = [(p.task, p.prompt, p.label, p.value, p.template) for p in bank.prompts]
    # Numbers value by value, each in every template, with the space at the end; classes without it.
    assert rows[:4] == [
        ("lvef", "EF OF 0% ", None, 0.0, 0),
        ("lvef", "LVEF 0%. ", None, 0.0, 1),
        ("lvef", "EF OF 1% ", None, 1.0, 0),
        ("lvef", "LVEF 1%. ", None, 1.0, 1),
    ]
    assert sum(row[0] == "lvef" for row in rows) == 202
    assert ("as", "NARROW VALVE.", "true", None, None) in rows and ("as", "WIDE VALVE.", "false", None, None) in rows
    assert {row[:3] for row in rows if row[0] in ("rwma", "stemi", "view")} == {
        ("rwma", "A WALL STANDS STILL.", "true"),
        ("rwma", "ALL MOVE.", "false"),
        ("stemi", "INFARCTION.", "true"),
        ("stemi", "NO INFARCTION.", "false"),
        ("view", "two chambers", "A2C"),
        ("view", "long axis", "PLAX"),
    }
    lvidd = [row for row in rows if row[0] == "lvidd"]
    assert len(lvidd) == 122 and lvidd[0][1:4:2] == ("CAVITY 2.0 CM. ", 2.0) and lvidd[-1][1] == "LVIDD 8.0. "
    assert [row[3] for row in rows if row[0] == "ivsd"] == [round(0.1 * n, 1) for n in range(5, 21)]


def test_without_regression_py_there_are_no_dimensions(tmp_path: Path) -> None:
    assert set(read_cardiobench(clone(tmp_path, regression=None)).tasks) == {"lvef", "as", "rwma", "stemi", "view"}


@pytest.mark.parametrize(
    "prompts",
    [
        "import pathlib\npathlib.Path(CANARY).touch()\nzero_shot_prompts = {'stemi': open(CANARY, 'w')}",
        "zero_shot_prompts = {'stemi': [__import__('pathlib').Path(CANARY).touch()]}",
        "zero_shot_prompts = {'stemi': [f'{open(CANARY, chr(119))}']}",
        "zero_shot_prompts = {'stemi': [x for x in [open(CANARY, 'w').name]]}",
        "zero_shot_prompts = {**{'stemi': [open(CANARY, 'w').name]}}",
        "zero_shot_prompts = {'stemi': ['a'] * 10**9}",
        "zero_shot_prompts = {'stemi': 7}",
        "zero_shot_prompts = {'stemi': ['a'], }\nmore = {'stemi': ['b']}",
        "zero_shot_prompts = {'ejection_fraction': ['no number']}",
        "zero_shot_prompts = {'unknown': ['a']}",
        "zero_shot_prompts = {" + "[" * 5_000,
        "x = " + "(" * 150 + "1" + ")" * 150,
        "\x00",
        "",
    ],
)
def test_a_hostile_file_runs_nothing_and_is_refused(tmp_path: Path, prompts: str) -> None:
    canary = tmp_path / "canary"
    root = clone(tmp_path, prompts.replace("CANARY", repr(str(canary))), regression=None)
    with pytest.raises((FormatError, ContentError, HostileInputError)) as caught:
        read_cardiobench(root)
    assert not canary.exists() and "prompts.py" in str(caught.value)


def test_code_beside_the_values_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bank = read_cardiobench(clone(tmp_path, f"open({str(canary)!r}, 'w')\n{PROMPTS}"))
    assert len(bank) > 200 and not canary.exists()


def test_what_is_not_there_or_too_large_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not there"):
        read_cardiobench(tmp_path / "nowhere.py")
    with pytest.raises(StorageError, match=r"neither src/prompts.py nor prompts.py"):
        read_cardiobench(tmp_path)
    (tmp_path / "prompts.py").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(EmbedstoreError, match="larger"):
        read_cardiobench(tmp_path)
    (tmp_path / "prompts.py").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError):
        read_cardiobench(tmp_path)
