"""V-JEPA 2 and EchoJEPA: keys and counts, transformers' own model, both spellings, pixels, wrong files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_videos import close, fused

from embedstore.errors import FormatError, StorageError, UnknownNameError
from embedstore.spec import FrameSampling
from encoders.echojepa import ECHOJEPA_CARD
from encoders.published_card import IMAGENET_MEAN, IMAGENET_STD
from encoders.vjepa2 import VJEPA2_CARD, fit
from encoders.vjepa2_keys import authors_spelling, from_authors
from encoders.vjepa2_model import Vjepa2, Vjepa2Sizes

FULL = Vjepa2Sizes(width=1024, inner=4096, n_layers=24, patch=16, tubelet=2)
FILE = "vitl-vmix22m-pt220-c55.pt"


def scaled(frames: np.ndarray) -> torch.Tensor:
    """Return frames (T, H, W, 3) uint8 as transformers' model takes them, (1, T, 3, H, W)."""
    pixels = (frames.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)[None]


@pytest.fixture
def changed(video, tmp_path: Path):
    """Return a function that writes EchoJEPA's published file anew after a change of it."""

    def write(change) -> Path:
        opened = torch.load(video("echojepa")[0] / FILE, weights_only=True)
        change(opened)
        torch.save(opened, tmp_path / FILE)
        return tmp_path / FILE

    return write


def test_full_size_has_the_published_keys_and_parameters() -> None:
    with torch.device("meta"):
        network = Vjepa2(FULL)
    state = network.state_dict()
    count = sum(part.numel() for part in network.parameters())
    assert (len(state), count) == (388, 303_885_312)
    assert count == VJEPA2_CARD.n_parameters == ECHOJEPA_CARD.n_parameters
    assert Vjepa2Sizes.read({key: tuple(part.shape) for key, part in state.items()}, source="meta") == FULL
    authors = {authors_spelling(key) for key in state}
    assert len(authors) == 292 and authors == fused(state).keys()
    assert from_authors(fused(state), source=Path("meta")).keys() == state.keys()


def test_echojepa_vectors_and_steps_equal_transformers(video, load, a4c_frames: np.ndarray) -> None:
    folder, theirs = video("echojepa")
    encoder = load(ECHOJEPA_CARD, folder)
    first, second = encoder.spec.sampling.resolve(n_frames=34, fps=None).windows
    assert first == tuple(range(0, 32, 2)) and second == tuple(range(3, 34, 2))
    frames = a4c_frames[0:30:2]
    # The evaluation transform, line by line: shorter side 256 with OpenCV, the central 224x224.
    height, width = frames.shape[1:3]
    size = (int(256 * width / height), 256) if height <= width else (256, int(256 * height / width))
    pixels = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in frames])
    top, left = round((pixels.shape[1] - 224) / 2.0), round((pixels.shape[2] - 224) / 2.0)
    pixels = pixels[:, top : top + 224, left : left + 224]
    window = np.concatenate([frames, frames[-1:]])
    pixels = np.concatenate([pixels, pixels[-1:]])
    batch = encoder.preprocess(window)[None]
    assert np.array_equal(batch[0], pixels)
    with torch.inference_mode():
        tokens = theirs(scaled(pixels)).last_hidden_state.numpy()
    encoded = encoder.encode(batch)
    close(encoded.vectors, tokens.mean(axis=1))
    close(encoded.steps, tokens.reshape(1, 8, 196, 1024).mean(axis=2))


def test_vjepa2_vectors_equal_transformers(video, load, a4c_frames: np.ndarray) -> None:
    folder, theirs = video("vjepa2", depth=1)
    encoder = load(VJEPA2_CARD, folder, variant="frames16")
    batch = encoder.preprocess(a4c_frames[:16])[None]
    with torch.inference_mode():
        tokens = theirs(scaled(batch[0]), skip_predictor=True).last_hidden_state.numpy()
    assert tokens.shape == (1, 8 * 256, 1024)
    encoded = encoder.encode(batch)
    close(encoded.vectors, tokens.mean(axis=1))
    close(encoded.steps, tokens.reshape(1, 8, 256, 1024).mean(axis=2))


