"""The image towers of DINOv2 and DINOv3 in plain torch layers, under the names of the published files.

DINOv2 (arXiv:2304.07193) has learned positions, resized to the grid of the input; DINOv3 (arXiv:2508.10104) rotates
queries and keys of the patches by their place, and has register tokens. Both are pre-norm transformers with a scale
on each branch and heads of 64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from embedstore.errors import FormatError
from encoders.model_folder import Shapes, count_layers, shape_of

__all__ = ["Dinov2", "Dinov3", "DinoSizes"]

_HEAD = 64
_EPSILON_V2, _EPSILON_V3 = 1e-6, 1e-5  # config.json of facebook/dinov2-* and facebook/dinov3-*
_ROPE_BASE = 100.0


@dataclass(frozen=True, kw_only=True)
class DinoSizes:
    """Width, width inside the perceptrons, layers, side of a patch in pixels, learned positions and registers."""

    width: int
    inner: int
    n_layers: int
    patch: int
    n_positions: int = 0
    n_registers: int = 0

    @classmethod
    def read(cls, shapes: Shapes, *, version: int, source: Path | str) -> DinoSizes:
        """Read the sizes from the tensors of a checkpoint of DINOv2 or DINOv3.

        Raises
        ------
        FormatError
            The tensors are another model's.
        """
        patches = (
            "embeddings.patch_embeddings.projection.weight" if version == 2 else "embeddings.patch_embeddings.weight"
        )
        layers = "encoder.layer." if version == 2 else "layer."
        first = "mlp.fc1.weight" if version == 2 else "mlp.up_proj.weight"
        kernel = shape_of(shapes, patches, n_sides=4, source=source)
        n_positions = n_registers = 0
        if version == 2:
            n_positions = shape_of(shapes, "embeddings.position_embeddings", n_sides=3, source=source)[1] - 1
            if math.isqrt(max(n_positions, 0)) ** 2 != n_positions:
                raise FormatError(f"checkpoint {source} does not fit: {n_positions} positions make no square")
        else:
            n_registers = shape_of(shapes, "embeddings.register_tokens", n_sides=3, source=source)[1]
        if kernel[0] % _HEAD:
            raise FormatError(f"checkpoint {source} does not fit: its width {kernel[0]} has no heads of {_HEAD}")
        return cls(
            width=kernel[0],
            inner=shape_of(shapes, f"{layers}0.{first}", n_sides=2, source=source)[0],
            n_layers=count_layers(shapes, layers),
            patch=kernel[2],
            n_positions=n_positions,
            n_registers=n_registers,
        )


def _heads(states: torch.Tensor) -> torch.Tensor:
    return states.unflatten(-1, (-1, _HEAD)).transpose(1, 2)


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states * self.lambda1


class _SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        query, key, value = (_heads(layer(states)) for layer in (self.query, self.key, self.value))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class _AttentionOutput(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)


class _AttentionV2(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = _SelfAttention(width)
        self.output = _AttentionOutput(width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.output.dense(self.attention(states))
        return made


class _PerceptronV2(nn.Module):
    def __init__(self, sizes: DinoSizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.inner)
        self.fc2 = nn.Linear(sizes.inner, sizes.width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.fc2(functional.gelu(self.fc1(states)))
        return made


class _LayerV2(nn.Module):
    def __init__(self, sizes: DinoSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=_EPSILON_V2)
        self.attention = _AttentionV2(sizes.width)
        self.layer_scale1 = _Scale(sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, eps=_EPSILON_V2)
        self.mlp = _PerceptronV2(sizes)
        self.layer_scale2 = _Scale(sizes.width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.layer_scale1(self.attention(self.norm1(states)))
        return states + self.layer_scale2(self.mlp(self.norm2(states)))


class _PatchesV2(nn.Module):
    def __init__(self, sizes: DinoSizes) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, sizes.width, kernel_size=sizes.patch, stride=sizes.patch)


class _EmbeddingsV2(nn.Module):
    def __init__(self, sizes: DinoSizes) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.mask_token = nn.Parameter(torch.zeros(1, sizes.width))  # of pretraining; in the file, not used here
        self.position_embeddings = nn.Parameter(torch.zeros(1, sizes.n_positions + 1, sizes.width))
        self.patch_embeddings = _PatchesV2(sizes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embeddings.projection(images)
        positions = self.position_embeddings[:, 1:].unflatten(
            1, (math.isqrt(self.position_embeddings.shape[1] - 1), -1)
        )
        if positions.shape[1:3] != patches.shape[2:]:
            grid = positions.movedim(3, 1).float()
            resized = functional.interpolate(grid, size=patches.shape[2:], mode="bicubic", align_corners=False)
            positions = resized.to(self.position_embeddings.dtype).movedim(1, 3)
        tokens = patches.flatten(2).transpose(1, 2) + positions.flatten(1, 2)
        first = (self.cls_token + self.position_embeddings[:, :1]).expand(len(images), -1, -1)
        return torch.cat([first.to(tokens.dtype), tokens], dim=1)


class _EncoderV2(nn.Module):
    def __init__(self, sizes: DinoSizes) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_LayerV2(sizes) for _ in range(sizes.n_layers))


class Dinov2(nn.Module):
    """Images, ``(B, 3, H, W)``, to vectors, ``(B, width)``.

    Parameters
    ----------
    sizes : DinoSizes
    output : {"cls", "patch-mean"}
        The class token after the last norm, or the mean of the patches' tokens there.
    """

    def __init__(self, sizes: DinoSizes, *, output: str = "cls") -> None:
        super().__init__()
        self.embeddings = _EmbeddingsV2(sizes)
        self.encoder = _EncoderV2(sizes)
        self.layernorm = nn.LayerNorm(sizes.width, eps=_EPSILON_V2)
        self._output = output

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return one vector an image."""
        states = self.embeddings(images)
        for layer in self.encoder.layer:
            states = layer(states)
        states = self.layernorm(states)
        return states[:, 0] if self._output == "cls" else states[:, 1:].mean(dim=1)


