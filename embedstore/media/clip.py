"""`Clip`, `DecodeRecord`, `MediaProbe` and `DecodeLimits`: what reading media takes and gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import MediaError

__all__ = ["DEFAULT_LIMITS", "MIN_DECODED_RATIO", "Clip", "DecodeLimits", "DecodeRecord", "MediaProbe"]

# A clip that loses more than one frame in twenty is refused: header counts are off by a few in practice (OpenCV
# issue 11782: five frames), while a file cut short loses a large part.
MIN_DECODED_RATIO = 0.95


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What one file may cost; sizes that a header declares are held against these before memory is taken.

    Attributes
    ----------
    max_file_bytes : int
        Bytes of the file.
    max_expanded_bytes : int
        Bytes of a ``.nii.gz`` once unpacked.
    max_frame_pixels : int
        Height times width of one frame.
    max_total_pixels : int
        Pixels of the frames that are kept, three bytes each.
    max_frames : int
        Frames that are decoded.
    """

    max_file_bytes: int = 4 << 30
    max_expanded_bytes: int = 4 << 30
    max_frame_pixels: int = 4096 * 4096
    max_total_pixels: int = 1 << 30
    max_frames: int = 100_000

    def check_file(self, n_bytes: int) -> None:
        """Raise MediaError ``too-large`` where a file has more bytes than allowed, ``empty-file`` where none."""
        if n_bytes == 0:
            raise MediaError("the file has no bytes", reason="empty-file")
        self._check(n_bytes, self.max_file_bytes, "the file has {} bytes")

    def check_expanded(self, n_bytes: int) -> None:
        """Raise MediaError ``too-large`` where unpacking would take more bytes than allowed."""
        self._check(n_bytes, self.max_expanded_bytes, "the file unpacks to {} bytes")

    def check_frame(self, height: int, width: int) -> None:
        """Raise MediaError ``too-large`` where a frame has more pixels than allowed."""
        self._check(height * width, self.max_frame_pixels, f"a frame of {width} x {height} has {{}} pixels")

    def check_count(self, n_frames: int) -> None:
        """Raise MediaError ``too-large`` where there are more frames than may be decoded."""
        self._check(n_frames, self.max_frames, "the file has {} frames or more")

    def check_kept(self, n_frames: int, height: int, width: int) -> None:
        """Raise MediaError ``too-large`` where the kept frames have more pixels together than allowed."""
        self._check(n_frames * height * width, self.max_total_pixels, f"{n_frames} frames have {{}} pixels together")

    @staticmethod
    def _check(found: int, limit: int, sentence: str) -> None:
        if found > limit:
            raise MediaError(f"{sentence.format(f'{found:,}')}, the limit is {limit:,}", reason="too-large")


DEFAULT_LIMITS = DecodeLimits()


@dataclass(frozen=True, kw_only=True)
class DecodeRecord:
    """How a clip was decoded: what its header said, and what was counted.

    Attributes
    ----------
    container, codec : str
        E.g. ``avi`` and ``mjpeg``, ``dicom`` and ``JPEGBaseline8Bit``.
    n_header_frames : int or None
        Frames that the header declares, None where it declares none.
    n_decoded : int
        Frames that were decoded, kept or not.
    fps_header : float or None
        Frames per second that the header declares.
    n_errors : int
        Frames that could not be decoded, or that the decoder calls damaged.
    n_pts_gaps : int
        Steps of presentation time over 1.5 times the median step: lost frames, or a variable frame rate.
    height, width : int
        Of the decoded frames, in pixels.
    """

    container: str
    codec: str
    n_header_frames: int | None
    n_decoded: int
    fps_header: float | None
    n_errors: int
    n_pts_gaps: int
    height: int
    width: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only.

        Examples
        --------
        >>> record = DecodeRecord(container="png", codec="png", n_header_frames=None, n_decoded=1, fps_header=None,
        ...                       n_errors=0, n_pts_gaps=0, height=480, width=640)
        >>> record.to_dict()["n_decoded"]
        1
        """
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Decoded frames.

    Attributes
    ----------
    frames : (K, H, W, 3) uint8
        RGB frames that were asked for, in ascending order.
    frame_numbers : (K,) int64
        Position of each among all decoded frames, from 0.
    record : DecodeRecord
    """

    frames: npt.NDArray[np.uint8]
    frame_numbers: npt.NDArray[np.int64]
    record: DecodeRecord


@dataclass(frozen=True, kw_only=True)
class MediaProbe:
    """What a file says about itself, found without decoding pixels.

    Attributes
    ----------
    container : str or None
        ``avi``, ``mp4``, ``dicom``, ``nifti``, ``png`` or ``jpeg``; None where the content is none of these.
    codec : str or None
        Codec name, DICOM transfer syntax keyword, or NIfTI data type.
    n_frames : int or None
        Frames that the file holds, counted (packets, fragments, bytes), not those that its header declares.
    n_header_frames : int or None
        Frames that the header declares.
    fps : float or None
        Frames per second.
    height, width : int or None
        Of the frames that `read_clip` returns, in pixels.
    patient_id, study_id, sop_instance_uid, manufacturer, model : str or None
        DICOM PatientID, StudyInstanceUID, SOPInstanceUID, Manufacturer, ManufacturerModelName.
    modality : str or None
        ``2d``, ``colour``, ``doppler`` or ``mmode`` where DICOM ultrasound regions say so.
    spacing_x_mm, spacing_y_mm : float or None
        Size of a pixel of the largest 2-D ultrasound region, or of the NIfTI grid as it is returned.
    n_regions : int
        DICOM ultrasound regions.
    heart_rate_bpm : float or None
        DICOM HeartRate.
    problem : str or None
        One sentence where the file cannot be read, else None.
    problem_reason : str or None
        The short word for `problem`, as in MediaError.
    """

    container: str | None = None
    codec: str | None = None
    n_frames: int | None = None
    n_header_frames: int | None = None
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    patient_id: str | None = None
    study_id: str | None = None
    sop_instance_uid: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    modality: str | None = None
    spacing_x_mm: float | None = None
    spacing_y_mm: float | None = None
    n_regions: int = 0
    heart_rate_bpm: float | None = None
    problem: str | None = None
    problem_reason: str | None = None
