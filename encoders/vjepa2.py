"""V-JEPA 2: ViT-L/16 trained on videos of the world to predict what is hidden; a vector a window of 64 or 16 frames.

``--weights vjepa2=PATH`` takes ``model.safetensors`` or a folder with it: what the hub holds. Other sizes of the
model follow their tensors, and the size of their frames their ``config.json``. The vector is the mean token of a
window; steps are the mean tokens of its times, 2 frames each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from embedstore.encoder import EncoderCard, LoadRequest, Variant
from embedstore.errors import FormatError
from embedstore.spec import FrameSampling
from encoders.checkpoint_keys import weights_and_biases
from encoders.clip_encoder import ClipEncoder
from encoders.hub import HF_WEIGHTS
from encoders.preprocess import CentreCrop
from encoders.published_card import IMAGENET_MEAN, IMAGENET_STD, PublishedCard, check_dim, pixel_record, video_sizes
from encoders.resampling import PillowResizeShortSide
from encoders.window_variants import benchmark_windows, window_of

__all__ = ["VJEPA2_CARD", "fit", "load"]

_SIDE, _FRAMES, _DIM = 256, 64, 1024
_PATCH = 16
_PREFIX = "encoder."


#: The parts of a block, 16 keys.
_BLOCK = ("norm[12]", "attention.query", "attention.key", "attention.value", "attention.proj", "mlp.fc[12]")

_PREDICTOR = (
    "predictor.embeddings.mask_tokens",
    "predictor.embeddings.predictor_embeddings.weight",
    "predictor.embeddings.predictor_embeddings.bias",
    *weights_and_biases("predictor.layer.*", _BLOCK),
    "predictor.layernorm.weight",
    "predictor.layernorm.bias",
    "predictor.proj.weight",
    "predictor.proj.bias",
)


def _preprocessing(side: int) -> dict[str, Any]:
    # video_processing_vjepa2.py of transformers: shorter side int(crop * 256 / 224), bilinear with a filter, which
    # equals Pillow's on whole levels; then the central square.
    return pixel_record(
        (PillowResizeShortSide(size=side * 256 // 224, kernel="bilinear"), CentreCrop(height=side, width=side)),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        vectors="raw",
        output="token-mean",
    )


def _variants(side: int, n_frames: int) -> Mapping[str, Variant]:
    def sixteen(rule: str, note: str) -> Variant:
        return Variant(FrameSampling(rule, padding="repeat-last"), note=f"{note}: a fourth of the frames and tokens")

    return {
        "published": Variant(
            FrameSampling(f"consecutive:{n_frames}", padding="repeat-last"),
            note=f"the first {n_frames} frames, a short clip's last one repeated; shorter side {side * 256 // 224} "
            f"(bilinear), central {side}x{side}",
        ),
        "frames16": sixteen("consecutive:16", "the first 16 frames"),
        "stride2": sixteen("stride:2x16", "16 frames, every second one from the first"),
        "uniform16": sixteen("uniform:16", "16 frames spread over the clip"),
        "palindrome": Variant(
            FrameSampling(f"consecutive:{n_frames}", padding="palindrome"),
            note=f"the first {n_frames} frames; a short clip runs forwards and backwards until the window is full",
        ),
        **benchmark_windows(side=side),
    }


VJEPA2_CARD = PublishedCard(
    name="vjepa2",
    summary="V-JEPA 2, ViT-L/16, trained on videos of the world to predict what is hidden.",
    **video_sizes(dim=_DIM, n_frames=_FRAMES, side=_SIDE),
    pooling="mean",
    loader="encoders.vjepa2:load",
    fitter="encoders.vjepa2:fit",
    preprocessing=_preprocessing(_SIDE),
    variants=_variants(_SIDE, _FRAMES),
    weights_locator="encoders.hub:locate_vjepa2",
    weights_fetcher="encoders.hub:fetch",
    weights_names=HF_WEIGHTS,
    settings_names=("config.json",),
    weights_source="https://huggingface.co/facebook/vjepa2-vitl-fpc64-256",
    n_parameters=303_885_312,
    keys_may_ignore=_PREDICTOR,
    layout="a state dict of transformers' VJEPA2Model: 587 keys, 325,971,328 numbers, 388 keys of them the encoder's "
    "under encoder.; the predictor's are dropped",
    left_open="no rule says which 64 frames of a longer clip are seen, here the first; the authors train attentive "
    "probes on all tokens, the mean of the tokens is the common way to keep them",
    licence="MIT (parts Apache-2.0)",
    paper="Assran et al., V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning, "
    "arXiv:2506.09985",
    pretraining_data=("videomix22m",),
    batch_size={"cpu": 1, "cuda": 8},
)


def fit(card: EncoderCard, *, variant: str, weights: Path | None) -> EncoderCard:
    """Return the card with the dimension of a checkpoint's tensors and the sizes of its config.json.

    Raises
    ------
    StorageError, FormatError
        The checkpoint cannot be read, or is another model's.
    """
    from encoders.model_folder import read_settings, shape_of, tensor_shapes

    if weights is None:
        return card
    shapes = {key.removeprefix(_PREFIX): shape for key, shape in tensor_shapes(weights, names=HF_WEIGHTS).items()}
    dim = shape_of(shapes, "embeddings.patch_embeddings.proj.weight", n_sides=5, source=weights)[0]
    settings = read_settings(weights, "config.json") or {}
    side, n_frames = settings.get("crop_size", _SIDE), settings.get("frames_per_clip", _FRAMES)
    if not _is_size(side, of=_PATCH) or not _is_size(n_frames, of=2):
        raise FormatError(
            f"{weights}/config.json has crop_size {side!r} and frames_per_clip {n_frames!r}; they must be numbers of "
            f"pixels and frames, multiples of {_PATCH} and 2"
        )
    if (dim, side, n_frames) == (_DIM, _SIDE, _FRAMES):
        return card
    return replace(
        card,
        **video_sizes(dim=dim, n_frames=n_frames, side=side),
        preprocessing=_preprocessing(side),
        variants=_variants(side, n_frames),
    )


def _is_size(number: Any, *, of: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 < number <= 4096 and number % of == 0


def load(request: LoadRequest) -> ClipEncoder:
    """Load a V-JEPA 2; raises as `embedstore.encoder.EncoderLoader`."""
    from encoders.device import pick_device
    from encoders.model_folder import shapes_of_state
    from encoders.state_dict import filled
    from encoders.vjepa2_model import Vjepa2, Vjepa2Sizes

    spec = request.spec
    n_frames, side = window_of(spec)
    opened, file, _ = VJEPA2_CARD.open_weights(request)
    state = {key.removeprefix(_PREFIX): tensor for key, tensor in opened.items()}
    sizes = Vjepa2Sizes.read(shapes_of_state(state), source=file)
    check_dim(spec, dim=sizes.width, side=side, source=file)
    network = filled(
        partial(Vjepa2, sizes, output=spec.preprocessing["output"]),
        state,
        source=file,
        may_ignore=VJEPA2_CARD.keys_may_ignore,
        spelled=_in_file,
    )
    return ClipEncoder(network, spec=spec, device=pick_device(request.device), n_frames=n_frames, side=side)


def _in_file(key: str) -> str:
    return f"{_PREFIX}{key}"
