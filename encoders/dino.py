"""DINOv2 and DINOv3: image encoders trained without labels or texts, small, base and large.

``--weights NAME=PATH`` takes ``model.safetensors`` (or ``pytorch_model.bin``), or a folder with it: what the hub
holds. Both spellings of keys that releases of transformers have written are read. The vector is the class token after
the last norm, as the models' ``pooler_output``; ``@patch-mean`` averages the patches' tokens instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from embedstore.encoder import EncoderCard, LoadRequest, Variant
from embedstore.errors import FormatError
from embedstore.spec import FrameSampling
from encoders.checkpoint_keys import Spellings, respelled
from encoders.frame_encoder import FrameEncoder
from encoders.hub import HF_WEIGHTS
from encoders.preprocess import CentreCrop
from encoders.published_card import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PublishedCard,
    cardiobench_variant,
    check_dim,
    pixel_record,
)
from encoders.resampling import FloatResize, PillowResizeShortSide

__all__ = [
    "DINOV2_CARD",
    "DINOV2_LARGE_CARD",
    "DINOV2_SMALL_CARD",
    "DINOV3_CARD",
    "DINOV3_LARGE_CARD",
    "DINOV3_SMALL_CARD",
    "fit",
    "load_v2",
    "load_v3",
]

_SIDE = 224
_UNIFORM = FrameSampling("uniform:16")

# dinov2/data/transforms.py, make_classification_eval_transform: resize_size 256, bicubic, crop_size 224.
_STEPS_V2 = (PillowResizeShortSide(size=256, kernel="bicubic"), CentreCrop(height=_SIDE, width=_SIDE))
# transformers, image_processing_dinov3_vit.py: to [0, 1] first, then bilinear with antialias, so never rounded.
_STEPS_V3 = (FloatResize(height=_SIDE, width=_SIDE),)

# What newer releases of transformers wrote, and what the hub holds.
_SPELLINGS_V2 = (
    (re.compile(r"^dinov2\."), ""),
    (re.compile(r"\.attention\.q_proj\."), ".attention.attention.query."),
    (re.compile(r"\.attention\.k_proj\."), ".attention.attention.key."),
    (re.compile(r"\.attention\.v_proj\."), ".attention.attention.value."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
)
_SPELLINGS_V3 = ((re.compile(r"^model\.layer\."), "layer."),)


def _variants(steps: tuple[Any, ...], note: str) -> dict[str, Variant]:
    return {
        "published": Variant(
            sampling=_UNIFORM, note=f"{note}; the model knows no clips, 16 frames are spread over one"
        ),
        "patch-mean": Variant(
            sampling=_UNIFORM, preprocessing={"output": "patch-mean"}, note="the mean of the patches' tokens"
        ),
        "cardiobench": cardiobench_variant(steps),
    }


_card = partial(
    PublishedCard,
    unit="frame",
    fitter="encoders.dino:fit",
    weights_fetcher="encoders.hub:fetch",
    weights_names=HF_WEIGHTS,
    settings_names=("config.json",),
    input_size=(3, _SIDE, _SIDE),
)
_v2_card = partial(
    _card,
    loader="encoders.dino:load_v2",
    preprocessing=pixel_record(_STEPS_V2, mean=IMAGENET_MEAN, std=IMAGENET_STD, vectors="raw", output="cls"),
    variants=_variants(_STEPS_V2, "its evaluation input: shorter side 256 (Pillow bicubic), central 224x224"),
    keys_may_miss=("embeddings.mask_token",),
    licence="Apache-2.0",
    paper="Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024, arXiv:2304.07193",
    pretraining_data=("lvd-142m",),
)
_v3_card = partial(
    _card,
    loader="encoders.dino:load_v3",
    preprocessing=pixel_record(_STEPS_V3, mean=IMAGENET_MEAN, std=IMAGENET_STD, vectors="raw", output="cls"),
    variants=_variants(_STEPS_V3, "the whole frame squeezed to 224x224 (bilinear, filtered, not rounded)"),
    keys_may_miss=("embeddings.mask_token",),
    licence="DINOv3 License",
    licence_forbids="military, nuclear and espionage uses among others; passing it on without the licence; gated",
    paper="Simeoni et al., DINOv3, arXiv:2508.10104",
    pretraining_data=("lvd-1689m",),
)


def _sized(make: Any, version: int, size: str, *, dim: int, n_parameters: int, cpu: int) -> PublishedCard:
    name = f"dinov{version}" if size == "base" else f"dinov{version}-{size}"
    page = f"dinov2-{size}" if version == 2 else f"dinov3-vit{size[0]}16-pretrain-lvd1689m"
    card: PublishedCard = make(
        name=name,
        summary=f"DINOv{version}, ViT-{size[0].upper()}/{14 if version == 2 else 16}, trained on photographs without "
        "labels.",
        clip_dim=dim,
        frame_dim=dim,
        n_parameters=n_parameters,
        weights_locator=f"encoders.hub:locate_{name.replace('-', '_')}",
        weights_source=f"https://huggingface.co/facebook/{page}{' (gated)' if version == 3 else ''}",
        batch_size={"cpu": cpu, "cuda": 256},
    )
    return card


DINOV2_SMALL_CARD = _sized(_v2_card, 2, "small", dim=384, n_parameters=22_056_576, cpu=4)
DINOV2_CARD = _sized(_v2_card, 2, "base", dim=768, n_parameters=86_580_480, cpu=4)
DINOV2_LARGE_CARD = _sized(_v2_card, 2, "large", dim=1024, n_parameters=304_368_640, cpu=2)
DINOV3_SMALL_CARD = _sized(_v3_card, 3, "small", dim=384, n_parameters=21_596_544, cpu=4)
DINOV3_CARD = _sized(_v3_card, 3, "base", dim=768, n_parameters=85_660_416, cpu=4)
DINOV3_LARGE_CARD = _sized(_v3_card, 3, "large", dim=1024, n_parameters=303_129_600, cpu=2)

CARDS: Mapping[str, PublishedCard] = {
    card.name: card
    for card in (
        DINOV2_SMALL_CARD,
        DINOV2_CARD,
        DINOV2_LARGE_CARD,
        DINOV3_SMALL_CARD,
        DINOV3_CARD,
        DINOV3_LARGE_CARD,
    )
}


def fit(card: EncoderCard, *, variant: str, weights: Path | None) -> EncoderCard:
    """Return the card with the dimension of a checkpoint, of which only names and shapes are read.

    Raises
    ------
    StorageError, FormatError
        The checkpoint cannot be read, or is another model's.
    """
    from encoders.model_folder import shape_of, tensor_shapes

    if weights is None:
        return card
    shapes = {key.removeprefix("dinov2."): shape for key, shape in tensor_shapes(weights, names=HF_WEIGHTS).items()}
    dim = shape_of(shapes, "embeddings.cls_token", n_sides=3, source=weights)[2]
    return card if dim == card.clip_dim else replace(card, clip_dim=dim, frame_dim=dim)


def load_v2(request: LoadRequest) -> FrameEncoder:
    """Load a DINOv2; raises as `embedstore.encoder.EncoderLoader`."""
    return _load(request, version=2)


def load_v3(request: LoadRequest) -> FrameEncoder:
    """Load a DINOv3; raises as `load_v2`."""
    return _load(request, version=3)


def _load(request: LoadRequest, *, version: int) -> FrameEncoder:
    from encoders.device import pick_device
    from encoders.dino_model import DinoSizes, Dinov2, Dinov3
    from encoders.model_folder import shapes_of_state
    from encoders.state_dict import filled

    spec = request.spec
    card = CARDS.get(spec.name, DINOV2_CARD if version == 2 else DINOV3_CARD)
    state, file, _ = card.open_weights(request)
    state = _respelled(state, _SPELLINGS_V2 if version == 2 else _SPELLINGS_V3, source=file)
    sizes = DinoSizes.read(shapes_of_state(state), version=version, source=file)
    check_dim(spec, dim=sizes.width, side=_SIDE, source=file)
    made = partial(Dinov2 if version == 2 else Dinov3, sizes, output=spec.preprocessing["output"])
    network = filled(made, state, source=file, may_miss=card.keys_may_miss)
    return FrameEncoder(network, spec=spec, device=pick_device(request.device), side=_SIDE)


def _respelled(state: Mapping[str, Any], spellings: Spellings, *, source: Path) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, tensor in state.items():
        spelled = respelled(str(key), spellings)
        if spelled in made:
            raise FormatError(f"checkpoint {source} has the tensor {spelled} twice, in two spellings")
        made[spelled] = tensor
    return made
