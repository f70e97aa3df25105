"""CLIP models as open_clip builds them: which architecture, its towers, their sizes from the tensors.

An architecture is one of open_clip's own names, or the ``open_clip_config.json`` beside the weights. Names and
numbers are read from open_clip's files without importing it; `build_towers` imports it, and torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.errors import FormatError, MissingExtraError, UnknownNameError, did_you_mean
from encoders.model_folder import Shapes, read_settings, shape_of

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "SETTINGS_FILE",
    "ClipPixels",
    "architecture",
    "architecture_names",
    "build_towers",
    "sequence_first",
    "settings_of",
]

SETTINGS_FILE = "open_clip_config.json"
# open_clip/constants.py: OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Settings of open_clip that concern training or the hub, not the function that a checkpoint computes.
_NOT_FOR_TOWERS = ("custom_text", "multimodal_cfg")
_BERT_POOLERS = {"cls_last_hidden_state_pooler"}
_ROOT_TEXT, _OWN_TEXT = "", "text."
_MAX_LAYERS = 1000
_TIMM_NAME = re.compile(r"[\w.]*")  # "hf-hub:..." and paths would be fetched


@dataclass(frozen=True, kw_only=True)
class ClipPixels:
    """How frames are prepared: side in pixels, mean and standard deviation, Pillow's kernel, which way to square."""

    side: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    kernel: str = "bicubic"
    mode: str = "shortest"


