"""EchoFM: a masked autoencoder of echocardiograms, ViT-L; a vector a window of 32 frames.

``--weights echofm=FILE`` takes ``echofm_vitl.pth`` of the hub, or a folder with it. The vector is the mean of the
1568 tokens of a window of which nothing is masked, after the last norm and without the class token. Steps are the
mean tokens of its 8 times, 4 frames each. Pixels are grey levels over 255: the authors take no mean and no deviation.
"""

from __future__ import annotations

from functools import partial

from embedstore.encoder import LoadRequest, Variant
from embedstore.spec import FrameSampling
from encoders.checkpoint_keys import weights_and_biases
from encoders.clip_encoder import ClipEncoder
from encoders.published_card import PublishedCard, check_dim, pixel_record, video_sizes
from encoders.resampling import PillowResize
from encoders.window_variants import window_variants

__all__ = ["ECHOFM_CARD", "load"]

_SIDE, _FRAMES, _DIM = 224, 32, 1024
_FILES = ("echofm_vitl.pth",)
_PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


#: The parts of a block, 16 keys.
_BLOCK = ("norm[12]", "attn.[qkv]", "attn.proj", "mlp.fc[12]")

#: The 158 keys of pretraining that the published file has beyond the encoder's: what rebuilds pixels, and what
#: compares the times of a beat.
_PRETRAINING = (
    "decoder_cls_token",
    "decoder_prj_cls_token",
    *weights_and_biases("decoder_block", _BLOCK),
    "decoder_embed.weight",
    "decoder_embed.bias",
    "mask_token",
    "decoder_pos_embed_spatial",
    "decoder_pos_embed_temporal",
    "decoder_pos_embed_class",
    *weights_and_biases("decoder_blocks.[0-7]", _BLOCK),
    "decoder_norm.weight",
    "decoder_norm.bias",
    "decoder_pred.weight",
    "decoder_pred.bias",
    "prj_norm.weight",
    "prj_norm.bias",
)

ECHOFM_CARD = PublishedCard(
    name="echofm",
    summary="EchoFM, a masked autoencoder (ViT-L/16, tubelets of 4 frames) trained on echocardiograms.",
    **video_sizes(dim=_DIM, n_frames=_FRAMES, side=_SIDE),
    pooling="mean",
    loader="encoders.echofm:load",
    preprocessing=pixel_record(
        (PillowResize(height=_SIDE, width=_SIDE, kernel="bilinear"),),
        mean=_PLAIN[0],
        std=_PLAIN[1],
        vectors="raw",
        output="token-mean",
    ),
    # data/dataset.py of the authors: 32 frames one after another, short clips begin again; Resize of torchvision on
    # Pillow images, to 224x224 whatever the aspect ratio.
    variants=window_variants(
        Variant(
            FrameSampling(f"consecutive:{_FRAMES}", padding="loop"),
            note="the first 32 frames, a short clip begins again, squeezed to 224x224; the authors train on random "
            "windows and publish no rule for evaluation",
        ),
        n_frames=_FRAMES,
        padding="loop",
    ),
    weights_locator="encoders.hub:locate_echofm",
    weights_fetcher="encoders.hub:fetch",
    weights_names=_FILES,
    weights_source="https://huggingface.co/sekeun/EchoFM, echofm_vitl.pth",
    n_parameters=305_669_120,
    keys_may_ignore=_PRETRAINING,
    layout='{"model": state dict, "model_args"}: 550 keys, 344,513,280 numbers (1.4 GB), 392 keys of them the '
    "encoder's; the other 158 are dropped",
    left_open="the hub's card speaks of about 41,000 apical clips, the authors' paper of 290,000 clips of all views: "
    "weights of several generations have one layout, and only the SHA-256 tells them apart; the names of the keys "
    "that are dropped follow the authors' code and agree with the known counts, the file itself was not at hand; its "
    "model_args are not read, the sizes come from the tensors",
    licence="CC BY-NC-ND 4.0",
    licence_forbids="commercial use of the model and of what was trained on its vectors; passing on changed versions "
    "(the hub's tag says CC BY-NC 4.0)",
    paper="Kim et al., EchoFM: Foundation Model for Generalizable Echocardiogram Analysis, IEEE Transactions on "
    "Medical Imaging 44(10), 2025, arXiv:2410.23413",
    batch_size={"cpu": 1, "cuda": 16},
)


def load(request: LoadRequest) -> ClipEncoder:
    """Load EchoFM; raises as `embedstore.encoder.EncoderLoader`."""
    from encoders.device import pick_device
    from encoders.echofm_model import EchoFm, EchoFmSizes
    from encoders.model_folder import shapes_of_state
    from encoders.state_dict import filled

    spec = request.spec
    state, file, _ = ECHOFM_CARD.open_weights(request)
    sizes = EchoFmSizes.read(shapes_of_state(state), source=file)
    check_dim(spec, dim=sizes.width, side=sizes.side, source=file)
    made = partial(EchoFm, sizes, output=spec.preprocessing["output"])
    network = filled(made, state, source=file, may_ignore=ECHOFM_CARD.keys_may_ignore)
    return ClipEncoder(
        network, spec=spec, device=pick_device(request.device), n_frames=sizes.n_frames, side=sizes.side
    )
