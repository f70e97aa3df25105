"""The two ways to read media: `probe_media` says what a file is, `read_clip` decodes it.

Both take the bytes of a file, read once by the caller, so that what was hashed is what is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from embedstore.errors import MediaError
from embedstore.media.clip import DEFAULT_LIMITS, Clip, DecodeLimits, DecodeRecord, MediaProbe
from embedstore.media.sniff import sniff_container
from embedstore.media.source import Frame, FrameSource, Tally, check_complete

__all__ = ["FrameChoice", "probe_media", "read_clip"]

FrameChoice = Callable[[int], Sequence[int]] | Sequence[int] | None


def _container_of(payload: bytes, limits: DecodeLimits) -> str:
    limits.check_file(len(payload))
    container = sniff_container(payload)
    if container is None:
        raise MediaError("the content is not AVI, MP4, DICOM, NIfTI, PNG or JPEG", reason="not-media")
    return container


def _open_source(payload: bytes, limits: DecodeLimits) -> FrameSource:
    container = _container_of(payload, limits)
    if container in ("avi", "mp4"):
        from embedstore.media.video import VideoSource

        return VideoSource(payload, container=container, limits=limits)
    if container == "dicom":
        from embedstore.media.dicom import open_dicom

        return open_dicom(payload, limits=limits)
    if container == "nifti":
        from embedstore.media.nifti import NiftiSource

        return NiftiSource(payload, limits=limits)
    from embedstore.media.still import StillSource

    return StillSource(payload, container=container, limits=limits)


def probe_media(payload: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS) -> MediaProbe:
    """Return what a file says about itself, decoding no pixels; a file that cannot be read has a `problem`.

    Parameters
    ----------
    payload : bytes
        The whole file.
    limits : DecodeLimits

    Raises
    ------
    MissingExtraError
        A decoder is not installed.

    Examples
    --------
    >>> probe_media(b"not a video").problem_reason
    'not-media'
    """
    container = None
    try:
        container = _container_of(payload, limits)
        if container in ("avi", "mp4"):
            from embedstore.media.video import probe_video

            return probe_video(payload, container=container, limits=limits)
        if container == "dicom":
            from embedstore.media.dicom import probe_dicom

            return probe_dicom(payload, limits=limits)
        if container == "nifti":
            from embedstore.media.nifti import probe_nifti

            return probe_nifti(payload, limits=limits)
        from embedstore.media.still import probe_still

        return probe_still(payload, container=container, limits=limits)
    except MediaError as error:
        return MediaProbe(container=container, problem=str(error), problem_reason=error.reason)


class _Keeper:
    """Holds the frames that were asked for in one array, made when the first frame shows its size."""

    def __init__(self, wanted: Sequence[int] | None, *, n_expected: int, limits: DecodeLimits) -> None:
        self._wanted = None if wanted is None else frozenset(wanted)
        self._capacity = n_expected if wanted is None else len(wanted)
        self._limits = limits
        self._frames: Frame | None = None
        self._numbers: list[int] = []

    def offer(self, number: int, make: Callable[[], Frame]) -> None:
        if self._wanted is not None and number not in self._wanted:
            return
        frame = make()
        if self._frames is None:
            self._limits.check_frame(*frame.shape[:2])
            self._limits.check_kept(self._capacity, *frame.shape[:2])
            self._frames = np.empty((max(self._capacity, 1), *frame.shape), dtype=np.uint8)
        elif len(self._numbers) == len(self._frames):  # more frames than the file seemed to hold
            capacity = len(self._frames) + max(16, len(self._frames) // 4)
            self._limits.check_kept(capacity, *frame.shape[:2])
            self._frames = np.concatenate([self._frames, np.empty_like(self._frames[: capacity - len(self._frames)])])
        self._frames[len(self._numbers)] = frame
        self._numbers.append(number)

    def has(self, wanted: Sequence[int] | None) -> bool:
        return wanted is None if self._wanted is None else wanted is not None and self._wanted.issuperset(wanted)

    def taken(self, wanted: Sequence[int] | None, *, size: tuple[int, int]) -> tuple[Frame, npt.NDArray[np.int64]]:
        numbers = np.array(self._numbers if wanted is None else wanted, dtype=np.int64)
        if self._frames is None:
            return np.empty((0, *size, 3), dtype=np.uint8), numbers
        if len(numbers) == len(self._frames):
            return self._frames, numbers
        return self._frames[np.searchsorted(self._numbers, numbers)], numbers


def _numbers_of(select: FrameChoice, n_frames: int) -> list[int] | None:
    if select is None:
        return None
    chosen = sorted({int(number) for number in (select(n_frames) if callable(select) else select)})
    if chosen and chosen[0] < 0:
        raise ValueError(f"frame numbers start from 0, got {chosen[0]}")
    return chosen


def _decode(source: FrameSource, keeper: _Keeper, limits: DecodeLimits) -> tuple[int, Tally]:
    tally, n_decoded = Tally(), 0
    for make in source.frames(tally):
        limits.check_count(n_decoded + 1)
        keeper.offer(n_decoded, make)
        n_decoded += 1
    return n_decoded, tally


def read_clip(
    payload: bytes,
    *,
    select: FrameChoice = None,
    n_expected: int | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> Clip:
    """Decode a file once, in order, counting every frame, and keep the frames that are asked for.

    Parameters
    ----------
    payload : bytes
        The whole file.
    select : sequence of int, callable, or None
        Frame numbers to keep; a callable is told how many frames there are and returns them. It is told the
        expected number first and, where decoding counts another, called again with the true one. None keeps all.
    n_expected : int or None
        How many frames a manifest says there are; None counts packets first.
    limits : DecodeLimits

    Returns
    -------
    Clip
        With the distinct frames of the last `select`, ascending.

    Raises
    ------
    MediaError
        With reason ``empty-file``, ``not-media``, ``no-video-stream``, ``no-pixels``, ``unsupported``,
        ``too-large``, ``truncated`` (frames are missing), ``corrupt`` (frames are there and cannot be decoded) or
        ``frame-outside`` (a frame was asked for that the clip does not have).
    MissingExtraError
        A decoder is not installed.
    ValueError
        A frame number is negative.
    """
    source = _open_source(payload, limits)
    expected = source.n_found if n_expected is None or select is None else n_expected
    wanted: list[int] | None = []
    told: int | None = expected
    try:
        wanted = _numbers_of(select, expected)
    except MediaError:
        told = None  # perhaps only because the expectation is wrong: ask again when the frames are counted
    keeper = _Keeper(wanted, n_expected=expected, limits=limits)
    n_decoded, tally = _decode(source, keeper, limits)
    check_complete(source, n_decoded, n_damaged=tally.n_damaged)
    if callable(select) and n_decoded != told:
        wanted = _numbers_of(select, n_decoded)
        if not keeper.has(wanted):
            keeper = _Keeper(wanted, n_expected=n_decoded, limits=limits)
            n_decoded, tally = _decode(source, keeper, limits)
    if wanted and wanted[-1] >= n_decoded:
        raise MediaError(
            f"frame {wanted[-1]} was asked for, but the clip has {n_decoded} frames (from 0)", reason="frame-outside"
        )
    height, width = source.size
    frames, frame_numbers = keeper.taken(wanted, size=source.size)
    record = DecodeRecord(
        container=source.container,
        codec=source.codec,
        n_header_frames=source.n_header_frames,
        n_decoded=n_decoded,
        fps_header=source.fps,
        n_errors=tally.n_errors,
        n_pts_gaps=tally.count_gaps(),
        height=height,
        width=width,
    )
    return Clip(frames=frames, frame_numbers=frame_numbers, record=record)