@cache
def _configs() -> dict[str, Path]:
    found = find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(
            "CLIP models need the package open_clip_torch, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        )
    return {
        file.stem.lower(): file for file in Path(found.submodule_search_locations[0], "model_configs").glob("*.json")
    }


def architecture_names() -> list[str]:
    """Return the names of open_clip's architectures in lower case, sorted."""
    return sorted(_configs())


def architecture(name: str) -> dict[str, Any]:
    """Return open_clip's settings of an architecture; upper and lower case are the same.

    Raises
    ------
    UnknownNameError
        open_clip has no such architecture.

    Examples
    --------
    >>> architecture("vit-b-32-quickgelu")["embed_dim"]
    512
    """
    configs = _configs()
    if name.lower() not in configs:
        raise UnknownNameError(f"open_clip has no architecture {name!r}{did_you_mean(name.lower(), list(configs))}")
    found: dict[str, Any] = json.loads(configs[name.lower()].read_text(encoding="utf-8"))
    return found


def settings_of(path: Path | None, *, default: Mapping[str, Any]) -> tuple[Mapping[str, Any], ClipPixels]:
    """Return the architecture and the preprocessing that go with weights.

    Parameters
    ----------
    path : Path or None
        The weights; in a folder ``open_clip_config.json`` says both.
    default : mapping
        The architecture otherwise.

    Raises
    ------
    FormatError
        The settings file is not open_clip's, or prepares frames in a way that is not offered.
    """
    stored = None if path is None else read_settings(path, SETTINGS_FILE)
    if path is None or stored is None:
        return default, ClipPixels(side=_side(default))
    config, pixels = stored.get("model_cfg", stored), stored.get("preprocess_cfg") or {}
    if not all(isinstance(part, dict) for part in (config, pixels)) or not isinstance(config.get("vision_cfg"), dict):
        raise FormatError(f"{path / SETTINGS_FILE} has no model_cfg with a vision_cfg; is it open_clip's?")
    side = pixels.get("size", _side(config))
    side = side[0] if isinstance(side, list) and len(set(side)) == 1 else side
    mean, std = (tuple(pixels.get(key) or usual) for key, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    prepared = ClipPixels(
        side=side,
        mean=mean,
        std=std,
        kernel=pixels.get("interpolation") or "bicubic",
        mode=pixels.get("resize_mode") or "shortest",
    )
    numbers = [number for number in (*mean, *std) if isinstance(number, int | float)]
    if (
        not isinstance(side, int)
        or (len(mean), len(std), len(numbers)) != (3, 3, 6)
        or prepared.kernel not in ("bicubic", "bilinear")
        or prepared.mode not in ("shortest", "squash")
    ):
        raise FormatError(f"{path / SETTINGS_FILE} prepares frames in a way that is not offered: {pixels}")
    return config, prepared


def _side(config: Mapping[str, Any]) -> int:
    side = config["vision_cfg"].get("image_size", 224)
    if isinstance(side, list) and len(set(side)) == 1:
        side = side[0]
    if not isinstance(side, int) or side < 1:
        raise FormatError(f"{SETTINGS_FILE} states images of {side!r} pixels, not of one square size")
    return side


def build_towers(config: Mapping[str, Any], shapes: Shapes, *, source: Path | str) -> tuple[nn.Module, int]:
    """Build a model with the keys of the checkpoint and an image tower ``visual``, its weights undefined.

    Vocabulary, length of a text and dimension of the vectors are those of the tensors.

    Parameters
    ----------
    config : mapping
        As `architecture` returns it.
    shapes : mapping
        Shapes of the checkpoint's tensors.
    source : Path or str
        What to call the checkpoint in an error.

    Returns
    -------
    torch.nn.Module, int
        The towers, and the dimension of the vectors of both.

    Raises
    ------
    FormatError
        The architecture is not offered, or the tensors are another model's.
    """
    from encoders.state_dict import without_initialisation

    if config.get("multimodal_cfg"):
        raise FormatError(f"checkpoint {source} is a captioning model (CoCa), which is not offered")
    text = dict(config.get("text_cfg") or {})
    _check_settings(config["vision_cfg"], text, source=source)
    with without_initialisation():
        if text.get("hf_model_name"):
            return _with_bert(config, text, shapes, source=source)
        return _with_transformer(config, text, shapes, source=source)


def _check_settings(vision: Mapping[str, Any], text: Mapping[str, Any], *, source: Path | str) -> None:
    """Refuse settings that would reach for the network, or build without end."""
    name = vision.get("timm_model_name") or ""
    if not isinstance(name, str) or not _TIMM_NAME.fullmatch(name):
        raise FormatError(
            f"the settings beside {source} name the image tower {name!r}, which is no name of timm's own"
        )
    for settings in (vision, text):
        layers = settings.get("layers", 0)
        counts = layers if isinstance(layers, list) else [layers]
        if not all(isinstance(count, int) and 0 <= count <= _MAX_LAYERS for count in counts):
            raise FormatError(f"the settings beside {source} state {layers!r} layers")


def _with_transformer(
    config: Mapping[str, Any], text: dict[str, Any], shapes: Shapes, *, source: Path | str
) -> tuple[nn.Module, int]:
    from open_clip.model import CLIP, CustomTextCLIP

    own = bool(config.get("custom_text")) or f"{_OWN_TEXT}token_embedding.weight" in shapes
    prefix = _OWN_TEXT if own else _ROOT_TEXT
    text["vocab_size"] = shape_of(shapes, f"{prefix}token_embedding.weight", n_sides=2, source=source)[0]
    text["context_length"] = shape_of(shapes, f"{prefix}positional_embedding", n_sides=2, source=source)[0]
    projection = f"{prefix}text_projection"
    if projection in shapes:
        embed_dim = shape_of(shapes, projection, n_sides=2, source=source)[1]
    else:  # SigLIP's has a bias and is a layer
        embed_dim = shape_of(shapes, f"{projection}.weight", n_sides=2, source=source)[0]
    others = {key: value for key, value in config.items() if key not in _NOT_FOR_TOWERS}
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    try:
        built = (CustomTextCLIP if own else CLIP)(
            **{**others, "embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
        )
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise FormatError(f"the architecture of checkpoint {source} cannot be built: {error}") from error
    return built, embed_dim


def _with_bert(
    config: Mapping[str, Any], text: Mapping[str, Any], shapes: Shapes, *, source: Path | str
) -> tuple[nn.Module, int]:
    import torch
    from open_clip.timm_model import TimmModel
    from torch import nn

    from encoders.bert_model import BertSizes, BertText

    # Both spellings are in the wild: open_clip renamed the keys.
    pooler = text.get("hf_pooler_type") or text.get("pooler_type")
    vision = config["vision_cfg"]
    if pooler not in _BERT_POOLERS or "timm_model_name" not in vision:
        raise FormatError(
            f"checkpoint {source} reads its text tower {text['hf_model_name']!r} out by {pooler!r}; offered are "
            f"BERTs read out by {', '.join(_BERT_POOLERS)} beside an image tower of timm"
        )
    inner = shape_of(shapes, f"{_OWN_TEXT}proj.0.weight", n_sides=2, source=source)[0]
    embed_dim = shape_of(shapes, f"{_OWN_TEXT}proj.2.weight", n_sides=2, source=source)[0]
    sizes = BertSizes.read(shapes, prefix=f"{_OWN_TEXT}transformer.", source=source)

    towers = nn.Module()
    try:
        towers.visual = TimmModel(
            vision["timm_model_name"],
            embed_dim=embed_dim,
            image_size=vision.get("image_size", 224),
            pool=vision.get("timm_pool", "avg"),
            proj=vision.get("timm_proj", "linear"),
            proj_bias=vision.get("timm_proj_bias", False),
        )
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise FormatError(f"the architecture of checkpoint {source} cannot be built: {error}") from error
    towers.text = BertText(sizes, inner=inner, dim=embed_dim)
    towers.logit_scale = nn.Parameter(torch.zeros(()))
    return towers, embed_dim


def sequence_first(tower: nn.Module) -> None:
    """Have open_clip's transformers work on (tokens, images, width), where they can: the same sums, laid out flat.

    In bf16 on a CPU, torch copies the weights of each attention for every token otherwise: ViT-B/32 took 0.51 seconds
    of processor time a frame, and takes 0.026.
    """
    from torch.nn import MultiheadAttention

    for stack in tower.modules():
        blocks = getattr(stack, "resblocks", None)
        attentions = [getattr(block, "attn", None) for block in blocks or ()]
        plain = attentions and all(isinstance(attention, MultiheadAttention) for attention in attentions)
        if plain and getattr(stack, "batch_first", False):
            for part in (stack, *attentions):
                part.batch_first = False
