"""The keys of V-JEPA 2 checkpoints: the authors' spelling, with fused queries, keys and values, and transformers'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedstore.errors import FormatError
from encoders.checkpoint_keys import respelled, thirds

__all__ = ["authors_spelling", "from_authors", "target_encoder"]

_PREFIXES = ("module.", "backbone.")
_SPELLINGS = (
    (re.compile(r"^patch_embed\.proj\."), "embeddings.patch_embeddings.proj."),
    (re.compile(r"^blocks\.(\d+)\.attn\."), r"layer.\1.attention."),
    (re.compile(r"^blocks\.(\d+)\.(norm|mlp)"), r"layer.\1.\2"),
    (re.compile(r"^norm\."), "layernorm."),
)
_BACK = (
    (re.compile(r"^embeddings\.patch_embeddings\.proj\."), "patch_embed.proj."),
    (re.compile(r"^layer\.(\d+)\.attention\.(?:query|key|value)\."), r"blocks.\1.attn.qkv."),
    (re.compile(r"^layer\.(\d+)\.attention\."), r"blocks.\1.attn."),
    (re.compile(r"^layer\."), "blocks."),
    (re.compile(r"^layernorm\."), "norm."),
)
# app/vjepa_2_1/models/vision_transformer.py of facebookresearch/vjepa2: norms after several blocks in place of one
# last norm, and vectors added to the tokens of images and of videos.
_ONLY_IN_2_1 = ("norms_block.", "img_mod_embed", "video_mod_embed", "patch_embed_img.")


def target_encoder(checkpoint: Mapping[str, Any], *, source: Path) -> dict[str, Any]:
    """Return the weights of the target encoder of a training checkpoint, their keys without prefixes.

    A file of tensors alone is taken for the encoder itself.

    Raises
    ------
    FormatError
        The checkpoint has no target encoder, or is one of V-JEPA 2.1.
    """
    state: Mapping[str, Any] = checkpoint
    if any(isinstance(value, Mapping) for value in checkpoint.values()):
        found = checkpoint.get("target_encoder")
        if not isinstance(found, Mapping):
            raise FormatError(
                f"checkpoint {source} has no target_encoder, but {', '.join(sorted(map(str, checkpoint)))}; "
                "is it another model's file?"
            )
        state = found
    bare = {_without_prefixes(str(key)): value for key, value in state.items()}
    foreign = sorted(key for key in bare if key.startswith(_ONLY_IN_2_1))
    if foreign:
        raise FormatError(
            f"checkpoint {source} is one of V-JEPA 2.1, whose encoder is another (it has {foreign[0]}); this encoder "
            "takes V-JEPA 2 only, e.g. vitl-vmix22m-pt220-c55.pt"
        )
    return bare


def _without_prefixes(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def from_authors(state: Mapping[str, Any], *, source: Path) -> dict[str, Any]:
    """Return a state dict in transformers' spelling, queries, keys and values apart; keys not known stay as they are.

    Raises
    ------
    FormatError
        A fused tensor does not come apart in three.
    """
    made: dict[str, Any] = {}
    for key, tensor in state.items():
        spelled = respelled(key, _SPELLINGS)
        fused, _, kind = spelled.rpartition(".qkv.")
        if not fused or not hasattr(tensor, "shape"):
            made[spelled] = tensor
            continue
        for part, piece in thirds(tensor, key=key, source=source).items():
            made[f"{fused}.{part}.{kind}"] = piece
    return made


def authors_spelling(key: str) -> str:
    """Return how the authors spell a key of transformers.

    Examples
    --------
    >>> authors_spelling("layer.3.attention.query.weight")
    'blocks.3.attn.qkv.weight'
    """
    return respelled(key, _BACK)
