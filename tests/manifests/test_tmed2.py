from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import UnknownNameError
from embedstore.manifest import find_notes

Writer = Callable[..., Path]
Make = Callable[..., Any]

SET = "view_and_diagnosis_labeled_set/labeled"
# (query key, view, diagnosis, split): two studies of patient 1009, one image without a diagnosis.
IMAGES = [
    ("1009s1_0.png", "PLAX", "no_AS", "train"),
    ("1009s1_1.png", "PSAX", "no_AS", "train"),
    ("1009s2_0.png", "A4C", "mild_AS", "val"),
    ("1014s1_3.png", "A4CorA2CorOther", "severe_AS", "test"),
    ("1014s1_4.png", "A2C", "severe_AS", "test"),
    ("1020s1_0.png", "PLAX", "mildtomod_AS", "val"),
    ("2000s1_0.png", "PLAX", "Not_Provided", "not_used"),
]


def write_tables(root: Path, images: list[tuple[str, str, str, str]], *, heading: str = "view_label") -> None:
    labels = "".join(f"{key},{view},{grade}\n" for key, view, grade, _ in images)
    (root / "labels_per_image.csv").write_text(f"query_key,{heading},diagnosis_label\n{labels}")
    splits = "".join(f"{key},{SET}/,{view},{grade},{split}\n" for key, view, grade, split in images)
    (root / "DEV479").mkdir(exist_ok=True)
    (root / "DEV479" / "TMED2_fold0_labeledpart.csv").write_text(
        f"query_key,SourceFolder,view_label,diagnosis_label,diagnosis_classifier_split\n{splits}"
    )


@pytest.fixture
def root(tmp_path: Path, write_png: Writer) -> Path:
    folder = tmp_path / "approved_users_only"
    for seed, (key, _, _, _) in enumerate(IMAGES):
        write_png(folder / SET / key, seed=seed)
    write_tables(folder, IMAGES)
    (folder / "DEV479" / "TMED2_fold1_labeledpart.csv").write_text("query_key\n")
    (folder / "DEV165").mkdir()
    (folder / "DEV165" / "TMED2_fold0_labeledpart.csv").write_text("query_key\n")
    write_png(folder / "unlabeled_set" / "unlabeled" / "7s1_0.png", seed=70)
    return folder


def test_images_with_study_patient_view_and_grade(make: Make, root: Path) -> None:
    made = make("tmed2", root)
    assert made.manifest.problems() == []
    assert made.manifest.clip_ids == [key.removesuffix(".png") for key, *_ in IMAGES[:6]]
    assert list(made.column("split").values()) == ["train", "train", "val", "test", "test", "val"]
    assert list(made.column("as").values()) == [False, False, True, True, True, True]
    assert made.rows["1020s1_0"]["as_grade"] == "mildtomod_AS"
    assert list(made.column("study_id").values()) == ["1009s1", "1009s1", "1009s2", "1014s1", "1014s1", "1020s1"]
    assert list(made.column("patient_id").values()) == ["1009", "1009", "1009", "1014", "1014", "1020"]
    assert list(made.column("view").values()) == ["PLAX", "PSAX", "A4C", "Other", "A2C", "PLAX"]
    assert made.rows["1014s1_3"]["view_label"] == "A4CorA2CorOther"
    assert made.rows["1014s1_3"]["path"] == f"{SET}/1014s1_3.png"
    assert made.rows["1014s1_3"]["query_key"] == "1014s1_3.png"
    assert set(made.column("n_frames").values()) == {1}
    assert made.manifest.dataset.unit == "image"
    assert made.manifest.fields["as_grade"].role == "label"


def test_what_is_left_out_is_counted(make: Make, root: Path) -> None:
    made = make("tmed2", root)
    assert made.found["not-diagnosed"] == ["2000s1_0"]
    assert made.found["left-out"] == [f"{SET} (1)", "unlabeled_set/unlabeled (1)"]
    assert "file-without-row" not in made.found


def test_a_study_is_not_a_patient_and_a_patient_may_cross(make: Make, root: Path) -> None:
    made = make("tmed2", root)
    assert made.found["patient-crossing"] == ["1009 (train: PLAX, PSAX; val: A4C)"]
    assert made.manifest.problems() == []
    assert find_notes(made.manifest)[0].kind == "incomplete"


