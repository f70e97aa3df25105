"""One fit: targets in their splits, a protocol, and the predictions for the test clips."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaltools.clip_frames import Features
from evaltools.cohort import Cohort
from evaltools.metrics import ClassificationScorer, Codes, Floats, Kind, RegressionScorer
from evaltools.protocols import EvalProtocol
from evaltools.protocols.base import one_blas_thread
from evaltools.resample import Estimate, estimate_metrics, interval_refusal, patient_codes

__all__ = ["Fitted", "Fold", "Targets", "class_order", "fit_and_predict"]


# Multiplications of one Gram matrix, half a second on one core: below, one BLAS thread is as quick where cores are
# free and several times quicker where they are not.
_SMALL_PRODUCT = 2e10


@dataclass(frozen=True)
class Fold:
    """Rows of one fold of a cross-validation.

    Attributes
    ----------
    repeat : int
        Which repeat it is of.
    train, val, test : (m,) int
        Rows fitted on, chosen by, predicted.
    """

    repeat: int
    train: Codes
    val: Codes
    test: Codes


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Labels in the form that estimators and scorers read.

    Attributes
    ----------
    kind : {"regression", "classification"}
    values : (n,) float64 or int
        Numbers, or positions in `classes`.
    classes : tuple of str
        Classes of train in sorted order, then those that stand in other splits only; empty for regression.
    n_known : int
        How many of them stand in train: the others are never predicted.
    patients : (n,) object
    train, val, test : (m,) int
        Rows of each split; validation rows of a class that is not in train are left out. With folds ``train`` and
        ``val`` are those of the first, and ``test`` is every row, once a repeat.
    folds : tuple of Fold
        Empty where the splits are used.
    """

    kind: Kind
    values: npt.NDArray[Any]
    classes: tuple[str, ...]
    n_known: int
    patients: npt.NDArray[Any]
    train: Codes
    val: Codes
    test: Codes
    folds: tuple[Fold, ...] = ()

    @classmethod
    def of(cls, cohort: Cohort) -> Targets:
        """Read the labels of a cohort."""
        train, val, test = (np.flatnonzero(cohort.in_split(split)) for split in ("train", "val", "test"))
        values, n_known = cohort.labels, 0
        classes: tuple[str, ...] = ()
        if cohort.task.kind == "classification":
            known = sorted(set(cohort.labels[train]), key=class_order)
            late = sorted(set(cohort.labels) - set(known), key=class_order)
            classes, n_known = (*known, *late), len(known)
            position = {name: code for code, name in enumerate(classes)}
            values = np.array([position[label] for label in cohort.labels], dtype=np.intp)
            val = val[values[val] < n_known]
        return cls(
            kind=cohort.task.kind,
            values=values,
            classes=classes,
            n_known=n_known,
            patients=cohort.patients,
            train=train,
            val=val,
            test=test,
        )

    def estimates(
        self, predictions: Floats, *, draws: int, seed: int, kept: npt.NDArray[np.bool_] | None = None
    ) -> dict[str, Estimate]:
        """Score predictions for the test clips, or those of them where ``kept`` is true."""
        among = slice(None) if kept is None else kept
        true, predicted = self.values[self.test][among], predictions[among]
        patients = patient_codes(self.patients[self.test][among])
        refusal = interval_refusal(patients, self._class_names(true) if self.classes else None)
        scorer = self.scorer(true, predicted, patients)
        return estimate_metrics(scorer, n_patients=scorer.n_patients, draws=draws, seed=seed, refusal=refusal)

    def scorer(
        self, true: npt.NDArray[Any], predicted: Floats, patients: Codes
    ) -> RegressionScorer | ClassificationScorer:
        """Return what scores predictions of this kind."""
        if self.kind == "regression":
            return RegressionScorer(true, predicted, patients=patients)
        return ClassificationScorer(true, predicted, patients=patients)

    def _class_names(self, codes: Codes) -> npt.NDArray[Any]:
        return np.array(self.classes, dtype=object)[codes].astype(str)


def class_order(name: str) -> tuple[bool, float, str]:
    """Whole numbers by value, then words."""
    is_number = name.removeprefix("-").isdigit()
    return not is_number, float(name) if is_number else 0.0, name


@dataclass(frozen=True)
class Fitted:
    """Predictions for the test clips and what validation chose.

    Attributes
    ----------
    predictions : (m,) or (m, T) float64, or (m, K) or (m, T, K)
        Values of one target or of T targets, or class probabilities.
    chosen : mapping
        JSON values.
    """

    predictions: Floats
    chosen: Mapping[str, Any]


def fit_and_predict(
    protocol: EvalProtocol, X: Features, targets: Targets, *, values: npt.NDArray[Any] | None = None
) -> Fitted:
    """Fit a protocol on train and val, and predict test.

    Parameters
    ----------
    X : (n, D) float64, or ClipFrames
        Features of the cohort's clips.
    values : (n,) or (n, T) array, optional
        Other labels than the true ones, for the shuffled control.

    Raises
    ------
    ContentError
        The fit at the chosen setting did not converge.
    """
    y = targets.values if values is None else values
    if targets.folds:
        fits = [_fit(protocol, X, y, fold, targets.kind) for fold in targets.folds]
        predictions = np.empty((len(targets.test), *fits[0].predictions.shape[1:]))
        for fold, fit in zip(targets.folds, fits, strict=True):
            predictions[fold.repeat * len(X) + fold.test] = fit.predictions
        return Fitted(predictions, {"folds": [dict(fit.chosen) for fit in fits]})
    fitted = _fit(protocol, X, y, targets, targets.kind)
    predictions = fitted.predictions
    if targets.kind == "classification":  # classes that train lacks are never predicted
        shape = (*predictions.shape[:-1], len(targets.classes) - targets.n_known)
        predictions = np.concatenate([predictions, np.zeros(shape)], axis=-1)
    return Fitted(predictions, fitted.chosen)


def _fit(protocol: EvalProtocol, X: Features, y: npt.NDArray[Any], rows: Fold | Targets, kind: Kind) -> Fitted:
    estimator = protocol.make(kind)
    is_small = X.size * min(X.shape) < _SMALL_PRODUCT
    with one_blas_thread() if is_small else nullcontext():
        estimator.fit(X[rows.train], y[rows.train], X_val=X[rows.val], y_val=y[rows.val])
        predictions = estimator.predict_scored(X[rows.test])
    return Fitted(predictions, estimator.chosen())
