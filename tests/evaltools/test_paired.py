from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import permutation_test as scipy_permutation_test
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from evaltools.metrics import classification_metrics, regression_metrics
from evaltools.paired import Pair, holm, paired_difference, permutation_test
from evaltools.resample import patient_draws
from evaltools.swaps import swapped_precision, swapped_spearman

SEVERAL = np.repeat(np.arange(9), [1, 2, 3, 2, 1, 2, 2, 1, 3])


def regression_pair(patients: np.ndarray, *, seed: int = 0, gain: float = 0.0) -> Pair:
    rng = np.random.default_rng(seed)
    true = rng.normal(55, 10, len(patients))
    own = rng.normal(size=(patients.max() + 1, 2))[patients]
    a, b = (true + 4 * own[:, side] + rng.normal(0, 3, len(true)) for side in (0, 1))
    return Pair(y_true=true, a=a, b=b + gain * rng.normal(size=len(true)), patients=patients)


def class_pair(patients: np.ndarray, *, seed: int = 0) -> Pair:
    rng = np.random.default_rng(seed)
    codes = np.arange(len(patients)) % 3
    a, b = (rng.dirichlet(np.ones(3), len(codes)) + sure * np.eye(3)[codes] for sure in (0.4, 0.2))
    a, b = (part / part.sum(axis=1, keepdims=True) for part in (a, b))
    return Pair(y_true=codes, a=a, b=b, patients=patients)


def score(pair: Pair, metric: str, rows: np.ndarray, predicted: np.ndarray) -> float:
    scores: Any = regression_metrics if pair.a.ndim == 1 else classification_metrics
    return float(scores(pair.y_true[rows], predicted[rows])[metric])


@pytest.mark.parametrize("metric", ["mae", "r2", "spearman", "balanced_accuracy", "auroc", "auprc", "ece", "nll"])
def test_the_interval_is_that_of_a_plain_loop_with_the_same_draws(metric: str) -> None:
    patients = np.repeat(np.arange(25), 2)
    pair = regression_pair(patients) if metric in ("mae", "r2", "spearman") else class_pair(patients)
    found = paired_difference(pair, metric=metric, draws=60, seed=4)
    looped = []
    for counts in np.concatenate(list(patient_draws(25, draws=60, seed=4))):
        rows = np.concatenate(
            [np.flatnonzero(patients == who) for who in np.repeat(np.arange(25), counts.astype(int))]
        )
        looped.append(score(pair, metric, rows, pair.a) - score(pair, metric, rows, pair.b))
    everyone = np.arange(len(patients))
    assert found.value == pytest.approx(score(pair, metric, everyone, pair.a) - score(pair, metric, everyone, pair.b))
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.quantile(looped, [0.025, 0.975])))


@pytest.mark.parametrize(
    "metric", ["mae", "r2", "pearson", "spearman", "f1_macro", "balanced_accuracy", "auroc", "auprc", "ece", "brier"]
)
def test_the_exact_test_is_that_of_a_plain_loop_over_all_swaps(metric: str) -> None:
    regression = metric in ("mae", "r2", "pearson", "spearman")
    pair = regression_pair(SEVERAL, gain=2.0) if regression else class_pair(SEVERAL)
    everyone = np.arange(len(SEVERAL))
    differences = []
    for swaps in product([False, True], repeat=9):
        swapped = np.array(swaps)[SEVERAL]
        swapped = swapped if regression else swapped[:, None]
        first, second = np.where(swapped, pair.b, pair.a), np.where(swapped, pair.a, pair.b)
        differences.append(score(pair, metric, everyone, first) - score(pair, metric, everyone, second))
    extreme = np.abs(differences) >= abs(differences[0]) - 1e-9
    found = permutation_test(pair, metric=metric, seed=0)
    assert found.exact and found.n == 512 and found.smallest_p == 2 / 512
    assert found.p == pytest.approx(extreme.mean())


def test_the_exact_test_is_scipys_where_each_patient_has_one_clip() -> None:
    pair = regression_pair(np.arange(10), gain=3.0)
    errors = np.abs(pair.a - pair.y_true), np.abs(pair.b - pair.y_true)
    theirs = scipy_permutation_test(
        errors, lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), permutation_type="samples", vectorized=True
    )
    assert permutation_test(pair, metric="mae", seed=0).p == pytest.approx(theirs.pvalue)


def test_drawn_swaps_come_close_to_all_swaps_and_say_their_smallest_p() -> None:
    pair = regression_pair(np.repeat(np.arange(14), 2), gain=3.0)
    exact = permutation_test(pair, metric="mae", seed=0)
    drawn = permutation_test(pair, metric="mae", permutations=16_000, seed=1)
    assert exact.exact and not drawn.exact and drawn.smallest_p == 1 / 16_001
    assert exact.p is not None and drawn.p == pytest.approx(exact.p, abs=0.012)
    assert drawn == permutation_test(pair, metric="mae", permutations=16_000, seed=1)


def test_a_large_difference_reaches_the_smallest_p_and_none_gives_one() -> None:
    true, patients = np.arange(40.0), np.repeat(np.arange(20), 2)
    worse = Pair(y_true=true, a=true + 1, b=true + 3, patients=patients)
    found = permutation_test(worse, metric="mae", permutations=2000, seed=0)
    assert found.p == pytest.approx(found.smallest_p)
    same = Pair(y_true=true, a=true + 1, b=true + 1, patients=patients)
    assert permutation_test(same, metric="mae", permutations=2000, seed=0).p == 1.0
    constant = Pair(y_true=true, a=true, b=np.ones(40), patients=patients)
    assert permutation_test(constant, metric="pearson", permutations=2000, seed=0).p is None


