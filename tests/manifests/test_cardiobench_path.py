"""Every data set of the benchmark: raw layout, manifest, ingested vectors, probe, files written and read again."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest, Store
from embedstore.cli.contract import run
from embedstore.cli.main import program as embedstore_program
from evaltools.cardiobench import statistics
from evaltools.cardiobench.export import export_cardiobench, exported_of, read_results
from evaltools.cardiobench.ground_truth import GROUND_TRUTH
from evaltools.cardiobench.imported import import_predictions
from evaltools.cardiobench.numbers import file_order
from evaltools.cli.main import program as evaltools_program
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.result import Result
from evaltools.selection import sets_of
from evaltools.task import get_task

Writer = Callable[..., Path]
Make = Callable[..., Any]
QUICK = ProbeOptions(draws=0, controls=False, near_duplicates=False, statistics="cardiobench")
DRAWS = 20
SPLITS = ("train", "train", "train", "val", "test", "test")


def _split(number: int) -> str:
    return SPLITS[number % len(SPLITS)]


def _dynamic(root: Path, write: dict[str, Writer]) -> dict[str, Any]:
    lines = ["FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"]
    for at in range(30):
        lines.append(f"0X{at:02X},{40 + at},30,80,112,112,50,174,{_split(at).upper()}")
    (root / "FileList.csv").write_text("\n".join(lines) + "\n")
    return {}


def _pediatric(root: Path, write: dict[str, Writer]) -> dict[str, Any]:
    for view in ("A4C", "PSAX"):
        (root / view).mkdir()
        lines = ["FileName,EF,Sex,Age,Weight,Height,Split"]
        for at in range(30):
            fold = {"train": 5, "val": 1, "test": 0}[_split(at)]
            name = f"CR{at:02d}-CR{view}-000001.avi"
            lines.append(f"{name},{40 + at},{'FM'[at % 2]},{at % 18},{20 + at},{100 + at},{fold}")
        (root / view / "FileList.csv").write_text("\n".join(lines) + "\n")
    return {}


def _lvh(root: Path, write: dict[str, Writer]) -> dict[str, Any]:
    lines = ["HashedFileName,Calc,CalcValue,Frame,X1,X2,Y1,Y2,Frames,FPS,Width,Height,split"]
    for at in range(30):
        for calc, value in (("LVIDd", 4 + at / 20), ("IVSd", 1 + at / 50)):
            lines.append(f"0X{29 - at:02X},{calc},{value},3,1,2,3,4,60,50,100,80,{_split(at)}")
            if calc == "LVIDd" and at == 4:  # measured twice
                lines.append(f"0X{29 - at:02X},{calc},{value + 1},5,1,2,3,4,60,50,100,80,{_split(at)}")
    for at in reversed(range(29)):  # in another order, and the last clip, of test, has none
        lines.append(f"0X{29 - at:02X},LVPWd,{0.8 + at / 50},3,1,2,3,4,60,50,100,80,{_split(at)}")
    (root / "MeasurementsList.csv").write_text("\n".join(lines) + "\n")
    return {}


def _camus(root: Path, write: dict[str, Writer]) -> dict[str, Any]:
    listed: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for at in range(30):
        patient = f"patient{at:04d}"
        listed[_split(at)].append(patient)
        for view in ("2CH", "4CH"):
            own = root / "database_nifti" / patient
            write["nifti"](own / f"{patient}_{view}_half_sequence.nii.gz", seed=2 * at + (view == "4CH"))
            quality = ("Good", "Poor")[at % 2 if view == "2CH" else 0]
            (own / f"Info_{view}.cfg").write_text(
                f"ED: 1\nES: 3\nNbFrame: 3\nSex: {'FM'[at % 2]}\nAge: {40 + 2 * at}\nImageQuality: {quality}\n"
                f"EF: {40 + at}\nFrameRate: 40\n"
            )
    (root / "database_split").mkdir()
    for split, name in (("train", "training"), ("val", "validation"), ("test", "testing")):
        (root / "database_split" / f"subgroup_{name}.txt").write_text("\n".join(listed[split]) + "\n")
    return {}


def _cardiacnet(disease: str) -> Callable[[Path, dict[str, Writer]], dict[str, Any]]:
    def write_layout(root: Path, write: dict[str, Writer]) -> dict[str, Any]:
        folder = root / f"CardiacNet-{disease}"
        for at in range(24):
            for number, name in ((at, disease), (at + 40, f"Non-{disease}")):
                parts = (name, f"{number:03d}_image.nii", f"patient-{number}-4_image.nii")
                write["nifti"](folder.joinpath(*parts), seed=number)
        write["nifti"](folder / f"Non-{disease}" / "090_image.nii" / "PHI01.nii", seed=99)
        return {}

    return write_layout


def _hmc_qu(root: Path, write: dict[str, Writer]) -> dict[str, Any]:
    for view in ("A2C", "A4C"):
        lines = ["ECHO,SEG1,SEG2"]
        for at in range(1, 41):
            name = f"ES000{at}_CH2_1" if view == "A2C" else f"ES000{at} N_4CH_2"
            lines.append(f"{name},non-MI,{'MI' if at % 2 or (at == 8 and view == 'A4C') else 'non-MI'}")
        (root / f"{view}.csv").write_text("\n".join(lines) + "\n")
    return {}


def _segrwma(root: Path, write: dict[str, Writer]) -> dict[str, Any]:
    header = "patient_id,path,modality,view,n_frames,first_annotated_frame_index,split,abnormal,patient_view_id"
    lines = [header]
    for at in range(36):
        for mode in ("2D", "LVO"):
            for view in ("A2C", "A3C", "A4C"):
                path = f"data/raw/Regional/wallMotion/patient{at}-{mode}-{view}_image.nii.gz"
                lines.append(f"patient{at},{path},{mode},{view},60,12,{_split(at)},{at // 6 % 2},patient{at}_{view}")
    (root / "wallMotion").mkdir()
    write["nifti"](root / "wallMotion" / "patient0-2D-A2C_image.nii.gz")
    splits = root.parent / "segrwma_split.csv"
    splits.write_text("\n".join(lines) + "\n")
    return {"splits": splits}


def _tmed2(root: Path, write: dict[str, Writer]) -> dict[str, Any]:
    labels, splits = ["query_key,view_label,diagnosis_label"], ["query_key,view_label,diagnosis_classifier_split"]
    for at in range(48):
        grade = ("no_AS", "severe_AS")[at // 6 % 2]
        views = ["PLAX", "PSAX", "A4C", "A2C"] if at != 5 else ["A4C", "A2C"]
        views += ["A4CorA2CorOther"] if grade != "no_AS" else []
        for number, view in enumerate(views):
            key = f"{1000 + at}s1_{number}.png"
            labels.append(f"{key},{view},{grade}")
            splits.append(f"{key},{view},{_split(at)}")
    (root / "labels_per_image.csv").write_text("\n".join(labels) + "\n")
    (root / "DEV479").mkdir()
    (root / "DEV479" / "TMED2_fold0_labeledpart.csv").write_text("\n".join(splits) + "\n")
    write["png"](root / "view_and_diagnosis_labeled_set" / "labeled" / "1000s1_0.png")
    return {}


LAYOUTS = {
    "echonet-dynamic": (_dynamic, ["lvef"]),
    "echonet-pediatric": (_pediatric, ["lvef", "view"]),
    "echonet-lvh": (_lvh, ["ivsd", "lvidd", "lvpwd"]),
    "camus": (_camus, ["lvef", "view"]),
    "cardiacnet-asd": (_cardiacnet("ASD"), ["asd"]),
    "cardiacnet-pah": (_cardiacnet("PAH"), ["pah"]),
    "hmc-qu": (_hmc_qu, ["stemi", "view"]),
    "segrwma": (_segrwma, ["rwma", "view"]),
    "tmed2": (_tmed2, ["as", "as3", "view"]),
}
# File below predictions, its header, the columns of its ground truth.
_VIEWS = "view_pred,prob_A2C,prob_A3C,prob_A4C,prob_PSAX,prob_PLAX"
FILES = {
    "echonet-dynamic": {"EchoNet-Dynamic/EF/mine-ingested.csv": "FileName,EF_pred"},
    "echonet-pediatric": {
        "EchoNet-Pediatric/EF/mine-ingested.csv": "FileName,EF_pred,view",
        "EchoNet-Pediatric/view/mine-ingested.csv": f"FileName,{_VIEWS}",
    },
    "echonet-lvh": {
        f"EchoNet-LVH/{name}/mine-ingested.csv": f"HashedFileName,{name}_pred" for name in ("IVSd", "LVIDd", "LVPWd")
    },
    "camus": {
        "CAMUS/EF/mine-ingested.csv": "patient_id,EF_pred",
        "CAMUS/view/mine-ingested.csv": f"unique_id,{_VIEWS}",
    },
    "cardiacnet-asd": {"CardiacNet/ASD/mine-ingested.csv": "unique_id,asd_pred,prob_asd"},
    "cardiacnet-pah": {"CardiacNet/PAH/mine-ingested.csv": "unique_id,pah_pred,prob_pah"},
    "hmc-qu": {
        "HMCQU/stemi/mine-ingested.csv": ",stemi_pred,unique_id,view",
        "HMCQU/view/mine-ingested.csv": f"unique_id,{_VIEWS}",
    },
    "segrwma": {
        **{
            f"segRWMA/rwma/mine-ingested_{view}.csv": "patient_id,prob_rwma,rwma_pred"
            for view in ("a2c", "a3c", "a4c")
        },
        "segRWMA/view/mine-ingested.csv": f"patient_view_id,{_VIEWS}",
    },
    "tmed2": {
        "TMED2/AS/mine-ingested.csv": "study_id,as_pred,prob_as",
        "TMED2/AS/mine-ingested_image.csv": "query_key,as_pred,prob_as",
        "TMED2/view/mine-ingested.csv": f"query_key,{_VIEWS},prob_Other",
    },
}
TRUTH = {
    "echonet-dynamic": {
        "EchoNet-Dynamic/FileList.csv": "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"
    },
    "echonet-pediatric": {"echonet_pediatric_filelist.csv": "FileName,EF,Sex,Age,Weight,Height,Split,view"},
    "echonet-lvh": {
        f"echonet_lvh/{name}_split.csv": "Calc,CalcValue,HashedFileName,video_path,Frame,X1,X2,Y1,Y2,Frames,FPS,"
        "Width,Height,split"
        for name in ("IVSd", "LVIDd", "LVPWd")
    },
    "camus": {"camus_split.csv": "patient_id,view,path,split,Sex,Age,EF,FrameRate,ImageQuality,unique_id"},
    "cardiacnet-asd": {
        "cardiacnet/cardiacnet_asd_split.csv": "path,ASD,patient_id,split,image_name,unique_id,parent,stem"
    },
    "cardiacnet-pah": {
        "cardiacnet/cardiacnet_pah_split.csv": "path,PAH,patient_id,split,image_name,unique_id,parent,stem"
    },
    "hmc-qu": {"hmcqu_split.csv": "path,view,patient_id,STEMI,split,unique_id"},
    "segrwma": {
        "segrwma_split.csv": "patient_id,path,modality,view,n_frames,first_annotated_frame_index,split,"
        "abnormal,patient_view_id"
    },
    "tmed2": {
        "tmed2/per_image.csv": "query_key,view,diagnosis_label,split,file_path",
        "tmed2/per_study.csv": "study_id,diagnosis_label,split",
    },
}


def _vectors(manifest: Manifest) -> np.ndarray:
    """Vectors that know number, label and view, with noise that follows from the seed alone."""
    rng = np.random.default_rng(0)
    rows = manifest.table.to_pylist()
    seen = []
    for row in rows:
        numbers = [row.get(name) or 0.0 for name in ("lvef_pct", "lvidd_cm", "ivsd_cm", "lvpwd_cm")]
        labels = [float(row.get(name) or 0) for name in ("asd", "pah", "stemi", "rwma", "as")]
        views = [float(row["view"] == view) for view in ("A2C", "A3C", "A4C", "PSAX", "PLAX", "Other")]
        seen.append([numbers[0] / 20, *numbers[1:], *labels, *views])
    return np.array(seen) + rng.normal(0, 0.4, (len(rows), len(seen[0])))


def _run(program: Any, *arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        run(program, [str(argument) for argument in arguments])
    return ended.value.code if isinstance(ended.value.code, int) else 0


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def prepared(
    tmp_path: Path, make: Make, write_nifti: Writer, write_png: Writer
) -> Callable[[str], tuple[Store, Manifest]]:
    def prepare(dataset: str) -> tuple[Store, Manifest]:
        root = tmp_path / "raw" / dataset
        root.mkdir(parents=True)
        more = LAYOUTS[dataset][0](root, {"nifti": write_nifti, "png": write_png})
        manifest = make(dataset, root, **more).manifest
        assert manifest.problems() == []
        store = Store.create(tmp_path / "store")
        store.add_manifest(manifest)
        np.savez(
            tmp_path / "mine.npz", ids=np.array(manifest.clip_ids), vectors=_vectors(manifest).astype(np.float32)
        )
        arguments = ("ingest", tmp_path / "mine.npz", "--manifest", dataset, "--encoder", "mine")
        assert _run(embedstore_program, *arguments, "--dtype", "float32", "--store", tmp_path / "store") == 0
        return Store.open(tmp_path / "store"), manifest

    return prepare


@pytest.mark.parametrize("dataset", sorted(LAYOUTS))
def test_from_raw_layout_to_prediction_files_and_back(
    dataset: str,
    prepared: Callable[[str], tuple[Store, Manifest]],
    tmp_path: Path,
    script_numbers: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "DRAWS", DRAWS)
    store, manifest = prepared(dataset)
    results = [
        result
        for name in LAYOUTS[dataset][1]
        for result in probe_manifest(sets_of(store, dataset), manifest, task=get_task(name), options=QUICK)
    ]
    written = export_cardiobench(store, [exported_of(result) for result in results], tmp_path / "out")
    paths = {Path(one["path"]).relative_to(tmp_path / "out").as_posix() for one in written}
    assert paths == {f"predictions/{name}" for name in FILES[dataset]} | {
        f"ground_truth/{name}" for name in TRUTH[dataset]
    }
    for folder, headers in (("predictions", FILES[dataset]), ("ground_truth", TRUTH[dataset])):
        for name, header in headers.items():
            assert (tmp_path / "out" / folder / name).read_text().splitlines()[0] == header
    by_file = {name: _read(tmp_path / "out" / "predictions" / name) for name in FILES[dataset]}
    truth = [_read(tmp_path / "out" / "ground_truth" / name) for name in TRUTH[dataset]]
    for rows in by_file.values():
        assert _joins(rows, truth) == len(rows)
    for one in written:
        assert one["task"] is None or one["rows"] == one["expected"] - (dataset == "tmed2" and one["rows"] == 15), one
    for result in results:
        _assert_reads_back(result, manifest, tmp_path / "out" / "predictions")
        _assert_scripts_agree(result, tmp_path / "out", script_numbers)


def _assert_scripts_agree(result: Result, out: Path, script_numbers: Callable[..., dict[str, Any]]) -> None:
    """What the benchmark's scripts would make of the files is what stands beside our numbers."""
    from evaltools.cardiobench.layout import files_of

    for kind in files_of(result.task.name, result.dataset):
        if kind.row != result.row.name:
            continue
        path = out / "predictions" / kind.folder / f"mine-ingested{kind.suffix}.csv"
        theirs = script_numbers(out, path, result.task.name, result.dataset, draws=DRAWS)
        assert result.cardiobench is not None
        assert list(theirs) == list(result.cardiobench["metrics"])
        for name, numbers in theirs.items():
            assert result.cardiobench["metrics"][name] == pytest.approx(numbers, abs=1e-9), (path.name, name)


