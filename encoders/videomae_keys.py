"""The keys of VideoMAE checkpoints: the authors' files, and what older and newer releases of transformers wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embedstore.errors import FormatError
from encoders.checkpoint_keys import respelled, thirds, weights_and_biases

__all__ = ["AUTHORS_DECODER", "HF_DECODER", "authors_spelling", "from_authors", "from_hub", "is_authors"]

_PREFIX = "videomae."
_AUTHORS_BLOCK = "encoder.blocks."

_SPELLINGS = (
    (re.compile(r"^encoder\.patch_embed\.proj\."), "embeddings.patch_embeddings.projection."),
    (re.compile(r"^encoder\.blocks\.(\d+)\.norm1\."), r"encoder.layer.\1.layernorm_before."),
    (re.compile(r"^encoder\.blocks\.(\d+)\.norm2\."), r"encoder.layer.\1.layernorm_after."),
    (re.compile(r"^encoder\.blocks\.(\d+)\.attn\.q_bias$"), r"encoder.layer.\1.attention.attention.query.bias"),
    (re.compile(r"^encoder\.blocks\.(\d+)\.attn\.v_bias$"), r"encoder.layer.\1.attention.attention.value.bias"),
    (re.compile(r"^encoder\.blocks\.(\d+)\.attn\.qkv\.weight$"), r"encoder.layer.\1.attention.attention.qkv.weight"),
    (re.compile(r"^encoder\.blocks\.(\d+)\.attn\.proj\."), r"encoder.layer.\1.attention.output.dense."),
    (re.compile(r"^encoder\.blocks\.(\d+)\.mlp\.fc1\."), r"encoder.layer.\1.intermediate.dense."),
    (re.compile(r"^encoder\.blocks\.(\d+)\.mlp\.fc2\."), r"encoder.layer.\1.output.dense."),
    (re.compile(r"^encoder\.norm\."), "layernorm."),
)
_BACK = (
    (re.compile(r"^embeddings\.patch_embeddings\.projection\."), "encoder.patch_embed.proj."),
    (re.compile(r"^encoder\.layer\.(\d+)\.layernorm_before\."), r"encoder.blocks.\1.norm1."),
    (re.compile(r"^encoder\.layer\.(\d+)\.layernorm_after\."), r"encoder.blocks.\1.norm2."),
    (re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.query\.bias$"), r"encoder.blocks.\1.attn.q_bias"),
    (re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.value\.bias$"), r"encoder.blocks.\1.attn.v_bias"),
    (re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.\w+\.weight$"), r"encoder.blocks.\1.attn.qkv.weight"),
    (re.compile(r"^encoder\.layer\.(\d+)\.attention\.output\.dense\."), r"encoder.blocks.\1.attn.proj."),
    (re.compile(r"^encoder\.layer\.(\d+)\.intermediate\.dense\."), r"encoder.blocks.\1.mlp.fc1."),
    (re.compile(r"^encoder\.layer\.(\d+)\.output\.dense\."), r"encoder.blocks.\1.mlp.fc2."),
    (re.compile(r"^layernorm\."), "encoder.norm."),
)
# transformers before its release 5 kept the two biases beside the layers, as the authors do.
_OLDER_BIAS = re.compile(r"\.attention\.attention\.([qv])_bias$")
_BIAS_OF = {"q": "query", "v": "value"}


def _patterns(prefix: str, parts: tuple[str, ...], *singles: str) -> tuple[str, ...]:
    return (*weights_and_biases(prefix, parts), *(f"{prefix}.{single}" for single in singles))


_AROUND = (
    "mask_token",
    "encoder_to_decoder.weight",
    "decoder.norm.weight",
    "decoder.norm.bias",
    "decoder.head.weight",
    "decoder.head.bias",
)
#: Keys of the decoder as transformers writes them, as patterns: 66 keys where it has 4 blocks.
HF_DECODER = (
    *_AROUND,
    *_patterns(
        "decoder.decoder_layers.*",
        ("layernorm_before", "layernorm_after", "attention.output.dense", "intermediate.dense", "output.dense"),
        "attention.attention.query.weight",
        "attention.attention.key.weight",
        "attention.attention.value.weight",
        "attention.attention.query.bias",
        "attention.attention.value.bias",
    ),
)
#: Keys of the decoder in the authors' files.
AUTHORS_DECODER = (
    *_AROUND,
    *_patterns(
        "decoder.blocks.*", ("norm[12]", "attn.proj", "mlp.fc[12]"), "attn.qkv.weight", "attn.q_bias", "attn.v_bias"
    ),
)


def is_authors(state: Mapping[str, Any]) -> bool:
    """Return whether a state dict has the authors' keys and not those of transformers."""
    return any(str(key).startswith(_AUTHORS_BLOCK) for key in state)


def from_hub(state: Mapping[str, Any], *, source: Path) -> tuple[dict[str, Any], Callable[[str], str]]:
    """Return a state dict of transformers in the spelling of its release 5, without the prefix of a larger model.

    Returns
    -------
    dict, callable
        And how the file spells a key.

    Raises
    ------
    FormatError
        A tensor is there twice, in two spellings.
    """
    made: dict[str, Any] = {}
    older = prefixed = False
    for key, tensor in state.items():
        bare = str(key).removeprefix(_PREFIX)
        spelled = _OLDER_BIAS.sub(lambda found: f".attention.attention.{_BIAS_OF[found[1]]}.bias", bare)
        older |= spelled != bare
        prefixed |= bare != key
        if spelled in made:
            raise FormatError(f"checkpoint {source} has the tensor {spelled} twice, in two spellings")
        made[spelled] = tensor

    def spelled_there(key: str) -> str:
        if older:
            for letter, name in _BIAS_OF.items():
                key = key.replace(f".attention.attention.{name}.bias", f".attention.attention.{letter}_bias")
        return f"{_PREFIX}{key}" if prefixed else key

    return made, spelled_there


def from_authors(state: Mapping[str, Any], *, source: Path) -> dict[str, Any]:
    """Return the authors' state dict in transformers' spelling; keys not known stay as they are.

    Raises
    ------
    FormatError
        A fused tensor does not come apart in three.
    """
    made: dict[str, Any] = {}
    for key, tensor in state.items():
        spelled = respelled(str(key), _SPELLINGS)
        if spelled == key or not spelled.endswith(".qkv.weight"):
            made[spelled] = tensor
            continue
        for part, piece in thirds(tensor, key=key, source=source).items():
            made[spelled.replace(".qkv.", f".{part}.")] = piece
    return made


def authors_spelling(key: str) -> str:
    """Return how the authors spell a key of transformers.

    Examples
    --------
    >>> authors_spelling("encoder.layer.3.attention.attention.key.weight")
    'encoder.blocks.3.attn.qkv.weight'
    """
    return respelled(key, _BACK)
