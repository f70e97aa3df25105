"""What video transformers share: attention over tubelets, and what becomes of their tokens.

A tubelet is a square of pixels through a few frames (2 to 4), and becomes one token. Tokens lie in the order of time,
then rows, then columns. They have seen the whole window: the tokens of one time are no vectors of those frames alone.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Perceptron", "attend", "head_width", "in_order_of_time", "pool_tokens", "split_heads"]

# Heads are 64 numbers wide in every published ViT of these families but the huge ones (width 1280, 16 heads).
_HEAD, _HUGE, _HUGE_HEAD = 64, 1280, 80


def head_width(width: int) -> int:
    """Return how many numbers an attention head has in a published ViT of that width.

    Examples
    --------
    >>> head_width(1024), head_width(1280)
    (64, 80)
    """
    return _HUGE_HEAD if width == _HUGE else _HEAD


def split_heads(states: torch.Tensor, *, head: int) -> torch.Tensor:
    """Return ``(B, heads, N, head)`` of ``(B, N, width)``."""
    return states.reshape(*states.shape[:-1], -1, head).transpose(1, 2)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return ``(B, N, width)`` of queries, keys and values of shape ``(B, heads, N, head)``."""
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def in_order_of_time(volume: torch.Tensor) -> torch.Tensor:
    """Return the tokens of a convolution over a window, ``(B, width, S, rows, columns)``, as ``(B, N, width)``."""
    return volume.flatten(2).transpose(1, 2)


class Perceptron(nn.Module):
    """Two linear layers, ``fc1`` and ``fc2``, with an exact GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return ``(..., width)``."""
        made: torch.Tensor = self.fc2(functional.gelu(self.fc1(states)))
        return made


def pool_tokens(
    tokens: torch.Tensor, *, n_steps: int, output: str, with_steps: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the vector of each window, and its steps.

    Parameters
    ----------
    tokens : (B, N, D)
        In the order of time.
    n_steps : int
        Tubelets behind one another in time; divides N.
    output : {"token-mean", "token-max"}
        The mean, or the largest number in each dimension, over all tokens.
    with_steps : bool
        Whether steps are wanted.

    Returns
    -------
    (B, D), (B, n_steps, D) or None
        A step is the mean of the tokens of one time.

    Raises
    ------
    ValueError
        The output is neither.

    Examples
    --------
    >>> tokens = torch.arange(8.0).reshape(1, 4, 2)
    >>> vectors, steps = pool_tokens(tokens, n_steps=2, output="token-max", with_steps=True)
    >>> vectors.tolist(), steps.tolist()
    ([[6.0, 7.0]], [[[1.0, 2.0], [5.0, 6.0]]])
    """
    tokens = tokens.float()
    if output == "token-mean":
        vectors = tokens.mean(dim=1)
    elif output == "token-max":
        vectors = tokens.amax(dim=1)
    else:
        raise ValueError(f"unknown output {output!r}")
    if not with_steps:
        return vectors, None
    return vectors, tokens.reshape(len(tokens), n_steps, -1, tokens.shape[2]).mean(dim=2)
