"""Trains one layer of attention over frame vectors, for the protocol ``frame-attentive`` of evaltools.

Many small models are trained together, one for each target and setting of the grid: they share first weights and
batches, and one product with the frames serves all of them. On a processor two threads add in another order than
one, which sends a training another way, so it runs on one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = ["AdamW", "FrameAttentionModel", "TrainedAttention", "train"]

_VAL_BATCH = 256


class Clips(Protocol):
    """Clips of one split."""

    @property
    def wanted(self) -> npt.NDArray[Any]:
        """(n, T) standardised values or classes."""

    def __len__(self) -> int: ...

    def padded(self, clips: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return frames (m, F, D) of some clips, and which of them are some (m, F)."""


class Settings(Protocol):
    """How to train; what each is stands with evaltools' protocol."""

    loss: str
    n_outputs: int
    heads: int
    grid: tuple[tuple[float, float], ...]
    batch_size: int
    max_epochs: int
    patience: int
    min_gain: float
    seed: int
    betas: tuple[float, float]
    epsilon: float
    query_spread: float


@dataclass(frozen=True, kw_only=True)
class TrainedAttention:
    """Weights of the lowest validation loss for T targets and S settings, as numpy arrays.

    Attributes
    ----------
    queries, readout, bias : (T, S, H, D), (T, S, H, O, D), (T, S, O) float32
    validation_loss, gradient_norm : (T, S) float64
    best_epoch, epochs : (T, S) int
        From 1.
    stopped : (T, S) bool
        By patience.
    """

    queries: npt.NDArray[np.float32]
    readout: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    validation_loss: npt.NDArray[np.float64]
    gradient_norm: npt.NDArray[np.float64]
    best_epoch: npt.NDArray[np.intp]
    epochs: npt.NDArray[np.intp]
    stopped: npt.NDArray[np.bool_]


