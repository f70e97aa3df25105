"""NIfTI sequences: first axis x, second y, third time; transposed to (T, y, x) frames of square pixels.

NIfTI has no layout of its own for colour sequences. Three are read: the RGB24 and RGBA32 data types, vector images
(X, Y, T, 1, 3), and (H, W, T, 3), which is a numpy video written as it was and therefore has rows first.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import MediaError
from embedstore.media.clip import DecodeLimits, MediaProbe
from embedstore.media.source import (
    Frame,
    Tally,
    ValueRange,
    as_rgb,
    load_decoder,
    plausible_fps,
    with_frame_count,
)

__all__ = ["NiftiSource", "probe_nifti"]

_HEADER_BYTES = {348: "Nifti1Header", 540: "Nifti2Header"}
_SQUARE_TOLERANCE = 0.05
_MAX_ASPECT = 16.0
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_MAX_STEP_S = 0.5
_INFLATE_STEP = 1 << 20
# What nibabel raises on damaged headers, besides its own errors, which derive from Exception and are caught by name.
_HEADER_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, EOFError, OSError, struct.error)


@contextmanager
def _nibabel_quiet() -> Iterator[None]:
    """Keep nibabel's remarks on headers off the terminal."""
    logger = logging.getLogger("nibabel")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was_disabled


class _Inflater:
    """Unpacks a gzip stream piece by piece, so that no more memory is taken than its header accounts for."""

    def __init__(self, payload: bytes) -> None:
        self._left: bytes = payload
        self._stream = zlib.decompressobj(wbits=31)

    def read(self, n_bytes: int) -> bytes:
        """Return up to ``n_bytes`` more; fewer where the stream ends.

        Raises
        ------
        zlib.error
            The stream is damaged.
        """
        pieces, wanted = [], n_bytes
        while wanted > 0:
            if self._stream.eof:
                self._left = self._stream.unused_data
                if self._left[:2] != b"\x1f\x8b":  # the end, or padding
                    break
                self._stream = zlib.decompressobj(wbits=31)
            piece = self._stream.decompress(self._left, min(wanted, _INFLATE_STEP))
            self._left = self._stream.unconsumed_tail
            if not piece and not self._stream.eof and not self._left:
                break
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)


