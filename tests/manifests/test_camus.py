from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import ManifestError, StorageError, UnknownNameError

Writer = Callable[..., Path]
Make = Callable[..., Any]

# ED, ES, EF and image quality of each view: the fourth patient contracts first.
PATIENTS = {
    "patient0001": ("training", {"2CH": (1, 5, 56, "Good"), "4CH": (1, 4, 56, "Medium")}),
    "patient0002": ("validation", {"2CH": (2, 5, 61.5, "Poor"), "4CH": (1, 5, 61.5, "Good")}),
    "patient0003": ("testing", {"2CH": (1, 3, 33, "Good"), "4CH": (1, 5, 33, "Good")}),
    "patient0004": ("testing", {"2CH": (5, 1, 47, "Medium"), "4CH": (1, 5, 48, "Medium")}),
}


def info(ed: int, es: int, ef: float, quality: str) -> str:
    return f"ED: {ed}\nES: {es}\nNbFrame: 5\nSex: F\nAge: 56\nImageQuality: {quality}\nEF: {ef}\nFrameRate: 40.5\n"


@pytest.fixture
def root(tmp_path: Path, write_nifti: Writer) -> Path:
    folder = tmp_path / "CAMUS_public"
    lists: dict[str, list[str]] = {"training": [], "validation": [], "testing": []}
    for seed, (patient, (subgroup, views)) in enumerate(PATIENTS.items()):
        lists[subgroup].append(patient)
        for view, (ed, es, ef, quality) in views.items():
            own = folder / "database_nifti" / patient
            number = 2 * seed + (view == "4CH")
            write_nifti(own / f"{patient}_{view}_half_sequence.nii.gz", n_frames=5, seed=number)
            write_nifti(own / f"{patient}_{view}_half_sequence_gt.nii.gz", n_frames=5, seed=50 + number)
            write_nifti(own / f"{patient}_{view}_ED.nii.gz", n_frames=1, seed=100 + number)
            (own / f"Info_{view}.cfg").write_text(info(ed, es, ef, quality))
    (folder / "database_split").mkdir()
    for subgroup, patients in lists.items():
        (folder / "database_split" / f"subgroup_{subgroup}.txt").write_text("\n".join(patients) + "\n")
    return folder


def test_half_sequences_with_labels_and_official_split(make: Make, root: Path) -> None:
    made = make("camus", root)
    assert made.manifest.problems() == []
    assert made.manifest.clip_ids == [f"{patient}_{view}" for patient in PATIENTS for view in ("2CH", "4CH")]
    first = made.rows["patient0002_2CH"]
    assert first["path"] == "database_nifti/patient0002/patient0002_2CH_half_sequence.nii.gz"
    assert (first["view"], first["patient_id"], first["split"]) == ("A2C", "patient0002", "val")
    assert (first["lvef_pct"], first["sex"], first["age_years"]) == (61.5, "F", 56)
    assert (first["n_frames"], first["fps"], first["height"], first["width"]) == (5, 40.5, 32, 48)
    assert [row["split"] for row in made.rows.values()] == ["train"] * 2 + ["val"] * 2 + ["test"] * 4
    assert list(made.column("source_row").values()) == list(range(8))
    assert made.manifest.patient_ids == "provided"
    assert made.found["left-out"] == [f"database_nifti/{patient} (4)" for patient in PATIENTS]
    assert "file-without-row" not in made.found
    assert "not-recognised" not in made.found


def test_key_frames_are_read_never_assumed(make: Make, root: Path) -> None:
    frames = make("camus", root).manifest.key_frames_of
    assert frames["patient0001_2CH"] == [("ed", 0), ("es", 4)]
    assert frames["patient0001_4CH"] == [("ed", 0), ("es", 3)]
    assert frames["patient0002_2CH"] == [("ed", 1), ("es", 4)]
    assert frames["patient0003_2CH"] == [("ed", 0), ("es", 2)]
    assert frames["patient0004_2CH"] == [("ed", 4), ("es", 0)]


