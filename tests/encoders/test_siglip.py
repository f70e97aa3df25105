"""SigLIP 2 and MedSigLIP: the loader against transformers' own models, their pixels, their texts, wrong files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from embedstore.encoder import LoadRequest, load_encoder
from embedstore.errors import ContentError, CorruptionError, FormatError, StorageError
from encoders import siglip
from encoders.checkpoint import sha256_of_file
from encoders.frame_encoder import FrameEncoder
from encoders.siglip import MEDSIGLIP_CARD, SIGLIP2_CARD, SIGLIP2_SO400M_CARD, fit
from encoders.siglip_model import SiglipSizes, SiglipTowers, TowerSizes
from encoders.text import load_text_tower

BASE = TowerSizes(width=768, inner=3072, n_layers=12, n_heads=12)
SO400M = TowerSizes(width=1152, inner=4304, n_layers=27, n_heads=16)


def load(card, weights: Path, *, variant: str = "published", digest: str | None = None) -> FrameEncoder:
    spec = card.spec(variant=variant, weights_sha256=digest)
    return load_encoder(card, LoadRequest(spec=spec, weights=weights, device="cpu"))


def prepared(card, frames: np.ndarray, *, variant: str = "published") -> np.ndarray:
    """The pixels as a network would get them, (T, 3, side, side)."""
    spec = card.spec(variant=variant)
    spec = replace(spec, preprocessing={**spec.preprocessing, "vectors": "raw"})
    side = card.input_size[1]
    encoder = FrameEncoder(torch.nn.Flatten(), spec=spec, device=torch.device("cpu"), side=side)
    return encoder.encode(encoder.preprocess(frames)).vectors.reshape(-1, 3, side, side)


@pytest.mark.parametrize(
    ("name", "vision", "text", "sizes", "n_keys"),
    [
        ("siglip2", BASE, BASE, {"patch": 16, "grid": 14, "vocabulary": 256_000, "projection": 768}, 408),
        ("siglip2-so400m", SO400M, SO400M, {"patch": 14, "grid": 27, "vocabulary": 256_000, "projection": 1152}, 888),
        ("medsiglip", SO400M, SO400M, {"patch": 14, "grid": 32, "vocabulary": 32_000, "projection": 1152}, 888),
    ],
)
def test_full_size_has_the_published_keys_and_parameters(name, vision, text, sizes, n_keys) -> None:
    with torch.device("meta"):
        towers = SiglipTowers(SiglipSizes(vision=vision, text=text, context=64, **sizes))
    shapes = {key: tuple(tensor.shape) for key, tensor in towers.state_dict().items()}
    card = siglip.CARDS[name]
    assert len(shapes) == n_keys and sum(part.numel() for part in towers.parameters()) == card.n_parameters
    # And what is read back from the shapes is what they were made from: heads by the published width.
    read = SiglipSizes.read(shapes, None, source="meta")
    assert read == SiglipSizes(vision=vision, text=text, context=64, **sizes)
    assert read.vision.width == card.clip_dim and read.side(card.input_size[1]) == card.input_size[1]


@pytest.mark.parametrize("name", ["siglip2", "medsiglip"])
def test_vectors_equal_transformers(name: str, small, a4c_frames: np.ndarray) -> None:
    folder, theirs = small(name)
    card = siglip.CARDS[name]
    encoder = load(card, folder)
    frames = a4c_frames[::20]
    vectors = encoder.encode(encoder.preprocess(frames)).vectors
    with torch.inference_mode():
        found = theirs.get_image_features(pixel_values=torch.from_numpy(prepared(card, frames)))
        expected = torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1).numpy()
    assert np.abs(vectors - expected).max() <= 1e-5
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_single_file_is_enough_for_images(small, a4c_frames: np.ndarray) -> None:
    folder, _ = small("siglip2")
    encoder, alone = load(SIGLIP2_CARD, folder), load(SIGLIP2_CARD, folder / "model.safetensors")
    frames = encoder.preprocess(a4c_frames[:2])
    assert np.array_equal(encoder.encode(frames).vectors, alone.encode(frames).vectors)


def test_buffers_of_older_files_and_half_precision_are_read(small, a4c_frames: np.ndarray, tmp_path: Path) -> None:
    folder, _ = small("siglip2")
    state = {key: tensor.half() for key, tensor in load_file(folder / "model.safetensors").items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(196)[None]
    save_file(state, tmp_path / "model.safetensors")
    encoder, halved = load(SIGLIP2_CARD, folder), load(SIGLIP2_CARD, tmp_path)
    frames = encoder.preprocess(a4c_frames[:1])
    difference = np.abs(encoder.encode(frames).vectors - halved.encode(frames).vectors).max()
    assert 0 < difference < 5e-3


def test_siglip2_pixels_are_those_of_its_image_processor(a4c_frames: np.ndarray) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    half = [0.5, 0.5, 0.5]
    processor = SiglipImageProcessorPil(
        size={"height": 224, "width": 224}, resample=Image.Resampling.BILINEAR, image_mean=half, image_std=half
    )
    images = [Image.fromarray(frame) for frame in a4c_frames[::10]]
    expected = np.stack(processor(images=images, return_tensors="np")["pixel_values"])
    assert np.abs(prepared(SIGLIP2_CARD, a4c_frames[::10]) - expected).max() <= 1e-6


def test_medsiglip_pixels_are_tensorflows(a4c_frames: np.ndarray) -> None:
    frames = a4c_frames[:2]
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(frames.copy()).movedim(3, 1).double(), size=(448, 448), mode="bilinear", align_corners=False
    )
    levels = torch.floor(exact + 1e-4).numpy()
    found = (prepared(MEDSIGLIP_CARD, frames) * 0.5 + 0.5) * 255
    assert (np.abs(found - levels) > 1e-3).mean() < 1e-3
    pillow = [np.asarray(Image.fromarray(frame).resize((448, 448), Image.Resampling.BILINEAR)) for frame in frames]
    found = (prepared(MEDSIGLIP_CARD, frames, variant="pillow") * 0.5 + 0.5) * 255
    assert np.abs(found - np.stack(pillow).transpose(0, 3, 1, 2)).max() < 1e-3


def test_cardiobench_is_cut_zoomed_and_blue_first(a4c_frames: np.ndarray) -> None:
    import cv2

    frame = a4c_frames[3]
    side = frame.shape[0]
    left = (frame.shape[1] - side) // 2
    cut = frame[24:-24, left + 24 : left + side - 24]
    expected = cv2.resize(cut, (224, 224), interpolation=cv2.INTER_CUBIC)[..., ::-1].transpose(2, 0, 1)
    found = prepared(SIGLIP2_CARD, frame[None], variant="cardiobench")[0]
    assert np.abs((found * 0.5 + 0.5) * 255 - expected).max() < 1e-3
    sampling = SIGLIP2_CARD.variants["cardiobench"].sampling
    assert sampling.resolve(n_frames=40, fps=30.0).windows == (tuple(range(16)),)


def test_other_sizes_follow_the_checkpoint(small, tmp_path: Path) -> None:
    folder, _ = small("siglip2-so400m")
    fitted = fit(SIGLIP2_CARD, variant="published", weights=folder)
    assert (fitted.clip_dim, fitted.frame_dim, fitted.input_size) == (1152, 1152, (3, 384, 384))
    assert fitted.preprocessing["steps"][0]["height"] == 384 and fitted.name == "siglip2"
    assert load(fitted, folder).input_shape == (384, 384, 3)
    # Without config.json the grid of 27 patches of 14 says 378, unless the card's own size has that grid.
    alone = tmp_path / "model.safetensors"
    shutil.copy(folder / "model.safetensors", alone)
    assert fit(SIGLIP2_CARD, variant="published", weights=alone).input_size == (3, 378, 378)
    assert fit(SIGLIP2_SO400M_CARD, variant="published", weights=alone) is SIGLIP2_SO400M_CARD
    assert fit(SIGLIP2_CARD, variant="published", weights=None) is SIGLIP2_CARD
    assert SIGLIP2_CARD.fitted(weights=folder) == fitted


def test_another_size_is_refused_where_the_spec_says_otherwise(small) -> None:
    folder, _ = small("siglip2-so400m")
    with pytest.raises(FormatError, match=r"vectors of 1152 numbers, siglip2 of 768; is it another size"):
        load(SIGLIP2_CARD, folder)
    spec = MEDSIGLIP_CARD.spec()
    with pytest.raises(FormatError, match=r"takes frames of 384x384 pixels, medsiglip prepares 448x448"):
        siglip.load(LoadRequest(spec=spec, weights=folder, device="cpu"))


def test_wrong_files_are_named(small, tmp_path: Path) -> None:
    folder, _ = small("siglip2")
    state = load_file(folder / "model.safetensors")
    file = tmp_path / "model.safetensors"

    flexible = {**state, "vision_model.embeddings.patch_embedding.weight": torch.zeros(768, 768)}
    save_file(flexible, file)
    with pytest.raises(FormatError, match=r"patch_embedding.weight has shape \(768, 768\), not 4 sides"):
        load(SIGLIP2_CARD, file)

    dropped = {key: tensor for key, tensor in state.items() if key != "text_model.final_layer_norm.bias"}
    save_file({**dropped, "vision_model.extra": torch.zeros(1)}, file)
    with pytest.raises(
        FormatError, match=r"missing: text_model.final_layer_norm.bias; .* unexpected: vision_model.ex"
    ):
        load(SIGLIP2_CARD, file)

    dino, _ = small("dinov2")
    with pytest.raises(
        FormatError, match=r"vision_model.embeddings.patch_embedding.weight is missing.*embeddings.cls"
    ):
        load(SIGLIP2_CARD, dino)

    whole = (folder / "model.safetensors").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="cut off or damaged"):
        load(SIGLIP2_CARD, file)
    with pytest.raises(CorruptionError, match="has SHA-256"):
        load(SIGLIP2_CARD, folder / "model.safetensors", digest="0" * 64)
    assert load(SIGLIP2_CARD, folder / "model.safetensors", digest=sha256_of_file(folder / "model.safetensors"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=r"holds none of model.safetensors, .*; give the folder or file"):
        load(SIGLIP2_CARD, tmp_path / "empty")
    with pytest.raises(StorageError, match=r"absent.safetensors is not there"):
        load(SIGLIP2_CARD, tmp_path / "absent.safetensors")


def test_settings_that_cannot_be_followed(small, tmp_path: Path) -> None:
    folder, _ = small("siglip2")
    shutil.copytree(folder, tmp_path / "model")
    settings = tmp_path / "model" / "config.json"
    stored = json.loads(settings.read_text())
    stored["vision_config"]["hidden_act"] = "relu"
    settings.write_text(json.dumps(stored))
    with pytest.raises(FormatError, match="states the activation 'relu'"):
        load(SIGLIP2_CARD, tmp_path / "model")
    stored["vision_config"].update(hidden_act="gelu_pytorch_tanh", num_attention_heads=7)
    settings.write_text(json.dumps(stored))
    with pytest.raises(FormatError, match="of width 768 cannot have 7 heads"):
        load(SIGLIP2_CARD, tmp_path / "model")
    settings.write_text("{")
    with pytest.raises(FormatError, match=r"config.json is no JSON"):
        load(SIGLIP2_CARD, tmp_path / "model")


# Texts.


@pytest.fixture
def gemma_like(small, tmp_path: Path) -> Path:
    """The small SigLIP 2 with a byte-pair tokenizer of 60 tokens, stored as the hub stores Gemma's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    folder = tmp_path / "siglip2"
    shutil.copytree(small("siglip2")[0], folder)
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "\u2581"])}
    for letter in "abcdefghijklmnopqrstuvwxyz.%0123456789":
        vocabulary[letter] = len(vocabulary)
    merges = [("l", "v"), ("e", "f"), ("\u2581", "ef"), ("i", "s"), ("\u2581", "is")]
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": False,
        "add_eos_token": True,
        "bos_token": "<bos>",
        "eos_token": {"content": "<eos>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<pad>"}))
    return folder


