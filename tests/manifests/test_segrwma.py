from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import UnknownNameError

Writer = Callable[..., Path]
Make = Callable[..., Any]

HEADING = "patient_id,path,modality,view,n_frames,first_annotated_frame_index,split,abnormal,patient_view_id\n"
STEMS = ["patient1-2D-A2C", "patient1-LVO-A2C", "patient1-MCE-A4C", "patient2-2D-A3C", "patient10-2D-A4C"]


def line(stem: str, *, frame: str = "2", split: str = "train", abnormal: str = "0", n_frames: str = "5") -> str:
    patient, mode, view = stem.split("-")
    path = f"data/raw/Regional_wall_motion_abnormality/wallMotion/{stem}_image.nii.gz"
    return f"{patient},{path},{mode},{view},{n_frames},{frame},{split},{abnormal},{patient}_{view}\n"


@pytest.fixture
def root(tmp_path: Path, write_nifti: Writer) -> Path:
    folder = tmp_path / "Regional_wall_motion_abnormality"
    for seed, stem in enumerate(STEMS):
        write_nifti(folder / "wallMotion" / f"{stem}_image.nii.gz", n_frames=5, seed=seed)
    write_nifti(folder / "wallMotion" / f"{STEMS[0]}_label.nii.gz", n_frames=5, seed=90)
    return folder


def test_the_benchmark_s_file_gives_labels_splits_and_annotated_frames(
    make: Make, root: Path, write_csv: Writer
) -> None:
    text = line(STEMS[0], abnormal="1") + line(STEMS[1], abnormal="1") + line(STEMS[2], abnormal="1")
    text += line(STEMS[3], split="val", frame="4") + line(STEMS[4], split="test", frame="0")
    made = make("segrwma", root, splits=write_csv(HEADING + text, name="segrwma_split.csv"))
    assert made.manifest.problems() == []
    assert set(made.rows) == set(STEMS)
    assert made.column("rwma") == dict(zip(STEMS, [True, True, True, False, False], strict=True))
    assert made.column("split") == dict(zip(STEMS, ["train", "train", "train", "val", "test"], strict=True))
    assert made.column("modality")["patient1-LVO-A2C"] == "contrast"
    assert made.column("modality")["patient1-2D-A2C"] == "2d"
    assert made.column("contrast_mode")["patient1-MCE-A4C"] == "MCE"
    row = made.rows["patient10-2D-A4C"]
    assert (row["patient_id"], row["view"], row["patient_view_id"]) == ("patient10", "A4C", "patient10_A4C")
    assert row["path"] == "wallMotion/patient10-2D-A4C_image.nii.gz"
    assert (row["n_frames"], row["source_row"]) == (5, 4)
    assert made.manifest.key_frames_of["patient2-2D-A3C"] == [("annotated", 4)]
    assert made.manifest.key_frames_of["patient10-2D-A4C"] == [("annotated", 0)]
    assert made.found["left-out"] == ["wallMotion (1)"]
    assert "labels-absent" not in made.found
    assert "splits-unknown" not in made.found


def test_without_it_there_are_clips_and_views_only(make: Make, root: Path) -> None:
    made = make("segrwma", root)
    assert made.message("labels-absent").endswith("given with --splits FILE")
    assert set(made.column("rwma").values()) == {None}
    assert set(made.column("split").values()) == {None}
    assert made.manifest.labels() == ["view"]
    assert made.manifest.key_frames_of == {}
    assert made.manifest.problems() == []


def test_a_file_of_splits_by_patient_gives_splits_only(make: Make, root: Path, write_csv: Writer) -> None:
    splits = write_csv("patient_id,split\npatient1,train\npatient2,test\n", name="mine.csv")
    made = make("segrwma", root, splits=splits)
    assert made.rows["patient1-MCE-A4C"]["split"] == "train"
    assert made.found["splits-missing"] == ["patient10-2D-A4C"]
    assert "labels-absent" in made.found


def test_rows_and_files_that_do_not_match(make: Make, root: Path, write_csv: Writer, write_nifti: Writer) -> None:
    text = line(STEMS[0], frame="9") + line(STEMS[0], abnormal="1") + line(STEMS[3], abnormal="?", frame="-1")
    text += line("patient7-2D-A2C", split="test") + line("patient8-2D-A2C").replace("patient8-2D", "x")
    text += line(STEMS[4], n_frames="7")
    write_nifti(root / "wallMotion" / "other.nii.gz", seed=44)
    made = make("segrwma", root, splits=write_csv(HEADING + text, name="s.csv"))
    assert made.found["key-frame-outside"] == ["patient1-2D-A2C (annotated 9 of 5 frames)"]
    assert made.found["row-repeated"] == ["patient1-2D-A2C (s.csv row 2, with other values)"]
    assert made.found["value-unusable"] == ["patient2-2D-A3C (?)"]
    assert made.found["key-frame-unusable"] == ["patient2-2D-A3C (-1)"]
    assert made.found["unlabelled"] == ["patient2-2D-A3C"]
    assert made.found["row-without-file"] == ["patient7-2D-A2C"]
    assert made.rows["patient7-2D-A2C"]["path"] == "wallMotion/patient7-2D-A2C_image.nii.gz"
    assert made.rows["patient7-2D-A2C"]["split"] == "test"
    assert len(made.found["row-strange"]) == 1
    assert made.found["table-differs"] == ["patient10-2D-A4C (n_frames 7, in the file 5)"]
    assert made.found["file-without-row"] == ["wallMotion/other.nii.gz"]
    assert made.found["splits-missing"] == ["patient1-LVO-A2C", "patient1-MCE-A4C"]
    assert made.manifest.problems() == []


def test_a_splits_file_of_another_data_set_is_refused(make: Make, root: Path, write_csv: Writer) -> None:
    for text, level in (
        ("unique_id,split\nES0001_A2C,train\n", "clip"),
        ("patient_id,split\nES0001,train\n", "patient"),
    ):
        with pytest.raises(UnknownNameError, match=f"no {level} of .* is one of this data set's .*ES0001"):
            make("segrwma", root, splits=write_csv(text, name="hmcqu_split.csv"))
