"""`TemporalPool`: what frame vectors do over time, at any frame rate: the cheap way to use motion.

Everything is measured in seconds. Each frame weighs the seconds that it stands for, and the slow movements are the
cosine terms of fixed frequencies in Hz from the first frame on, so that a clip at 25 and the same clip at 50 frames a
second have nearly the same vector. Below a rate of about ten frames a beat a heart beat is no longer seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError
from evaltools.metrics import Floats

if TYPE_CHECKING:
    from evaltools.features import VectorSource

__all__ = ["MIN_HZ", "TERMS_HZ", "TemporalPool", "frame_times", "refuse_low_rate"]

MIN_HZ = 12.0  # ten frames a beat at 72 beats a minute
TERMS_HZ = (0.5, 1.0, 1.5, 2.0)  # DCT terms 1 to 4 of a window of one second, about one beat
_MAX_SLOW = 0.05  # share of clips below `MIN_HZ` from which on a set is refused

Rows = npt.NDArray[np.intp]


def frame_times(source: VectorSource) -> Floats:
    """Return the time in seconds of every frame vector of a set (F,), NaN where it is not known."""
    return np.asarray(source.frame_index.column("time_s").to_numpy(zero_copy_only=False), dtype=np.float64)


def refuse_low_rate(source: VectorSource, first: Rows, counts: Rows, *, min_hz: float) -> None:
    """Raise where the frames of clips stand too far apart in time.

    Parameters
    ----------
    first, counts : (n,) int
        First frame row and number of frame rows of each clip.

    Raises
    ------
    ContentError
        The time of a frame is not known, or more than one clip in twenty has fewer frames a second than ``min_hz``.
    """
    times = frame_times(source)
    where = f"the frame vectors of {source.spec.title} on {source.dataset}"
    last = first + counts - 1
    seconds = times[last] - times[first]
    unknown = int(np.isnan(seconds).sum())
    if unknown:
        raise ContentError(
            f"{where} have no times for {unknown} of {len(first)} clips; give the manifest fps and build them again, "
            "or use --pool meanstd, which needs none"
        )
    rates = np.where(seconds > 0, (counts - 1) / np.where(seconds > 0, seconds, 1.0), 0.0)
    slow = int((rates < min_hz).sum())
    if slow > _MAX_SLOW * len(first):
        raise ContentError(
            f"{where} stand {np.median(rates):.1f} Hz apart at the median and {slow} of {len(first)} clips are below "
            f"{min_hz:g} Hz, too few to see a beat; build a variant with more frames, or give --protocol temporal "
            "--set min_hz=0"
        )


@dataclass(frozen=True, kw_only=True)
class TemporalPool:
    """Mean, standard deviation, minimum and maximum of each dimension, and its cosine terms.

    Attributes
    ----------
    min_hz : float
        Frames a second below which a set is refused.
    terms_hz : sequence of float
        Frequencies of the cosine terms.
    """

    min_hz: float = MIN_HZ
    terms_hz: Sequence[float] = TERMS_HZ

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        return {
            "method": "mean, standard deviation, minimum, maximum and cosine terms of each dimension over seconds",
            "min_hz": self.min_hz,
            "terms_hz": list(self.terms_hz),
        }

    def __call__(self, frames: npt.NDArray[Any], times: Floats, starts: Rows, counts: Rows) -> Floats:
        """Pool the frames of clips.

        Parameters
        ----------
        frames : (F, D)
            Frame vectors of clip after clip.
        times : (F,) float64
            Seconds.
        starts, counts : (n,) int
            First row and number of rows of each clip.

        Returns
        -------
        (n, (4 + len(terms_hz)) D) float64 array
        """
        weights = _seconds_of(times, starts, counts)
        total = np.add.reduceat(weights, starts)[:, None]
        vectors = np.asarray(frames, dtype=np.float64)
        mean = np.add.reduceat(vectors * weights[:, None], starts, axis=0) / total
        away = vectors - np.repeat(mean, counts, axis=0)
        deviation = np.sqrt(np.add.reduceat(away**2 * weights[:, None], starts, axis=0) / total)
        extremes = [reduce.reduceat(vectors, starts, axis=0) for reduce in (np.minimum, np.maximum)]
        since = times - np.repeat(times[starts], counts)
        terms = []
        for hz in self.terms_hz:
            wave = weights * np.cos(2 * np.pi * hz * since)
            terms.append(2 * np.add.reduceat(away * wave[:, None], starts, axis=0) / total)
        return np.concatenate([mean, deviation, *extremes, *terms], axis=1)


def _seconds_of(times: Floats, starts: Rows, counts: Rows) -> Floats:
    """Return the seconds that each frame stands for: half the way to each neighbour, at the ends the whole way."""
    gaps = np.append(np.diff(times), 0.0)
    after, before = gaps.copy(), np.append(0.0, gaps[:-1])
    last = starts + counts - 1
    after[last], before[starts] = before[last], after[starts]
    alone = starts[counts == 1]
    after[alone] = before[alone] = 1.0
    seconds: Floats = (before + after) / 2
    return seconds