def text_tower(folder: Path, card=SIGLIP2_CARD):
    return load_text_tower(card, LoadRequest(spec=card.spec(), weights=folder, device="cpu"))


def test_texts_equal_transformers(gemma_like: Path, small) -> None:
    _, theirs = small("siglip2")
    tower = text_tower(gemma_like)
    prompts = ["LV EF is 55%", "lv", "the left ventricle is dilated and its function is severely reduced."]
    vectors = tower.embed(prompts)
    # Character by character, by hand: lower case, marks for spaces, the five merges, end, padding to 16.
    numbers = json.loads((gemma_like / "tokenizer.json").read_text())["model"]["vocab"]
    pieces = ["lv", "\u2581ef", "\u2581is", "\u2581", "5", "5", "%", "<eos>"]
    tokens = torch.tensor([[numbers[piece] for piece in pieces] + [0] * 8, [numbers["lv"], 1] + [0] * 14])
    with torch.inference_mode():
        found = theirs.get_text_features(input_ids=tokens)
        expected = torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1).numpy()
    assert vectors.shape == (3, 768) and vectors.dtype == np.float32
    assert np.abs(vectors[:2] - expected).max() <= 1e-5
    assert tower.logit_scale == pytest.approx(float(theirs.logit_scale.detach().exp()))
    assert tower.logit_bias == pytest.approx(float(theirs.logit_bias.detach()))
    assert tower.tokenizer.context == 16 and "lower" in tower.tokenizer.kind


