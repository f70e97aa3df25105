"""Weights that must not be used, as a user meets them: one sentence, an exit code, and the store as it was."""

from __future__ import annotations

import json
import os
import signal
import struct
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clip_files import write_clip_folder

from embedstore.cli.contract import run
from embedstore.cli.main import program
from embedstore.manifest import RecipeRequest, get_recipe
from embedstore.store import Store
from encoders.checkpoint import sha256_of_file
from encoders.efficientnet_lite import LITE0_CARD


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that knows two clips."""
    folder = tmp_path_factory.mktemp("home")
    root = write_clip_folder(folder, 1, n_frames=3)
    manifest = get_recipe("folder").make(RecipeRequest(root=root)).manifest
    Store.create(folder / "store").add_manifest(manifest, root=root)
    return folder


@pytest.fixture
def build(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Return a function that runs the command on an encoder; it gives the exit code and what stderr says."""
    monkeypatch.chdir(home)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("EMBEDSTORE_CACHE", str(tmp_path / "cache"))
    handler = signal.getsignal(signal.SIGTERM)

    def command(encoder: str, *options: str | Path) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run(program, ["build", "--encoder", encoder, "--workers", "0", *map(str, options), "--json"])
        said = capsys.readouterr()
        document = json.loads(said.out)
        assert "Traceback" not in said.err
        if "error" in document:
            (sentence,) = [line for line in said.err.splitlines() if line.startswith("Error: ")]
            assert document["error"]["code"] == ended.value.code
            assert Store.open(home / "store").entries() == []
        return int(str(ended.value.code)), said.err

    yield command
    signal.signal(signal.SIGTERM, handler)


def test_another_models_checkpoint(build, small) -> None:
    code, said = build("dinov2", "--weights", f"dinov2={LITE0_CARD.locate_weights()}")
    assert code == 4 and "the key embeddings.cls_token is missing" in said and "another model's" in said
    code, said = build(
        "efficientnet-lite0", "--weights", f"efficientnet-lite0={small('dinov2')[0]}/model.safetensors"
    )
    assert code == 4 and "does not fit EfficientNet" in said and "keys are missing: _blocks.0._bn1.bias" in said


@pytest.mark.parametrize("share", [0.5, 0.999])
@pytest.mark.parametrize("encoder", ["dinov2", "echo-clip"])
def test_a_file_that_is_cut_off(encoder: str, share: float, build, small, tmp_path: Path) -> None:
    folder = small(encoder)[0]
    (weights,) = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    whole = weights.read_bytes()
    (tmp_path / weights.name).write_bytes(whole[: int(share * len(whole))])
    for settings in folder.glob("*.json"):
        (tmp_path / settings.name).write_bytes(settings.read_bytes())
    code, said = build(encoder, "--weights", f"{encoder}={tmp_path}")
    assert code == 1 and str(tmp_path / weights.name) in said and "fetch it again" in said


