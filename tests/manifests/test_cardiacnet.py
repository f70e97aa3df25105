from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.model_selection import train_test_split

from embedstore.manifest import get_recipe

Writer = Callable[..., Path]
Make = Callable[..., Any]


def layout(disease: str) -> list[tuple[str, str, str]]:
    """(class folder, folder of the sequence, file): numbers restart in each class, two controls of another source."""
    listed = []
    for number in range(1, 13):
        listed.append((disease, f"{number:03d}_image.nii", f"patient-{number}-4_image.nii"))
        listed.append((f"Non-{disease}", f"{number:03d}_image.nii", f"patient-{number + 9}-4_image.nii"))
    listed.append((disease, "013_image.nii", "patient-1-4_image.nii"))
    listed += [(f"Non-{disease}", f"{20 + n:03d}_image.nii", f"PHI{n:02d}.nii") for n in (1, 2)]
    if disease == "PAH":
        listed.append(("Non-PAH", "030_image.nii", "patient23-4_image.nii"))
        listed.append(("Non-PAH", "031_image.nii", "P88-4_image.nii"))
        listed.append(("PAH", "032_image.nii", "patient23-4_image.nii"))
    return listed


def write_layout(root: Path, disease: str, write_nifti: Writer) -> Path:
    folder = root / "CardiacNet" / f"CardiacNet-{disease}"
    for seed, parts in enumerate(layout(disease)):
        write_nifti(folder.joinpath(*parts), seed=seed + 1000 * (disease == "PAH"))
    write_nifti(folder / disease / "001_label.nii" / "patient-1-4_label.nii", seed=900)
    write_nifti(folder / f"Non-{disease}" / "021_label.nii" / "PHI01.nii", seed=901)
    return folder


@pytest.fixture
def root(tmp_path: Path, write_nifti: Writer) -> Path:
    write_layout(tmp_path, "ASD", write_nifti)
    return tmp_path / "CardiacNet"


def published_split(disease: str) -> dict[str, str]:
    """The published definition: ids across classes, whole stems without 'patient-', 20 % test, 0.10 / 0.80 val."""
    labels: dict[str, int] = {}
    for folder, _, file in layout(disease):
        stem = file.removesuffix(".nii")
        patient = "-".join(stem.split("-")[:2]) if stem.startswith("patient-") else stem
        labels[patient] = max(labels.get(patient, 0), int(folder == disease))
    patients = sorted(labels)
    rest, test = train_test_split(
        patients, test_size=0.20, stratify=[labels[name] for name in patients], random_state=42
    )
    train, val = train_test_split(
        rest, test_size=0.10 / 0.80, stratify=[labels[name] for name in rest], random_state=42
    )
    return {**dict.fromkeys(train, "train"), **dict.fromkeys(val, "val"), **dict.fromkeys(test, "test")}


def test_files_in_folders_that_end_in_nii(make: Make, root: Path) -> None:
    made = make("cardiacnet-asd", root)
    assert made.manifest.problems() == []
    assert len(made.rows) == 27
    row = made.rows["002_image_patient-2-4"]
    assert row["path"] == "CardiacNet-ASD/ASD/002_image.nii/patient-2-4_image.nii"
    assert (row["asd"], row["group"], row["view"], row["n_frames"]) == (True, "ASD", "A4C", 3)
    assert row["unique_id"] == "002_image_patient-2-4"
    assert made.rows["021_image_PHI01"]["asd"] is False
    assert [clip_id for clip_id, is_control in made.column("phi_control").items() if is_control] == [
        "021_image_PHI01",
        "022_image_PHI02",
    ]
    assert made.found["left-out"] == [
        "CardiacNet-ASD/ASD/001_label.nii (1)",
        "CardiacNet-ASD/Non-ASD/021_label.nii (1)",
    ]
    assert "file-without-row" not in made.found


@pytest.mark.parametrize("name", ["PHI07_image.nii", "PHI-7-4_image.nii", "phi007.nii.gz"])
def test_controls_are_told_however_their_names_go_on(make: Make, root: Path, write_nifti: Writer, name: str) -> None:
    write_nifti(root / "CardiacNet-ASD" / "Non-ASD" / "060_image.nii" / name, seed=55)
    write_nifti(root / "CardiacNet-ASD" / "Non-ASD" / "061_image.nii" / "Philip-4_image.nii", seed=56)
    controls = {clip for clip, is_control in make("cardiacnet-asd", root).column("phi_control").items() if is_control}
    (added,) = controls - {"021_image_PHI01", "022_image_PHI02"}
    assert added.startswith("060_image_")


def test_patients_are_of_their_class(make: Make, root: Path) -> None:
    made = make("cardiacnet-asd", root)
    rows = made.rows
    assert rows["010_image_patient-10-4"]["patient_id"] == "ASD/patient-10"
    assert rows["001_image_patient-10-4"]["patient_id"] == "Non-ASD/patient-10"
    assert rows["001_image_patient-1-4"]["patient_id"] == rows["013_image_patient-1-4"]["patient_id"]
    assert rows["021_image_PHI01"]["patient_id"] == "Non-ASD/PHI01"
    assert made.found["patient-in-both-classes"] == ["patient-10", "patient-11", "patient-12"]
    assert rows["010_image_patient-10-4"]["benchmark_patient_id"] == "patient-10"


