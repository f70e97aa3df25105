from __future__ import annotations

import numpy as np
import pytest

from evaltools import rankings
from evaltools.metrics import ClassificationScorer, RegressionScorer, classification_metrics, regression_metrics
from evaltools.resample import Estimate, estimate_metrics, interval_refusal, patient_codes, patient_draws


def correlated_clips(n_patients: int, clips: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, predictions and patients: clips of a patient share their target and most of their error."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), clips)
    y = rng.normal(55, 12, n_patients)[patients]
    p = 55 + 0.6 * (y - 55) + rng.normal(0, 6, n_patients)[patients] + rng.normal(0, 2, len(patients))
    return y, p, patients


def rows_drawn(counts: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The plain way: one row after another, as often as its patient was drawn."""
    return np.repeat(np.arange(len(patients)), counts[patients].astype(int))


@pytest.mark.parametrize("decimals", [0, 8])
def test_regression_replicates_are_those_of_a_plain_loop(decimals: int) -> None:
    y, p, patients = correlated_clips(30, 3, seed=1)
    y, p, patients = np.round(y, decimals), np.round(p, decimals), np.random.default_rng(2).permutation(patients)
    scorer = RegressionScorer(y, p, patients=patients)
    (counts,) = patient_draws(30, draws=60, seed=5)
    vectorised = scorer(counts)
    for draw in range(60):
        rows = rows_drawn(counts[draw], patients)
        looped = regression_metrics(y[rows], p[rows])
        assert {name: values[draw] for name, values in vectorised.items()} == pytest.approx(looped, rel=1e-11)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("decimals", [1, 8])
def test_classification_replicates_are_those_of_a_plain_loop(n_classes: int, decimals: int) -> None:
    rng = np.random.default_rng(n_classes)
    patients = rng.integers(0, 25, 90)
    y = rng.integers(0, n_classes, 90)
    probabilities = np.round(rng.dirichlet(np.ones(n_classes), 90) + 0.3 * np.eye(n_classes)[y], decimals)
    scorer = ClassificationScorer(y, probabilities, patients=patients)
    (counts,) = patient_draws(25, draws=60, seed=5)
    vectorised = scorer(counts)
    for draw in range(60):
        rows = rows_drawn(counts[draw], patients)
        looped = classification_metrics(y[rows], probabilities[rows])
        assert {name: values[draw] for name, values in vectorised.items()} == pytest.approx(looped, rel=1e-11)


def test_memory_slices_do_not_change_a_replicate(monkeypatch: pytest.MonkeyPatch) -> None:
    y, p, patients = correlated_clips(30, 3, seed=1)
    (counts,) = patient_draws(30, draws=50, seed=5)
    scorers = [
        RegressionScorer(y, p, patients=patients),
        ClassificationScorer((y > 55).astype(int), np.column_stack([-p, p]), patients=patients),
    ]
    for scorer in scorers:
        whole = scorer(counts)
        for cells in (1, 90 * 7):
            monkeypatch.setattr(rankings, "_CELLS", cells)
            sliced = scorer(counts)
            assert all(sliced[name] == pytest.approx(whole[name], rel=1e-12) for name in whole)
        monkeypatch.undo()


def test_a_draw_counts_as_many_patients_as_there_are() -> None:
    blocks = list(patient_draws(41, draws=600, seed=3))
    counts = np.concatenate(blocks)
    assert counts.shape == (600, 41) and len(blocks) == 3
    assert (counts.sum(axis=1) == 41).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(41), abs=0.2)
    assert np.array_equal(counts[:250], next(patient_draws(41, draws=300, seed=3)))


def test_the_interval_is_the_percentiles_of_the_replicates() -> None:
    y, p, patients = correlated_clips(40, 2, seed=7)
    scorer = RegressionScorer(y, p, patients=patients)
    found = estimate_metrics(scorer, n_patients=40, draws=500, seed=9)
    replicates = [regression_metrics(y[rows], p[rows])["mae"]
                  for counts in np.concatenate(list(patient_draws(40, draws=500, seed=9)))
                  for rows in [rows_drawn(counts, patients)]]  # fmt: skip
    assert (found["mae"].ci_low, found["mae"].ci_high) == pytest.approx(
        tuple(np.quantile(replicates, [0.025, 0.975]))
    )
    assert found["mae"].value == pytest.approx(np.abs(y - p).mean())
    assert found["mae"].ci_reason is None


def test_four_clips_a_patient_keep_the_interval_of_patients() -> None:
    y, p, patients = correlated_clips(100, 4, seed=11)
    by_patient = estimate_metrics(RegressionScorer(y, p, patients=patients), n_patients=100, seed=1)["mae"]
    every_clip = np.arange(400)
    by_clip = estimate_metrics(RegressionScorer(y, p, patients=every_clip), n_patients=400, seed=1)["mae"]
    assert by_patient.value == pytest.approx(by_clip.value)
    widths = [one.ci_high - one.ci_low for one in (by_patient, by_clip) if one.ci_high and one.ci_low]
    assert widths[0] > 1.3 * widths[1]


def test_few_patients_have_a_value_and_no_interval() -> None:
    y, p, patients = correlated_clips(19, 2, seed=0)
    refusal = interval_refusal(patients)
    found = estimate_metrics(RegressionScorer(y, p, patients=patients), n_patients=19, seed=0, refusal=refusal)["mae"]
    assert found.value is not None and found.ci_low is None and found.ci_high is None
    assert found.to_dict() == {"value": found.value, "ci_low": None, "ci_high": None,
                               "ci_reason": "19 patients, fewer than 20"}  # fmt: skip


def test_a_rare_class_is_counted_in_patients() -> None:
    patients = np.repeat(np.arange(30), 2)
    rare = patients < 4  # 8 clips, 4 patients
    assert interval_refusal(patients, np.where(rare, "PSAX", "A4C")) == "4 patients of class PSAX, fewer than 5"
    assert interval_refusal(patients, np.where(patients < 5, "PSAX", "A4C")) is None


def test_what_is_not_defined_has_neither_value_nor_interval() -> None:
    y, _, patients = correlated_clips(25, 2, seed=0)
    constant = RegressionScorer(y, np.full(50, y.mean()), patients=patients)
    found = estimate_metrics(constant, n_patients=25, draws=100, seed=0)
    assert found["pearson"].value is None and found["pearson"].ci_reason
    assert found["mae"].ci_low is not None


def test_no_draws_no_interval() -> None:
    y, p, patients = correlated_clips(25, 2, seed=0)
    found = estimate_metrics(RegressionScorer(y, p, patients=patients), n_patients=25, draws=0, seed=0)["r2"]
    assert found == Estimate(found.value, ci_reason="no bootstrap was asked for")


def test_patients_are_numbered_by_id_not_by_row() -> None:
    assert patient_codes(np.array(["b", "a", "c", "a"], dtype=object)).tolist() == [1, 0, 2, 0]


def test_the_interval_covers_the_truth_in_about_95_of_100_simulations() -> None:
    truth = np.mean([np.abs(np.subtract(*correlated_clips(2000, 4, seed=s)[:2])).mean() for s in range(900, 910)])
    covered = 0
    for seed in range(100):
        y, p, patients = correlated_clips(80, 4, seed=seed)
        mae = estimate_metrics(RegressionScorer(y, p, patients=patients), n_patients=80, draws=250, seed=seed)["mae"]
        assert mae.ci_low is not None and mae.ci_high is not None
        covered += mae.ci_low <= truth <= mae.ci_high
    assert 88 <= covered <= 99