def _joins(rows: list[dict[str, str]], truth: list[list[dict[str, str]]]) -> int:
    """Rows whose id is in a test row of the ground truth, in its order."""
    key = next(name for name in rows[0] if name and not name.endswith("_pred") and not name.startswith("prob_")
               and name != "view")  # fmt: skip
    for table in truth:
        if key not in table[0]:
            continue
        split = "Split" if "Split" in table[0] else "split"
        ids = [row[key] for row in table if row[split] in ("test", "0")]
        found = [ids.index(row[key]) for row in rows if row[key] in ids]
        if len(found) == len(rows) and found == sorted(found):
            return len(found)
    return 0


def _assert_reads_back(result: Result, manifest: Manifest, folder: Path) -> None:
    """What was exported scores as it did before."""
    from evaltools.cardiobench.layout import files_of

    for kind in files_of(result.task.name, result.dataset):
        if kind.row != result.row.name:
            continue
        path = folder / kind.folder / f"mine-ingested{kind.suffix}.csv"
        read = {
            again.row.name: again
            for again in import_predictions(manifest, path, task=get_task(result.task.name), options=QUICK)
        } if result.task.name != "as" or result.row.name == "image" else {}  # fmt: skip
        if result.row.name == "study":
            with pytest.raises(Exception, match="have no prediction"):  # the study that has no PLAX or PSAX
                import_predictions(manifest, path, task=get_task("as"), options=QUICK)
            allowing = ProbeOptions(**{**vars(QUICK), "allow_missing": True})
            (again,) = import_predictions(manifest, path, task=get_task("as"), options=allowing)
            assert again.counts.n_scored == result.counts.n_scored
            read = {"study": again}
        again = read[result.row.name]
        assert again.encoder == "mine-ingested" and again.protocol == "imported"
        assert result.cardiobench is not None and again.cardiobench is not None
        assert again.counts.n_scored == result.counts.n_scored
        if result.task.name == "stemi":  # hard labels only
            assert again.metrics["accuracy"].value == result.metrics["accuracy"].value
            assert again.cardiobench["metrics"] == result.cardiobench["metrics"]
            continue
        for name, estimate in result.metrics.items():
            assert again.metrics[name].value == pytest.approx(estimate.value, abs=1e-9), (result.task.name, name)
        for name, theirs in result.cardiobench["metrics"].items():
            assert again.cardiobench["metrics"][name] == theirs, name


