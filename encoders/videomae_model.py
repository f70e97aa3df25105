"""The encoder of VideoMAE in plain torch layers, under the names that transformers gives it.

Tubelets with fixed sine and cosine positions, numbered through the window, and pre-norm blocks whose keys have no
bias (Tong et al., arXiv:2203.12602). There is no class token. A last norm is there where the checkpoint has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from embedstore.errors import FormatError
from encoders.model_folder import Shapes, count_layers, shape_of
from encoders.tubelets import attend, head_width, in_order_of_time, pool_tokens, split_heads

__all__ = ["VideoMae", "VideoMaeSizes"]

_BASE = 10000.0


@dataclass(frozen=True, kw_only=True)
class VideoMaeSizes:
    """Width, width inside the perceptrons, blocks, pixels a side and frames of a tubelet, and the last norm."""

    width: int
    inner: int
    n_layers: int
    patch: int
    tubelet: int
    has_norm: bool

    @classmethod
    def read(cls, shapes: Shapes, *, source: Path | str) -> VideoMaeSizes:
        """Read the sizes from the tensors of a checkpoint.

        Raises
        ------
        FormatError
            The tensors are another model's.
        """
        kernel = shape_of(shapes, "embeddings.patch_embeddings.projection.weight", n_sides=5, source=source)
        if kernel[0] % head_width(kernel[0]):
            raise FormatError(f"checkpoint {source} does not fit: its width {kernel[0]} has no whole heads")
        return cls(
            width=kernel[0],
            inner=shape_of(shapes, "encoder.layer.0.intermediate.dense.weight", n_sides=2, source=source)[0],
            n_layers=count_layers(shapes, "encoder.layer."),
            patch=kernel[3],
            tubelet=kernel[2],
            has_norm="layernorm.weight" in shapes,
        )


class _SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self._head = head_width(width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            split_heads(layer(states), head=self._head) for layer in (self.query, self.key, self.value)
        )
        return attend(query, key, value)


class _Dense(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, n_out)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.dense(states)
        return made


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = _SelfAttention(width)
        self.output = _Dense(width, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.output(self.attention(states))
        return made


class _Layer(nn.Module):
    def __init__(self, sizes: VideoMaeSizes, *, epsilon: float) -> None:
        super().__init__()
        self.attention = _Attention(sizes.width)
        self.intermediate = _Dense(sizes.width, sizes.inner)
        self.output = _Dense(sizes.inner, sizes.width)
        self.layernorm_before = nn.LayerNorm(sizes.width, eps=epsilon)
        self.layernorm_after = nn.LayerNorm(sizes.width, eps=epsilon)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.attention(self.layernorm_before(states))
        inner = functional.gelu(self.intermediate(self.layernorm_after(states)))
        made: torch.Tensor = states + self.output(inner)
        return made


class _Tubelets(nn.Module):
    def __init__(self, sizes: VideoMaeSizes) -> None:
        super().__init__()
        size = (sizes.tubelet, sizes.patch, sizes.patch)
        self.projection = nn.Conv3d(3, sizes.width, kernel_size=size, stride=size)


class _Embeddings(nn.Module):
    def __init__(self, sizes: VideoMaeSizes) -> None:
        super().__init__()
        self.patch_embeddings = _Tubelets(sizes)


class _Encoder(nn.Module):
    def __init__(self, sizes: VideoMaeSizes, *, epsilon: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(sizes, epsilon=epsilon) for _ in range(sizes.n_layers))


class VideoMae(nn.Module):
    """Windows, ``(B, 3, T, H, W)``, to a vector each; an `encoders.clip_encoder.ClipTower`.

    Parameters
    ----------
    sizes : VideoMaeSizes
    epsilon : float
        Of all norms: 1e-12 as transformers has it, 1e-6 as the authors' code.
    output : {"token-mean", "token-max"}
        What becomes of the tokens.
    """

    def __init__(self, sizes: VideoMaeSizes, *, epsilon: float, output: str = "token-mean") -> None:
        super().__init__()
        self.embeddings = _Embeddings(sizes)
        self.encoder = _Encoder(sizes, epsilon=epsilon)
        self.layernorm = nn.LayerNorm(sizes.width, eps=epsilon) if sizes.has_norm else nn.Identity()
        self._output = output

    def forward(self, windows: torch.Tensor, *, with_steps: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a vector a window, and the mean token of each time."""
        volume = self.embeddings.patch_embeddings.projection(windows)
        states = in_order_of_time(volume)
        states = states + _positions(states.shape[1], states.shape[2], device=windows.device)
        for layer in self.encoder.layer:
            states = layer(states)
        return pool_tokens(
            self.layernorm(states), n_steps=volume.shape[2], output=self._output, with_steps=with_steps
        )


def _positions(n_tokens: int, width: int, *, device: torch.device) -> torch.Tensor:
    """Return ``(n_tokens, width)`` float32: sines and cosines in turn, computed in float64."""
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
    angles = torch.arange(n_tokens, dtype=torch.float64, device=device)[:, None] / _BASE**exponent
    return torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1).flatten(1).float()
