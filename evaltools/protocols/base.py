"""What every protocol's estimator shares: features standardised on train, parameters that can be read and set."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Floats
from evaltools.threads import one_blas_thread

__all__ = ["Probe", "Standardiser", "TargetScale", "one_blas_thread"]


# Share of the median deviation below which no scale falls. On the phantom .03, .1 and .3 give the same probe.
SCALE_FLOOR = 0.1


@dataclass(frozen=True)
class Standardiser:
    """Mean and deviation of the training rows, applied to every split.

    Attributes
    ----------
    mean, scale : (D,) float64
        A column that does not vary in train has scale 1, so it becomes zeros there. No other scale is below
        `SCALE_FLOOR` of their median: networks have near-dead outputs, and a test clip where one of them wakes up
        would otherwise stand a thousand deviations away and be predicted far outside the possible.
    """

    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, X: Floats) -> Self:
        """Measure training features (n, D)."""
        return cls.of_moments(X.mean(axis=0), X.std(axis=0))

    @classmethod
    def applied(cls, X: Floats) -> tuple[Self, Floats]:
        """Measure training features (n, D) and return them standardised as well, in fewer passes over memory."""
        mean = X.mean(axis=0)
        centred: Floats = X - mean
        measured = cls.of_moments(mean, np.sqrt(np.einsum("nd,nd->d", centred, centred) / len(X)))
        centred /= measured.scale
        return measured, centred

    @classmethod
    def of_moments(cls, mean: Floats, scale: Floats) -> Self:
        """Take the mean and deviation (D,) of training features as measured."""
        constant = scale <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
        floor = SCALE_FLOOR * float(np.median(scale[~constant])) if not constant.all() else 0.0
        return cls(mean, np.where(constant, 1.0, np.maximum(scale, floor)))

    def __call__(self, X: Floats) -> Floats:
        """Return standardised features (n, D) float64."""
        standardised: Floats = (np.asarray(X, dtype=np.float64) - self.mean) / self.scale
        return standardised


@dataclass(frozen=True)
class TargetScale:
    """Mean and deviation (T,) of the training values of T targets; one that does not vary has deviation 1.

    Examples
    --------
    >>> scale = TargetScale.of(np.array([[40.0], [60.0]]))
    >>> scale(np.array([[50.0]])).tolist(), scale.back(np.array([[0.5]])).tolist()
    ([[0.0]], [[55.0]])
    """

    mean: Floats
    deviation: Floats

    @classmethod
    def of(cls, targets: npt.NDArray[Any]) -> Self:
        """Measure training values (n, T)."""
        deviation = targets.std(axis=0)
        return cls(targets.mean(axis=0), np.where(deviation > 0, deviation, 1.0))

    def __call__(self, targets: npt.NDArray[Any]) -> Floats:
        """Return standardised values (n, T)."""
        standardised: Floats = (targets - self.mean) / self.deviation
        return standardised

    def back(self, shown: npt.NDArray[Any]) -> Floats:
        """Return values (n, T) in the targets' own unit."""
        values: Floats = shown * self.deviation + self.mean
        return values


class Probe:
    """An estimator in scikit-learn's conventions: keyword parameters, learnt attributes end in an underscore.

    `fit` takes validation rows beside the training rows: its setting is chosen on them, then it is fitted again on
    both together.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's parameters."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Set constructor parameters by name.

        Raises
        ------
        ValueError
            The constructor has no such parameter.
        """
        unknown = set(params) - set(self.get_params())
        if unknown:
            raise ValueError(f"{type(self).__name__} has no parameter {sorted(unknown)[0]!r}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Choose the setting on validation rows and fit on both."""
        raise NotImplementedError

    def predict_scored(self, X: Floats) -> Floats:
        """Return what metrics read: values (m,) or (m, T), or class probabilities (m, K)."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return every setting of the method as JSON values: what `EvalProtocol.digest` is taken of."""
        raise NotImplementedError

    def chosen(self) -> Mapping[str, Any]:
        """Return what validation chose, as JSON values."""
        raise NotImplementedError