@dataclass(frozen=True)
class _Axes:
    """How the voxels, in file order (first axis fastest), become (T, y, x) or (T, y, x, C).

    Attributes
    ----------
    shape : tuple of int
        In file order; RGB data types have their components as an axis of their own, the first.
    order : tuple of int
        Axes of `shape` in the order time, y, x and, where there is one, colour.
    x_zoom, y_zoom : int
        Which of the header's spacings belong to x and y.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    x_zoom: int = 0
    y_zoom: int = 1

    @property
    def n_frames(self) -> int:
        return self.shape[self.order[0]]

    @property
    def size(self) -> tuple[int, int]:
        return self.shape[self.order[1]], self.shape[self.order[2]]

    @property
    def is_time_slowest(self) -> bool:
        return self.order[0] == len(self.shape) - 1


def _read_axes(shape: tuple[int, ...], *, n_components: int) -> _Axes:
    if not shape or any(side < 1 for side in shape):
        raise MediaError(f"the NIfTI header's shape is {shape}", reason="corrupt")
    sides = list(shape)
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    sides += [1] * (3 - len(sides)) if len(sides) == 2 else []
    if n_components == 1:
        if len(sides) == 5 and sides[4] == 3 and 1 in sides[2:4]:
            return _checked(_Axes((*sides[:2], sides[2] * sides[3], 3), (2, 1, 0, 3)), shape)
        if len(sides) == 4 and sides[3] == 3 and sides[2] > 1:
            return _checked(_Axes(tuple(sides), (2, 0, 1, 3), x_zoom=1, y_zoom=0), shape)
    if len(sides) == 4 and sides[2] == 1:
        del sides[2]
    if len(sides) != 3:
        raise MediaError(f"a NIfTI of shape {shape} is no still and no sequence of frames", reason="unsupported")
    if n_components > 1:
        return _checked(_Axes((n_components, *sides), (3, 2, 1, 0)), shape)
    return _checked(_Axes(tuple(sides), (2, 1, 0)), shape)


def _checked(axes: _Axes, shape: tuple[int, ...]) -> _Axes:
    if min(axes.size) < 2:
        raise MediaError(f"a NIfTI of shape {shape} has frames of one line", reason="unsupported")
    return axes


def _read_header(head: bytes) -> Any:
    nibabel = load_decoder("nibabel", "nibabel", what="reading NIfTI")
    sizes = {struct.unpack(f"{order}i", head[:4])[0] for order in "<>"}
    n_bytes = next(iter(sizes & set(_HEADER_BYTES)))
    if len(head) < n_bytes:
        raise MediaError("the NIfTI file ends within its header", reason="truncated")
    errors = (*_HEADER_ERRORS, nibabel.spatialimages.HeaderDataError)
    try:
        with _nibabel_quiet():
            header = getattr(nibabel, _HEADER_BYTES[n_bytes])(head[:n_bytes], check=False)
            header.get_data_dtype(), header.get_data_shape(), header.get_zooms(), header.get_xyzt_units()
    except errors as error:
        raise MediaError(f"the NIfTI header cannot be read ({type(error).__name__})", reason="corrupt") from error
    return header


def _component_type(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int]:
    """Return the type of one number and how many stand in a voxel."""
    if dtype.fields is not None and dtype.itemsize in (3, 4):
        return np.dtype(np.uint8), dtype.itemsize
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise MediaError(f"NIfTI voxels of type {dtype} are not read as an image", reason="unsupported")
    return dtype, 1


class NiftiSource:
    """A ``.nii`` or ``.nii.gz`` in memory.

    Raises
    ------
    MediaError
        ``corrupt``, ``truncated``, ``unsupported`` (a shape or data type that is no sequence of images) or
        ``too-large``, judged by the header before anything is unpacked.
    """

    container = "nifti"

    def __init__(self, payload: bytes, *, limits: DecodeLimits) -> None:
        self._payload = payload
        with _damage_is_corruption():
            header = _read_header(self._start().read(max(_HEADER_BYTES)))
        self._dtype, n_components = _component_type(header.get_data_dtype())
        shape = tuple(int(side) for side in header.get_data_shape())
        self._axes = _read_axes(shape, n_components=n_components)
        self.codec = {1: self._dtype.name, 3: "rgb24", 4: "rgba32"}[n_components]
        self.n_header_frames: int | None = self._axes.n_frames
        self.fps = _frame_rate(header, shape)
        self._offset = _voxel_offset(header)
        self._n_bytes = math.prod(self._axes.shape) * self._dtype.itemsize
        limits.check_expanded(self._offset + self._n_bytes)
        limits.check_frame(*self._axes.size)
        limits.check_count(self._axes.n_frames)
        self._resized, self.spacing_mm = _square(self._axes.size, _spacing(header, self._axes))
        limits.check_frame(*self.size)
        slope = float(header["scl_slope"])
        self._is_inverted = math.isfinite(slope) and slope < 0
        self._loaded: npt.NDArray[Any] | None = None

    def _start(self) -> Any:
        return _Inflater(self._payload) if self._payload[:2] == b"\x1f\x8b" else io.BytesIO(self._payload)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, after resampling to square pixels."""
        return self._resized or self._axes.size

    @property
    def n_held(self) -> int:
        """Frames that the header's shape says."""
        return self._axes.n_frames

    @property
    def n_found(self) -> int:
        """Frames whose voxels are all there."""
        return int(self._load().shape[0])

    def _load(self) -> npt.NDArray[Any]:
        """Return (T, y, x) or (T, y, x, C) voxels as stored, of the frames that are whole."""
        if self._loaded is None:
            with _damage_is_corruption():
                stream = self._start()
                stream.read(self._offset)
                voxels = stream.read(self._n_bytes)
                stream.read(_INFLATE_STEP)  # to the end, where gzip's checksum stands
            n_frames, shape = self._axes.n_frames, list(self._axes.shape)
            if len(voxels) < self._n_bytes:
                n_frames = len(voxels) * n_frames // self._n_bytes if self._axes.is_time_slowest else 0
            shape[self._axes.order[0]] = n_frames
            found = np.frombuffer(voxels, dtype=self._dtype, count=math.prod(shape)).reshape(shape, order="F")
            self._loaded = found.transpose(self._axes.order)
        return self._loaded

    def frames(self, tally: Tally) -> Iterator[Callable[[], Frame]]:
        """Yield all frames; see `embedstore.media.source.FrameSource.frames`."""
        voxels = self._load()
        scale = ValueRange()
        if voxels.dtype != np.uint8:
            for values in voxels:
                scale.widen(values)
        for values in voxels:
            yield partial(self._to_rgb, values, scale)

    def _to_rgb(self, values: npt.NDArray[Any], scale: ValueRange) -> Frame:
        frame = values if values.dtype == np.uint8 else scale.to_bytes(values)
        frame = np.ascontiguousarray(frame[..., :3] if frame.ndim == 3 else frame)
        if self._is_inverted:
            frame = 255 - frame
        if self._resized is not None:
            cv2 = load_decoder("cv2", "opencv-python-headless", what="resampling NIfTI to square pixels")
            frame = np.asarray(cv2.resize(frame, self._resized[::-1], interpolation=cv2.INTER_LINEAR))
        return as_rgb(frame) if frame.ndim == 2 else frame


