"""DICOM tags: what a file says of its patient, device, timing and ultrasound regions, and where its pixels lie.

Only the file in memory is read: a DICOMDIR and the files that it names are not media here.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from embedstore.errors import MediaError
from embedstore.media.clip import DecodeLimits, MediaProbe
from embedstore.media.source import FrameSource, load_decoder, plausible_fps, with_frame_count

__all__ = ["DICOM_ERRORS", "DicomHeader", "open_dicom", "probe_dicom", "pydicom_quiet", "read_header", "tag_value"]

# What pydicom raises on damaged files, besides errors of its own. Their text quotes the file, so it is not passed on.
DICOM_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(EOFError, OSError, RuntimeError, AssertionError, struct.error),
)

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXEL_DATA = 0x7FE00010
_FLOAT_PIXELS = (0x7FE00008, 0x7FE00009)
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_VRS = ("OB", "OW", "UN")

_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "PatientID", "Manufacturer", "ManufacturerModelName"),
    *("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate", "FrameIncrementPointer"),
    *("HeartRate", "SequenceOfUltrasoundRegions", "PixelSpacing", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)

# DICOM PS3.3 C.8.5.5.1: Region Spatial Format, Region Data Type, Physical Units X/Y Direction.
_FORMAT_2D, _FORMAT_MMODE, _FORMAT_SPECTRAL = 1, 2, 3
_DATA_COLOUR_FLOW = 2
_UNIT_CM = 3
_MM_PER_CM = 10.0


@dataclass(frozen=True)
class DicomHeader:
    """The tags, and where the pixel data begin.

    Attributes
    ----------
    tags : pydicom.Dataset
        Without pixel data.
    transfer_syntax : pydicom.uid.UID
    pixels_at : int or None
        Offset of the value of Pixel Data (7FE0,0010), None where there is none.
    pixels_length : int or None
        Its length in bytes, None where it is undefined (fragments).
    pixels_vr : str
        Its value representation.
    """

    tags: Any
    transfer_syntax: Any
    pixels_at: int | None
    pixels_length: int | None
    pixels_vr: str


class _WatchedBytes(io.BytesIO):
    """Notices a read that gets some of the bytes it asks for: pydicom takes such a value for whole."""

    is_cut = False

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if size is not None and 0 < len(found) < size:
            self.is_cut = True
        return found


def load_pydicom() -> Any:
    """Import pydicom when first needed."""
    return load_decoder("pydicom", "pydicom", what="reading DICOM")


@contextmanager
def pydicom_quiet() -> Iterator[None]:
    """Keep pydicom's warnings, which quote values of the file, out of logs and terminals."""
    logger = logging.getLogger("pydicom")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def read_header(payload: bytes) -> DicomHeader:
    """Read the tags before the pixel data.

    Raises
    ------
    MediaError
        ``not-media`` for a DICOMDIR, ``unsupported`` for a deflated file, ``corrupt``, ``truncated``.
    """
    pydicom = load_pydicom()
    buffer = _WatchedBytes(payload)
    try:
        with pydicom_quiet():
            meta = _file_meta(pydicom, payload)
            syntax = meta.get("TransferSyntaxUID")
            if meta.get("MediaStorageSOPClassUID") == _MEDIA_DIRECTORY:
                raise MediaError("the file is a DICOMDIR, a list of other files", reason="not-media")
            if syntax == _DEFLATED:  # pydicom would unpack it without a bound
                raise MediaError("the DICOM file is deflated as a whole, which is not read", reason="unsupported")
            tags = pydicom.dcmread(buffer, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            implicit, little = tags.original_encoding
            if syntax is None:
                names = pydicom.uid
                syntax = names.ImplicitVRLittleEndian if implicit else names.ExplicitVRLittleEndian
                syntax = syntax if little else names.ExplicitVRBigEndian
            is_known = syntax.is_transfer_syntax
    except (*DICOM_ERRORS, pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException) as error:
        raise MediaError(f"the DICOM tags cannot be read ({type(error).__name__})", reason="corrupt") from error
    if not is_known:
        raise MediaError("the DICOM transfer syntax is none that is known", reason="unsupported")
    at = buffer.tell()
    if not _stands_at_pixels(payload, at, little=little):
        if buffer.is_cut or at > len(payload):  # it skips what it is not asked for, even past the end
            raise MediaError("the DICOM file ends before its pixel data", reason="truncated")
        return DicomHeader(tags, syntax, None, None, "OW")
    order = "<" if little else ">"
    # Told by the element itself: some files are not encoded as their transfer syntax says. A length cannot look
    # like one of these names, since it would be odd.
    vr, value_at = payload[at + 4 : at + 6].decode("latin-1"), at + 12
    if vr not in _PIXEL_VRS:
        vr, value_at = "OW", at + 8
    if value_at > len(payload):
        raise MediaError("the DICOM file ends before its pixel data", reason="truncated")
    (length,) = struct.unpack_from(f"{order}I", payload, value_at - 4)
    return DicomHeader(tags, syntax, value_at, None if length == _UNDEFINED_LENGTH else length, vr)


def _file_meta(pydicom: Any, payload: bytes) -> Any:
    """Read group 2 alone, before anything of the data set is touched."""
    if payload[128:132] != b"DICM" and payload[:2] != b"\x02\x00":
        return pydicom.Dataset()
    buffer = io.BytesIO(payload[:65536])
    buffer.seek(132 if payload[128:132] == b"DICM" else 0)
    return pydicom.filereader.read_dataset(
        buffer, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag.group != 2
    )


def _stands_at_pixels(payload: bytes, at: int, *, little: bool) -> bool:
    """Say whether pydicom stopped at Pixel Data rather than at the end of the file."""
    if at + 4 > len(payload):
        return False
    group, element = struct.unpack_from("<HH" if little else ">HH", payload, at)
    tag = (group << 16) | element
    if tag in _FLOAT_PIXELS:
        raise MediaError("the DICOM pixels are floating-point numbers, not an image", reason="unsupported")
    return bool(tag == _PIXEL_DATA)


# -- facts --------------------------------------------------------------------------------------------------


def tag_value(tags: Any, keyword: str) -> Any:
    """Return a value, or None where it is absent, empty or not what its type says; pydicom converts on access."""
    try:
        found = tags.get(keyword)
    except (*DICOM_ERRORS, load_pydicom().errors.BytesLengthException):
        return None
    return None if found is None or found == "" else found


def _text(tags: Any, keyword: str) -> str | None:
    found = tag_value(tags, keyword)
    if found is None:
        return None
    return str(found).strip(" \0\t\r\n") or None


def _number(tags: Any, keyword: str) -> float | None:
    found = tag_value(tags, keyword)
    try:
        return None if found is None else float(found)
    except (TypeError, ValueError, OverflowError):
        return None


def _positive(value: float | None, *, scale: float = 1.0) -> float | None:
    return value * scale if value is not None and 0 < abs(value) < float("inf") else None


def _numbers(tags: Any, keyword: str) -> list[float]:
    found = tag_value(tags, keyword)
    values = found if hasattr(found, "__iter__") and not isinstance(found, str | bytes) else [found]
    try:
        return [float(value) for value in values if value is not None]
    except (TypeError, ValueError, OverflowError):
        return []


def frame_rate(tags: Any) -> float | None:
    """Return frames per second: from the frame time (ms), the vector of frame times, else the cine rate."""
    steps = [step for step in _numbers(tags, "FrameTimeVector")[1:] if step > 0]  # the first is the first frame's
    frame_time = _number(tags, "FrameTime")
    from_time = 1000.0 / frame_time if frame_time else None
    from_vector = 1000.0 * len(steps) / sum(steps) if steps else None
    pointer = tag_value(tags, "FrameIncrementPointer")
    measured = (from_vector, from_time) if pointer == 0x00181065 else (from_time, from_vector)
    for rate in (*measured, _number(tags, "CineRate"), _number(tags, "RecommendedDisplayFrameRate")):
        if plausible_fps(rate) is not None:
            return plausible_fps(rate)
    return None


def frame_times(tags: Any, n_frames: int) -> list[float]:
    """Return the time of each frame (ms) where a vector of frame times gives it, else nothing."""
    steps = _numbers(tags, "FrameTimeVector")
    if len(steps) != n_frames:
        return []
    times = [0.0]
    for step in steps[1:]:
        times.append(times[-1] + step)
    return times


def _regions(tags: Any) -> list[Any]:
    found = tag_value(tags, "SequenceOfUltrasoundRegions")
    return list(found) if found is not None and hasattr(found, "__iter__") else []


def _area(region: Any) -> float:
    corners = [_number(region, f"RegionLocation{name}") for name in ("MinX0", "MaxX1", "MinY0", "MaxY1")]
    if any(corner is None for corner in corners):
        return 0.0
    left, right, top, bottom = (corner or 0.0 for corner in corners)
    return max(right - left, 0.0) * max(bottom - top, 0.0)


def _spacing_mm(tags: Any, regions: list[Any]) -> tuple[float | None, float | None]:
    """Return the size of a pixel (x, y) in the largest 2-D region that is measured in cm, else PixelSpacing."""
    flat = [
        region
        for region in regions
        if _number(region, "RegionSpatialFormat") == _FORMAT_2D
        and _number(region, "PhysicalUnitsXDirection") == _UNIT_CM
        and _number(region, "PhysicalUnitsYDirection") == _UNIT_CM
    ]
    for region in sorted(flat, key=_area, reverse=True):
        deltas = [_positive(_number(region, f"PhysicalDelta{axis}"), scale=_MM_PER_CM) for axis in "XY"]
        if deltas[0] is not None and deltas[1] is not None:
            return abs(deltas[0]), abs(deltas[1])
    spacing = _numbers(tags, "PixelSpacing")
    if len(spacing) == 2 and all(_positive(step) for step in spacing):
        return abs(spacing[1]), abs(spacing[0])
    return None, None


def _modality(regions: list[Any]) -> str | None:
    formats = {_number(region, "RegionSpatialFormat") for region in regions}
    if _FORMAT_SPECTRAL in formats:
        return "doppler"
    if _FORMAT_MMODE in formats:
        return "mmode"
    if any(_number(region, "RegionDataType") == _DATA_COLOUR_FLOW for region in regions):
        return "colour"
    return "2d" if _FORMAT_2D in formats else None


def _describe(header: DicomHeader) -> MediaProbe:
    tags, regions = header.tags, _regions(header.tags)
    spacing_x_mm, spacing_y_mm = _spacing_mm(tags, regions)
    height, width, n_frames = (_number(tags, name) for name in ("Rows", "Columns", "NumberOfFrames"))
    heart_rate = _number(tags, "HeartRate")
    return MediaProbe(
        container="dicom",
        codec=str(header.transfer_syntax.keyword or header.transfer_syntax),
        n_header_frames=None if n_frames is None else int(n_frames),
        fps=frame_rate(tags),
        height=None if height is None else int(height),
        width=None if width is None else int(width),
        patient_id=_text(tags, "PatientID"),
        study_id=_text(tags, "StudyInstanceUID"),
        sop_instance_uid=_text(tags, "SOPInstanceUID"),
        manufacturer=_text(tags, "Manufacturer"),
        model=_text(tags, "ManufacturerModelName"),
        modality=_modality(regions),
        spacing_x_mm=spacing_x_mm,
        spacing_y_mm=spacing_y_mm,
        n_regions=len(regions),
        heart_rate_bpm=heart_rate if heart_rate is not None and heart_rate > 0 else None,
    )


def open_dicom(payload: bytes, *, limits: DecodeLimits) -> FrameSource:
    """Return the `embedstore.media.dicom_pixels.DicomSource` of a file.

    Raises
    ------
    MediaError
        ``corrupt``, ``truncated``, ``no-pixels``, ``unsupported`` or ``too-large``.
    """
    from embedstore.media.dicom_pixels import DicomSource

    return DicomSource(payload, header=read_header(payload), limits=limits)


def probe_dicom(payload: bytes, *, limits: DecodeLimits) -> MediaProbe:
    """Return the facts in the tags, and count frames by the pixel data's structure.

    Raises
    ------
    MediaError
        The tags cannot be read.
    """
    from embedstore.media.dicom_pixels import DicomSource

    header = read_header(payload)
    with pydicom_quiet():
        probe = _describe(header)
    try:
        source = DicomSource(payload, header=header, limits=limits)
    except MediaError as error:
        return replace(probe, problem=str(error), problem_reason=error.reason)
    return with_frame_count(probe, source)
