"""Steps against straight-line versions of what they say they do."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import MediaError, MissingExtraError, UnknownNameError
from encoders.preprocess import (
    CentreCrop,
    CropAndScale,
    Grey,
    Pipeline,
    Resize,
    ResizeShortSide,
    SquareCrop,
    step_record,
)

SIDES = st.integers(1, 60)


def noise(height: int, width: int, *, n_frames: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n_frames, height, width, 3), dtype=np.uint8)


def test_area_resize_is_the_mean_of_blocks() -> None:
    frames = noise(12, 20)
    blocks = frames.reshape(2, 4, 3, 4, 5, 3).mean(axis=(2, 4))
    resized = Resize(height=4, width=4, interpolation="area")(frames)
    assert np.abs(resized - blocks).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("height", "width"), [(31, 47), (100, 60)])
def test_linear_resize_samples_between_pixel_centres(height: int, width: int) -> None:
    frames = noise(height, width)
    rows = np.clip((np.arange(24) + 0.5) * height / 24 - 0.5, 0, height - 1)
    columns = np.clip((np.arange(18) + 0.5) * width / 18 - 0.5, 0, width - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (rows - top)[None, :, None, None], (columns - left)[None, None, :, None]
    upper = frames[:, top][:, :, left] * (1 - across) + frames[:, top][:, :, right] * across
    lower = frames[:, below][:, :, left] * (1 - across) + frames[:, below][:, :, right] * across
    resized = Resize(height=24, width=18, interpolation="linear")(frames)
    assert np.abs(resized - (upper * (1 - down) + lower * down)).max() <= 1.0


@pytest.mark.parametrize(("height", "width", "shape"), [(50, 101, (20, 40)), (101, 50, (40, 20)), (20, 20, (20, 20))])
def test_short_side_keeps_the_aspect_ratio(height: int, width: int, shape: tuple[int, int]) -> None:
    assert ResizeShortSide(size=20, interpolation="area")(noise(height, width)).shape == (2, *shape, 3)


def test_centre_crop_cuts_the_middle() -> None:
    frames = noise(10, 9)
    assert np.array_equal(CentreCrop(height=4, width=3)(frames), frames[:, 3:7, 3:6])


@pytest.mark.parametrize(("height", "width"), [(240, 320), (300, 223), (8, 8), (2, 2)])
def test_square_crop_as_tensorflow_computes_it(height: int, width: int) -> None:
    frames = noise(height, width, n_frames=1)
    side = int(np.float32(224 / (224 + 32)) * np.float32(min(height, width)))
    top, left = ((height - side) + 1) // 2, ((width - side) + 1) // 2
    cropped = SquareCrop(fraction=0.875)(frames)
    assert np.array_equal(cropped, frames[:, top : top + side, left : left + side])


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        # 60x80 to a square: ten columns go from either side; a tenth of 60 from each of the four.
        (60, 80, (6, 54), (16, 64)),
        (80, 60, (16, 64), (6, 54)),
        (60, 60, (6, 54), (6, 54)),
        # Half a column too many rounds to none: nothing is cut on that side, where a slice [0:-0] would be empty.
        (60, 61, (6, 54), (6, 55)),
    ],
)
def test_crop_and_scale_cuts_then_zooms(
    height: int, width: int, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    frames = noise(height, width)
    cut = frames[:, slice(*rows), slice(*columns)]
    wanted = Resize(height=32, width=32, interpolation="cubic")(cut)
    made = CropAndScale(height=32, width=32, zoom=0.1, interpolation="cubic")(frames)
    assert np.array_equal(made, wanted)


@given(height=SIDES, width=SIDES, zoom=st.sampled_from([0.0, 0.1, 0.4]))
@settings(max_examples=60, deadline=None)
def test_crop_and_scale_takes_any_size(height: int, width: int, zoom: float) -> None:
    step = CropAndScale(height=16, width=24, zoom=zoom, interpolation="area")
    try:
        made = step(noise(height, width))
    except MediaError as error:
        assert error.reason == "too-small" and min(height, width) < 3
    else:
        assert made.shape == (2, 16, 24, 3)


def test_grey_is_bt601_luma() -> None:
    frames = noise(7, 5)
    assert np.abs(Grey()(frames) - frames @ np.array([0.299, 0.587, 0.114])).max() <= 0.51


def test_steps_work_on_views_and_leave_frames_alone() -> None:
    frames = noise(40, 60)
    kept = frames.copy()
    pipeline = Pipeline((CentreCrop(height=30, width=30), Resize(height=8, width=8, interpolation="linear"), Grey()))
    made = pipeline(frames[:, :, ::-1][:, :, ::-1])
    assert np.array_equal(made, pipeline(frames)) and np.array_equal(frames, kept)


def test_pipeline_never_hands_out_the_decoders_memory() -> None:
    frames = noise(8, 8)
    made = Pipeline(())(frames)
    made[:] = 0
    assert frames.any() and made.flags.c_contiguous
    assert not np.may_share_memory(Pipeline((CentreCrop(height=8, width=8),))(frames), frames)


def test_missing_frames_are_zeros_at_the_end() -> None:
    frames = noise(8, 8) | 1
    made = Pipeline((Resize(height=4, width=4, interpolation="area"),))(frames, n_missing=3)
    assert made.shape == (5, 4, 4, 3)
    assert made[:2].all() and not made[2:].any()


def test_records_hold_everything() -> None:
    pipeline = Pipeline(
        (
            ResizeShortSide(size=64, interpolation="cubic"),
            CentreCrop(height=60, width=50),
            SquareCrop(fraction=0.9),
            CropAndScale(height=32, width=40, zoom=0.1, interpolation="linear"),
            Resize(height=16, width=16, interpolation="nearest"),
            Grey(),
        )
    )
    records = json.loads(json.dumps([step_record(step) for step in pipeline.steps]))
    assert Pipeline.from_records(records) == pipeline
    assert pickle.loads(pickle.dumps(pipeline)) == pipeline  # noqa: S301 - our own bytes, as workers get them
    frames = noise(70, 90)
    assert np.array_equal(Pipeline.from_records(records)(frames), pipeline(frames))


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"step": "resise", "height": 4}, "did you mean 'resize'"),
        ({"height": 4}, "unknown preprocessing step ''"),
        ({"step": "resize", "height": 4}, "'resize' cannot take"),
        ({"step": "resize", "height": 4, "width": 4, "interpolation": "bicubic"}, "did you mean 'cubic'"),
    ],
)
def test_bad_records_say_what_is_wrong(record: dict[str, object], complaint: str) -> None:
    with pytest.raises(UnknownNameError, match=complaint):
        Pipeline.from_records([record])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8), dtype=np.uint8),
        np.zeros((2, 8, 8, 4), dtype=np.uint8),
        np.zeros((2, 8, 8, 3), dtype=np.float32),
        np.zeros((0, 8, 8, 3), dtype=np.uint8),
        np.zeros((2, 0, 8, 3), dtype=np.uint8),
    ],
)
def test_what_is_no_rgb_window_is_refused(frames: np.ndarray) -> None:
    with pytest.raises(MediaError, match=r"takes \(T, H, W, 3\) uint8") as caught:
        Pipeline(())(frames)
    assert caught.value.reason == "bad-frames"


def test_a_frame_too_small_for_its_crop_is_refused() -> None:
    with pytest.raises(MediaError, match="frames of 8x8 pixels are too small") as caught:
        Pipeline((CentreCrop(height=9, width=8),))(noise(8, 8))
    assert caught.value.reason == "too-small"


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"embedstore\[media\]"):
        Pipeline((Resize(height=4, width=4, interpolation="area"),))(noise(8, 8))
