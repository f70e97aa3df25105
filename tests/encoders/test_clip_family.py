"""EchoCLIP, BiomedCLIP and CLIP: the loader against towers wired here from plain layers, the authors' pixels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchvision import transforms

from embedstore.encoder import LoadRequest, load_encoder
from embedstore.errors import (
    FormatError,
    UnknownNameError,
)
from encoders import clip_family
from encoders.clip_family import (
    BIOMEDCLIP_CARD,
    CLIP_CARD,
    CLIP_VIT_L_14_CARD,
    ECHO_CLIP_CARD,
    ECHO_CLIP_R_CARD,
    fit,
)
from encoders.clip_towers import CLIP_MEAN, CLIP_STD, architecture, architecture_names, build_towers
from encoders.frame_encoder import FrameEncoder

State = dict[str, torch.Tensor]


def load(card, weights: Path | None, *, variant: str = "published", digest: str | None = None) -> FrameEncoder:
    spec = card.spec(variant=variant, weights_sha256=digest)
    return load_encoder(card, LoadRequest(spec=spec, weights=weights, device="cpu"))


def prepared(card, frames: np.ndarray, *, variant: str = "published") -> np.ndarray:
    """The pixels as a network would get them, (T, 3, side, side)."""
    spec = card.spec(variant=variant)
    spec = replace(spec, preprocessing={**spec.preprocessing, "vectors": "raw"})
    side = card.input_size[1]
    encoder = FrameEncoder(torch.nn.Flatten(), spec=spec, device=torch.device("cpu"), side=side)
    return encoder.encode(encoder.preprocess(frames)).vectors.reshape(-1, 3, side, side)


# Towers from plain layers; `state` is the published file's.


def norm(state: State, name: str, values: torch.Tensor, *, eps: float) -> torch.Tensor:
    centred = values - values.mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, values: torch.Tensor) -> torch.Tensor:
    made = values @ state[f"{name}.weight"].flatten(1).T
    return made + state[f"{name}.bias"] if f"{name}.bias" in state else made


def attention(fused: torch.Tensor, *, n_heads: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """From query, key and value beside one another, (B, L, 3 D), to the mixed values, (B, L, D)."""
    query, key, value = (part.unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in fused.chunk(3, dim=-1))
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def convnext(state: State, images: torch.Tensor, *, depths: tuple[int, ...], prefix: str) -> torch.Tensor:
    """ConvNeXt (arXiv:2201.03545) and a projection, under timm's names."""

    def along_channels(name: str, maps: torch.Tensor) -> torch.Tensor:
        return norm(state, name, maps.movedim(1, 3), eps=1e-6).movedim(3, 1)

    def convolved(name: str, maps: torch.Tensor, **settings: int) -> torch.Tensor:
        return functional.conv2d(maps, state[f"{name}.weight"], state[f"{name}.bias"], **settings)

    maps = along_channels(f"{prefix}stem.1", convolved(f"{prefix}stem.0", images, stride=4))
    for stage, depth in enumerate(depths):
        if stage:
            name = f"{prefix}stages.{stage}.downsample"
            maps = convolved(f"{name}.1", along_channels(f"{name}.0", maps), stride=2)
        for block in range(depth):
            name = f"{prefix}stages.{stage}.blocks.{block}"
            inner = convolved(f"{name}.conv_dw", maps, padding=3, groups=maps.shape[1]).movedim(1, 3)
            inner = linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm", inner, eps=1e-6))
            inner = linear(state, f"{name}.mlp.fc2", functional.gelu(inner)) * state[f"{name}.gamma"]
            maps = maps + inner.movedim(3, 1)
    return norm(state, f"{prefix}head.norm", maps.mean(dim=(2, 3)), eps=1e-6)


def timm_vit(state: State, images: torch.Tensor, *, depth: int, n_heads: int, prefix: str) -> torch.Tensor:
    """ViT (arXiv:2010.11929) read out by its class token, under timm's names."""
    kernel = state[f"{prefix}patch_embed.proj.weight"]
    patches = functional.conv2d(images, kernel, state[f"{prefix}patch_embed.proj.bias"], stride=kernel.shape[-1])
    tokens = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat([state[f"{prefix}cls_token"].expand(len(images), -1, -1), tokens], dim=1)
    tokens = tokens + state[f"{prefix}pos_embed"]
    for block in range(depth):
        name = f"{prefix}blocks.{block}"
        fused = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", tokens, eps=1e-6))
        tokens = tokens + linear(state, f"{name}.attn.proj", attention(fused, n_heads=n_heads))
        inner = functional.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", tokens, eps=1e-6)))
        tokens = tokens + linear(state, f"{name}.mlp.fc2", inner)
    return norm(state, f"{prefix}norm", tokens, eps=1e-6)[:, 0]


