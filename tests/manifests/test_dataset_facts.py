from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

import manifests
from embedstore.errors import EmbedstoreError, FormatError
from embedstore.manifest import SPLITS, ManifestField, read_dataset_facts
from embedstore.manifest.fields import STANDARD

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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_published_counts_are_of_columns_that_are_there(path: Path) -> None:
    facts = read_dataset_facts(path)
    counts = facts.expected_counts
    columns = {condition.partition("=")[0] for counted in counts for condition in counted.split(" ")[1:]}
    assert columns <= {*STANDARD, *facts.fields}
    of_splits = [counts.get(f"clips split={split}") for split in SPLITS]
    if None not in of_splits:
        assert sum(of_splits) == counts["clips"]
    for label in facts.fields:
        for split in SPLITS:
            parts = [counts.get(f"clips split={split} {label}={truth}") for truth in ("false", "true")]
            if None not in parts:
                assert sum(parts) == counts[f"clips split={split}"]


def test_the_benchmark_s_data_sets_say_what_may_be_passed_on() -> None:
    facts = {path.parent.name: read_dataset_facts(path) for path in FILES}
    published = [name for name, described in facts.items() if described.expected_counts]
    assert len(published) == 9
    for name in published:
        described = facts[name]
        assert described.redistribution in ("no", "ask")
        assert described.ids == "public"
        assert described.source.startswith("https://")
        assert described.citation
        assert described.official_split
    assert {name for name in published if facts[name].redistribution == "no"} == {
        "echonet_dynamic",
        "echonet_pediatric",
        "echonet_lvh",
    }
