from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import ManifestError, StorageError, UnknownNameError

Writer = Callable[..., Path]
Make = Callable[..., Any]

HEADING = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split\n"
ROWS = """0X1A,55.5,40,90,32,48,50,4,TRAIN
0X2B.avi,30,60,86,32,48,25,4,VAL
0X3C,61,30,77,32,48,50,4,TEST
"""
# Chords of two frames: the long axis first, then two chords across; frame 3 has the larger area.
TRACINGS = """FileName,X1,Y1,X2,Y2,Frame
0X1A.avi,5,0,5,9,1
0X1A.avi,0,0,4,0,1
0X1A.avi,0,2,4,2,1
0X1A.avi,5,0,5,9,3
0X1A.avi,0,0,8,0,3
0X1A.avi,0,2,8,2,3
"""


@pytest.fixture
def root(tmp_path: Path, write_avi: Writer) -> Path:
    folder = tmp_path / "EchoNet-Dynamic"
    for seed, name in enumerate(["0X1A", "0X2B", "0X3C"]):
        write_avi(folder / "Videos" / f"{name}.avi", seed=seed, fps=50)
    (folder / "FileList.csv").write_text(HEADING + ROWS)
    (folder / "VolumeTracings.csv").write_text(TRACINGS)
    return folder


def test_the_layout_as_distributed(make: Make, root: Path) -> None:
    made = make("echonet-dynamic", root)
    assert made.manifest.problems() == []
    assert made.manifest.clip_ids == ["0X1A", "0X2B", "0X3C"]
    assert made.column("split") == {"0X1A": "train", "0X2B": "val", "0X3C": "test"}
    assert made.column("lvef_pct") == {"0X1A": 55.5, "0X2B": 30, "0X3C": 61}
    first = made.rows["0X1A"]
    assert first["sha256"] == hashlib.sha256((root / "Videos/0X1A.avi").read_bytes()).hexdigest()
    assert (first["path"], first["view"], first["modality"]) == ("Videos/0X1A.avi", "A4C", "2d")
    assert (first["esv_ml"], first["edv_ml"], first["n_frames"], first["fps"]) == (40, 90, 4, 50)
    assert made.column("fps") == {"0X1A": 50, "0X2B": 25, "0X3C": 50}
    assert made.column("fps_header") == dict.fromkeys(made.rows, 50)
    assert made.column("source_row") == {"0X1A": 0, "0X2B": 1, "0X3C": 2}
    assert made.column("patient_id") == {name: name for name in made.rows}
    assert made.manifest.patient_ids.startswith("one-clip-per-patient(")
    assert made.manifest.split_rule.startswith("official")
    assert made.manifest.recipe == "echonet-dynamic 1"
    assert made.manifest.labels() == ["view", "lvef_pct", "esv_ml", "edv_ml"]
    facts = made.manifest.dataset
    assert (facts.name, facts.redistribution, facts.ids) == ("echonet-dynamic", "no", "public")
    assert made.outcome.root == root.resolve()


def test_the_larger_traced_area_is_end_diastole(make: Make, root: Path) -> None:
    made = make("echonet-dynamic", root)
    assert made.manifest.key_frames_of == {"0X1A": [("ed", 3), ("es", 1)]}
    assert made.found["key-frames-missing"] == ["0X2B", "0X3C"]


def test_tracings_that_are_no_pair_are_listed(make: Make, root: Path) -> None:
    more = "0X2B.avi,0,0,4,0,2\n0X3C.avi,0,0,4,0,2\n0X3C.avi,0,0,4,0,9\n0X9Z.avi,0,0,4,0,1\n0X9Z.avi,0,0,4,0,2\n"
    (root / "VolumeTracings.csv").write_text(TRACINGS + more)
    made = make("echonet-dynamic", root)
    assert made.found["tracing-unusable"] == [
        "0X2B (1 traced frames)",
        "0X3C (both traced areas are equal)",
        "0X9Z (both traced areas are equal)",
    ]
    (root / "VolumeTracings.csv").write_text(TRACINGS.replace(",3\n", ",40\n"))
    assert make("echonet-dynamic", root).found["key-frame-outside"] == ["0X1A (ed 40 of 4 frames)"]
    (root / "VolumeTracings.csv").unlink()
    assert make("echonet-dynamic", root).found["tracings-absent"] == ["VolumeTracings.csv"]


