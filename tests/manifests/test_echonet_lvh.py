from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import ManifestError, UnknownNameError

Writer = Callable[..., Path]
Make = Callable[..., Any]

HEADING = ",HashedFileName,Calc,CalcValue,Frame,X1,X2,Y1,Y2,Frames,FPS,Width,Height,split\n"
ROWS = """0,0XA,LVIDd,5.0,1,1,2,3,4,4,50,48,32,train
1,0XA,IVSd,1.2,2,1,2,3,4,4,50,48,32,train
2,0XA,IVSd,1.4,3,1,2,3,4,4,50,48,32,train
3,0XA,LVPWd,1.1,0,1,2,3,4,4,50,48,32,train
4,0XA,LVIDs,3.1,0,1,2,3,4,4,50,48,32,train
5,0XB.avi,LVIDd,4.5,2,1,2,3,4,4,30,48,32,VAL
6,0XC,LVPWd,0.9,7,1,2,3,4,4,30,48,32,test
7,0XD,LVIDs,3.2,1,1,2,3,4,4,30,48,32,test
"""


@pytest.fixture
def root(tmp_path: Path, write_avi: Writer) -> Path:
    folder = tmp_path / "EchoNet-LVH"
    for seed, (batch, name) in enumerate(
        [("Batch1", "0XA"), ("Batch2", "0XB"), ("Batch4", "0XC"), ("Batch4", "0XD")]
    ):
        write_avi(folder / batch / f"{name}.avi", seed=seed)
    (folder / "MeasurementsList.csv").write_text(HEADING + ROWS)
    return folder


def test_batched_folders_and_one_row_a_clip(make: Make, root: Path) -> None:
    made = make("echonet-lvh", root)
    assert made.manifest.problems() == []
    assert made.manifest.clip_ids == ["0XA", "0XB", "0XC", "0XD"]
    assert made.column("split") == {"0XA": "train", "0XB": "val", "0XC": "test", "0XD": "test"}
    assert made.column("path")["0XC"] == "Batch4/0XC.avi"
    assert made.column("lvidd_cm") == {"0XA": 5.0, "0XB": 4.5, "0XC": None, "0XD": None}
    assert made.column("lvpwd_cm") == {"0XA": 1.1, "0XB": None, "0XC": 0.9, "0XD": None}
    assert made.column("fps") == {"0XA": 50, "0XB": 30, "0XC": 30, "0XD": 30}
    assert set(made.column("view").values()) == {"PLAX"}
    assert made.found["unlabelled"] == ["0XC", "0XD", "0XB", "0XC", "0XD", "0XB", "0XD"]
    assert made.found["measurement-other"] == ["LVIDs (2)"]
    assert set(made.column("patient_id").values()) == {None}
    assert made.manifest.patient_ids == "unknown"


def test_repeated_measurements_are_averaged_and_the_first_is_kept(make: Make, root: Path) -> None:
    row = make("echonet-lvh", root).rows["0XA"]
    assert row["ivsd_cm"] == pytest.approx(1.3)
    assert (row["ivsd_cm_first"], row["ivsd_n"], row["ivsd_row"]) == (1.2, 2, 1)
    assert (row["lvidd_n"], row["lvidd_row"], row["lvpwd_row"], row["source_row"]) == (1, 0, 3, 0)
    made = make("echonet-lvh", root)
    assert made.found["measurement-repeated"] == ["0XA (ivsd 1.2, 1.4)"]
    assert (made.rows["0XB"]["ivsd_n"], made.rows["0XB"]["ivsd_row"]) == (0, None)


def test_the_ends_of_the_measured_line_are_kept(make: Make, root: Path) -> None:
    text = HEADING + ROWS.replace("3,0XA,LVPWd,1.1,0,1,2,3,4", "3,0XA,LVPWd,1.1,0,11,12.5,13,")
    (root / "MeasurementsList.csv").write_text(text)
    row = make("echonet-lvh", root).rows["0XA"]
    assert [row[f"lvpwd_{end}_px"] for end in ("x1", "x2", "y1", "y2")] == [11, 12.5, 13, None]
    assert [row[f"ivsd_{end}_px"] for end in ("x1", "x2", "y1", "y2")] == [1, 2, 3, 4]  # of the first measurement
    (root / "MeasurementsList.csv").write_text("HashedFileName,Calc,CalcValue,split\n0XA,LVIDd,5,train\n")
    assert make("echonet-lvh", root).rows["0XA"]["lvidd_x1_px"] is None


