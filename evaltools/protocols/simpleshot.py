"""SimpleShot: nearest centroids of a few training clips, drawn again and again."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from evaltools.cohort import NotRunnableError
from evaltools.metrics import Codes, Floats
from evaltools.protocols.base import Probe

__all__ = ["SHOTS", "SimpleShot"]

SHOTS = (1, 2, 4, 8, 16)  # of UNI and THUNDER, 1000 draws each

_CELLS = 1 << 23  # of float64 held at a time by the draws, 64 MiB


class SimpleShot(Probe):
    """Nearest centroid of a few training clips a class, over many draws of them.

    Vectors are centred and brought to unit length; a centroid is the mean of a class; the nearest by Euclidean
    distance is the prediction (Wang et al. 2019, arXiv:1911.04623). Validation rows are not used: nothing is chosen.

    Parameters
    ----------
    n_shots : int
        Clips drawn of each class, without replacement.
    n_draws : int
        Draws; spread over the targets where several are fitted at once, at least 20 each.
    centre : {"train", "support"}
        Whose mean is subtracted: that of all training clips (UNI) or of those drawn (THUNDER).
    seed : int
    """

    def __init__(self, *, n_shots: int = 16, n_draws: int = 1000, centre: str = "train", seed: int = 0) -> None:
        self.n_shots = n_shots
        self.n_draws = n_draws
        self.centre = centre
        self.seed = seed

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Keep the training rows.

        Raises
        ------
        NotRunnableError
            A class has fewer training clips than are to be drawn.
        """
        self._single = y.ndim == 1
        self._targets = y.reshape(len(y), -1)
        self.n_classes_ = int(self._targets.max()) + 1
        counts = np.stack([np.bincount(column, minlength=self.n_classes_) for column in self._targets.T])
        if counts.min() < self.n_shots:
            raise NotRunnableError(
                f"{self.n_shots} shots need as many training clips of each class, and one has {counts.min()}; "
                "give fewer --shots"
            )
        X = np.asarray(X, dtype=np.float64)
        self._mean = X.mean(axis=0)
        self._train = X - self._mean
        return self

    def predict_scored(self, X: Floats) -> Floats:
        """Return the share of draws that predict each class, (m, K) or (m, T, K).

        The share of the true class, averaged over clips, is the mean accuracy of the draws.
        """
        seen = np.asarray(X, dtype=np.float64) - self._mean
        n_targets = self._targets.shape[1]
        n_draws = max(self.n_draws // n_targets, min(self.n_draws, 20))
        rng = np.random.default_rng(self.seed)
        shares = np.zeros((len(seen), n_targets, self.n_classes_))
        step = max(_CELLS // (self.n_classes_ * max(self.n_shots * seen.shape[1], len(seen))), 1)
        for target in range(n_targets):
            for start in range(0, n_draws, step):
                support = self._draw(self._targets[:, target], min(step, n_draws - start), rng)
                predicted = self._predicted(seen, support)
                for code in range(self.n_classes_):
                    shares[:, target, code] += (predicted == code).sum(axis=1)
        shares /= n_draws
        return shares[:, 0] if self._single else shares

    def _draw(self, labels: Codes, n_draws: int, rng: np.random.Generator) -> Codes:
        """Return training rows (draws, K, shots)."""
        support = np.empty((n_draws, self.n_classes_, self.n_shots), dtype=np.intp)
        for code in range(self.n_classes_):
            rows = np.flatnonzero(labels == code)
            keys = rng.random((n_draws, len(rows)))
            support[:, code] = rows[np.argsort(keys, axis=1)[:, : self.n_shots]]
        return support

    def _predicted(self, seen: Floats, support: Codes) -> Codes:
        """Return classes (m, draws): the nearest of the centroids of each draw, all in products of matrices."""
        drawn = self._train[support]
        offset = drawn.mean(axis=(1, 2)) if self.centre == "support" else np.zeros((len(drawn), seen.shape[1]))
        drawn = drawn - offset[:, None, None, :]
        lengths = np.sqrt(np.einsum("gksd,gksd->gks", drawn, drawn))
        drawn /= np.where(lengths > 0, lengths, 1.0)[..., None]
        centroids = drawn.mean(axis=2)
        products = (seen @ centroids.reshape(-1, seen.shape[1]).T).reshape(len(seen), *centroids.shape[:2])
        products -= np.einsum("gd,gkd->gk", offset, centroids)
        away = (
            np.einsum("md,md->m", seen, seen)[:, None] - 2 * seen @ offset.T + np.einsum("gd,gd->g", offset, offset)
        )
        reach = np.sqrt(np.maximum(away, 1e-300))[:, :, None]
        halves = np.einsum("gkd,gkd->gk", centroids, centroids) / 2
        return np.asarray((products / reach - halves).argmax(axis=2), dtype=np.intp)

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        return {
            "method": "nearest centroid of drawn training clips, Euclidean distance of centred unit vectors",
            "n_shots": self.n_shots,
            "n_draws": self.n_draws,
            "centre": f"mean of {'all training clips' if self.centre == 'train' else 'the clips drawn'}",
            "choose_by": "nothing is chosen",
            "value": "mean over the draws",
        }

    def chosen(self) -> dict[str, Any]:
        """Return what the draws were."""
        return {"n_shots": self.n_shots, "n_draws": self.n_draws, "centre": self.centre}