def test_a_header_that_lies(build, small, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    whole = (small("dinov2")[0] / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    start, stop = header[name]["data_offsets"]
    for offsets in ([start, stop + 4], [start + 4, stop + 4]):
        header[name]["data_offsets"] = offsets
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        code, said = build("dinov2", "--weights", f"dinov2={file}")
        assert code == 4 and "contradicts itself" in said
    file.write_bytes(struct.pack("<Q", 101_000_000) + whole[8:])
    code, said = build("dinov2", "--weights", f"dinov2={file}")
    assert code == 4 and "header of 101000000 bytes" in said


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_in_place_of_weights(name: str, build, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    code, said = build("dinov2", "--weights", f"dinov2={tmp_path}")
    assert code == 1 and "is a Git LFS pointer, not the weights; run: git lfs pull" in said


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


def test_a_payload_does_not_run_whoever_trusts_it(build, tmp_path: Path) -> None:
    canary, file = tmp_path / "ran", tmp_path / "weights.pth"
    torch.save({**torch.load(LITE0_CARD.locate_weights()), "extra": _Payload(canary)}, file)
    given = ("--weights", f"efficientnet-lite0={file}")
    trusted = ("--trust-checkpoint", f"efficientnet-lite0={sha256_of_file(file)}")
    for options in (given, (*given, *trusted)):
        code, said = build("efficientnet-lite0", *options)
        assert code == 4 and "wants to call" in said and "mkdir" in said
        assert not canary.exists()


def test_a_file_that_names_code_is_taken_where_its_digest_is_given(build, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    state = torch.load(LITE0_CARD.locate_weights())
    state._metadata = {"": Namespace(rate=0.1)}
    torch.save(state, file)
    digest = sha256_of_file(file)
    given = ("efficientnet-lite0", "--weights", f"efficientnet-lite0={file}")
    code, said = build(*given)
    assert code == 4 and f"--trust-checkpoint NAME={digest}" in said and "argparse.Namespace" in said
    code, said = build(*given, "--trust-checkpoint", f"efficientnet-lite0={'0' * 64}")
    assert code == 4 and f"has SHA-256 {digest}, trusted by --trust-checkpoint is {'0' * 64}" in said
    code, said = build(*given, "--trust-checkpoint", "efficientnet-lite0=abc")
    assert code == 2 and "NAME=SHA256" in said
    code, said = build(*given, "--trust-checkpoint", f"dinov2={digest}")
    assert code == 2 and "--trust-checkpoint names 'dinov2'" in said
    store = Store.open(home / "store")
    try:
        code, said = build(*given, "--trust-checkpoint", f"efficientnet-lite0={digest.upper()}")
        assert code == 0 and f"has SHA-256 {digest}, not that of the published weights" in said
        (entry,) = store.entries()
        built = store.open_set(entry.set_id)
        assert built.spec.weights_sha256 == digest and len(built) == 2
        assert built.provenance["licence"] == LITE0_CARD.licence
    finally:
        store.commit(lambda head: type(head)(sets=(), manifests=head.manifests), reason="test")


def test_a_cached_file_with_another_digest(build, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "weights" / "mobilenet-v2" / "mobilenet_v2-b0353104.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not those")
    code, said = build("mobilenet-v2")
    assert code == 4 and f"{file} have SHA-256" in said and "published is b03531047" in said


def test_a_gated_model_without_a_token(build, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: object, **__: object) -> str:
        raise GatedRepoError("401 Client Error", response=SimpleNamespace(headers={}, request=None, status_code=401))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    code, said = build("medsiglip")
    assert code == 4 and "accept its terms at https://huggingface.co/google/medsiglip-448" in said
    assert "hf auth login" in said and "--weights medsiglip=FOLDER" in said


def test_offline_the_sentence_says_which_file_from_where_and_where_to_put_it(
    build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, said = build("dinov2")
    parts = ("model.safetensors", "https://huggingface.co/facebook/dinov2-base", "--weights dinov2=")
    assert code == 1 and all(part in said for part in parts)
    code, said = build("mobilenet-v2")
    assert code == 1 and str(tmp_path / "cache" / "weights" / "mobilenet-v2" / "mobilenet_v2-b0353104.pth") in said
    assert "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth" in said


def test_too_little_memory_says_how_much_is_needed(build, small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoders.device.free_bytes", lambda device: 1 << 20)
    code, said = build("dinov2", "--weights", f"dinov2={small('dinov2')[0]}")
    assert code == 1 and "dinov2 needs 0." in said and "GiB of memory on cpu to be loaded" in said


def test_memory_that_a_container_leaves_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from encoders import device

    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000000\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2000000 kB\n")
    monkeypatch.setattr(device, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(device, "_GROUP", tmp_path)
    assert device.free_bytes(torch.device("cpu")) == 150_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert device.free_bytes(torch.device("cpu")) == 2_048_000_000
    assert device.free_bytes(torch.device("meta")) is None
