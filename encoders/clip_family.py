"""CLIP and its descendants: `echo-clip`, `echo-clip-r`, `biomedclip`, and `clip` with any architecture of open_clip.

``--weights NAME=PATH`` takes a checkpoint file, or a folder with ``open_clip_config.json`` and
``open_clip_model.safetensors`` or ``open_clip_pytorch_model.bin``: what open_clip stores on the hub.

`clip` is the OpenAI model ViT-B-32. Any other pair of architecture and pretrained weights is ``clip@ARCHITECTURE`` (a
name of open_clip in lower case, e.g. ``clip@vit-l-14-quickgelu``) with ``--weights clip=PATH``: the variant names the
architecture, the path brings the weights. A folder's ``open_clip_config.json`` is believed where there is one, its
mean, standard deviation and resizing too. OpenAI's and MetaCLIP's weights need the ``-quickgelu`` architectures; with
the plain ones the keys fit, but the numbers are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from embedstore.encoder import EncoderCard, LoadRequest, Variant
from embedstore.errors import FormatError, UnknownNameError, did_you_mean
from embedstore.spec import FrameSampling
from encoders.clip_towers import (
    CLIP_MEAN,
    CLIP_STD,
    SETTINGS_FILE,
    ClipPixels,
    architecture,
    architecture_names,
    build_towers,
    sequence_first,
    settings_of,
)
from encoders.frame_encoder import FrameEncoder
from encoders.hub import OPEN_CLIP_WEIGHTS
from encoders.preprocess import CentreCrop, CropAndScale, step_record
from encoders.published_card import CARDIOBENCH_SAMPLING, PublishedCard, cardiobench_variant, check_dim, pixel_record
from encoders.resampling import BgrOrder, PillowResize, PillowResizeShortSide

__all__ = [
    "BIOMEDCLIP_CARD",
    "CLIP_CARD",
    "CLIP_VIT_B_16_CARD",
    "CLIP_VIT_L_14_CARD",
    "ECHO_CLIP_CARD",
    "ECHO_CLIP_R_CARD",
]
__all__ += ["fit", "load"]

_SIDE = 224
_CEDARS = "Cedars-Sinai academic software licence"
_CEDARS_FORBIDS = "commercial use, and passing the weights on"
_POSITION_IDS = ("text.transformer.embeddings.position_ids",)

# microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224, open_clip_config.json, model_cfg.
_BIOMEDCLIP: Mapping[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": _SIDE,
    },
    "text_cfg": {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "pooler_type": "cls_last_hidden_state_pooler",
        "proj": "mlp",
        "context_length": 256,
    },
}


def _own_steps(pixels: ClipPixels) -> list[Any]:
    """What open_clip's evaluation transform does to a Pillow image."""
    if pixels.mode == "squash":
        return [PillowResize(height=pixels.side, width=pixels.side, kernel=pixels.kernel)]
    return [
        PillowResizeShortSide(size=pixels.side, kernel=pixels.kernel),
        CentreCrop(height=pixels.side, width=pixels.side),
    ]


def _image_variants(pixels: ClipPixels) -> dict[str, Variant]:
    return {
        "published": Variant(
            sampling=FrameSampling("uniform:16"),
            note=f"its evaluation input for images: Pillow {pixels.kernel}, {pixels.mode} side {pixels.side}; "
            "the model knows no clips, 16 frames are spread over one",
        ),
        "cardiobench": cardiobench_variant(_own_steps(pixels)),
    }


def _image_record(pixels: ClipPixels, name: str) -> dict[str, Any]:
    return pixel_record(_own_steps(pixels), mean=pixels.mean, std=pixels.std, vectors="l2", architecture=name)


# The authors' crop already gives 224x224, at which open_clip's own Resize and CenterCrop do nothing.
_ECHO_CROP = CropAndScale(height=_SIDE, width=_SIDE, zoom=0.1, interpolation="cubic")
_FIRST_40 = FrameSampling("stride:2x20")
_RGB = {"steps": [step_record(_ECHO_CROP)], "channels": "rgb"}
_ECHO_CARDIOBENCH = Variant(
    sampling=CARDIOBENCH_SAMPLING,
    note="as in the CardioBench benchmark: the first 16 frames, prepared as published; the benchmark runs in bf16",
)
_echo_card = partial(
    PublishedCard,
    unit="frame",
    clip_dim=512,
    frame_dim=512,
    loader="encoders.clip_family:load",
    text_loader="encoders.clip_text:load",
    weights_fetcher="encoders.hub:fetch",
    weights_names=OPEN_CLIP_WEIGHTS,
    settings_names=(SETTINGS_FILE,),
    preprocessing=pixel_record(
        [_ECHO_CROP, BgrOrder()], mean=CLIP_MEAN, std=CLIP_STD, vectors="l2", architecture="convnext_base"
    ),
    input_size=(3, _SIDE, _SIDE),
    n_parameters=151_518_849,
    licence=_CEDARS,
    licence_forbids=_CEDARS_FORBIDS,
    paper="Christensen, Vukadinovic, Yuan and Ouyang, Vision-language foundation model for echocardiogram "
    "interpretation, Nature Medicine 30, 2024, arXiv:2308.15670",
    pretraining_data=("cedars-sinai-echo",),
    batch_size={"cpu": 4, "cuda": 256},
)

