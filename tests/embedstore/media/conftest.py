"""Small media files, made by the libraries that read them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from types import ModuleType
from typing import Any

import av
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

Frames = np.ndarray[Any, np.dtype[np.uint8]]


def _pattern(n_frames: int, height: int, width: int) -> Frames:
    """Frames that tell themselves apart: a grey ramp, a red and a blue block, a bar as long as the frame number."""
    frames = np.empty((n_frames, height, width, 3), dtype=np.uint8)
    frames[:] = np.linspace(20, 200, width, dtype=np.uint8)[None, None, :, None]
    frames[:, 16:32, 8:24] = (255, 0, 0)
    frames[:, 16:32, 32:48] = (0, 0, 255)
    for number, frame in enumerate(frames):
        frame[: height // 6] = 0
        frame[: height // 6, : 2 * (number % 24) + 2] = 255
    return frames


def bar_length(frame: Frames) -> int:
    """Return which frame of `_pattern` this is (modulo 24), read off its bar."""
    return int(((frame[2].astype(int).sum(axis=-1) > 380).sum() - 2) // 2)


@pytest.fixture
def pattern() -> Callable[..., Frames]:
    return _pattern


@pytest.fixture
def frame_order() -> Callable[[Frames], list[int]]:
    """Read the frame numbers off decoded frames of the pattern."""
    return lambda frames: [bar_length(frame) for frame in frames]


def _encode_video(
    frames: Frames,
    *,
    container: str = "avi",
    codec: str = "mjpeg",
    fps: int = 25,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> bytes:
    pixel_formats = {"mjpeg": "yuvj420p", "rawvideo": "bgr24", "ffv1": "bgr0"}
    sink = io.BytesIO()
    with av.open(sink, "w", format=container, options=muxer or {}) as media:
        stream = media.add_stream(codec, rate=fps, options=options or {"qscale": "2"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_formats.get(codec, "yuv420p")
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number if times is None else times[number]
            picture.time_base = Fraction(1, fps)
            media.mux(stream.encode(picture))
        media.mux(stream.encode(None))
    return sink.getvalue()


@pytest.fixture
def encode_video() -> Callable[..., bytes]:
    return _encode_video


@pytest.fixture
def encode_sound() -> Callable[[str], bytes]:
    def encode(container: str) -> bytes:
        sink = io.BytesIO()
        with av.open(sink, "w", format=container) as media:
            stream = media.add_stream("pcm_s16le" if container == "avi" else "aac", rate=16_000)
            stream.layout = "mono"
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
            silence.sample_rate = 16_000
            resampler = av.AudioResampler("s16" if container == "avi" else "fltp", "mono", 16_000, frame_size=1024)
            for frame in resampler.resample(silence):
                media.mux(stream.encode(frame))
            media.mux(stream.encode(None))
        return sink.getvalue()

    return encode


def _encode_dicom(
    pixels: np.ndarray[Any, Any] | Sequence[bytes] | None,
    *,
    syntax: str = ExplicitVRLittleEndian,
    interpretation: str = "MONOCHROME2",
    tags: dict[str, Any] | None = None,
) -> bytes:
    """Return a DICOM file of native pixels, (T, H, W[, 3]), or of compressed frames (then tags give the size)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = syntax
    record = Dataset()
    record.file_meta = meta
    record.SOPClassUID = meta.MediaStorageSOPClassUID
    record.SOPInstanceUID = "1.2.3.4"
    record.StudyInstanceUID = "1.2.3"
    record.PatientID = "patient 7"
    record.PhotometricInterpretation = interpretation
    record.PixelRepresentation = 0
    if isinstance(pixels, np.ndarray):
        record.NumberOfFrames, record.Rows, record.Columns = pixels.shape[:3]
        record.SamplesPerPixel = 1 if pixels.ndim == 3 else pixels.shape[3]
        record.BitsAllocated = record.BitsStored = 8 * pixels.dtype.itemsize
        if pixels.ndim == 4:
            record.PlanarConfiguration = 0
        is_big = syntax == pydicom.uid.ExplicitVRBigEndian
        content = pixels.astype(pixels.dtype.newbyteorder(">" if is_big else "<")).tobytes()
        record.PixelData = content + b"\0" * (len(content) % 2)
        record["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    elif pixels is not None:
        record.NumberOfFrames = len(pixels)
        record.PixelData = encapsulate(list(pixels))
        record["PixelData"].VR = "OB"
        record["PixelData"].is_undefined_length = True
    for keyword, value in (tags or {}).items():
        setattr(record, keyword, value)
    sink = io.BytesIO()
    is_little = syntax != pydicom.uid.ExplicitVRBigEndian
    pydicom.dcmwrite(sink, record, enforce_file_format=True, implicit_vr=False, little_endian=is_little)
    return sink.getvalue()


@pytest.fixture
def encode_dicom() -> Callable[..., bytes]:
    return _encode_dicom


@pytest.fixture
def pool_jobs(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """Return the module of job functions, importable by the pool's workers, which inherit the search path."""
    import importlib

    monkeypatch.syspath_prepend(str(request.path.parent))
    return importlib.import_module("pool_jobs")