def test_nothing_is_dropped_silently(make: Make, root: Path, write_avi: Writer) -> None:
    (root / "Videos" / "0X2B.avi").unlink()
    write_avi(root / "Videos" / "0X7Y.avi", seed=7)
    (root / "Videos" / "0X8Y.avi").write_bytes((root / "Videos" / "0X3C.avi").read_bytes())
    (root / "Videos" / "thumbs.db").write_bytes(b"x")
    (root / "readme.txt").write_text("hello")
    more = (
        "0X3C,62,30,77,32,48,50,4,TEST\n0X8Y,,,,32,48,50,4,TEST\n,50,,,32,48,50,4,TEST\n0X4D,n/a,,,32,48,50,4,FOO\n"
    )
    (root / "FileList.csv").write_text(HEADING + ROWS + more)
    made = make("echonet-dynamic", root)
    assert set(made.rows) == {"0X1A", "0X2B", "0X3C", "0X4D", "0X8Y"}
    assert made.rows["0X3C"]["lvef_pct"] == 61
    assert made.found["row-without-file"] == ["0X2B", "0X4D"]
    assert made.message("row-without-file").startswith("2 of 5 clips have no file; is the download complete?")
    assert made.found["file-without-row"] == ["Videos/0X7Y.avi"]
    assert made.found["not-recognised"] == ["Videos/thumbs.db"]
    assert made.found["row-repeated"] == ["0X3C (FileList.csv row 4, with other values)"]
    assert made.found["row-unnamed"] == ["FileList.csv row 6"]
    assert made.found["content-duplicate"] == ["0X3C = 0X8Y"]
    assert made.found["value-unusable"] == ["0X4D (n/a)"]
    assert made.found["unlabelled"] == ["0X8Y", "0X4D"]
    assert [problem.rule for problem in made.manifest.problems()] == ["split-unknown"]


def test_a_damaged_file_and_a_table_that_is_wrong(make: Make, root: Path) -> None:
    (root / "Videos" / "0X2B.avi").write_bytes(b"not a video")
    (root / "FileList.csv").write_text(
        HEADING + ROWS.replace("0X1A,55.5,40,90,32,48,50,4", "0X1A,55.5,40,90,32,48,0,99")
    )
    made = make("echonet-dynamic", root)
    assert made.found["undecodable"][0].startswith("Videos/0X2B.avi (")
    assert made.found["table-differs"] == ["0X1A (n_frames 99, in the file 4)"]
    assert made.found["value-impossible"] == ["0X1A (fps 0)"]
    assert (made.rows["0X1A"]["n_frames"], made.rows["0X1A"]["fps"]) == (4, 50)
    assert made.manifest.problems() == []


def test_copies_of_a_file_are_one_clip_and_other_contents_none(make: Make, root: Path, write_avi: Writer) -> None:
    (root / "copy").mkdir()
    (root / "copy" / "0X1A.avi").write_bytes((root / "Videos" / "0X1A.avi").read_bytes())
    write_avi(root / "copy" / "0X2B.avi", seed=99)
    made = make("echonet-dynamic", root)
    assert made.rows["0X1A"]["path"] == "Videos/0X1A.avi"
    assert made.found["file-copy"] == ["copy/0X1A.avi"] or made.found["file-copy"] == ["Videos/0X1A.avi"]
    assert made.found["ambiguous"] == ["0X2B (Videos/0X2B.avi, copy/0X2B.avi)"]
    assert made.rows["0X2B"]["sha256"] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ("0.55", "0.3", "0.61"),
            r"is in another unit: 3 of 3 values are outside 1 to 100 % and look like fractions",
        ),
        (("0.55", "30", "61"), r"mixes units: 1 of 3 values .* of 1: 0X1A \(0\.55\); multiply them by 100"),
    ],
)
def test_fractions_are_refused_with_the_hint(make: Make, root: Path, values: tuple[str, ...], message: str) -> None:
    text = ROWS
    for before, after in zip(("55.5", "30,60", "61,30"), values, strict=True):
        text = text.replace(before, after + before.partition(",")[1] + before.partition(",")[2], 1)
    (root / "FileList.csv").write_text(HEADING + text)
    with pytest.raises(ManifestError, match=message) as caught:
        make("echonet-dynamic", root)
    assert caught.value.exit_code == 4
    assert "FileList.csv, column EF" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_implausible_value_is_left_to_the_manifest(make: Make, root: Path) -> None:
    (root / "FileList.csv").write_text(HEADING + ROWS.replace("61,30", "161,30"))
    made = make("echonet-dynamic", root)
    assert [(problem.rule, problem.rows) for problem in made.manifest.problems()] == [
        ("implausible", ("0X3C (161)",))
    ]


def test_a_root_above_and_a_semicolon_table(make: Make, root: Path) -> None:
    text = (HEADING + ROWS).replace(",", ";").replace("55.5", "55,5")
    (root / "FileList.csv").write_text("\ufeff" + text)
    made = make("echonet-dynamic", root.parent)
    assert made.rows["0X1A"]["path"] == "EchoNet-Dynamic/Videos/0X1A.avi"
    assert made.rows["0X1A"]["lvef_pct"] == 55.5
    assert set(made.rows) == {"0X1A", "0X2B", "0X3C"}