ECHO_CLIP_CARD = _echo_card(
    name="echo-clip",
    summary="EchoCLIP: ConvNeXt-Base and a text tower trained on a million echo clips and their reports.",
    variants={
        "published": Variant(
            sampling=_FIRST_40,
            note="as in the authors' zero-shot example: every second of the first 40 frames, blue first; they run "
            "it in bf16",
        ),
        "all-frames": Variant(
            sampling=FrameSampling("all"), note="every frame, as in the authors' retrieval example"
        ),
        "uniform16": Variant(sampling=FrameSampling("uniform:16"), note="16 frames spread over the clip"),
        "cardiobench": _ECHO_CARDIOBENCH,
        "rgb": Variant(sampling=_FIRST_40, preprocessing=_RGB, note="red first, which the model was not trained on"),
    },
    weights_locator="encoders.hub:locate_echo_clip",
    weights_source="https://huggingface.co/mkaichristensen/echo-clip (may ask for a login)",
    text_tower="CLIP transformer, 512-d, byte pairs of CLIP, 77 tokens; prompts in upper-case report style",
)

ECHO_CLIP_R_CARD = _echo_card(
    name="echo-clip-r",
    summary="EchoCLIP-R: EchoCLIP for retrieval, its reports cut into the phrases of a template vocabulary.",
    variants={
        "published": Variant(
            sampling=FrameSampling("all"),
            note="every frame, blue first, as in the authors' retrieval example; they run it in bf16",
        ),
        "first40": Variant(sampling=_FIRST_40, note="every second of the first 40 frames, as EchoCLIP's example"),
        "uniform16": Variant(sampling=FrameSampling("uniform:16"), note="16 frames spread over the clip"),
        "cardiobench": _ECHO_CARDIOBENCH,
        "rgb": Variant(
            sampling=FrameSampling("all"), preprocessing=_RGB, note="red first, which the model was not trained on"
        ),
    },
    weights_locator="encoders.hub:locate_echo_clip_r",
    weights_source="https://huggingface.co/mkaichristensen/echo-clip-r (may ask for a login)",
    text_files=("template_vocab.txt",),
    text_tower="CLIP transformer, 512-d, phrases and numbers of template_vocab.txt (beside the weights; from "
    "https://github.com/echonet/echo_CLIP), 77 tokens",
)