def test_lvh_takes_the_first_measurement_there_and_the_mean_here(
    prepared: Callable[[str], tuple[Store, Manifest]],
) -> None:
    store, manifest = prepared("echonet-lvh")
    ours = ProbeOptions(**{**vars(QUICK), "statistics": "patient"})
    sets = sets_of(store, "echonet-lvh")
    (mean,) = probe_manifest(sets, manifest, task=get_task("lvidd"), options=ours)
    (first,) = probe_manifest(sets, manifest, task=get_task("lvidd"), options=QUICK)
    at = mean.predictions.clip_ids.tolist().index("0X19")
    assert mean.predictions.y_true[at] == pytest.approx(4.7) and first.predictions.y_true[at] == pytest.approx(4.2)
    assert mean.cardiobench is None and first.cardiobench is not None
    assert "repeated measurements" in " ".join(mean.provenance.notes)


def test_tmed2_scores_studies_by_two_views_and_lists_the_rest(
    prepared: Callable[[str], tuple[Store, Manifest]],
) -> None:
    store, manifest = prepared("tmed2")
    options = ProbeOptions(draws=0, n_shuffles=5, near_duplicates=False)
    study, image = probe_manifest(sets_of(store, "tmed2"), manifest, task=get_task("as"), options=options)
    assert (study.row.name, image.row.name) == ("study", "image")
    assert study.units_missing == ("1005s1",) and (study.counts.n_expected, study.counts.n_scored) == (16, 15)
    assert image.counts.n_scored == 30 and {"view-mix", "n-images"} <= set(study.controls)
    assert study.controls["view-mix"]["auroc"].value == 1.0  # the union view is of positive studies alone
    named = ProbeOptions(draws=0, controls=False, rows=("all-images", "view-weighted"))
    weighted, everything = probe_manifest(sets_of(store, "tmed2"), manifest, task=get_task("as"), options=named)
    assert (weighted.counts.n_scored, everything.counts.n_scored) == (15, 16)
    view = probe_manifest(sets_of(store, "tmed2"), manifest, task=get_task("view"), options=options)[0]
    assert "Other" not in view.predictions.classes
    theirs = probe_manifest(sets_of(store, "tmed2"), manifest, task=get_task("view"), options=QUICK)[0]
    assert "Other" in theirs.predictions.classes
    grades = probe_manifest(sets_of(store, "tmed2"), manifest, task=get_task("as3"), options=named)[0]
    assert grades.predictions.classes == ("none", "significant")


