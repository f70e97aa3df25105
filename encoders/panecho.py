"""PanEcho: 39 reporting tasks from clips of any view; a vector a window of 16 frames, and the authors' task heads.

``--weights panecho=FILE`` takes ``panecho.pt`` of the authors' release, a training checkpoint whose weights lie under
``weights``. What is kept of the authors' way: frames blue first, as OpenCV reads them; windows of 16 consecutive
frames, the last one repeated where the clip is short; the forward that takes images apart without exchanging channel
and frame. What is chosen here: the authors draw 4 random windows and average them, here the 4 starts are spread
evenly over the clip; a frame that is not 256x256 is resized to it as their loader of EchoNet-LVH does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from embedstore.encoder import LoadRequest, TaskHead, Variant, resolve_string
from embedstore.spec import FrameSampling
from encoders.clip_encoder import ClipEncoder
from encoders.preprocess import CentreCrop, CropAndScale, Resize, step_record
from encoders.published_card import IMAGENET_MEAN, IMAGENET_STD, PublishedCard, pixel_record
from encoders.resampling import BgrOrder

if TYPE_CHECKING:
    from encoders.panecho_model import PanEchoNetwork

__all__ = ["PANECHO_CARD", "TASKS", "PublishedTask", "load", "load_heads"]

_SIDE, _FRAMES, _DIM = 224, 16, 768
_URL = "https://github.com/CarDS-Yale/PanEcho/releases/download/v1.0/panecho.pt"
# Fixed numbers, which the authors delete from the file and compute, as is done here.
_POSITIONS = "encoder.time_encoder.pe"


@dataclass(frozen=True, kw_only=True)
class PublishedTask:
    """What one head answers.

    Attributes
    ----------
    activation : str
        One of `embedstore.encoder.ACTIVATIONS`.
    classes : tuple of str
        Of a softmax, in the order of the outputs; the one class that a sigmoid's number is the probability of.
    unit : str or None
        Of a measured number.
    """

    activation: str
    classes: tuple[str, ...] = ()
    unit: str | None = None

    @property
    def n_outputs(self) -> int:
        """Rows of the head."""
        return len(self.classes) if self.activation == "softmax" else 1


def _present(positive: str) -> PublishedTask:
    return PublishedTask(activation="sigmoid", classes=(positive,))


def _first(positive: str) -> PublishedTask:
    """Two classes of which the abnormal one comes first: the head was trained for the normal one."""
    return PublishedTask(activation="one-minus-sigmoid", classes=(positive,))


def _one_of(*classes: str) -> PublishedTask:
    return PublishedTask(activation="softmax", classes=classes)


def _measured(unit: str) -> PublishedTask:
    return PublishedTask(activation="identity", unit=unit)


_SIZES = ("Mildly Increased", "Moderately|Severely Increased", "Normal")
_REGURGITATION = ("Mild", "Moderate|Severe", "None|Trace")

#: The 40 heads in the order of the file. Classes and units: CarDS-Yale/PanEcho, content/tasks.md; activations: its
#: src/models.py. A heart chamber's cm^3 are called ml here.
TASKS: Mapping[str, PublishedTask] = {
    "pericardial-effusion": _first("mild_mod_severe"),
    "EF": _measured("pct"),
    "GLS": _measured("pct_shortening"),  # "actual value is -1 times the model output": strain with its sign turned
    "LVEDV": _measured("ml"),
    "LVESV": _measured("ml"),
    "LVSV": _measured("ml"),
    "LVSize": _one_of(*_SIZES),
    "LVWallThickness-increased-any": _first("Increased"),
    "LVWallThickness-increased-modsev": _first("Moderately|severely increased"),
    "LVSystolicFunction": _one_of("Mildly Decreased", "Moderately|Severely Decreased", "Normal|Hyperdynamic"),
    "LVWallMotionAbnormalities": _present("Present"),
    "IVSd": _measured("cm"),
    "LVPWd": _measured("cm"),
    "LVIDs": _measured("cm"),
    "LVIDd": _measured("cm"),
    "LVOTDiam": _measured("cm"),
    "LVDiastolicFunction": _one_of("Mild|Indeterminate", "Moderate|Severe", "Normal"),
    "E|EAvg": _measured("ratio"),
    "RVSP": _measured("mmhg"),
    "RVSize": _one_of(*_SIZES),
    "RVSystolicFunction": _first("Decreased"),
    "RVIDd": _measured("cm"),
    "TAPSE": _measured("cm"),
    "RVSVel": _measured("cm_per_s"),
    "LASize": _one_of("Mildly Dilated", "Moderately|Severely Dilated", "Normal"),
    "LAIDs2D": _measured("cm"),
    "LAVol": _measured("ml"),
    "RASize": _first("Dilated"),
    "RADimensionM-L(cm)": _measured("cm"),
    "AVStructure": _first("Bicuspid"),
    "AVStenosis": _one_of("Mild|Moderate", "None", "Severe"),
    "AVPkVel(m|s)": _measured("m_per_s"),
    "AVRegurg": _one_of(*_REGURGITATION),
    "LVOT20mmHg": _present("1.0"),
    "MVStenosis": _first("Mild|Moderate|Severe"),
    "MVRegurgitation": _one_of(*_REGURGITATION),
    "TVRegurgitation": _one_of(*_REGURGITATION),
    "TVPkGrad": _measured("mmhg"),
    "RAP-8-or-higher": _present("1.0"),
    "AORoot": _measured("cm"),
}

_STEPS = (
    Resize(height=256, width=256, interpolation="area"),
    CentreCrop(height=_SIDE, width=_SIDE),
    BgrOrder(),
)
_CARDIOBENCH_STEPS = (CropAndScale(height=_SIDE, width=_SIDE, zoom=0.1, interpolation="cubic"), BgrOrder())

PANECHO_CARD = PublishedCard(
    name="panecho",
    summary="PanEcho: a ConvNeXt of single frames and a transformer over 16 of them, trained on 39 reporting tasks.",
    unit="clip",
    clip_dim=_DIM,
    frame_dim=_DIM,
    pooling="mean",
    loader="encoders.panecho:load",
    heads_loader="encoders.panecho:load_heads",
    preprocessing=pixel_record(
        _STEPS, mean=IMAGENET_MEAN, std=IMAGENET_STD, vectors="raw", frames="image-encoder-on-each-frame-alone"
    ),
    input_size=(3, _FRAMES, _SIDE, _SIDE),
    variants={
        "published": Variant(
            sampling=FrameSampling("consecutive:16", n_windows=4, padding="repeat-last"),
            note="frames squeezed to 256x256 (OpenCV area) where they are not, central 224x224, blue first; 4 "
            "windows of 16 consecutive frames averaged, their starts spread evenly (the authors draw them), the last "
            "frame repeated where a clip is short",
        ),
        "cardiobench": Variant(
            sampling=FrameSampling("consecutive:16", padding="repeat-last"),
            preprocessing={"steps": [step_record(step) for step in _CARDIOBENCH_STEPS]},
            note="the CardioBench benchmark's frames: the first 16, central square, 10 % zoom, cubic to 224x224, "
            "blue first; its released code has no loader of this model",
        ),
        "stride2": Variant(
            sampling=FrameSampling("stride:2x16", n_windows=4, padding="repeat-last"),
            note="as published, but every second frame: a window sees twice the time",
        ),
        "uniform16": Variant(
            sampling=FrameSampling("uniform:16", padding="repeat-last"),
            note="as published, but one window of 16 frames spread evenly over the clip",
        ),
        "palindrome": Variant(
            sampling=FrameSampling("consecutive:16", n_windows=4, padding="palindrome"),
            note="as published, but a short clip runs back and forth, for half sequences from one phase to the other",
        ),
    },
    keys_may_ignore=(_POSITIONS,),
    weights_names=("panecho.pt",),
    weights_url=_URL,
    n_parameters=42_063_514,
    layout='{"weights": state dict, ...}: 309 keys, 229 of the encoder and 80 of the 40 task heads, which are stored '
    "as such; the fixed positions are computed, as the authors do",
    left_open="the authors draw the windows at random and train on frames that are 256x256 already; whether the file "
    "holds more than its optimizer's state was not seen, and one that names code asks for --trust-checkpoint",
    licence="CC BY-NC-SA 4.0 (weights; the authors' code is AGPL-3.0, none of it is used here)",
    licence_forbids="commercial use, and passing on under other terms",
    paper="Holste et al., Complete AI-Enabled Echocardiography Interpretation With Multitask Deep Learning, JAMA, "
    "2025",
    weights_source=_URL,
    pretraining_data=("yale-new-haven-echo",),
    batch_size={"cpu": 2, "cuda": 32},
)


def _loaded(request: LoadRequest) -> PanEchoNetwork:
    from encoders.state_dict import filled

    state, file, _ = PANECHO_CARD.open_weights(request)
    network: type[PanEchoNetwork] = resolve_string("encoders.panecho_model:PanEchoNetwork", needed_by="panecho")
    made = partial(network, n_frames=_FRAMES, heads={name: task.n_outputs for name, task in TASKS.items()})
    return filled(made, state, source=file, may_ignore=PANECHO_CARD.keys_may_ignore)


def load(request: LoadRequest) -> ClipEncoder:
    """Load the network; its heads are checked too and then left aside.

    Raises as `embedstore.encoder.EncoderLoader`.
    """
    from encoders.device import pick_device

    network = _loaded(request)
    for name in TASKS:
        delattr(network, f"{name}_head")
    return ClipEncoder(
        network,
        spec=request.spec,
        device=pick_device(request.device),
        n_frames=_FRAMES,
        side=_SIDE,
        frame_kind="frame",
    )


def load_heads(request: LoadRequest) -> list[TaskHead]:
    """Load the 40 task heads: linear layers on a window's vector, whose answers the authors average over windows.

    A probability is that of the abnormal finding; where the authors trained for its absence, the activation is
    ``one-minus-sigmoid``. Raises as `load`.
    """
    network: Any = _loaded(request)
    heads = []
    for name, task in TASKS.items():
        linear = network.get_submodule(f"{name}_head")[1]
        heads.append(
            TaskHead(
                task=name,
                weight=linear.weight.detach().float().numpy().copy(),
                bias=linear.bias.detach().float().numpy().copy(),
                activation=task.activation,
                unit=task.unit,
                outputs=task.classes if task.activation == "softmax" else (name,),
            )
        )
    return heads
