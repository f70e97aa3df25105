"""DINOv2 and DINOv3: the loader against transformers' own models, both spellings, their pixels, wrong files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms

from embedstore.encoder import LoadRequest, load_encoder
from embedstore.errors import EnvironmentFailure, FormatError, StorageError
from encoders import dino
from encoders.dino import DINOV2_CARD, DINOV2_LARGE_CARD, DINOV3_CARD, fit
from encoders.dino_model import DinoSizes, Dinov2, Dinov3
from encoders.frame_encoder import FrameEncoder
from encoders.published_card import IMAGENET_MEAN, IMAGENET_STD

WIDTHS = {"small": 384, "base": 768, "large": 1024}


def load(card, weights: Path | None, *, variant: str = "published", precision: str = "float32") -> FrameEncoder:
    spec = card.spec(variant=variant, precision=precision)
    return load_encoder(card, LoadRequest(spec=spec, weights=weights, device="cpu"))


def prepared(card, frames: np.ndarray) -> np.ndarray:
    encoder = FrameEncoder(torch.nn.Flatten(), spec=card.spec(), device=torch.device("cpu"), side=224)
    return encoder.encode(encoder.preprocess(frames)).vectors.reshape(-1, 3, 224, 224)


@pytest.mark.parametrize("name", sorted(dino.CARDS))
def test_full_size_has_the_published_keys_and_parameters(name: str) -> None:
    version, size = name[:6], name.partition("-")[2] or "base"
    n_layers = 24 if size == "large" else 12
    width = WIDTHS[size]
    with torch.device("meta"):
        if version == "dinov2":
            sizes = DinoSizes(width=width, inner=4 * width, n_layers=n_layers, patch=14, n_positions=37 * 37)
            network = Dinov2(sizes)
        else:
            sizes = DinoSizes(width=width, inner=4 * width, n_layers=n_layers, patch=16, n_registers=4)
            network = Dinov3(sizes)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    per_layer, around = (18, 7) if version == "dinov2" else (17, 7)
    assert len(shapes) == n_layers * per_layer + around
    assert len(shapes) in {"dinov2": (223, 439), "dinov3": (211, 415)}[version]
    assert sum(part.numel() for part in network.parameters()) == dino.CARDS[name].n_parameters
    assert DinoSizes.read(shapes, version=int(version[-1]), source="meta") == sizes
    assert dino.CARDS[name].clip_dim == width


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "dinov2-small", "dinov3-small"])
def test_vectors_equal_transformers(name: str, small, a4c_frames: np.ndarray) -> None:
    folder, theirs = small(name)
    card = dino.CARDS[name]
    frames = a4c_frames[::20]
    with torch.inference_mode():
        states = theirs(torch.from_numpy(prepared(card, frames)))
    expected = states.pooler_output.numpy()
    encoder = load(card, folder)
    vectors = encoder.encode(encoder.preprocess(frames)).vectors
    assert np.abs(vectors - expected).max() <= 1e-5 * np.abs(expected).max()
    assert not np.allclose(np.linalg.norm(vectors, axis=1), 1), "the authors do not normalise"
    n_before = 1 if name.startswith("dinov2") else 5
    means = states.last_hidden_state[:, n_before:].mean(dim=1).numpy()
    others = load(card, folder, variant="patch-mean").encode(encoder.preprocess(frames)).vectors
    assert np.abs(others - means).max() <= 1e-5 * np.abs(means).max()


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_both_spellings_of_keys_are_read(name: str, small, a4c_frames: np.ndarray, tmp_path: Path) -> None:
    folder, _ = small(name)
    state = load_file(folder / "model.safetensors")
    respelled = {}
    for key, tensor in state.items():
        if name == "dinov2":
            key = re.sub(r"attention\.attention\.(q|k|v)\w+", r"attention.\1_proj", key)
            key = key.replace("attention.output.dense", "attention.o_proj")
        else:
            key = re.sub(r"^layer\.", "model.layer.", key)
        respelled[key] = tensor
    assert respelled.keys() != state.keys() and len(respelled) == len(state)
    save_file(respelled, tmp_path / "model.safetensors")
    card = dino.CARDS[name]
    encoder, other = load(card, folder), load(card, tmp_path)
    frames = encoder.preprocess(a4c_frames[:1])
    assert np.array_equal(encoder.encode(frames).vectors, other.encode(frames).vectors)


def test_a_tensor_in_both_spellings_is_refused(small, tmp_path: Path) -> None:
    state = load_file(small("dinov3")[0] / "model.safetensors")
    state["model.layer.0.norm1.bias"] = state["layer.0.norm1.bias"].clone()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"has the tensor layer.0.norm1.bias twice"):
        load(DINOV3_CARD, tmp_path)


def test_dinov2_pixels_are_those_of_its_evaluation_transform(a4c_frames: np.ndarray) -> None:
    transform = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    expected = torch.stack([transform(Image.fromarray(frame)) for frame in a4c_frames[::10]]).numpy()
    assert np.abs(prepared(DINOV2_CARD, a4c_frames[::10]) - expected).max() <= 1e-6


def test_dinov3_pixels_are_those_of_its_image_processor(a4c_frames: np.ndarray) -> None:
    from transformers import DINOv3ViTImageProcessor

    images = [Image.fromarray(frame) for frame in a4c_frames[::10]]
    expected = np.stack(DINOv3ViTImageProcessor()(images=images, return_tensors="pt")["pixel_values"])
    found = prepared(DINOV3_CARD, a4c_frames[::10])
    assert np.abs(found - expected).max() <= 2e-4
    # Rounding to whole levels before normalising would be off by half a level.
    assert np.abs(found - expected).max() < 0.1 * 0.5 / 255 / max(IMAGENET_STD)


def test_bf16_is_close(small, a4c_frames: np.ndarray) -> None:
    folder, _ = small("dinov3")
    exact, short = load(DINOV3_CARD, folder), load(DINOV3_CARD, folder, precision="bf16")
    frames = exact.preprocess(a4c_frames[::15])
    first, second = exact.encode(frames).vectors, short.encode(frames).vectors
    cosine = (first * second).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert second.dtype == np.float32 and not np.array_equal(first, second) and cosine.min() > 0.999


def test_other_sizes_follow_the_checkpoint(small) -> None:
    folder, _ = small("dinov2-small")
    with pytest.raises(FormatError, match=r"vectors of 384 numbers, dinov2 of 768; is it another size of the model"):
        load(DINOV2_CARD, folder)
    fitted = fit(DINOV2_CARD, variant="published", weights=folder)
    assert fitted == replace(DINOV2_CARD, clip_dim=384, frame_dim=384)
    assert load(fitted, folder).spec.clip_dim == 384
    assert fit(DINOV2_CARD, variant="published", weights=small("dinov2")[0]) is DINOV2_CARD


def test_wrong_files_are_named(small, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"the key embeddings.patch_embeddings.weight is missing"):
        load(DINOV3_CARD, small("dinov2")[0])
    state = load_file(small("dinov2")[0] / "model.safetensors")
    state["embeddings.register_tokens"] = torch.zeros(1, 4, 768)
    del state["encoder.layer.1.norm2.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        FormatError, match=r"missing: encoder.layer.1.norm2.bias; .* unexpected: embeddings.register_tokens"
    ):
        load(DINOV2_CARD, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"
    )
    with pytest.raises(StorageError, match="Git LFS pointer"):
        load(DINOV2_CARD, tmp_path)
    with pytest.raises(StorageError, match="Git LFS pointer"):
        fit(DINOV2_CARD, variant="published", weights=tmp_path)


def test_without_weights_their_source_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        EnvironmentFailure, match=r"'dinov2-large' are not on this machine .*facebook/dinov2-large\); giv"
    ):
        load(DINOV2_LARGE_CARD, None)


def test_too_little_memory_says_how_much_is_needed(small, monkeypatch: pytest.MonkeyPatch) -> None:
    from encoders import device

    monkeypatch.setattr(device, "free_bytes", lambda device: 1 << 20)
    with pytest.raises(EnvironmentFailure, match=r"dinov2 needs \d\.\d GiB of memory on cpu .* 0\.0 GiB are free"):
        load(DINOV2_CARD, small("dinov2")[0])
