"""BERT without its pooler in plain torch layers, under the names of the published files, sized by their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from embedstore.errors import FormatError
from encoders.model_folder import Shapes, count_layers, shape_of

__all__ = ["Bert", "BertSizes", "BertText"]

_HEAD = 64  # of every published BERT
_EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True)
class BertSizes:
    """Vocabulary, positions and kinds of token, width, width inside the perceptrons, layers."""

    vocabulary: int
    n_positions: int
    n_kinds: int
    width: int
    inner: int
    n_layers: int

    @classmethod
    def read(cls, shapes: Shapes, *, prefix: str, source: Path | str) -> BertSizes:
        """Read the sizes from the tensors below ``prefix``.

        Raises
        ------
        FormatError
            The tensors are another model's.
        """
        words, positions, kinds = (
            shape_of(shapes, f"{prefix}embeddings.{name}_embeddings.weight", n_sides=2, source=source)
            for name in ("word", "position", "token_type")
        )
        inner = shape_of(shapes, f"{prefix}encoder.layer.0.intermediate.dense.weight", n_sides=2, source=source)[0]
        if words[1] % _HEAD:
            raise FormatError(f"checkpoint {source} does not fit: a BERT of width {words[1]} has no heads of {_HEAD}")
        return cls(
            vocabulary=words[0],
            n_positions=positions[0],
            n_kinds=kinds[0],
            width=words[1],
            inner=inner,
            n_layers=count_layers(shapes, f"{prefix}encoder.layer."),
        )


class _Embeddings(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embeddings = nn.Embedding(sizes.n_positions, sizes.width)
        self.token_type_embeddings = nn.Embedding(sizes.n_kinds, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=_EPSILON)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = self.position_embeddings.weight[: tokens.shape[1]]
        made: torch.Tensor = self.LayerNorm(
            self.word_embeddings(tokens) + self.token_type_embeddings.weight[0] + places
        )
        return made


class _SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(states).unflatten(-1, (-1, _HEAD)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2)


class _Output(nn.Module):
    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, states: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.LayerNorm(self.dense(states) + kept)
        return made


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self = _SelfAttention(width)
        self.output = _Output(width, width)


class _Intermediate(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(sizes.width, sizes.inner)


class _Layer(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.attention = _Attention(sizes.width)
        self.intermediate = _Intermediate(sizes)
        self.output = _Output(sizes.inner, sizes.width)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.attention.output(self.attention.self(states, mask), states)
        made: torch.Tensor = self.output(functional.gelu(self.intermediate.dense(states)), states)
        return made


class _Encoder(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(sizes) for _ in range(sizes.n_layers))


class Bert(nn.Module):
    """Padded tokens, ``(B, L)``, to the states of the last layer, ``(B, L, width)``.

    Parameters
    ----------
    sizes : BertSizes
    padding : int
        The token that is masked.
    """

    def __init__(self, sizes: BertSizes, *, padding: int = 0) -> None:
        super().__init__()
        self.embeddings = _Embeddings(sizes)
        self.encoder = _Encoder(sizes)
        self._padding = padding

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return all states; those of padding stand for nothing."""
        states = self.embeddings(tokens)
        mask = (tokens != self._padding)[:, None, None, :]
        for layer in self.encoder.layer:
            states = layer(states, mask)
        return states


class BertText(nn.Module):
    """Padded tokens to vectors, ``(B, dim)``: the state of the first token through two layers without bias.

    Parameters
    ----------
    sizes : BertSizes
    inner, dim : int
        Width between the two layers, and dimension of a vector.
    """

    def __init__(self, sizes: BertSizes, *, inner: int, dim: int) -> None:
        super().__init__()
        self.transformer = Bert(sizes)
        self.proj = nn.Sequential(
            nn.Linear(sizes.width, inner, bias=False), nn.GELU(), nn.Linear(inner, dim, bias=False)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return one vector a text, not normalised."""
        made: torch.Tensor = self.proj(self.transformer(tokens)[:, 0])
        return made
