"""Clips as files: MJPEG AVI, DICOM ultrasound multi-frame and NIfTI, the same bytes on every run.

Encoders run on one thread in bit-exact mode, UIDs come from digests, and nothing reads the clock.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import MissingExtraError
from embedstore.identity import digest_json
from embedstore.phantom.clip import Clip

__all__ = ["ENCODINGS", "MODEL", "encode_avi", "encode_dicom", "encode_nifti", "require_packages"]

MODEL = "embedstore phantom"
_DESCRIPTION = "SYNTHETIC: no patient, drawn by embedstore phantom"
_JPEG_QUALITY_SCALE = 4  # FFmpeg's qscale: 2 is best, 31 worst

Frames = npt.NDArray[np.uint8]


def require_packages() -> None:
    """Check, before anything is written, that what draws and writes clips is installed.

    Raises
    ------
    MissingExtraError
        A package of the extra is not.
    """
    for package in ("cv2", "av", "pydicom", "nibabel"):
        try:
            import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"drawing a phantom needs the package {package}, which is not installed; "
                "install the extra with: pip install 'embedstore[media]'"
            ) from error


def encode_avi(clip: Clip, frames: Frames) -> bytes:
    """Return an AVI file of MJPEG frames.

    Parameters
    ----------
    frames : (T, H, W) uint8
    """
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="avi", options={"fflags": "+bitexact"}) as container:
        container.metadata["title"] = _DESCRIPTION
        stream = container.add_stream("mjpeg", rate=clip.fps)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {
            "flags": "+bitexact+qscale",
            "global_quality": str(118 * _JPEG_QUALITY_SCALE),
            "huffman": "optimal",
        }
        neutral = np.full((frames.shape[1] // 2, frames.shape[2]), 128, dtype=np.uint8)
        for grey in frames:
            picture = av.VideoFrame.from_ndarray(np.concatenate([grey, neutral]), format="yuvj420p")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return sink.getvalue()


def _uid(*names: str | int) -> str:
    """Return a UID under the root for UUIDs (2.25), from a digest of names."""
    return f"2.25.{int(digest_json(['phantom', *[str(name) for name in names]])[:32], 16)}"


def encode_dicom(clip: Clip, frames: Frames) -> bytes:
    """Return an Ultrasound Multi-frame Image (uncompressed, MONOCHROME2) with frame time and ultrasound region."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

    patient, names = clip.patient, (clip.seed, clip.patient.number, clip.view)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = _uid("instance", *names)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "EMBEDSTORE"

    record = Dataset()
    record.file_meta = meta
    record.SOPClassUID = meta.MediaStorageSOPClassUID
    record.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    record.StudyInstanceUID = _uid("study", *names[:2])
    record.SeriesInstanceUID = _uid("series", *names[:2])
    record.Modality = "US"
    record.PatientName = "SYNTHETIC^PHANTOM"
    record.PatientID = patient.patient_id
    record.PatientSex = patient.sex
    record.PatientBirthDate = record.StudyDate = record.StudyTime = record.AccessionNumber = ""
    record.PatientAge = f"{patient.age_years:03d}Y"
    record.StudyID = patient.study_id
    record.ReferringPhysicianName = ""
    record.InstitutionName = patient.site
    record.SeriesNumber, record.InstanceNumber = 1, 1
    record.PatientOrientation = ""
    record.Manufacturer = clip.manufacturer
    record.ManufacturerModelName = MODEL
    record.ImageType = ["DERIVED", "SECONDARY"]
    record.ImageComments = record.SeriesDescription = _DESCRIPTION
    record.BurnedInAnnotation = "NO"
    record.PatientIdentityRemoved = "YES"
    record.DeidentificationMethod = "SYNTHETIC"
    record.HeartRate = round(patient.heart_rate_bpm)
    record.NumberOfFrames, record.Rows, record.Columns = frames.shape
    record.FrameIncrementPointer = 0x00181063
    record.FrameTime = f"{1000.0 / clip.fps:.10g}"
    record.CineRate = record.RecommendedDisplayFrameRate = clip.fps
    record.SamplesPerPixel, record.PhotometricInterpretation = 1, "MONOCHROME2"
    record.BitsAllocated, record.BitsStored, record.HighBit, record.PixelRepresentation = 8, 8, 7, 0
    record.LossyImageCompression = "00"
    record.SequenceOfUltrasoundRegions = [_ultrasound_region(clip, frames)]
    pixels = frames.tobytes()
    record.PixelData = pixels + b"\0" * (len(pixels) % 2)
    record["PixelData"].VR = "OB"
    sink = io.BytesIO()
    dcmwrite(sink, record, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return sink.getvalue()


def _ultrasound_region(clip: Clip, frames: Frames) -> Any:
    """Return the calibrated region: 2-D tissue in cm (DICOM PS3.3 C.8.5.5)."""
    from pydicom.dataset import Dataset

    region = Dataset()
    region.RegionSpatialFormat = 1
    region.RegionDataType = 1
    region.RegionFlags = 0
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = frames.shape[2] - 1, frames.shape[1] - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = clip.settings.spacing_mm / 10.0
    return region


def encode_nifti(clip: Clip, frames: Frames) -> bytes:
    """Return a gzipped NIfTI-1 file of (x, y, t) uint8 with spacing in mm and frame time in s."""
    import nibabel

    spacing_mm = clip.settings.spacing_mm
    volume = np.ascontiguousarray(frames.transpose(2, 1, 0))
    image = nibabel.Nifti1Image(volume, np.diag([spacing_mm, spacing_mm, 1.0, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((spacing_mm, spacing_mm, 1.0 / clip.fps))
    image.header["descrip"] = _DESCRIPTION.encode()
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


ENCODINGS: dict[str, Callable[[Clip, Frames], bytes]] = {
    ".avi": encode_avi,
    ".dcm": encode_dicom,
    ".nii.gz": encode_nifti,
}