def test_vjepa2_pixels_are_those_of_its_video_processor(video, load, a4c_frames: np.ndarray) -> None:
    from transformers import VJEPA2VideoProcessor

    encoder = load(VJEPA2_CARD, video("vjepa2")[0])
    assert encoder.input_shape == (64, 256, 256, 3)
    for frames in (a4c_frames[::10], a4c_frames[::10, :, :211], a4c_frames[::10, 3:, :].transpose(0, 2, 1, 3)):
        tensor = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        expected = VJEPA2VideoProcessor()(tensor, return_tensors="pt")["pixel_values_videos"]
        found = scaled(encoder.preprocess(frames))
        assert found.shape == expected.shape and float((found - expected).abs().max()) <= 1e-6


@pytest.mark.slow
def test_bf16_is_close(video, load, a4c_frames: np.ndarray) -> None:
    folder, _ = video("echojepa")
    exact, short = load(ECHOJEPA_CARD, folder), load(ECHOJEPA_CARD, folder, precision="bf16")
    batch = exact.preprocess(a4c_frames[:16])[None]
    first, second = exact.encode(batch).vectors[0], short.encode(batch).vectors[0]
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert second.dtype == np.float32 and not np.array_equal(first, second) and cosine > 0.999


def test_prefixes_and_a_bare_encoder_are_read(video, load, a4c_frames: np.ndarray, tmp_path: Path) -> None:
    folder, _ = video("echojepa", depth=1)
    published = load(ECHOJEPA_CARD, folder)
    batch = published.preprocess(a4c_frames[:16])[None]
    expected = published.encode(batch).vectors

    opened = torch.load(folder / FILE, weights_only=True)["target_encoder"]
    bare = {key.removeprefix("module.backbone."): tensor for key, tensor in opened.items()}
    torch.save({"target_encoder": bare, "epoch": 1}, tmp_path / "bare.pt")
    assert np.array_equal(load(ECHOJEPA_CARD, tmp_path / "bare.pt").encode(batch).vectors, expected)
    save_file({key.removeprefix("module."): tensor for key, tensor in opened.items()}, tmp_path / "e.safetensors")
    assert np.array_equal(load(ECHOJEPA_CARD, tmp_path / "e.safetensors").encode(batch).vectors, expected)


def test_wrong_checkpoints_of_echojepa_are_refused_with_their_keys(video, load, changed, tmp_path: Path) -> None:
    def reshaped(opened) -> None:
        state = opened["target_encoder"]
        state["module.backbone.blocks.1.attn.qkv.weight"] = torch.zeros(3 * 1024, 512)
        state["module.backbone.pos_embed"] = torch.zeros(1, 1568, 1024)
        del state["module.backbone.blocks.0.attn.qkv.bias"]

    with pytest.raises(FormatError) as refused:
        load(ECHOJEPA_CARD, changed(reshaped))
    for part in (
        "1 keys are missing: blocks.0.attn.qkv.bias;",
        "1 keys are unexpected: pos_embed;",
        "blocks.1.attn.qkv.weight (1024, 512) instead of (1024, 1024)",
    ):
        assert part in str(refused.value)

    def odd(opened) -> None:
        opened["target_encoder"]["module.backbone.blocks.1.attn.qkv.weight"] = torch.zeros(1024, 1024)

    with pytest.raises(FormatError, match=r"blocks.1.attn.qkv.weight has shape \(1024, 1024\), not three times"):
        load(ECHOJEPA_CARD, changed(odd))

    def newer(opened) -> None:
        state = opened["target_encoder"]
        del state["module.backbone.norm.weight"], state["module.backbone.norm.bias"]
        state["module.backbone.norms_block.0.weight"] = torch.zeros(1024)

    with pytest.raises(FormatError, match=r"is one of V-JEPA 2.1, .*\(it has norms_block.0.weight\)"):
        load(ECHOJEPA_CARD, changed(newer))
    with pytest.raises(FormatError, match="has no target_encoder, but batch_size, encoder, epoch"):
        load(ECHOJEPA_CARD, changed(lambda opened: opened.pop("target_encoder")))
    with pytest.raises(FormatError, match=r"4 keys are missing: blocks.0.attn.qkv.bias, .* unexpected: cls_token"):
        load(ECHOJEPA_CARD, video("echofm")[0] / "echofm_vitl.pth")
    with pytest.raises(FormatError, match="the key patch_embed.proj.weight is missing, its first keys are"):
        load(ECHOJEPA_CARD, video("vjepa2", depth=1)[0] / "model.safetensors")
    whole = (video("echojepa")[0] / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="cut off or damaged"):
        load(ECHOJEPA_CARD, tmp_path)