class FrameAttentionModel(nn.Module):
    """M models that read the same frames.

    Parameters
    ----------
    n_models, heads, n_outputs, dims : int
    query_spread : float
        Deviation of the first queries: small, so that a model begins near the mean of the frames.
    seed : int
        All models begin alike.
    """

    def __init__(
        self, *, n_models: int, heads: int, n_outputs: int, dims: int, query_spread: float, seed: int
    ) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(heads * dims)  # as of nn.Linear on the heads side by side
        query = torch.randn(heads, dims, generator=drawn) * query_spread
        readout = (torch.rand(heads, n_outputs, dims, generator=drawn) * 2 - 1) * bound
        self.queries = nn.Parameter(query.repeat(n_models, 1, 1))
        self.readout = nn.Parameter(readout.repeat(n_models, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(n_models, n_outputs))

    def forward(self, frames: torch.Tensor, is_frame: torch.Tensor) -> torch.Tensor:
        """Return outputs (B, M, O) for frames (B, F, D), of which ``is_frame`` (B, F) are some."""
        n_models, heads, n_outputs, dims = self.readout.shape
        weights = torch.cat([self.queries.reshape(-1, dims) / math.sqrt(dims), self.readout.reshape(-1, dims)])
        shown = frames @ weights.T
        scores, said = shown.split([n_models * heads, n_models * heads * n_outputs], dim=2)
        shares = scores.masked_fill(~is_frame[:, :, None], -math.inf).softmax(dim=1)
        weighed = shares[..., None] * said.unflatten(2, (-1, n_outputs))
        return weighed.sum(dim=1).unflatten(1, (n_models, heads)).sum(dim=2) + self.bias


class AdamW:
    """AdamW with a learning rate and a weight decay for each model; biases do not decay.

    Parameters
    ----------
    model : FrameAttentionModel
    grid : sequence of (float, float)
        Learning rate and weight decay of each of its M models.
    """

    def __init__(
        self,
        model: FrameAttentionModel,
        grid: Sequence[tuple[float, float]],
        *,
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        self.betas, self.epsilon, self.n_steps = betas, epsilon, 0
        lr, decay = torch.tensor(grid, dtype=torch.float32).T
        self._states = [
            (
                weights,
                torch.zeros_like(weights),
                torch.zeros_like(weights),
                _beside(lr, weights),
                _beside(of, weights),
            )
            for weights, of in ((model.queries, decay), (model.readout, decay), (model.bias, torch.zeros_like(decay)))
        ]

    def step(self) -> None:
        """Move every model against its gradient."""
        self.n_steps += 1
        first, second = self.betas
        with torch.no_grad():
            for weights, moment, square, lr, decay in self._states:
                gradient = weights.grad
                if gradient is None:
                    continue
                moment.lerp_(gradient, 1 - first)
                square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
                root = (square / (1 - second**self.n_steps)).sqrt_().add_(self.epsilon)
                weights.mul_(1 - lr * decay)
                weights.sub_(lr * (moment / (1 - first**self.n_steps)) / root)


def _beside(of_models: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return a number a model (M,) in the shape of weights (M, ...)."""
    return of_models.reshape(-1, *[1] * (weights.ndim - 1))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _losses(shown: torch.Tensor, wanted: torch.Tensor, loss: str) -> torch.Tensor:
    """Return the loss of each clip and model, (B, M)."""
    if loss == "cross-entropy":
        return nn.functional.cross_entropy(shown.movedim(2, 1), wanted, reduction="none")
    return nn.functional.smooth_l1_loss(shown[:, :, 0], wanted, reduction="none")


def train(train: Clips, val: Clips, settings: Settings) -> TrainedAttention:
    """Train every model until validation has not become better for some epochs; keep its best weights."""
    with _one_thread():
        return _Training(train, val, settings).run()


class _Training:
    def __init__(self, train: Clips, val: Clips, settings: Settings) -> None:
        self.train, self.val, self.settings = train, val, settings
        n_targets, n_settings = train.wanted.shape[1], len(settings.grid)
        self.n_models = n_targets * n_settings
        self.shape = n_targets, n_settings
        self.target = np.repeat(np.arange(n_targets), n_settings)
        self.model = FrameAttentionModel(
            n_models=self.n_models,
            heads=settings.heads,
            n_outputs=settings.n_outputs,
            dims=train.padded(np.zeros(1, dtype=np.intp))[0].shape[2],
            query_spread=settings.query_spread,
            seed=settings.seed,
        )
        self.optimiser = AdamW(self.model, settings.grid * n_targets, betas=settings.betas, epsilon=settings.epsilon)

    def run(self) -> TrainedAttention:
        settings, model = self.settings, self.model
        rng = np.random.default_rng(settings.seed)
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        lowest, bar = np.full(self.n_models, np.inf), np.full(self.n_models, np.inf)
        best, epochs, gained = (np.zeros(self.n_models, dtype=np.intp) for _ in range(3))
        goes_on = np.ones(self.n_models, dtype=np.bool_)
        for epoch in range(1, settings.max_epochs + 1):
            order = rng.permutation(len(self.train))
            for start in range(0, len(order), settings.batch_size):
                model.zero_grad()
                self._clip_losses(self.train, order[start : start + settings.batch_size]).mean(dim=0).sum().backward()
                self.optimiser.step()
            loss = self._validation_loss()
            better = goes_on & (loss < lowest)
            lowest[better], best[better] = loss[better], epoch
            for copy, parameter in zip(kept, model.parameters(), strict=True):
                copy[torch.from_numpy(better)] = parameter.detach()[torch.from_numpy(better)]
            enough = goes_on & (loss < bar * (1 - settings.min_gain))
            bar[enough], gained[enough] = loss[enough], epoch
            epochs[goes_on] = epoch
            goes_on &= epoch - gained < settings.patience
            if not goes_on.any():
                break
        with torch.no_grad():
            for copy, parameter in zip(kept, model.parameters(), strict=True):
                parameter.copy_(copy)
        queries, readout, bias = (copy.numpy().reshape(*self.shape, *copy.shape[1:]) for copy in kept)
        return TrainedAttention(
            queries=queries,
            readout=readout,
            bias=bias,
            validation_loss=lowest.reshape(self.shape),
            gradient_norm=self._gradient_norms().reshape(self.shape),
            best_epoch=best.reshape(self.shape),
            epochs=epochs.reshape(self.shape),
            stopped=~goes_on.reshape(self.shape),
        )

    def _clip_losses(self, clips: Clips, rows: npt.NDArray[np.intp]) -> torch.Tensor:
        frames, is_frame = clips.padded(rows)
        wanted = torch.from_numpy(clips.wanted[rows][:, self.target])
        shown = self.model(torch.from_numpy(frames), torch.from_numpy(is_frame))
        return _losses(shown, wanted, self.settings.loss)

    def _validation_loss(self) -> npt.NDArray[np.float64]:
        total = np.zeros(self.n_models)
        with torch.no_grad():
            for start in range(0, len(self.val), _VAL_BATCH):
                rows = np.arange(start, min(start + _VAL_BATCH, len(self.val)))
                total += self._clip_losses(self.val, rows).double().sum(dim=0).numpy()
        return np.asarray(total / len(self.val))

    def _gradient_norms(self) -> npt.NDArray[np.float64]:
        """Return the norm of the gradient of each model's mean training loss, (M,)."""
        self.model.zero_grad()
        for start in range(0, len(self.train), _VAL_BATCH):
            rows = np.arange(start, min(start + _VAL_BATCH, len(self.train)))
            (self._clip_losses(self.train, rows).sum() / len(self.train)).backward()
        squares = torch.zeros(self.n_models, dtype=torch.float64)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                squares += parameter.grad.double().square().flatten(1).sum(dim=1)
        return np.asarray(squares.sqrt().numpy())
