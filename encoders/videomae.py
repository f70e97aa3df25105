"""VideoMAE, trained on videos of the world, and Echo-Vision-FM, which goes on from it with echocardiograms.

A window is 16 frames. ``--weights videomae=PATH`` takes what the hub holds (``model.safetensors``,
``pytorch_model.bin``, or a folder with one of them) and the authors' own ``.pth``; other sizes of the model follow
their tensors. ``--weights echo-vision-fm=FILE`` takes the state dict of the authors' release. Of VideoMAE the vector
is the mean of the 1568 tokens, of Echo-Vision-FM the largest number in each dimension over them; steps are the mean
tokens of the 8 times, 2 frames each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from embedstore.encoder import EncoderCard, LoadRequest, Variant
from embedstore.spec import FrameSampling
from encoders.clip_encoder import ClipEncoder
from encoders.hub import HF_WEIGHTS
from encoders.preprocess import CentreCrop
from encoders.published_card import IMAGENET_MEAN, IMAGENET_STD, PublishedCard, check_dim, pixel_record, video_sizes
from encoders.resampling import PillowResize, PillowResizeShortSide
from encoders.videomae_keys import AUTHORS_DECODER, HF_DECODER
from encoders.window_variants import benchmark_windows, window_variants

__all__ = ["ECHO_VISION_FM_CARD", "VIDEOMAE_CARD", "fit", "load", "load_echo_vision_fm"]

_SIDE, _FRAMES, _DIM = 224, 16, 768
_FILES = (*HF_WEIGHTS, "checkpoint.pth")
_ECHO_FILES = ("pytorch_model.bin", "model.safetensors")
# Of all norms: VideoMAEConfig of transformers, and modeling_pretrain.py of MCG-NJU/VideoMAE.
_HF_EPSILON, _AUTHORS_EPSILON = 1e-12, 1e-6

_VIDEOMAE_VARIANTS = window_variants(
    Variant(
        FrameSampling(f"stride:4x{_FRAMES}", padding="repeat-last"),
        note="16 frames, every fourth one from the first, as on Kinetics-400; shorter side 224 (bilinear), central "
        "224x224",
    ),
    n_frames=_FRAMES,
    padding="repeat-last",
)
_ECHO_VARIANTS = window_variants(
    Variant(
        FrameSampling(f"linspace:{_FRAMES}", padding="repeat-last"),
        note="16 frames spread over the clip, squeezed to 224x224; the largest number in each dimension over all "
        "tokens",
    ),
    n_frames=_FRAMES,
    padding="repeat-last",
)

VIDEOMAE_CARD = PublishedCard(
    name="videomae",
    summary="VideoMAE, ViT-B/16, a masked autoencoder of videos of the world.",
    **video_sizes(dim=_DIM, n_frames=_FRAMES, side=_SIDE),
    pooling="mean",
    loader="encoders.videomae:load",
    fitter="encoders.videomae:fit",
    preprocessing=pixel_record(
        (PillowResizeShortSide(size=_SIDE, kernel="bilinear"), CentreCrop(height=_SIDE, width=_SIDE)),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        vectors="raw",
        output="token-mean",
    ),
    variants={**_VIDEOMAE_VARIANTS, **benchmark_windows(side=_SIDE)},
    weights_locator="encoders.hub:locate_videomae",
    weights_fetcher="encoders.hub:fetch",
    weights_names=_FILES,
    settings_names=("config.json",),
    weights_source="https://huggingface.co/MCG-NJU/videomae-base",
    n_parameters=86_225_664,
    keys_may_miss=("layernorm.weight", "layernorm.bias"),
    keys_may_ignore=tuple(dict.fromkeys((*HF_DECODER, *AUTHORS_DECODER))),
    layout="a state dict of transformers (VideoMAEModel: 182 keys; or these under videomae. with the decoder beside "
    'them), or the authors\' {"model": state dict} with fused queries, keys and values; the last norm is run where '
    "the file has it (2 keys and 1,536 numbers more), the decoder is dropped",
    left_open="the authors publish no vector of an unlabelled clip: the mean token is what their classifier "
    "averages; their test takes four windows more and two crops more of each; a .pth of theirs that holds its "
    "command line too opens with --trust-checkpoint only",
    licence="CC BY-NC 4.0",
    licence_forbids="commercial use",
    paper="Tong et al., VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video "
    "Pre-Training, NeurIPS 2022, arXiv:2203.12602",
    pretraining_data=("kinetics-400",),
    batch_size={"cpu": 1, "cuda": 32},
)

ECHO_VISION_FM_CARD = PublishedCard(
    name="echo-vision-fm",
    summary="Echo-Vision-FM, a VideoMAE (ViT-B/16) trained further on echocardiograms; without its STFF net.",
    **video_sizes(dim=_DIM, n_frames=_FRAMES, side=_SIDE),
    pooling="mean",
    loader="encoders.videomae:load_echo_vision_fm",
    preprocessing=pixel_record(
        (PillowResize(height=_SIDE, width=_SIDE, kernel="bilinear"),),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        vectors="raw",
        output="token-max",
    ),
    variants={
        **{title: variant for title, variant in _ECHO_VARIANTS.items() if title != "uniform16"},
        "token-mean": replace(
            _ECHO_VARIANTS["published"], preprocessing={"output": "token-mean"}, note="the mean of all tokens"
        ),
        **benchmark_windows(side=_SIDE),
    },
    weights_locator="encoders.hub:locate_nothing",
    weights_names=_ECHO_FILES,
    weights_source="release v1 of https://github.com/ZiyangZhang0511/Echo-Vison-FM",
    n_parameters=86_225_664,
    keys_may_ignore=HF_DECODER,
    layout="a state dict of transformers' VideoMAEForPreTraining(VideoMAEConfig()): 248 keys, 94,209,408 numbers, "
    "182 keys of them the encoder's under videomae. and without a last norm; the decoder is dropped",
    left_open="pixels are grey levels over 255 without mean and deviation, as the authors' data sets make them; "
    "their STFF net, which joins tokens over space and time, is trained for each task and not part of the encoder",
    licence="none stated in the repository",
    licence_forbids="without a licence the authors' permission is needed",
    paper="Zhang et al., Echo-Vision-FM: A Pre-training and Fine-tuning Framework for Echocardiogram Video Vision "
    "Foundation Model, medRxiv 2024",
    pretraining_data=("mimic-iv-echo", "kinetics-400"),
    batch_size={"cpu": 1, "cuda": 32},
)


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
    shapes = tensor_shapes(weights, names=_FILES)
    spellings = (
        "videomae.embeddings.patch_embeddings.projection.weight",
        "encoder.patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.weight",
    )
    key = next((spelling for spelling in spellings if spelling in shapes), spellings[0])
    dim = shape_of(shapes, key, n_sides=5, source=weights)[0]
    return card if dim == card.clip_dim else replace(card, clip_dim=dim, frame_dim=dim)


def load(request: LoadRequest) -> ClipEncoder:
    """Load a VideoMAE; raises as `embedstore.encoder.EncoderLoader`."""
    return _load(request, card=VIDEOMAE_CARD)


def load_echo_vision_fm(request: LoadRequest) -> ClipEncoder:
    """Load Echo-Vision-FM; raises as `load`."""
    return _load(request, card=ECHO_VISION_FM_CARD)


def _load(request: LoadRequest, *, card: PublishedCard) -> ClipEncoder:
    from encoders.device import pick_device
    from encoders.model_folder import read_settings, shapes_of_state
    from encoders.state_dict import filled
    from encoders.videomae_keys import authors_spelling, from_authors, from_hub, is_authors
    from encoders.videomae_model import VideoMae, VideoMaeSizes

    spec = request.spec
    opened, file, path = card.open_weights(request)
    epsilon, decoder = _HF_EPSILON, HF_DECODER
    state: dict[str, Any]
    spelled: Callable[[str], str]
    if card is VIDEOMAE_CARD and is_authors(opened):
        state, spelled = from_authors(opened, source=file), authors_spelling
        epsilon, decoder = _AUTHORS_EPSILON, AUTHORS_DECODER
    else:
        state, spelled = from_hub(opened, source=file)
        epsilon = float((read_settings(path, "config.json") or {}).get("layer_norm_eps", epsilon))
    sizes = VideoMaeSizes.read(shapes_of_state(state), source=file)
    if card is ECHO_VISION_FM_CARD:
        sizes = replace(sizes, has_norm=False)
    check_dim(spec, dim=sizes.width, side=_SIDE, source=file)
    made = partial(VideoMae, sizes, epsilon=epsilon, output=spec.preprocessing["output"])
    network = filled(made, state, source=file, may_ignore=decoder, spelled=spelled)
    return ClipEncoder(network, spec=spec, device=pick_device(request.device), n_frames=_FRAMES, side=_SIDE)
