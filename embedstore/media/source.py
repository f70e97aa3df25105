"""`FrameSource`: what every format offers to `read_clip`, and the few things that the formats share."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embedstore.errors import MediaError, MissingExtraError
from embedstore.media.clip import MIN_DECODED_RATIO, MediaProbe

__all__ = [
    "Frame",
    "FrameSource",
    "Tally",
    "ValueRange",
    "as_rgb",
    "check_complete",
    "load_decoder",
    "plausible_fps",
    "with_frame_count",
]

Frame = npt.NDArray[np.uint8]
_MAX_FPS = 100_000.0
_GAP_FACTOR = 1.5


@dataclass
class Tally:
    """What is counted while frames are decoded.

    Attributes
    ----------
    n_errors : int
        Frames lost, or delivered though damaged.
    n_damaged : int
        Those of them that were delivered and that the decoder itself calls corrupt.
    times : list of float
        Presentation times, in any one unit.
    """

    n_errors: int = 0
    n_damaged: int = 0
    times: list[float] = field(default_factory=list)

    def count_gaps(self) -> int:
        """Return how many steps between neighbouring times are over 1.5 times the median step.

        Examples
        --------
        >>> Tally(times=[0, 1, 2, 4, 5]).count_gaps()
        1
        """
        times = sorted(self.times)
        steps = [after - before for before, after in zip(times, times[1:], strict=False)]
        if not steps:
            return 0
        longest = _GAP_FACTOR * statistics.median(steps)
        return sum(step > longest for step in steps)


class FrameSource(Protocol):
    """An opened file: what `read_clip` needs of every format.

    Attributes
    ----------
    container, codec : str
    n_header_frames : int or None
        As the header declares.
    fps : float or None
        As the header declares.
    """

    container: str
    codec: str
    n_header_frames: int | None
    fps: float | None

    @property
    def n_found(self) -> int:
        """Frames that are there, counted without decoding pixels."""

    @property
    def n_held(self) -> int:
        """Frames that are there or that the file lists as its own; more than `n_found` where it was cut short."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames that come out."""

    def frames(self, tally: Tally) -> Iterator[Callable[[], Frame]]:
        """Decode all frames in order, from the first; calling what is yielded makes the (H, W, 3) RGB frame.

        What is yielded is called before the next is asked for, or never.
        """


def _shortfall(source: FrameSource, n_frames: int) -> tuple[str, str] | None:
    if n_frames and n_frames >= MIN_DECODED_RATIO * source.n_held:
        return None
    missing = source.n_found == 0 or source.n_found < MIN_DECODED_RATIO * source.n_held
    if source.n_held == 0:
        return "corrupt", "the file holds no frame"
    if missing:
        return "truncated", f"{n_frames} frames are left of the {source.n_held} that the file should hold"
    return "corrupt", f"{n_frames} of the {source.n_held} frames that the file holds can be decoded"


def with_frame_count(probe: MediaProbe, source: FrameSource) -> MediaProbe:
    """Return ``probe`` with the frames that are there and, where more should be, the problem."""
    probe = replace(probe, n_frames=source.n_found)
    found = _shortfall(source, source.n_found)
    return probe if found is None else replace(probe, problem_reason=found[0], problem=found[1])


def check_complete(source: FrameSource, n_decoded: int, *, n_damaged: int) -> None:
    """Raise where fewer than 95 % of the frames that a file holds came out, or came out whole.

    Raises
    ------
    MediaError
        ``truncated`` where they are missing, ``corrupt`` where they are there.
    """
    found = _shortfall(source, n_decoded)
    if found is not None:
        raise MediaError(found[1], reason=found[0])
    if n_damaged > n_decoded * (1 - MIN_DECODED_RATIO):
        raise MediaError(f"{n_damaged} of {n_decoded} frames are damaged", reason="corrupt")


def load_decoder(module: str, distribution: str, *, what: str) -> Any:
    """Import a package of the extra ``[media]`` when it is first needed.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs the package {distribution}, which is not installed; "
            "install the extra with: pip install 'embedstore[media]'"
        ) from error


def plausible_fps(fps: float | None) -> float | None:
    """Return ``fps`` where it is a finite number above 0 and at most 100,000, else None.

    Examples
    --------
    >>> plausible_fps(50), plausible_fps(float("nan")), plausible_fps(0)
    (50.0, None, None)
    """
    return float(fps) if fps is not None and 0 < fps <= _MAX_FPS else None


def as_rgb(grey: Frame) -> Frame:
    """Return an (H, W) frame as (H, W, 3)."""
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


@dataclass
class ValueRange:
    """The smallest and largest finite value of a sequence: one scale for all its frames.

    Examples
    --------
    >>> scale = ValueRange()
    >>> scale.widen(np.array([-5.0, np.nan, 20.0]))
    >>> scale.widen(np.array([95.0]))
    >>> scale.to_bytes(np.array([-5.0, np.nan, 44.0, 95.0])).tolist()
    [0, 0, 125, 255]
    """

    low: float = np.inf
    high: float = -np.inf

    def widen(self, values: npt.NDArray[Any]) -> None:
        """Take in the values of one more frame."""
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if finite.size:
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))

    def to_bytes(self, values: npt.NDArray[Any]) -> Frame:
        """Scale to 0..255, lowest to 0 and highest to 255; a constant sequence and NaN become 0."""
        span = self.high - self.low
        if not (np.isfinite(span) and span > 0):
            return np.zeros(values.shape, dtype=np.uint8)
        scaled = (values.astype(np.float64) - self.low) * (255.0 / span)
        if values.dtype.kind == "f":
            scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
        return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)
