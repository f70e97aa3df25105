"""EchoPrime: a vector a window of 16 frames, its view classifier, and its text tower.

``--weights echoprime=PATH`` takes the folder ``model_data`` of the authors' release, or the file
``weights/echo_prime_encoder.pt`` in it; ``echoprime-view`` takes the same folder or ``weights/view_classifier.pt``.
Prompts need ``weights/echo_prime_text_encoder.pt`` of that folder and, beside it, the tokenizer's ``vocab.txt`` or
``tokenizer.json`` of microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract.

What is kept of the authors' way: grey levels 0 to 255 with a mean and deviation of their own, a tenth cut from every
side, cubic to 224x224, every second of the first 32 frames, and zeros *after* scaling where a clip is short. A still
image is repeated instead. This is their way with videos (red first). Their way with DICOM differs: it masks all
outside the ultrasound and hands the frames on blue first. That is not offered: clips are fed as videos here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.encoder import LoadRequest, TaskHead, Variant, resolve_string
from embedstore.spec import FrameSampling
from encoders.clip_encoder import ClipEncoder
from encoders.frame_encoder import FrameEncoder
from encoders.preprocess import CropAndScale
from encoders.published_card import PublishedCard, check_dim, pixel_record

if TYPE_CHECKING:
    import torch

__all__ = ["ECHOPRIME_CARD", "ECHOPRIME_VIEW_CARD", "VIEWS", "load", "load_view", "load_view_heads"]

_SIDE, _FRAMES, _DIM, _STEP_DIM, _VIEW_DIM = 224, 16, 512, 768, 1024
_ARCHIVE = "https://github.com/echonet/EchoPrime/releases/download/v1.0.0/model_data.zip"

# echonet/EchoPrime, echo_prime/model.py: of grey levels 0 to 255, in the order red, green, blue.
_MEAN = (29.110628, 28.076836, 29.096405)
_STD = (47.989223, 46.456997, 47.20083)
_STEPS = (CropAndScale(height=_SIDE, width=_SIDE, zoom=0.1, interpolation="cubic"),)

#: The classes of the view classifier, in the order of its outputs (echonet/EchoPrime, assets and utils).
VIEWS = (
    "A2C",
    "A3C",
    "A4C",
    "A5C",
    "Apical_Doppler",
    "Doppler_Parasternal_Long",
    "Doppler_Parasternal_Short",
    "Parasternal_Long",
    "Parasternal_Short",
    "SSN",
    "Subcostal",
)

_LICENCE = "Cedars-Sinai academic software licence (the LICENSE file; the authors' README says MIT)"
_FORBIDS = "commercial use, and passing the weights on, by the LICENSE file"
_PAPER = (
    "Vukadinovic et al., EchoPrime: A Multi-Video View-Informed Vision-Language Model for Comprehensive "
    "Echocardiography Interpretation, arXiv:2410.09704"
)


def _names(file: str) -> tuple[str, ...]:
    """Where a file of the release lies in a folder that was given: ``model_data``, the one above, or its own."""
    return (f"weights/{file}", f"model_data/weights/{file}", file)


# What decides a prompt's vector beside the weights of the video encoder.
_TEXT_FILES = ("echo_prime_text_encoder.pt", "vocab.txt", "tokenizer.json", "tokenizer_config.json")

ECHOPRIME_CARD = PublishedCard(
    name="echoprime",
    summary="EchoPrime: an MViT v2 of 16 frames, trained on 12 million videos with their reports.",
    unit="clip",
    clip_dim=_DIM,
    frame_dim=_STEP_DIM,
    pooling="mean",
    loader="encoders.echoprime:load",
    text_loader="encoders.echoprime_text:load",
    text_tower="BiomedBERT, 512 tokens; word pieces from vocab.txt or tokenizer.json beside its weights",
    text_files=tuple(name for file in _TEXT_FILES for name in _names(file)),
    preprocessing=pixel_record(
        _STEPS, mean=_MEAN, std=_STD, vectors="raw", scale=1, frames="mean-of-tokens-after-last-norm"
    ),
    input_size=(3, _FRAMES, _SIDE, _SIDE),
    variants={
        "published": Variant(
            sampling=FrameSampling("stride:2x16", padding="zero"),
            note="every second of the first 32 frames; zeros after scaling where a clip is short, a still repeated; "
            "central square, 10 % zoom, cubic to 224x224",
        ),
        "cardiobench": Variant(
            sampling=FrameSampling("consecutive:16", padding="zero"),
            note="the CardioBench benchmark's frames: the first 16; its crop, zoom and kernel are the authors' own; "
            "its released code has no loader of this model",
        ),
        "stride2": Variant(
            sampling=FrameSampling("stride:2x16", padding="repeat-last"),
            note="as published, but a short clip ends with its last frame repeated, not with zeros",
        ),
        "uniform16": Variant(
            sampling=FrameSampling("uniform:16", padding="zero"),
            note="as published, but 16 frames spread evenly over the clip",
        ),
        "palindrome": Variant(
            sampling=FrameSampling("stride:2x16", padding="palindrome"),
            note="as published, but a short clip runs back and forth, for half sequences from one phase to the other",
        ),
    },
    weights_names=_names("echo_prime_encoder.pt"),
    weights_url=_ARCHIVE,
    weights_member="model_data/weights/echo_prime_encoder.pt",
    weights_sha256="7ca32e8bfde248bd6d8c7e46fdb7440385169af4dc2f416b5de840bdc2e64f3b",
    weights_bytes=138_642_379,
    n_parameters=34_623_872,
    layout="a bare state dict of 397 keys, torchvision's mvit_v2_s with a last layer of 512; none is dropped",
    left_open="clips are fed as the authors feed videos, red first; their DICOM path masks what lies outside the "
    "ultrasound and feeds blue first, which is not offered; SHA-256 and size are as a third party reports the file, "
    "and its path inside the archive is as the authors' code opens it",
    licence=_LICENCE,
    licence_forbids=_FORBIDS,
    paper=_PAPER,
    weights_source=f"{_ARCHIVE}, weights/echo_prime_encoder.pt",
    pretraining_data=("cedars-sinai-echo",),
    batch_size={"cpu": 2, "cuda": 32},
)

ECHOPRIME_VIEW_CARD = PublishedCard(
    name="echoprime-view",
    summary="EchoPrime's view classifier: a ConvNeXt of single frames, with its last layer kept apart as a head.",
    unit="frame",
    clip_dim=_VIEW_DIM,
    frame_dim=_VIEW_DIM,
    pooling="mean",
    loader="encoders.echoprime:load_view",
    heads_loader="encoders.echoprime:load_view_heads",
    preprocessing=pixel_record(_STEPS, mean=_MEAN, std=_STD, vectors="raw", scale=1),
    input_size=(3, _SIDE, _SIDE),
    variants={
        "published": Variant(
            sampling=FrameSampling("consecutive:1"),
            note="the first frame, prepared as EchoPrime prepares a clip",
        ),
        "uniform16": Variant(
            sampling=FrameSampling("uniform:16"), note="16 frames spread evenly over the clip, averaged"
        ),
    },
    weights_names=(*_names("view_classifier.pt"), *_names("view_classifier.ckpt")),
    weights_url=_ARCHIVE,
    weights_member="model_data/weights/view_classifier.pt",
    n_parameters=87_577_739,
    layout="a bare state dict of 344 keys, torchvision's convnext_base with a last layer of 11; that layer is stored "
    "as a head, a softmax over the views",
    left_open="the authors show it the first frame of a clip only; its path inside the archive is as their code "
    "opens it",
    licence=_LICENCE,
    licence_forbids=_FORBIDS,
    paper=_PAPER,
    weights_source=f"{_ARCHIVE}, weights/view_classifier.pt",
    pretraining_data=("cedars-sinai-echo",),
    batch_size={"cpu": 4, "cuda": 256},
)


def _model(name: str) -> Any:
    return resolve_string(f"encoders.echoprime_model:{name}", needed_by="echoprime")


def _filled(card: PublishedCard, request: LoadRequest) -> tuple[torch.nn.Module, Path]:
    """Build the network of a card and fill it from the request's file, every key accounted for."""
    from encoders.state_dict import filled

    state, file, _ = card.open_weights(request)
    if card is ECHOPRIME_CARD:
        made = partial(_model("video_network"), dim=_DIM)
    else:
        made = partial(_model("view_network"), n_views=len(VIEWS))
    return filled(made, state, source=file), file


