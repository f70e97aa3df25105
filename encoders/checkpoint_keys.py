"""The keys of a state dict: in another spelling, fused tensors taken apart, and those of a whole block at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedstore.errors import FormatError

__all__ = ["Spellings", "respelled", "thirds", "weights_and_biases"]

Spellings = Sequence[tuple[re.Pattern[str], str]]


def respelled(key: str, spellings: Spellings) -> str:
    """Return a key after these replacements, one after the other.

    Examples
    --------
    >>> respelled("blocks.3.norm1.weight", [(re.compile(r"^blocks\\."), "layer."), (re.compile("norm1"), "before")])
    'layer.3.before.weight'
    """
    for pattern, replacement in spellings:
        key = pattern.sub(replacement, key)
    return key


def thirds(tensor: Any, *, key: str, source: Path) -> dict[str, Any]:
    """Take apart the fused ``query``, ``key`` and ``value`` of an attention.

    Parameters
    ----------
    tensor : (3 W, ...) tensor
    key : str
        What the file calls it, for the error.
    source : Path
        The file, for the error.

    Raises
    ------
    FormatError
        It does not come apart in three.
    """
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise FormatError(
            f"checkpoint {source} does not fit: {key} has shape {tuple(tensor.shape)}, not three times the width"
        )
    return dict(zip(("query", "key", "value"), tensor.chunk(3), strict=True))


def weights_and_biases(prefix: str, parts: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of both tensors of each part.

    Examples
    --------
    >>> weights_and_biases("blocks.*", ["norm[12]"])
    ('blocks.*.norm[12].weight', 'blocks.*.norm[12].bias')
    """
    return tuple(f"{prefix}.{part}.{kind}" for part in parts for kind in ("weight", "bias"))
