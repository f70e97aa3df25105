"""Resizing as the authors of published models do it, where that is not OpenCV: Pillow's and TensorFlow's kernels.

A model sees the kernel that it was evaluated with, pixel for pixel: Pillow filters before it shrinks, OpenCV and
TensorFlow (``antialias=False``) do not, and the three round differently. The steps run in the decode workers and
need numpy and Pillow only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from embedstore.errors import MissingExtraError, UnknownNameError, did_you_mean

__all__ = ["BgrOrder", "FloatResize", "PillowKernel", "PillowResize", "PillowResizeShortSide", "TensorflowResize"]

PillowKernel = Literal["bilinear", "bicubic"]
Pixels = npt.NDArray[Any]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "resizing frames as this encoder's authors do needs the package pillow, which is not installed; "
            "install the extra with: pip install 'embedstore[media]'"
        ) from error
    return Image


def _check_kernel(kernel: str) -> None:
    known = ["bilinear", "bicubic"]
    if kernel not in known:
        raise UnknownNameError(f"unknown Pillow kernel {kernel!r}{did_you_mean(kernel, known)}")


def _pillow_resized(frames: Pixels, *, height: int, width: int, kernel: str) -> Pixels:
    if frames.shape[1:3] == (height, width):
        return frames
    image_module = _pillow()
    resampling = getattr(image_module.Resampling, kernel.upper())
    resized = np.empty((len(frames), height, width, *frames.shape[3:]), dtype=np.uint8)
    for source, target in zip(frames, resized, strict=True):
        image = image_module.fromarray(np.ascontiguousarray(source))
        target[...] = np.asarray(image.resize((width, height), resampling))
    return resized


@dataclass(frozen=True, kw_only=True)
class PillowResize:
    """Resize to exactly ``height`` x ``width`` pixels with Pillow, which filters before it shrinks."""

    name: ClassVar[str] = "pillow-resize"
    height: int
    width: int
    kernel: PillowKernel

    def __post_init__(self) -> None:
        _check_kernel(self.kernel)

    def __call__(self, frames: Pixels) -> Pixels:
        """Return ``(T, height, width, 3)`` uint8."""
        return _pillow_resized(frames, height=self.height, width=self.width, kernel=self.kernel)


@dataclass(frozen=True, kw_only=True)
class PillowResizeShortSide:
    """Resize with Pillow so that the shorter side has ``size`` pixels; the longer is rounded down, as torchvision."""

    name: ClassVar[str] = "pillow-resize-short-side"
    size: int
    kernel: PillowKernel

    def __post_init__(self) -> None:
        _check_kernel(self.kernel)

    def __call__(self, frames: Pixels) -> Pixels:
        """Return ``(T, size, >= size, 3)`` or ``(T, >= size, size, 3)`` uint8."""
        height, width = frames.shape[1:3]
        short = min(height, width)
        return _pillow_resized(
            frames, height=self.size * height // short, width=self.size * width // short, kernel=self.kernel
        )


@dataclass(frozen=True, kw_only=True)
class FloatResize:
    """Resize in float32 with a bilinear kernel that filters before shrinking, without rounding to whole levels.

    What `torchvision.transforms.v2.functional.resize(antialias=True)` does to a float image; grey levels stay in
    0 to 255 here and are scaled by the encoder.
    """

    name: ClassVar[str] = "float-resize"
    dtype: ClassVar[str] = "float32"
    height: int
    width: int

    def __call__(self, frames: Pixels) -> Pixels:
        """Return ``(T, height, width, 3)`` float32."""
        wide = np.ascontiguousarray(np.moveaxis(frames, 3, 1), dtype=np.float32)
        if frames.shape[1:3] == (self.height, self.width):
            return np.ascontiguousarray(np.moveaxis(wide, 1, 3))
        image_module = _pillow()
        bilinear = image_module.Resampling.BILINEAR
        resized = np.empty((len(frames), 3, self.height, self.width), dtype=np.float32)
        for source, target in zip(
            wide.reshape(-1, *wide.shape[2:]), resized.reshape(-1, *resized.shape[2:]), strict=True
        ):
            target[...] = np.asarray(image_module.fromarray(source).resize((self.width, self.height), bilinear))
        return np.ascontiguousarray(np.moveaxis(resized, 1, 3))


@dataclass(frozen=True, kw_only=True)
class TensorflowResize:
    """Resize as ``tf.image.resize(method="bilinear", antialias=False)`` and cast to uint8, which cuts off.

    The model card of MedSigLIP recommends exactly this for its published results. Samples lie at half pixels; the
    two interpolations run in float32, across first, each as ``a + (b - a) * share``
    (tensorflow/core/kernels/image/resize_bilinear_op.cc), so that flat regions keep their level.
    """

    name: ClassVar[str] = "tensorflow-resize"
    height: int
    width: int

    def __call__(self, frames: Pixels) -> Pixels:
        """Return ``(T, height, width, 3)`` uint8."""
        if frames.shape[1:3] == (self.height, self.width):
            return frames
        top, below, down = _taps(frames.shape[1], self.height)
        left, right, across = _taps(frames.shape[2], self.width)
        across, down = across[:, None], down[:, None, None]
        resized = np.empty((len(frames), self.height, self.width, 3), dtype=np.uint8)
        for source, target in zip(frames, resized, strict=True):
            level = source.astype(np.float32)
            line = level[:, left]
            line += (level[:, right] - line) * across
            made = line[top]
            made += (line[below] - made) * down
            target[...] = made.astype(np.uint8)
        return resized


def _taps(n_in: int, n_out: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return for each output its two source positions and the share of the second, in float32 as TensorFlow."""
    scale = np.float32(n_in) / np.float32(n_out)
    centre = (np.arange(n_out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    below = np.floor(centre)
    lower = np.maximum(below, 0).astype(np.int64)
    upper = np.minimum(np.ceil(centre), n_in - 1).astype(np.int64)
    return lower, np.maximum(upper, 0), (centre - below).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class BgrOrder:
    """Reverse the channels: blue first, for models whose authors feed OpenCV's frames as they come."""

    name: ClassVar[str] = "bgr-order"

    def __call__(self, frames: Pixels) -> Pixels:
        """Return ``(T, H, W, 3)`` with red and blue exchanged."""
        return frames[..., ::-1]
