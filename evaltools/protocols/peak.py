"""Climbing to a peak on a grid of penalties: about 15 fits where the whole grid has 97."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evaltools.metrics import Floats

__all__ = ["climb", "peak_grid"]

_PER_DECADE = 8
_COARSE = 16  # two decades
_SPANS = (8, 4, 2, 1)


def peak_grid(low: float, high: float) -> Floats:
    """Return 8 values a decade from ``low`` to ``high``, ends included.

    Examples
    --------
    >>> len(peak_grid(1e-6, 1e6))
    97
    """
    first, last = np.log10([low, high])
    return np.asarray(
        10.0 ** np.linspace(first, last, int(round(_PER_DECADE * (last - first))) + 1), dtype=np.float64
    )


def climb(loss: Callable[[int], float], n: int) -> dict[int, float]:
    """Try every 16th position of a grid, then around the best so far in steps of 8, 4, 2 and 1.

    Parameters
    ----------
    loss : callable
        Loss at a position; called once for each that is tried.
    n : int
        Positions.

    Returns
    -------
    dict of int to float
        Loss of each position that was tried; the best of them, the lower position at a tie, is the peak.

    Examples
    --------
    >>> tried = climb(lambda at: (at - 37) ** 2, 97)
    >>> min(tried, key=lambda at: (tried[at], at)), len(tried)
    (37, 15)
    """
    tried = {position: loss(position) for position in range(0, n, _COARSE)}
    for span in _SPANS:
        best = min(tried, key=lambda at: (tried[at], at))
        for position in (max(best - span, 0), min(best + span, n - 1)):
            if position not in tried:
                tried[position] = loss(position)
    return tried
