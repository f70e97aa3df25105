"""Real pixels, real weights, and small models of the published architectures in the published containers."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.encoder import LoadRequest
from encoders.efficientnet_lite import LITE0_CARD, EfficientNetLite, load_lite0

# Read when torch is first imported. On cores that are shared with other processes OpenMP's spinning at every barrier
# makes a forward up to ten times slower than sleeping there.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from safetensors.torch import save_file
from torch import nn

# Pieces of the small BERT's vocabulary.
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "left", "ventric", "##le", "##ular", "is", "dilated", "normal"]
WORDS += ["e", "##f", "55", "%", ".", "a", "photo", "of", "this", "echo", "mild", "##ly", "severe", "the", "-", "'"]
PHRASES = ["LV EJECTION FRACTION IS <#>%. ", "<#> DILATED LEFT ATRIUM. ", "<#> DILATED LEFT ATRIUM BY <#>CM. "]


@pytest.fixture(scope="session")
def a4c_frames() -> np.ndarray:
    """The apical four-chamber clip of the pydicom package, (30, 240, 320, 3) uint8 RGB."""
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("gdcm")
    from pydicom.pixels import pixel_array

    return np.asarray(pixel_array(pydicom.examples.get_path("ybr_color"), decoding_plugin="gdcm"))


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    """Two photographs of scikit-learn, a temple and a flower, (2, 427, 640, 3) uint8 RGB."""
    from sklearn.datasets import load_sample_image

    return np.stack([load_sample_image("china.jpg"), load_sample_image("flower.jpg")])


@pytest.fixture(scope="session")
def lite0() -> Callable[..., EfficientNetLite]:
    """Return a function that loads EfficientNet-Lite0 with its published weights, each spec once."""
    loaded: dict[tuple[str, str], EfficientNetLite] = {}

    def load(*, variant: str = "published", precision: str = "float32") -> EfficientNetLite:
        if (variant, precision) not in loaded:
            spec = LITE0_CARD.spec(variant=variant, precision=precision, weights_sha256=LITE0_CARD.weights_sha256)
            loaded[variant, precision] = load_lite0(LoadRequest(spec=spec, weights=None, device="cpu"))
        return loaded[variant, precision]

    return load


def _filled(network: nn.Module, *, seed: int) -> dict[str, torch.Tensor]:
    """Give a network seeded numbers of numpy, which no release of torch can change, and return its state dict.

    Weights are scaled by what they sum over and norms stay near one: signals neither vanish nor explode.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name, tensor in network.state_dict().items():
        drawn = rng.standard_normal(tuple(tensor.shape), dtype=np.float32)
        last = name.rpartition(".")[2]
        if not tensor.is_floating_point():
            state[name] = tensor.clone()
        elif tensor.ndim >= 2:
            state[name] = torch.from_numpy(drawn / np.sqrt(np.prod(tensor.shape[1:]), dtype=np.float32))
        elif last in {"weight", "gamma", "lambda1"}:
            state[name] = torch.from_numpy(1 + 0.1 * drawn)
        else:
            state[name] = torch.from_numpy(np.asarray(0.1 * drawn))
    network.load_state_dict(state)
    network.eval()
    return state


class _BiomedClip(nn.Module):
    """BiomedCLIP from the libraries' own parts: timm's ViT, transformers' BERT, open_clip's names."""

    def __init__(self) -> None:
        import timm
        from transformers import BertConfig, BertModel

        super().__init__()
        self.visual = nn.Module()
        self.visual.trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0)
        self.visual.head = nn.Sequential(OrderedDict(drop=nn.Dropout(0.0), proj=nn.Linear(192, 512, bias=False)))
        bert = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            max_position_embeddings=48,
        )
        self.text = nn.Module()
        self.text.transformer = BertModel(bert, add_pooling_layer=False)
        self.text.proj = nn.Sequential(nn.Linear(128, 320, bias=False), nn.GELU(), nn.Linear(320, 512, bias=False))
        self.logit_scale = nn.Parameter(torch.tensor(4.0))


