from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.errors import ManifestError, StorageError, UnknownNameError
from manifests.splits import read_splits
from manifests.tables import NameIndex, found, infer_kind, is_kind, match_names, name_clips, read_table

Writer = Callable[..., Path]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("id,EF\na,55\nb,\n", "utf-8"),
        ("\ufeffid,EF\r\na,55\r\nb,\r\n", "utf-8"),
        ("id;EF\na;55\nb;\n", "utf-8"),
        ("id\tEF\na\t55\nb\t\n", "utf-8"),
        ('"id","EF"\n"a"," 55 "\n\n , \nb,""', "utf-8"),
        ("id,EF,\na,55,\nb,,\n", "utf-8"),
        ("id\tEF\r\na\t55\r\nb\t\r\n", "utf-16"),
        (",id,EF\n0,a,55\n1,b,\n", "utf-8"),
    ],
)
def test_the_spellings_of_csv_read_alike(write_csv: Writer, text: str, encoding: str) -> None:
    table = read_table(write_csv(text, encoding=encoding))
    assert table.columns == ("id", "EF")
    assert table.rows == (("a", "55"), ("b", ""))
    assert table.cells("EF") == ["55", ""]


def test_columns_without_a_heading_are_counted(write_csv: Writer) -> None:
    assert read_table(write_csv(",id\n0,a\n")).n_unnamed == 1


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "no heading"),
        (b"\n\n", "no heading"),
        (b"id,EF\na,55\nM\xfcller,61\n", "line 3 is no UTF-8"),
        (b"PK\x03\x04xlsx", "no text"),
        (b"id,EF\na\0,55\n", "no text"),
        (b"id,EF\na\n", "line 2 has 1 cells where the heading has 2"),
        (b"id,EF\na,55,61\n", "line 2 has 3 cells"),
        (b'id,EF\n"a,55\n', "no CSV"),
        (b'id,EF\n"a"b,55\n', "no CSV"),
        (b"id,E\x1bF\na,55\n", "control characters"),
        (b"id,EF\n" + b"a" * 200_000 + b",55\n", "line 2 is no CSV"),
    ],
)
def test_an_unreadable_table_is_one_sentence_and_exit_1(tmp_path: Path, payload: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(payload)
    with pytest.raises(StorageError, match=message) as caught:
        read_table(path)
    assert caught.value.exit_code == 1
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_is_exit_2(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="--table: there is no file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(UnknownNameError, match="is a folder"):
        read_table(tmp_path)


def test_headings_that_stand_twice_are_exit_4(write_csv: Writer) -> None:
    with pytest.raises(ManifestError, match="'EF' twice"):
        read_table(write_csv("id,EF,EF\na,55,61\n"))


def test_columns_are_found_by_name(write_csv: Writer) -> None:
    table = read_table(write_csv("Patient ID,FileName,view,View\np,a,A4C,x\n"))
    assert table.find_column(["patient_id"]) == "Patient ID"
    assert table.find_column(["path", "file_name"]) == "FileName"
    assert table.find_column(["view"]) == "view"
    assert table.find_column(["split"]) is None
    with pytest.raises(ManifestError, match="two columns that could be 'VIEW'"):
        table.find_column(["VIEW"])
    assert table.require_column("filename", option="--column path=filename") == "FileName"
    with pytest.raises(UnknownNameError, match="--column path=FileNam: .*did you mean 'FileName'"):
        table.require_column("FileNam", option="--column path=FileNam")


def test_decimal_commas_are_points_where_semicolons_separate(write_csv: Writer) -> None:
    table = read_table(write_csv("id;EF;code;n\n1,2;55,5;x;1\n2,1;60;1,y;2\n"))
    assert table.decimal_cells("EF") == ["55.5", "60"]
    assert table.cells("id") == ["1,2", "2,1"]
    assert table.decimal_cells("code") == ["x", "1,y"]
    mixed = read_table(write_csv("id;EF\na;1.055\nb;1,055\n"))
    assert mixed.decimal_cells("EF") == ["1.055", "1,055"]
    assert infer_kind(read_table(write_csv('id,EF\na,"55,5"\n')).decimal_cells("EF")) == "text"


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["55", "61.5", "n/a"], "number"),
        (["55", "n/a"], "number"),
        (["55", "inf", "-inf"], "number"),
        (["55", "x"], "text"),
        (["55", "60", "x"], "number"),
        (["1e2", "-.5", "+3."], "number"),
        (["0", "1", "", "0.0"], "boolean"),
        (["yes", "No", "TRUE", "?"], "boolean"),
        (["yes", "maybe", "perhaps"], "text"),
        (["1_000", "2_000"], "text"),
        (["0x10"], "text"),
        (["1e999", "5"], "text"),
        (["", ""], "text"),
        ([], "text"),
    ],
)
def test_what_a_column_is(cells: list[str], kind: str) -> None:
    assert infer_kind(cells) == kind


