"""PanEcho's network in torchvision's and torch's own layers, under the names of the published file."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torchvision.models import convnext_tiny

__all__ = ["PanEchoNetwork", "sine_positions"]

# Holste et al. 2025 and the released configuration: 4 layers of 8 heads, 768 wide inside too, no dropout.
_WIDTH, _N_HEADS, _N_LAYERS = 768, 8, 4
_BASE = 10_000.0


def sine_positions(n_places: int, width: int) -> torch.Tensor:
    """Return fixed positions, ``(1, n_places, width)``: sines at even numbers, cosines at odd ones, base 10000."""
    places = torch.arange(n_places, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(_BASE) / width))
    positions = torch.zeros(1, n_places, width)
    positions[0, :, 0::2] = torch.sin(places * rates)
    positions[0, :, 1::2] = torch.cos(places * rates)
    return positions


class _ImageEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = convnext_tiny(weights=None)
        self.model.classifier[-1] = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.model(images)
        return made


class _FrameTransformer(nn.Module):
    def __init__(self, n_frames: int) -> None:
        super().__init__()
        self.encoder = _ImageEncoder()
        layer = nn.TransformerEncoderLayer(
            d_model=_WIDTH,
            nhead=_N_HEADS,
            dim_feedforward=_WIDTH,
            dropout=0.0,
            activation="relu",
            batch_first=True,
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers=_N_LAYERS, enable_nested_tensor=False)
        self.register_buffer("positions", sine_positions(n_frames, _WIDTH), persistent=False)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        n_windows, n_channels, n_frames, height, width = windows.shape
        # The published forward: channel and frame are not exchanged before they are taken apart, so image 0 is red
        # of the frames 0, 1 and 2. The weights were trained on this; exchanging them first gives another embedding.
        images = windows.reshape(n_windows * n_frames, n_channels, height, width)
        states = self.encoder(images).reshape(n_windows, n_frames, -1) + self.positions
        made: torch.Tensor = self.transformer(states).mean(dim=1)
        return made


class PanEchoNetwork(nn.Module):
    """Windows of 16 frames to vectors of 768 numbers; a linear head a task beside it.

    Parameters
    ----------
    n_frames : int
        Frames of a window.
    heads : mapping of str to int
        Outputs of each task.
    """

    def __init__(self, *, n_frames: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.encoder = _FrameTransformer(n_frames)
        for task, n_outputs in heads.items():
            self.add_module(f"{task}_head", nn.Sequential(nn.Dropout(0.25), nn.Linear(_WIDTH, n_outputs)))

    def forward(self, windows: torch.Tensor, *, with_steps: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode windows, ``(B, 3, T, H, W)``; steps are the image encoder on each frame alone, ``(B, T, 768)``."""
        vectors = self.encoder(windows)
        if not with_steps:
            return vectors, None
        frames = windows.transpose(1, 2)
        return vectors, self.encoder.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