def test_each_target_has_its_own_measured_frame(make: Make, root: Path) -> None:
    made = make("echonet-lvh", root)
    assert made.manifest.key_frames_of == {
        "0XA": [("ivsd", 2), ("lvidd", 1), ("lvpwd", 0)],
        "0XB": [("lvidd", 2)],
    }
    assert made.found["key-frame-outside"] == ["0XC (lvpwd 7 of 4 frames)"]


def test_the_flat_folder(make: Make, root: Path) -> None:
    batched = make("echonet-lvh", root)
    (root / "videos").mkdir()
    for path in list(root.glob("Batch*/*.avi")):
        path.rename(root / "videos" / path.name)
    flat = make("echonet-lvh", root)
    assert flat.column("path")["0XA"] == "videos/0XA.avi"
    assert flat.manifest.media_digest == batched.manifest.media_digest


def test_rows_that_disagree_and_values_that_are_none(make: Make, root: Path) -> None:
    more = "8,0XC,IVSd,,1,1,2,3,4,4,30,48,32,train\n9,0XE,IVSd,1.0,-,1,2,3,4,4,30,48,32,test\n"
    (root / "MeasurementsList.csv").write_text(HEADING + ROWS + more)
    made = make("echonet-lvh", root)
    assert made.found["row-differs"] == ["0XC (split: test, train)"]
    assert made.rows["0XC"]["split"] is None
    assert made.found["split-missing"] == ["0XC"]
    assert made.found["key-frame-unusable"] == ["0XE (ivsd -)"]
    assert made.found["row-without-file"] == ["0XE"]
    assert made.rows["0XC"]["ivsd_cm"] is None


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("LVIDd,5.0", "LVIDd,50", r"mixes units: 1 of 2 values .* 15 cm and look like millimetres: 0XA \(50\)"),
        ("LVPWd,0.9", "LVPWd,9", r"mixes units: 1 of 2 values .* millimetres: 0XC \(9\); multiply them by 0\.1"),
    ],
)
def test_millimetres_are_refused(make: Make, root: Path, before: str, after: str, message: str) -> None:
    (root / "MeasurementsList.csv").write_text(HEADING + ROWS.replace(before, after))
    with pytest.raises(ManifestError, match=message) as caught:
        make("echonet-lvh", root)
    assert caught.value.exit_code == 4


def test_one_outlier_in_hundreds_is_left_out_and_listed(make: Make, root: Path) -> None:
    many = "".join(f"9,0XZ{n},LVIDd,{4 + n / 100},1,1,2,3,4,4,30,48,32,train\n" for n in range(200))
    (root / "MeasurementsList.csv").write_text(HEADING + ROWS.replace("LVIDd,5.0", "LVIDd,50") + many)
    made = make("echonet-lvh", root)
    assert made.found["value-unusable"] == ["0XA (50)"]
    assert made.rows["0XA"]["lvidd_cm"] is None
    assert made.rows["0XZ7"]["lvidd_cm"] == pytest.approx(4.07)
    assert made.manifest.problems() == []


def test_patients_of_a_column_or_a_table_are_taken(make: Make, root: Path, write_csv: Writer) -> None:
    table = write_csv("HashedFileName,patient_id\n0XA,p\n0XB,p\n0XC,q\n")
    made = make("echonet-lvh", root, table=table)
    assert made.column("patient_id") == {"0XA": "p", "0XB": "p", "0XC": "q", "0XD": None}
    assert made.found["patient-missing"] == ["0XD"]
    assert made.manifest.patient_ids == "provided"
    assert "patient_id_in_table" not in made.manifest.fields
    assert [problem.rows for problem in made.manifest.problems()] == [("p (train, val)",)]
    lines = (HEADING + ROWS).splitlines()
    cells = ["PatientID", *"11112345"]
    cells[5] = "9"
    text = "".join(f"{line},{cell}\n" for line, cell in zip(lines, cells, strict=True))
    (root / "MeasurementsList.csv").write_text(text)
    made = make("echonet-lvh", root)
    assert made.column("patient_id") == {"0XA": "1", "0XB": "3", "0XC": "4", "0XD": "5"}
    assert made.found["row-differs"] == ["0XA (patient_id_in_table: 1, 9)"]


def test_options_that_have_no_meaning_here(make: Make, root: Path) -> None:
    with pytest.raises(UnknownNameError, match="leave out --label-column"):
        make("echonet-lvh", root, label_columns=("CalcValue",))
    with pytest.raises(UnknownNameError, match="leave out --column clip_id"):
        make("echonet-lvh", root, columns={"clip_id": "HashedFileName"})
    with pytest.raises(UnknownNameError, match="needs --root DIR"):
        make("echonet-lvh", None)
