"""`Calibration`: whether class probabilities mean what they say, for many weightings of patients at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CALIBRATED", "N_BINS", "Calibration"]

CALIBRATED = ("ece", "brier", "nll")
N_BINS = 15  # Guo et al., arXiv:1706.04599
_SMALLEST_SHARE = 1e-15

Floats = npt.NDArray[np.float64]


class Calibration:
    """Expected calibration error, Brier score and negative log-likelihood of one set of predictions.

    The calibration error is that of the predicted class, in 15 bins of equal width. The Brier score is that of the
    second class where there are two, else the sum over classes.

    Parameters
    ----------
    y_true : (n,) int
        Class of each row, 0 to K - 1.
    shares : (n, K) float64
        Predicted probabilities.
    patients : (n,) int
        Which patient each row belongs to, 0 to P - 1.
    """

    def __init__(self, y_true: npt.NDArray[np.intp], shares: Floats, *, patients: npt.NDArray[np.intp]) -> None:
        self.n_patients = int(patients.max()) + 1 if len(patients) else 0
        of_class = shares[np.arange(len(y_true)), y_true]
        if shares.shape[1] == 2:
            brier = (shares[:, 1] - y_true) ** 2
        else:
            brier = np.einsum("nk,nk->n", shares, shares) - 2 * of_class + 1
        self._sure = shares.max(axis=1)
        self._right = (shares.argmax(axis=1) == y_true).astype(np.float64)
        self._bin = np.clip((self._sure * N_BINS).astype(np.intp), 0, N_BINS - 1)
        surprise = -np.log(np.maximum(of_class, _SMALLEST_SHARE))
        plain = [self._of_patients(patients, column) for column in (np.ones(len(y_true)), brier, surprise)]
        away = np.bincount(
            patients * N_BINS + self._bin, weights=self._sure - self._right, minlength=self.n_patients * N_BINS
        )
        self._sums = np.column_stack([*plain, away.reshape(self.n_patients, N_BINS)])

    def _of_patients(self, patients: npt.NDArray[np.intp], column: Floats) -> Floats:
        sums = np.bincount(patients, weights=column, minlength=self.n_patients)
        return np.asarray(sums, dtype=np.float64)

    def __call__(self, counts: Floats) -> dict[str, Floats]:
        """Return each metric for each row of ``counts`` (B, P) as an array (B,)."""
        sums = counts @ self._sums
        n, brier, surprise = sums[:, :3].T
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"ece": np.abs(sums[:, 3:]).sum(axis=1) / n, "brier": brier / n, "nll": surprise / n}

    def bins(self) -> list[dict[str, Any]]:
        """Return the reliability curve as JSON values, a dict for each bin that has rows."""
        return [
            {
                "low": code / N_BINS,
                "high": (code + 1) / N_BINS,
                "n": int(inside.sum()),
                "confidence": float(self._sure[inside].mean()),
                "accuracy": float(self._right[inside].mean()),
            }
            for code in range(N_BINS)
            if (inside := self._bin == code).any()
        ]
