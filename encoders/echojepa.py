"""EchoJEPA-L: V-JEPA 2 trained on echocardiograms, ViT-L/16; a vector a window of 16 frames.

``--weights echojepa=FILE`` takes a training checkpoint of the authors, of which the target encoder is read. The
vector is the mean of the 1568 tokens of a window; steps are the mean tokens of its 8 times, 2 frames each.
"""

from __future__ import annotations

from functools import partial

from embedstore.encoder import LoadRequest, Variant
from embedstore.spec import FrameSampling
from encoders.clip_encoder import ClipEncoder
from encoders.preprocess import CentreCrop, ResizeShortSide
from encoders.published_card import IMAGENET_MEAN, IMAGENET_STD, PublishedCard, check_dim, pixel_record, video_sizes
from encoders.window_variants import benchmark_windows, window_variants

__all__ = ["ECHOJEPA_CARD", "load"]

_SIDE, _FRAMES, _DIM = 224, 16, 1024
_SHORT_SIDE = _SIDE * 256 // 224  # of the evaluation transform; on arrays it resizes with OpenCV, which is kept
_FILES = ("vitl-vmix22m-pt220-c55.pt", "vitl-kinetics-pt220-an55.pt", "vitl-scratch-pt-210-c25.pt")
_PUBLISHED = Variant(
    FrameSampling(f"stride:2x{_FRAMES}", n_windows=2, padding="repeat-last"),
    note="two windows of 16 frames, every second one, at both ends of the clip, averaged; shorter side 256 (OpenCV "
    "bilinear), central 224x224",
)
_VARIANTS = window_variants(_PUBLISHED, n_frames=_FRAMES, padding="repeat-last")

ECHOJEPA_CARD = PublishedCard(
    name="echojepa",
    summary="EchoJEPA-L, a V-JEPA 2 (ViT-L/16) trained to predict what is hidden of echocardiograms.",
    **video_sizes(dim=_DIM, n_frames=_FRAMES, side=_SIDE),
    pooling="mean",
    loader="encoders.echojepa:load",
    preprocessing=pixel_record(
        (
            ResizeShortSide(size=_SHORT_SIDE, interpolation="linear"),
            CentreCrop(height=_SIDE, width=_SIDE),
        ),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        vectors="raw",
        output="token-mean",
    ),
    variants={**_VARIANTS, **benchmark_windows(side=_SIDE)},
    weights_locator="encoders.hub:locate_nothing",
    weights_names=_FILES,
    weights_source="the Google Drive folder named in the README of https://github.com/bowang-lab/EchoJEPA, e.g. "
    "vitl-vmix22m-pt220-c55.pt (4.8 GB)",
    n_parameters=303_885_312,
    layout='{"encoder", "target_encoder", "predictor", "opt", "scaler", "epoch", ...}; the 292 keys of '
    "target_encoder are read, with module. and backbone. before them or not, and all of them must fit",
    left_open="the authors draw each of the two windows at random in its half of the clip, here one begins with the "
    "clip and one ends with it; they train attentive probes on all tokens, the mean of the tokens is the common way "
    "to keep them; Meta's own V-JEPA 2 ViT-L has the same keys and shapes, so only the SHA-256 tells it apart; "
    "V-JEPA 2.1 checkpoints are another model and refused",
    licence="MIT (parts Apache-2.0), as the repository says; nothing apart is said of the weights",
    licence_forbids="what the data use agreement of MIMIC-IV-Echo forbids may bind too",
    paper="Munim et al., EchoJEPA: A Latent Predictive Foundation Model for Echocardiography, arXiv:2602.02603",
    pretraining_data=("mimic-iv-echo",),
    batch_size={"cpu": 1, "cuda": 16},
)


def load(request: LoadRequest) -> ClipEncoder:
    """Load EchoJEPA; raises as `embedstore.encoder.EncoderLoader`."""
    from encoders.device import pick_device
    from encoders.model_folder import shape_of, shapes_of_state
    from encoders.state_dict import filled
    from encoders.vjepa2_keys import authors_spelling, from_authors, target_encoder
    from encoders.vjepa2_model import Vjepa2, Vjepa2Sizes

    spec = request.spec
    checkpoint, file, _ = ECHOJEPA_CARD.open_weights(request)
    target = target_encoder(checkpoint, source=file)
    shape_of(shapes_of_state(target), "patch_embed.proj.weight", n_sides=5, source=file)
    state = from_authors(target, source=file)
    del checkpoint, target  # most of the file is the optimizer's
    sizes = Vjepa2Sizes.read(shapes_of_state(state), source=file)
    check_dim(spec, dim=sizes.width, side=_SIDE, source=file)
    made = partial(Vjepa2, sizes, output=spec.preprocessing["output"])
    network = filled(made, state, source=file, spelled=authors_spelling)
    return ClipEncoder(network, spec=spec, device=pick_device(request.device), n_frames=_FRAMES, side=_SIDE)
