"""Two sets of predictions on the same clips: the interval of their difference, and a permutation test of it.

Both are stacked, as if they were clips of 2 P patients: the first P with the predictions of A, the others with those
of B. A row of patient counts then picks, patient by patient, whose predictions count, so that bootstrap and
permutation go through the scorers of `evaltools.metrics` and every metric has the one definition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaltools.calibration import CALIBRATED
from evaltools.metrics import RANKED, ClassificationScorer, Codes, Floats, RegressionScorer
from evaltools.resample import DEFAULT_DRAWS, Estimate, estimate_metrics
from evaltools.swaps import Swapped, swapped_precision, swapped_spearman

__all__ = ["DEFAULT_PERMUTATIONS", "Pair", "PermutationTest", "holm", "paired_difference", "permutation_test"]

DEFAULT_PERMUTATIONS = 100_000
_BLOCK_CELLS = 1 << 22  # of a (draws, 2 P) matrix of counts held at a time
_ROUNDING = 1e-10  # permuted differences this close to the observed one are equal to it


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Predictions of A and of B for the same clips.

    Attributes
    ----------
    y_true : (n,) float64 or int
        Targets, or class codes.
    a, b : (n,) or (n, K) float64
        Predicted values, or class probabilities.
    patients : (n,) int
        Patient of each clip, 0 to P - 1.
    """

    y_true: npt.NDArray[Any]
    a: Floats
    b: Floats
    patients: Codes

    @property
    def n_patients(self) -> int:
        """P."""
        return int(self.patients.max()) + 1

    def scorer(self) -> RegressionScorer | ClassificationScorer:
        """Return the scorer of the stacked predictions, of 2 P patients."""
        true = np.concatenate([self.y_true, self.y_true])
        patients = np.concatenate([self.patients, self.patients + self.n_patients])
        return _scorer(true, np.concatenate([self.a, self.b]), patients)

    def scorers(self) -> tuple[RegressionScorer | ClassificationScorer, RegressionScorer | ClassificationScorer]:
        """Return the scorers of A and of B, of P patients each."""
        return _scorer(self.y_true, self.a, self.patients), _scorer(self.y_true, self.b, self.patients)


def _scorer(true: npt.NDArray[Any], predicted: Floats, patients: Codes) -> RegressionScorer | ClassificationScorer:
    if predicted.ndim == 1:
        return RegressionScorer(true, predicted, patients=patients)
    return ClassificationScorer(true, predicted, patients=patients)


def paired_difference(
    pair: Pair, *, metric: str, draws: int = DEFAULT_DRAWS, seed: int, refusal: str | None = None
) -> Estimate:
    """Return metric(A) - metric(B) with its percentile interval over patients; both share every draw.

    Parameters
    ----------
    refusal : str or None
        From `evaltools.resample.interval_refusal`.
    """
    of_a, of_b = pair.scorers()
    ranked = (metric,) if metric in RANKED else ()
    return estimate_metrics(
        lambda counts: {metric: of_a(counts, ranked=ranked)[metric] - of_b(counts, ranked=ranked)[metric]},
        n_patients=pair.n_patients,
        draws=draws,
        seed=seed,
        refusal=refusal,
    )[metric]


class _Difference:
    """metric(A) - metric(B) where ``counts`` (B, 2 P) say who of the stacked patients stands in A's place."""

    def __init__(self, pair: Pair, metric: str) -> None:
        self._scorer, self._metric, self._half = pair.scorer(), metric, pair.n_patients
        self._shares = _swap_shares(pair, metric)
        self._ranked: Swapped | None = None
        if metric == "spearman" and pair.a.ndim == 1:
            self._ranked = swapped_spearman(pair.y_true, pair.a, pair.b, pair.patients)
        if metric == "auprc" and pair.a.ndim == 2:
            self._ranked = swapped_precision(pair.y_true, pair.a, pair.b, pair.patients)

    def swapped(self, kept: Floats) -> Floats:
        """Return the difference where ``kept`` (B, P) has 1 for patients that keep their places and 0 for others."""
        if self._shares is not None:
            apart: Floats = kept @ (2 * self._shares) - self._shares.sum()
            return apart
        if self._ranked is not None:
            return self._ranked(kept)
        if self._metric in RANKED or self._metric in CALIBRATED:
            return self(np.concatenate([kept, 1.0 - kept], axis=1))
        of_a, of_b = self._scorer.patient_sums[: self._half], self._scorer.patient_sums[self._half :]
        first = kept @ (of_a - of_b) + of_b.sum(axis=0)
        second = of_a.sum(axis=0) + of_b.sum(axis=0) - first
        difference: Floats = self._scorer.of_sums(first)[self._metric] - self._scorer.of_sums(second)[self._metric]
        return difference

    def __call__(self, counts: Floats) -> Floats:
        swapped = np.concatenate([counts[:, self._half :], counts[:, : self._half]], axis=1)
        ranked = (self._metric,) if self._metric in RANKED else ()
        first = self._scorer(counts, ranked=ranked)[self._metric]
        difference: Floats = first - self._scorer(swapped, ranked=ranked)[self._metric]
        return difference