@given(st.text(max_size=8))
def test_a_cell_that_is_called_a_number_is_one(cell: str) -> None:
    if is_kind(cell, "number"):
        assert abs(float(cell)) < float("inf")


paths = st.lists(
    st.sampled_from(["a", "b", "a.avi", "b.mp4", "a.avi.avi", "p1/a.avi", "p1/a.dcm", "p1/a", "v.nii.gz", "v.nii"]),
    unique=True,
)


@given(paths)
def test_clip_ids_are_unique_and_as_short_as_they_can_be(listed: list[str]) -> None:
    ids = name_clips(listed)
    assert len(set(ids)) == len(ids)
    assert all(path.startswith(clip_id) for path, clip_id in zip(listed, ids, strict=True))
    if listed == ["p1/a.avi"]:
        assert ids == ["p1/a"]


def test_names_find_their_clips() -> None:
    index = NameIndex([["p1/a.avi", "p1/a"], ["p2/a.avi"], ["p2/c d.nii.gz"], ["IM0001"]])
    assert index.find("p1/a") == index.find("p1/a.avi") == index.find("./p1/a.avi") == (0,)
    assert index.find("p1\\a.avi") == (0,)
    assert index.find("/data/raw/p2/a.avi") == (1,)
    assert index.find("a.avi") == (0, 1)
    assert index.find("c d") == index.find(" c d.nii.gz ") == (2,)
    assert index.find("IM0001") == (3,)
    assert index.find("p1/c d") == ()
    assert index.find("p3/a.avi") == ()
    assert index.find("im0001") == ()
    assert NameIndex([["caf\u00e9.avi"]]).find("cafe\u0301") == (0,)


def test_texts_that_share_a_clip_match_none() -> None:
    index = NameIndex([["a.avi"], ["x/b.avi"], ["y/b.avi"]])
    assert match_names(["a", "a", "x/b", "", "zz"], index) == ([0, 0, 1, None, None], [])
    assert match_names(["p1/a", "p2/a", "b"], index) == ([None, None, None], ["b", "p1/a", "p2/a"])


def test_findings_count_what_they_list() -> None:
    assert found("kind", "clips are odd", []) == []
    (finding,) = found("kind", "clips are odd", ["a", "b"])
    assert (finding.message, finding.names) == ("2 clips are odd", ("a", "b"))


def test_a_splits_file_by_path(write_csv: Writer) -> None:
    text = "path,split\ndata/raw/x/p1/a.avi,TRAIN\nz.avi,test\np2/b,Validation\nc,\nc,\n"
    splits = read_splits(write_csv(text))
    assert splits.level == "clip"
    names = [["p1/a", "p1/a.avi"], ["p2/b", "p2/b.avi"], ["c"], ["d"]]
    assigned, findings = splits.assign(names, studies=[None] * 4, patients=[None] * 4)
    assert assigned == ["train", "val", None, None]
    assert {finding.kind: finding.names for finding in findings} == {
        "splits-unknown": ("z.avi",),
        "splits-missing": ("d",),
    }


@pytest.mark.parametrize(
    ("heading", "level"), [("patient_id", "patient"), ("Study ID", "study"), ("unique_id", "clip")]
)
def test_a_splits_file_by_another_id(write_csv: Writer, heading: str, level: str) -> None:
    splits = read_splits(write_csv(f"{heading};split\n1;train\n2;test\n9;val\n"))
    assert splits.level == level
    assigned, findings = splits.assign([["1"], ["2"], ["x"]], studies=["1", "2", None], patients=["1", "2", None])
    assert assigned == ["train", "test", None]
    assert {finding.kind: finding.names for finding in findings} == {
        "splits-unknown": ("9",),
        "splits-missing": ("x",),
    }


def test_bad_splits_files(write_csv: Writer, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="ids in two splits: a"):
        read_splits(write_csv("clip_id,split\na,train\na,TEST\n"))
    with pytest.raises(UnknownNameError, match="no column 'split'"):
        read_splits(write_csv("clip_id,fold\na,train\n"))
    with pytest.raises(UnknownNameError, match="no column of ids"):
        read_splits(write_csv("scan,split\na,train\n"))
    with pytest.raises(UnknownNameError, match="--splits: there is no file"):
        read_splits(tmp_path / "none.csv")
