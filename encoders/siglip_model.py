"""SigLIP's two towers in plain torch layers, under the names of the published files, sized by their tensors.

Google's SigLIP (arXiv:2303.15343) and the fixed-resolution models of SigLIP 2 (arXiv:2502.14786) share it: pre-norm
transformers with the tanh form of GELU; the image is read out by attention from one learned probe, the text from its
last token without causal mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from embedstore.errors import FormatError
from encoders.model_folder import Shapes, count_layers, shape_of
from encoders.rows import rows_of

__all__ = ["SiglipSizes", "SiglipTowers", "TowerSizes"]

_EPSILON = 1e-6
_ACTIVATION = "gelu_pytorch_tanh"
# Heads cannot be read from tensors. By width: base 12, large 16, so400m 16 (configs of google/siglip2-*).
_HEADS = {768: 12, 1024: 16, 1152: 16}


@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """Width, width inside the perceptrons, layers and heads of one tower."""

    width: int
    inner: int
    n_layers: int
    n_heads: int


@dataclass(frozen=True, kw_only=True)
class SiglipSizes:
    """All numbers of a SigLIP model.

    Attributes
    ----------
    patch, grid : int
        Pixels of a patch's side, patches of an image's side.
    vocabulary, context, projection : int
        Tokens known, tokens of a text, dimension of a text vector.
    """

    vision: TowerSizes
    text: TowerSizes
    patch: int
    grid: int
    vocabulary: int
    context: int
    projection: int

    @classmethod
    def read(cls, shapes: Shapes, settings: Mapping[str, Any] | None, *, source: Path | str) -> SiglipSizes:
        """Read the sizes from tensors; only the number of heads comes from ``config.json`` where there is one.

        Raises
        ------
        FormatError
            The tensors are another model's.
        """
        kernel = shape_of(shapes, "vision_model.embeddings.patch_embedding.weight", n_sides=4, source=source)
        n_patches = shape_of(shapes, "vision_model.embeddings.position_embedding.weight", n_sides=2, source=source)[0]
        grid = round(n_patches**0.5)
        if grid * grid != n_patches or kernel[2] != kernel[3]:
            raise FormatError(f"checkpoint {source} does not fit: {n_patches} patches make no square")
        tokens = shape_of(shapes, "text_model.embeddings.token_embedding.weight", n_sides=2, source=source)
        context = shape_of(shapes, "text_model.embeddings.position_embedding.weight", n_sides=2, source=source)[0]
        projection = shape_of(shapes, "text_model.head.weight", n_sides=2, source=source)[0]
        return cls(
            vision=_tower(shapes, settings, tower="vision", width=kernel[0], source=source),
            text=_tower(shapes, settings, tower="text", width=tokens[1], source=source),
            patch=kernel[2],
            grid=grid,
            vocabulary=tokens[0],
            context=context,
            projection=projection,
        )

    def side(self, stated: int) -> int:
        """Return the side of an image in pixels: the one stated where it has this grid, else whole patches."""
        return stated if stated // self.patch == self.grid else self.grid * self.patch


def _tower(
    shapes: Shapes, settings: Mapping[str, Any] | None, *, tower: str, width: int, source: Path | str
) -> TowerSizes:
    prefix = f"{tower}_model.encoder.layers."
    stated = (settings or {}).get(f"{tower}_config") or {}
    if not isinstance(stated, Mapping):
        raise FormatError(f"config.json beside {source} has no object {tower}_config")
    if stated.get("hidden_act", _ACTIVATION) != _ACTIVATION:
        raise FormatError(
            f"config.json beside {source} states the activation {stated['hidden_act']!r}, not {_ACTIVATION}"
        )
    n_heads = stated.get("num_attention_heads", _HEADS.get(width, width // 64))
    if not isinstance(n_heads, int) or n_heads < 1 or width % n_heads:
        raise FormatError(
            f"checkpoint {source} of width {width} cannot have {n_heads} heads; fetch its config.json too"
        )
    return TowerSizes(
        width=width,
        inner=shape_of(shapes, f"{prefix}0.mlp.fc1.weight", n_sides=2, source=source)[0],
        n_layers=count_layers(shapes, prefix),
        n_heads=n_heads,
    )


class _Attention(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.n_heads = sizes.n_heads
        self.k_proj = nn.Linear(sizes.width, sizes.width)
        self.v_proj = nn.Linear(sizes.width, sizes.width)
        self.q_proj = nn.Linear(sizes.width, sizes.width)
        self.out_proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(states).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        made: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return made


class _Perceptron(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.inner)
        self.fc2 = nn.Linear(sizes.inner, sizes.width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.fc2(functional.gelu(self.fc1(states), approximate="tanh"))
        return made


class _Layer(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(sizes.width, eps=_EPSILON)
        self.self_attn = _Attention(sizes)
        self.layer_norm2 = nn.LayerNorm(sizes.width, eps=_EPSILON)
        self.mlp = _Perceptron(sizes)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.self_attn(self.layer_norm1(states))
        return states + self.mlp(self.layer_norm2(states))


class _Layers(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.n_layers))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            states = layer(states)
        return states


class _ImageEmbeddings(nn.Module):
    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, sizes.vision.width, kernel_size=sizes.patch, stride=sizes.patch)
        self.position_embedding = nn.Embedding(sizes.grid**2, sizes.vision.width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.patch_embedding(images).flatten(2).transpose(1, 2) + self.position_embedding.weight
        return made


class _ProbeHead(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.attention = nn.MultiheadAttention(sizes.width, sizes.n_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(sizes.width, eps=_EPSILON)
        self.mlp = _Perceptron(sizes)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        pooled = self.attention(self.probe.expand(len(states), -1, -1), states, states, need_weights=False)[0]
        made: torch.Tensor = (pooled + self.mlp(self.layernorm(pooled)))[:, 0]
        return made


class SiglipVision(nn.Module):
    """Images, ``(B, 3, side, side)``, to pooled vectors, ``(B, width)``."""

    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        self.embeddings = _ImageEmbeddings(sizes)
        self.encoder = _Layers(sizes.vision)
        self.post_layernorm = nn.LayerNorm(sizes.vision.width, eps=_EPSILON)
        self.head = _ProbeHead(sizes.vision)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the vectors read out by the probe."""
        states = self.post_layernorm(self.encoder(self.embeddings(images)))
        return rows_of(self.head, states)


class _TextEmbeddings(nn.Module):
    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.text.width)
        self.position_embedding = nn.Embedding(sizes.context, sizes.text.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]
        return made


class SiglipText(nn.Module):
    """Padded tokens, ``(B, context)``, to vectors, ``(B, projection)``; padding is not masked, as in training."""

    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        self.embeddings = _TextEmbeddings(sizes)
        self.encoder = _Layers(sizes.text)
        self.final_layer_norm = nn.LayerNorm(sizes.text.width, eps=_EPSILON)
        self.head = nn.Linear(sizes.text.width, sizes.projection)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the projected state of the last token."""
        states = self.final_layer_norm(self.encoder(self.embeddings(tokens)))
        made: torch.Tensor = self.head(states[:, -1])
        return made


class SiglipTowers(nn.Module):
    """Both towers and the scale and bias of the logit, with the keys of a published file."""

    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        self.text_model = SiglipText(sizes)
        self.vision_model = SiglipVision(sizes)
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))
