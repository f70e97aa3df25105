from __future__ import annotations

import csv
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import EnvironmentFailure, ManifestError, UnknownNameError
from embedstore.manifest import Manifest, RecipeOutcome, RecipeRequest, get_recipe
from embedstore.phantom import draw_patient, write_phantom
from manifests.phantom.recipe import RECIPE

LABELS = {"lvef_pct", "edv_ml", "esv_ml", "lvidd_cm", "ivsd_cm", "lvpwd_cm", "rwma", "rwma_in_view"}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    write_phantom(out, n_patients=3)
    return out


@pytest.fixture
def copy(phantom: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom, tmp_path / "copy"))


@pytest.fixture(scope="module")
def outcome(phantom: Path) -> RecipeOutcome:
    return RECIPE.make(RecipeRequest(root=phantom))


def rows(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in manifest.table.to_pylist()}


def change(path: Path, edit: Any) -> None:
    with path.open(newline="") as handle:
        table = list(csv.DictReader(handle))
    for row in table:
        edit(row)
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def test_the_manifest_is_valid_and_complete(phantom: Path, outcome: RecipeOutcome, tmp_path: Path) -> None:
    made = outcome.manifest
    assert made.problems() == []
    assert outcome.findings == ()
    assert outcome.root == phantom.resolve()
    found = rows(made)
    assert {row["path"] for row in found.values()} == {f"clips/{path.name}" for path in (phantom / "clips").iterdir()}
    for row in found.values():
        assert row["sha256"] == hashlib.sha256((phantom / row["path"]).read_bytes()).hexdigest()
        assert row["fps"] == pytest.approx(row["fps_header"], rel=1e-6)
        assert 32 <= row["n_frames"] <= 64
        assert row["spacing_x_mm"] == row["spacing_y_mm"] > 0.5
        assert (row["modality"], row["view_source"], row["model"]) == ("2d", "given", "embedstore phantom")
        assert row["manufacturer"].startswith("SYNTHETIC")
    assert made.patient_ids == "provided"
    assert set(made.labels()) == {"view", *LABELS}
    made.write(tmp_path / "phantom.parquet")
    assert Manifest.read(tmp_path / "phantom.parquet").id == made.id


def test_labels_are_those_of_the_hearts(outcome: RecipeOutcome) -> None:
    hearts = {patient.patient_id: patient.ventricle for patient in map(draw_patient, range(3))}
    for row in rows(outcome.manifest).values():
        heart = hearts[row["patient_id"]]
        assert row["lvef_pct"] == pytest.approx(heart.lvef_pct, abs=1e-4)
        assert row["lvidd_cm"] == pytest.approx(heart.lvidd_cm, abs=1e-4)
        assert row["rwma"] == (heart.hypokinetic_wall is not None)
        assert row["rwma_wall"] == heart.hypokinetic_wall


def test_key_frames_and_splits_come_along(outcome: RecipeOutcome) -> None:
    made = outcome.manifest
    for clip_id, view in zip(made.clip_ids, made.column("view"), strict=True):
        frames = dict(made.key_frames_of[clip_id])
        assert frames["ed"] < frames["es"]
        assert ("ivsd" in frames) == (view == "PLAX")
    assert set(made.column("split")) == {"train", "val", "test"}


def test_it_says_that_it_is_synthetic(outcome: RecipeOutcome) -> None:
    facts = outcome.manifest.dataset
    assert facts.synthetic is True
    assert (facts.name, facts.ids, facts.redistribution) == ("phantom", "public", "yes")
    assert get_recipe("phantom") is RECIPE


def test_name_and_splits_can_be_given(phantom: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits.csv"
    splits.write_text("patient_id,split\n" + "".join(f"phantom-p{number:04d},TEST\n" for number in range(3)))
    made = RECIPE.make(RecipeRequest(root=phantom, name="hearts", splits=splits)).manifest
    assert made.name == "hearts"
    assert set(made.column("split")) == {"test"}


def test_a_missing_clip_is_a_finding_not_an_error(copy: Path) -> None:
    (copy / "clips/SYNTHETIC_phantom-p0000-a4c.avi").unlink()
    outcome = RECIPE.make(RecipeRequest(root=copy))
    (finding,) = outcome.findings
    assert (finding.kind, finding.names) == ("row-without-file", ("phantom-p0000-a4c",))
    assert rows(outcome.manifest)["phantom-p0000-a4c"]["sha256"] is None


def test_an_empty_label_is_unlabelled_and_a_word_is_a_problem(copy: Path) -> None:
    def edit(row: dict[str, str]) -> None:
        if row["clip_id"] == "phantom-p0000-a4c":
            row["lvef_pct"] = ""
        if row["clip_id"] == "phantom-p0001-a4c":
            row["lvef_pct"] = "n/a"

    change(copy / "clips.csv", edit)
    made = RECIPE.make(RecipeRequest(root=copy)).manifest
    assert rows(made)["phantom-p0000-a4c"]["lvef_pct"] is None
    (problem,) = made.problems()
    assert problem.rule == "not-a-number"
    assert "phantom-p0001-a4c" in problem.rows[0]


@pytest.mark.parametrize("path", ["../secret.avi", "/etc/hostname", ""])
def test_a_path_outside_the_folder_is_refused(copy: Path, path: str) -> None:
    change(copy / "clips.csv", lambda row: row.update(path=path))
    with pytest.raises(ManifestError, match="is empty or leaves the folder"):
        RECIPE.make(RecipeRequest(root=copy))


def test_tables_that_are_not_a_phantoms_are_refused(copy: Path, tmp_path: Path) -> None:
    change(copy / "key_frames.csv", lambda row: row.update(frame="first"))
    with pytest.raises(ManifestError, match="needs frame numbers, got 'first'"):
        RECIPE.make(RecipeRequest(root=copy))
    (copy / "clips.csv").write_text("clip_id,path\na,a.avi\n")
    with pytest.raises(ManifestError, match="has no column 'patient_id'"):
        RECIPE.make(RecipeRequest(root=copy))
    (copy / "clips.csv").unlink()
    with pytest.raises(EnvironmentFailure, match="interrupted; draw it with embedstore phantom --out") as caught:
        RECIPE.make(RecipeRequest(root=copy))
    assert caught.value.exit_code == 1
    with pytest.raises(UnknownNameError, match="there is no folder"):
        RECIPE.make(RecipeRequest(root=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs --root DIR"),
        ({"root": Path(), "table": Path("t.csv")}, "leave out --table"),
        ({"root": Path(), "label_columns": ("EF",)}, "leave out --label-column"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        RECIPE.make(RecipeRequest(**given))
