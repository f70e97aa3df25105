"""Files and folders that are no CLIP, or not the one that was named: refused in one sentence, and nothing runs."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from embedstore.encoder import LoadRequest, load_encoder
from embedstore.errors import (
    ContentError,
    CorruptionError,
    EnvironmentFailure,
    FormatError,
    HostileInputError,
    StorageError,
)
from encoders.clip_family import CLIP_CARD, ECHO_CLIP_CARD
from encoders.frame_encoder import FrameEncoder


def load(card, weights: Path | None, *, digest: str | None = None) -> FrameEncoder:
    spec = card.spec(weights_sha256=digest)
    return load_encoder(card, LoadRequest(spec=spec, weights=weights, device="cpu"))


def test_another_size_is_named(small) -> None:
    with pytest.raises(FormatError, match=r"vectors of 768 numbers, clip of 512; is it another size of the model"):
        load(CLIP_CARD, small("clip-vit-l-14")[0])


def test_another_models_keys_are_named(small, tmp_path: Path) -> None:
    siglip, _ = small("siglip2")
    with pytest.raises(
        FormatError, match=r"the key token_embedding.weight is missing, its first keys are logit_bias"
    ):
        load(CLIP_CARD, siglip / "model.safetensors")
    echo, _ = small("echo-clip")
    with pytest.raises(FormatError, match=r"keys are missing: transformer.resblocks.*unexpected: visual.head.proj"):
        load(CLIP_CARD, echo / "open_clip_pytorch_model.bin")
    state = torch.load(echo / "open_clip_pytorch_model.bin", weights_only=True)
    del state["ln_final.bias"]
    state["text.transformer.embeddings.position_ids"] = torch.arange(5)
    shutil.copy(echo / "open_clip_config.json", tmp_path)
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(FormatError, match=r"missing: ln_final.bias; .* unexpected: text.transformer.embeddings.pos"):
        load(ECHO_CLIP_CARD, tmp_path)


def test_training_checkpoints_are_opened(small, a4c_frames: np.ndarray, tmp_path: Path) -> None:
    folder, _ = small("echo-clip")
    state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(wrapped, tmp_path / "open_clip_pytorch_model.bin")
    first, second = load(ECHO_CLIP_CARD, folder), load(ECHO_CLIP_CARD, tmp_path)
    frames = first.preprocess(a4c_frames[:1])
    assert np.array_equal(first.encode(frames).vectors, second.encode(frames).vectors)


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    torch.save({"logit_scale": torch.zeros(()), "extra": _Payload(tmp_path / "ran")}, tmp_path / "echo.bin")
    with pytest.raises(HostileInputError, match="wants to call .*mkdir"):
        load(ECHO_CLIP_CARD, tmp_path / "echo.bin")
    assert not (tmp_path / "ran").exists()


def test_programs_are_refused(tmp_path: Path) -> None:
    """OpenAI's own ViT-B-32.pt is one: a zip file with constants.pkl, and the program's source."""
    file = tmp_path / "ViT-B-32.pt"
    torch.save({"weight": torch.zeros(2)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist()}
        archive.writestr(f"{folder}/constants.pkl", b"\x80\x02).")
    with pytest.raises(HostileInputError, match="is a TorchScript program, which is never run"):
        load(CLIP_CARD, file)


def test_damaged_and_other_files(small, tmp_path: Path) -> None:
    folder, _ = small("echo-clip")
    file = tmp_path / "echo.bin"
    file.write_bytes((folder / "open_clip_pytorch_model.bin").read_bytes()[:-5000])
    with pytest.raises(StorageError, match="cut off or damaged; fetch it again"):
        load(ECHO_CLIP_CARD, file)
    with pytest.raises(CorruptionError, match="has SHA-256"):
        load(ECHO_CLIP_CARD, folder / "open_clip_pytorch_model.bin", digest="0" * 64)
    (tmp_path / "open_clip_config.json").write_text("[]")
    shutil.copy(folder / "open_clip_pytorch_model.bin", tmp_path)
    with pytest.raises(FormatError, match="holds a list, not an object"):
        load(ECHO_CLIP_CARD, tmp_path)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 512}}')
    with pytest.raises(FormatError, match="has no model_cfg with a vision_cfg"):
        load(ECHO_CLIP_CARD, tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"vision_cfg": {"timm_model_name": "no_such_model"}}, "cannot be built"),
        ({"vision_cfg": {"no_such_setting": 1}}, "cannot be built"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:someone/theirs"}}, "which is no name of timm's own"),
        ({"vision_cfg": {"layers": 10**9, "width": 64}}, "state 1000000000 layers"),
        ({"multimodal_cfg": {"width": 8}}, "captioning model"),
        (
            {"text_cfg": {"hf_model_name": "roberta-base", "hf_pooler_type": "mean_pooler"}},
            "'mean_pooler'; offered are",
        ),
    ],
)
def test_architectures_that_are_not_offered(change: dict, complaint: str, small, tmp_path: Path) -> None:
    folder, _ = small("echo-clip")
    stored = json.loads((folder / "open_clip_config.json").read_text())
    for key, value in change.items():
        stored["model_cfg"][key] = value
    shutil.copy(folder / "open_clip_pytorch_model.bin", tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(stored))
    with pytest.raises(FormatError, match=complaint):
        load(ECHO_CLIP_CARD, tmp_path)


def test_without_weights_their_source_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentFailure, match=r"'echo-clip' are not on this machine .*mkaichristensen/echo-clip"):
        load(ECHO_CLIP_CARD, None)


@pytest.mark.parametrize("batch", [np.zeros((1, 3, 224, 224), np.uint8), np.zeros((1, 224, 224, 3), np.float32)])
def test_other_batches_are_refused(batch: np.ndarray, small) -> None:
    with pytest.raises(ContentError, match=r"clip takes \(B, 224, 224, 3\) uint8 frames"):
        load(CLIP_CARD, small("clip")[0]).encode(batch)


def test_a_batch_that_does_not_fit_is_out_of_memory(small, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(CLIP_CARD, small("clip")[0])
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ):

        def fail(images: torch.Tensor, error: Exception = error) -> torch.Tensor:
            raise error

        monkeypatch.setattr(encoder, "_network", fail)
        with pytest.raises(MemoryError, match="out of memory"):
            encoder.encode(np.zeros((1, 224, 224, 3), np.uint8))
