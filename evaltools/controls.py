"""Controls: the same numbers from predictors that know nothing of the images. They stand beneath every result.

``mean``
    The mean of the training labels, or the class shares of train.
``shuffled``
    The whole pipeline on labels permuted by patient: those of train and val among themselves, those of test among
    themselves, so that every label set keeps its mean. Its value is the mean over the permutations and its interval
    their middle 95 %: what chance gives, not the sampling of patients.
``random``
    The whole pipeline on Gaussian vectors of the same size.
``metadata``
    The whole pipeline on facts of the recording: fps, frames, image size, duration, device, site.

Tasks that are scored by study may ask for two more, of all images of the study, whichever of them are scored:

``view-mix``
    The whole pipeline on the share of each view among the images of the study.
``n-images``
    The whole pipeline on the number of images of the study.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaltools.aggregation import Aggregation, unit_ids
from evaltools.clip_frames import Features
from evaltools.cohort import Cohort
from evaltools.fitting import Targets, fit_and_predict
from evaltools.metrics import METRICS, Codes, Floats
from evaltools.protocols import EvalProtocol
from evaltools.resample import Estimate, patient_codes

__all__ = [
    "CONTROLS",
    "Shuffled",
    "ShuffledFits",
    "mean_predictions",
    "metadata_features",
    "random_features",
    "score_shuffled",
    "shuffle_by_patient",
    "shuffled_control",
    "shuffled_fits",
    "study_features",
]

CONTROLS = ("mean", "shuffled", "random", "metadata")

_NUMERIC = ("fps", "n_frames", "height", "width")
_CATEGORICAL = ("manufacturer", "model", "site")


def mean_predictions(targets: Targets) -> Floats:
    """Return the training mean, or the class shares of train, for each test clip: (m,) or (m, K)."""
    if not targets.folds:
        means = _mean_of(targets, np.concatenate([targets.train, targets.val]))
        return np.repeat(means[None], len(targets.test), axis=0)
    means = np.empty((len(targets.test), *_mean_of(targets, targets.train).shape))
    for fold in targets.folds:
        rows = fold.repeat * len(targets.values) + fold.test
        means[rows] = _mean_of(targets, np.concatenate([fold.train, fold.val]))
    return means


def _mean_of(targets: Targets, rows: Codes) -> Floats:
    fitted = targets.values[rows]
    if targets.kind == "regression":
        return np.asarray(fitted.mean(), dtype=np.float64)
    return np.bincount(fitted, minlength=len(targets.classes)) / len(fitted)


def random_features(shape: tuple[int, int], *, seed: int) -> Floats:
    """Return standard Gaussian vectors (n, D)."""
    return np.random.default_rng(seed).standard_normal(shape)


def metadata_features(cohort: Cohort) -> Floats:
    """Return facts of the recording (n, M): numbers with the training mean where they are unknown, a column that
    says so, and one column a category that stands in train.
    """
    train = cohort.in_split("train")
    columns: list[Floats] = []
    numbers = {name: np.array(cohort.column(name), dtype=np.float64) for name in _NUMERIC}
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers["duration_s"] = numbers["n_frames"] / numbers["fps"]
    for values in numbers.values():
        known = np.isfinite(values)
        if (known & train).any():
            columns.append(np.where(known, values, values[known & train].mean()))
            columns.append(known.astype(np.float64))
    for name in _CATEGORICAL:
        texts = np.array(cohort.column(name), dtype=object).astype(str)
        columns.extend((texts == category).astype(np.float64) for category in np.unique(texts[train]))
    return np.column_stack(columns) if columns else np.zeros((len(cohort), 1))


def study_features(cohort: Cohort, whole: Cohort, name: str) -> Floats:
    """Return facts of each clip's study (n, M): ``view-mix`` or ``n-images``.

    Parameters
    ----------
    whole : Cohort
        All clips that count as images of a study, those of the cohort among them.
    """
    studies, of_whole = unit_ids(cohort, "study").astype(str), unit_ids(whole, "study").astype(str)
    names, codes = np.unique(of_whole, return_inverse=True)
    views = np.array(whole.column("view"), dtype=object).astype(str)
    kinds, kind = np.unique(views, return_inverse=True)
    cells = np.bincount(codes * len(kinds) + kind, minlength=len(names) * len(kinds)).reshape(len(names), -1)
    n_images = cells.sum(axis=1, keepdims=True)
    facts = cells / n_images if name == "view-mix" else np.log(n_images)
    features: Floats = facts[np.searchsorted(names, studies)].astype(np.float64)
    return features


def shuffle_by_patient(
    values: npt.NDArray[Any], patients: npt.NDArray[Any], rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Give every patient the labels of another one.

    Labels that are equal within a patient stay equal within the patient. Those that differ (views) are dealt in
    random order, repeated where the other patient has fewer clips, so that no clip order survives.

    Parameters
    ----------
    values, patients : (n,)
        Labels and patients of one split.
    """
    codes = patient_codes(patients)
    order = np.lexsort((rng.random(len(codes)), codes))
    counts = np.bincount(codes)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    giver = rng.permutation(len(counts))
    within = np.arange(len(codes)) - np.repeat(starts, counts)
    source = np.repeat(starts[giver], counts) + within % np.repeat(counts[giver], counts)
    shuffled = np.empty_like(values)
    shuffled[order] = values[order][source]
    return shuffled