def test_camus_views_of_any_split_are_scored_as_cardiobench_does(
    prepared: Callable[[str], tuple[Store, Manifest]], tmp_path: Path
) -> None:
    _, manifest = prepared("camus")
    rows = ["unique_id,view_pred,prob_A2C,prob_A3C,prob_A4C,prob_PSAX,prob_PLAX"]
    of_test = [
        clip for clip, split in zip(manifest.clip_ids, manifest.column("split"), strict=True) if split == "test"
    ]
    rows += [f"{clip},A2C,0.4,0.2,0.2,0.1,0.1" for clip in [*of_test, "patient0000_2CH"]]
    (tmp_path / "model.csv").write_text("\n".join(rows) + "\n")
    view = get_task("view")
    (theirs,) = import_predictions(manifest, tmp_path / "model.csv", task=view, options=QUICK)
    assert theirs.cardiobench is not None and theirs.cardiobench["n"] == len(of_test) + 1
    without = ProbeOptions(**{**vars(QUICK), "habits_off": ("view-all-splits",)})
    (kept,) = import_predictions(manifest, tmp_path / "model.csv", task=view, options=without)
    assert kept.cardiobench is not None and kept.cardiobench["n"] == len(of_test) == 20
    assert "1 ids of the file are of no clip that is scored" in kept.provenance.notes
    (ours,) = import_predictions(manifest, tmp_path / "model.csv", task=view, options=ProbeOptions(draws=0))
    assert ours.counts.n_scored == 20 and ours.metrics["accuracy"].value == 0.5


