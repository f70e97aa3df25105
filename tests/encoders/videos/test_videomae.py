"""VideoMAE and Echo-Vision-FM: keys and counts, transformers' own model, three spellings, pixels, wrong files."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_videos import close
from torchvision.transforms import v2

from embedstore.errors import FormatError, StorageError
from encoders.published_card import IMAGENET_MEAN, IMAGENET_STD
from encoders.videomae import ECHO_VISION_FM_CARD, VIDEOMAE_CARD, fit
from encoders.videomae_keys import AUTHORS_DECODER, HF_DECODER
from encoders.videomae_model import VideoMae, VideoMaeSizes

FULL = VideoMaeSizes(width=768, inner=3072, n_layers=12, patch=16, tubelet=2, has_norm=False)


def authors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a pretraining state dict of transformers under the names of the authors' code."""
    made: dict[str, torch.Tensor] = {}
    parts = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    for key, tensor in state.items():
        name = key.removeprefix("videomae.").replace("decoder.decoder_layers.", "decoder.blocks.")
        name = name.replace("encoder.layer.", "encoder.blocks.")
        name = name.replace("embeddings.patch_embeddings.projection", "encoder.patch_embed.proj")
        name = name.replace("layernorm.", "encoder.norm.") if name.startswith("layernorm.") else name
        base, _, kind = name.rpartition(".")
        if ".blocks." not in name:
            made[name] = tensor
        elif base.endswith("attention.attention.query"):
            block = base.removesuffix(".attention.attention.query")
            if kind == "bias":
                made[f"{block}.attn.q_bias"] = tensor
            else:
                pieces = [state[key.replace("query", part)] for part in ("query", "key", "value")]
                made[f"{block}.attn.qkv.weight"] = torch.cat(pieces)
        elif base.endswith("attention.attention.value") and kind == "bias":
            made[base.replace("attention.attention.value", "attn.v_bias")] = tensor
        elif "attention.attention" not in base:
            old = next(old for old in parts if base.endswith(old))
            made[f"{base.removesuffix(old)}{parts[old]}.{kind}"] = tensor
    return made