def test_thousands_of_patients_are_drawn_for() -> None:
    found = permutation_test(regression_pair(np.arange(1300)), metric="mae", permutations=1000, seed=0)
    assert not found.exact and found.n == 1000


def test_at_no_difference_one_in_twenty_is_significant() -> None:
    """Type I error over 300 sets with correlated clips; sd of the share 0.0126."""
    patients = np.repeat(np.arange(24), 3)
    found = [
        permutation_test(regression_pair(patients, seed=seed), metric="mae", permutations=999, seed=seed).p
        for seed in range(300)
    ]
    shares = np.mean(np.array(found)[:, None] <= [0.05, 0.5], axis=0)
    assert 0.02 <= shares[0] <= 0.09 and 0.41 <= shares[1] <= 0.59


def test_clips_taken_for_patients_would_be_too_sure() -> None:
    patients = np.repeat(np.arange(24), 8)
    by_clip = []
    for seed in range(80):
        pair = regression_pair(patients, seed=seed)
        alone = Pair(y_true=pair.y_true, a=pair.a, b=pair.b, patients=np.arange(len(patients)))
        by_clip.append(permutation_test(alone, metric="mae", permutations=499, seed=seed).p)
    assert np.mean(np.array(by_clip) <= 0.05) > 0.15


@pytest.mark.parametrize("step", [0.0, 0.5, 4.0])  # no ties, some, many; both within A or B and between them
def test_spearman_of_swaps_is_scipys(step: float) -> None:
    plain = regression_pair(np.repeat(np.arange(15), 3), gain=2.0)
    pair = plain
    if step:
        rounded = (step * np.round(of / step) for of in (plain.y_true, plain.a, plain.b))
        pair = Pair(**dict(zip(("y_true", "a", "b"), rounded, strict=True)), patients=plain.patients)
    kept = np.random.default_rng(3).integers(0, 2, (40, 15)).astype(np.float64)
    found = swapped_spearman(pair.y_true, pair.a, pair.b, pair.patients)(kept)
    stays = kept[:, pair.patients] == 1
    for one, apart in zip(stays, found, strict=True):
        first, second = np.where(one, pair.a, pair.b), np.where(one, pair.b, pair.a)
        expected = spearmanr(pair.y_true, first).statistic - spearmanr(pair.y_true, second).statistic
        assert apart == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("digits", [9, 1])
def test_auprc_of_swaps_is_sklearns(classes: int, digits: int) -> None:
    rng = np.random.default_rng(5)
    codes, patients = np.arange(45) % classes, np.repeat(np.arange(15), 3)
    a, b = (np.round(rng.dirichlet(np.ones(classes), 45), digits) for _ in range(2))
    kept = rng.integers(0, 2, (40, 15)).astype(np.float64)
    found = swapped_precision(codes, a, b, patients)(kept)

    def mean_precision(shares: np.ndarray) -> float:
        of = [1] if classes == 2 else range(classes)
        return float(np.mean([average_precision_score(codes == k, shares[:, k]) for k in of]))

    for one, apart in zip(kept[:, patients, None] == 1, found, strict=True):
        expected = mean_precision(np.where(one, a, b)) - mean_precision(np.where(one, b, a))
        assert apart == pytest.approx(expected, abs=1e-12)


def test_auroc_of_a_swap_is_sklearns() -> None:
    rng = np.random.default_rng(2)
    codes, patients = np.arange(30) % 2, np.repeat(np.arange(10), 3)
    a, b = rng.random(30), rng.random(30)
    pair = Pair(y_true=codes, a=np.column_stack([1 - a, a]), b=np.column_stack([1 - b, b]), patients=patients)
    swapped = patients % 3 == 0
    counts = np.concatenate([~swapped[::3], swapped[::3]])[None].astype(float)
    assert pair.scorer()(counts)["auroc"][0] == pytest.approx(roc_auc_score(codes, np.where(swapped, b, a)))


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == [] and holm([None]) == [None]


@pytest.mark.parametrize("case", ["auroc", "auroc of three", "auroc with ties", "spearman", "spearman with ties"])
def test_rank_metrics_of_swaps_are_those_of_scoring_each_swap(case: str) -> None:
    rng = np.random.default_rng(7)
    patients = np.repeat(np.arange(7), 3)
    metric = case.split()[0]
    if metric == "auroc":
        shape = (21, 3 if case.endswith("three") else 2)
        true = np.arange(21) % shape[1]
        a, b = (rng.dirichlet(np.ones(shape[1]), 21) for _ in range(2))
    else:
        true = rng.normal(size=21).round(1)
        a, b = true + rng.normal(size=21), true + rng.normal(0, 2, size=21)
    if case.endswith("ties"):
        a, b = a.round(1), b.round(1)
    pair = Pair(y_true=true, a=a, b=b, patients=patients)
    score = classification_metrics if metric == "auroc" else regression_metrics

    def difference(code: int) -> float:
        keeps = (code >> patients & 1).astype(bool)
        keeps = keeps[:, None] if a.ndim == 2 else keeps
        first, second = (score(true, np.where(keeps == side, a, b))[metric] for side in (True, False))
        return first - second

    plain = np.array([difference(code) for code in range(2**7)])
    extreme = np.abs(plain) >= abs(plain[-1]) - 1e-9
    assert 0 < extreme.mean() < 1
    assert permutation_test(pair, metric=metric, seed=0).p == pytest.approx(extreme.mean())