def test_a_prediction_a_view_is_averaged_a_patient(
    prepared: Callable[[str], tuple[Store, Manifest]], tmp_path: Path
) -> None:
    _, manifest = prepared("camus")
    of_test = [
        clip for clip, split in zip(manifest.clip_ids, manifest.column("split"), strict=True) if split == "test"
    ]
    rows = ["unique_id,EF_pred", *(f"{clip},{50 + 10 * clip.endswith('4CH')}" for clip in of_test)]
    (tmp_path / "model.csv").write_text("\n".join(rows) + "\n")
    patient, a2c, a4c = import_predictions(manifest, tmp_path / "model.csv", task=get_task("lvef"))
    assert set(patient.predictions.y_pred) == {55.0} and set(a2c.predictions.y_pred) == {50.0}
    assert (patient.counts.n_scored, a4c.counts.n_scored) == (10, 10)


def test_the_commands_write_and_read(
    prepared: Callable[[str], tuple[Store, Manifest]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared("camus")
    where = ("--store", tmp_path / "store")
    code = _run(
        evaltools_program, "probe", "--task", "lvef", *where, "--bootstrap", 50, "--out", tmp_path / "results"
    )
    assert code == 0 and "CAMUS sequences are half a beat" in capsys.readouterr().out
    results = read_results(tmp_path / "results")
    assert sorted(one.row for one in results) == ["A2C", "A4C", "patient"]
    arguments = ("export", "--results", tmp_path / "results", "--out", tmp_path / "files", "--json")
    assert _run(evaltools_program, *arguments, *where) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [(Path(one["path"]).name, one["rows"]) for one in files] == [
        ("mine-ingested.csv", 10),
        ("camus_split.csv", 60),
    ]
    path = tmp_path / "files" / "predictions" / "CAMUS" / "EF" / "mine-ingested.csv"
    asked = ("import-predictions", path, "--task", "lvef", "--dataset", "camus", "--statistics", "cardiobench")
    assert _run(evaltools_program, *asked, "--bootstrap", 0, *where) == 0
    assert "CardioBench's statistics" in capsys.readouterr().out
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert _run(evaltools_program, *asked, *where) == 4
    assert "have no prediction in mine-ingested.csv" in capsys.readouterr().err
    assert _run(evaltools_program, *asked, "--allow-missing", "--bootstrap", 0, "--json", *where) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["n_expected"], result["n_scored"]) == (10, 9)
    path.write_text("patient_id,EF_pred\npatient0004,nan\n")
    assert _run(evaltools_program, *asked, *where) == 4
    assert "line 2 holds 'nan'" in capsys.readouterr().err
    path.write_text("patient_id,LVEF\npatient0004,50\n")
    assert _run(evaltools_program, *asked, *where) == 2
    assert "need patient_id and EF_pred" in capsys.readouterr().err
    assert _run(evaltools_program, "tasks", *where) == 0
    listed = capsys.readouterr().out
    assert "echonet-dynamic: missing: no manifest; make one with embedstore manifest make echonet-dynamic" in listed


def test_names_can_be_others_and_what_is_not_scored_is_told(
    prepared: Callable[[str], tuple[Store, Manifest]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared("echonet-dynamic")
    where = ("--store", tmp_path / "store")
    results, out = tmp_path / "results", tmp_path / "files"
    asked = ("--task", "lvef", "--bootstrap", 0, "--where", "lvef_pct < 65", "--out", results)
    assert _run(evaltools_program, "probe", *asked, *where) == 0
    export = ("export", "--results", results, "--out", out, *where)
    renames = ("--rename", "ground_truth/EchoNet-Dynamic=data", "--rename", "predictions/EchoNet-Dynamic/EF=ef")
    capsys.readouterr()
    assert _run(evaltools_program, *export, *renames) == 0
    assert "ef/mine-ingested.csv: 8 rows of 10 that CardioBench scores" in capsys.readouterr().out
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "EXPORTED.md",
        "data/FileList.csv",
        "ef/mine-ingested.csv",
    ]
    listed = (out / "EXPORTED.md").read_text()
    assert "| `ef/mine-ingested.csv` | echonet-dynamic | lvef | mine@ingested | 8 | 10 |" in listed
    assert '- EF_MODELS of echonet_dynamic.py: `"mine-ingested": "ef/mine-ingested.csv"`' in listed
    for rename, says in (
        ("ground_truth/EchoNet-Dynamics=x", "nothing is written to .* did you mean 'ground_truth/EchoNet-Dynamic'"),
        ("predictions=../x", "takes paths below --out"),
        ("predictions", "needs OLD=NEW"),
        ("ground_truth/EchoNet-Dynamic/FileList.csv=EXPORTED.md", "would both be written to EXPORTED.md"),
    ):
        assert _run(evaltools_program, *export, "--rename", rename) == 2
        assert re.search(says, capsys.readouterr().err), rename
    assert _run(evaltools_program, *export) == 0
    assert "| `ground_truth/EchoNet-Dynamic/FileList.csv` |" in (out / "EXPORTED.md").read_text()


def test_folds_of_other_splits_are_written_for_the_scripts(
    prepared: Callable[[str], tuple[Store, Manifest]],
) -> None:
    _, manifest = prepared("echonet-pediatric")
    rows = manifest.table.to_pylist()
    for row, split in zip(rows, ("val", "test", "train"), strict=False):
        row["split"] = split
    (header, cells), *_ = GROUND_TRUTH["echonet-pediatric"](rows).values()
    folds = [row[header.index("Split")] for row in cells]
    before = [row["fold"] for row in rows]
    assert folds[:3] == [1, 0, 5] and folds[3:] == before[3:] and before[:2] == [5, 5]


def test_views_of_lvh_stand_in_the_order_of_the_posterior_wall(
    prepared: Callable[[str], tuple[Store, Manifest]], tmp_path: Path
) -> None:
    _, manifest = prepared("echonet-lvh")
    table = manifest.table.to_pylist()
    of_test = [row for row in table if row["split"] == "test" and row["lvpwd_n"]]
    lines = [f"{row['clip_id']},PLAX,0.1,0.1,0.1,0.1,{0.6 + row['lvpwd_row'] / 1000}" for row in of_test]
    header = "HashedFileName,view_pred,prob_A2C,prob_A3C,prob_A4C,prob_PSAX,prob_PLAX"
    (tmp_path / "model.csv").write_text("\n".join([header, *lines]) + "\n")
    (result,) = import_predictions(manifest, tmp_path / "model.csv", task=get_task("view"), options=QUICK)
    order = file_order(manifest, get_task("view"), result.predictions)
    row_of = {row["clip_id"]: row["lvpwd_row"] for row in table}
    placed = [row_of[clip] for clip in result.predictions.clip_ids[order]]
    assert placed == sorted(placed) and len(placed) == len(of_test) == 9
    source_row = {row["clip_id"]: row["source_row"] for row in table}
    lines = [source_row[clip] for clip in result.predictions.clip_ids[order]]
    assert lines == sorted(lines, reverse=True)
    assert result.counts.n_expected == 9
