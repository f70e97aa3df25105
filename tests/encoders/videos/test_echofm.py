"""EchoFM: keys and counts, the forward against torch's own layers, its pixels, wrong files."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_videos import MaskedVideo, close, pretraining_shapes
from torchvision import transforms

from embedstore.errors import FormatError, StorageError, UnknownNameError
from embedstore.spec import FrameSampling
from encoders.echofm import ECHOFM_CARD
from encoders.echofm_model import EchoFm, EchoFmSizes

FULL = EchoFmSizes(width=1024, inner=4096, n_layers=24, patch=16, tubelet=4, n_places=196, n_steps=8)
FILE = "echofm_vitl.pth"


@pytest.fixture(scope="module")
def window(a4c_frames: np.ndarray) -> np.ndarray:
    """The A4C clip's 30 frames and its first two again, which is what the published sampling picks."""
    return np.concatenate([a4c_frames, a4c_frames[:2]])


@pytest.fixture
def changed(video, tmp_path: Path):
    """Return a function that writes the published file anew after a change of its state dict."""

    def write(change) -> Path:
        opened = torch.load(video("echofm")[0] / FILE, weights_only=True)
        change(opened["model"])
        torch.save(opened, tmp_path / FILE)
        return tmp_path

    return write


def test_full_size_has_the_published_keys_and_parameters() -> None:
    with torch.device("meta"):
        network = EchoFm(FULL)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    count = sum(part.numel() for part in network.parameters())
    assert (len(shapes), count) == (392, 305_669_120) and count == ECHOFM_CARD.n_parameters
    assert (FULL.side, FULL.n_frames) == (224, 32)
    assert EchoFmSizes.read(shapes, source="meta") == FULL
    dropped = pretraining_shapes()
    assert len(dropped.keys() | shapes.keys()) == 550
    assert count + sum(int(np.prod(shape)) for shape in dropped.values()) == 344_513_280


def test_the_dropped_keys_are_named_exactly() -> None:
    with torch.device("meta"):
        kept = EchoFm(FULL).state_dict().keys()
    patterns = ECHOFM_CARD.keys_may_ignore
    for key in pretraining_shapes():
        assert sum(fnmatchcase(key, pattern) for pattern in patterns) == 1, key
    for key in (*kept, "decoder_blocks.8.norm1.weight", "decoder_block.attn.qkv.weight", "decoder_pos_embed"):
        assert not any(fnmatchcase(key, pattern) for pattern in patterns), key


def test_vectors_and_steps_equal_torchs_layers(video, load, window: np.ndarray, a4c_frames: np.ndarray) -> None:
    folder, theirs = video("echofm")
    transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
    pixels = torch.stack([transform(Image.fromarray(frame)) for frame in window], dim=1)[None]
    assert float(pixels.min()) >= 0 and 0.5 < float(pixels.max()) <= 1
    with torch.inference_mode():
        tokens = theirs(pixels).numpy()
    encoder = load(ECHOFM_CARD, folder)
    (picked,) = encoder.spec.sampling.resolve(n_frames=30, fps=None).windows
    assert picked == (*range(30), 0, 1)
    encoded = encoder.encode(encoder.preprocess(a4c_frames[list(picked)])[None])
    close(encoded.vectors, tokens.mean(axis=1))
    close(encoded.steps, tokens.reshape(1, 8, 196, 1024).mean(axis=2))


def test_pixels_are_those_of_the_authors_transform(video, load, window: np.ndarray) -> None:
    encoder = load(ECHOFM_CARD, video("echofm")[0])
    expected = [np.asarray(transforms.Resize((224, 224))(Image.fromarray(frame))) for frame in window]
    assert np.array_equal(encoder.preprocess(window), np.stack(expected))
    assert encoder.input_shape == (32, 224, 224, 3) and encoder.frame_kind == "tubelet"


def test_an_encoder_alone_is_read(video, load, window: np.ndarray, tmp_path: Path) -> None:
    folder, _ = video("echofm", depth=1)
    state = torch.load(folder / FILE, weights_only=True)["model"]
    torch.save({key: state[key] for key in state.keys() - pretraining_shapes().keys()}, tmp_path / "alone.pth")
    whole, alone = load(ECHOFM_CARD, folder), load(ECHOFM_CARD, tmp_path / "alone.pth")
    batch = whole.preprocess(window)[None]
    assert np.array_equal(whole.encode(batch).vectors, alone.encode(batch).vectors)


def test_wrong_files_are_refused_with_their_keys(video, load, changed, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the key pos_embed_spatial is missing, its first keys are"):
        load(ECHOFM_CARD, video("echo-vision-fm")[0] / "pytorch_model.bin")

    def other(state: dict[str, torch.Tensor]) -> None:
        del state["blocks.1.attn.k.bias"]
        state["blocks.0.attn.v.weight"] = torch.zeros(1024, 512)
        state["decoder_blocks.8.norm1.weight"] = torch.zeros(512)

    with pytest.raises(FormatError) as refused:
        load(ECHOFM_CARD, changed(other))
    for part in (
        "1 keys are missing: blocks.1.attn.k.bias",
        "1 keys are unexpected: decoder_blocks.8.norm1.weight",
        "blocks.0.attn.v.weight (1024, 512) instead of (1024, 1024)",
    ):
        assert part in str(refused.value)

    def longer(state: dict[str, torch.Tensor]) -> None:
        state["pos_embed_temporal"] = torch.zeros(1, 4, 1024)

    with pytest.raises(UnknownNameError, match="takes windows of 16 frames"):
        load(ECHOFM_CARD, changed(longer))
    whole = (video("echofm")[0] / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="cut off or damaged"):
        load(ECHOFM_CARD, tmp_path)


def test_windows_of_another_length_are_refused(video, load) -> None:
    with pytest.raises(UnknownNameError, match=r"takes windows of 32 frames.*uniform:32"):
        load(ECHOFM_CARD, video("echofm")[0], sampling=FrameSampling("uniform:16"))
    custom = load(ECHOFM_CARD, video("echofm")[0], sampling=FrameSampling("rate:30x32"))
    assert custom.spec.title == "echofm@rate30x32" and custom.spec.sampling.padding == "loop"


@pytest.mark.slow
def test_full_size_loads_and_equals_torchs_layers(filled, load, window: np.ndarray, tmp_path: Path) -> None:
    theirs = MaskedVideo(depth=24, inner=4096)
    filled(theirs, seed=21)
    state = theirs.published()
    state |= {key: torch.zeros(shape) for key, shape in pretraining_shapes().items()}
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (550, 344_513_280)
    torch.save({"model": state, "model_args": {"num_frames": 32}}, tmp_path / FILE)
    assert 1_378_000_000 < (tmp_path / FILE).stat().st_size < 1_379_000_000
    encoder = load(ECHOFM_CARD, tmp_path)
    batch = encoder.preprocess(window)[None]
    with torch.inference_mode():
        tokens = theirs(torch.from_numpy(batch).permute(0, 4, 1, 2, 3) / 255).numpy()
    encoded = encoder.encode(batch)
    close(encoded.vectors, tokens.mean(axis=1))
    close(encoded.steps, tokens.reshape(1, 8, 196, 1024).mean(axis=2))
