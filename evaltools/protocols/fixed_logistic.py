"""Logistic regressions without a search: one C, stated or from the problem's size, fitted on train and validation."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Codes, Floats
from evaltools.protocols.base import Probe
from evaltools.protocols.logistic import LogisticPath, log_softmax, logits_of
from evaltools.protocols.row_space import RowSpace

__all__ = ["FixedLogistic", "NormLogistic"]


def _adaptive(dims: int, classes: int) -> float:
    """C = dim * classes / 100, as UNI's and Patho-Bench's evaluations have it."""
    return dims * classes / 100


class FixedLogistic(LogisticPath):
    """Logistic regression at one C: ``C * sum(cross entropy) + 0.5 * ||W||^2``, as in scikit-learn.

    Parameters
    ----------
    C : float or "adaptive"
        ``adaptive`` is dim * classes / 100.
    class_weight : {"none", "balanced"}
        ``balanced`` weighs a row by n / (classes * rows of its class).
    max_iter, tolerance, standardise, strict
        As in `LogisticPath`.
    """

    def __init__(
        self,
        *,
        C: float | str = 1.0,
        class_weight: str = "none",
        max_iter: int = 1000,
        tolerance: float = 1e-7,
        standardise: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__(max_iter=max_iter, tolerance=tolerance, standardise=standardise, strict=strict)
        self.C = C
        self.class_weight = class_weight

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Fit on training and validation rows together; shapes as in `LogisticPath.fit`."""
        self._single = y.ndim == 1
        targets = np.concatenate([y.reshape(len(y), -1), y_val.reshape(len(y_val), -1)])
        features = np.concatenate([X, X_val]).astype(np.float64)
        self._standardise, scaled = self._scaled(features)
        self.n_classes_ = int(targets.max()) + 1
        C = _adaptive(features.shape[1], self.n_classes_) if self.C == "adaptive" else float(self.C)
        self.C_ = np.full(targets.shape[1], C)
        self._refit((scaled,), targets)
        return self

    def _row_weights(self, targets: Codes) -> Floats | None:
        if self.class_weight != "balanced":
            return None
        counts = np.stack([np.bincount(column, minlength=self.n_classes_) for column in targets.T])
        weights: Floats = len(targets) / (self.n_classes_ * counts[np.arange(targets.shape[1]), targets])
        return weights

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        return {
            "method": "multinomial logistic regression, L-BFGS, no search",
            "C": self.C,
            "class_weight": self.class_weight,
            "penalty": "0.5 * squared norm of the weights, intercepts free",
            "max_iter": self.max_iter,
            "tolerance": self.tolerance,
            "standardise": "train+val mean and deviation" if self.standardise else False,
            "strict": self.strict,
            "fit": "train+val",
        }

    def chosen(self) -> dict[str, Any]:
        """Return C and how the fit of the first target converged."""
        return {
            "C": float(self.C_[0]),
            "converged": bool(self.gradient_norms_[0] <= self.tolerance),
            "gradient_norm": float(self.gradient_norms_[0]),
            "iterations": self.n_iter_,
        }


class NormLogistic(Probe):
    """Logistic regression with the norm itself as penalty: ``mean(cross entropy) + (1 / C) * 0.5 * ||W||``.

    The norm is not squared, so equal values of C mean another model than in scikit-learn. Two classes have two
    weight vectors. Biases are free.

    Parameters
    ----------
    C : float or "adaptive"
        ``adaptive`` is dim * classes / 100.
    max_iter : int
        L-BFGS iterations.
    tolerance : float
        The fit has converged when no entry of the gradient is larger.
    """

    def __init__(self, *, C: float | str = "adaptive", max_iter: int = 1000, tolerance: float = 1e-6) -> None:
        self.C = C
        self.max_iter = max_iter
        self.tolerance = tolerance

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Fit on training and validation rows together; shapes as in `LogisticPath.fit`."""
        self._single = y.ndim == 1
        targets = np.concatenate([y.reshape(len(y), -1), y_val.reshape(len(y_val), -1)])
        features = np.concatenate([X, X_val]).astype(np.float64)
        self._offset = features.mean(axis=0)
        space = RowSpace.of(features)
        classes = int(targets.max()) + 1
        self.C_ = _adaptive(features.shape[1], classes) if self.C == "adaptive" else float(self.C)
        fits = [self._minimise(space, column, classes) for column in targets.T]
        self.coef_ = np.stack([space.basis @ weights[:-1] for weights, _ in fits], axis=1)
        self.intercept_ = np.stack([weights[-1] for weights, _ in fits])
        self.gradient_norms_ = np.array([norm for _, norm in fits])
        return self

    def _minimise(self, space: RowSpace, y: Codes, classes: int) -> tuple[Floats, float]:
        from scipy.optimize import minimize

        n, n_axes = len(space), len(space.eigenvalues)
        scale = np.append(np.sqrt(n / np.maximum(space.eigenvalues, 1e-300)), 1.0)[:, None]
        rows = np.column_stack([space.on_axes(), np.ones(n)]) * scale[:, 0]
        truth = (y[:, None] == np.arange(classes)).astype(np.float64)
        strength = 0.5 / self.C_

        def objective(flat: Floats) -> tuple[float, Floats]:
            theta = flat.reshape(n_axes + 1, classes)
            weights = (theta * scale)[:-1]
            norm = float(np.linalg.norm(weights))
            log_probabilities = log_softmax(rows @ theta)
            gradient = rows.T @ (np.exp(log_probabilities) - truth) / n
            gradient[:-1] += strength * scale[:-1] * weights / max(norm, 1e-300)  # zero at zero, as torch has it
            return float(-np.vdot(truth, log_probabilities) / n + strength * norm), gradient.ravel()

        limits = {"maxiter": self.max_iter, "maxfun": 2 * self.max_iter, "gtol": self.tolerance, "ftol": 0.0}
        begin = np.zeros((n_axes + 1) * classes)
        found = minimize(objective, begin, jac=True, method="L-BFGS-B", options={**limits, "maxcor": 20})
        return found.x.reshape(n_axes + 1, classes) * scale, float(np.abs(found.jac).max())

    def predict_proba(self, X: Floats) -> Floats:
        """Return class probabilities (m, K), or (m, T, K) where T targets were fitted."""
        features = np.asarray(X, dtype=np.float64) - self._offset
        probabilities = np.exp(log_softmax(logits_of(features, self.coef_, self.intercept_)))
        return probabilities[:, 0] if self._single else probabilities

    predict_scored = predict_proba

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        return {
            "method": "multinomial logistic regression, L-BFGS, no search",
            "C": self.C,
            "penalty": "(1 / C) * 0.5 * norm of the weights, not squared, beside the mean cross entropy",
            "max_iter": self.max_iter,
            "tolerance": self.tolerance,
            "standardise": False,
            "fit": "train+val",
        }

    def chosen(self) -> dict[str, Any]:
        """Return C and how the fit of the first target converged."""
        norm = float(self.gradient_norms_[0])
        return {"C": self.C_, "converged": norm <= self.tolerance, "gradient_norm": norm}