def quick_gelu(values: torch.Tensor) -> torch.Tensor:
    return values * torch.sigmoid(1.702 * values)


def clip_layers(
    state: State, tokens: torch.Tensor, *, prefix: str, n_heads: int, activation, mask=None
) -> torch.Tensor:
    """Layers of CLIP (arXiv:2103.00020), under open_clip's names."""
    depth = len({key.split("resblocks.")[1].split(".")[0] for key in state if key.startswith(f"{prefix}resblocks.")})
    for block in range(depth):
        name = f"{prefix}resblocks.{block}"
        inner = norm(state, f"{name}.ln_1", tokens, eps=1e-5)
        fused = inner @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]
        tokens = tokens + linear(state, f"{name}.attn.out_proj", attention(fused, n_heads=n_heads, mask=mask))
        inner = activation(linear(state, f"{name}.mlp.c_fc", norm(state, f"{name}.ln_2", tokens, eps=1e-5)))
        tokens = tokens + linear(state, f"{name}.mlp.c_proj", inner)
    return tokens


def clip_vit(state: State, images: torch.Tensor, *, n_heads: int, activation) -> torch.Tensor:
    kernel = state["visual.conv1.weight"]
    tokens = functional.conv2d(images, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(images), 1, -1)
    tokens = torch.cat([first, tokens], dim=1) + state["visual.positional_embedding"]
    tokens = norm(state, "visual.ln_pre", tokens, eps=1e-5)
    tokens = clip_layers(state, tokens, prefix="visual.transformer.", n_heads=n_heads, activation=activation)
    return norm(state, "visual.ln_post", tokens[:, 0], eps=1e-5) @ state["visual.proj"]


