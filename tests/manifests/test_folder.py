from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import EnvironmentFailure, ManifestError, StorageError, UnknownNameError
from embedstore.manifest import Manifest, RecipeOutcome, RecipeRequest, get_recipe
from manifests.folder.recipe import RECIPE

Writer = Callable[..., Path]


def make(root: Path | None = None, **arguments: Any) -> RecipeOutcome:
    return RECIPE.make(RecipeRequest(root=root, **arguments))


def rows(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in manifest.table.to_pylist()}


def kinds(outcome: RecipeOutcome) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.names for finding in outcome.findings}


@pytest.fixture
def clips(tmp_path: Path, write_avi: Writer, write_dicom: Writer, write_nifti: Writer, write_png: Writer) -> Path:
    root = tmp_path / "clinic"
    write_avi(root / "p1" / "a.avi", fps=25, n_frames=4)
    write_avi(root / "p2" / "b 1.AVI", fps=50, n_frames=6, seed=1)
    write_dicom(root / "p3" / "IM0001")
    write_nifti(root / "p3" / "c.nii.gz")
    write_png(root / "still.png")
    return root


# -- a folder alone -------------------------------------------------------------------------------------------


def test_a_folder_alone(clips: Path) -> None:
    outcome = make(clips)
    made = outcome.manifest
    assert made.problems() == []
    assert made.clip_ids == ["p1/a", "p2/b 1", "p3/IM0001", "p3/c", "still"]
    assert (made.name, made.patient_ids, made.ids, made.dataset.redistribution) == (
        "clinic",
        "unknown",
        "private",
        "ask",
    )
    assert made.recipe == "folder 1"
    assert outcome.root == clips.resolve()
    found = rows(made)
    for row in found.values():
        assert row["sha256"] == hashlib.sha256((clips / row["path"]).read_bytes()).hexdigest()
        assert row["patient_id"] is None
        assert (row["height"], row["width"]) == (32, 48)
    assert [found[clip_id]["n_frames"] for clip_id in made.clip_ids] == [4, 6, 3, 3, 1]
    assert [found[clip_id]["fps"] for clip_id in made.clip_ids] == [25, 50, 50, None, None]
    assert "fps_header" not in made.fields
    dicom = found["p3/IM0001"]
    assert (dicom["manufacturer"], dicom["model"], dicom["heart_rate_bpm"]) == ("Philips", "EPIQ", 61)
    assert (dicom["study_id"], dicom["spacing_x_mm"], dicom["spacing_y_mm"]) == ("1.2.1", 0.5, 0.4)
    assert kinds(outcome).keys() == {"patients-unknown", "split-drawn"}


def test_the_split_is_drawn_from_the_seed_and_says_so(clips: Path) -> None:
    made = make(clips).manifest
    assert made.split_rule == "drawn by clip, patients unknown: seed 0, 50/20/30 % train/val/test"
    assert set(made.column("split")) == {"train", "val", "test"}
    assert make(clips).manifest.id == made.id
    others = [make(clips, seed=seed).manifest for seed in range(1, 4)]
    assert all(other.media_digest == made.media_digest for other in others)
    assert len({other.annotations_digest for other in (made, *others)}) == 4


def test_worker_processes_find_the_same_and_report_progress(clips: Path) -> None:
    told: list[tuple[int, int]] = []
    here = make(clips).manifest
    beside = RECIPE.make(
        RecipeRequest(root=clips, n_workers=2), progress=lambda done, total: told.append((done, total))
    ).manifest
    assert beside.id == here.id
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_dicom_patients_count_where_every_file_has_one(
    tmp_path: Path, write_dicom: Writer, write_png: Writer
) -> None:
    root = tmp_path / "dicoms"
    for number, patient in enumerate(["P1", "P2", "P1", "P3", "P4"]):
        write_dicom(root / f"IM{number}", patient=patient, seed=number)
    made = make(root).manifest
    assert made.patient_ids == "derived(DICOM PatientID)"
    assert made.column("patient_id") == ["P1", "P2", "P1", "P3", "P4"]
    assert made.split_rule == "drawn by patient: seed 0, 50/20/30 % train/val/test"
    assert made.problems() == []

    write_png(root / "still.png")
    mixed = make(root)
    assert mixed.manifest.patient_ids == "unknown"
    assert set(mixed.manifest.column("patient_id")) == {None}
    assert any("5 of 6 files bear a DICOM PatientID" in finding.message for finding in mixed.findings)


