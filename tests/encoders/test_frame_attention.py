from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from encoders.frame_attention import AdamW, FrameAttentionModel, train

GRID = ((1e-2, 0.4), (3e-3, 0.01))


def model(n_models: int = 2, *, n_outputs: int = 3, dims: int = 6, heads: int = 2) -> FrameAttentionModel:
    return FrameAttentionModel(
        n_models=n_models, heads=heads, n_outputs=n_outputs, dims=dims, query_spread=0.5, seed=3
    )


def test_models_side_by_side_are_pytorchs_attention_of_one_query_a_head() -> None:
    one, drawn = model(), torch.Generator().manual_seed(0)
    for parameter in one.parameters():
        parameter.data = torch.randn(parameter.shape, generator=drawn)
    frames = torch.randn(5, 4, 6, generator=drawn)
    is_frame = torch.arange(4) < torch.tensor([4, 1, 2, 3, 4])[:, None]
    said = one(frames, is_frame)
    assert said.shape == (5, 2, 3)
    for at in range(2):
        wanted = one.bias[at].repeat(5, 1)
        for head in range(2):
            query = one.queries[at, head].expand(5, 1, 6)
            mean = torch.nn.functional.scaled_dot_product_attention(
                query, frames, frames, attn_mask=is_frame[:, None]
            )[:, 0]
            wanted = wanted + mean @ one.readout[at, head].T
        torch.testing.assert_close(said[:, at], wanted)


def test_steps_are_adamws_with_a_rate_and_a_decay_for_each_model() -> None:
    both, drawn = model(), torch.Generator().manual_seed(1)
    alone = [model(1) for _ in GRID]
    ours = AdamW(both, GRID, betas=(0.9, 0.999), epsilon=1e-8)
    theirs = [
        torch.optim.AdamW(
            [
                {"params": [one.queries, one.readout], "weight_decay": decay},
                {"params": [one.bias], "weight_decay": 0.0},
            ],
            lr=lr,
        )
        for one, (lr, decay) in zip(alone, GRID, strict=True)
    ]
    for _ in range(20):
        frames, wanted = torch.randn(8, 4, 6, generator=drawn), torch.randn(8, 3, generator=drawn)
        is_frame = torch.rand(8, 4, generator=drawn) > 0.3
        is_frame[:, 0] = True
        both.zero_grad()
        (both(frames, is_frame) - wanted[:, None]).square().mean(dim=(0, 2)).sum().backward()
        ours.step()
        for one, optimiser in zip(alone, theirs, strict=True):
            optimiser.zero_grad()
            (one(frames, is_frame)[:, 0] - wanted).square().mean().backward()
            optimiser.step()
    for at, one in enumerate(alone):
        for found, expected in zip(both.parameters(), one.parameters(), strict=True):
            torch.testing.assert_close(found[at], expected[0], atol=2e-5, rtol=1e-4)


@dataclass
class Clips:
    frames: np.ndarray
    wanted: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    def padded(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.frames[clips], np.ones(self.frames[clips].shape[:2], dtype=np.bool_)


@dataclass
class Settings:
    loss: str = "smooth-l1"
    n_outputs: int = 1
    heads: int = 2
    grid: tuple[tuple[float, float], ...] = GRID
    batch_size: int = 16
    max_epochs: int = 40
    patience: int = 3
    min_gain: float = 0.001
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    query_spread: float = 0.02


def clips(n: int, seed: int) -> Clips:
    rng = np.random.default_rng(seed)
    frames = rng.normal(size=(n, 3, 5)).astype(np.float32)
    return Clips(frames, np.column_stack([frames.mean(axis=1) @ np.ones(5), rng.normal(size=n)]).astype(np.float32))


def test_the_weights_kept_are_those_of_the_lowest_validation_loss() -> None:
    fitted, val = clips(60, 0), clips(30, 1)
    done = train(fitted, val, Settings())
    assert (
        done.queries.shape == (2, 2, 2, 5) and done.readout.shape == (2, 2, 2, 1, 5) and done.bias.shape == (2, 2, 1)
    )
    assert (done.best_epoch <= done.epochs).all() and done.stopped[1].all()
    assert (done.epochs[1] - done.best_epoch[1] >= 1).all() and done.epochs[1].max() < 40
    for target in range(2):
        for at in range(2):
            one = model(1, n_outputs=1, dims=5)
            kept = (done.queries, done.readout, done.bias)
            for parameter, found in zip(one.parameters(), kept, strict=True):
                parameter.data = torch.from_numpy(found[target, at][None])
            losses = []
            for part in (val, fitted):
                shown = one(torch.from_numpy(part.frames), torch.ones(len(part), 3, dtype=torch.bool))[:, 0, 0]
                losses.append(torch.nn.functional.smooth_l1_loss(shown, torch.from_numpy(part.wanted[:, target])))
            assert done.validation_loss[target, at] == pytest.approx(float(losses[0].detach()), rel=1e-4)
            losses[1].backward()
            squares = sum(float(parameter.grad.square().sum()) for parameter in one.parameters())
            assert done.gradient_norm[target, at] == pytest.approx(math.sqrt(squares), rel=1e-2, abs=1e-4)
    assert done.validation_loss[0].min() < 0.02 < 0.2 < done.validation_loss[1].min()


def test_a_training_does_not_depend_on_those_beside_it() -> None:
    fitted, val = clips(60, 0), clips(30, 1)
    both = train(fitted, val, Settings())
    alone = train(
        Clips(fitted.frames, fitted.wanted[:, 1:]), Clips(val.frames, val.wanted[:, 1:]), Settings(grid=GRID[1:])
    )
    assert alone.best_epoch[0, 0] == both.best_epoch[1, 1] and alone.epochs[0, 0] == both.epochs[1, 1]
    assert alone.queries[0, 0] == pytest.approx(both.queries[1, 1], abs=1e-5)
