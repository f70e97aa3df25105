"""Files: the same on every run, and read back by the media readers as they were drawn."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import embedstore.phantom.formats as formats
from embedstore.errors import ContentError, MissingExtraError, StorageError, UnknownNameError
from embedstore.media import probe_media, read_clip
from embedstore.phantom import PhantomSummary, write_phantom
from embedstore.phantom.clip import plan_clip
from embedstore.phantom.heart import draw_patient
from embedstore.phantom.write import CLIP_COLUMNS


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PhantomSummary]:
    out = tmp_path_factory.mktemp("phantom") / "new" / "phantom"
    return out, write_phantom(out, n_patients=2)


def test_the_same_parameters_give_the_same_bytes(written: tuple[Path, PhantomSummary], tmp_path: Path) -> None:
    first = _bytes_of(written[0])
    write_phantom(tmp_path, n_patients=2)
    again = _bytes_of(tmp_path)
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []
    # Over an interrupted run, too.
    (tmp_path / "clips.csv").unlink()
    next((tmp_path / "clips").glob("*.avi")).write_bytes(b"half")
    write_phantom(tmp_path, n_patients=2)
    assert _bytes_of(tmp_path) == first


def test_a_patient_is_the_same_among_more_and_other_seeds_differ(
    written: tuple[Path, PhantomSummary], tmp_path: Path
) -> None:
    out, _ = written
    write_phantom(tmp_path / "fewer", n_patients=1)
    write_phantom(tmp_path / "other", n_patients=1, seed=1)
    name = "clips/SYNTHETIC_phantom-p0000-a4c.avi"
    assert (tmp_path / "fewer" / name).read_bytes() == (out / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (out / name).read_bytes()


def test_the_tables_describe_the_files(written: tuple[Path, PhantomSummary]) -> None:
    out, summary = written
    rows = _rows(out / "clips.csv")
    assert tuple(rows[0]) == CLIP_COLUMNS
    assert len(rows) == summary.n_clips == len({row["clip_id"] for row in rows})
    assert {row["path"] for row in rows} == {f"clips/{path.name}" for path in (out / "clips").iterdir()}
    assert summary.n_frames == sum(int(row["n_frames"]) for row in rows)
    assert summary.n_bytes == sum((out / row["path"]).stat().st_size for row in rows)
    assert set(summary.clips_by_suffix) == {".avi", ".dcm", ".nii.gz"}
    roles = {(entry["clip_id"], entry["role"]): int(entry["frame"]) for entry in _rows(out / "key_frames.csv")}
    for row in rows:
        edv, esv = float(row["edv_ml"]), float(row["esv_ml"])
        assert float(row["lvef_pct"]) == pytest.approx(100 * (edv - esv) / edv, abs=1e-3)
        for role in ("ed", "es", *(("lvidd", "ivsd", "lvpwd") if row["view"] == "PLAX" else ())):
            assert 0 <= roles[row["clip_id"], role] < int(row["n_frames"])


def test_everything_says_synthetic(written: tuple[Path, PhantomSummary]) -> None:
    out, _ = written
    assert (out / "README.txt").read_text().startswith("SYNTHETIC")
    assert json.loads((out / "phantom.json").read_text())["synthetic"] is True
    assert all("SYNTHETIC" in path.name for path in (out / "clips").iterdir())
    assert all(b"SYNTHETIC" in path.read_bytes() for path in (out / "clips").glob("*.avi"))


def test_splits_are_by_patient_in_exact_proportions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedstore.phantom.write._write_clip", lambda out, clip: 0)
    summary = write_phantom(tmp_path, n_patients=150)
    rows = _rows(tmp_path / "clips.csv")
    split_of = {row["patient_id"]: row["split"] for row in rows}
    assert Counter(split_of.values()) == {"train": 75, "val": 30, "test": 45}
    assert all(split_of[row["patient_id"]] == row["split"] for row in rows)
    assert summary.n_clips < 480
    assert summary.clips_by_suffix[".dcm"] >= 1
    assert summary.clips_by_suffix[".nii.gz"] >= 1
    assert summary.clips_by_view["A4C"] == 150


@pytest.mark.parametrize("suffix", [".avi", ".dcm", ".nii.gz"])
def test_readers_get_back_what_was_drawn(suffix: str) -> None:
    clip = plan_clip(draw_patient(0), "A4C")
    frames = clip.draw()
    payload = formats.ENCODINGS[suffix](clip, frames)
    probe = probe_media(payload)
    assert probe.problem is None
    assert (probe.n_frames, probe.height, probe.width) == frames.shape
    assert probe.fps == pytest.approx(clip.fps, rel=1e-6)
    if suffix != ".avi":
        assert probe.spacing_x_mm == pytest.approx(clip.settings.spacing_mm, rel=1e-6)
        assert probe.spacing_y_mm == pytest.approx(clip.settings.spacing_mm, rel=1e-6)
    decoded = read_clip(payload).frames
    assert decoded.shape == (*frames.shape, 3)
    if suffix == ".avi":
        assert np.abs(decoded[..., 1].astype(int) - frames).mean() < 6
        assert np.ptp(decoded.astype(int), axis=-1).max() <= 2
    else:
        assert np.array_equal(decoded[..., 0], frames)


def test_dicom_tags_say_what_it_is() -> None:
    import io

    import pydicom

    clip = plan_clip(draw_patient(3), "A4C")
    record = pydicom.dcmread(io.BytesIO(formats.encode_dicom(clip, clip.draw())))
    assert record.PatientID == clip.patient.patient_id
    assert str(record.PatientName).startswith("SYNTHETIC")
    assert record.ImageComments.startswith("SYNTHETIC")
    assert record.Manufacturer.startswith("SYNTHETIC")
    assert record.ManufacturerModelName == "embedstore phantom"
    assert float(record.FrameTime) == pytest.approx(1000 / clip.fps)
    region = record.SequenceOfUltrasoundRegions[0]
    assert region.PhysicalDeltaX == region.PhysicalDeltaY == clip.settings.spacing_mm / 10
    assert (record.StudyDate, record.PatientBirthDate) == ("", "")
    assert len(record.SOPInstanceUID) <= 64


@pytest.mark.parametrize("n_patients", [0, -1, 10_001])
def test_a_number_of_patients_out_of_range_is_refused(tmp_path: Path, n_patients: int) -> None:
    with pytest.raises(UnknownNameError, match="1 to 10000 patients"):
        write_phantom(tmp_path / "out", n_patients=n_patients)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(
    written: tuple[Path, PhantomSummary], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ContentError, match="already holds other files; give an empty or new folder"):
        write_phantom(tmp_path, n_patients=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    before = _bytes_of(written[0])
    with pytest.raises(ContentError, match="already holds a phantom of 2 patients, seed 0"):
        write_phantom(written[0], n_patients=1)
    assert _bytes_of(written[0]) == before


def test_a_path_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write .*file"):
        write_phantom(tmp_path / "file", n_patients=1)


@pytest.mark.parametrize("package", ["cv2", "av", "pydicom", "nibabel"])
def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {package}, .*embedstore\[media\]") as caught:
        write_phantom(tmp_path / "out", n_patients=1)
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    summary = write_phantom(tmp_path, n_patients=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, summary.n_clips) for done in range(1, summary.n_clips + 1)]
