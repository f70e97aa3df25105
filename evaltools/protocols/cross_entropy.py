"""The penalised cross entropy of rows, and its gradient, a few rows at a time, so that each is read once a step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Codes, Floats
from evaltools.protocols.row_space import RowSpace

__all__ = ["CrossEntropy"]

_BLOCK_BYTES = 3 << 19  # of rows: both products find them in a core's cache. 512 KiB to 2 MiB are as quick


class CrossEntropy:
    """Mean cross entropy of T independent targets plus ``0.5 * penalty * ||W||^2``, in scaled coordinates.

    Coordinates are weights on the principal axes of the rows and an intercept, each divided by its scale. Two classes
    have one weight vector.

    Parameters
    ----------
    space : RowSpace
        n rows.
    targets : (n, T) int
        Classes 0 to K - 1.
    n_classes : int
        K.
    row_weights : (n, T) float64 or None
        None where all weigh one.
    """

    def __init__(self, space: RowSpace, targets: Codes, *, n_classes: int, row_weights: Floats | None = None) -> None:
        self._space, self.n_rows = space, len(space)
        self.n_targets, self.n_free = targets.shape[1], n_classes - (n_classes == 2)
        curvature = (n_classes - 1) / n_classes**2  # along every axis, at uniform probabilities
        self._curvature = curvature * np.append(space.eigenvalues / self.n_rows, 1.0)
        step = max(_BLOCK_BYTES // (8 * space.parts[0].shape[1]), 64)
        self._blocks: list[tuple[Floats, Codes, Floats | float]] = []
        at = 0
        for part in space.parts:
            for start in range(0, len(part), step):
                rows = part[start : start + step]
                until = at + len(rows)
                share = 1.0 if row_weights is None else np.ascontiguousarray(row_weights[at:until].T)
                self._blocks.append((rows, np.ascontiguousarray(targets[at:until].T), share))
                at = until
        self.set_penalty(0.0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the coordinates: (R + 1, T, K), or (R + 1, T, 1) of two classes; the intercepts last."""
        return len(self._curvature), self.n_targets, self.n_free

    def set_penalty(self, penalty: float) -> None:
        """Take a penalty, and scale each axis by the curvature that it then has."""
        without = np.append(np.full(len(self._curvature) - 1, penalty), 0.0)
        self.scale = 1.0 / np.sqrt(self._curvature + without)
        self._penalties = (without * self.scale**2)[:, None]

    def __call__(self, flat: npt.NDArray[np.float64]) -> tuple[float, Floats]:
        """Return the loss and its gradient at coordinates, both flat."""
        theta = flat.reshape(self.shape[0], -1)
        scaled = theta * self.scale[:, None]
        turn, offset = self._space.turn, self._space.offset
        weights = scaled[:-1] if turn is None else turn @ scaled[:-1]
        weights = np.ascontiguousarray(weights.T)  # (T K, Q)
        intercepts = (scaled[-1] - weights @ offset)[:, None]
        loss, along, summed = 0.0, np.zeros_like(weights), np.zeros(len(weights))
        for rows, truth, share in self._blocks:
            logits = weights @ rows.T
            logits += intercepts
            lost, residual = (_of_two if self.n_free == 1 else _of_many)(logits, truth, share)
            loss += lost
            along += residual @ rows
            summed += residual.sum(axis=1)
        along -= np.outer(summed, offset)
        gradient = np.vstack([along.T if turn is None else turn.T @ along.T, summed])
        gradient *= self.scale[:, None] / self.n_rows
        shrunk = self._penalties * theta
        gradient += shrunk
        return loss / self.n_rows + 0.5 * float(np.vdot(shrunk, theta)), gradient.ravel()


def _of_two(logits: Floats, truth: Codes, share: Floats | float) -> tuple[float, Floats]:
    """Return the summed loss of logits (T, b) of the second class, and its derivative by them."""
    powers = np.exp(-np.abs(logits))
    softplus = np.log1p(powers) + np.maximum(logits, 0.0)
    residual = np.where(logits >= 0, 1.0, powers) / (1.0 + powers) - truth
    return float(np.sum((softplus - truth * logits) * share)), residual * share


def _of_many(logits: Floats, truth: Codes, share: Floats | float) -> tuple[float, Floats]:
    """Return the summed loss of logits (T K, b), and its derivative by them."""
    n_targets, width = truth.shape
    of_classes = logits.reshape(n_targets, -1, width)
    true = np.arange(n_targets)[:, None], truth, np.arange(width)
    of_classes -= of_classes.max(axis=1, keepdims=True)
    of_truth = of_classes[true]
    powers = np.exp(of_classes, out=of_classes)
    total = powers.sum(axis=1)
    loss = float(np.sum((np.log(total) - of_truth) * share))
    powers /= total[:, None]
    powers[true] -= 1.0
    if not isinstance(share, float):
        powers *= share[:, None]
    return loss, powers.reshape(logits.shape)