@pytest.mark.parametrize("disease", ["ASD", "PAH"])
def test_the_split_is_the_published_rule(make: Make, tmp_path: Path, write_nifti: Writer, disease: str) -> None:
    made = make(f"cardiacnet-{disease.lower()}", write_layout(tmp_path, disease, write_nifti))
    expected = published_split(disease)
    assert {row["benchmark_patient_id"]: row["split"] for row in made.rows.values()} == expected
    assert set(expected.values()) == {"train", "val", "test"}
    assert made.manifest.split_rule.startswith("published rule, recomputed")
    assert "the published one from" in made.message("split-recomputed")
    order = sorted(made.rows.values(), key=lambda row: row["source_row"])
    assert [row["split"] for row in order] == sorted(
        (row["split"] for row in order), key=["train", "val", "test"].index
    )
    of_test = [row["path"] for row in order if row["split"] == "test"]
    assert of_test == sorted(of_test)


def test_names_without_a_dash_hide_a_patient(make: Make, tmp_path: Path, write_nifti: Writer) -> None:
    made = make("cardiacnet-pah", write_layout(tmp_path, "PAH", write_nifti))
    rows = made.rows
    assert rows["030_image_patient23-4"]["patient_id"] == "Non-PAH/patient23"
    assert rows["032_image_patient23-4"]["patient_id"] == "PAH/patient23"
    assert rows["031_image_P88-4"]["patient_id"] == "Non-PAH/P88"
    assert rows["030_image_patient23-4"]["benchmark_patient_id"] == "patient23-4_image"
    assert rows["032_image_patient23-4"]["pah"] is True


def test_a_patient_hidden_in_two_stems_crosses_and_is_reported(
    make: Make, tmp_path: Path, write_nifti: Writer
) -> None:
    folder = write_layout(tmp_path, "PAH", write_nifti)
    for view in range(1, 21):
        write_nifti(folder / "PAH" / f"{40 + view:03d}_image.nii" / f"patient77-{view}_image.nii", seed=500 + view)
    made = make("cardiacnet-pah", folder)
    assert len({row["split"] for row in made.rows.values() if row["patient_id"] == "PAH/patient77"}) > 1
    assert made.found["patient-crossing"][0].startswith("PAH/patient77 (")
    assert made.manifest.problems() == []


def test_both_diseases_are_two_manifests(make: Make, tmp_path: Path, write_nifti: Writer) -> None:
    write_layout(tmp_path, "ASD", write_nifti)
    write_layout(tmp_path, "PAH", write_nifti)
    asd, pah = (make(f"cardiacnet-{name}", tmp_path) for name in ("asd", "pah"))
    assert (len(asd.rows), len(pah.rows)) == (27, 30)
    assert any("CardiacNet-PAH" in name for name in asd.found["left-out"])
    assert "file-without-row" not in asd.found
    assert "pah" not in asd.manifest.fields
    assert get_recipe("cardiacnet-asd").name != get_recipe("cardiacnet-pah").name


def test_sequences_that_are_plain_files_or_share_an_id(make: Make, root: Path, write_nifti: Writer) -> None:
    write_nifti(root / "CardiacNet-ASD" / "ASD" / "050_image.nii", seed=77)
    write_nifti(root / "CardiacNet-ASD" / "Non-ASD" / "050_image.nii", seed=78)
    write_nifti(root / "CardiacNet-ASD" / "Non-ASD" / "004_image.nii" / "patient-4-4_image.nii.gz", seed=79)
    write_nifti(root / "stray.nii", seed=80)
    made = make("cardiacnet-asd", root)
    assert made.rows["ASD/050_image"]["asd"] is True
    assert made.rows["Non-ASD/050_image"]["patient_id"] == "Non-ASD/050"
    assert made.found["id-in-both-classes"] == ["004_image_patient-4-4", "050_image"]
    assert made.rows["Non-ASD/004_image_patient-4-4"]["path"].endswith(".nii.gz")
    assert made.found["file-without-row"] == ["stray.nii"]


def test_one_class_alone(make: Make, root: Path) -> None:
    made = make("cardiacnet-asd", root / "CardiacNet-ASD" / "ASD")
    assert made.found["class-absent"] == ["Non-ASD"]
    assert set(made.column("asd").values()) == {True}
    assert made.rows["002_image_patient-2-4"]["path"] == "002_image.nii/patient-2-4_image.nii"


def test_the_benchmark_s_file(make: Make, root: Path, write_csv: Writer) -> None:
    lines = "path,ASD,patient_id,split,image_name,unique_id,parent,stem\n"
    for at, (folder, parent, file) in enumerate(layout("ASD")[:-1]):
        stem = file.removesuffix(".nii").removesuffix("_image")
        split = ("train", "val", "test")[int(stem.split("-")[1]) % 3] if "-" in stem else "train"
        label = int(folder == "ASD") if at else 0
        patient = "-".join(stem.split("-")[:2])
        lines += f"data/raw/CardiacNet/CardiacNet-ASD/{folder}/{parent}/{file},{label},{patient},{split},{file},"
        lines += f"{parent.removesuffix('.nii')}_{stem},{parent.removesuffix('.nii')},{stem}\n"
    made = make("cardiacnet-asd", root, splits=write_csv(lines, name="asd.csv"))
    assert made.rows["002_image_patient-2-4"]["split"] == "test"
    assert made.rows["002_image_patient-2-4"]["source_row"] == 2
    assert made.found["splits-missing"] == ["022_image_PHI02"]
    assert made.found["label-differs"] == ["001_image_patient-1-4 (True, there 0)"]
    assert made.found["patient-differs"] == [
        f"patient-{number} of the table (ASD/patient-{number}, Non-ASD/patient-{number})" for number in (10, 11, 12)
    ]
    assert "split-recomputed" not in made.found