def test_one_dicom_patient_everywhere_is_suspected(tmp_path: Path, write_dicom: Writer) -> None:
    for number in range(3):
        write_dicom(tmp_path / "d" / f"{number}.dcm", patient="ANON", seed=number)
    assert "patient-single" in kinds(make(tmp_path / "d"))


def test_content_counts_and_a_media_suffix_keeps_a_file_in(clips: Path) -> None:
    (clips / "notes.txt").write_text("not a clip")
    (clips / "text.avi").write_text("not a clip either")
    (clips / "empty.mp4").touch()
    (clips / "avi-without-suffix").write_bytes((clips / "p1" / "a.avi").read_bytes())
    (clips / ".hidden.avi").write_bytes((clips / "p1" / "a.avi").read_bytes())
    (clips / ".git").mkdir()
    (clips / ".git" / "a.avi").write_bytes(b"")
    (clips / "DICOMDIR").write_bytes((clips / "p3" / "IM0001").read_bytes())
    outcome = make(clips)
    found = rows(outcome.manifest)
    assert set(found) == {"p1/a", "p2/b 1", "p3/IM0001", "p3/c", "still", "text", "empty", "avi-without-suffix"}
    assert found["text"]["n_frames"] is None
    assert found["text"]["sha256"] == hashlib.sha256(b"not a clip either").hexdigest()
    assert found["avi-without-suffix"]["sha256"] == found["p1/a"]["sha256"]
    listed = kinds(outcome)
    assert listed["not-media"] == ("notes.txt",)
    assert [name.split(" (")[0] for name in listed["undecodable"]] == ["empty.mp4", "text.avi"]


def test_a_file_that_was_cut_short_breaks_no_rule(tmp_path: Path, write_dicom: Writer) -> None:
    path = write_dicom(tmp_path / "r" / "IM1", n_frames=2)
    path.write_bytes(path.read_bytes()[: -2 * 32 * 48])
    outcome = make(tmp_path / "r")
    assert rows(outcome.manifest)["IM1"]["n_frames"] is None
    assert outcome.manifest.problems() == []
    assert len(kinds(outcome)["undecodable"]) == 1


def test_colliding_names_keep_their_suffix(tmp_path: Path, write_avi: Writer, write_nifti: Writer) -> None:
    root = tmp_path / "r"
    write_avi(root / "a.avi")
    write_nifti(root / "a.nii.gz")
    write_avi(root / "b.avi")
    assert make(root).manifest.clip_ids == ["a.avi", "a.nii.gz", "b"]