def test_labels_that_cannot_be_used(make: Make, root: Path) -> None:
    images = [
        ("1009s1_0.png", "PLAX", "no_AS", "train"),
        ("1009s1_1.png", "PSAX", "moderate_AS", "TRAIN"),
        ("1014s1_3.png", "A5C", "AS?", "test"),
        ("1014s1_3.png", "A2C", "AS?", "test"),
        ("oddname.png", "A2C", "no_AS", "fold7"),
    ]
    write_tables(root, images, heading="view")
    made = make("tmed2", root)
    assert made.found["value-unusable"] == ["1014s1_3 (AS?)", "1014s1_3 (A5C)", "1014s1_3 (AS?)"]
    assert (made.rows["1014s1_3"]["as"], made.rows["1014s1_3"]["as_grade"]) == (None, "AS?")
    assert (made.rows["1014s1_3"]["view"], made.rows["1014s1_3"]["view_source"]) == (None, None)
    assert made.found["row-repeated"] == ["1014s1_3 (labels_per_image.csv row 4, with other values)"]
    assert made.found["study-unnamed"] == ["oddname"]
    assert made.found["label-differs"] == ["1009s1 (moderate_AS, no_AS)"]
    assert made.found["unlabelled"] == ["1014s1_3", "1014s1_3"]
    assert made.rows["1009s1_1"]["split"] == "train"
    assert made.found["split-missing"] == ["oddname"]
    assert made.found["row-without-file"] == ["oddname"]
    assert len(made.found["file-without-row"]) == 4


def test_the_benchmark_s_splits_by_image_and_by_study(make: Make, root: Path, write_csv: Writer) -> None:
    (root / "DEV479" / "TMED2_fold0_labeledpart.csv").unlink()
    (root / "DEV165" / "TMED2_fold0_labeledpart.csv").unlink()
    without = make("tmed2", root)
    assert without.found["split-table-absent"] == ["DEV479/TMED2_fold0_labeledpart.csv"]
    per_image = write_csv(
        "query_key,view,diagnosis_label,split,file_path\n"
        f"1014s1_3.png,A4CorA2CorOther,1,test,data/raw/TMED_2/{SET}/1014s1_3.png\n"
        f"1009s1_0.png,PSAX,1,train,data/raw/TMED_2/{SET}/1009s1_0.png\n",
        name="per_image.csv",
    )
    made = make("tmed2", root, splits=per_image)
    assert made.rows["1009s1_0"]["split"] == "train"
    assert (made.rows["1014s1_3"]["source_row"], made.rows["1009s1_0"]["source_row"]) == (0, 1)
    assert made.found["label-differs"] == ["1009s1_0 (False, there 1)", "1009s1_0 (PLAX, there PSAX)"]
    assert len(made.found["splits-missing"]) == 4
    per_study = write_csv("study_id,diagnosis_label,split\n1009s1,0,val\n1014s1,1,test\n", name="per_study.csv")
    by_study = make("tmed2", root, splits=per_study)
    assert list(by_study.column("split").values()) == ["val", "val", None, "test", "test", None]


def test_the_split_table_serves_where_the_labels_are_missing(make: Make, root: Path) -> None:
    (root / "labels_per_image.csv").unlink()
    made = make("tmed2", root)
    assert list(made.column("split").values()) == ["train", "train", "val", "test", "test", "val"]
    (root / "DEV479" / "TMED2_fold0_labeledpart.csv").unlink()
    (root / "DEV165" / "TMED2_fold0_labeledpart.csv").unlink()
    with pytest.raises(UnknownNameError, match=r"no labels_per_image\.csv"):
        make("tmed2", root)


def test_the_published_counts(make: Make, tmp_path: Path) -> None:
    """A table of the published size, without files: 17,270 images of 598 studies, each count of the facts."""
    views = {"A2C": (1061, 312, 297), "A4C": (1391, 385, 430), "A4CorA2CorOther": (3768, 1595, 1498)}
    views |= {"PLAX": (2849, 965, 994), "PSAX": (997, 345, 383)}
    studies = {"train": (76, 284), "val": (25, 94), "test": (25, 94)}
    images, patient = [], 0
    for at, (split, (n_negative, n_positive)) in enumerate(studies.items()):
        of_split = []
        for number in range(n_negative + n_positive):
            # 22 of the training patients have a second study.
            is_second = split == "train" and number in range(n_negative + 1, n_negative + 45, 2)
            patient += not is_second
            of_split.append((f"{patient}s{1 + is_second}", "no_AS" if number < n_negative else "mild_AS"))
        n_images = dict.fromkeys((study for study, _ in of_split), 0)
        for view, n_of_split in views.items():
            fitting = [pair for pair in of_split if view != "A4CorA2CorOther" or pair[1] != "no_AS"]
            for number in range(n_of_split[at]):
                study, grade = fitting[number % len(fitting)]
                images.append((f"{study}_{n_images[study]}.png", view, grade, split))
                n_images[study] += 1
    write_tables(tmp_path, images)
    made = make("tmed2", tmp_path)
    assert len(made.manifest) == 17_270
    assert "counts-differ" not in made.found
    assert "incomplete" not in made.found
    write_tables(tmp_path, images[:-2])
    fewer = make("tmed2", tmp_path)
    assert fewer.found["counts-differ"] == [
        "clips: 17,268, published 17,270",
        "clips split=test: 3,600, published 3,602",
        "clips split=test view_label=PSAX: 381, published 383",
    ]
    assert fewer.manifest.problems() == []
