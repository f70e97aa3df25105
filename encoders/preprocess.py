"""Geometry of frames before a model sees them: picklable steps that run in the decode workers, without torch.

A `Pipeline` is a chain of frozen steps. Each step is also a JSON record, and the encoder's card holds those records:
what enters the fingerprint is what is run. Results stay uint8, a quarter of the bytes of float32 on their way from
a worker to the encoder, except where the published pipeline resizes without rounding; scaling by mean and standard
deviation happens in the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from embedstore.errors import MediaError, MissingExtraError, UnknownNameError, did_you_mean
from encoders.resampling import BgrOrder, FloatResize, PillowResize, PillowResizeShortSide, TensorflowResize

__all__ = [
    "CentreCrop",
    "CropAndScale",
    "Grey",
    "Interpolation",
    "Pipeline",
    "Resize",
    "ResizeShortSide",
    "SquareCrop",
    "Step",
    "step_record",
]

Interpolation = Literal["nearest", "linear", "cubic", "area"]
Frames = npt.NDArray[np.uint8]


class Step(Protocol):
    """One operation on all frames of a window, ``(T, H, W, 3)`` or ``(T, H, W)`` uint8 in and out.

    A step that gives float32 says so in a class attribute ``dtype``, and is the last but for `BgrOrder`.
    """

    name: ClassVar[str]

    def __call__(self, frames: Frames) -> Frames:
        """Return new frames, or a view; never change ``frames``."""


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            "resizing frames needs the package opencv-python-headless, which is not installed; "
            "install the extra with: pip install 'embedstore[media]'"
        ) from error
    return cv2


def _resized(frames: Frames, *, height: int, width: int, interpolation: str) -> Frames:
    """Resize with OpenCV's kernels (pixel centres at half integers; only ``area`` filters before shrinking)."""
    if frames.shape[1:3] == (height, width):
        return frames
    cv2 = _opencv()
    flag = getattr(cv2, f"INTER_{interpolation.upper()}")
    resized = np.empty((len(frames), height, width, *frames.shape[3:]), dtype=np.uint8)
    for source, target in zip(frames, resized, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=flag)
    return resized


def _check_interpolation(interpolation: str) -> None:
    known = ["nearest", "linear", "cubic", "area"]
    if interpolation not in known:
        raise UnknownNameError(f"unknown interpolation {interpolation!r}{did_you_mean(interpolation, known)}")


