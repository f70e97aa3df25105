"""What every protocol's estimator shares: features standardised on train, parameters that can be read and set."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Floats

__all__ = ["Probe", "Standardiser", "one_blas_thread"]


@cache
def _controller(with_scipy: bool) -> Any:
    """Read the list of loaded libraries (3 ms) once, and again when scipy has brought a BLAS of its own."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped,unused-ignore]

    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run on one BLAS thread: on several, products of narrow or small matrices mostly wait for each other.

    Measured for a path of logistic regressions on 240 x 1280 with 4 classes beside another busy process: 0.08 s on
    one thread, 0.6 to 2.3 s on two.
    """
    with _controller("scipy.optimize" in sys.modules).limit(limits=1, user_api="blas"):
        yield


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
    def of(cls, X: Floats) -> Standardiser:
        """Measure training features (n, D)."""
        mean, scale = X.mean(axis=0), X.std(axis=0)
        constant = scale <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
        floor = SCALE_FLOOR * float(np.median(scale[~constant])) if not constant.all() else 0.0
        return cls(mean, np.where(constant, 1.0, np.maximum(scale, floor)))

    def __call__(self, X: Floats) -> Floats:
        """Return standardised features (n, D) float64."""
        standardised: Floats = (np.asarray(X, dtype=np.float64) - self.mean) / self.scale
        return standardised


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