def _open_clip(folder: Path, name: str) -> nn.Module:
    """Small EchoCLIPs and CLIPs, stored as open_clip stores models on the hub."""
    from open_clip.model import CLIP

    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    config: dict[str, Any] = {"embed_dim": 512, "text_cfg": text}
    if name.startswith("echo-clip"):
        vision = {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
        if name == "echo-clip-r":
            text["vocab_size"] = 1000
            (folder / "template_vocab.txt").write_text("\n".join(PHRASES) + "\n")
    else:
        vision = {"image_size": 224, "layers": 2, "width": 128, "head_width": 64, "patch_size": 32}
        config |= {"quick_gelu": True, "embed_dim": 768 if name == "clip-vit-l-14" else 512}
    network = CLIP(**config, vision_cfg=vision)
    state = _filled(network, seed=1)
    if name.startswith("echo-clip"):
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    stored = {"model_cfg": {**config, "vision_cfg": vision}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(stored))
    return network


def _biomed_clip(folder: Path, name: str) -> nn.Module:
    network = _BiomedClip()
    state = _filled(network, seed=2)
    # The published file was written by an older transformers, which stored this buffer too.
    state["text.transformer.embeddings.position_ids"] = torch.arange(48)[None]
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    hub = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    text = {"hf_model_name": hub, "hf_tokenizer_name": hub, "proj": "mlp", "context_length": 32}
    config = {
        "embed_dim": 512,
        "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": {**text, "pooler_type": "cls_last_hidden_state_pooler"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return network


def _siglip(folder: Path, name: str) -> nn.Module:
    from transformers import SiglipConfig, SiglipModel

    side, patch, width, heads = {
        "siglip2": (224, 16, 768, 12),
        "siglip2-so400m": (384, 14, 1152, 16),
        "medsiglip": (448, 14, 1152, 16),
    }[name]
    vision = {"image_size": side, "patch_size": patch, "hidden_size": width, "num_attention_heads": heads}
    text = {"hidden_size": 64, "num_attention_heads": 2, "vocab_size": 60, "max_position_embeddings": 16}
    config = SiglipConfig(
        vision_config={**vision, "num_hidden_layers": 1, "intermediate_size": 96},
        text_config={**text, "num_hidden_layers": 2, "intermediate_size": 96, "projection_size": width},
    )
    network = SiglipModel(config)
    _filled(network, seed=3)
    network.save_pretrained(folder)
    return network


_DINO_WIDTHS = {"small": 384, "base": 768, "large": 1024}


def _dino(folder: Path, name: str) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel

    version, _, size = name.partition("-")
    width = _DINO_WIDTHS[size or "base"]
    numbers = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": width // 64}
    if version == "dinov2":
        network = Dinov2Model(Dinov2Config(**numbers, image_size=518, patch_size=14, mlp_ratio=1))
    else:
        network = DINOv3ViTModel(DINOv3ViTConfig(**numbers, intermediate_size=96, num_register_tokens=4))
    _filled(network, seed=4)
    network.save_pretrained(folder)
    return network


def _builder(name: str) -> Callable[[Path, str], nn.Module]:
    if "dino" in name:
        return _dino
    if "siglip" in name:
        return _siglip
    return _biomed_clip if name == "biomedclip" else _open_clip


@pytest.fixture(scope="session")
def filled() -> Callable[..., dict[str, torch.Tensor]]:
    """Return a function of (network, seed=...) that fills a network with seeded numbers and returns its state."""
    return _filled


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, nn.Module]]:
    """Return a function of an encoder's name that gives a folder as published, and the libraries' model in it.

    Vectors have the published dimension; depths, and widths where they do not show in it, are small.
    """
    made: dict[str, tuple[Path, nn.Module]] = {}

    def build(name: str) -> tuple[Path, nn.Module]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, _builder(name)(folder, name)
        return made[name]

    return build


@pytest.fixture
def embed_folder(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that writes small clips and a still, runs ``embedstore build`` on them, and opens the set.

    It takes ``NAME[@VARIANT]``, the weights, the frames of each clip by id (1 is a PNG) and further options of the
    command; media are those of `clip_files.moving_frames`.
    """
    from click.testing import CliRunner
    from clip_files import moving_frames, write_avi
    from PIL import Image

    import embedstore
    from embedstore.cli.main import program

    def run(*arguments: object) -> None:
        done = CliRunner().invoke(program, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output

    def build(encoder: str, weights: Path, lengths: dict[str, int], *options: object) -> Any:
        root, store = tmp_path / "clips", tmp_path / "store"
        if not store.exists():
            for seed, (name, n_frames) in enumerate(lengths.items()):
                frames = moving_frames(seed, n_frames=n_frames)
                if n_frames > 1:
                    write_avi(root / f"{name}.avi", frames)
                else:
                    root.mkdir(exist_ok=True)
                    Image.fromarray(frames[0]).save(root / f"{name}.png")
            table = tmp_path / "m.parquet"
            run("manifest", "make", "folder", "--root", root, "--name", "clips", "--store", store, "-o", table)
            run("manifest", "add", table, "--store", store)
        name = encoder.partition("@")[0]
        given = ["--weights", f"{name}={weights}", "--device", "cpu", "--workers", 0, "--batch-size", 2]
        run("build", "--encoder", encoder, "--store", store, *given, *options)
        return embedstore.open(store).get(dataset="clips", encoder=encoder)

    return build