def load(request: LoadRequest) -> ClipEncoder:
    """Load the video encoder; raises as `embedstore.encoder.EncoderLoader`."""
    from encoders.device import pick_device

    network, _ = _filled(ECHOPRIME_CARD, request)
    return ClipEncoder(
        _model("VideoTower")(network),
        spec=request.spec,
        device=pick_device(request.device),
        n_frames=_FRAMES,
        side=_SIDE,
    )


def load_view(request: LoadRequest) -> FrameEncoder:
    """Load the view classifier without its last layer; raises as `load`."""
    from encoders.device import pick_device

    network, file = _filled(ECHOPRIME_VIEW_CARD, request)
    check_dim(request.spec, dim=_VIEW_DIM, side=_SIDE, source=file)
    trunk = _model("view_trunk")(network)
    return FrameEncoder(trunk, spec=request.spec, device=pick_device(request.device), side=_SIDE, channels_last=True)


def load_view_heads(request: LoadRequest) -> list[TaskHead]:
    """Load the last layer of the view classifier, a softmax over the 11 `VIEWS`; raises as `load`."""
    network: Any = _filled(ECHOPRIME_VIEW_CARD, request)[0]
    last = network.classifier[-1]
    return [
        TaskHead(
            task="view",
            weight=last.weight.detach().float().numpy().copy(),
            bias=last.bias.detach().float().numpy().copy(),
            activation="softmax",
            outputs=VIEWS,
        )
    ]
