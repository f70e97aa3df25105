"""A perceptron with one hidden layer: what a little nonlinearity adds to a linear probe.

scikit-learn's, trained epoch by epoch on one BLAS thread, since sums in another order would send a training another
way. Validation patients choose the penalty and say when to stop; the weights of the best epoch are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError
from evaltools.metrics import Floats
from evaltools.protocols.base import Probe, Standardiser, TargetScale, one_blas_thread

__all__ = ["MlpProbe"]


class MlpProbe(Probe):
    """scikit-learn's multi-layer perceptron on standardised rows, stopped early.

    Parameters
    ----------
    task : {"regression", "classification"}
    hidden : int
        Units of the hidden layer.
    alphas : sequence of float
        Weight penalties to try.
    lr : float
        Adam's step.
    batch_size, max_epochs, patience : int
        An epoch that lowers the validation loss by ``min_gain`` resets the patience.
    min_gain : float
        Share of the lowest validation loss.
    seed : int
        Of first weights and batches.

    Attributes
    ----------
    alpha_ : list of float
        Chosen penalty of each target.
    best_epoch_, epochs_ : list of int
    """

    def __init__(
        self,
        *,
        task: str = "regression",
        hidden: int = 128,
        alphas: Sequence[float] = (1e-4, 1e-2, 1.0),
        lr: float = 1e-3,
        batch_size: int = 64,
        max_epochs: int = 2000,
        patience: int = 10,
        min_gain: float = 0.001,
        seed: int = 0,
    ) -> None:
        self.task = task
        self.hidden = hidden
        self.alphas = alphas
        self.lr = lr
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.min_gain = min_gain
        self.seed = seed

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Fit on training rows, choosing and stopping by validation rows; shapes as in `RidgePath.fit`.

        Raises
        ------
        ContentError
            The chosen training was still getting better at the last epoch.
        """
        self._single = y.ndim == 1
        targets, targets_val = y.reshape(len(y), -1), y_val.reshape(len(y_val), -1)
        self._standardise = Standardiser.of(np.asarray(X, dtype=np.float64))
        train, val = self._standardise(X), self._standardise(X_val)
        self.alpha_, self.best_epoch_, self.epochs_, self._models = [], [], [], []
        self._classes = np.arange(int(targets.max()) + 1) if self.task == "classification" else None
        if self._classes is None:
            self._scale = TargetScale.of(targets)
            targets, targets_val = self._scale(targets), self._scale(targets_val)
        with one_blas_thread():
            for target in range(targets.shape[1]):
                wanted, wanted_val = targets[:, target], targets_val[:, target]
                runs = [self._train(train, wanted, val, wanted_val, alpha) for alpha in sorted(self.alphas)[::-1]]
                _, model, alpha, best, epochs = min(runs, key=lambda run: run[0])
                if epochs > self.max_epochs:
                    raise ContentError(
                        f"the perceptron was still getting better after {self.max_epochs} epochs; use a larger "
                        "max_epochs"
                    )
                self.alpha_.append(alpha)
                self.best_epoch_.append(best)
                self.epochs_.append(epochs)
                self._models.append(model)
        return self

    def _train(
        self, train: Floats, wanted: npt.NDArray[Any], val: Floats, wanted_val: npt.NDArray[Any], alpha: float
    ) -> tuple[float, Any, float, int, int]:
        """Return validation loss, model, penalty, best epoch and epochs of one training; one epoch more than the most
        where it was not stopped.
        """
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        settings = {
            "hidden_layer_sizes": (self.hidden,),
            "alpha": alpha,
            "learning_rate_init": self.lr,
            "batch_size": min(self.batch_size, len(train)),
            "random_state": self.seed,
        }
        model = MLPRegressor(**settings) if self._classes is None else MLPClassifier(**settings)
        lowest, bar, gained, best, kept = np.inf, np.inf, 0, 0, None
        for epoch in range(1, self.max_epochs + 1):
            if self._classes is None:
                model.partial_fit(train, wanted)
                loss = float(np.mean((model.predict(val) - wanted_val) ** 2))
            else:
                model.partial_fit(train, wanted, classes=self._classes)
                sure = model.predict_proba(val)[np.arange(len(val)), wanted_val]
                loss = float(-np.log(np.maximum(sure, 1e-300)).mean())
            if loss < lowest:
                lowest, best = loss, epoch
                kept = [layer.copy() for layer in model.coefs_], [layer.copy() for layer in model.intercepts_]
            if loss < bar * (1 - self.min_gain):
                bar, gained = loss, epoch
            elif epoch - gained >= self.patience:
                break
        else:
            epoch = self.max_epochs + 1
        if kept is not None:
            model.coefs_, model.intercepts_ = kept
        return lowest, model, float(alpha), best, epoch

    def predict_scored(self, X: Floats) -> Floats:
        """Return values (m,) or (m, T), or class probabilities (m, K) or (m, T, K)."""
        rows = self._standardise(X)
        found: Floats
        with one_blas_thread():
            if self._classes is None:
                shown = np.column_stack([model.predict(rows) for model in self._models])
                found = self._scale.back(shown)
            else:
                found = np.stack([model.predict_proba(rows) for model in self._models], axis=1)
        return found[:, 0] if self._single else found

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        return {
            "method": "perceptron with one hidden layer of rectified units, Adam, early stopping on validation loss",
            **{name: value for name, value in self.get_params().items() if name not in ("task", "alphas")},
            "alphas": sorted(float(alpha) for alpha in self.alphas),
            "standardise": "train mean and deviation, and the target's",
            "choose_by": "validation mean squared error" if self.task == "regression" else "validation cross entropy",
            "refit": False,
        }

    def chosen(self) -> dict[str, Any]:
        """Return what validation chose for the first target."""
        return {
            "alpha": self.alpha_[0],
            "best_epoch": self.best_epoch_[0],
            "epochs": self.epochs_[0],
            "converged": True,
        }