class _AttentionV3(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, states: torch.Tensor, *, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        query, key, value = (_heads(layer(states)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        query, key = (_rotated(vectors, cosines=cosines, sines=sines) for vectors in (query, key))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        made: torch.Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return made


def _rotated(vectors: torch.Tensor, *, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate the patches' vectors by their place; the tokens before them (class, registers) stay."""
    n_before = vectors.shape[2] - len(cosines)
    before, patches = vectors[:, :, :n_before], vectors[:, :, n_before:]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cosines + torch.cat([-second, first], dim=-1) * sines
    return torch.cat([before, turned.to(before.dtype)], dim=2)


class _PerceptronV3(nn.Module):
    def __init__(self, sizes: DinoSizes) -> None:
        super().__init__()
        self.up_proj = nn.Linear(sizes.width, sizes.inner)
        self.down_proj = nn.Linear(sizes.inner, sizes.width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.down_proj(functional.gelu(self.up_proj(states)))
        return made


class _LayerV3(nn.Module):
    def __init__(self, sizes: DinoSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=_EPSILON_V3)
        self.attention = _AttentionV3(sizes.width)
        self.layer_scale1 = _Scale(sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, eps=_EPSILON_V3)
        self.mlp = _PerceptronV3(sizes)
        self.layer_scale2 = _Scale(sizes.width)

    def forward(self, states: torch.Tensor, *, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        states = states + self.layer_scale1(self.attention(self.norm1(states), cosines=cosines, sines=sines))
        return states + self.layer_scale2(self.mlp(self.norm2(states)))


class _EmbeddingsV3(nn.Module):
    def __init__(self, sizes: DinoSizes) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, sizes.width))  # of pretraining; in the file, not used here
        self.register_tokens = nn.Parameter(torch.zeros(1, sizes.n_registers, sizes.width))
        self.patch_embeddings = nn.Conv2d(3, sizes.width, kernel_size=sizes.patch, stride=sizes.patch)


class Dinov3(nn.Module):
    """Images, ``(B, 3, H, W)``, to vectors, ``(B, width)``; parameters as of `Dinov2`."""

    def __init__(self, sizes: DinoSizes, *, output: str = "cls") -> None:
        super().__init__()
        self.embeddings = _EmbeddingsV3(sizes)
        self.layer = nn.ModuleList(_LayerV3(sizes) for _ in range(sizes.n_layers))
        self.norm = nn.LayerNorm(sizes.width, eps=_EPSILON_V3)
        self._output = output

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return one vector an image."""
        parts = self.embeddings
        patches = parts.patch_embeddings(images)
        cosines, sines = _rotations(*patches.shape[2:], device=images.device)
        before = torch.cat([parts.cls_token, parts.register_tokens], dim=1).expand(len(images), -1, -1)
        states = torch.cat([before.to(patches.dtype), patches.flatten(2).transpose(1, 2)], dim=1)
        for layer in self.layer:
            states = layer(states, cosines=cosines, sines=sines)
        states = self.norm(states)
        return states[:, 0] if self._output == "cls" else states[:, before.shape[1] :].mean(dim=1)


def _rotations(n_rows: int, n_columns: int, *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine of each patch's angles, ``(patches, 64)``: 16 frequencies down, 16 across, twice."""
    places = [
        2 * (torch.arange(0.5, count, dtype=torch.float32, device=device) / count) - 1
        for count in (n_rows, n_columns)
    ]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1).flatten(0, 1)
    frequency = 1 / _ROPE_BASE ** torch.arange(0, 1, 4 / _HEAD, dtype=torch.float32, device=device)
    angles = (2 * math.pi * grid[:, :, None] * frequency).flatten(1, 2).tile(2)
    return torch.cos(angles), torch.sin(angles)
