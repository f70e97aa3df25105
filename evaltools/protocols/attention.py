"""Attention over frame vectors: what a probe finds that may look at some frames of a clip more than at others.

A head has a learned query. Its scores, softmaxed over the frames of a clip, weigh them; what is predicted is linear
in the weighted mean of each head. For one query a head this is cross attention with keys and values of their own:
the key matrix only turns the query, and the value matrix only the read-out.

Training needs torch. The trainer is found by name among the entry points of ``evaltools.trainers``; prediction from
its weights is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from embedstore.encoder import resolve_string
from embedstore.errors import MissingExtraError
from evaltools.clip_frames import ClipFrames, Features
from evaltools.metrics import Floats
from evaltools.protocols.base import SCALE_FLOOR, Probe, Standardiser, TargetScale
from evaltools.protocols.logistic import log_softmax

__all__ = ["TRAINERS_GROUP", "AttentionSettings", "FrameAttention", "Trained", "TrainingClips", "attend"]

TRAINERS_GROUP = "evaltools.trainers"
_TRAINER = "frame-attention"
WEIGHT_DECAYS = (0.01, 0.1, 0.4)  # EchoJEPA, configs/eval/vitg-384
# Larger than EchoJEPA's 1e-4 and 5e-5, which move four blocks over 20 epochs of a batch of 8. With 1e-3 alone the
# frames that tell LVEF are not found in 220 phantom clips of pixel statistics, with 3e-3 they are.
LEARNING_RATES = (1e-3, 3e-3)
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's defaults
_QUERY_SPREAD = 0.02  # of first queries, as of V-JEPA's query tokens


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """What a trainer is told beside the clips.

    Attributes
    ----------
    loss : {"smooth-l1", "cross-entropy"}
    n_outputs, heads : int
    grid : tuple of (float, float)
        Learning rate and weight decay of each of S trainings.
    betas, epsilon, query_spread
        Of AdamW, and the deviation of the first queries.
    batch_size, max_epochs, patience, min_gain, seed
        As in `FrameAttention`.
    """

    loss: str
    n_outputs: int
    heads: int
    grid: tuple[tuple[float, float], ...]
    batch_size: int
    max_epochs: int
    patience: int
    min_gain: float
    seed: int
    betas: tuple[float, float] = _BETAS
    epsilon: float = _EPSILON
    query_spread: float = _QUERY_SPREAD


@dataclass(frozen=True)
class TrainingClips:
    """Clips of one split as a trainer reads them.

    Attributes
    ----------
    frames : ClipFrames
        n clips.
    standardise : Standardiser
        Of frame vectors.
    wanted : (n, T) float32 or int64
        Standardised values, or classes, of T targets.
    """

    frames: ClipFrames
    standardise: Standardiser
    wanted: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.frames)

    def padded(self, clips: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return standardised frames (m, T, D) of some clips, zeros behind the last, and which are frames (m, T)."""
        return _standardised(self.frames[clips], self.standardise)


class Trained(Protocol):
    """What a trainer returns: for T targets and S settings the weights of the lowest validation loss."""

    @property
    def queries(self) -> Floats:
        """(T, S, H, D), scores are their products with frames over the root of D."""

    @property
    def readout(self) -> Floats:
        """(T, S, H, O, D)."""

    @property
    def bias(self) -> Floats:
        """(T, S, O)."""

    @property
    def validation_loss(self) -> Floats:
        """(T, S)."""

    @property
    def best_epoch(self) -> npt.NDArray[np.intp]:
        """(T, S), from 1."""

    @property
    def epochs(self) -> npt.NDArray[np.intp]:
        """(T, S), how many were run."""

    @property
    def stopped(self) -> npt.NDArray[np.bool_]:
        """(T, S), whether patience ended it."""

    @property
    def gradient_norm(self) -> Floats:
        """(T, S), of the training loss at the weights kept."""