def test_case_does_not_matter_and_neighbours_neither(gemma_like: Path) -> None:
    tower = text_tower(gemma_like)
    prompts = [f"ef is {number}" for number in range(40)]
    vectors = tower.embed(prompts)
    assert np.array_equal(vectors[7:8], tower.embed([prompts[7].upper()]))
    assert tower.embed([]).shape == (0, 768)


def test_the_tokenizer_has_to_be_there_and_to_fit(small, gemma_like: Path) -> None:
    with pytest.raises(StorageError, match=r"needs? the model's own tokenizer, and .* has no tokenizer.json"):
        text_tower(small("siglip2")[0])
    first = text_tower(gemma_like).tokenizer
    settings = json.loads((gemma_like / "tokenizer_config.json").read_text())
    (gemma_like / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    assert text_tower(gemma_like).tokenizer.sha256 != first.sha256, "the identity does not follow the settings"
    (gemma_like / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<fill>"}))
    with pytest.raises(FormatError, match="has no padding token '<fill>'"):
        text_tower(gemma_like)
    stored = json.loads((gemma_like / "tokenizer.json").read_text())
    stored["model"]["vocab"].update({f"word{number}": 47 + number for number in range(40)})
    (gemma_like / "tokenizer.json").write_text(json.dumps(stored))
    (gemma_like / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(FormatError, match=r"the text tower of .* knows 60; is it another model's"):
        text_tower(gemma_like)
    (gemma_like / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokenizer.json cannot be read"):
        text_tower(gemma_like)


@pytest.mark.parametrize("prompts", ["one text", ["fine", ""], ["fine", None]])
def test_what_is_no_prompt_is_refused(gemma_like: Path, prompts) -> None:
    with pytest.raises(ContentError, match=r"embed takes a list|prompt 1 of siglip2 is"):
        text_tower(gemma_like).embed(prompts)
