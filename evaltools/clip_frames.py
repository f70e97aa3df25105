"""`ClipFrames`: the frame vectors of clips, unpooled, for probes that weigh frames themselves.

It stands where the pooled features (n, D) of other protocols stand: it has their shape, and rows of it are taken in
the same way, which moves no vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Floats

__all__ = ["ClipFrames", "Features", "FramePool", "clip_vectors", "join_features"]

Rows = npt.NDArray[np.intp]
Features: TypeAlias = Any  # (n, D) float64, or `ClipFrames` of that shape

_BLOCK_FRAMES = 1 << 15  # read at once: 100 MiB of 768 dimensions in float32


@dataclass(frozen=True, eq=False)
class ClipFrames:
    """Frame vectors of n clips.

    Attributes
    ----------
    values : (F, D) float
        Vectors of all frames, in the dtype that they are stored in; may hold those of other clips as well.
    first, counts : (n,) int
        First row and number of rows of each clip, one at least.
    """

    values: npt.NDArray[Any]
    first: Rows
    counts: Rows

    @classmethod
    def of(cls, X: Features) -> Self:
        """Return frames as they are, and rows (n, D) as clips of one frame each."""
        if isinstance(X, cls):
            return X
        return cls(np.asarray(X), np.arange(len(X)), np.ones(len(X), dtype=np.intp))

    @property
    def shape(self) -> tuple[int, int]:
        """Clips, and dimensions of a frame vector."""
        return len(self.first), int(self.values.shape[1])

    @property
    def size(self) -> int:
        """Numbers of one vector a clip, as of an array of this shape."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, clips: Any) -> ClipFrames:
        """Return some clips, by positions, mask or slice."""
        return ClipFrames(self.values, self.first[clips], self.counts[clips])

    def rows(self) -> tuple[Rows, Rows]:
        """Return the rows (F',) of all frames, clip after clip, and where each clip begins among them (n,)."""
        starts = np.cumsum(self.counts) - self.counts
        within = np.arange(int(self.counts.sum())) - np.repeat(starts, self.counts)
        return np.repeat(self.first, self.counts) + within, starts

    def padded(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return the frames side by side, and which of them are some.

        Returns
        -------
        frames : (n, T, D) float32
            T is the largest number of frames; zeros where a clip has fewer.
        is_frame : (n, T) bool
        """
        is_frame = np.arange(int(self.counts.max())) < self.counts[:, None]
        frames = np.zeros((*is_frame.shape, self.shape[1]), dtype=np.float32)
        frames[is_frame] = self.values[self.rows()[0]]
        return frames, is_frame

    def blocks(self, most: int = _BLOCK_FRAMES) -> Iterator[slice]:
        """Yield runs of clips that have together about so many frames at most, one clip at least."""
        start, reached = 0, np.cumsum(self.counts)
        while start < len(self):
            before = reached[start - 1] if start else 0
            stop = max(int(np.searchsorted(reached, before + most, side="right")), start + 1)
            yield slice(start, stop)
            start = stop

    def means(self) -> Floats:
        """Return the mean frame vector of each clip, (n, D) float64."""
        return self._reduced(
            lambda frames, starts, counts: np.add.reduceat(frames, starts, axis=0, dtype=np.float64) / counts[:, None]
        )

    def finite(self) -> npt.NDArray[np.bool_]:
        """Return which clips have finite vectors only, (n,)."""
        found = self._reduced(
            lambda frames, starts, _: np.logical_and.reduceat(np.isfinite(frames).all(axis=1), starts)[:, None]
        )
        return found[:, 0].astype(np.bool_)

    def moments(self) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of each dimension over all frames, (D,) float64 each."""
        n = int(self.counts.sum())
        mean = self._reduced(lambda frames, *_: frames.sum(axis=0, dtype=np.float64)[None]).sum(axis=0) / n

        def squares(frames: npt.NDArray[Any], *_: Rows) -> Floats:
            away = frames - mean
            return np.asarray(np.einsum("fd,fd->d", away, away)[None])

        return mean, np.sqrt(self._reduced(squares).sum(axis=0) / n)

    def _reduced(self, reduce: Callable[[npt.NDArray[Any], Rows, Rows], Floats]) -> Floats:
        """Apply to frames (F', D), starts (m,) and counts (m,) of runs of clips, and put the rows together."""
        made = []
        for block in self.blocks():
            part = self[block]
            at, starts = part.rows()
            made.append(reduce(part.values[at], starts, part.counts))
        return np.concatenate(made)

    def noise(self, *, seed: int) -> ClipFrames:
        """Return standard Gaussian vectors for the same clips with the same numbers of frames."""
        drawn = np.random.default_rng(seed).standard_normal((int(self.counts.sum()), self.shape[1]), dtype=np.float32)
        return ClipFrames(drawn, np.cumsum(self.counts) - self.counts, self.counts)


@dataclass(frozen=True, kw_only=True)
class FramePool:
    """Frame vectors as they are stored.

    Attributes
    ----------
    max_frames : int
        Of a clip with more, so many evenly spaced ones from the first to the last are taken.
    """

    max_frames: int = 64

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        return {"method": "frame vectors as they are, evenly thinned", "max_frames": self.max_frames}

    def read(self, frames: Any, first: Rows, counts: Rows, *, dtype: str) -> ClipFrames:
        """Read the frames of clips.

        Parameters
        ----------
        frames : VectorRows
            (F, D).
        first, counts : (n,) int
            First row and number of rows of each clip.
        dtype : str
            What they are stored in, and kept in.
        """
        kept = np.minimum(counts, self.max_frames)
        at = np.concatenate([
            start + np.linspace(0, count - 1, n).round().astype(np.intp) if n < count else np.arange(start, start + n)
            for start, count, n in zip(first, counts, kept, strict=True)
        ])  # fmt: skip
        values = np.empty((len(at), frames.shape[1]), dtype=dtype)
        for start in range(0, len(at), _BLOCK_FRAMES):
            block = slice(start, start + _BLOCK_FRAMES)
            values[block] = frames[at[block]]
        return ClipFrames(values, np.cumsum(kept) - kept, kept)


def clip_vectors(X: Features) -> Floats:
    """Return one vector a clip, (n, D): features as they are, frames by their mean."""
    vectors: Floats = X.means() if isinstance(X, ClipFrames) else X
    return vectors


def join_features(parts: Sequence[Features]) -> Features:
    """Return the features of clips behind those of others."""
    if not isinstance(parts[0], ClipFrames):
        return np.concatenate(parts)
    offsets = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
    return ClipFrames(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.first + offset for part, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([part.counts for part in parts]),
    )