@dataclass(frozen=True)
class Shuffled:
    """The shuffled control.

    Attributes
    ----------
    estimates : dict of str to Estimate
    n : int
        Permutations.
    p : float or None
        Share of permutations, the observed one counted in, whose main metric is at least as good as the observed.
    """

    estimates: dict[str, Estimate]
    n: int
    p: float | None


@dataclass(frozen=True)
class ShuffledFits:
    """Fits to permuted labels.

    Attributes
    ----------
    labels : (n, T)
        Labels of the cohort's clips in each permutation.
    predictions : (m, T) or (m, T, K) float64
        For the test clips.
    """

    labels: npt.NDArray[Any]
    predictions: Floats


def shuffled_fits(protocol: EvalProtocol, X: Features, targets: Targets, *, seed: int) -> ShuffledFits:
    """Run the whole pipeline on permuted labels, `EvalProtocol.n_shuffles` times."""
    rng = np.random.default_rng(seed)
    shuffles = np.stack([_shuffled_labels(targets, rng) for _ in range(protocol.n_shuffles)], axis=1)
    predictions = [
        fit_and_predict(protocol, X, targets, values=shuffles[:, start : start + protocol.n_together]).predictions
        for start in range(0, protocol.n_shuffles, protocol.n_together)
    ]
    return ShuffledFits(shuffles, np.concatenate(predictions, axis=1))


def score_shuffled(
    fits: ShuffledFits, targets: Targets, *, observed: Estimate, main_metric: str, level: Aggregation | None = None
) -> Shuffled:
    """Score fits to permuted labels, as clips or as the units of a row."""
    if level is None:
        true, predicted, scored = fits.labels[targets.test], fits.predictions, targets
    else:
        true, predicted, scored = level.truth(fits.labels), level.predictions(fits.predictions), level.targets
    patients = patient_codes(scored.patients[scored.test])
    once = np.ones((1, int(patients.max()) + 1))
    n = fits.labels.shape[1]
    scores = [scored.scorer(true[:, at], predicted[:, at], patients)(once) for at in range(n)]
    replicates = {name: np.array([of[name][0] for of in scores]) for name in scores[0]}
    estimates = {name: _middle(values) for name, values in replicates.items()}
    return Shuffled(estimates, n, _p(replicates[main_metric], observed, main_metric))


def shuffled_control(
    protocol: EvalProtocol, X: Floats, targets: Targets, *, observed: Estimate, main_metric: str, seed: int
) -> Shuffled:
    """Run the whole pipeline on permuted labels, and score clips."""
    fits = shuffled_fits(protocol, X, targets, seed=seed)
    return score_shuffled(fits, targets, observed=observed, main_metric=main_metric)


def _shuffled_labels(targets: Targets, rng: np.random.Generator) -> npt.NDArray[Any]:
    values = targets.values.copy()
    together = np.concatenate([targets.train, targets.val])
    for rows in (np.arange(len(values)),) if targets.folds else (together, targets.test):
        values[rows] = shuffle_by_patient(targets.values[rows], targets.patients[rows], rng)
    # A classifier needs every class in train, from which a rare one can get lost.
    for fitted in targets.folds or (targets,):
        for lost in range(targets.n_known) if targets.classes else ():
            train = values[fitted.train]
            if lost not in train:
                commonest = np.flatnonzero(train == np.bincount(train).argmax())
                values[fitted.train[rng.choice(commonest)]] = lost
    return values


def _middle(values: Floats) -> Estimate:
    known = values[~np.isnan(values)]
    if not len(known):
        return Estimate(None, ci_reason="not defined for any permutation")
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(float(known.mean()), float(low), float(high))


def _p(values: Floats, observed: Estimate, main_metric: str) -> float | None:
    if observed.value is None:
        return None
    sign = 1.0 if METRICS[main_metric].higher_is_better else -1.0
    as_good = np.sum(sign * values >= sign * observed.value)  # NaN is never as good
    return float((1 + as_good) / (1 + len(values)))