class Trainer(Protocol):
    """Trains one layer of attention for every target and setting of the grid."""

    def __call__(self, train: TrainingClips, val: TrainingClips, settings: AttentionSettings) -> Trained: ...


def _trainer() -> Trainer:
    """Return the installed trainer.

    Raises
    ------
    MissingExtraError
        There is none, or torch is not installed.
    """
    points = sorted(entry_points(group=TRAINERS_GROUP, name=_TRAINER), key=lambda point: point.value)
    if not points:
        raise MissingExtraError(
            f"no installed package trains {_TRAINER!r}; install the extra with: pip install 'embedstore[build]'"
        )
    trainer: Trainer = resolve_string(points[0].value, needed_by="attention over frames")
    return trainer


class FrameAttention(Probe):
    """One layer of attention over standardised frame vectors, and a linear read-out.

    Fitted on training clips only; validation clips choose the learning rate and the weight decay, and say when to
    stop.

    Parameters
    ----------
    task : {"regression", "classification"}
    heads : int
        Queries.
    lr, weight_decay : sequence of float
        Of AdamW, constant; every pair is tried.
    batch_size, max_epochs, patience : int
        An epoch that lowers the validation loss by ``min_gain`` resets the patience.
    min_gain : float
        Share of the lowest validation loss.
    seed : int
        Of first weights and batches.

    Attributes
    ----------
    queries_, readout_, bias_ : (T, H, D), (T, H, O, D), (T, O) float64
        Of each target; O is 1 for values, else the number of classes.
    lr_, weight_decay_ : (T,) float64
        Chosen for each target.
    """

    def __init__(
        self,
        *,
        task: str = "regression",
        heads: int = 4,
        lr: Sequence[float] = LEARNING_RATES,
        weight_decay: Sequence[float] = WEIGHT_DECAYS,
        batch_size: int = 32,
        max_epochs: int = 200,
        patience: int = 20,
        min_gain: float = 0.001,
        seed: int = 0,
    ) -> None:
        self.task = task
        self.heads = heads
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.min_gain = min_gain
        self.seed = seed

    def fit(self, X: Features, y: npt.NDArray[Any], *, X_val: Features, y_val: npt.NDArray[Any]) -> Self:
        """Fit on training clips, choosing and stopping by validation clips.

        Parameters
        ----------
        X, X_val : ClipFrames of n and m clips
            An array (n, D) counts as clips of one frame.
        y, y_val : (n,) or (n, T); (m,) or (m, T)
            Values, or classes 0 to K - 1, of T targets.

        Raises
        ------
        MissingExtraError
            torch is not installed.
        """
        train_clips = _trainer()
        frames, frames_val = ClipFrames.of(X), ClipFrames.of(X_val)
        self._single = y.ndim == 1
        targets, targets_val = y.reshape(len(y), -1), y_val.reshape(len(y_val), -1)
        self._standardise = Standardiser.of_moments(*frames.moments())
        self._n_classes = 0 if self.task == "regression" else int(targets.max()) + 1
        if not self._n_classes:
            self._scale = TargetScale.of(targets)
        trained = train_clips(
            TrainingClips(frames, self._standardise, self._wanted(targets)),
            TrainingClips(frames_val, self._standardise, self._wanted(targets_val)),
            AttentionSettings(
                loss="cross-entropy" if self._n_classes else "smooth-l1",
                n_outputs=self._n_classes or 1,
                heads=self.heads,
                grid=self._grid,
                batch_size=self.batch_size,
                max_epochs=self.max_epochs,
                patience=self.patience,
                min_gain=self.min_gain,
                seed=self.seed,
            ),
        )
        best = trained.validation_loss.argmin(axis=1)
        chosen = np.arange(targets.shape[1]), best
        self.queries_, self.readout_, self.bias_ = (
            np.asarray(weights[chosen], dtype=np.float64)
            for weights in (trained.queries, trained.readout, trained.bias)
        )
        self.lr_, self.weight_decay_ = np.array(self._grid)[best].T
        self.best_epoch_, self.epochs_ = trained.best_epoch[chosen], trained.epochs[chosen]
        self.stopped_, self.gradient_norms_ = trained.stopped[chosen], trained.gradient_norm[chosen]
        return self

    @property
    def _grid(self) -> tuple[tuple[float, float], ...]:
        """The smallest step and the largest decay first, which win a tie."""
        return tuple((float(lr), float(decay)) for lr in sorted(self.lr) for decay in sorted(self.weight_decay)[::-1])

    def _wanted(self, targets: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._n_classes:
            return targets.astype(np.int64)
        return self._scale(targets).astype(np.float32)

    def predict_scored(self, X: Features) -> Floats:
        """Return values (m,) or (m, T), or class probabilities (m, K) or (m, T, K)."""
        frames = ClipFrames.of(X)
        parts = []
        for block in frames.blocks(1 << 13):
            seen, is_frame = _standardised(frames[block], self._standardise)
            parts.append(attend(seen, is_frame, self.queries_, self.readout_, self.bias_))
        shown: Floats = np.concatenate(parts)
        found: Floats = np.exp(log_softmax(shown)) if self._n_classes else self._scale.back(shown[:, :, 0])
        return found[:, 0] if self._single else found

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        is_number = self.task == "regression"
        return {
            "method": "attention over frame vectors, a learned query a head, linear read-out of all heads",
            **{name: value for name, value in self.get_params().items() if name != "task"},
            "lr": sorted(float(lr) for lr in self.lr),
            "weight_decay": sorted(float(decay) for decay in self.weight_decay),
            "optimiser": "AdamW, constant learning rate, no decay of biases, float32 on one thread",
            "betas": list(_BETAS),
            "epsilon": _EPSILON,
            "query_spread": _QUERY_SPREAD,
            "loss": "Smooth L1" if is_number else "cross entropy",
            "standardise": f"mean and deviation of the training frames, at least {SCALE_FLOOR} of their median"
            + (", and the target's" if is_number else ""),
            "choose_by": "validation loss",
            "keep": "weights of the lowest validation loss",
            "refit": False,
        }

    def chosen(self) -> dict[str, Any]:
        """Return what validation chose for the first target; it stops before it converges, by definition."""
        return {
            "lr": float(self.lr_[0]),
            "weight_decay": float(self.weight_decay_[0]),
            "best_epoch": int(self.best_epoch_[0]),
            "epochs": int(self.epochs_[0]),
            "stopped_by": "patience" if self.stopped_[0] else "max_epochs",
            "converged": False,
            "gradient_norm": float(self.gradient_norms_[0]),
        }


def _standardised(
    frames: ClipFrames, standardise: Standardiser
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    seen, is_frame = frames.padded()
    seen -= standardise.mean.astype(np.float32)
    seen /= standardise.scale.astype(np.float32)
    seen[~is_frame] = 0.0
    return seen, is_frame


def attend(
    frames: npt.NDArray[np.floating],
    is_frame: npt.NDArray[np.bool_],
    queries: Floats,
    readout: Floats,
    bias: Floats,
) -> Floats:
    """Return what attention over frames says.

    Parameters
    ----------
    frames : (n, F, D)
    is_frame : (n, F) bool
        False for padding, which gets no weight.
    queries, readout, bias : (T, H, D), (T, H, O, D), (T, O)

    Returns
    -------
    (n, T, O) float64 array
    """
    seen = np.asarray(frames, dtype=np.float64)
    scores = np.einsum("nfd,thd->nthf", seen, queries, optimize=True) / np.sqrt(queries.shape[-1])
    scores = np.where(is_frame[:, None, None], scores, -np.inf)
    weights = np.exp(log_softmax(scores))
    means = np.einsum("nthf,nfd->nthd", weights, seen, optimize=True)
    said: Floats = np.einsum("nthd,thod->nto", means, readout, optimize=True) + bias
    return said