def test_image_quality_by_view_and_the_worse_of_two(make: Make, root: Path) -> None:
    rows = make("camus", root).rows
    assert [rows[f"patient0001_{view}"]["image_quality"] for view in ("2CH", "4CH")] == ["Good", "Medium"]
    assert {rows[f"patient0001_{view}"]["image_quality_worst"] for view in ("2CH", "4CH")} == {"Medium"}
    assert {rows[f"patient0002_{view}"]["image_quality_worst"] for view in ("2CH", "4CH")} == {"Poor"}


def test_what_does_not_match_is_listed(make: Make, root: Path, write_nifti: Writer) -> None:
    nifti = root / "database_nifti"
    (nifti / "patient0001" / "patient0001_4CH_half_sequence.nii.gz").unlink()
    (nifti / "patient0003" / "Info_2CH.cfg").unlink()
    (nifti / "patient0002" / "Info_4CH.cfg").write_text(info(0, 9, 61.5, "Good").replace("Age: 56", "Age: old"))
    (nifti / "patient0002" / "MANDATORY_CITATION.md").write_text("cite")
    (root / "database_split" / "subgroup_training.txt").write_text("patient0001\npatient0003\npatient0099\n")
    (root / "database_split" / "odd.bin").write_bytes(b"x")
    made = make("camus", root)
    assert made.found["row-without-file"] == ["patient0001_4CH"]
    assert made.found["info-missing"] == made.found["unlabelled"] == ["patient0003_2CH"]
    assert made.found["value-unusable"] == ["patient0002_4CH (old)"]
    assert made.found["key-frame-unusable"] == ["patient0002_4CH (ED 0)"]
    assert made.found["key-frame-outside"] == ["patient0002_4CH (es 8 of 5 frames)"]
    assert made.found["label-differs"] == ["patient0004 (47, 48)"]
    assert made.found["split-crossing"] == ["patient0003 (train, test)"]
    assert made.found["split-without-row"] == ["patient0099"]
    assert made.found["not-recognised"] == ["database_split/odd.bin"]
    assert made.manifest.problems() == []


def test_frames_out_of_an_uncompressed_release(make: Make, root: Path) -> None:
    compressed = make("camus", root)
    for path in list(root.rglob("*_half_sequence.nii.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    made = make("camus", root)
    assert made.rows["patient0001_2CH"]["path"].endswith("patient0001_2CH_half_sequence.nii")
    assert made.column("n_frames") == compressed.column("n_frames")


def test_without_the_official_lists_there_is_no_split(make: Make, root: Path, write_csv: Writer) -> None:
    made = make("camus", root / "database_nifti")
    assert made.found["split-lists-absent"] == [
        "subgroup_training.txt",
        "subgroup_validation.txt",
        "subgroup_testing.txt",
    ]
    assert set(made.column("split").values()) == {None}
    assert made.manifest.split_rule.startswith("none")
    splits = write_csv("patient_id,split\npatient0001,train\npatient0002,test\n", name="splits.csv")
    given = make("camus", root / "database_nifti", splits=splits)
    assert given.rows["patient0002_4CH"]["split"] == "test"
    assert "split-lists-absent" not in given.found
    assert len(given.found["splits-missing"]) == 4


def test_one_patient_folder_is_enough(make: Make, root: Path) -> None:
    made = make("camus", root / "database_nifti" / "patient0001")
    assert made.manifest.clip_ids == ["patient0001_2CH", "patient0001_4CH"]
    assert made.rows["patient0001_4CH"]["lvef_pct"] == 56


def test_bad_releases_are_one_sentence(make: Make, root: Path, write_nifti: Writer) -> None:
    own = root / "database_nifti" / "patient0001"
    (own / "Info_2CH.cfg").write_text(info(1, 5, 0.56, "Good"))
    with pytest.raises(ManifestError, match=r"the \.cfg files, ef mixes units: .* patient0001_2CH \(0\.56\)"):
        make("camus", root)
    (own / "Info_2CH.cfg").write_bytes(b"ED: 1\n\xff\xfe\n")
    with pytest.raises(StorageError, match="no UTF-8"):
        make("camus", root)
    copy = root / "copy" / "patient0001"
    copy.mkdir(parents=True)
    (own / "Info_2CH.cfg").write_text(info(1, 5, 56, "Good"))
    (copy / "Info_2CH.cfg").write_text(info(1, 5, 56, "Good"))
    with pytest.raises(UnknownNameError, match="holds the 2CH of patient0001 twice"):
        make("camus", root)
