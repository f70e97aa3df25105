"""Rank metrics, computed for many weightings of patients at once.

Counts are whole numbers, so what stands below a score is a running sum of integers: exact, and several times quicker
than one of floating-point numbers, in which every addition waits for the one before.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["Ranking", "auroc", "average_precision", "by_slices", "prefix_sums", "spearman"]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]
Whole = npt.NDArray[np.int32]

_CELLS = 1 << 17  # of a (replicates, rows) matrix held at a time: 512 KiB, which stays in a core's cache


class Ranking:
    """Rows in ascending order of a score, with the bounds of each run of equal scores.

    Parameters
    ----------
    score : (n,) float64
    patients : (n,) int
        Which patient each row belongs to.

    Attributes
    ----------
    order : (n,) int
        Rows in ascending order.
    first, end : (n,) int
        For each place in the order, where the run of its equals begins and ends.
    tied : bool
        Whether two scores are equal.
    """

    def __init__(self, score: Floats, patients: Codes) -> None:
        self.order: Codes = np.argsort(score, kind="stable")
        self._patients = patients[self.order]
        ascending = score[self.order]
        starts = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))[: len(score)]
        lengths = np.diff(np.append(starts, len(score)))
        self.first: Codes = np.repeat(starts, lengths)
        self.end: Codes = self.first + np.repeat(lengths, lengths)
        self.tied = len(starts) < len(score)

    def weights(self, counts: Whole) -> Whole:
        """Return how often each row stands in each replicate (B, n), in ascending order of the score."""
        return np.take(counts, self._patients, axis=1)

    def twice_below(self, prefix: Whole) -> Whole:
        """Return, for each place (B, n), twice the weight of lower scores plus that of its equals.

        Parameters
        ----------
        prefix : (B, n + 1) int
            From `prefix_sums`.
        """
        if not self.tied:
            return prefix[:, 1:] + prefix[:, :-1]
        return np.take(prefix, self.end, axis=1) + np.take(prefix, self.first, axis=1)


def prefix_sums(weights: Whole) -> Whole:
    """Return the sums (B, n + 1) of the first 0 to n columns."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1), dtype=np.int32)
    np.cumsum(weights, axis=1, dtype=np.int32, out=sums[:, 1:])
    return sums


def by_slices(counts: Floats | Whole, n_rows: int, score: Callable[[Whole], Floats]) -> Floats:
    """Score replicates a few at a time, as whole numbers."""
    step = max(_CELLS // max(n_rows, 1), 1)
    whole = counts.astype(np.int32, copy=False)
    return np.concatenate([score(whole[start : start + step]) for start in range(0, len(whole), step)])


def spearman(counts: Whole, of_true: Ranking, of_predicted: Ranking) -> Floats:
    """Return the correlation of ranks (B,), ties at their mean rank, for each row of ``counts`` (B, P)."""
    place = np.empty_like(of_predicted.order)
    place[of_predicted.order] = np.arange(len(place))
    place = place[of_true.order]  # of each row, from the order of the truth to that of the predictions
    weights, true = _deviations(counts, of_true)
    weights_predicted, predicted = _deviations(counts, of_predicted)
    weighted = weights * true
    covariance = np.einsum("bn,bn->b", weighted, np.take(predicted, place, axis=1))
    spread_true = np.einsum("bn,bn->b", weighted, true)
    spread_predicted = np.einsum("bn,bn->b", weights_predicted * predicted, predicted)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho: Floats = np.clip(covariance / np.sqrt(spread_true * spread_predicted), -1.0, 1.0)
    return rho


def _deviations(counts: Whole, ranking: Ranking) -> tuple[Whole, Floats]:
    """Return weights, and twice the rank less its mean, both (B, n) in ascending order."""
    weights = ranking.weights(counts)
    prefix = prefix_sums(weights)
    return weights, (ranking.twice_below(prefix) - prefix[:, -1:]).astype(np.float64)


def auroc(ranking: Ranking, is_positive: npt.NDArray[np.bool_], prefix: Whole) -> Floats:
    """Return the share (B,) of pairs of a positive and a negative in which the positive scores higher.

    Parameters
    ----------
    is_positive : (n,) bool
        In ascending order of the score.
    prefix : (B, n + 1) int
        Sums of the weights.
    """
    at = np.flatnonzero(is_positive)
    found = np.take(prefix, at + 1, axis=1) - np.take(prefix, at, axis=1)
    before = prefix_sums(found)
    if ranking.tied:
        known = np.concatenate([[0], np.cumsum(is_positive)])
        first, end = ranking.first[at], ranking.end[at]
        below = np.take(prefix, first, axis=1) - np.take(before, known[first], axis=1)
        below += np.take(prefix, end, axis=1) - np.take(before, known[end], axis=1)
    else:
        below = 2 * (np.take(prefix, at, axis=1) - before[:, :-1])
    won = np.einsum("bn,bn->b", found.astype(np.float64), below.astype(np.float64)) / 2
    positives = before[:, -1].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        area: Floats = won / (positives * (prefix[:, -1] - positives))
    return area


def average_precision(ranking: Ranking, is_positive: npt.NDArray[np.bool_], prefix: Whole) -> Floats:
    """Return the precision (B,) at each distinct threshold, weighted by the recall gained there (no interpolation).

    Parameters as `auroc`.
    """
    at = np.flatnonzero(is_positive)
    found = np.take(prefix, at + 1, axis=1) - np.take(prefix, at, axis=1)
    before = prefix_sums(found)
    thresholds = ranking.first[at]
    start = np.flatnonzero(np.diff(thresholds, prepend=-1))  # the first positive of each run of equal scores
    reached = before[:, -1:] - np.take(before, start, axis=1)  # positives at or above each threshold
    until = np.append(start[1:], len(at))[: len(start)]
    gained = np.take(before, until, axis=1) - np.take(before, start, axis=1)
    taken = prefix[:, -1:] - np.take(prefix, thresholds[start], axis=1)
    # Nothing is gained where nothing is taken.
    precision = reached / np.maximum(taken, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        average: Floats = np.einsum("bg,bg->b", gained, precision) / before[:, -1]
    return average
