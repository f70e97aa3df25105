"""The encoder of EchoFM in plain torch layers, under the names of its published file.

A masked autoencoder for video with nothing masked (the structure of Feichtenhofer et al., Masked Autoencoders As
Spatiotemporal Learners, arXiv:2205.09113): tubelets, a class token before them, positions learned for place, time and
class apart, pre-norm blocks with separate queries, keys and values, a last norm; the class token is then dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from embedstore.errors import FormatError
from encoders.model_folder import Shapes, count_layers, shape_of
from encoders.tubelets import Perceptron, attend, head_width, in_order_of_time, pool_tokens, split_heads

__all__ = ["EchoFm", "EchoFmSizes"]

_EPSILON = 1e-6  # of all norms; mae_vit_large_patch16


@dataclass(frozen=True, kw_only=True)
class EchoFmSizes:
    """Sizes of the encoder.

    Attributes
    ----------
    width, inner, n_layers : int
        Of the tokens, inside the perceptrons, and of blocks.
    patch, tubelet : int
        Pixels a side and frames of a tubelet.
    n_places, n_steps : int
        Learned positions in space and in time.
    """

    width: int
    inner: int
    n_layers: int
    patch: int
    tubelet: int
    n_places: int
    n_steps: int

    @property
    def side(self) -> int:
        """Pixels a side of a frame."""
        return math.isqrt(self.n_places) * self.patch

    @property
    def n_frames(self) -> int:
        """Frames of a window."""
        return self.n_steps * self.tubelet

    @classmethod
    def read(cls, shapes: Shapes, *, source: Path | str) -> EchoFmSizes:
        """Read the sizes from the tensors of a checkpoint.

        Raises
        ------
        FormatError
            The tensors are another model's.
        """
        n_places = shape_of(shapes, "pos_embed_spatial", n_sides=3, source=source)[1]
        kernel = shape_of(shapes, "patch_embed.proj.weight", n_sides=5, source=source)
        if math.isqrt(n_places) ** 2 != n_places:
            raise FormatError(f"checkpoint {source} does not fit: {n_places} positions make no square")
        if kernel[0] % head_width(kernel[0]):
            raise FormatError(f"checkpoint {source} does not fit: its width {kernel[0]} has no whole heads")
        return cls(
            width=kernel[0],
            inner=shape_of(shapes, "blocks.0.mlp.fc1.weight", n_sides=2, source=source)[0],
            n_layers=count_layers(shapes, "blocks."),
            patch=kernel[3],
            tubelet=kernel[2],
            n_places=n_places,
            n_steps=shape_of(shapes, "pos_embed_temporal", n_sides=3, source=source)[1],
        )


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self._head = head_width(width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        query, key, value = (split_heads(layer(states), head=self._head) for layer in (self.q, self.k, self.v))
        made: torch.Tensor = self.proj(attend(query, key, value))
        return made


class _Block(nn.Module):
    def __init__(self, sizes: EchoFmSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=_EPSILON)
        self.attn = _Attention(sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, eps=_EPSILON)
        self.mlp = Perceptron(sizes.width, sizes.inner)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.attn(self.norm1(states))
        made: torch.Tensor = states + self.mlp(self.norm2(states))
        return made


class _Tubelets(nn.Module):
    def __init__(self, sizes: EchoFmSizes) -> None:
        super().__init__()
        size = (sizes.tubelet, sizes.patch, sizes.patch)
        self.proj = nn.Conv3d(3, sizes.width, kernel_size=size, stride=size)


class EchoFm(nn.Module):
    """Windows, ``(B, 3, T, H, W)``, to a vector each; an `encoders.clip_encoder.ClipTower`.

    Parameters
    ----------
    sizes : EchoFmSizes
    output : {"token-mean", "token-max"}
        What becomes of the tokens.
    """

    def __init__(self, sizes: EchoFmSizes, *, output: str = "token-mean") -> None:
        super().__init__()
        width = sizes.width
        self.patch_embed = _Tubelets(sizes)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, sizes.n_places, width))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, sizes.n_steps, width))
        self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(_Block(sizes) for _ in range(sizes.n_layers))
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self._output = output

    def forward(self, windows: torch.Tensor, *, with_steps: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a vector a window, and the mean token of each time."""
        tokens = in_order_of_time(self.patch_embed.proj(windows))
        places = self.pos_embed_temporal[:, :, None] + self.pos_embed_spatial[:, None]
        before = (self.cls_token + self.pos_embed_class).expand(len(tokens), -1, -1)
        states = torch.cat([before, tokens + places.flatten(1, 2)], dim=1)
        for block in self.blocks:
            states = block(states)
        states = self.norm(states)[:, 1:]
        return pool_tokens(
            states, n_steps=self.pos_embed_temporal.shape[1], output=self._output, with_steps=with_steps
        )
