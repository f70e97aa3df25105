"""Differences of rank metrics between A and B where patients have swapped theirs, for many swaps at once.

A swap changes no label and keeps each row once, so what B then has of every running sum is what A has not: one pass
over the sorted predictions of both serves both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Codes, Floats
from evaltools.rankings import Ranking, average_precision, by_slices, prefix_sums

__all__ = ["Swapped", "swapped_precision", "swapped_spearman"]

Swapped = Callable[[Floats], Floats]


def swapped_spearman(y_true: Floats, a: Floats, b: Floats, patients: Codes) -> Swapped:
    """Return what gives, for each row of (B, P) with 1 for patients that keep their places, rho(A) - rho(B) as (B,).

    Parameters
    ----------
    y_true, a, b : (n,) float64
        Tied or not.
    patients : (n,) int
    """
    n, n_patients = len(y_true), int(patients.max()) + 1
    of_true = Ranking(y_true, patients)
    deviation = np.empty(n)
    deviation[of_true.order] = of_true.first + of_true.end - n
    ranking = Ranking(np.concatenate([a, b]), np.concatenate([patients, patients + n_patients]))
    true = deviation[ranking.order % n]
    bounds = ranking.first + ranking.end
    spread_true = np.sum(deviation**2)

    def rho(weights: Floats, predicted: Floats) -> Floats:
        weighted = weights * predicted
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (weighted @ true) / np.sqrt(spread_true * np.einsum("bn,bn->b", weighted, predicted))
        clipped: Floats = np.clip(found, -1.0, 1.0)
        return clipped

    def difference(kept: npt.NDArray[np.int32]) -> Floats:
        weights = ranking.weights(_both(kept))
        below = ranking.twice_below(prefix_sums(weights)) - n
        first = rho(weights.astype(np.float64), below.astype(np.float64))
        second = rho((1 - weights).astype(np.float64), (bounds - 2 * n - below).astype(np.float64))
        apart: Floats = first - second
        return apart

    return lambda kept: by_slices(kept, 2 * n, difference)


def swapped_precision(y_true: Codes, a: Floats, b: Floats, patients: Codes) -> Swapped:
    """Return what gives, for each row of (B, P) with 1 for patients that keep their places, AUPRC(A) - AUPRC(B).

    Parameters
    ----------
    y_true : (n,) int
    a, b : (n, K) float64
    patients : (n,) int
    """
    n, n_patients = len(y_true), int(patients.max()) + 1
    occurring = [1] if a.shape[1] == 2 else np.unique(y_true).tolist()
    whose, positions = np.concatenate([patients, patients + n_patients]), np.arange(2 * n + 1, dtype=np.int32)
    rankings = [Ranking(np.concatenate([a[:, k], b[:, k]]), whose) for k in occurring]
    sides = [(of, (y_true == k)[of.order % n]) for of, k in zip(rankings, occurring, strict=True)]

    def difference(kept: npt.NDArray[np.int32]) -> Floats:
        counts, apart = _both(kept), np.zeros(len(kept))
        for ranking, is_positive in sides:
            prefix = prefix_sums(ranking.weights(counts))
            apart += average_precision(ranking, is_positive, prefix)
            apart -= average_precision(ranking, is_positive, positions - prefix)
        return apart / len(sides)

    return lambda kept: by_slices(kept, 2 * n, difference)


def _both(kept: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return how often each patient of A, then of B, stands in A's place."""
    return np.concatenate([kept, 1 - kept], axis=1)
