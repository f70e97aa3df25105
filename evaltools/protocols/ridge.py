"""Ridge regression along a whole path of penalties from one eigendecomposition.

With X centred, n rows, D columns and a penalty of ``alpha = strength * n``, the predictions of every penalty follow
from one decomposition: of the Gram matrix X'X (D x D) where rows outnumber columns, else of X X' (n x n).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Floats
from evaltools.protocols.base import SCALE_FLOOR, Probe, Standardiser

__all__ = ["STRENGTHS", "RidgePath"]

# Per training row and in units of standardised features: from next to none to shrinking everything away.
STRENGTHS: tuple[float, ...] = tuple(float(10.0**exponent) for exponent in np.linspace(-5, 6, 45))


class RidgePath(Probe):
    """Ridge regression whose penalty is chosen on validation rows.

    Features are standardised on train. Minimises the mean squared error plus ``strength`` times the squared norm of
    the coefficients (scikit-learn's ``alpha`` is ``strength * n``); the intercept is free. The strength of least
    validation squared error wins, the stronger at a tie; the refit is on train and validation together.

    Parameters
    ----------
    strengths : sequence of float
        Penalties to try, all above zero.

    Attributes
    ----------
    strength_ : (T,) float64
        The chosen penalty of each target.
    validation_mse_ : (S, T) float64
        Validation squared error of each strength in descending order.
    coef_ : (D, T) float64
    intercept_ : (T,) float64
    """

    def __init__(self, *, strengths: Sequence[float] = STRENGTHS) -> None:
        self.strengths = strengths

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Choose the penalty and fit.

        Parameters
        ----------
        X, X_val : (n, D), (m, D)
            Training and validation features.
        y, y_val : (n,) or (n, T); (m,) or (m, T)
            Targets; T of them share the decomposition.
        """
        self._single = y.ndim == 1
        targets, targets_val = y.reshape(len(y), -1), y_val.reshape(len(y_val), -1)
        self._standardise, train = Standardiser.applied(np.asarray(X, dtype=np.float64))
        val = self._standardise(X_val)
        self._gram = train.T @ train if len(train) > train.shape[1] else None
        self.strengths_ = np.sort(np.asarray(self.strengths, dtype=np.float64))[::-1]
        self.validation_mse_ = self._path(train, targets, val, targets_val)
        self.strength_ = self.strengths_[self.validation_mse_.argmin(axis=0)]
        self._refit(train, targets, val, targets_val)
        return self

    def _path(self, train: Floats, targets: Floats, val: Floats, targets_val: Floats) -> Floats:
        mean = targets.mean(axis=0)
        centred = targets - mean
        if self._gram is not None:
            eigenvalues, basis = np.linalg.eigh(self._gram)
            projected, seen = basis.T @ (train.T @ centred), val
        else:
            eigenvalues, basis = np.linalg.eigh(train @ train.T)
            projected, seen = basis.T @ centred, val @ train.T
        # Whichever are fewer are turned: validation rows, or the coefficients of every strength and target.
        turns_rows = len(val) < len(self.strengths_) * targets.shape[1]
        seen = seen @ basis if turns_rows else seen
        eigenvalues = np.maximum(eigenvalues, 0.0)
        shrunk = eigenvalues[:, None] + self.strengths_ * len(train)
        wanted = targets_val - mean
        errors = np.empty((len(self.strengths_), targets.shape[1]))
        for target in range(targets.shape[1]):  # all strengths of a target in one product
            along = projected[:, target, None] / shrunk
            fitted = seen @ (along if turns_rows else basis @ along)
            errors[:, target] = np.mean((fitted - wanted[:, target, None]) ** 2, axis=0)
        return errors

    def _refit(self, train: Floats, targets: Floats, val: Floats, targets_val: Floats) -> None:
        values = np.concatenate([targets, targets_val])
        n, dims = len(values), train.shape[1]
        offset, self.intercept_ = val.sum(axis=0) / n, values.mean(axis=0)  # train has mean zero
        centred = values - self.intercept_
        features = train
        if self._gram is not None:  # so its Gram matrix only needs the new rows and the shift
            system = self._gram + val.T @ val - n * np.outer(offset, offset)
            right = train.T @ centred[: len(train)] + val.T @ centred[len(train) :]
        else:
            features = np.concatenate([train, val]) - offset
            system, right = features @ features.T, centred
        self.coef_ = np.empty((dims, targets.shape[1]))
        diagonal = np.arange(len(system))
        for strength in np.unique(self.strength_):
            chosen = self.strength_ == strength
            penalised = system.copy()
            penalised[diagonal, diagonal] += strength * n
            solved = np.linalg.solve(penalised, right[:, chosen])
            self.coef_[:, chosen] = solved if self._gram is not None else features.T @ solved
        self.intercept_ = self.intercept_ - offset @ self.coef_

    def predict(self, X: Floats) -> Floats:
        """Return predictions (m,), or (m, T) where T targets were fitted."""
        predicted: Floats = self._standardise(X) @ self.coef_ + self.intercept_
        return predicted[:, 0] if self._single else predicted

    predict_scored = predict

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        return {
            "method": "ridge regression, one eigendecomposition for all penalties",
            "strengths": sorted(float(strength) for strength in self.strengths),
            "strength_is": "per training row, on the squared norm of the coefficients",
            "standardise": f"train mean and deviation, at least {SCALE_FLOOR} of their median",
            "choose_by": "validation mean squared error",
            "refit": "train+val",
        }

    def chosen(self) -> dict[str, Any]:
        """Return the chosen penalty of the first target and whether it lies at an end of the path."""
        strength = float(self.strength_[0])
        return {"strength": strength, "at_edge": strength in (self.strengths_[0], self.strengths_[-1])}
