"""EchoPrime: three loaders against the libraries' own networks, pixels and padding, builds, heads, wrong files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt, convnext_base
from torchvision.models.video import mvit_v2_s
from torchvision.models.video.mvit import MSBlockConfig, MViT

from embedstore.encoder import LoadRequest, load_encoder
from embedstore.errors import EnvironmentFailure, FormatError, StorageError
from embedstore.store import Store
from encoders import echoprime, echoprime_model
from encoders.echoprime import ECHOPRIME_CARD, ECHOPRIME_VIEW_CARD, VIEWS
from encoders.testing import EncoderConformance
from encoders.text import load_text_tower

GOLDEN = Path(__file__).with_name("golden_echoprime.json")
MEAN = np.array([29.110628, 28.076836, 29.096405])
STD = np.array([47.989223, 46.456997, 47.20083])
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "left",
    "ventric",
    "##le",
    "is",
    "dilated",
    "normal",
    "ef",
    "55",
]


def shallow_video(weights: None = None) -> MViT:
    """An MViT v2 of one block a stage, in the published layout and widths, on patches four times as wide: quick."""
    rows = [(1, 96, 96, 1, 2), (2, 96, 192, 2, 2), (4, 192, 384, 1, 1), (8, 384, 768, 1, 1)]
    blocks = [
        MSBlockConfig(
            num_heads=heads,
            input_channels=into,
            output_channels=out,
            kernel_q=[3, 3, 3],
            kernel_kv=[3, 3, 3],
            stride_q=[1, stride, stride],
            stride_kv=[1, pooled, pooled],
        )
        for heads, into, out, stride, pooled in rows
    ]
    return MViT(
        spatial_size=(224, 224),
        temporal_size=16,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        patch_embed_stride=(2, 16, 16),
    )


def shallow_view(weights: None = None) -> ConvNeXt:
    """A ConvNeXt-Base of one block a stage, at the published widths, its first step four times as long: quick."""
    widths = [128, 256, 512, 1024, None]
    network = ConvNeXt([CNBlockConfig(into, out, 1) for into, out in zip(widths, widths[1:], strict=False)])
    network.features[0][0].stride = (16, 16)
    return network


def write_release(
    folder: Path, networks: dict[str, nn.Module], filled: Callable[..., dict[str, torch.Tensor]]
) -> Path:
    """Write ``model_data/weights`` with bare state dicts, as published."""
    weights = folder / "model_data" / "weights"
    weights.mkdir(parents=True)
    for seed, (name, network) in enumerate(networks.items()):
        filled(network, seed=20 + seed)
        torch.save(network.state_dict(), weights / name)  # tied tensors are one
    return folder / "model_data"


def video_of(make: Callable[[], nn.Module]) -> nn.Module:
    network = make()
    network.head[-1] = nn.Linear(768, 512)
    return network


def view_of(make: Callable[[], nn.Module]) -> nn.Module:
    network = make()
    network.classifier[-1] = nn.Linear(1024, 11)
    return network


class ReportEncoder(nn.Module):
    """The published text tower from transformers' masked language model."""

    def __init__(self, **sizes: int) -> None:
        from transformers import BertConfig, BertForMaskedLM

        super().__init__()
        self.backbone = BertForMaskedLM(BertConfig(**sizes))
        self.text_projection = nn.Linear(self.backbone.config.hidden_size, 512)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.backbone(tokens, attention_mask=(tokens != 0).long(), output_hidden_states=True).hidden_states
        return self.text_projection(states[-1][:, 0])


