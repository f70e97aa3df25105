"""Files that are checkpoints, files that are not, and files that would run code."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from embedstore.errors import (
    CorruptionError,
    EmbedstoreError,
    FormatError,
    HostileInputError,
    StorageError,
)
from encoders.checkpoint import open_checkpoint, sha256_of_file
from encoders.model_folder import tensor_shapes

CONTAINERS = ["zip", "legacy", "safetensors"]


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(5, 7, generator=generator), "bias": torch.randn(5, generator=generator)}


def save(state: dict[str, torch.Tensor], path: Path, container: str) -> Path:
    if container == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "zip")
    return path


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_open_whatever_the_suffix(container: str, state, tmp_path: Path) -> None:
    path = save(state, tmp_path / "weights.bin", container)
    opened = open_checkpoint(path, sha256=sha256_of_file(path))
    assert opened.keys() == state.keys()
    assert all(torch.equal(opened[key], state[key]) for key in state)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files_say_so(container: str, share: float, state, tmp_path: Path) -> None:
    path = save(state, tmp_path / "weights.pt", container)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((StorageError, HostileInputError)) as caught:
        open_checkpoint(path)
    # A cut through the name of a function in the old container leaves the name of one that is not allowed.
    if container != "legacy" or "_rebuild_tensor" not in str(caught.value):
        assert "cut off or damaged; fetch it again" in str(caught.value)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@given(container=st.sampled_from(CONTAINERS), place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_open_or_fail_in_one_sentence(
    container: str, place: float, value: int, state, tmp_path: Path
) -> None:
    path = save(state, tmp_path / f"{container}.pt", container)
    damaged = bytearray(path.read_bytes())
    damaged[int(place * len(damaged))] = value
    path.write_bytes(damaged)
    try:
        open_checkpoint(path)
    except EmbedstoreError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "Git LFS pointer, not the weights; run: git lfs pull",
        ),
        (b"../.git/annex/objects/x7/9k/SHA256E-s123--abc.pt/SHA256E-s123--abc.pt", "git-annex pointer"),
        (b"/annex/objects/SHA256E-s123--abc.pt\n", "git-annex pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not weights"),
        (b"<html><head><title>404</title>", "is a web page, not weights"),
        (b"not a checkpoint at all, only a line of text\n", "no readable torch file"),
        (b"\x80\x04\x95\xff\xff", "no readable torch file"),
    ],
)
def test_what_is_no_checkpoint_is_named(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=complaint):
        open_checkpoint(path)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"absent.pt cannot be read: No such file"):
        open_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(StorageError, match="is a folder"):
        open_checkpoint(tmp_path)
    with pytest.raises(StorageError, match="cannot be read"):
        sha256_of_file(tmp_path)


def test_another_digest_is_refused_before_opening(state, tmp_path: Path) -> None:
    path = save(state, tmp_path / "weights.pt", "zip")
    with pytest.raises(CorruptionError, match=f"has SHA-256 {sha256_of_file(path)}, not {'0' * 64}"):
        open_checkpoint(path, sha256="0" * 64)


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("container", ["zip", "legacy", "plain pickle"])
def test_code_in_a_checkpoint_does_not_run(container: str, state, tmp_path: Path) -> None:
    canary, path = tmp_path / "ran", tmp_path / "weights.pt"
    carrying = {**state, "extra": _Payload(canary)}
    if container == "plain pickle":
        path.write_bytes(pickle.dumps({"extra": _Payload(canary)}, protocol=2))
    else:
        torch.save(carrying, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(EmbedstoreError) as caught:
        open_checkpoint(path)
    assert not canary.exists()
    if container != "plain pickle":
        assert isinstance(caught.value, HostileInputError) and "mkdir" in str(caught.value)


def safetensors_of(header: dict[str, object] | bytes, *, n_bytes: int, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(n_bytes)


def entry(start: int, stop: int, *shape: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("content", "error", "complaint"),
    [
        (safetensors_of({"a": entry(0, 8, 2), "b": entry(4, 12, 2)}, n_bytes=12), HostileInputError, "b overlaps a"),
        (
            safetensors_of({"a": entry(0, 8, 2), "b": entry(12, 20, 2)}, n_bytes=20),
            HostileInputError,
            "b leaves a gap after a",
        ),
        (safetensors_of({"a": entry(4, 12, 2)}, n_bytes=12), HostileInputError, "a leaves a gap after the header"),
        (safetensors_of({"a": entry(0, 8, 2)}, n_bytes=9), HostileInputError, "1 bytes follow the last tensor"),
        (safetensors_of({"a": entry(0, 8, 3)}, n_bytes=8), HostileInputError, r"a of shape \(3,\) in 8 bytes of F32"),
        (safetensors_of({"a": entry(0, 8, -2)}, n_bytes=8), HostileInputError, "a of shape"),
        (safetensors_of({"a": entry(8, 0, 2)}, n_bytes=8), HostileInputError, "a of shape"),
        (safetensors_of({"a": entry(0, 2**62, 2**60)}, n_bytes=8), StorageError, "cut off or damaged"),
        (safetensors_of(b"{}", n_bytes=0, length=101_000_000), HostileInputError, "header of 101000000 bytes"),
        (safetensors_of(b"{}", n_bytes=0, length=2**63), HostileInputError, "safetensors header of 9223"),
        (safetensors_of(b"{}", n_bytes=0, length=50_000_000), StorageError, "header should take 50000000 bytes"),
        (safetensors_of(b"[" * 100_000, n_bytes=0), StorageError, "does not say what it holds"),
        (safetensors_of(b'{"a": {"b": 1}}', n_bytes=0), StorageError, "does not say what it holds"),
        (safetensors_of(b"[1, 2]", n_bytes=0), StorageError, "does not say what it holds"),
    ],
)
def test_safetensors_with_a_lying_header(
    content: bytes, error: type[Exception], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    for opening in (open_checkpoint, lambda path: tensor_shapes(path, names=[])):
        with pytest.raises(error, match=complaint) as caught:
            opening(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_large_lying_header_takes_no_memory(tmp_path: Path) -> None:
    """A file that is as long as it says, all of it header: refused unread."""
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 101_000_000) + b"{")
        stream.truncate(101_000_008)
    tracemalloc.start()
    try:
        with pytest.raises(HostileInputError, match="header of 101000000 bytes"):
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(FormatError, match="holds a list, not a mapping"):
        open_checkpoint(tmp_path / "list.pt")


class Options:
    """What a training script keeps beside its weights."""

    def __init__(self, rate: float) -> None:
        self.rate = rate


class _Call:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_file_that_names_code_is_opened_only_where_trusted_by_its_digest(
    container: str, state, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    extra = {"options": Options(0.1), "seen": {Options(0.2): 1}, "where": Path("x"), "step": np.float64(3)}
    torch.save({**state, **extra}, path, _use_new_zipfile_serialization=container == "zip")
    digest = sha256_of_file(path)
    with pytest.raises(HostileInputError, match=f"--trust-checkpoint NAME={digest}") as caught:
        open_checkpoint(path)
    assert "which is refused: weights need no code" in str(caught.value)
    with pytest.raises(CorruptionError, match=f"has SHA-256 {digest}, trusted by --trust-checkpoint is {'0' * 64}"):
        open_checkpoint(path, trusted_sha256="0" * 64)
    opened = open_checkpoint(path, trusted_sha256=digest)
    assert all(torch.equal(opened[key], state[key]) for key in state)
    assert not isinstance(opened["options"], Options) and not hasattr(opened["options"], "rate")
    assert tensor_shapes(path, names=[]) == {key: tuple(value.shape) for key, value in state.items()}
    with pytest.raises(HostileInputError, match="wants to call"):
        open_checkpoint(path)  # nothing that was stood in for is remembered


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_not_even_a_trusted_file_runs_its_code(container: str, state, tmp_path: Path) -> None:
    canary, path = tmp_path / "ran", tmp_path / "weights.pt"
    write = f"open({str(canary)!r}, 'w').close()"
    for payload in (_Call(exec, write), _Call(subprocess.call, ["touch", str(canary)]), _Call(eval, "1 + 1")):
        torch.save({**state, "extra": payload}, path, _use_new_zipfile_serialization=container == "zip")
        opened = open_checkpoint(path, trusted_sha256=sha256_of_file(path))
        assert torch.equal(opened["weight"], state["weight"]) and not canary.exists()
    torch.save({**state, "extra": _Payload(canary)}, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(HostileInputError, match="mkdir on opening, which is refused even in a file that is trusted"):
        open_checkpoint(path, trusted_sha256=sha256_of_file(path))
    assert not canary.exists()
