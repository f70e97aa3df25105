"""Kernels that are not OpenCV's, against the libraries they stand for, on real frames and on noise."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from embedstore.errors import MissingExtraError, UnknownNameError
from encoders.preprocess import CentreCrop, Pipeline, step_record
from encoders.resampling import BgrOrder, FloatResize, PillowResize, PillowResizeShortSide, TensorflowResize

BICUBIC = transforms.InterpolationMode.BICUBIC


def noise(height: int, width: int, *, n_frames: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n_frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (301, 223), (200, 190), (96, 96)])
def test_short_side_and_crop_as_torchvision_on_pillow_images(height: int, width: int) -> None:
    frames = noise(height, width)
    ours = Pipeline((PillowResizeShortSide(size=96, kernel="bicubic"), CentreCrop(height=88, width=88)))(frames)
    theirs = transforms.Compose([transforms.Resize(96, BICUBIC), transforms.CenterCrop(88)])
    assert np.array_equal(ours, np.stack([np.asarray(theirs(Image.fromarray(frame))) for frame in frames]))


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_squeezing_as_pillow(kernel: str) -> None:
    frames = noise(100, 131)
    resampling = Image.Resampling[kernel.upper()]
    theirs = [np.asarray(Image.fromarray(frame).resize((64, 48), resampling)) for frame in frames]
    assert np.array_equal(PillowResize(height=48, width=64, kernel=kernel)(frames), np.stack(theirs))


@pytest.mark.parametrize(("height", "width"), [(240, 320), (40, 50), (64, 64)])
def test_float_resize_as_torchvision_on_float_tensors(height: int, width: int) -> None:
    frames = noise(height, width)
    tensors = torch.from_numpy(frames).movedim(3, 1).double()
    theirs = v2.functional.resize(tensors, [64, 64], antialias=True).movedim(1, 3).numpy()
    step = FloatResize(height=64, width=64)
    ours = step(frames)
    assert ours.dtype == np.float32 and Pipeline((step,)).dtype == "float32"
    assert np.abs(ours - theirs).max() < 1e-3  # of 255 grey levels
    if height > 64:
        assert np.abs(ours - np.rint(ours)).max() > 0.3, "levels were rounded"


@pytest.mark.parametrize(("height", "width"), [(240, 320), (601, 800), (97, 61), (128, 128)])
def test_tensorflow_resize_interpolates_unfiltered_and_cuts_off(height: int, width: int) -> None:
    frames = noise(height, width)
    tensors = torch.from_numpy(frames).movedim(3, 1).double()
    exact = torch.nn.functional.interpolate(tensors, size=(128, 128), mode="bilinear", align_corners=False)
    exact = exact.movedim(1, 3).numpy()
    ours = TensorflowResize(height=128, width=128)(frames)
    assert ours.dtype == np.uint8
    assert (ours <= exact + 1e-3).all() and (exact - ours < 1 + 1e-3).all()
    # Cutting off differs from the exact floor only where float32 falls just short of a whole level.
    off = np.floor(exact) != ours
    assert off.mean() < 0.01
    assert np.abs(exact[off] - np.rint(exact[off])).max(initial=0) < 1e-3


def test_tensorflow_resize_keeps_flat_regions() -> None:
    for level in range(256):
        frames = np.full((1, 31, 47, 3), level, dtype=np.uint8)
        assert (TensorflowResize(height=64, width=50)(frames) == level).all()


def test_frames_of_the_right_size_are_not_touched() -> None:
    frames = noise(32, 32)
    for step in (
        PillowResize(height=32, width=32, kernel="bicubic"),
        PillowResizeShortSide(size=32, kernel="bilinear"),
        TensorflowResize(height=32, width=32),
        FloatResize(height=32, width=32),
    ):
        assert np.array_equal(step(frames), frames)


def test_steps_take_views_and_leave_frames_alone(a4c_frames: np.ndarray) -> None:
    frames = a4c_frames[:2]
    kept = frames.copy()
    mirrored = frames[:, :, ::-1]
    for step in (
        PillowResize(height=20, width=30, kernel="bilinear"),
        TensorflowResize(height=20, width=30),
        FloatResize(height=20, width=30),
    ):
        assert np.array_equal(step(mirrored), step(np.ascontiguousarray(mirrored)))
    assert np.array_equal(frames, kept)


def test_bgr_reverses_channels_whatever_comes_before() -> None:
    frames = noise(10, 12)
    resize = PillowResize(height=5, width=6, kernel="bilinear")
    ours = Pipeline((resize, BgrOrder()))(frames)
    assert np.array_equal(ours, Pipeline((BgrOrder(), resize))(frames))
    assert np.array_equal(ours[..., 2], resize(frames)[..., 0])
    assert ours.flags.c_contiguous and not np.may_share_memory(ours, frames)


def test_missing_frames_are_zeros_of_the_same_dtype() -> None:
    made = Pipeline((FloatResize(height=4, width=4),))(noise(8, 8), n_missing=2)
    assert made.dtype == np.float32 and made.shape == (4, 4, 4, 3) and not made[2:].any()


def test_records_survive_their_json_form() -> None:
    pipeline = Pipeline(
        (
            PillowResizeShortSide(size=64, kernel="bicubic"),
            PillowResize(height=32, width=32, kernel="bilinear"),
            TensorflowResize(height=24, width=24),
            BgrOrder(),
            FloatResize(height=16, width=16),
        )
    )
    assert Pipeline.from_records([step_record(step) for step in pipeline.steps]) == pipeline


def test_unknown_kernels_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'bicubic'"):
        PillowResize(height=4, width=4, kernel="cubic")


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pillow.*embedstore\[media\]"):
        PillowResize(height=4, width=4, kernel="bicubic")(noise(8, 8))
