"""Small real files: AVI, DICOM, NIfTI and PNG, written for each test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.manifest import Manifest, RecipeOutcome, RecipeRequest, get_recipe

Writer = Callable[..., Path]


@dataclass(frozen=True)
class Made:
    """A manifest that was made, its rows by clip id, and the names of its findings by kind."""

    outcome: RecipeOutcome

    @property
    def manifest(self) -> Manifest:
        return self.outcome.manifest

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["clip_id"]: row for row in self.manifest.table.to_pylist()}

    @property
    def found(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for finding in self.outcome.findings:
            names[finding.kind] += finding.names
        return dict(names)

    def message(self, kind: str) -> str:
        return next(finding.message for finding in self.outcome.findings if finding.kind == kind)

    def column(self, name: str) -> dict[str, Any]:
        return {clip_id: row[name] for clip_id, row in self.rows.items()}


@pytest.fixture
def make() -> Callable[..., Made]:
    """Make a manifest with the recipe of that name."""

    def make_manifest(recipe: str, root: Path | None, /, **arguments: Any) -> Made:
        return Made(get_recipe(recipe).make(RecipeRequest(root=root, **arguments)))

    return make_manifest


def _frames(n_frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (n_frames, 32, 48), dtype=np.uint8)


@pytest.fixture
def write_avi() -> Writer:
    def write(path: Path, *, n_frames: int = 4, fps: int = 25, seed: int = 0) -> Path:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", format="avi") as container:
            stream = container.add_stream("mjpeg", rate=fps)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
            for frame in _frames(n_frames, seed):
                rgb = np.repeat(frame[:, :, np.newaxis], 3, axis=2)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def write_dicom() -> Writer:
    def write(path: Path, *, patient: str | None = "P1", n_frames: int = 3, seed: int = 0) -> Path:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.sequence import Sequence
        from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

        region = Dataset()
        region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 2
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, 0.04
        region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 47, 31

        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{seed + 1}"
        dataset.StudyInstanceUID = f"1.2.{seed + 1}"
        dataset.Modality = "US"
        dataset.Manufacturer, dataset.ManufacturerModelName = "Philips", "EPIQ"
        dataset.HeartRate = 61
        if patient is not None:
            dataset.PatientID = patient
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 32, 48, n_frames
        dataset.FrameTime = "20"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.SequenceOfUltrasoundRegions = Sequence([region])
        dataset.PixelData = _frames(n_frames, seed).tobytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def write_nifti() -> Writer:
    def write(path: Path, *, n_frames: int = 3, seed: int = 0) -> Path:
        import nibabel

        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(_frames(n_frames, seed).T.copy(), np.eye(4)), path)
        return path

    return write


@pytest.fixture
def write_png() -> Writer:
    def write(path: Path, *, seed: int = 0) -> Path:
        import cv2

        path.parent.mkdir(parents=True, exist_ok=True)
        _, encoded = cv2.imencode(".png", _frames(1, seed)[0])
        path.write_bytes(encoded.tobytes())
        return path

    return write


@pytest.fixture
def write_csv(tmp_path: Path) -> Writer:
    def write(text: str, *, name: str = "table.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / "tables" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode(encoding))
        return path

    return write
