"""Published models without their weights: every key and shape of a checkpoint, filled with seeded random numbers.

The checkpoint stays in memory. The loaders of this package read it as they would the file, so that what is measured
is the model that they build.
"""

from __future__ import annotations

import configparser
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from embedstore.encoder import EncoderCard, LoadRequest, encoder_cards, load_encoder, resolve_string

POOL = 1 << 22  # random numbers that all tensors are cut from


def cards() -> dict[str, EncoderCard]:
    """Every registered card; read from setup.cfg where the packages are not installed but only lie here."""
    found = encoder_cards()
    if "efficientnet-lite0" in found:
        return found
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parent.parent / "setup.cfg")
    lines = setup["options.entry_points"]["embedstore.encoders"].split("\n")
    points = dict(line.split(" = ") for line in lines if line)
    return {name: resolve_string(reference) for name, reference in points.items()}


def dino(name: str) -> dict[str, Any]:
    """DINOv2 and DINOv3."""
    from encoders.dino_model import DinoSizes, Dinov2, Dinov3

    version, _, size = name.partition("-")
    width, n_layers = {"small": (384, 12), "": (768, 12), "large": (1024, 24)}[size]
    sizes = DinoSizes(width=width, inner=4 * width, n_layers=n_layers, patch=14 if version == "dinov2" else 16)
    if version == "dinov2":
        return Dinov2(replace(sizes, n_positions=37 * 37), output="cls").state_dict()
    return Dinov3(replace(sizes, n_registers=4), output="cls").state_dict()


def siglip(name: str) -> dict[str, Any]:
    """SigLIP 2 and MedSigLIP, both towers."""
    from encoders.siglip_model import SiglipSizes, SiglipTowers, TowerSizes

    large = name != "siglip2"
    tower = (
        TowerSizes(width=1152, inner=4304, n_layers=27, n_heads=16)
        if large
        else TowerSizes(width=768, inner=3072, n_layers=12, n_heads=12)
    )
    sizes = SiglipSizes(
        vision=tower,
        text=tower,
        patch=14 if large else 16,
        grid={"siglip2": 14, "siglip2-so400m": 27, "medsiglip": 32}[name],
        vocabulary=32_000 if name == "medsiglip" else 256_000,
        context=64,
        projection=tower.width,
    )
    return SiglipTowers(sizes).state_dict()


def open_clip(name: str) -> dict[str, Any]:
    """CLIPs of open_clip."""
    from open_clip.model import CLIP

    from encoders.clip_towers import architecture

    config = architecture(str(cards()[name].preprocessing["architecture"]))
    wanted = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in config}
    wanted["vision_cfg"] = {**wanted["vision_cfg"], "timm_model_pretrained": False}
    state: dict[str, Any] = CLIP(**wanted).state_dict()
    return state


def biomedclip(name: str) -> dict[str, Any]:
    """BiomedCLIP: timm's ViT and a BERT."""
    from open_clip.timm_model import TimmModel

    from encoders.bert_model import BertSizes, BertText

    towers = nn.Module()
    towers.visual = TimmModel("vit_base_patch16_224", embed_dim=512, image_size=224, pool="", proj="linear")
    sizes = BertSizes(vocabulary=30_522, n_positions=512, n_kinds=2, width=768, inner=3072, n_layers=12)
    towers.text = BertText(sizes, inner=640, dim=512)
    towers.logit_scale = nn.Parameter(torch.zeros(()))
    return towers.state_dict()


def panecho(name: str) -> dict[str, Any]:
    """PanEcho with its heads, as its file wraps them."""
    from encoders.panecho import TASKS
    from encoders.panecho_model import PanEchoNetwork

    heads = {task: facts.n_outputs for task, facts in TASKS.items()}
    return PanEchoNetwork(n_frames=16, heads=heads).state_dict()


def echoprime(name: str) -> dict[str, Any]:
    """EchoPrime's video encoder and view classifier."""
    from encoders.echoprime_model import video_network, view_network

    return (video_network(dim=512) if name == "echoprime" else view_network(n_views=11)).state_dict()


def echofm(name: str) -> dict[str, Any]:
    """EchoFM's encoder."""
    from encoders.echofm_model import EchoFm, EchoFmSizes

    sizes = EchoFmSizes(width=1024, inner=4096, n_layers=24, patch=16, tubelet=4, n_places=196, n_steps=8)
    return EchoFm(sizes, output="mean").state_dict()


