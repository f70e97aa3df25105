"""SigLIP 2 at fixed resolution, and MedSigLIP.

``--weights NAME=PATH`` takes ``model.safetensors``, or a folder with it, ``config.json`` and, for prompts, the files
of the tokenizer: what the hub holds. Other sizes of SigLIP 2 than the named ones work too: dimension and side of the
image are those of the checkpoint. NaFlex checkpoints are another model and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from embedstore.encoder import EncoderCard, LoadRequest, Variant
from embedstore.spec import FrameSampling
from encoders.frame_encoder import FrameEncoder
from encoders.hub import HF_WEIGHTS
from encoders.preprocess import step_record
from encoders.published_card import PublishedCard, cardiobench_variant, check_dim, pixel_record
from encoders.resampling import PillowResize, TensorflowResize

__all__ = ["MEDSIGLIP_CARD", "SIGLIP2_CARD", "SIGLIP2_SO400M_CARD", "fit", "load"]

_HALF = (0.5, 0.5, 0.5)  # preprocessor_config.json of all SigLIP models: image_mean, image_std
_UNIFORM = FrameSampling("uniform:16")
# Buffers that older releases of transformers stored.
_POSITION_IDS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


def _steps(name: str, side: int) -> list[Any]:
    if name == "medsiglip":
        return [TensorflowResize(height=side, width=side)]
    return [PillowResize(height=side, width=side, kernel="bilinear")]


def _numbers(name: str, *, dim: int, side: int) -> dict[str, Any]:
    """Return the fields of a card that follow the size of the model."""
    variants = {"cardiobench": cardiobench_variant(_steps(name, side))}
    squeezed = f"the whole frame squeezed to {side}x{side}; the model knows no clips, 16 frames are spread over one"
    if name == "medsiglip":
        pillow = {"steps": [step_record(PillowResize(height=side, width=side, kernel="bilinear"))]}
        variants["pillow"] = Variant(
            sampling=_UNIFORM, preprocessing=pillow, note="Pillow's filter, as the image processor of transformers"
        )
        squeezed += "; resized as in its authors' evaluation (TensorFlow, no filter before shrinking)"
    else:
        squeezed += " (Pillow bilinear)"
    return {
        "clip_dim": dim,
        "frame_dim": dim,
        "input_size": (3, side, side),
        "preprocessing": pixel_record(_steps(name, side), mean=_HALF, std=_HALF, vectors="l2"),
        "variants": {"published": Variant(sampling=_UNIFORM, note=squeezed), **variants},
    }


_card = partial(
    PublishedCard,
    unit="frame",
    loader="encoders.siglip:load",
    fitter="encoders.siglip:fit",
    text_loader="encoders.siglip_text:load",
    text_files=("tokenizer.json", "tokenizer_config.json", "spiece.model"),
    weights_fetcher="encoders.hub:fetch",
    weights_names=HF_WEIGHTS,
    settings_names=("config.json",),
    keys_may_ignore=_POSITION_IDS,
)
_siglip2_card = partial(
    _card,
    licence="Apache-2.0",
    paper="Tschannen et al., SigLIP 2: Multilingual Vision-Language Encoders with Improved Semantic Understanding, "
    "Localization, and Dense Features, arXiv:2502.14786",
    pretraining_data=("webli",),
)

SIGLIP2_CARD = _siglip2_card(
    name="siglip2",
    summary="SigLIP 2, ViT-B/16 at 224 pixels, trained on images and texts of the web.",
    **_numbers("siglip2", dim=768, side=224),
    weights_locator="encoders.hub:locate_siglip2",
    n_parameters=375_187_970,
    weights_source="https://huggingface.co/google/siglip2-base-patch16-224",
    text_tower="transformer, 768-d, Gemma's tokenizer (tokenizer.json beside the weights) after lower-casing, 64 "
    "tokens",
    batch_size={"cpu": 4, "cuda": 256},
)

SIGLIP2_SO400M_CARD = _siglip2_card(
    name="siglip2-so400m",
    summary="SigLIP 2, the shape-optimised ViT of 400 million parameters, patches of 14, at 384 pixels.",
    **_numbers("siglip2-so400m", dim=1152, side=384),
    weights_locator="encoders.hub:locate_siglip2_so400m",
    n_parameters=1_136_008_498,
    weights_source="https://huggingface.co/google/siglip2-so400m-patch14-384",
    text_tower="transformer, 1152-d, Gemma's tokenizer (tokenizer.json beside the weights) after lower-casing, 64 "
    "tokens",
    batch_size={"cpu": 1, "cuda": 128},
)

MEDSIGLIP_CARD = _card(
    name="medsiglip",
    summary="MedSigLIP: SigLIP so400m at 448 pixels, trained on radiographs, CT, MR, skin, eyes and tissue, no echo.",
    **_numbers("medsiglip", dim=1152, side=448),
    weights_locator="encoders.hub:locate_medsiglip",
    n_parameters=878_300_338,
    licence="Health AI Developer Foundations terms of use",
    licence_forbids="uses that its prohibited use policy names; passing it on without the terms; gated",
    paper="Sellergren et al., MedGemma Technical Report, arXiv:2507.05201",
    weights_source="https://huggingface.co/google/medsiglip-448 (gated)",
    text_tower="transformer, 1152-d, SigLIP's sentencepiece (spiece.model or tokenizer.json beside the weights) "
    "after lower-casing and removing punctuation, 64 tokens",
    pretraining_data=("webli", "medsiglip-medical"),
    batch_size={"cpu": 1, "cuda": 128},
)

CARDS: Mapping[str, PublishedCard] = {card.name: card for card in (SIGLIP2_CARD, SIGLIP2_SO400M_CARD, MEDSIGLIP_CARD)}


def fit(card: EncoderCard, *, variant: str, weights: Path | None) -> EncoderCard:
    """Return the card with dimension and image side of a checkpoint, of which only names and shapes are read.

    Raises
    ------
    StorageError, FormatError
        The checkpoint cannot be read, or is another model's.
    """
    from encoders.model_folder import read_settings, shape_of, tensor_shapes

    if weights is None:
        return card
    shapes = tensor_shapes(weights, names=HF_WEIGHTS)
    kernel = shape_of(shapes, "vision_model.embeddings.patch_embedding.weight", n_sides=4, source=weights)
    count = shape_of(shapes, "vision_model.embeddings.position_embedding.weight", n_sides=2, source=weights)[0]
    side = _side(
        read_settings(weights, "config.json"), patch=kernel[2], grid=round(count**0.5), usual=card.input_size[1]
    )
    if (kernel[0], side) == (card.clip_dim, card.input_size[1]):
        return card
    return replace(card, **_numbers(card.name, dim=kernel[0], side=side))


def _side(settings: Mapping[str, Any] | None, *, patch: int, grid: int, usual: int) -> int:
    """Return the image side that is stated, or usual, where it has this grid of patches; else the grid's."""
    stated = ((settings or {}).get("vision_config") or {}).get("image_size", usual)
    return next((side for side in (stated, usual) if isinstance(side, int) and side // patch == grid), grid * patch)


@dataclass(frozen=True)
class LoadedTowers:
    """Both towers of a SigLIP, one of them filled, their sizes, and where they came from."""

    towers: Any
    sizes: Any
    side: int
    file: Path
    path: Path


def load_towers(request: LoadRequest, *, tower: str | tuple[str, ...]) -> LoadedTowers:
    """Build both towers, check every key of the checkpoint, and fill those that begin with ``tower``."""
    from encoders.model_folder import read_settings, shapes_of_state
    from encoders.siglip_model import SiglipSizes, SiglipTowers
    from encoders.state_dict import filled

    card = CARDS.get(request.spec.name, SIGLIP2_CARD)
    state, file, path = card.open_weights(request)
    settings = read_settings(path, "config.json")
    sizes = SiglipSizes.read(shapes_of_state(state), settings, source=file)
    towers = filled(partial(SiglipTowers, sizes), state, source=file, may_ignore=card.keys_may_ignore, only=tower)
    side = _side(settings, patch=sizes.patch, grid=sizes.grid, usual=card.input_size[1])
    return LoadedTowers(towers=towers, sizes=sizes, side=side, file=file, path=path)


def load(request: LoadRequest) -> FrameEncoder:
    """Load the image tower; the text tower's tensors are checked too and then left aside.

    Raises as `embedstore.encoder.EncoderLoader`.
    """
    from encoders.device import pick_device

    loaded = load_towers(request, tower="vision_model.")
    check_dim(request.spec, dim=loaded.sizes.vision.width, side=loaded.side, source=loaded.file)
    return FrameEncoder(
        loaded.towers.vision_model, spec=request.spec, device=pick_device(request.device), side=loaded.side
    )