@contextmanager
def _damage_is_corruption() -> Iterator[None]:
    try:
        yield
    except zlib.error as error:
        raise MediaError("the gzip stream of the NIfTI file is damaged", reason="corrupt") from error


def _voxel_offset(header: Any) -> int:
    if bytes(header["magic"]).startswith(b"ni"):
        raise MediaError("the voxels of this NIfTI header lie in another file", reason="unsupported")
    offset = float(header["vox_offset"])
    if not int(header.sizeof_hdr) <= offset < 2**40:
        raise MediaError(f"the NIfTI header puts the voxels at byte {offset:g}", reason="corrupt")
    return int(offset)


def _zooms(header: Any) -> list[float]:
    """Return the header's spacings; by way of text, which gives a float32 the digits that its writer meant."""
    return [float(str(zoom)) for zoom in header.get_zooms()]


def _spacing(header: Any, axes: _Axes) -> tuple[float | None, float | None]:
    """Return the spacing (x, y) in mm; NIfTI without a unit is taken for mm, and 1 by 1 without a unit for unset."""
    zooms = _zooms(header)
    unit = header.get_xyzt_units()[0]
    scale = {"meter": 1000.0, "micron": 1e-3}.get(unit, 1.0)
    if max(axes.x_zoom, axes.y_zoom) >= len(zooms):
        return None, None
    x, y = (abs(zooms[axis]) * scale for axis in (axes.x_zoom, axes.y_zoom))
    is_unset = unit == "unknown" and x == y == 1.0
    if is_unset or not all(math.isfinite(step) and step > 0 for step in (x, y)):
        return None, None
    return x, y


def _square(
    size: tuple[int, int], spacing: tuple[float | None, float | None]
) -> tuple[tuple[int, int] | None, tuple[float | None, float | None]]:
    """Return the size to resample to, None where pixels are square to 5 %, and the spacing (x, y) afterwards."""
    x, y = spacing
    if x is None or y is None or max(x, y) <= min(x, y) * (1 + _SQUARE_TOLERANCE):
        return None, spacing
    if max(x, y) > min(x, y) * _MAX_ASPECT:
        raise MediaError(f"the NIfTI header's pixels are {x:g} by {y:g} mm", reason="unsupported")
    step = min(x, y)
    return (round(size[0] * y / step), round(size[1] * x / step)), (step, step)


def _frame_rate(header: Any, shape: tuple[int, ...]) -> float | None:
    """Return frames per second where the header has a unit of time and a step below half a second.

    A step of 1 s is what writers leave in place of an unknown one.
    """
    zooms, unit = _zooms(header), header.get_xyzt_units()[1]
    axis = 3 if len(shape) > 3 and shape[2] == 1 else 2
    if unit not in _SECONDS or axis >= len(zooms):
        return None
    step_s = zooms[axis] * _SECONDS[unit]
    # Six digits are what a float32 step has to give: 1 / 30 s is 30 fps.
    return plausible_fps(float(f"{1.0 / step_s:.6g}")) if 0 < step_s <= _MAX_STEP_S else None


def probe_nifti(payload: bytes, *, limits: DecodeLimits) -> MediaProbe:
    """Return the facts in the header, and count the frames whose voxels are there.

    Raises
    ------
    MediaError
        As `NiftiSource`.
    """
    source = NiftiSource(payload, limits=limits)
    height, width = source.size
    probe = MediaProbe(
        container="nifti",
        codec=source.codec,
        n_header_frames=source.n_header_frames,
        fps=source.fps,
        height=height,
        width=width,
        spacing_x_mm=source.spacing_mm[0],
        spacing_y_mm=source.spacing_mm[1],
    )
    return with_frame_count(probe, source)