_image_card = partial(
    PublishedCard,
    unit="frame",
    loader="encoders.clip_family:load",
    text_loader="encoders.clip_text:load",
    text_files=("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    weights_fetcher="encoders.hub:fetch",
    weights_names=OPEN_CLIP_WEIGHTS,
    settings_names=(SETTINGS_FILE,),
    input_size=(3, _SIDE, _SIDE),
    variants=_image_variants(ClipPixels(side=_SIDE)),
    batch_size={"cpu": 4, "cuda": 256},
)

BIOMEDCLIP_CARD = _image_card(
    name="biomedclip",
    summary="BiomedCLIP: ViT-B/16 and PubMedBERT trained on 15 million figures of biomedical papers.",
    clip_dim=512,
    frame_dim=512,
    preprocessing=_image_record(ClipPixels(side=_SIDE), "biomedclip"),
    weights_locator="encoders.hub:locate_biomedclip",
    n_parameters=195_902_721,
    licence="MIT",
    paper="Zhang et al., BiomedCLIP: a multimodal biomedical foundation model pretrained from fifteen million "
    "scientific image-text pairs, arXiv:2303.00915",
    weights_source="https://huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    text_tower="PubMedBERT, 512-d, its WordPiece (tokenizer.json or vocab.txt beside the weights), 256 tokens; the "
    "authors' template is 'this is a photo of '",
    pretraining_data=("pmc-15m",),
    keys_may_ignore=_POSITION_IDS,
)

_openai_card = partial(
    _image_card,
    fitter="encoders.clip_family:fit",
    licence="MIT",
    paper="Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, "
    "arXiv:2103.00020",
    pretraining_data=("wit-400m",),
)

CLIP_CARD = _openai_card(
    name="clip",
    summary="CLIP of OpenAI, ViT-B/32; clip@ARCHITECTURE with --weights for any other model of open_clip.",
    clip_dim=512,
    frame_dim=512,
    preprocessing=_image_record(ClipPixels(side=_SIDE), "ViT-B-32-quickgelu"),
    weights_locator="encoders.hub:locate_clip",
    n_parameters=151_277_313,
    weights_source="https://huggingface.co/timm/vit_base_patch32_clip_224.openai",
    text_tower="CLIP transformer, 512-d, byte pairs of CLIP, 77 tokens",
)

CLIP_VIT_B_16_CARD = _openai_card(
    name="clip-vit-b-16",
    summary="CLIP of OpenAI, ViT-B/16.",
    clip_dim=512,
    frame_dim=512,
    preprocessing=_image_record(ClipPixels(side=_SIDE), "ViT-B-16-quickgelu"),
    weights_locator="encoders.hub:locate_clip_vit_b_16",
    n_parameters=149_620_737,
    weights_source="https://huggingface.co/timm/vit_base_patch16_clip_224.openai",
    text_tower="CLIP transformer, 512-d, byte pairs of CLIP, 77 tokens",
)

CLIP_VIT_L_14_CARD = _openai_card(
    name="clip-vit-l-14",
    summary="CLIP of OpenAI, ViT-L/14.",
    clip_dim=768,
    frame_dim=768,
    preprocessing=_image_record(ClipPixels(side=_SIDE), "ViT-L-14-quickgelu"),
    weights_locator="encoders.hub:locate_clip_vit_l_14",
    n_parameters=427_616_513,
    weights_source="https://huggingface.co/timm/vit_large_patch14_clip_224.openai",
    text_tower="CLIP transformer, 768-d, byte pairs of CLIP, 77 tokens",
)

CARDS: Mapping[str, PublishedCard] = {
    card.name: card
    for card in (
        ECHO_CLIP_CARD,
        ECHO_CLIP_R_CARD,
        BIOMEDCLIP_CARD,
        CLIP_CARD,
        CLIP_VIT_B_16_CARD,
        CLIP_VIT_L_14_CARD,
    )
}


def fit(card: EncoderCard, *, variant: str, weights: Path | None) -> EncoderCard:
    """Return a card of `clip` for an architecture named as variant and for a folder's ``open_clip_config.json``.

    Raises
    ------
    UnknownNameError
        The variant is neither one of the card nor an architecture of open_clip.
    FormatError
        The folder's settings cannot be followed.
    """
    named = variant not in card.variants
    if named and variant.lower() not in architecture_names():
        known = [*card.variants, *architecture_names()]
        raise UnknownNameError(f"encoder {card.name!r} has no variant {variant!r}{did_you_mean(variant, known)}")
    name = variant if named else str(card.preprocessing["architecture"])
    config, pixels = settings_of(weights, default=architecture(name))
    dim = config.get("embed_dim")
    if not isinstance(dim, int) or dim < 1:
        raise FormatError(f"the architecture of {weights or name} states no embed_dim")
    variants = _image_variants(pixels)
    if named:
        variants[variant] = replace(variants["published"], note=f"the architecture {name} of open_clip")
    return replace(
        card,
        clip_dim=dim,
        frame_dim=dim,
        input_size=(3, pixels.side, pixels.side),
        preprocessing=_image_record(pixels, name),
        variants=variants,
    )


def load(request: LoadRequest) -> FrameEncoder:
    """Load the image tower of a CLIP; the text tower's tensors are checked too and then left aside.

    Raises as `embedstore.encoder.EncoderLoader`.
    """
    from encoders.device import pick_device
    from encoders.rows import projected_row_by_row

    loaded = load_towers(request, tower="visual.")
    spec, pixels, source = request.spec, loaded.pixels, loaded.file
    check_dim(spec, dim=loaded.dim, side=pixels.side, source=source)
    stated = [[round(number, 6) for number in numbers] for numbers in (pixels.mean, pixels.std)]
    wanted = [[round(number, 6) for number in spec.preprocessing[key]] for key in ("mean", "std")]
    if stated != wanted:
        raise FormatError(
            f"{SETTINGS_FILE} beside {source} states mean and std {stated}, {spec.title} takes {wanted}; "
            "is it another model's?"
        )
    sequence_first(loaded.towers.visual)
    network = projected_row_by_row(loaded.towers.visual)
    return FrameEncoder(network, spec=spec, device=pick_device(request.device), side=pixels.side)


@dataclass(frozen=True)
class LoadedTowers:
    """Both towers of a CLIP, one of them filled; the file of its weights, and what the settings beside it say.

    Attributes
    ----------
    towers : torch.nn.Module
    dim : int
        Dimension of the vectors.
    file, path : Path
        The file of the weights, and the file or folder that was given or found.
    config : mapping
        As `encoders.clip_towers.architecture` returns it.
    pixels : ClipPixels
    """

    towers: Any
    dim: int
    file: Path
    path: Path
    config: Mapping[str, Any]
    pixels: ClipPixels


def load_towers(request: LoadRequest, *, tower: str | tuple[str, ...]) -> LoadedTowers:
    """Build both towers, check every key of the checkpoint, and fill those that begin with ``tower``."""
    from encoders.model_folder import shapes_of_state
    from encoders.state_dict import load_exactly

    card = CARDS.get(request.spec.name, CLIP_CARD)
    name = str(request.spec.preprocessing["architecture"])
    state, file, path = card.open_weights(request)
    default = _BIOMEDCLIP if name == "biomedclip" else architecture(name)
    config, pixels = settings_of(path, default=default)
    towers, dim = build_towers(config, shapes_of_state(state), source=file)
    load_exactly(towers, state, source=file, may_ignore=card.keys_may_ignore, only=tower)
    return LoadedTowers(towers=towers, dim=dim, file=file, path=path, config=config, pixels=pixels)
