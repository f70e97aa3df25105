"""Multinomial logistic regression over a grid of C, by L-BFGS in coordinates that make it converge quickly.

The penalised solution lies in the row space of the features, so weights are looked for on its principal axes (at
most min(n, D) of them), and each axis is scaled by the curvature that the loss has along it at uniform
probabilities. Neither changes the solution; every fit starts at the one of the next smaller C.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError
from evaltools.metrics import Codes, Floats
from evaltools.protocols.base import SCALE_FLOOR, Probe, Standardiser, one_blas_thread
from evaltools.protocols.cross_entropy import CrossEntropy
from evaltools.protocols.peak import climb, peak_grid
from evaltools.protocols.row_space import RowSpace, gram_of

__all__ = ["C_GRID", "LogisticPath", "log_softmax", "logits_of"]

C_GRID: tuple[float, ...] = tuple(float(10.0**exponent) for exponent in np.linspace(-6, 3, 19))
_CORRECTIONS = 20  # pairs that L-BFGS remembers


@dataclass(frozen=True)
class _Fit:
    weights: Floats  # (R + 1, T, K), the intercepts last
    gradient_norms: Floats  # (T,)
    iterations: int


_Tried = list[dict[int, tuple[_Fit, int]]]  # a target: position of C -> the fit, and the target's place in it


class LogisticPath(Probe):
    """Logistic regression whose C is chosen on validation rows.

    Features are standardised on train. Minimises ``C * sum(cross entropy) + 0.5 * ||W||^2`` with free intercepts;
    two classes have one weight vector, as in scikit-learn's ``LogisticRegression(C)``. The C of least validation
    cross entropy (or error rate) wins, the smaller at a tie; the path ends early once it has only risen; the refit is
    on train and validation together.

    Parameters
    ----------
    Cs : sequence of float
        Values to try, in ascending order.
    patience : int
        The path ends after this many values in a row without a lower validation loss.
    max_iter : int
        L-BFGS iterations a fit. Classes that lie far apart, such as views, need thousands at a large C.
    tolerance : float
        A fit has converged when no entry of the gradient of the mean loss, in the scaled coordinates, is larger.
    standardise : bool
        Divide by the deviation of train.
    choose_by : {"loss", "accuracy"}
        What of the validation rows decides.
    search : {"full", "peak"}
        Try every C, or climb to a peak: on the 8-a-decade grid between the ends of ``Cs`` every second decade first,
        then around the best in steps of 8, 4, 2 and 1.
    strict : bool
        Whether a fit that has not converged is an error; without, `chosen` says so.

    Attributes
    ----------
    C_ : (T,) float64
        Chosen value of each target.
    validation_loss_ : (S, T) float64
        Validation cross entropy of each C that was tried, in ascending order; infinite beyond the end of a path.
    coef_, intercept_ : (D, T, K), (T, K) float64
        Weights on standardised features; the first class of two has zeros.
    gradient_norms_, n_iter_ : (T,) float64, int
        Of the refit.
    """

    def __init__(
        self,
        *,
        Cs: Sequence[float] = C_GRID,
        patience: int = 4,
        max_iter: int = 20_000,
        tolerance: float = 1e-7,
        standardise: bool = True,
        choose_by: str = "loss",
        search: str = "full",
        strict: bool = True,
    ) -> None:
        self.Cs = Cs
        self.patience = patience
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.standardise = standardise
        self.choose_by = choose_by
        self.search = search
        self.strict = strict

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Choose C and fit.

        Parameters
        ----------
        X, X_val : (n, D), (m, D)
            Training and validation features.
        y, y_val : (n,) or (n, T) int; (m,) or (m, T) int
            Classes 0 to K - 1, every one in ``y``; T targets are independent fits that share each pass over X.

        Raises
        ------
        ContentError
            The fit at the chosen C did not converge.
        """
        self._single = y.ndim == 1
        targets, targets_val = y.reshape(len(y), -1), y_val.reshape(len(y_val), -1)
        self._standardise, train = self._scaled(np.asarray(X, dtype=np.float64))
        val, gram = self._standardise(X_val), gram_of(train)
        self.n_classes_ = int(targets.max()) + 1
        if self.search == "peak":
            self.Cs_ = peak_grid(min(self.Cs), max(self.Cs))
            path = self._climb(RowSpace.of(train, gram=gram), targets, val, targets_val)
        else:
            self.Cs_ = np.sort(np.asarray(self.Cs, dtype=np.float64))
            path = self._path(RowSpace.of(train, gram=gram), targets, val, targets_val)
        best = self.validation_loss_.argmin(axis=0)
        self.C_ = self.Cs_[best]
        for target, position in enumerate(best):
            fit, at = path[target][position]
            self._refuse_unconverged(fit, at, C=self.C_[target])
        self._refit((train, val), np.concatenate([targets, targets_val]), gram=gram)
        return self

    def _scaled(self, X: Floats) -> tuple[Standardiser, Floats]:
        if self.standardise:
            return Standardiser.applied(X)
        centring = Standardiser(X.mean(axis=0), np.ones(X.shape[1]))
        return centring, X - centring.mean

    def _validate(self, val: Floats, space: RowSpace, fit: _Fit, targets_val: Codes) -> Floats:
        coefficients = np.tensordot(space.basis, fit.weights[:-1], axes=1)
        log_probabilities = log_softmax(logits_of(val, coefficients, fit.weights[-1]))
        if self.choose_by == "accuracy":
            return np.asarray((log_probabilities.argmax(axis=2) != targets_val).mean(axis=0))
        return np.asarray(-np.take_along_axis(log_probabilities, targets_val[:, :, None], axis=2).mean(axis=(0, 2)))

    def _climb(self, space: RowSpace, targets: Codes, val: Floats, targets_val: Codes) -> _Tried:
        tried = []
        self.validation_loss_ = np.full((len(self.Cs_), targets.shape[1]), np.inf)
        for target in range(targets.shape[1]):
            fits: dict[int, tuple[_Fit, int]] = {}
            of_target = partial(self._tried, fits, space, targets[:, [target]], val, targets_val[:, [target]])
            for position, loss in climb(of_target, len(self.Cs_)).items():
                self.validation_loss_[position, target] = loss
            tried.append(fits)
        return tried

    def _tried(
        self,
        fits: dict[int, tuple[_Fit, int]],
        space: RowSpace,
        target: Codes,
        val: Floats,
        target_val: Codes,
        position: int,
    ) -> float:
        """Fit one target (n, 1) at one C, keep the fit, and return its validation loss."""
        fit = self._minimise(self._loss(space, target), C=self.Cs_[position], start=None)
        fits[position] = fit, 0
        return float(self._validate(val, space, fit, target_val)[0])

    def _loss(self, space: RowSpace, targets: Codes) -> CrossEntropy:
        return CrossEntropy(space, targets, n_classes=self.n_classes_, row_weights=self._row_weights(targets))

    def _path(self, space: RowSpace, targets: Codes, val: Floats, targets_val: Codes) -> _Tried:
        start, path, loss = None, [], self._loss(space, targets)
        losses = np.full((len(self.Cs_), targets.shape[1]), np.inf)
        goes_on = np.ones(targets.shape[1], dtype=np.bool_)
        for position, C in enumerate(self.Cs_):
            fit = self._minimise(loss, C=C, start=start)
            start = fit.weights
            path.append(fit)
            found = self._validate(val, space, fit, targets_val)
            losses[position, goes_on] = found[goes_on]
            goes_on &= position - losses.argmin(axis=0) < self.patience
            if not goes_on.any():
                break
        self.validation_loss_ = losses[: len(path)]
        return [{at: (fit, target) for at, fit in enumerate(path)} for target in range(targets.shape[1])]

    def _row_weights(self, targets: Codes) -> Floats | None:
        """Return the weight of every row for every target (n, T), None where all weigh one."""
        return None

    def _refit(self, parts: tuple[Floats, ...], targets: Codes, *, gram: Floats | None = None) -> None:
        """Fit rows in parts; ``gram`` is of the first of them, see `RowSpace.of`."""
        space, n_targets = RowSpace.of(*parts, gram=gram), targets.shape[1]
        offset = sum(part.sum(axis=0) for part in parts) / len(targets)
        self.coef_ = np.empty((len(offset), n_targets, self.n_classes_))
        self.intercept_ = np.empty((n_targets, self.n_classes_))
        self.gradient_norms_, self.n_iter_ = np.empty(n_targets), 0
        for C in np.unique(self.C_):
            chosen = np.flatnonzero(self.C_ == C)
            fit = self._minimise(self._loss(space, targets[:, chosen]), C=C, start=None)
            for position in range(len(chosen)):
                self._refuse_unconverged(fit, position, C=C)
            self.coef_[:, chosen] = np.tensordot(space.basis, fit.weights[:-1], axes=1)
            self.intercept_[chosen] = fit.weights[-1]
            self.gradient_norms_[chosen] = fit.gradient_norms
            self.n_iter_ = max(self.n_iter_, fit.iterations)
        self.intercept_ -= np.tensordot(offset, self.coef_, axes=1)

    def _minimise(self, loss: CrossEntropy, *, C: float, start: Floats | None) -> _Fit:
        """Fit all targets at one C: their sum is one problem, whose parts do not touch each other."""
        from scipy.optimize import minimize

        free = slice(1, None) if self.n_classes_ == 2 else slice(None)
        loss.set_penalty(1.0 / (C * loss.n_rows))
        scale, shape = loss.scale[:, None, None], loss.shape
        begin = np.zeros(shape) if start is None else start[:, :, free] / scale
        limits = {"maxiter": self.max_iter, "maxfun": 2 * self.max_iter, "gtol": self.tolerance, "ftol": 0.0}
        with one_blas_thread() if loss.n_targets == 1 else nullcontext():
            found = minimize(
                loss, begin.ravel(), jac=True, method="L-BFGS-B", options={**limits, "maxcor": _CORRECTIONS}
            )
        weights = np.zeros((*shape[:2], self.n_classes_))
        weights[:, :, free] = found.x.reshape(shape) * scale
        return _Fit(weights, np.abs(found.jac.reshape(shape)).max(axis=(0, 2)), int(found.nit))

    def _refuse_unconverged(self, fit: _Fit, target: int, *, C: float) -> None:
        if self.strict and fit.gradient_norms[target] > self.tolerance:
            raise ContentError(
                f"logistic regression at the chosen C = {C:g} did not converge in {fit.iterations} iterations "
                f"(gradient {fit.gradient_norms[target]:.1e}, wanted {self.tolerance:.0e}); use a smaller C or more "
                "iterations"
            )

    def predict_proba(self, X: Floats) -> Floats:
        """Return class probabilities (m, K), or (m, T, K) where T targets were fitted."""
        probabilities = np.exp(log_softmax(logits_of(self._standardise(X), self.coef_, self.intercept_)))
        return probabilities[:, 0] if self._single else probabilities

    def predict(self, X: Floats) -> Codes:
        """Return the class of highest probability, (m,) or (m, T)."""
        predicted: Codes = self.predict_proba(X).argmax(axis=-1)
        return predicted

    predict_scored = predict_proba

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        return {
            "method": "multinomial logistic regression, L-BFGS",
            "Cs": sorted(float(C) for C in self.Cs),
            "patience": self.patience,
            "penalty": "0.5 * squared norm of the weights, intercepts free",
            "max_iter": self.max_iter,
            "tolerance": self.tolerance,
            "standardise": f"train mean and deviation, at least {SCALE_FLOOR} of their median"
            if self.standardise
            else False,
            "choose_by": f"validation {'cross entropy' if self.choose_by == 'loss' else self.choose_by}",
            "search": self.search,
            "strict": self.strict,
            "refit": "train+val",
        }

    def chosen(self) -> dict[str, Any]:
        """Return the C of the first target, whether it lies at an end of the grid, and how the refit converged."""
        C = float(self.C_[0])
        return {
            "C": C,
            "at_edge": C in (self.Cs_[0], self.Cs_[-1]),
            "tried": int(np.isfinite(self.validation_loss_[:, 0]).sum()),
            "converged": bool(self.gradient_norms_[0] <= self.tolerance),
            "gradient_norm": float(self.gradient_norms_[0]),
            "iterations": self.n_iter_,
        }


def logits_of(rows: Floats, weights: Floats, intercepts: Floats) -> Floats:
    """Return (m, T, K) of rows (m, R), weights (R, T, K) and intercepts (T, K)."""
    logits: Floats = np.tensordot(rows, weights, axes=1) + intercepts
    return logits


def log_softmax(logits: Floats) -> Floats:
    """Return log probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probabilities