def scaled(pixels: np.ndarray) -> torch.Tensor:
    levels = (pixels.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(levels.astype(np.float32)).permute(0, 3, 1, 2)[None]


def tokens_of(theirs: torch.nn.Module, pixels: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return theirs(pixels).last_hidden_state.numpy()


def test_full_size_has_the_published_keys_and_parameters() -> None:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    with torch.device("meta"):
        network = VideoMae(FULL, epsilon=1e-12)
        whole = VideoMAEForPreTraining(VideoMAEConfig()).state_dict()
    state = network.state_dict()
    count = sum(part.numel() for part in network.parameters())
    assert (len(state), count) == (182, 86_225_664)
    assert count == VIDEOMAE_CARD.n_parameters == ECHO_VISION_FM_CARD.n_parameters
    assert VideoMaeSizes.read({key: tuple(part.shape) for key, part in state.items()}, source="meta") == FULL
    assert (len(whole), sum(part.numel() for part in whole.values())) == (248, 94_209_408)
    decoder = {key for key in whole if not key.startswith("videomae.")}
    assert whole.keys() - decoder == {f"videomae.{key}" for key in state} and len(decoder) == 66
    renamed = authors({key: part for key, part in whole.items() if "." in key or key == "mask_token"})
    named = {key for key in renamed if not key.startswith("encoder.")}
    for keys, patterns in ((decoder, HF_DECODER), (named, AUTHORS_DECODER)):
        assert all(any(fnmatchcase(key, pattern) for pattern in patterns) for key in keys)
        assert not any(fnmatchcase(key, pattern) for key in state for pattern in patterns)
        assert all(any(fnmatchcase(key, pattern) for key in keys) for pattern in patterns)


def test_videomae_vectors_and_steps_equal_transformers(video, load, a4c_frames: np.ndarray) -> None:
    folder, theirs = video("videomae")
    encoder = load(VIDEOMAE_CARD, folder)
    (picked,) = encoder.spec.sampling.resolve(n_frames=30, fps=None).windows
    assert picked == (*range(0, 30, 4), *[28] * 8)
    batch = encoder.preprocess(a4c_frames[list(picked)])[None]
    assert theirs.layernorm is not None, "the published file has a last norm"
    tokens = tokens_of(theirs, scaled(batch[0]))
    encoded = encoder.encode(batch)
    close(encoded.vectors, tokens.mean(axis=1))
    close(encoded.steps, tokens.reshape(1, 8, 196, 768).mean(axis=2))


def test_videomae_pixels_are_those_of_its_image_processor(video, load, a4c_frames: np.ndarray) -> None:
    from transformers import VideoMAEImageProcessor

    # preprocessor_config.json of the hub: ImageNet's numbers, which are not the class's own.
    processor = VideoMAEImageProcessor(image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
    encoder = load(VIDEOMAE_CARD, video("videomae")[0])
    for frames in (a4c_frames[::10], a4c_frames[::10, :, :302], a4c_frames[::10, 3:, :].transpose(0, 2, 1, 3)):
        images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
        expected = torch.as_tensor(np.stack(processor(images, return_tensors="pt")["pixel_values"]))
        pixels = encoder.preprocess(frames)
        height, width = frames.shape[1:3]
        size = (int(224 * width / height), 224) if height <= width else (224, int(224 * height / width))
        exact = np.stack([np.asarray(image.resize(size, Image.Resampling.BILINEAR)) for image in images])
        top, left = round((exact.shape[1] - 224) / 2), round((exact.shape[2] - 224) / 2)
        assert np.array_equal(pixels, exact[:, top : top + 224, left : left + 224])
        # The class was built on Pillow; since release 5 it is on torch's kernel, a level off here and there.
        off = (scaled(pixels) - expected).abs()
        assert float(off.max()) <= 1.001 / 255 / min(IMAGENET_STD) and float((off > 1e-5).float().mean()) < 2e-3


def test_all_spellings_are_read(video, load, a4c_frames: np.ndarray, tmp_path: Path) -> None:
    folder, theirs = video("videomae", depth=1)
    state = load_file(folder / "model.safetensors")
    published = load(VIDEOMAE_CARD, folder)
    batch = published.preprocess(a4c_frames[:16])[None]
    expected = published.encode(batch).vectors

    def vectors(file: str, content: dict[str, object]) -> np.ndarray:
        torch.save(content, tmp_path / file)
        return load(VIDEOMAE_CARD, tmp_path / file).encode(batch).vectors

    older = {key.replace("attention.query.bias", "attention.q_bias"): part for key, part in state.items()}
    older = {key.replace("attention.value.bias", "attention.v_bias"): part for key, part in older.items()}
    assert older.keys() != state.keys() and np.array_equal(vectors("pytorch_model.bin", older), expected)
    alone = {key.removeprefix("videomae."): part for key, part in state.items() if key.startswith("videomae.")}
    assert np.array_equal(vectors("alone.bin", alone), expected)
    # The authors' norms have another epsilon, which no vector shows at this precision.
    close(vectors("checkpoint.pth", {"model": authors(state), "epoch": 1599}), expected)
    without = {key: part for key, part in alone.items() if not key.startswith("layernorm.")}
    with torch.inference_mode():
        before = theirs.encoder(theirs.embeddings(scaled(batch[0]), None)).last_hidden_state.numpy()
    close(vectors("without.bin", without), before.mean(axis=1))


def test_echo_vision_fm_equals_transformers(video, load, a4c_frames: np.ndarray) -> None:
    folder, theirs = video("echo-vision-fm")
    encoder = load(ECHO_VISION_FM_CARD, folder)
    (picked,) = encoder.spec.sampling.resolve(n_frames=30, fps=None).windows
    assert list(picked) == torch.linspace(0, 29, 16).long().tolist()
    frames = a4c_frames[list(picked)]
    # The authors' transform: uint8, torchvision's Resize, then float in [0, 1].
    transform = v2.Compose([v2.Resize(size=(224, 224)), v2.ToDtype(torch.float32, scale=True)])
    pixels = transform(torch.from_numpy(frames).permute(0, 3, 1, 2))[None]
    assert theirs.layernorm is None
    tokens = tokens_of(theirs, pixels)
    encoded = encoder.encode(encoder.preprocess(frames)[None])
    close(encoded.vectors, tokens.max(axis=1))
    close(encoded.steps, tokens.reshape(1, 8, 196, 768).mean(axis=2))
    mean = load(ECHO_VISION_FM_CARD, folder, variant="token-mean")
    close(mean.encode(encoder.preprocess(frames)[None]).vectors, tokens.mean(axis=1))


def test_echo_vision_fm_without_a_last_norm_only(video, load, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="2 keys are unexpected: layernorm.bias, layernorm.weight"):
        load(ECHO_VISION_FM_CARD, video("videomae")[0])
    state = torch.load(video("echo-vision-fm")[0] / "pytorch_model.bin", weights_only=True)
    torch.save({f"module.{key}": part for key, part in state.items()}, tmp_path / "pytorch_model.bin")
    assert load(ECHO_VISION_FM_CARD, tmp_path).spec.clip_dim == 768


@pytest.fixture
def respelled(video, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes VideoMAE's small file anew after a change of it."""

    def write(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
        save_file(change(load_file(video("videomae")[0] / "model.safetensors")), tmp_path / "model.safetensors")
        return tmp_path

    return write


def test_wrong_checkpoints_are_refused_with_the_keys_of_the_file(video, load, respelled, tmp_path: Path) -> None:
    def hub(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del state["videomae.encoder.layer.0.attention.attention.value.bias"]
        return {**state, "fc_norm.weight": torch.zeros(768)}

    with pytest.raises(FormatError) as refused:
        load(VIDEOMAE_CARD, respelled(hub))
    assert "missing: videomae.encoder.layer.0.attention.attention.value.bias;" in str(refused.value)
    assert "unexpected: fc_norm.weight" in str(refused.value)

    def older(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state = {key.replace("attention.query.bias", "attention.q_bias"): part for key, part in state.items()}
        del state["videomae.encoder.layer.1.attention.attention.q_bias"]
        return state

    with pytest.raises(FormatError, match=r"missing: videomae.encoder.layer.1.attention.attention.q_bias"):
        load(VIDEOMAE_CARD, respelled(older))

    def theirs(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = authors(state)
        renamed["encoder.blocks.0.attn.qkv.weight"] = torch.zeros(3 * 768, 700)
        del renamed["encoder.blocks.1.attn.q_bias"]
        return renamed

    with pytest.raises(FormatError) as refused:
        load(VIDEOMAE_CARD, respelled(theirs))
    assert "missing: encoder.blocks.1.attn.q_bias;" in str(refused.value)
    assert "encoder.blocks.0.attn.qkv.weight (768, 700) instead of (768, 768)" in str(refused.value)

    def twice(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**state, "videomae.encoder.layer.0.attention.attention.q_bias": torch.zeros(768)}

    with pytest.raises(FormatError, match="query.bias twice, in two spellings"):
        load(VIDEOMAE_CARD, respelled(twice))
    with pytest.raises(FormatError, match="the key embeddings.patch_embeddings.projection.weight is missing"):
        load(VIDEOMAE_CARD, video("vjepa2")[0])
    whole = (video("videomae")[0] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="cut off or damaged"):
        load(VIDEOMAE_CARD, tmp_path)


def test_other_sizes_follow_the_checkpoint(video, load, tmp_path: Path) -> None:
    assert fit(VIDEOMAE_CARD, variant="published", weights=video("videomae")[0]) is VIDEOMAE_CARD
    for key in ("embeddings.patch_embeddings.projection.weight", "encoder.patch_embed.proj.weight"):
        save_file({key: torch.zeros(1024, 3, 2, 16, 16)}, tmp_path / "model.safetensors")
        fitted = fit(VIDEOMAE_CARD, variant="published", weights=tmp_path)
        assert (fitted.clip_dim, fitted.frame_dim) == (1024, 1024)
    with pytest.raises(FormatError, match="videomae.embeddings.patch_embeddings.projection.weight is missing"):
        fit(VIDEOMAE_CARD, variant="published", weights=video("vjepa2")[0])


@pytest.mark.slow
def test_full_size_loads_and_equals_transformers(filled, load, a4c_frames: np.ndarray, tmp_path: Path) -> None:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    theirs = VideoMAEForPreTraining(VideoMAEConfig()).eval()
    torch.save(filled(theirs, seed=23), tmp_path / "pytorch_model.bin")
    encoder = load(ECHO_VISION_FM_CARD, tmp_path)
    batch = encoder.preprocess(a4c_frames[:16])[None]
    pixels = torch.from_numpy(batch[0]).permute(0, 3, 1, 2)[None] / 255
    close(encoder.encode(batch).vectors, tokens_of(theirs.videomae, pixels).max(axis=1))