def _cut(frames: Frames, *, top: int, left: int, height: int, width: int) -> Frames:
    if min(height, width) < 1 or min(top, left) < 0 or height > frames.shape[1] or width > frames.shape[2]:
        raise MediaError(
            f"frames of {frames.shape[1]}x{frames.shape[2]} pixels are too small for the crop this encoder takes",
            reason="too-small",
        )
    return frames[:, top : top + height, left : left + width]


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Resize to exactly ``height`` x ``width`` pixels, whatever the aspect ratio."""

    name: ClassVar[str] = "resize"
    height: int
    width: int
    interpolation: Interpolation

    def __post_init__(self) -> None:
        _check_interpolation(self.interpolation)

    def __call__(self, frames: Frames) -> Frames:
        """Return ``(T, height, width, ...)``."""
        return _resized(frames, height=self.height, width=self.width, interpolation=self.interpolation)


@dataclass(frozen=True, kw_only=True)
class ResizeShortSide:
    """Resize so that the shorter side has ``size`` pixels; the longer is rounded down, as torchvision does."""

    name: ClassVar[str] = "resize-short-side"
    size: int
    interpolation: Interpolation

    def __post_init__(self) -> None:
        _check_interpolation(self.interpolation)

    def __call__(self, frames: Frames) -> Frames:
        """Return ``(T, size, >= size, ...)`` or ``(T, >= size, size, ...)``."""
        height, width = frames.shape[1:3]
        short = min(height, width)
        return _resized(
            frames,
            height=self.size * height // short,
            width=self.size * width // short,
            interpolation=self.interpolation,
        )


@dataclass(frozen=True, kw_only=True)
class CentreCrop:
    """Cut ``height`` x ``width`` pixels from the middle; an odd pixel more goes as `round` sends it."""

    name: ClassVar[str] = "centre-crop"
    height: int
    width: int

    def __call__(self, frames: Frames) -> Frames:
        """Return ``(T, height, width, ...)``.

        Raises
        ------
        MediaError
            The frames are smaller than the crop (reason ``too-small``).
        """
        top = round((frames.shape[1] - self.height) / 2)
        left = round((frames.shape[2] - self.width) / 2)
        return _cut(frames, top=top, left=left, height=self.height, width=self.width)


@dataclass(frozen=True, kw_only=True)
class SquareCrop:
    """Cut a central square whose side is ``fraction`` of the shorter side, rounded down.

    An odd pixel more is cut from the top and the left, as in the evaluation input of the TensorFlow EfficientNets
    (tensorflow/tpu, models/official/efficientnet/preprocessing.py, ``CROP_FRACTION = 0.875``).
    """

    name: ClassVar[str] = "square-crop"
    fraction: float

    def __call__(self, frames: Frames) -> Frames:
        """Return ``(T, side, side, ...)``."""
        height, width = frames.shape[1:3]
        side = int(self.fraction * min(height, width))
        return _cut(frames, top=(height - side + 1) // 2, left=(width - side + 1) // 2, height=side, width=side)


@dataclass(frozen=True, kw_only=True)
class CropAndScale:
    """Cut to the target's aspect ratio, zoom in, resize: what EchoPrime, EchoCLIP and CardioBench do to a frame.

    Half of what is too wide or too high is cut from either side, rounded; then ``int(zoom * side)`` pixels are
    dropped from each of the four sides (``zoom=0.1`` leaves about four fifths); then the rest is resized. Where a
    cut rounds to nothing, nothing is cut.
    """

    name: ClassVar[str] = "crop-and-scale"
    height: int
    width: int
    zoom: float
    interpolation: Interpolation

    def __post_init__(self) -> None:
        _check_interpolation(self.interpolation)

    def __call__(self, frames: Frames) -> Frames:
        """Return ``(T, height, width, ...)``."""
        height, width = frames.shape[1:3]
        wanted = self.width / self.height
        top = left = 0
        if width / height > wanted:
            left = round((width - wanted * height) / 2)
        else:
            top = round((height - width / wanted) / 2)
        height, width = height - 2 * top, width - 2 * left
        zoom_top, zoom_left = int(height * self.zoom), int(width * self.zoom)
        cut = _cut(
            frames,
            top=top + zoom_top,
            left=left + zoom_left,
            height=height - 2 * zoom_top,
            width=width - 2 * zoom_left,
        )
        return _resized(cut, height=self.height, width=self.width, interpolation=self.interpolation)


@dataclass(frozen=True, kw_only=True)
class Grey:
    """Turn RGB into luma: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded."""

    name: ClassVar[str] = "grey"

    def __call__(self, frames: Frames) -> Frames:
        """Return ``(T, H, W)`` from ``(T, H, W, 3)``."""
        n_frames, height, width = frames.shape[:3]
        cv2 = _opencv()
        tall = np.ascontiguousarray(frames).reshape(n_frames * height, width, 3)
        grey: Frames = cv2.cvtColor(tall, cv2.COLOR_RGB2GRAY).reshape(n_frames, height, width)
        return grey


_STEPS: dict[str, Any] = {
    step.name: step
    for step in (
        Resize,
        ResizeShortSide,
        CentreCrop,
        SquareCrop,
        CropAndScale,
        Grey,
        PillowResize,
        PillowResizeShortSide,
        FloatResize,
        TensorflowResize,
        BgrOrder,
    )
}


def step_record(step: Any) -> dict[str, Any]:
    """Return the JSON record of a step, as it stands in a card's ``preprocessing["steps"]``.

    Examples
    --------
    >>> step_record(SquareCrop(fraction=0.875))
    {'step': 'square-crop', 'fraction': 0.875}
    """
    return {"step": step.name, **asdict(step)}


@dataclass(frozen=True)
class Pipeline:
    """Steps in their order: an `embedstore.encoder.Preprocess` for frame encoders.

    Parameters
    ----------
    steps : tuple of Step
        At least none; applied first to last.

    Examples
    --------
    >>> whole = Pipeline((Resize(height=4, width=4, interpolation="area"),))
    >>> whole(np.zeros((2, 8, 6, 3), dtype=np.uint8), n_missing=1).shape
    (3, 4, 4, 3)
    """

    steps: tuple[Step, ...]

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]]) -> Pipeline:
        """Build the steps that `step_record` wrote.

        Raises
        ------
        UnknownNameError
            A record names no known step, or a field that the step does not have.
        """
        steps = []
        for record in records:
            fields = dict(record)
            name = str(fields.pop("step", ""))
            if name not in _STEPS:
                raise UnknownNameError(f"unknown preprocessing step {name!r}{did_you_mean(name, list(_STEPS))}")
            try:
                steps.append(_STEPS[name](**fields))
            except TypeError as error:
                raise UnknownNameError(
                    f"preprocessing step {name!r} cannot take {sorted(fields)}: {error}"
                ) from error
        return cls(tuple(steps))

    @property
    def dtype(self) -> str:
        """The dtype of the result, ``uint8`` or ``float32``."""
        return "float32" if any(getattr(step, "dtype", "uint8") == "float32" for step in self.steps) else "uint8"

    def __call__(self, frames: Frames, *, n_missing: int = 0) -> npt.NDArray[Any]:
        """Run the steps on one window.

        Parameters
        ----------
        frames : (T, H, W, 3) uint8
            RGB frames.
        n_missing : int
            How many frames of zeros to append to the result.

        Returns
        -------
        (T + n_missing, ...) uint8 or float32
            Of `dtype`, contiguous, never a view of ``frames``.

        Raises
        ------
        MediaError
            ``frames`` are not RGB frames (reason ``bad-frames``), or too small for a crop (``too-small``).
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise MediaError(
                f"an encoder takes (T, H, W, 3) uint8 frames, got {frames.shape} {frames.dtype}", reason="bad-frames"
            )
        made: npt.NDArray[Any] = frames
        for step in self.steps:
            made = step(made)
        if n_missing or np.may_share_memory(made, frames):
            padded = np.zeros((len(made) + n_missing, *made.shape[1:]), dtype=made.dtype)
            padded[: len(made)] = made
            return padded
        return np.ascontiguousarray(made)
