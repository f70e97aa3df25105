"""Each feature of the control against a plain computation, and what it must see."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from embedstore.encoder import LoadRequest
from embedstore.errors import ContentError, UnknownNameError
from encoders.pixel_stats import CARD, load

EDGES = [0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181]


@pytest.fixture(scope="module")
def encoder():
    return load(LoadRequest(spec=CARD.spec(), weights=None))


@pytest.fixture(scope="module")
def grey(encoder, a4c_frames) -> np.ndarray:
    return encoder.preprocess(a4c_frames)


def described(frame: np.ndarray) -> np.ndarray:
    """The table of the module, feature by feature, in floating point."""
    levels = frame.astype(float)
    flat = np.sort(levels.ravel())
    features = [((levels >= 8 * bin) & (levels < 8 * bin + 8)).mean() for bin in range(32)]
    features += [levels.mean() / 255, levels.std() / 255]
    features += [flat[int(np.ceil(share * flat.size)) - 1] / 255 for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
    shares = np.unique(frame, return_counts=True)[1] / frame.size
    features.append(-(shares * np.log2(shares)).sum() / 8)
    across, down = (levels[:-1, 1:] - levels[:-1, :-1]), (levels[1:, :-1] - levels[:-1, :-1])
    magnitude = np.hypot(across, down)
    features += [((magnitude >= low) & (magnitude < high)).mean() for low, high in pairwise([*EDGES, 999])]
    degrees = np.degrees(np.arctan2(down, across)) % 180
    for sector in range(8):
        off = np.abs((degrees - 22.5 * sector + 90) % 180 - 90)
        features.append(magnitude[off < 11.25].sum() / magnitude.sum())
    rows, columns = np.indices(frame.shape) - 55.5
    radius = np.hypot(rows, columns)
    rings = [(radius >= 3.5 * ring) & ((radius < 3.5 * ring + 3.5) | (ring == 15)) for ring in range(16)]
    features += [levels[ring].mean() / 255 for ring in rings] + [levels[ring].std() / 255 for ring in rings]
    return np.array(features)


def test_every_feature_on_real_frames(encoder, grey) -> None:
    vectors = encoder.encode(grey[::10]).vectors
    assert vectors.shape == (3, CARD.clip_dim) == (3, 96)
    for frame, vector in zip(grey[::10], vectors, strict=True):
        np.testing.assert_allclose(vector, described(frame), atol=2e-6)


def test_flat_frames_have_no_gradient(encoder) -> None:
    vectors = encoder.encode(np.stack([np.full((112, 112), level, dtype=np.uint8) for level in (0, 255)])).vectors
    assert np.isfinite(vectors).all()
    assert vectors[:, 40].tolist() == [1.0, 1.0] and not vectors[:, 56:64].any()
    assert vectors[:, 64:80].tolist() == [[0.0] * 16, [1.0] * 16] and not vectors[:, 80:].any()


def test_a_bright_middle_shows_in_the_inner_rings(encoder) -> None:
    frame = np.zeros((1, 112, 112), dtype=np.uint8)
    frame[:, 52:60, 52:60] = 200
    means = encoder.encode(frame).vectors[0, 64:80]
    assert means[0] > 0.7 and means[2] == 0 == means[15]


def test_gain_shows(encoder, grey) -> None:
    quiet = encoder.encode(grey // 2).vectors
    loud = encoder.encode(grey).vectors
    assert (loud[:, 32] > 1.5 * quiet[:, 32]).all()


def test_fast_enough_to_stand_beside_every_model(encoder, grey) -> None:
    seconds = min(_timed(encoder, grey) for _ in range(5))
    assert seconds / len(grey) < 1e-3


def _timed(encoder, grey: np.ndarray) -> float:
    start = time.process_time()  # the processor's time: other processes do not count
    encoder.encode(grey)
    return time.process_time() - start


@pytest.mark.parametrize("batch", [np.zeros((1, 112, 111), np.uint8), np.zeros((1, 112, 112), np.float32)])
def test_other_batches_are_refused(encoder, batch: np.ndarray) -> None:
    with pytest.raises(ContentError, match=r"takes \(B, 112, 112\) uint8"):
        encoder.encode(batch)


def test_there_is_no_bf16_of_it() -> None:
    with pytest.raises(UnknownNameError, match="float32, not bf16"):
        load(LoadRequest(spec=CARD.spec(precision="bf16"), weights=None))


def test_it_needs_no_weights() -> None:
    assert CARD.locate_weights() is None and CARD.weights_locator is None
    assert CARD.spec().pooling == "mean"