def unit(vectors: torch.Tensor) -> np.ndarray:
    return (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()


# Keys and sizes.


@pytest.mark.parametrize(
    ("card", "n_keys"),
    [(ECHO_CLIP_CARD, 493), (CLIP_CARD, 302), (clip_family.CLIP_VIT_B_16_CARD, 302), (CLIP_VIT_L_14_CARD, 446)],
)
def test_full_size_has_the_published_keys_and_parameters(card, n_keys: int) -> None:
    config = architecture(card.preprocessing["architecture"])
    text = config["text_cfg"]
    shapes = {
        "token_embedding.weight": (text["vocab_size"], text["width"]),
        "positional_embedding": (77, text["width"]),
        "text_projection": (text["width"], config["embed_dim"]),
    }
    with torch.device("meta"):
        towers, dim = build_towers(config, shapes, source="meta")
    state = towers.state_dict()
    assert len(state) == n_keys and dim == card.clip_dim
    assert sum(part.numel() for part in towers.parameters()) == card.n_parameters
    if card is ECHO_CLIP_CARD:
        assert state["visual.trunk.stem.0.weight"].shape == (128, 3, 4, 4)
        assert state["visual.head.proj.weight"].shape == (512, 1024)


def test_full_size_biomedclip_has_the_published_keys_and_parameters() -> None:
    shapes = {
        "text.transformer.embeddings.word_embeddings.weight": (30522, 768),
        "text.transformer.embeddings.position_embeddings.weight": (512, 768),
        "text.transformer.embeddings.token_type_embeddings.weight": (2, 768),
        "text.transformer.encoder.layer.0.intermediate.dense.weight": (3072, 768),
        "text.transformer.encoder.layer.11.output.dense.weight": (768, 3072),
        "text.proj.0.weight": (640, 768),
        "text.proj.2.weight": (512, 640),
    }
    with torch.device("meta"):
        towers, dim = build_towers(clip_family._BIOMEDCLIP, shapes, source="meta")
    state = towers.state_dict()
    assert len(state) == 351 and dim == 512
    assert sum(part.numel() for part in towers.parameters()) == BIOMEDCLIP_CARD.n_parameters
    assert state["visual.trunk.pos_embed"].shape == (1, 197, 768)


# Vectors.


@pytest.fixture(scope="module")
def echo_clip_tiny(tmp_path_factory: pytest.TempPathFactory, filled) -> tuple[Path, State]:
    """EchoCLIP's layout with ConvNeXt-Tiny, whose blocks are those of -Base, and a text tower of one layer."""
    from open_clip.model import CLIP

    folder = tmp_path_factory.mktemp("echo-clip-tiny")
    config = {
        "embed_dim": 512,
        "vision_cfg": {"timm_model_name": "convnext_tiny", "timm_pool": "", "timm_proj": "linear", "image_size": 224},
        "text_cfg": {"context_length": 77, "vocab_size": 200, "width": 64, "heads": 1, "layers": 1},
    }
    state = filled(CLIP(**config), seed=11)
    # The published settings file states CLIP's vocabulary; the tensors are believed.
    stated = {**config, "text_cfg": {**config["text_cfg"], "vocab_size": 49408}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": stated}))
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder, state


def test_echo_clip_equals_a_tower_from_plain_layers(echo_clip_tiny, a4c_frames: np.ndarray) -> None:
    folder, state = echo_clip_tiny
    encoder = load(ECHO_CLIP_CARD, folder)
    frames = a4c_frames[::20]
    vectors = encoder.encode(encoder.preprocess(frames)).vectors
    images = torch.from_numpy(prepared(ECHO_CLIP_CARD, frames))
    pooled = convnext(state, images, depths=(3, 3, 9, 3), prefix="visual.trunk.")
    expected = unit(pooled @ state["visual.head.proj.weight"].T)
    assert vectors.shape == (2, 512) and np.abs(vectors - expected).max() <= 1e-5


def test_biomedclip_equals_a_tower_from_plain_layers(small, a4c_frames: np.ndarray) -> None:
    folder, theirs = small("biomedclip")
    state = theirs.state_dict()
    encoder = load(BIOMEDCLIP_CARD, folder)
    frames = a4c_frames[::20]
    vectors = encoder.encode(encoder.preprocess(frames)).vectors
    images = torch.from_numpy(prepared(BIOMEDCLIP_CARD, frames))
    pooled = timm_vit(state, images, depth=12, n_heads=3, prefix="visual.trunk.")
    assert np.abs(vectors - unit(pooled @ state["visual.head.proj.weight"].T)).max() <= 1e-5


def test_clip_equals_a_tower_from_plain_layers(small, a4c_frames: np.ndarray) -> None:
    folder, _ = small("clip")
    state = load_file(folder / "open_clip_model.safetensors")
    encoder = load(CLIP_CARD, folder)
    frames = a4c_frames[::20]
    vectors = encoder.encode(encoder.preprocess(frames)).vectors
    images = torch.from_numpy(prepared(CLIP_CARD, frames))
    expected = unit(clip_vit(state, images, n_heads=2, activation=quick_gelu))
    assert np.abs(vectors - expected).max() <= 1e-5
    plain = unit(clip_vit(state, images, n_heads=2, activation=functional.gelu))
    assert np.abs(vectors - plain).max() > 1e-4, "the form of GELU does not matter"


@pytest.mark.slow
def test_echo_clip_at_full_size_from_a_file_alone(filled, a4c_frames: np.ndarray, tmp_path: Path) -> None:
    import open_clip

    state = filled(open_clip.create_model("convnext_base"), seed=12)
    torch.save(state, tmp_path / "echo-clip.bin")
    encoder = load(ECHO_CLIP_CARD, tmp_path / "echo-clip.bin")
    vectors = encoder.encode(encoder.preprocess(a4c_frames[:1])).vectors
    images = torch.from_numpy(prepared(ECHO_CLIP_CARD, a4c_frames[:1]))
    pooled = convnext(state, images, depths=(3, 3, 27, 3), prefix="visual.trunk.")
    assert np.abs(vectors - unit(pooled @ state["visual.head.proj.weight"].T)).max() <= 1e-5


# Pixels.


def test_echo_clip_pixels_are_its_authors(a4c_frames: np.ndarray) -> None:
    """Read as OpenCV reads, blue first; cut, zoomed and scaled; then open_clip's evaluation transform."""
    transform = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    expected = []
    for frame in a4c_frames[::10, :, :, ::-1]:
        cut = frame[:, 40:-40]
        scaled = cv2.resize(cut[24:-24, 24:-24], (224, 224), interpolation=cv2.INTER_CUBIC)
        expected.append(transform(Image.fromarray(scaled)).numpy())
    assert np.abs(prepared(ECHO_CLIP_CARD, a4c_frames[::10]) - np.stack(expected)).max() <= 1e-6
    red_first = prepared(ECHO_CLIP_CARD, a4c_frames[:1], variant="rgb")
    blue_first = (prepared(ECHO_CLIP_CARD, a4c_frames[:1]) * _column(CLIP_STD) + _column(CLIP_MEAN))[:, ::-1]
    assert np.abs(red_first * _column(CLIP_STD) + _column(CLIP_MEAN) - blue_first).max() <= 1e-6


def _column(numbers: tuple[float, ...]) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)[:, None, None]


@pytest.mark.parametrize("card", [CLIP_CARD, BIOMEDCLIP_CARD, CLIP_VIT_L_14_CARD])
def test_clip_pixels_are_open_clips(card, a4c_frames: np.ndarray) -> None:
    from open_clip.transform import image_transform

    transform = image_transform(224, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)
    expected = torch.stack([transform(Image.fromarray(frame)) for frame in a4c_frames[::10]]).numpy()
    assert np.abs(prepared(card, a4c_frames[::10]) - expected).max() <= 1e-6


def test_frames_are_picked_as_the_authors_pick_them() -> None:
    published = ECHO_CLIP_CARD.variants["published"].sampling
    for n_frames in (1, 7, 30, 40, 41, 200):
        expected = tuple(range(n_frames))[0 : min(40, n_frames) : 2]
        assert published.resolve(n_frames=n_frames, fps=50.0).windows == (expected,)
        whole = ECHO_CLIP_R_CARD.variants["published"].sampling.resolve(n_frames=n_frames, fps=None)
        assert whole.windows == (tuple(range(n_frames)),)
    bench = ECHO_CLIP_CARD.variants["cardiobench"].sampling
    assert bench.resolve(n_frames=30, fps=None).windows == (tuple(range(16)),)


# Any architecture of open_clip.


def test_variants_name_architectures() -> None:
    assert "vit-b-32-quickgelu" in architecture_names()
    fitted = CLIP_CARD.fitted(variant="vit-l-14-quickgelu")
    spec = fitted.spec(variant="vit-l-14-quickgelu")
    assert (spec.clip_dim, spec.frame_dim, spec.title) == (768, 768, "clip@vit-l-14-quickgelu")
    assert spec.preprocessing["architecture"] == "vit-l-14-quickgelu"
    larger = CLIP_CARD.fitted(variant="ViT-L-14-336-quickgelu")
    assert larger.input_size == (3, 336, 336)
    assert larger.spec(variant="ViT-L-14-336-quickgelu").preprocessing["steps"][-1]["height"] == 336
    with pytest.raises(
        UnknownNameError, match=r"'clip' has no variant 'vit-l-41-quickgelu'; did you mean 'vit-l-14-qu"
    ):
        CLIP_CARD.fitted(variant="vit-l-41-quickgelu")
    assert CLIP_CARD.fitted(variant="cardiobench") == replace(CLIP_CARD)


def test_a_folders_settings_are_believed(small, a4c_frames: np.ndarray, tmp_path: Path) -> None:
    folder, _ = small("clip-vit-l-14")
    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    stored = json.loads((copied / "open_clip_config.json").read_text())
    stored["preprocess_cfg"] = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    (copied / "open_clip_config.json").write_text(json.dumps(stored))
    fitted = fit(CLIP_CARD, variant="published", weights=copied)
    assert fitted.clip_dim == 768 and fitted.preprocessing["mean"] == [0.5] * 3
    assert fitted.preprocessing["steps"] == [
        {"step": "pillow-resize", "height": 224, "width": 224, "kernel": "bilinear"}
    ]
    encoder = load(fitted, copied)
    assert encoder.encode(encoder.preprocess(a4c_frames[:1])).vectors.shape == (1, 768)
    with pytest.raises(FormatError, match=r"states mean and std \[\[0.5, 0.5, 0.5\].*is it another model's"):
        load(CLIP_VIT_L_14_CARD, copied)
    stored["preprocess_cfg"]["resize_mode"] = "longest"
    (copied / "open_clip_config.json").write_text(json.dumps(stored))
    with pytest.raises(FormatError, match="prepares frames in a way that is not offered"):
        fit(CLIP_CARD, variant="published", weights=copied)


def test_siglip_of_open_clip_is_one_of_the_pairs(filled, a4c_frames: np.ndarray, tmp_path: Path) -> None:
    from open_clip.model import CustomTextCLIP

    config = {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "vision_cfg": {
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "map",
            "timm_proj": "none",
            "image_size": 224,
        },
        "text_cfg": {
            "context_length": 64,
            "vocab_size": 50,
            "width": 64,
            "heads": 1,
            "layers": 1,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    }
    network = CustomTextCLIP(**config)
    save_file(filled(network, seed=13), tmp_path / "open_clip_model.safetensors")
    stored = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    stored["preprocess_cfg"] |= {"resize_mode": "squash", "interpolation": "bicubic"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(stored))
    fitted = fit(CLIP_CARD, variant="published", weights=tmp_path)
    encoder = load(fitted, tmp_path)
    with torch.inference_mode():
        images = torch.from_numpy(prepared(fitted, a4c_frames[:1]))
        expected = functional.normalize(network.encode_image(images), dim=-1).numpy()
    assert np.abs(encoder.encode(encoder.preprocess(a4c_frames[:1])).vectors - expected).max() <= 1e-5