def test_wrong_checkpoints_of_vjepa2_are_refused_with_their_keys(video, load, tmp_path: Path) -> None:
    state = load_file(video("vjepa2")[0] / "model.safetensors")
    state["encoder.layer.0.norm1.weight"] = torch.zeros(512)
    state["pooler.cross_attention_layer.norm1.bias"] = torch.zeros(4)
    del state["encoder.layernorm.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(FormatError) as refused:
        load(VJEPA2_CARD, tmp_path)
    for part in (
        "missing: encoder.layernorm.bias;",
        "unexpected: pooler.cross_attention_layer.norm1.bias;",
        "encoder.layer.0.norm1.weight (512,) instead of (1024,)",
    ):
        assert part in str(refused.value)
    with pytest.raises(FormatError, match="the key embeddings.patch_embeddings.proj.weight is missing"):
        fit(VJEPA2_CARD, variant="published", weights=video("videomae")[0])


def test_other_sizes_follow_tensors_and_settings(video, tmp_path: Path) -> None:
    folder, _ = video("vjepa2")
    assert fit(VJEPA2_CARD, variant="published", weights=folder) is VJEPA2_CARD
    assert fit(VJEPA2_CARD, variant="published", weights=folder / "model.safetensors") is VJEPA2_CARD
    kernel = torch.zeros(1408, 3, 2, 16, 16)
    save_file({"encoder.embeddings.patch_embeddings.proj.weight": kernel}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"crop_size": 384, "frames_per_clip": 32}))
    fitted = fit(VJEPA2_CARD, variant="published", weights=tmp_path)
    assert (fitted.clip_dim, fitted.frame_dim, fitted.input_size) == (1408, 1408, (3, 32, 384, 384))
    assert [step.get("size", step.get("height")) for step in fitted.preprocessing["steps"]] == [438, 384]
    assert fitted.variants["published"].sampling.rule == "consecutive:32"
    (tmp_path / "config.json").write_text(json.dumps({"crop_size": "huge"}))
    with pytest.raises(FormatError, match="has crop_size 'huge' and frames_per_clip 64"):
        fit(VJEPA2_CARD, variant="published", weights=tmp_path)


def test_windows_of_no_fixed_length_are_refused(video, load) -> None:
    with pytest.raises(UnknownNameError, match="no windows of one length"):
        load(VJEPA2_CARD, video("vjepa2")[0], sampling=FrameSampling("all"))
    with pytest.raises(UnknownNameError, match="takes windows of 16 frames"):
        load(ECHOJEPA_CARD, video("echojepa")[0], sampling=FrameSampling("uniform:32"))


@pytest.mark.slow
def test_all_64_frames_equal_transformers(video, load, a4c_frames: np.ndarray) -> None:
    folder, theirs = video("vjepa2")
    encoder = load(VJEPA2_CARD, folder)
    (picked,) = encoder.spec.sampling.resolve(n_frames=30, fps=None).windows
    assert picked == (*range(30), *[29] * 34)
    batch = encoder.preprocess(a4c_frames[list(picked)])[None]
    theirs.set_attn_implementation("sdpa")
    with torch.inference_mode():
        tokens = theirs(scaled(batch[0]), skip_predictor=True).last_hidden_state.numpy()
    encoded = encoder.encode(batch)
    close(encoded.vectors, tokens.mean(axis=1))
    close(encoded.steps, tokens.reshape(1, 32, 256, 1024).mean(axis=2))


@pytest.mark.slow
def test_full_size_echojepa_loads_and_equals_transformers(filled, load, a4c_frames: np.ndarray, tmp_path) -> None:
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(crop_size=224, frames_per_clip=16, pred_num_hidden_layers=1)
    theirs = VJEPA2Model(config).eval()
    filled(theirs, seed=22)
    target = {f"module.backbone.{key}": part for key, part in fused(theirs.encoder.state_dict()).items()}
    assert (len(target), sum(part.numel() for part in target.values())) == (292, 303_885_312)
    torch.save({"target_encoder": target, "epoch": 1}, tmp_path / FILE)
    encoder = load(ECHOJEPA_CARD, tmp_path)
    batch = encoder.preprocess(a4c_frames[:16])[None]
    with torch.inference_mode():
        tokens = theirs.encoder(scaled(batch[0])).last_hidden_state.numpy()
    close(encoder.encode(batch).vectors, tokens.mean(axis=1))