def vjepa(name: str) -> dict[str, Any]:
    """V-JEPA 2 as transformers writes it, and EchoJEPA as its authors do."""
    from encoders.vjepa2_model import Vjepa2, Vjepa2Sizes

    width, n_layers = 1024, 24
    if name == "vjepa2":
        sizes = Vjepa2Sizes(width=width, inner=4 * width, n_layers=n_layers, patch=16, tubelet=2)
        return {f"encoder.{key}": tensor for key, tensor in Vjepa2(sizes, output="mean").state_dict().items()}
    parts = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    parts |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj": (width, 3, 2, 16, 16), "norm": (width,)}
    shapes |= {f"blocks.{at}.{part}": shape for at in range(n_layers) for part, shape in parts.items()}
    encoder = {}
    for key, shape in shapes.items():
        encoder[f"module.backbone.{key}.weight"] = torch.empty(shape)
        encoder[f"module.backbone.{key}.bias"] = torch.empty(shape[0])
    return {"target_encoder": encoder}


def videomae(name: str) -> dict[str, Any]:
    """VideoMAE and Echo-Vision-FM, encoders only."""
    from encoders.videomae_model import VideoMae, VideoMaeSizes

    sizes = VideoMaeSizes(width=768, inner=3072, n_layers=12, patch=16, tubelet=2, has_norm=False)
    state = VideoMae(sizes, epsilon=1e-12, output="mean").state_dict()
    return {f"videomae.{key}": tensor for key, tensor in state.items()}


def imagenet(name: str) -> dict[str, Any]:
    """MobileNetV2 and the EfficientNet-Lites."""
    if name == "mobilenet-v2":
        from torchvision.models import mobilenet_v2

        network = mobilenet_v2(weights=None)
    else:
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name(name)
    state: dict[str, Any] = network.state_dict()
    return state


FORMS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    **dict.fromkeys(("dinov2", "dinov2-small", "dinov2-large", "dinov3", "dinov3-small", "dinov3-large"), dino),
    **dict.fromkeys(("siglip2", "siglip2-so400m", "medsiglip"), siglip),
    **dict.fromkeys(("echo-clip", "echo-clip-r", "clip", "clip-vit-b-16", "clip-vit-l-14"), open_clip),
    "biomedclip": biomedclip,
    "panecho": panecho,
    **dict.fromkeys(("echoprime", "echoprime-view"), echoprime),
    "echofm": echofm,
    **dict.fromkeys(("vjepa2", "echojepa"), vjepa),
    **dict.fromkeys(("videomae", "echo-vision-fm"), videomae),
    **dict.fromkeys(("mobilenet-v2", "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"), imagenet),
}


def drawn(name: str, tensor: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    """Random numbers of a tensor's shape, scaled by what they sum over so that signals neither vanish nor explode."""
    last = name.rpartition(".")[2]
    if last == "running_var":
        return torch.ones(tensor.shape)
    if last == "running_mean" or not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    start = zlib.crc32(name.encode()) % POOL
    count = tensor.numel()
    repeats = -(-(start + count) // POOL)
    values: torch.Tensor = pool.repeat(repeats)[start : start + count].reshape(tensor.shape)
    if tensor.ndim >= 2:
        spread: float = max(1, tensor[0].numel()) ** 0.5
        return values / spread
    return 1 + 0.1 * values if last in ("weight", "gamma", "lambda1") else 0.1 * values


def random_state(name: str) -> dict[str, Any]:
    """A checkpoint of an encoder as published, seeded; nothing of it touches the disk."""
    pool = torch.from_numpy(np.random.default_rng(0).standard_normal(POOL, dtype=np.float32))
    with torch.device("meta"):
        form = FORMS[name](name)

    def fill(state: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: fill(value) if isinstance(value, Mapping) else drawn(key, value, pool)
            for key, value in state.items()
        }

    return fill(form)


@contextmanager
def in_memory(name: str) -> Iterator[Path | None]:
    """Hand the loaders a random checkpoint of an encoder for the file whose path is given; None for no weights."""
    if not cards()[name].takes_weights:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="embedstore-random-") as folder:
        file = Path(folder) / f"{name}.bin"
        file.write_bytes(name.encode())
        state = random_state(name)
        with patch("encoders.checkpoint.open_checkpoint", lambda path, **_: dict(state)):
            yield file


def load_random(name: str, *, device: str, precision: str = "float32", file: Path | None) -> Any:
    """Load an encoder inside `in_memory`, with its published variant."""
    card = cards()[name].fitted(weights=file)
    spec = card.spec(precision=precision)
    return load_encoder(card, LoadRequest(spec=spec, weights=file, device=device))
