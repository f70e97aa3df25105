"""PanEcho: the loader against the network wired anew from library layers, its pixels, heads, builds, wrong files."""

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
from torchvision.models.convnext import CNBlockConfig, ConvNeXt, convnext_tiny

from embedstore.encoder import LoadRequest, load_encoder
from embedstore.errors import FormatError, UnknownNameError
from embedstore.spec import FrameSampling
from embedstore.store import Store
from encoders import panecho, panecho_model
from encoders.panecho import PANECHO_CARD, TASKS
from encoders.testing import EncoderConformance

GOLDEN = Path(__file__).with_name("golden_panecho.json")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
MULTICLASS = 9  # tasks with three classes


class Wired:
    """The published network from library layers: a trunk, four layers, positions, forty heads; no class of ours."""

    def __init__(self, trunk: nn.Module) -> None:
        torch.manual_seed(0)
        self.trunk = trunk
        self.trunk.classifier[-1] = nn.Identity()
        self.layers = [
            nn.TransformerEncoderLayer(768, 8, 768, dropout=0, activation="relu", batch_first=True) for _ in range(4)
        ]
        self.heads = {name: nn.Linear(768, task.n_outputs) for name, task in TASKS.items()}
        place, column = np.mgrid[:16, :768]
        angle = place / 10000 ** (2 * (column // 2) / 768)
        self.positions = torch.from_numpy(np.where(column % 2, np.cos(angle), np.sin(angle))).float()[None]

    def fill(self, filled: Callable[..., dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Give every part seeded numbers; return the state under the published names, in the published order."""
        state = {f"encoder.encoder.model.{key}": value for key, value in filled(self.trunk, seed=1).items()}
        for number, layer in enumerate(self.layers):
            for key, value in filled(layer, seed=10 + number).items():
                state[f"encoder.transformer.layers.{number}.{key}"] = value
        state["encoder.time_encoder.pe"] = self.positions
        for number, (name, head) in enumerate(self.heads.items()):
            for key, value in filled(head, seed=100 + number).items():
                state[f"{name}_head.1.{key}"] = value
        return state

    @torch.inference_mode()
    def vectors(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, 16, 224, 224) to (B, 768), with the planes in the order in which they lie in memory."""
        planes = pixels.contiguous().flatten()
        images = planes.view(-1, 3, *pixels.shape[-2:])
        states = self.trunk(images).view(len(pixels), 16, 768) + self.positions
        for layer in self.layers:
            states = layer(states)
        return states.mean(dim=1)

    @torch.inference_mode()
    def frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """(3, 16, 224, 224) to (16, 768), a frame at a time."""
        return torch.cat([self.trunk(pixels[:, frame][None]) for frame in range(pixels.shape[1])])


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    """The published container: a training checkpoint with what an optimizer and a scheduler keep."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]}
    torch.save({"weights": state, "optimizer": optimizer, "epoch": 7, "loss": 0.25}, path)
    return path


@pytest.fixture(scope="session")
def full(filled, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Wired, dict[str, torch.Tensor]]:
    wired = Wired(convnext_tiny(weights=None))
    state = wired.fill(filled)
    return save(state, tmp_path_factory.mktemp("panecho") / "panecho.pt"), wired, state


def shallow_trunk(weights: None = None) -> ConvNeXt:
    """A ConvNeXt-Tiny of one block a stage instead of 3, 3, 9 and 3, its first step four times as long: quick."""
    widths = [96, 192, 384, 768, None]
    trunk = ConvNeXt([CNBlockConfig(into, out, 1) for into, out in zip(widths, widths[1:], strict=False)])
    trunk.features[0][0].stride = (16, 16)
    return trunk


@pytest.fixture(scope="session")
def shallow_file(filled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Wired(shallow_trunk()).fill(filled), tmp_path_factory.mktemp("shallow") / "panecho.pt")


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch, shallow_file: Path) -> Path:
    monkeypatch.setattr(panecho_model, "convnext_tiny", shallow_trunk)
    return shallow_file


def load(weights: Path, *, variant: str = "published", **fields):
    spec = PANECHO_CARD.spec(variant=variant, **fields)
    return load_encoder(PANECHO_CARD, LoadRequest(spec=spec, weights=weights, device="cpu"))


def straight_pixels(frames: np.ndarray) -> torch.Tensor:
    """Frames as the authors prepare them, a line a step: (T, H, W, 3) uint8 RGB to (3, T, 224, 224)."""
    prepared = []
    for frame in frames:
        as_opencv_reads = np.ascontiguousarray(frame[:, :, ::-1])
        squeezed = cv2.resize(as_opencv_reads, (256, 256), interpolation=cv2.INTER_AREA)
        cropped = squeezed[16:240, 16:240]
        prepared.append((cropped / 255 - MEAN) / STD)
    return torch.from_numpy(np.stack(prepared).transpose(3, 0, 1, 2)).float()


def test_keys_and_parameters_are_the_published_ones(full) -> None:
    _, _, state = full
    keys = list(state)
    assert len(keys) == 309 and keys[0] == "encoder.encoder.model.features.0.0.weight"
    assert keys[-1] == "AORoot_head.1.bias" and state["encoder.time_encoder.pe"].shape == (1, 16, 768)
    network = panecho_model.PanEchoNetwork(n_frames=16, heads={name: task.n_outputs for name, task in TASKS.items()})
    assert network.state_dict().keys() | {"encoder.time_encoder.pe"} == state.keys()
    counts = {key: value.numel() for key, value in network.state_dict().items()}
    # The published count has the fixed positions among the parameters.
    assert sum(counts.values()) + 16 * 768 == PANECHO_CARD.n_parameters == 42_063_514
    trunk = [key for key in counts if key.startswith("encoder.encoder.")]
    assert len(trunk) == 180 and sum(counts[key] for key in trunk) == 27_820_128
    backbone = [key for key in counts if key.startswith("encoder.")]
    assert len(backbone) + 1 == 229
    assert len(TASKS) == 40 and sum(len(task.classes) == 3 for task in TASKS.values()) == MULTICLASS


def test_vectors_and_frames_equal_the_network_wired_anew(full, a4c_frames: np.ndarray) -> None:
    path, wired, _ = full
    encoder = load(path)
    window = encoder.preprocess(a4c_frames[3:19])[None]
    encoded = encoder.encode(window)
    pixels = straight_pixels(a4c_frames[3:19])
    expected = wired.vectors(pixels[None]).numpy()
    assert encoded.vectors.shape == (1, 768) and encoded.steps.shape == (1, 16, 768)
    assert np.abs(encoded.vectors - expected).max() <= 1e-5 * np.abs(expected).max()
    frames = wired.frames(pixels[:, [0, 7, 15]]).numpy()
    assert np.abs(encoded.steps[0, [0, 7, 15]] - frames).max() <= 1e-5 * np.abs(frames).max()
    found = {"window": encoded.vectors[0, :6].tolist(), "frame": encoded.steps[0, 0, :6].tolist()}
    if os.environ.get("EMBEDSTORE_WRITE_GOLDEN"):
        rounded = {kind: [round(number, 6) for number in numbers] for kind, numbers in found.items()}
        GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")
    kept = json.loads(GOLDEN.read_text())
    for kind, numbers in kept.items():
        assert np.abs(np.array(numbers) - found[kind]).max() <= 1e-4 * np.abs(numbers).max(), kind


def test_planes_are_taken_as_they_lie(shallow: Path, filled, a4c_frames: np.ndarray) -> None:
    """Exchanging channel and frame first, as one would expect, gives other vectors."""
    wired = Wired(shallow_trunk())
    wired.fill(filled)
    encoder = load(shallow)
    encoder.with_steps = False
    pixels = straight_pixels(a4c_frames[:16])[None]
    found = encoder.encode(encoder.preprocess(a4c_frames[:16])[None])
    assert found.steps is None
    expected = wired.vectors(pixels).numpy()
    assert np.abs(found.vectors - expected).max() <= 1e-5 * np.abs(expected).max()
    exchanged = pixels.transpose(1, 2).contiguous().view(1, 3, 16, 224, 224)
    assert np.abs(wired.vectors(exchanged).numpy() - expected).max() > 0.01 * np.abs(expected).max()


def test_pixels_are_the_authors(shallow: Path, a4c_frames: np.ndarray) -> None:
    seen = []
    encoder = load(shallow)
    encoder._network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    encoder.with_steps = False
    encoder.encode(encoder.preprocess(a4c_frames[:16])[None])
    assert (seen[0][0] - straight_pixels(a4c_frames[:16])).abs().max() <= 1e-5
    already = np.repeat(np.repeat(a4c_frames[:16, :128, :128], 2, axis=1), 2, axis=2)
    window = encoder.preprocess(already)
    assert np.array_equal(window, already[:, 16:240, 16:240, ::-1]), "frames of 256x256 are only cropped"


def test_windows_of_the_variants() -> None:
    def windows(variant: str, n_frames: int) -> list[tuple[int, ...]]:
        sampling = PANECHO_CARD.variants[variant].sampling
        return list(sampling.resolve(n_frames=n_frames, fps=30.0).windows)

    assert [window[0] for window in windows("published", 100)] == [0, 28, 56, 84]
    assert all(window == tuple(range(window[0], window[0] + 16)) for window in windows("published", 100))
    assert windows("published", 14) == [(*range(14), 13, 13)]
    assert windows("cardiobench", 100) == [tuple(range(16))]
    assert windows("stride2", 33) == [tuple(range(start, start + 31, 2)) for start in (0, 1, 2)]
    assert windows("uniform16", 31) == [tuple(range(0, 31, 2))]
    assert windows("palindrome", 10) == [(*range(10), 8, 7, 6, 5, 4, 3)]
    assert all(windows(variant, 1) == [(0,) * 16] for variant in PANECHO_CARD.variants)


def test_cardiobench_pixels(shallow: Path, a4c_frames: np.ndarray) -> None:
    window = load(shallow, variant="cardiobench").preprocess(a4c_frames[:16])
    square = a4c_frames[4, :, 40:280]
    zoomed = cv2.resize(square[24:-24, 24:-24], (224, 224), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(window[4], zoomed[:, :, ::-1])


def test_heads_are_those_of_the_file(shallow: Path) -> None:
    spec = PANECHO_CARD.spec()
    heads = panecho.load_heads(LoadRequest(spec=spec, weights=shallow, device="cpu"))
    state = torch.load(shallow, weights_only=True)["weights"]
    assert [head.task for head in heads] == list(TASKS) and sum(len(head.outputs) for head in heads) == 58
    for head in heads:
        assert np.array_equal(head.weight, state[f"{head.task}_head.1.weight"].numpy()), head.task
        assert np.array_equal(head.bias, state[f"{head.task}_head.1.bias"].numpy()), head.task
        assert head.weight.dtype == np.float32 and head.weight.shape == (len(head.outputs), 768)
    by_task = {head.task: head for head in heads}
    inverted = {head.task for head in heads if head.activation == "one-minus-sigmoid"}
    assert inverted == {
        "MVStenosis",
        "AVStructure",
        "RASize",
        "RVSystolicFunction",
        "LVWallThickness-increased-modsev",
        "LVWallThickness-increased-any",
        "pericardial-effusion",
    }
    assert {task for task, head in by_task.items() if head.activation == "sigmoid"} == {
        "LVWallMotionAbnormalities",
        "LVOT20mmHg",
        "RAP-8-or-higher",
    }
    assert by_task["AVStenosis"].outputs == ("Mild|Moderate", "None", "Severe")
    assert (by_task["EF"].activation, by_task["EF"].unit, by_task["EF"].outputs) == ("identity", "pct", ("EF",))
    assert by_task["GLS"].unit == "pct_shortening"  # the authors' number is positive, a strain negative
    assert by_task["AVPkVel(m|s)"].unit == "m_per_s"


def test_wrong_files_are_named(shallow: Path, tmp_path: Path) -> None:
    state = torch.load(shallow, weights_only=True)["weights"]
    del state["encoder.transformer.layers.2.norm1.bias"]
    state["GLS2_head.1.bias"] = torch.zeros(1)
    with pytest.raises(
        FormatError,
        match=r"does not fit PanEchoNetwork: 1 keys are missing: encoder.transformer.layers.2.norm1.bias; "
        r"1 keys are unexpected: GLS2_head.1.bias; is it another model's file",
    ):
        load(save(state, tmp_path / "other.pt"))
    with pytest.raises(UnknownNameError, match=r"'consecutive:32' does not fit panecho@consecutive32, which takes"):
        load(shallow, sampling=FrameSampling("consecutive:32"))


def test_an_older_file_without_positions_loads(shallow: Path, tmp_path: Path, a4c_frames: np.ndarray) -> None:
    state = torch.load(shallow, weights_only=True)["weights"]
    del state["encoder.time_encoder.pe"]
    encoder, bare = load(shallow), load(save(state, tmp_path / "bare.pt"))
    window = encoder.preprocess(a4c_frames[:16])[None]
    assert np.array_equal(encoder.encode(window).vectors, bare.encode(window).vectors)


class TestConformance(EncoderConformance):
    reference = "encoders.panecho:PANECHO_CARD"
    batch_size = 2

    @pytest.fixture(autouse=True)
    def small_weights(self, shallow: Path) -> None:
        type(self).weights = shallow


def test_a_build_keeps_windows_clips_and_frames(shallow: Path, embed_folder, tmp_path: Path) -> None:
    built = embed_folder("panecho", shallow, {"long": 18, "short": 9, "still": 1})
    assert built.clips.shape == (3, 768) and built.failures.num_rows == 0
    assert built.index["n_padded"].to_pylist() == [0, 7, 15]
    windows = built.window_index.to_pylist()
    starts = [(row["clip_id"], row["frame_start"], row["frame_stop"], row["n_padded"]) for row in windows]
    assert starts == [
        ("long", 0, 16, 0),
        ("long", 1, 17, 0),
        ("long", 2, 18, 0),
        ("short", 0, 9, 7),
        ("still", 0, 1, 15),
    ]
    clips, vectors = built.clips[:], built.windows[:]
    assert np.abs(clips[0] - vectors[:3].mean(axis=0)).max() <= 2e-3 * np.abs(vectors).max(), (
        "float16, not normalised"
    )
    assert np.array_equal(clips[1], vectors[3]) and np.array_equal(clips[2], vectors[4])
    frames = built.frame_index.to_pylist()
    assert [(row["clip_id"], row["frame"]) for row in frames] == [
        *(("long", frame) for frame in range(18)),
        *(("short", frame) for frame in range(9)),
        ("still", 0),
    ]
    assert {row["frame_kind"] for row in frames} == {"frame"} and built.frames.shape == (28, 768)
    bank = Store.open(tmp_path / "store").bank(kind="heads", encoder="panecho")
    assert bank.vectors.shape == (58, 768) and len(set(bank.rows["task"].to_pylist())) == 40


def test_without_frames_the_image_encoder_runs_once(shallow: Path, embed_folder, monkeypatch) -> None:
    asked = []
    forward = panecho_model.PanEchoNetwork.forward

    def counted(self, windows, *, with_steps):
        asked.append(with_steps)
        return forward(self, windows, with_steps=with_steps)

    monkeypatch.setattr(panecho_model.PanEchoNetwork, "forward", counted)
    built = embed_folder("panecho@uniform16", shallow, {"a": 17}, "--no-frames")
    assert built.clips.shape == (1, 768) and built.array("frames") is None
    assert set(asked) == {False}
