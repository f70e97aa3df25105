from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import EnvironmentFailure, MissingExtraError, UnknownNameError
from embedstore.manifest import Manifest, RecipeOutcome, RecipeRequest
from manifests.pydicom_us import recipe
from manifests.pydicom_us.recipe import RECIPE


@pytest.fixture(scope="module")
def outcome() -> RecipeOutcome:
    return RECIPE.make(RecipeRequest())


def rows(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in manifest.table.to_pylist()}


def test_all_files_are_found_below_one_root(outcome: RecipeOutcome) -> None:
    made, root = outcome.manifest, outcome.root
    assert outcome.findings == ()
    assert made.problems() == []
    assert root is not None
    assert len(made) == 20
    for row in rows(made).values():
        assert not Path(row["path"]).is_absolute()
        assert row["sha256"] == hashlib.sha256((root / row["path"]).read_bytes()).hexdigest()
        assert row["n_frames"] >= 1
        assert row["split"] == "test"
    assert str(root).encode() not in made.to_bytes()


def test_the_a4c_clips_are_of_one_patient(outcome: RecipeOutcome) -> None:
    found = rows(outcome.manifest)
    short, long = found["examples_ybr_color"], found["color3d_jpeg_baseline"]
    for row, n_frames, size in ((short, 30, (240, 320)), (long, 120, (480, 640))):
        assert (row["view"], row["view_source"], row["n_frames"]) == ("A4C", "given", n_frames)
        assert (row["height"], row["width"]) == size
        assert row["fps"] == pytest.approx(1000 / 33.333)
    assert short["patient_id"] == long["patient_id"]
    assert short["study_id"] == long["study_id"]
    views = {clip_id: row["view"] for clip_id, row in found.items() if row["view"] is not None}
    assert views == {
        "examples_ybr_color": "A4C",
        "color3d_jpeg_baseline": "A4C",
        "JPGLosslessP14SV1_1s_1f_8b": "PLAX",
    }
    assert len(set(outcome.manifest.patients)) == 6
    for study in {row["study_id"] for row in found.values()}:
        assert len({row["patient_id"] for row in found.values() if row["study_id"] == study}) == 1


def test_what_the_data_set_states(outcome: RecipeOutcome) -> None:
    facts = outcome.manifest.dataset
    assert (facts.name, facts.ids, facts.licence, facts.redistribution) == ("pydicom-us", "public", "MIT", "yes")
    assert facts.synthetic is False
    assert outcome.manifest.labels() == ["view"]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(recipe, "distribution", distribution)
    with pytest.raises(MissingExtraError, match=r"needs the package pydicom, .*embedstore\[media\]") as caught:
        RECIPE.make(RecipeRequest())
    assert caught.value.exit_code == 1


class _Installed:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate_file(self, path: str) -> Path:
        return self.folder / path


def test_files_that_a_version_does_not_bring_are_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: RecipeOutcome
) -> None:
    monkeypatch.setattr(recipe, "distribution", lambda name: _Installed(tmp_path))
    with pytest.raises(EnvironmentFailure, match="none of the ultrasound files"):
        RECIPE.make(RecipeRequest())
    assert outcome.root is not None
    kept = "pydicom/data/test_files/examples_ybr_color.dcm"
    (tmp_path / kept).parent.mkdir(parents=True)
    (tmp_path / kept).write_bytes((outcome.root / kept).read_bytes())
    fewer = RECIPE.make(RecipeRequest())
    assert fewer.manifest.clip_ids == ["examples_ybr_color"]
    (finding,) = fewer.findings
    assert (finding.kind, len(finding.names)) == ("file-absent", 19)


@pytest.mark.parametrize(
    ("given", "option"),
    [({"root": Path()}, "--root"), ({"name": "x"}, "--name"), ({"label_columns": ("EF",)}, "--label-column")],
)
def test_options_of_other_recipes_are_refused(given: dict[str, Any], option: str) -> None:
    with pytest.raises(UnknownNameError, match=f"leave out {option}"):
        RECIPE.make(RecipeRequest(**given))