def test_tables_without_videos_still_serve_ingested_vectors(make: Make, root: Path) -> None:
    for path in (root / "Videos").iterdir():
        path.unlink()
    made = make("echonet-dynamic", root, name="dynamic-vectors")
    assert made.manifest.problems() == []
    assert made.manifest.name == "dynamic-vectors"
    assert made.message("row-without-file").startswith("3 of 3 clips have no file below the root")


def test_bad_tables_are_one_sentence(make: Make, root: Path) -> None:
    (root / "FileList.csv").write_text("FileName,ESV\n0X1A,3\n")
    with pytest.raises(UnknownNameError, match=r"FileList\.csv has no column 'EF' \(it has FileName, ESV\)"):
        make("echonet-dynamic", root)
    (root / "FileList.csv").write_text(HEADING + "0X1A,55\n")
    with pytest.raises(StorageError, match="line 2 has 2 cells"):
        make("echonet-dynamic", root)
    (root / "FileList.csv").write_text(HEADING + ROWS)
    (root / "old").mkdir()
    (root / "old" / "FileList.csv").write_text(HEADING)
    with pytest.raises(UnknownNameError, match=r"holds 2 files FileList\.csv"):
        make("echonet-dynamic", root)


# -- patients and splits from elsewhere -----------------------------------------------------------------------


def add_column(root: Path, heading: str, cells: list[str]) -> None:
    lines = (HEADING + ROWS).splitlines()
    text = "".join(f"{line},{cell}\n" for line, cell in zip(lines, [heading, *cells], strict=True))
    (root / "FileList.csv").write_text(text)


def test_a_patient_column_that_disagrees_is_kept_beside(make: Make, root: Path) -> None:
    add_column(root, "PatientID", ["7", "7", "8"])
    made = make("echonet-dynamic", root)
    assert made.found["patient-differs"] == ["7 of the table (0X1A, 0X2B)"]
    assert made.column("patient_id_in_table") == {"0X1A": "7", "0X2B": "7", "0X3C": "8"}
    assert made.column("patient_id") == {name: name for name in made.rows}
    assert made.manifest.problems() == []
    taken = make("echonet-dynamic", root, columns={"patient_id": "PatientID"})
    assert taken.column("patient_id") == {"0X1A": "7", "0X2B": "7", "0X3C": "8"}
    assert taken.manifest.patient_ids == "provided"
    assert [problem.rule for problem in taken.manifest.problems()] == ["patient-in-two-splits"]
    with pytest.raises(UnknownNameError, match="--column patient_id=MRN: .* has no column 'MRN'"):
        make("echonet-dynamic", root, columns={"patient_id": "MRN"})


def test_a_patient_column_that_agrees_says_nothing(make: Make, root: Path) -> None:
    add_column(root, "patient", ["a", "b", "c"])
    assert "patient-differs" not in make("echonet-dynamic", root).found


def test_patients_of_a_table_of_the_user(make: Make, root: Path, write_csv: Writer) -> None:
    table = write_csv("file,patient_id\n0X1A.avi,p\n0X2B,p\n0X66,q\n")
    made = make("echonet-dynamic", root, table=table)
    assert made.found["patient-differs"] == ["p of the table (0X1A, 0X2B)"]
    assert made.found["table-unknown"] == ["0X66"]
    assert made.column("patient_id_in_table") == {"0X1A": "p", "0X2B": "p", "0X3C": None}
    with pytest.raises(UnknownNameError, match="no column of patients"):
        make("echonet-dynamic", root, table=write_csv("file,EF\n0X1A,5\n"))
    with pytest.raises(UnknownNameError, match="--table: .* no column of clips"):
        make("echonet-dynamic", root, table=write_csv("scan,patient_id\n0X1A,5\n"))


def test_a_splits_file_that_covers_some_rows(make: Make, root: Path, write_csv: Writer) -> None:
    splits = write_csv("FileName,split\n0X1A.avi,test\n0X2B,val\n0X77,train\n", name="splits.csv")
    made = make("echonet-dynamic", root, splits=splits)
    assert made.column("split") == {"0X1A": "test", "0X2B": "val", "0X3C": None}
    assert made.found["splits-missing"] == ["0X3C"]
    assert made.found["splits-unknown"] == ["0X77"]
    assert made.found["split-differs"] == ["0X1A (train, now test)", "0X3C (test, now none)"]
    assert made.manifest.split_rule == "provided (splits file)"


def test_a_table_without_a_row_is_no_data_set(make: Make, root: Path) -> None:
    (root / "FileList.csv").write_text(HEADING)
    with pytest.raises(UnknownNameError, match=r"names no clip of 'echonet-dynamic': .* is the download complete\?"):
        make("echonet-dynamic", root)
