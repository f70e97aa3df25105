"""`Placed`: vectors as they are compared, made a few rows at a time, since all of them would be one more copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evaltools.closeness import ClipPoints, Rows, Space
from evaltools.metrics import Floats

__all__ = ["Placed"]

_BLOCK_BYTES = 1 << 20  # of float64 rows on their way to float32: they stay in a core's cache


class Placed:
    """Vectors (n, D) in a space.

    Parameters
    ----------
    points : ClipPoints
    space : Space
    centre : (D,) float64, optional
        Taken off every placed vector.
    """

    def __init__(self, points: ClipPoints, space: Space, *, centre: Floats | None = None) -> None:
        self._vectors = np.asarray(points.vectors, dtype=np.float64)
        self._space, self._centre = space, centre
        self._lengths: Floats | None = None
        if space.normalize:
            lengths = np.sqrt(points.squared_lengths)
            self._lengths = np.where(lengths > 0, lengths, 1.0)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dims(self) -> int:
        """D."""
        return int(self._vectors.shape[1])

    def mean(self) -> Floats:
        """Return the mean (D,) of the placed vectors, no centre taken off."""
        if self._lengths is None:
            return np.asarray(self._vectors.mean(axis=0))
        mean: Floats = (1.0 / self._lengths) @ self._vectors / len(self)
        return mean

    def rows(self, at: Rows | slice) -> Floats:
        """Return placed vectors (m, D)."""
        placed: Floats = (
            self._vectors[at] if self._lengths is None else self._vectors[at] / self._lengths[at][:, None]
        )
        return placed if self._centre is None else placed - self._centre

    def single(self, at: Rows | None = None) -> npt.NDArray[np.float32]:
        """Return placed vectors in float32: some, or all."""
        if at is not None:
            return self.rows(at).astype(np.float32)
        made = np.empty((len(self), self.dims), dtype=np.float32)
        step = max(_BLOCK_BYTES // (8 * self.dims), 1)
        for start in range(0, len(self), step):
            made[start : start + step] = self.rows(slice(start, start + step))
        return made

    def closeness(self, query: Floats, at: Rows, *, gathered: npt.NDArray[Any]) -> Floats:
        """Return the closeness (m,) of a placed query (D,) and some rows.

        ``gathered`` (m or more, D) is overwritten: memory for each query anew would cost as much as the products.
        """
        held = np.take(self._vectors, at, axis=0, out=gathered[: len(at)], mode="clip")
        if self._space.metric == "cosine":  # which takes no centre off
            products: Floats = held @ query
            return products if self._lengths is None else products / self._lengths[at]
        if self._lengths is not None:
            held /= self._lengths[at][:, None]
        if self._centre is not None:
            held -= self._centre
        return self._space.closeness(query, held)
