"""CardioBench's linear probe on stored vectors: one linear head under AdamW with early stopping.

Settings are those of its repository (BioMedIA-MBZUAI/CardioBench, commit e0bc185, src/linear_probe): learning rate
1e-4, weight decay 1e-2, batches of 64 with the last short one dropped, at most 1000 epochs, patience 20 on a
validation loss that must fall by 1e-3, the weights of the lowest validation loss, seed 42. The update is that of
torch.optim.AdamW (Loshchilov and Hutter, arXiv:1711.05101). Theirs re-encodes each clip in each epoch.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError
from evaltools.metrics import Floats
from evaltools.protocols.base import Probe, one_blas_thread
from evaltools.protocols.logistic import log_softmax

__all__ = ["AdamWLinear"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's defaults


class AdamWLinear(Probe):
    """A linear head on L2-normalised rows: squared error, or binary or multi-class cross entropy.

    Fitted on training rows only; validation rows say when to stop and which weights to keep.

    Parameters
    ----------
    task : {"regression", "classification"}
    lr, weight_decay : float
    batch_size, max_epochs, patience : int
    min_delta : float
        A validation loss must fall by more than this to count as better.
    seed : int
        Of first weights and batches.

    Attributes
    ----------
    coef_, intercept_ : (D, T, O), (T, O) float64
        O is 1 for values and for two classes, else the number of classes.
    best_epoch_, epochs_ : (T,) int
        Epoch of the weights kept, and how many were run, counted from 1.
    gradient_norms_ : (T,) float64
        Of the whole training loss at the weights kept.
    """

    def __init__(
        self,
        *,
        task: str = "regression",
        lr: float = 1e-4,
        weight_decay: float = 1e-2,
        batch_size: int = 64,
        max_epochs: int = 1000,
        patience: int = 20,
        min_delta: float = 1e-3,
        seed: int = 42,
    ) -> None:
        self.task = task
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.min_delta = min_delta
        self.seed = seed

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Fit on training rows, stopping by validation rows.

        Parameters
        ----------
        X, X_val : (n, D), (m, D)
        y, y_val : (n,) or (n, T); (m,) or (m, T)
            Values, or classes 0 to K - 1; T targets are independent fits that share the batches.

        Raises
        ------
        ContentError
            There are fewer training rows than one batch.
        """
        if len(X) < self.batch_size:
            raise ContentError(
                f"cardiobench-linear drops short batches, so it needs at least {self.batch_size} training clips, and "
                f"there are {len(X)}; use another protocol, or --set batch_size={max(len(X) // 2, 1)}"
            )
        self._single = y.ndim == 1
        train, val = _unit_rows(X), _unit_rows(X_val)
        truth = y.reshape(len(y), -1)
        self._n_classes = 0 if self.task == "regression" else int(truth.max()) + 1
        wanted, wanted_val = self._encoded(truth), self._encoded(y_val.reshape(len(y_val), -1))
        with one_blas_thread():
            self._run(train, wanted, val, wanted_val)
        return self

    def _encoded(self, truth: npt.NDArray[Any]) -> Floats:
        """Return targets (n, T, O)."""
        if self._n_classes <= 2:
            return truth[:, :, None].astype(np.float64)
        return np.asarray(truth[:, :, None] == np.arange(self._n_classes), dtype=np.float64)

    def _run(self, train: Floats, wanted: Floats, val: Floats, wanted_val: Floats) -> None:
        (n, dims), (_, n_targets, outputs) = train.shape, wanted.shape
        rng = np.random.default_rng(self.seed)
        rows, rows_val = (np.column_stack([part, np.ones(len(part))]) for part in (train, val))
        bound = 1 / np.sqrt(dims)  # torch.nn.Linear's uniform start, of weights and bias
        start = rng.uniform(-bound, bound, (dims + 1, 1, outputs))
        weights = np.repeat(start, n_targets, axis=1).reshape(dims + 1, -1)
        kept, moment, square = weights.copy(), np.zeros_like(weights), np.zeros_like(weights)
        lowest, bar = np.full(n_targets, np.inf), np.full(n_targets, np.inf)
        waited, goes_on = np.zeros(n_targets, dtype=np.intp), np.ones(n_targets, dtype=np.bool_)
        self.best_epoch_, self.epochs_ = np.zeros(n_targets, dtype=np.intp), np.zeros(n_targets, dtype=np.intp)
        step = 0
        for epoch in range(1, self.max_epochs + 1):
            order = rng.permutation(n)
            for first in range(0, n - self.batch_size + 1, self.batch_size):
                batch = order[first : first + self.batch_size]
                gradient = self._gradient(rows[batch], wanted[batch], weights)
                step += 1
                weights *= 1 - self.lr * self.weight_decay
                moment += (1 - _BETAS[0]) * (gradient - moment)
                square += (1 - _BETAS[1]) * (gradient**2 - square)
                root = np.sqrt(square / (1 - _BETAS[1] ** step)) + _EPSILON
                weights -= self.lr / (1 - _BETAS[0] ** step) * moment / root
            losses = self._losses(rows_val, wanted_val, weights)
            better = goes_on & (losses < lowest)
            lowest[better] = losses[better]
            self.best_epoch_[better] = epoch
            columns = np.repeat(better, outputs)
            kept[:, columns] = weights[:, columns]
            enough = losses < bar - self.min_delta
            bar[goes_on & enough] = losses[goes_on & enough]
            waited = np.where(enough, 0, waited + 1)
            self.epochs_[goes_on] = epoch
            goes_on &= waited < self.patience
            if not goes_on.any():
                break
        gradient = self._gradient(rows, wanted, kept).reshape(dims + 1, n_targets, outputs)
        self.gradient_norms_ = np.sqrt((gradient**2).sum(axis=(0, 2)))
        whole = kept.reshape(dims + 1, n_targets, outputs)
        self.coef_, self.intercept_ = whole[:-1], whole[-1]
        self.stopped_by_patience_ = ~goes_on

    def _gradient(self, rows: Floats, wanted: Floats, weights: Floats) -> Floats:
        shown = (rows @ weights).reshape(wanted.shape)
        if self._n_classes > 2:
            residual = np.exp(log_softmax(shown)) - wanted
        elif self._n_classes:
            residual = _sigmoid(shown) - wanted
        else:
            residual = 2 * (shown - wanted)
        gradient: Floats = rows.T @ residual.reshape(len(rows), -1) / len(rows)
        return gradient

    def _losses(self, rows: Floats, wanted: Floats, weights: Floats) -> Floats:
        shown = (rows @ weights).reshape(wanted.shape)
        if self._n_classes > 2:
            losses = -(wanted * log_softmax(shown)).sum(axis=2)
        elif self._n_classes:
            losses = (np.logaddexp(0.0, shown) - wanted * shown)[:, :, 0]
        else:
            losses = ((shown - wanted) ** 2)[:, :, 0]
        mean: Floats = losses.mean(axis=0)
        return mean

    def predict_scored(self, X: Floats) -> Floats:
        """Return values (m,) or (m, T), or class probabilities (m, K) or (m, T, K)."""
        shown: Floats = np.tensordot(_unit_rows(X), self.coef_, axes=1) + self.intercept_
        if self._n_classes > 2:
            found = np.exp(log_softmax(shown))
        elif self._n_classes:
            positive = _sigmoid(shown)
            found = np.concatenate([1 - positive, positive], axis=2)
        else:
            found = shown[:, :, 0]
        return found[:, 0] if self._single else found

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        loss = "mean squared error" if self.task == "regression" else "binary or multi-class cross entropy"
        return {
            "method": "one linear layer, AdamW, early stopping on validation loss",
            "normalise": "rows to unit L2 norm",
            "loss": loss,
            "target": "as it is, not standardised" if self.task == "regression" else "class",
            **{name: value for name, value in self.get_params().items() if name != "task"},
            "betas": list(_BETAS),
            "epsilon": _EPSILON,
            "drop_last": True,
            "keep": "weights of the lowest validation loss",
            "refit": False,
        }

    def chosen(self) -> dict[str, Any]:
        """Return when the fit of the first target stopped; it stops before it converges, by definition."""
        return {
            "best_epoch": int(self.best_epoch_[0]),
            "epochs": int(self.epochs_[0]),
            "stopped_by": "patience" if self.stopped_by_patience_[0] else "max_epochs",
            "converged": False,
            "gradient_norm": float(self.gradient_norms_[0]),
        }


def _unit_rows(X: Floats) -> Floats:
    rows = np.asarray(X, dtype=np.float64)
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))
