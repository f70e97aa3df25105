"""Prompt banks: what a file says is what is embedded, and every wrong file is named."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedstore.errors import ContentError, HostileInputError, UnknownNameError
from embedstore.manifest import recipes
from embedstore.prompts import PromptBank, prompt_banks, read_prompt_bank
from embedstore.prompts.prompt_bank import find_prompt_bank

BANK: dict[str, Any] = {
    "name": "mine",
    "tasks": {
        "as": {"classes": {"true": ["Stenosis. "], "false": ["None.", "No stenosis."]}},
        "lvef": {"templates": ["EF <#>%. ", "<#>"], "values": {"first": 10, "last": 20, "step": 5, "decimals": 0}},
    },
}


def bank_of(tmp_path: Path, described: Any) -> PromptBank:
    path = tmp_path / "bank.yaml"
    path.write_text(yaml.safe_dump(described, sort_keys=False))
    return read_prompt_bank(path)


def test_texts_stand_as_written_and_templates_are_filled_one_after_the_other(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, BANK)
    assert [(p.task, p.prompt, p.label, p.value, p.template) for p in bank.prompts] == [
        ("as", "Stenosis. ", "true", None, None),
        ("as", "None.", "false", None, None),
        ("as", "No stenosis.", "false", None, None),
        *(("lvef", f"EF {n}%. ", None, float(n), 0) for n in (10, 15, 20)),
        *(("lvef", str(n), None, float(n), 1) for n in (10, 15, 20)),
    ]
    assert bank.tasks == ("as", "lvef") and bank.name == "mine"


def changed(*path: str, to: Any) -> dict[str, Any]:
    described = deepcopy(BANK)
    place = described
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return described


def test_the_digest_is_of_the_texts_and_not_of_the_name(tmp_path: Path) -> None:
    digest = bank_of(tmp_path, BANK).digest
    assert bank_of(tmp_path, changed("name", to="other")).digest == digest
    one_space = changed("tasks", "as", "classes", "true", to=["Stenosis."])
    other_class = changed("tasks", "as", "classes", to={"1": ["Stenosis. "], "false": ["None.", "No stenosis."]})
    other_value = changed("tasks", "lvef", "values", "last", to=15)
    assert len({digest, *(bank_of(tmp_path, one).digest for one in (one_space, other_class, other_value))}) == 4


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("name",), 7, "name of the bank"),
        (("tasks",), {}, "tasks"),
        (("extra",), 1, "has the keys"),
        (("tasks", "as"), {"classes": {"true": []}}, "list of texts"),
        (("tasks", "as"), {"classes": {"true": ["  "]}}, "0 characters"),
        (("tasks", "as"), {"classes": {"true": ["a", "a"]}}, "stands twice"),
        (("tasks", "as"), {"classes": {"true": ["a"], "false": ["a"]}}, "stands twice"),
        (("tasks", "as"), {"classes": {"true": ["x" * 10_001]}}, "10001 characters"),
        (("tasks", "lvef", "templates"), ["EF is high"], "not once"),
        (("tasks", "lvef", "values", "step"), 0, "no numbers lead"),
        (("tasks", "lvef", "values", "step"), 0.01, "cannot be told apart"),
        (("tasks", "lvef", "values", "last"), 10**9, "no numbers lead"),
        (("tasks", "lvef", "values", "decimals"), "0", "are numbers"),
        (("tasks", "lvef", "values"), {"first": 0}, "has the keys"),
    ],
)
def test_a_wrong_bank_is_refused_with_the_place(tmp_path: Path, path: tuple[str, ...], to: Any, message: str) -> None:
    with pytest.raises(ContentError, match=message) as caught:
        bank_of(tmp_path, changed(*path, to=to))
    assert "bank.yaml" in str(caught.value)


def test_labels_are_texts_and_yaml_holds_no_code(tmp_path: Path) -> None:
    path = tmp_path / "bank.yaml"
    path.write_text("name: mine\ntasks: {as: {classes: {true: [a]}}}\n")
    with pytest.raises(ContentError, match='"true" in quotes'):
        read_prompt_bank(path)
    path.write_text("name: !!python/object/apply:os.system ['touch canary']\ntasks: {}\n")
    with pytest.raises(HostileInputError):
        read_prompt_bank(path)


def test_the_installed_bank_has_every_task_with_the_labels_of_the_manifests() -> None:
    bank = prompt_banks()["embedstore-v1"]
    labels: dict[str, set[str]] = {}
    for prompt in bank.prompts:
        if prompt.label is not None:
            labels.setdefault(prompt.task, set()).add(prompt.label)
    assert {task for task, found in labels.items() if found == {"true", "false"}} == {
        "as", "asd", "pah", "stemi", "rwma"
    }  # fmt: skip
    assert labels["view"] == {"A2C", "A3C", "A4C", "PLAX", "PSAX"}
    assert labels["as3"] == {"none", "early", "significant"}
    values = {
        task: sorted({p.value for p in bank.prompts if p.task == task and p.value is not None})
        for task in ("lvef", "lvidd", "ivsd", "lvpwd")
    }
    assert values["lvef"] == list(range(101)) and len(values["lvidd"]) == 61
    assert values["ivsd"] == values["lvpwd"] == [round(0.1 * n, 1) for n in range(5, 21)]
    for task, field in (("as", "tmed2"), ("rwma", "segrwma"), ("stemi", "hmc-qu"), ("asd", "cardiacnet-asd")):
        assert task in labels and field in recipes()


def test_a_published_bank_is_never_changed() -> None:
    """Another digest means another bank: put what is better into embedstore-v2."""
    digest = prompt_banks()["embedstore-v1"].digest
    assert digest == "b3fc11f3df53e35ad9f1197378e6dabd81855d811f3af13825d751732349465b"


def test_banks_are_found_by_file_or_name_and_without_torch(tmp_path: Path) -> None:
    assert find_prompt_bank("embedstore-v1").name == "embedstore-v1"
    with pytest.raises(UnknownNameError, match="installed: .*embedstore-v1"):
        find_prompt_bank("embedstore-v0")
    statement = (
        "import sys; from embedstore.prompts import prompt_banks; prompt_banks(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
