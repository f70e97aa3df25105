from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

import manifests
from embedstore.errors import EmbedstoreError, FormatError
from embedstore.manifest import ManifestField, read_dataset_facts

FILES = sorted(Path(manifests.__path__[0]).glob("*/dataset.yaml"))


def test_every_recipe_has_its_facts() -> None:
    folders = {path.parent for path in Path(manifests.__path__[0]).glob("*/recipe.py")}
    assert {path.parent for path in FILES} == folders
    assert {"folder", "pydicom_us"} <= {folder.name for folder in folders}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_facts_are_valid_and_belong_to_their_recipe(path: Path) -> None:
    facts = read_dataset_facts(path)
    assert facts.name == path.parent.name.replace("_", "-")
    assert importlib.import_module(f"manifests.{path.parent.name}.recipe").RECIPE.name == facts.name
    assert facts.title
    assert facts.summary
    assert facts.licence
    assert facts.traps
    for name, described in facts.fields.items():
        ManifestField(name=name, **described.model_dump())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("colour: red", "colour"),
        ("redistribution: sure", "redistribution"),
        ("ids: secret", "ids"),
        ("traps: [{a: 1}]", "traps"),
        ("fields: {EF: {role: target}}", "fields.EF.role"),
        ("fields: {EF: {role: label, plausible: [low, high]}}", "fields.EF.plausible"),
        ("name: other", "twice"),
        ("title: !!python/object/apply:os.getcwd []", "no plain YAML"),
    ],
)
def test_facts_that_are_wrong_name_the_place(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "dataset.yaml"
    shutil.copy(next(file for file in FILES if file.parent.name == "folder"), path)
    text = "".join(
        kept for kept in path.read_text().splitlines(keepends=True) if not kept.startswith(("redistribution", "ids"))
    )
    head = text[: text.index("traps:")]
    path.write_text(f"{head}{line}\n")
    with pytest.raises(EmbedstoreError, match=message) as caught:
        read_dataset_facts(path)
    assert caught.value.exit_code == 4


def test_facts_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text("name: x\n")
    with pytest.raises(FormatError, match="title"):
        read_dataset_facts(path)
    path.write_text("- x\n")
    with pytest.raises(FormatError, match=r"dataset\.yaml"):
        read_dataset_facts(path)