def _swap_shares(pair: Pair, metric: str) -> Floats | None:
    """Return what each patient (P,) adds to a difference of rank metrics, or takes from it when swapped, or None.

    AUROC, and Spearman without tied predictions, are sums over pairs of rows, u_i v_j [score_i > score_j], over a
    constant: a swap changes no label. With s = 1 for a patient that keeps its place and -1 for another, the sums of A
    and of B differ in the sign of s only, so the terms in s_p s_q cancel and what is left is linear in s.
    """
    n, shares = len(pair.y_true), np.zeros(pair.n_patients)
    if metric == "auroc" and pair.a.ndim == 2:
        occurring = [1] if pair.a.shape[1] == 2 else np.unique(pair.y_true).tolist()
        for k in occurring:
            positive = (pair.y_true == k).astype(np.float64)
            n_pairs = positive.sum() * (n - positive.sum())
            if n_pairs == 0:
                return None
            terms = _pair_terms(pair.a[:, k], pair.b[:, k], positive, 1.0 - positive)
            shares += np.bincount(pair.patients, weights=terms) / (n_pairs * len(occurring))
        return shares
    if metric == "spearman" and pair.a.ndim == 1 and len(np.unique(np.concatenate([pair.a, pair.b]))) == 2 * n:
        ones = np.ones(n)
        of_true = _below(pair.y_true, ones, pair.y_true) - n / 2
        spread = np.sqrt(np.sum(of_true**2) * (n**3 - n) / 12)
        if spread > 0:
            terms = _pair_terms(pair.a, pair.b, of_true, ones)
            return np.asarray(np.bincount(pair.patients, weights=terms) / spread, dtype=np.float64)
    return None


def _pair_terms(a: Floats, b: Floats, u: Floats, v: Floats) -> Floats:
    """Return half of what each row (n,) changes in the sum of u_i v_j [score_i > score_j] by having a and not b."""
    stacked = np.concatenate([a, b])
    beaten = _below(stacked, np.tile(v, 2), a) - _below(stacked, np.tile(v, 2), b)
    beating = _below(stacked, np.tile(u, 2), b) - _below(stacked, np.tile(u, 2), a)
    terms: Floats = (u * beaten + v * beating) / 2
    return terms


def _below(scores: Floats, weights: Floats, at: Floats) -> Floats:
    """Return the weight of scores below each value plus half that of its equals."""
    order = np.argsort(scores, kind="stable")
    reached = np.concatenate([[0.0], np.cumsum(weights[order])])
    ascending = scores[order]
    halves = reached[np.searchsorted(ascending, at, "left")] + reached[np.searchsorted(ascending, at, "right")]
    below: Floats = halves / 2
    return below


@dataclass(frozen=True)
class PermutationTest:
    """A two-sided test of no difference.

    Attributes
    ----------
    p : float or None
        None where the observed difference is not defined.
    smallest_p : float
        The smallest p that could have come out.
    n : int
        Permutations, those of an exact test counted in full.
    exact : bool
        Whether every swap was tried.
    """

    p: float | None
    smallest_p: float
    n: int
    exact: bool


def permutation_test(
    pair: Pair, *, metric: str, permutations: int = DEFAULT_PERMUTATIONS, seed: int
) -> PermutationTest:
    """Test metric(A) = metric(B) by swapping A and B within patients.

    All 2^P swaps are tried where they are no more than ``permutations``; else swaps are drawn, and the observed
    assignment is counted among them. A swap whose difference is not defined counts as extreme.

    Examples
    --------
    >>> truth = np.zeros(8)
    >>> pair = Pair(y_true=truth, a=truth + 0.5, b=truth + 1.0, patients=np.arange(8))
    >>> permutation_test(pair, metric="mae", seed=0)
    PermutationTest(p=0.0078125, smallest_p=0.0078125, n=256, exact=True)
    """
    n_patients = pair.n_patients
    difference = _Difference(pair, metric)
    observed = float(difference(np.concatenate([np.ones((1, n_patients)), np.zeros((1, n_patients))], axis=1))[0])
    exact = 2**n_patients <= permutations
    n = 2**n_patients if exact else permutations
    smallest = min(2 / n, 1.0) if exact else 1 / (n + 1)
    if np.isnan(observed):
        return PermutationTest(None, smallest, n, exact)
    bar = abs(observed) * (1 - _ROUNDING) - _ROUNDING
    extreme = 0
    for kept in _all_swaps(n_patients) if exact else _drawn_swaps(n_patients, n, seed):
        found = difference.swapped(kept)
        extreme += int(np.sum(~(np.abs(found) < bar)))  # NaN is never below
    return PermutationTest(extreme / n if exact else (1 + extreme) / (1 + n), smallest, n, exact)


def _step(n_patients: int) -> int:
    return max(_BLOCK_CELLS // (2 * n_patients), 1)


def _all_swaps(n_patients: int) -> Iterator[Floats]:
    places = np.arange(n_patients)
    for start in range(0, 2**n_patients, _step(n_patients)):
        codes = np.arange(start, min(start + _step(n_patients), 2**n_patients))
        yield (codes[:, None] >> places & 1).astype(np.float64)


def _drawn_swaps(n_patients: int, n: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for start in range(0, n, _step(n_patients)):
        rows = min(_step(n_patients), n - start)
        yield rng.integers(0, 2, size=(rows, n_patients), dtype=np.uint8).astype(np.float64)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values adjusted by Holm's step-down (Scand J Stat 1979;6:65-70); None stays and counts for nothing.

    Examples
    --------
    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, (p, position) in enumerate(known):
        reached = max(reached, min(p * (len(known) - rank), 1.0))
        adjusted[position] = reached
    return adjusted
