"""`pixel-stats`: a control without weights that stands beside every model.

It knows brightness, contrast, edges and where they lie, and nothing about hearts. A model that does not beat it on a
task has been read for brightness. Nothing is normalised away: gain, depth and sector size all show in it, by design.

The 96 features of a frame, from its grey levels at 112x112 pixels:

===========  ==================================================================================================
position     feature
===========  ==================================================================================================
0 to 31      histogram: share of pixels in 32 bins of 8 grey levels
32, 33       mean and standard deviation of the grey level, over 255
34 to 38     its 5th, 25th, 50th, 75th and 95th percentile (the lowest level that reaches it), over 255
39           entropy of the 256-level histogram, over 8 bits
40 to 55     gradient: share of pixels whose magnitude is at or above 0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64,
             91, 128, 181 grey levels a pixel and below the next (forward differences)
56 to 63     direction: share of the summed magnitude in 8 sectors of 22.5 degrees, direction modulo 180 degrees,
             the first around 0 (all 0 in a frame without gradient)
64 to 79     radial: mean grey level in 16 rings of equal width around the middle, over 255, from the middle to the
             inscribed circle; the corners belong to the last ring
80 to 95     radial: standard deviation in the same rings, over 255
===========  ==================================================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.encoder import Encoded, EncoderCard, LoadRequest, Variant
from embedstore.errors import ContentError, UnknownNameError
from embedstore.spec import EncoderSpec, FrameSampling
from encoders.preprocess import Grey, Pipeline, Resize, step_record

__all__ = ["CARD", "PixelStats", "load"]

_SIDE = 112
_HISTOGRAM_BINS = 32
_PERCENTILES = (0.05, 0.25, 0.50, 0.75, 0.95)
_MAGNITUDE_EDGES = (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181)  # half octaves, rounded
_DIRECTIONS = 8
_RINGS = 16
_DIM = _HISTOGRAM_BINS + 2 + len(_PERCENTILES) + 1 + len(_MAGNITUDE_EDGES) + _DIRECTIONS + 2 * _RINGS

CARD = EncoderCard(
    name="pixel-stats",
    summary="A control without weights: histogram, gradient and radial statistics of grey levels.",
    unit="frame",
    clip_dim=_DIM,
    frame_dim=_DIM,
    loader="encoders.pixel_stats:load",
    preprocessing={
        "steps": [step_record(Resize(height=_SIDE, width=_SIDE, interpolation="area")), step_record(Grey())]
    },
    input_size=(_SIDE, _SIDE),
    variants={"published": Variant(sampling=FrameSampling("uniform:16"), note="16 frames spread over the clip")},
    pooling="mean",
    n_parameters=0,
    licence="Apache-2.0",
    weights_source="none needed",
    batch_size={"cpu": 16, "cuda": 16},
)


def _ring_order() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Return the pixels sorted by ring, where each ring starts in that order, and how many pixels it has."""
    offset = np.arange(_SIDE) - (_SIDE - 1) / 2
    radius = np.hypot(offset[:, None], offset[None, :]).ravel()
    ring = np.minimum((radius * _RINGS / (_SIDE / 2)).astype(np.int64), _RINGS - 1)
    counts = np.bincount(ring, minlength=_RINGS)
    return np.argsort(ring, kind="stable"), np.concatenate(([0], np.cumsum(counts)[:-1])), counts


class PixelStats:
    """The control as an encoder; numpy only, on whatever device.

    Sums run over integers, so that no order of summation and no neighbour in the batch can change a bit.
    """

    input_shape = (_SIDE, _SIDE)
    input_dtype = "uint8"
    device = "cpu"

    def __init__(self, *, spec: EncoderSpec) -> None:
        self.spec = spec
        self.preprocess = Pipeline.from_records(spec.preprocessing["steps"])
        self._order, self._ring_starts, self._ring_counts = _ring_order()
        # Squared magnitudes reach 2 * 255 ** 2; a table gives each its bin.
        squares = np.arange(2 * 255**2 + 1)
        edges = np.square(np.array(_MAGNITUDE_EDGES))
        self._magnitude_bin = (np.searchsorted(edges, squares, side="right") - 1).astype(np.int64)
        self._magnitude = np.sqrt(squares)
        difference = np.arange(-255, 256)
        angle = np.arctan2(difference[:, None], difference[None, :])
        self._direction_bin = (np.rint(angle * _DIRECTIONS / np.pi).astype(np.int64) % _DIRECTIONS).ravel()

    def encode(self, batch: npt.NDArray[Any]) -> Encoded:
        """Describe frames.

        Parameters
        ----------
        batch : (B, 112, 112) uint8
            Grey levels as `preprocess` gives them.

        Returns
        -------
        Encoded
            ``vectors`` of shape (B, 96), in the order of the module's table.

        Raises
        ------
        ContentError
            The batch has another shape or dtype.
        """
        if batch.shape[1:] != self.input_shape or batch.dtype != np.uint8:
            raise ContentError(
                f"pixel-stats takes (B, {_SIDE}, {_SIDE}) uint8 frames, got {batch.shape} {batch.dtype}"
            )
        vectors = np.empty((len(batch), _DIM), dtype=np.float32)
        for frame, vector in zip(batch, vectors, strict=True):
            vector[:] = np.concatenate((_levels(frame), self._gradient(frame), self._radial(frame)))
        return Encoded(vectors=vectors)

    def _gradient(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        levels = frame.astype(np.int64)
        across = (levels[:-1, 1:] - levels[:-1, :-1]).ravel()
        down = (levels[1:, :-1] - levels[:-1, :-1]).ravel()
        squares = across * across + down * down
        shares = np.bincount(self._magnitude_bin[squares], minlength=len(_MAGNITUDE_EDGES)) / len(squares)
        direction = self._direction_bin[(down + 255) * 511 + across + 255]
        weights = np.bincount(direction, weights=self._magnitude[squares], minlength=_DIRECTIONS)
        return np.concatenate((shares, weights / max(weights.sum(), 1.0)))

    def _radial(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        levels = frame.ravel()[self._order].astype(np.int64)
        means = np.add.reduceat(levels, self._ring_starts) / self._ring_counts
        squares = np.add.reduceat(levels * levels, self._ring_starts) / self._ring_counts
        spreads = np.sqrt(np.maximum(squares - means * means, 0.0))
        return np.concatenate((means, spreads)) / 255


def _levels(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    counts = np.bincount(frame.ravel(), minlength=256)
    shares = counts / frame.size
    level = np.arange(256)
    total, total_squares = int(counts @ level), int(counts @ (level * level))
    mean = total / frame.size
    variance = max(total_squares / frame.size - mean * mean, 0.0)
    reached = np.cumsum(counts)
    percentiles = [int(np.searchsorted(reached, share * frame.size)) / 255 for share in _PERCENTILES]
    present = shares[shares > 0]
    entropy = abs(float(np.sum(present * np.log2(present)))) / 8
    histogram = shares.reshape(_HISTOGRAM_BINS, -1).sum(axis=1)
    return np.concatenate((histogram, [mean / 255, np.sqrt(variance) / 255, *percentiles, entropy]))


def load(request: LoadRequest) -> PixelStats:
    """Return the control.

    Raises
    ------
    UnknownNameError
        Another precision than float32 was asked for: there is no model to run in it.
    """
    if request.spec.precision != "float32":
        raise UnknownNameError(
            f"pixel-stats is computed in float32, not {request.spec.precision}; build it without --precision"
        )
    return PixelStats(spec=request.spec)