@pytest.fixture(scope="session")
def full_video(filled, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    network = video_of(mvit_v2_s)
    folder = tmp_path_factory.mktemp("echoprime")
    return write_release(folder, {"echo_prime_encoder.pt": network}, filled), network


@pytest.fixture(scope="session")
def shallow_release(filled, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, nn.Module]]:
    torch.manual_seed(0)
    small = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    networks = {
        "echo_prime_encoder.pt": video_of(shallow_video),
        "view_classifier.pt": view_of(shallow_view),
        "echo_prime_text_encoder.pt": ReportEncoder(**small, vocab_size=len(WORDS), max_position_embeddings=512),
    }
    text = networks["echo_prime_text_encoder.pt"]
    folder = write_release(tmp_path_factory.mktemp("release"), networks, filled)
    state = text.state_dict()
    state["backbone.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(state, folder / "weights" / "echo_prime_text_encoder.pt")
    (folder / "weights" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder, networks


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch, shallow_release) -> Path:
    monkeypatch.setattr(echoprime_model, "mvit_v2_s", shallow_video)
    monkeypatch.setattr(echoprime_model, "convnext_base", shallow_view)
    return shallow_release[0]


def load(weights: Path | None, card=ECHOPRIME_CARD, *, variant: str = "published"):
    return load_encoder(card, LoadRequest(spec=card.spec(variant=variant), weights=weights, device="cpu"))


def straight_pixels(frames: np.ndarray, *, n_frames: int = 32, stride: int = 2) -> torch.Tensor:
    """Frames as the authors prepare a video, a line a step: (T, H, W, 3) uint8 RGB to (3, 16, 224, 224)."""
    prepared = []
    for frame in frames[:n_frames]:
        height, width = frame.shape[:2]
        assert width > height, "this straight line crops the sides only"
        side = round((width - height) / 2)
        square = frame[:, side : width - side]
        cut = int(height * 0.1)
        zoomed = square[cut : height - cut, cut : height - cut]
        prepared.append(cv2.resize(zoomed, (224, 224), interpolation=cv2.INTER_CUBIC))
    scaled = (np.stack(prepared).astype(np.float64) - MEAN) / STD
    padded = np.concatenate([scaled, np.zeros((n_frames - len(scaled), 224, 224, 3))])
    return torch.from_numpy(padded[::stride].transpose(3, 0, 1, 2)).float()


@torch.inference_mode()
def reference(network: nn.Module, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The library's own forward, and the mean of the tokens of a time after the last norm, seen by a hook."""
    seen = []
    hook = network.norm.register_forward_hook(lambda module, args, made: seen.append(made))
    vectors = network(pixels)
    hook.remove()
    tokens = seen[0][:, 1:]
    return vectors.numpy(), tokens.reshape(len(pixels), 8, -1, 768).mean(dim=2).numpy()


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_full_size_has_the_published_keys_and_parameters() -> None:
    with torch.device("meta"):
        video, view = echoprime_model.video_network(dim=512), echoprime_model.view_network(n_views=11)
        sizes = {"vocab_size": 30522, "max_position_embeddings": 512}
        text = ReportEncoder(**sizes)
    for network, n_keys, n_parameters in (
        (video, 397, 34_623_872),
        (view, 344, 87_577_739),
        (text, 206, 109_908_026),
    ):
        assert len(network.state_dict()) == n_keys
        assert sum(part.numel() for part in network.parameters()) == n_parameters
    assert ECHOPRIME_CARD.n_parameters == 34_623_872 and ECHOPRIME_VIEW_CARD.n_parameters == 87_577_739
    keys = list(video.state_dict())
    assert keys[0] == "pos_encoding.class_token" or keys[0] == "conv_proj.weight"
    assert keys[-2:] == ["head.1.weight", "head.1.bias"]


def test_full_video_encoder_equals_torchvision(full_video, a4c_frames: np.ndarray) -> None:
    folder, network = full_video
    encoder = load(folder)
    frames = a4c_frames[:19]  # short: six of the sixteen positions are missing
    window = encoder.preprocess(frames[::2], n_missing=6)[None]
    assert window.shape == (1, 16, 225, 224, 3) and window.dtype == np.uint8
    encoded = encoder.encode(window)
    vectors, steps = reference(network, straight_pixels(frames)[None])
    assert encoded.vectors.shape == (1, 512) and encoded.steps.shape == (1, 8, 768)
    assert_equal(encoded.vectors, vectors)
    assert_equal(encoded.steps, steps)
    assert not np.isclose(np.linalg.norm(encoded.vectors), 1), "the authors do not normalise"
    found = {"window": encoded.vectors[0, :6].tolist(), "step": encoded.steps[0, 0, :6].tolist()}
    if os.environ.get("EMBEDSTORE_WRITE_GOLDEN"):
        rounded = {kind: [round(number, 6) for number in numbers] for kind, numbers in found.items()}
        GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")
    for kind, numbers in json.loads(GOLDEN.read_text()).items():
        assert np.abs(np.array(numbers) - found[kind]).max() <= 1e-4 * np.abs(numbers).max(), kind


def test_steps_cost_nothing_to_the_vector(shallow: Path, shallow_release, a4c_frames: np.ndarray) -> None:
    encoder = load(shallow)
    window = encoder.preprocess(a4c_frames[::2], n_missing=1)[None]
    whole = encoder.encode(window)
    assert_equal(
        whole.vectors, reference(shallow_release[1]["echo_prime_encoder.pt"], straight_pixels(a4c_frames)[None])[0]
    )
    encoder.with_steps = False
    bare = encoder.encode(window)
    assert bare.steps is None and np.array_equal(bare.vectors, whole.vectors)


def test_pixels_and_padding_are_the_authors(shallow: Path, a4c_frames: np.ndarray) -> None:
    seen = []
    encoder = load(shallow)
    encoder._network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    for n_frames in (30, 19, 2):
        frames = a4c_frames[:n_frames]
        (window,) = encoder.spec.sampling.resolve(n_frames=n_frames, fps=30.0).windows
        real = [frame for frame in window if frame >= 0]
        encoder.encode(encoder.preprocess(frames[real], n_missing=16 - len(real))[None])
        expected = straight_pixels(frames)
        assert (seen[-1][0] - expected).abs().max() <= 1e-5
        assert torch.count_nonzero(seen[-1][0, :, len(real) :]) == 0


def test_windows_of_the_variants() -> None:
    def window(variant: str, n_frames: int) -> tuple[int, ...]:
        (only,) = ECHOPRIME_CARD.variants[variant].sampling.resolve(n_frames=n_frames, fps=30.0).windows
        return only

    assert window("published", 100) == tuple(range(0, 32, 2))
    assert window("published", 21) == (*range(0, 21, 2), *[-1] * 5)
    assert window("cardiobench", 100) == tuple(range(16))
    assert window("cardiobench", 12) == (*range(12), *[-1] * 4)
    assert window("stride2", 21) == (*range(0, 21, 2), *[20] * 5)
    assert window("uniform16", 31) == tuple(range(0, 31, 2))
    assert window("palindrome", 21) == (*range(0, 21, 2), 18, 16, 14, 12, 10)
    assert all(window(variant, 1) == (0,) * 16 for variant in ECHOPRIME_CARD.variants)


def test_view_classifier_and_its_last_layer(shallow: Path, shallow_release, a4c_frames: np.ndarray) -> None:
    network = shallow_release[1]["view_classifier.pt"]
    encoder = load(shallow, ECHOPRIME_VIEW_CARD)
    vectors = encoder.encode(encoder.preprocess(a4c_frames[:2])).vectors
    request = LoadRequest(spec=ECHOPRIME_VIEW_CARD.spec(), weights=shallow, device="cpu")
    (head,) = echoprime.load_view_heads(request)
    with torch.inference_mode():
        logits = network(straight_pixels(a4c_frames[:2], n_frames=2, stride=1).transpose(0, 1)).numpy()
    assert vectors.shape == (2, 1024)
    assert_equal(vectors @ head.weight.T + head.bias, logits)
    assert head.outputs == VIEWS and head.activation == "softmax" and head.task == "view"
    assert len(VIEWS) == 11 and VIEWS[2] == "A4C" and VIEWS[-1] == "Subcostal"
    sampling = ECHOPRIME_VIEW_CARD.variants["published"].sampling
    assert sampling.resolve(n_frames=50, fps=None).windows == ((0,),)


@pytest.mark.slow
def test_full_view_classifier_equals_torchvision(filled, tmp_path: Path, a4c_frames: np.ndarray) -> None:
    network = view_of(convnext_base)
    folder = write_release(tmp_path, {"view_classifier.pt": network}, filled)
    encoder = load(folder / "weights" / "view_classifier.pt", ECHOPRIME_VIEW_CARD)
    vectors = encoder.encode(encoder.preprocess(a4c_frames[:1])).vectors
    with torch.inference_mode():
        pixels = straight_pixels(a4c_frames[:1], n_frames=1, stride=1).transpose(0, 1)
        expected = network.classifier[:2](network.avgpool(network.features(pixels))).numpy()
    assert_equal(vectors, expected)


def check_text_tower(folder: Path, theirs: ReportEncoder, prompts: list[str]) -> None:
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(str(folder / "weights" / "vocab.txt"), do_lower_case=True)
    cut = tokenizer(prompts, padding="max_length", max_length=512, truncation=True, return_tensors="pt")
    expected = nn.functional.normalize(theirs.eval()(cut["input_ids"]), dim=-1).numpy()
    request = LoadRequest(spec=ECHOPRIME_CARD.spec(), weights=folder, device="cpu")
    tower = load_text_tower(ECHOPRIME_CARD, request)
    assert tower.dim == 512 and tower.tokenizer.context == 512 and tower.logit_scale == 1.0
    found = tower.embed(prompts)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-5


def test_text_tower_equals_transformers(shallow: Path, shallow_release) -> None:
    theirs = shallow_release[1]["echo_prime_text_encoder.pt"]
    check_text_tower(shallow, theirs, ["Left ventricle is DILATED.", "EF 55", "normal " * 600])


@pytest.mark.slow
def test_full_text_tower_equals_transformers(filled, tmp_path: Path) -> None:
    theirs = ReportEncoder(vocab_size=30522, max_position_embeddings=512)
    folder = write_release(tmp_path, {"echo_prime_text_encoder.pt": theirs}, filled)
    pieces = [*WORDS, *(f"piece{number}" for number in range(30522 - len(WORDS)))]
    (folder / "weights" / "vocab.txt").write_text("\n".join(pieces) + "\n")
    check_text_tower(folder, theirs, ["Left ventricle is dilated."])


def test_a_prompt_does_not_follow_the_length_of_others(shallow: Path) -> None:
    tower = load_text_tower(ECHOPRIME_CARD, LoadRequest(spec=ECHOPRIME_CARD.spec(), weights=shallow, device="cpu"))
    alone = tower.embed(["ef 55", "normal"])
    among = tower.embed(["left " * 90, "ef 55", "dilated " * 500, "normal"])
    assert np.array_equal(alone, among[[1, 3]])


def test_text_tower_lies_beside_the_video_encoder(shallow: Path, tmp_path: Path) -> None:
    spec = ECHOPRIME_CARD.spec()
    file = shallow / "weights" / "echo_prime_encoder.pt"
    by_file = load_text_tower(ECHOPRIME_CARD, LoadRequest(spec=spec, weights=file, device="cpu"))
    by_folder = load_text_tower(ECHOPRIME_CARD, LoadRequest(spec=spec, weights=shallow, device="cpu"))
    assert np.array_equal(by_file.embed(["ef 55"]), by_folder.embed(["ef 55"]))
    alone = tmp_path / "echo_prime_encoder.pt"
    alone.symlink_to(file)
    with pytest.raises(StorageError, match=r"need echo_prime_text_encoder.pt, which is not in .*July 2025"):
        load_text_tower(ECHOPRIME_CARD, LoadRequest(spec=spec, weights=alone, device="cpu"))
    (tmp_path / "echo_prime_text_encoder.pt").symlink_to(shallow / "weights" / "echo_prime_text_encoder.pt")
    with pytest.raises(StorageError, match=r"need vocab.txt or tokenizer.json beside"):
        load_text_tower(ECHOPRIME_CARD, LoadRequest(spec=spec, weights=alone, device="cpu"))
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, *map(str, range(30))]) + "\n")
    with pytest.raises(FormatError, match=r"has 43 tokens, the text tower .* knows 13; is it another model's"):
        load_text_tower(ECHOPRIME_CARD, LoadRequest(spec=spec, weights=alone, device="cpu"))


