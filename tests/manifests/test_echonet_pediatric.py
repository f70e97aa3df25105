from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import ManifestError

Writer = Callable[..., Path]
Make = Callable[..., Any]

HEADING = "FileName,EF,Sex,Age,Weight,Height,Split\n"
A4C = """CR1-CR9-000045.avi,61.2,F,4,16,100,0
CR2-CR8-000033,55,M,0.5,7.5,66,1
CR3-CR7-000001.avi,48,O,17,missing,170,2
"""
PSAX = """CR1-CR9-000046.avi,60,F,4,16,100,5
CR4-CR6-000002.avi,65,M,10,30,140,0
CR4-CR6-000003.avi,64,M,10,30,140,9
"""
A4C_TRACINGS = """FileName,X,Y,Frame
CR1-CR9-000045.avi,0,0,2
CR1-CR9-000045.avi,9,9,2
CR1-CR9-000045.avi,9,0,2
CR1-CR9-000045.avi,0,9,2
CR1-CR9-000045.avi,0,0,0
CR1-CR9-000045.avi,4,0,0
CR1-CR9-000045.avi,4,4,0
CR2-CR8-000033.avi,0,0,1
CR2-CR8-000033.avi,4,0,1
CR2-CR8-000033.avi,4,4,1
CR2-CR8-000033.avi,0,0,No Systolic
"""


@pytest.fixture
def root(tmp_path: Path, write_avi: Writer) -> Path:
    folder = tmp_path / "pediatric_echo_avi"
    for view, rows in (("A4C", A4C), ("PSAX", PSAX)):
        for line in rows.splitlines():
            name = line.split(",")[0].removesuffix(".avi")
            write_avi(folder / view / "Videos" / f"{name}.avi", seed=int(name[-3:]) + 100 * int(name[2]))
        (folder / view / "FileList.csv").write_text(HEADING + rows)
    (folder / "A4C" / "VolumeTracings.csv").write_text(A4C_TRACINGS)
    (folder / "PSAX" / "VolumeTracings.csv").write_text("FileName,X,Y,Frame\n")
    return folder


def test_both_views_with_folds_and_subgroups(make: Make, root: Path) -> None:
    made = make("echonet-pediatric", root)
    assert made.manifest.problems() == []
    assert made.column("view") == {
        "CR1-CR9-000045": "A4C",
        "CR1-CR9-000046": "PSAX",
        "CR2-CR8-000033": "A4C",
        "CR3-CR7-000001": "A4C",
        "CR4-CR6-000002": "PSAX",
        "CR4-CR6-000003": "PSAX",
    }
    assert list(made.column("split").values()) == ["test", "train", "val", "train", "test", "train"]
    assert list(made.column("fold").values()) == [0, 5, 1, 2, 0, 9]
    assert list(made.column("patient_id").values()) == ["CR1", "CR1", "CR2", "CR3", "CR4", "CR4"]
    assert list(made.column("sex").values()) == ["F", "F", "M", "O", "M", "M"]
    assert list(made.column("source_row").values()) == [0, 3, 1, 2, 4, 5]
    first = made.rows["CR1-CR9-000045"]
    assert (first["lvef_pct"], first["age_years"], first["bmi"]) == (61.2, 4, 16)
    assert first["path"] == "A4C/Videos/CR1-CR9-000045.avi"
    assert made.rows["CR2-CR8-000033"]["file_name"] == "CR2-CR8-000033.avi"
    assert made.rows["CR3-CR7-000001"]["weight_kg"] is made.rows["CR3-CR7-000001"]["bmi"] is None
    assert made.found["value-unusable"] == ["CR3-CR7-000001 (missing)"]
    assert made.manifest.patient_ids == "derived(file name, first field)"


def test_patients_across_folds_are_reported_and_refuse_nothing(make: Make, root: Path) -> None:
    made = make("echonet-pediatric", root)
    assert made.found["patient-crossing"] == ["CR1 (test: A4C; train: PSAX)", "CR4 (test: PSAX; train: PSAX)"]
    assert made.manifest.problems() == []


def test_traced_frames_and_the_missing_systole(make: Make, root: Path) -> None:
    made = make("echonet-pediatric", root)
    assert made.manifest.key_frames_of == {"CR1-CR9-000045": [("ed", 2), ("es", 0)]}
    assert made.found["tracing-unusable"] == ["CR2-CR8-000033 (1 traced frames, and 'No Systolic')"]


def test_folds_that_are_none_and_names_in_both_views(make: Make, root: Path, write_avi: Writer) -> None:
    rows = PSAX.replace(",9\n", ",12\n") + "CR2-CR8-000033.avi,50,M,1,8,70,0\nCR5-CR5-000009.avi,50,M,1,8,70,TEST\n"
    (root / "PSAX" / "FileList.csv").write_text(HEADING + rows)
    write_avi(root / "PSAX" / "Videos" / "CR2-CR8-000033.avi", seed=5)
    made = make("echonet-pediatric", root)
    assert made.found["fold-unknown"] == ["CR4-CR6-000003 (12)"]
    assert made.rows["CR4-CR6-000003"]["split"] is None
    assert made.found["split-missing"] == ["CR4-CR6-000003"]
    assert made.rows["CR5-CR5-000009"]["split"] == "test"
    assert made.found["name-in-both-views"] == ["CR2-CR8-000033"]
    assert made.rows["CR2-CR8-000033"]["path"] == "A4C/Videos/CR2-CR8-000033.avi"
    assert made.rows["PSAX/CR2-CR8-000033"]["path"] == "PSAX/Videos/CR2-CR8-000033.avi"
    assert made.found["row-without-file"] == ["CR5-CR5-000009"]


def test_one_view_of_two(make: Make, root: Path) -> None:
    made = make("echonet-pediatric", root / "A4C")
    assert made.found["view-absent"] == ["PSAX/FileList.csv"]
    assert set(made.column("view").values()) == {"A4C"}
    assert made.rows["CR1-CR9-000045"]["path"] == "Videos/CR1-CR9-000045.avi"
    assert made.manifest.problems() == []


def test_fractions_are_refused(make: Make, root: Path) -> None:
    (root / "PSAX" / "FileList.csv").write_text(HEADING + PSAX.replace(",60,", ",0.60,"))
    with pytest.raises(ManifestError, match=r"mixes units: 1 of 3 values .* CR1-CR9-000046 \(0\.6\)"):
        make("echonet-pediatric", root)


def test_a_patient_column_that_agrees_with_neither_view(make: Make, root: Path) -> None:
    text = "".join(
        f"{line},{cell}\n"
        for line, cell in zip((HEADING + PSAX).splitlines(), ["patient_id", "x", "y", "z"], strict=True)
    )
    (root / "PSAX" / "FileList.csv").write_text(text)
    made = make("echonet-pediatric", root)
    assert made.found["patient-differs"] == ["CR4 (y, z in the table)"]
    assert made.rows["CR4-CR6-000003"]["patient_id_in_table"] == "z"