def test_links_are_followed_only_within_the_root(clips: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.avi").write_bytes((clips / "p1" / "a.avi").read_bytes())
    (clips / "inside.avi").symlink_to(clips / "p1" / "a.avi")
    (clips / "outside.avi").symlink_to(elsewhere / "secret.avi")
    (clips / "folder").symlink_to(elsewhere)
    (clips / "loop").symlink_to(clips)
    (clips / "dangling.avi").symlink_to(clips / "none.avi")
    (clips / "self.avi").symlink_to(clips / "self.avi")
    os.mkfifo(clips / "pipe.avi")
    outcome = make(clips)
    assert outcome.manifest.clip_ids == ["inside", "p1/a", "p2/b 1", "p3/IM0001", "p3/c", "still"]
    assert kinds(outcome)["link-outside"] == ("dangling.avi", "folder", "loop", "outside.avi", "self.avi")


def test_names_that_are_no_text_are_left_out_and_listed(clips: Path) -> None:
    payload = (clips / "p1" / "a.avi").read_bytes()
    (clips / "esc\x1b[31m.avi").write_bytes(payload)
    Path(os.fsdecode(os.fsencode(clips) + b"/caf\xe9.avi")).write_bytes(payload)
    (clips / "cafe\u0301.avi").write_bytes(payload)
    outcome = make(clips)
    assert kinds(outcome)["name-encoding"] == ("caf\\udce9.avi", "esc\\x1b[31m.avi")
    found = rows(outcome.manifest)
    assert found["caf\u00e9"]["path"] == "cafe\u0301.avi"
    assert outcome.manifest.problems() == []


@pytest.mark.parametrize(
    ("name", "root", "made"), [(None, "my set", "my set"), ("lab-1", "my set", "lab-1"), (None, "a=b", "a-b")]
)
def test_the_name_of_the_data_set(tmp_path: Path, write_png: Writer, name: str | None, root: str, made: str) -> None:
    write_png(tmp_path / root / "a.png")
    assert make(tmp_path / root, name=name).manifest.name == made


@pytest.mark.parametrize("name", ["a=b", "a/b", "", " ", "a\nb", "a@b"])
def test_names_that_no_option_could_name_are_refused(tmp_path: Path, write_png: Writer, name: str) -> None:
    write_png(tmp_path / "r" / "a.png")
    with pytest.raises(UnknownNameError, match="--name"):
        make(tmp_path / "r", name=name)


def test_roots_without_clips(tmp_path: Path, clips: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for root, error, code, message in (
        (empty, EnvironmentFailure, 1, "the folder is empty"),
        (tmp_path / "none", UnknownNameError, 2, "there is no folder"),
        (clips / "still.png", UnknownNameError, 2, "is a file, not a folder"),
        (None, UnknownNameError, 2, "--root DIR, --table FILE or both"),
    ):
        with pytest.raises(error, match=message) as caught:
            make(root)
        assert caught.value.exit_code == code
        assert "\n" not in str(caught.value)
    (empty / "readme.txt").write_text("hello")
    with pytest.raises(EnvironmentFailure, match=r"none of its 1 files is AVI.*readme\.txt"):
        make(empty)
    (empty / "readme.txt").unlink()
    (empty / "link.avi").symlink_to(clips / "p1" / "a.avi")
    with pytest.raises(EnvironmentFailure, match="1 links lead outside"):
        make(empty)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read(clips: Path) -> None:
    (clips / "p1" / "a.avi").chmod(0)
    (clips / "p2").chmod(0)
    outcome = make(clips)
    (clips / "p2").chmod(0o700)
    assert kinds(outcome)["folder-unreadable"] == ("p2",)
    assert rows(outcome.manifest)["p1/a"]["sha256"] is None
    clips.chmod(0)
    with pytest.raises(StorageError, match="permission"):
        make(clips)
    clips.chmod(0o700)


# -- a folder and a table -------------------------------------------------------------------------------------

TABLE = """clip_id,MRN,EF,ESV,Severe AS,Comment,FPS,Split,View
p1/a,7,55.5,30,yes,fine,30,TRAIN,A4C
p2/b 1,8,,31,no,,,VAL,A2C
p3/IM0001,9,61,32,,poor window,,test,PLAX
"""


def test_a_table_names_patients_splits_and_labels(clips: Path, write_csv: Writer) -> None:
    outcome = make(clips, table=write_csv(TABLE), columns={"patient_id": "MRN"})
    made = outcome.manifest
    assert made.problems() == []
    assert made.patient_ids == "provided"
    assert made.split_rule == "provided"
    found = rows(made)
    assert set(found) == {"p1/a", "p2/b 1", "p3/IM0001", "p3/c", "still"}
    assert [found[clip_id]["patient_id"] for clip_id in made.clip_ids] == ["7", "8", "9", None, None]
    assert [found[clip_id]["split"] for clip_id in made.clip_ids] == ["train", "val", "test", None, None]
    assert [found[clip_id]["view"] for clip_id in made.clip_ids] == ["A4C", "A2C", "PLAX", None, None]
    assert [found[clip_id]["EF"] for clip_id in made.clip_ids] == [55.5, None, 61.0, None, None]
    assert [found[clip_id]["Severe AS"] for clip_id in made.clip_ids] == [True, False, None, None, None]
    assert [found[clip_id]["Comment"] for clip_id in made.clip_ids] == ["fine", None, "poor window", None, None]
    assert [found[clip_id]["fps"] for clip_id in made.clip_ids] == [30, 50, 50, None, None]
    assert [found[clip_id]["fps_header"] for clip_id in made.clip_ids] == [25, 50, 50, None, None]
    assert {name: (made.fields[name].role, made.fields[name].kind) for name in ("EF", "ESV", "Severe AS")} == {
        "EF": ("label", "number"),
        "ESV": ("label", "number"),
        "Severe AS": ("label", "boolean"),
    }
    assert made.fields["Comment"].role == made.fields["fps_header"].role == "extra"
    assert (made.fields["EF"].unit, made.fields["EF"].plausible) == ("%", (1.0, 100.0))
    assert made.labels() == ["view", "EF", "ESV", "Severe AS"]
    listed = kinds(outcome)
    assert listed["file-without-row"] == ("p3/c.nii.gz", "still.png")
    assert set(listed["columns"]) == {"MRN -> patient_id", "FPS -> fps", "Split -> split", "View -> view"}
    assert listed["labels"] == ("EF (number)", "ESV (number)", "Severe AS (boolean)")
    assert listed["split-missing"] == listed["patient-missing"] == ("p3/c", "still")
    assert next(finding for finding in outcome.findings if finding.kind == "unlabelled").message == (
        "3 of 5 clips have no EF"
    )


@pytest.mark.parametrize(
    ("heading", "spelling"),
    [
        ("path", "p1/a.avi"),
        ("FileName", "p1/a"),
        ("filename", "a.avi"),
        ("file", "a"),
        ("Video Path", "/mnt/x/clinic/p1/a.avi"),
        ("PATH", "p1\\a.avi"),
    ],
)
def test_a_path_column_finds_its_files(clips: Path, write_csv: Writer, heading: str, spelling: str) -> None:
    made = make(clips, table=write_csv(f"{heading},EF\n{spelling},55\n")).manifest
    assert rows(made)["p1/a"]["EF"] == 55
    assert rows(made)["p1/a"]["path"] == "p1/a.avi"
    assert len(made) == 5


def test_ids_of_the_table_stay_and_paths_match(clips: Path, write_csv: Writer) -> None:
    text = "clip_id,path,EF\n007,p1/a.avi,55\nstill,p2/b 1.AVI,60\nX9,gone/x.avi,61\n"
    outcome = make(clips, table=write_csv(text))
    found = rows(outcome.manifest)
    assert set(found) == {"007", "still", "X9", "p3/IM0001", "p3/c", "still.png"}
    assert found["007"]["path"] == "p1/a.avi"
    assert (found["X9"]["sha256"], found["X9"]["path"], found["X9"]["EF"]) == (None, "gone/x.avi", 61)
    assert kinds(outcome)["row-without-file"] == ("X9",)
    assert outcome.manifest.problems() == []


def test_ambiguous_names_match_nothing(tmp_path: Path, write_avi: Writer, write_csv: Writer) -> None:
    write_avi(tmp_path / "r" / "x" / "a.avi")
    write_avi(tmp_path / "r" / "y" / "a.avi", seed=1)
    outcome = make(tmp_path / "r", table=write_csv("file,EF\na.avi,55\n"))
    assert kinds(outcome)["ambiguous"] == ("a.avi",)
    assert kinds(outcome)["row-without-file"] == ("a",)
    assert outcome.manifest.clip_ids == ["a", "x/a", "y/a"]


@pytest.mark.parametrize("cell", ["n/a", "inf", "-", "55 %"])
def test_a_label_that_is_no_number_is_a_problem_by_clip(clips: Path, write_csv: Writer, cell: str) -> None:
    made = make(clips, table=write_csv(f"clip_id,EF\np1/a,{cell}\np2/b 1,55\n")).manifest
    assert [(problem.rule, problem.rows) for problem in made.problems()] == [("not-a-number", (f"p1/a ({cell})",))]


def test_a_fraction_is_no_percentage(clips: Path, write_csv: Writer) -> None:
    made = make(clips, table=write_csv("clip_id,LVEF\np1/a,0.55\np2/b 1,55\n")).manifest
    assert [(problem.rule, problem.rows) for problem in made.problems()] == [("implausible", ("p1/a (0.55)",))]


def test_what_a_person_names_a_label_is_one_and_no_other(clips: Path, write_csv: Writer) -> None:
    text = "clip_id,EF,severity,note,n,code,hr\np1/a,55,mild,x,1,007,61\np2/b 1,60,severe,2,n/a,008,70\n"
    table = write_csv(text)
    made = make(clips, table=table, label_columns=("severity", "ef"), columns={"heart_rate_bpm": "hr"}).manifest
    described = {name: (declared.role, declared.kind) for name, declared in made.fields.items()}
    assert described["severity"] == ("label", "category")
    assert described["EF"] == ("label", "number")
    assert described["note"] == described["n"] == described["code"] == ("extra", "text")
    assert described["heart_rate_bpm"] == ("extra", "number")
    assert rows(made)["p1/a"]["code"] == "007"
    assert rows(made)["p1/a"]["heart_rate_bpm"] == 61
    assert made.problems() == []
    labelled = make(clips, table=table, label_columns=("hr",), columns={"heart_rate_bpm": "hr"}).manifest
    assert labelled.fields["heart_rate_bpm"].role == "label"


def test_numbers_that_name_somebody_are_no_labels(clips: Path, write_csv: Writer) -> None:
    heading = "clip_id,MRN,scan id,examID,code,LVID,LVIDd,Unnamed: 0"
    text = f"{heading}\np1/a,7,1,1,007,4.1,5.2,0\np2/b 1,8,2,2,010,4.2,5.3,3\n"
    made = make(clips, table=write_csv(text)).manifest
    assert made.labels() == ["LVID", "LVIDd"]
    assert made.fields["MRN"].kind == made.fields["code"].kind == "text"


def test_a_table_does_not_overrule_the_file(clips: Path, write_csv: Writer) -> None:
    text = f"clip_id,number_of_frames,FrameHeight,sha256,Height\np1/a,99,32,{'0' * 64},171\n"
    outcome = make(clips, table=write_csv(text))
    row = rows(outcome.manifest)["p1/a"]
    assert (row["n_frames"], row["height"], row["Height"]) == (4, 32, 171)
    assert row["sha256"] != "0" * 64
    assert kinds(outcome)["table-differs"] == ("p1/a (sha256)", "p1/a (n_frames 99, in the file 4)")


def test_height_beside_width_is_a_picture_s(clips: Path, write_csv: Writer) -> None:
    outcome = make(clips, table=write_csv("clip_id,Width,Height,Frames\np1/a,48,32,4\np2/b 1,48,33,6\n"))
    assert outcome.manifest.labels() == []
    assert rows(outcome.manifest)["p2/b 1"]["height"] == 32
    assert kinds(outcome)["table-differs"] == ("p2/b 1 (height 33, in the file 32)",)


def test_columns_that_bear_a_taken_name_are_renamed(clips: Path, write_csv: Writer) -> None:
    text = "scan,clip_id,key_frames,fps_header,fps_header_in_table\np1/a,5,1.5,2.5,3.5\n"
    made = make(clips, table=write_csv(text), columns={"clip_id": "scan"}).manifest
    row = rows(made)["p1/a"]
    assert row["clip_id_in_table"] == "5"
    assert row["key_frames_in_table"] == 1.5
    assert {row["fps_header_in_table"], row["fps_header_in_table_in_table"]} == {2.5, 3.5}
    assert row["key_frames"] == []
    renamed = make(clips, table=write_csv("clip_id,EF,ef2\np1/a,50,60\n"), columns={"EF": "ef2"}).manifest
    assert (rows(renamed)["p1/a"]["EF"], rows(renamed)["p1/a"]["EF_in_table"]) == (60, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": {"patient_id": "MNR"}}, r"--column patient_id=MNR: .*did you mean 'MRN'"),
        ({"label_columns": ("EV",)}, r"--label-column: .*did you mean"),
        ({"label_columns": ("Split",)}, r"--label-column Split: that column is 'split' here"),
    ],
)
def test_unknown_columns_are_exit_2(clips: Path, write_csv: Writer, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message) as caught:
        make(clips, table=write_csv(TABLE), **arguments)
    assert caught.value.exit_code == 2


def test_options_that_need_a_table_say_so(clips: Path, write_csv: Writer) -> None:
    with pytest.raises(UnknownNameError, match="give --table FILE too"):
        make(clips, label_columns=("EF",))
    with pytest.raises(UnknownNameError, match="no column clip_id, path or filename"):
        make(clips, table=write_csv("scan,EF\np1/a,5\n"))
    with pytest.raises(StorageError, match="line 2"):
        make(clips, table=write_csv("clip_id,EF\np1/a\n"))


def test_broken_rules_reach_the_manifest(clips: Path, write_csv: Writer) -> None:
    text = (
        "clip_id,patient_id,split,EF\np1/a,p,train,50\np2/b 1,p,test,51\np3/c,q,fold9,52\np3/c,q,val,53\n,r,val,54\n"
    )
    made = make(clips, table=write_csv(text)).manifest
    assert {problem.rule: problem.rows for problem in made.problems()} == {
        "clip-id-empty": ("row 0",),
        "clip-id-duplicate": ("p3/c",),
        "split-unknown": ("p3/c (fold9)",),
        "patient-in-two-splits": ("p (test, train)",),
    }


def test_tags_that_contradict_the_table_are_reported(tmp_path: Path, write_dicom: Writer, write_csv: Writer) -> None:
    for number, patient in enumerate(["T1", "T1", "T2"]):
        write_dicom(tmp_path / "r" / f"{number}.dcm", patient=patient, seed=number)
    outcome = make(tmp_path / "r", table=write_csv("clip_id,patient_id\n0,A\n1,B\n2,C\n"))
    assert outcome.manifest.column("patient_id") == ["A", "B", "C"]
    assert kinds(outcome)["patient-differs"] == ("T1 (A, B)",)


def test_a_table_inside_the_root_is_no_clip(clips: Path) -> None:
    table = clips / "labels.csv"
    table.write_text("clip_id,EF\np1/a,55\n")
    outcome = make(clips, table=table)
    assert "not-media" not in kinds(outcome)
    assert rows(outcome.manifest)["p1/a"]["EF"] == 55


# -- splits files ---------------------------------------------------------------------------------------------


def test_a_splits_file_counts_before_the_table(clips: Path, write_csv: Writer) -> None:
    splits = write_csv("path,split\np1/a.avi,test\np2/b 1,Train\nnone.avi,val\n", name="splits.csv")
    outcome = make(clips, table=write_csv(TABLE), splits=splits)
    assert rows(outcome.manifest)["p1/a"]["split"] == "test"
    assert outcome.manifest.column("split") == ["test", "train", None, None, None]
    assert outcome.manifest.split_rule == "provided (splits file)"
    listed = kinds(outcome)
    assert listed["splits-unknown"] == ("none.avi",)
    assert listed["splits-missing"] == ("p3/IM0001", "p3/c", "still")
    assert set(listed["split-differs"]) == {
        "p1/a (train, now test)",
        "p2/b 1 (val, now train)",
        "p3/IM0001 (test, now none)",
    }


def test_a_splits_file_by_patient(clips: Path, write_csv: Writer) -> None:
    splits = write_csv("patient_id,split\n7,train\n8,val\n9,test\n", name="splits.csv")
    made = make(clips, table=write_csv(TABLE), columns={"patient_id": "MRN"}, splits=splits).manifest
    assert made.column("split") == ["train", "val", "test", None, None]
    with pytest.raises(ManifestError, match="two splits"):
        make(clips, splits=write_csv("path,split\np1/a,train\np1/a,val\n", name="bad.csv"))


# -- a table alone --------------------------------------------------------------------------------------------


def test_a_table_alone_is_a_manifest_for_vectors(write_csv: Writer) -> None:
    outcome = make(table=write_csv("clip_id;patient_id;EF;frame_height\na;p;55,5;\nb;q;60;112\n", name="echo.csv"))
    made = outcome.manifest
    assert (made.name, outcome.root, made.clip_ids, made.problems()) == ("echo", None, ["a", "b"], [])
    assert made.column("EF") == [55.5, 60]
    assert made.column("height") == [None, 112]
    assert made.column("sha256") == [None, None]
    assert made.patient_ids == "provided"
    assert "row-without-file" not in kinds(outcome)


def test_a_table_alone_takes_its_ids_from_paths(write_csv: Writer) -> None:
    made = make(table=write_csv("FileName,FPS,n_frames\nx/a.avi,50,9\n/abs/b.nii.gz,25,8\n")).manifest
    assert made.clip_ids == ["/abs/b", "x/a"]
    assert made.column("path") == [None, "x/a.avi"]
    assert made.column("fps") == [25, 50]
    assert "fps_header" not in made.fields
    with pytest.raises(EnvironmentFailure, match="no row"):
        make(table=write_csv("clip_id,EF\n"))


def test_the_recipe_is_found_by_name() -> None:
    assert get_recipe("folder") is RECIPE
    with pytest.raises(UnknownNameError, match="did you mean 'folder'"):
        get_recipe("foldr")