def test_wrong_files_are_named(shallow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match=r"does not fit MViT: \d+ keys are missing: .*keys are unexpected: "):
        load(shallow / "weights" / "view_classifier.pt")
    with pytest.raises(FormatError, match=r"does not fit ConvNeXt: \d+ keys are missing"):
        load(shallow / "weights" / "echo_prime_encoder.pt", ECHOPRIME_VIEW_CARD)
    state = torch.load(shallow / "weights" / "echo_prime_encoder.pt", weights_only=True)
    state["head.1.weight"] = torch.zeros(400, 768)
    state["head.1.bias"] = torch.zeros(400)
    torch.save(state, tmp_path / "kinetics.pt")
    with pytest.raises(FormatError, match=r"head.1.weight \(400, 768\) instead of \(512, 768\)"):
        load(tmp_path / "kinetics.pt")
    monkeypatch.setenv("EMBEDSTORE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EnvironmentFailure, match=r"'echoprime' are not on this machine \(source: .*model_data.zip"):
        load(None)


def test_a_build_pads_the_short_and_repeats_the_still(shallow: Path, embed_folder) -> None:
    built = embed_folder("echoprime", shallow, {"long": 32, "short": 9, "still": 1})
    assert built.clips.shape == (3, 512) and built.failures.num_rows == 0
    assert built.index["n_padded"].to_pylist() == [0, 11, 15]
    assert np.array_equal(built.clips[:], built.windows[:])
    rows = built.frame_index.to_pylist()
    assert built.frames.shape == (24, 768) and {row["frame_kind"] for row in rows} == {"tubelet"}
    spans = [(row["frame_start"], row["frame_stop"]) for row in rows if row["clip_id"] == "long"]
    assert spans == [(first, first + 3) for first in range(0, 32, 4)]
    still = built.frames[[row for row, entry in enumerate(rows) if entry["clip_id"] == "still"]]
    assert len(still) == 8 and len({row.tobytes() for row in built.clips[:]}) == 3


def test_a_build_with_the_view_classifier(shallow: Path, embed_folder, tmp_path: Path) -> None:
    built = embed_folder("echoprime-view", shallow, {"clip": 5, "still": 1})
    assert built.clips.shape == (2, 1024) and [row["frame"] for row in built.frame_index.to_pylist()] == [0, 0]
    assert np.array_equal(built.clips[:], built.frames[:]), "not normalised: the head applies to a clip's vector"
    bank = Store.open(tmp_path / "store").bank(kind="heads", encoder="echoprime-view")
    assert bank.rows["label"].to_pylist() == list(VIEWS) and bank.vectors.shape == (11, 1024)


def test_a_build_without_the_text_tower_goes_on(shallow: Path, embed_folder, tmp_path: Path) -> None:
    alone = tmp_path / "echo_prime_encoder.pt"
    alone.symlink_to(shallow / "weights" / "echo_prime_encoder.pt")
    built = embed_folder("echoprime@uniform16", alone, {"clip": 20}, "--no-frames")
    assert built.clips.shape == (1, 512) and built.array("frames") is None
    assert Store.open(tmp_path / "store").banks(encoder="echoprime") == []


class TestConformance(EncoderConformance):
    reference = "encoders.echoprime:ECHOPRIME_CARD"
    batch_size = 2

    @pytest.fixture(autouse=True)
    def small_weights(self, shallow: Path) -> None:
        type(self).weights = shallow


class TestViewConformance(EncoderConformance):
    reference = "encoders.echoprime:ECHOPRIME_VIEW_CARD"
    batch_size = 2

    @pytest.fixture(autouse=True)
    def small_weights(self, shallow: Path) -> None:
        type(self).weights = shallow
