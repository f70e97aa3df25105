"""The encoder of V-JEPA 2 in plain torch layers, under the names that transformers gives it.

Tubelets, pre-norm blocks whose queries and keys are turned by the place of their tubelet in time, down and across
(three times 20 of the 64 numbers of a head), and a last norm (Assran et al., arXiv:2506.09985). There is no class
token and no learned position, so windows of any length go through. Each frequency turns numbers that are not
neighbours as in other models: the angles are laid out twice in a row, the numbers are paired with their neighbour.
The published weights were trained so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from embedstore.errors import FormatError
from encoders.model_folder import Shapes, count_layers, shape_of
from encoders.tubelets import Perceptron, attend, head_width, in_order_of_time, pool_tokens, split_heads

__all__ = ["Vjepa2", "Vjepa2Sizes"]

_EPSILON = 1e-6  # vit_large of facebookresearch/vjepa2, and config.json of facebook/vjepa2-*
_ROPE_BASE = 10000.0


@dataclass(frozen=True, kw_only=True)
class Vjepa2Sizes:
    """Width, width inside the perceptrons, blocks, pixels a side and frames of a tubelet."""

    width: int
    inner: int
    n_layers: int
    patch: int
    tubelet: int

    @classmethod
    def read(cls, shapes: Shapes, *, source: Path | str) -> Vjepa2Sizes:
        """Read the sizes from the tensors of a checkpoint.

        Raises
        ------
        FormatError
            The tensors are another model's.
        """
        kernel = shape_of(shapes, "embeddings.patch_embeddings.proj.weight", n_sides=5, source=source)
        if kernel[0] % head_width(kernel[0]):
            raise FormatError(f"checkpoint {source} does not fit: its width {kernel[0]} has no whole heads")
        return cls(
            width=kernel[0],
            inner=shape_of(shapes, "layer.0.mlp.fc1.weight", n_sides=2, source=source)[0],
            n_layers=count_layers(shapes, "layer."),
            patch=kernel[3],
            tubelet=kernel[2],
        )


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self._head = head_width(width)

    def forward(self, states: torch.Tensor, *, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            split_heads(layer(states), head=self._head) for layer in (self.query, self.key, self.value)
        )
        query, key = (_turned(part, cosines=cosines, sines=sines) for part in (query, key))
        made: torch.Tensor = self.proj(attend(query, key, value))
        return made


def _turned(part: torch.Tensor, *, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    first, second = part[..., 0::2], part[..., 1::2]
    made = part * cosines + torch.stack([-second, first], dim=-1).flatten(-2) * sines
    return made.to(part.dtype)


class _Layer(nn.Module):
    def __init__(self, sizes: Vjepa2Sizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=_EPSILON)
        self.attention = _Attention(sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, eps=_EPSILON)
        self.mlp = Perceptron(sizes.width, sizes.inner)

    def forward(self, states: torch.Tensor, *, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        states = states + self.attention(self.norm1(states), cosines=cosines, sines=sines)
        made: torch.Tensor = states + self.mlp(self.norm2(states))
        return made


class _Tubelets(nn.Module):
    def __init__(self, sizes: Vjepa2Sizes) -> None:
        super().__init__()
        size = (sizes.tubelet, sizes.patch, sizes.patch)
        self.proj = nn.Conv3d(3, sizes.width, kernel_size=size, stride=size)


class _Embeddings(nn.Module):
    def __init__(self, sizes: Vjepa2Sizes) -> None:
        super().__init__()
        self.patch_embeddings = _Tubelets(sizes)


class Vjepa2(nn.Module):
    """Windows, ``(B, 3, T, H, W)``, to a vector each; an `encoders.clip_encoder.ClipTower`.

    Parameters
    ----------
    sizes : Vjepa2Sizes
    output : {"token-mean", "token-max"}
        What becomes of the tokens.
    """

    def __init__(self, sizes: Vjepa2Sizes, *, output: str = "token-mean") -> None:
        super().__init__()
        self.embeddings = _Embeddings(sizes)
        self.layer = nn.ModuleList(_Layer(sizes) for _ in range(sizes.n_layers))
        self.layernorm = nn.LayerNorm(sizes.width, eps=_EPSILON)
        self._head = head_width(sizes.width)
        self._output = output

    def forward(self, windows: torch.Tensor, *, with_steps: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a vector a window, and the mean token of each time."""
        volume = self.embeddings.patch_embeddings.proj(windows)
        cosines, sines = _rotations(volume.shape[2:], head=self._head, device=windows.device)
        states = in_order_of_time(volume)
        for layer in self.layer:
            states = layer(states, cosines=cosines, sines=sines)
        return pool_tokens(
            self.layernorm(states), n_steps=volume.shape[2], output=self._output, with_steps=with_steps
        )


def _rotations(grid: torch.Size, *, head: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine of each token's angles, ``(tokens, head)``; numbers past the three parts stay still."""
    n_each = 2 * (head // 3 // 2)
    share = torch.arange(n_each // 2, dtype=torch.float32, device=device) / (n_each / 2)
    frequency = 1.0 / _ROPE_BASE**share
    axes = torch.meshgrid(*(torch.arange(count, device=device) for count in grid), indexing="ij")
    angles = torch.cat([(axis.flatten()[:, None] * frequency).tile(2) for axis in axes], dim=1)
    still = angles.new_zeros(len(angles), head - angles.shape[1])
    angles = torch.cat([angles, still], dim=1)
    return torch.cos(angles), torch.sin(angles)
