"""Probes fitted on a fixed number of clips, by VTAB-1k's rule: 800 to fit, 200 to choose, 1,000 for the final fit."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Codes, Floats
from evaltools.protocols.base import Probe
from evaltools.protocols.logistic import LogisticPath
from evaltools.protocols.ridge import RidgePath

__all__ = ["SampledLogistic", "SampledRidge"]

N_TRAIN, N_VAL = 800, 200  # Zhai et al., arXiv:1910.04867, section 2.3


def _drawn(y: npt.NDArray[Any], n: int, rng: np.random.Generator, *, keep_classes: bool) -> Codes:
    """Return n rows in ascending order, all where there are no more; more where a class would be lost."""
    order = rng.permutation(len(y))
    drawn = set(order[:n].tolist())
    if keep_classes:
        for labels in y.reshape(len(y), -1).T:
            lost = set(labels.tolist()) - set(labels[sorted(drawn)].tolist())
            drawn |= {int(order[np.flatnonzero(labels[order] == label)[0]]) for label in lost}
    return np.array(sorted(drawn), dtype=np.intp)


class _Sampled(Probe):
    """A probe on drawn rows; stands before the probe that it draws for among the bases.

    Parameters
    ----------
    n_train, n_val : int
        Rows to fit on and to choose by; all where there are fewer.
    seed : int
        Of the draw.
    """

    keeps_classes: ClassVar[bool]

    def __init__(self, *, n_train: int = N_TRAIN, n_val: int = N_VAL, seed: int = 0) -> None:
        super().__init__()
        self.n_train = n_train
        self.n_val = n_val
        self.seed = seed

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Draw, choose and fit."""
        rng = np.random.default_rng(self.seed)
        train = _drawn(y, self.n_train, rng, keep_classes=self.keeps_classes)
        val = _drawn(y_val, self.n_val, rng, keep_classes=False)
        self.n_drawn_ = len(train), len(val)
        return super().fit(X[train], y[train], X_val=X_val[val], y_val=y_val[val])

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        return {**super().settings(), "n_train": self.n_train, "n_val": self.n_val, "seed": self.seed}

    def chosen(self) -> dict[str, Any]:
        """Return what validation chose, and how many rows were drawn."""
        return {**super().chosen(), "n_drawn": list(self.n_drawn_)}


class SampledLogistic(_Sampled, LogisticPath):
    """`LogisticPath` on drawn rows; a class that was not drawn gets its first row of the draw's order."""

    keeps_classes = True


class SampledRidge(_Sampled, RidgePath):
    """`RidgePath` on drawn rows."""

    keeps_classes = False
