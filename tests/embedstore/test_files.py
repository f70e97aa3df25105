"""Writes: whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from embedstore import files
from embedstore.errors import CorruptionError, FormatError, StorageError, UnconfirmedError


def test_create_file_is_a_compare_and_swap(tmp_path: Path) -> None:
    path = tmp_path / "entry"
    assert files.create_file(path, b"first")
    assert not files.create_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("operation", ["open", "write", "fsync", "link"])
def test_a_failing_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
) -> None:
    def fault(done: str, path: Path) -> None:
        if done == operation:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "fault_hook", fault)
    with pytest.raises(StorageError, match="entry") as refused:
        files.create_file(tmp_path / "entry", b"payload")
    assert "\n" not in str(refused.value)
    monkeypatch.undo()
    leftovers = [left.name for left in tmp_path.iterdir()]
    assert [name for name in leftovers if name != "entry"] == []
    if operation != "fsync":
        assert leftovers == []


@pytest.mark.parametrize("make", ["create_file", "replace_file", "rename_folder"])
def test_a_name_that_the_disk_does_not_confirm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str) -> None:
    """The message says that it is there, and the same again confirms it even where the name is taken now."""
    folder, failing, confirmed = tmp_path / "folder", True, 0
    folder.mkdir()

    def fault(done: str, path: Path) -> None:
        nonlocal confirmed
        if done == "fsync" and path == folder:
            if failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            confirmed += 1

    def act() -> bool:
        if make != "rename_folder":
            return bool(getattr(files, make)(folder / "entry", b"payload"))
        staging = tmp_path / "staging"
        staging.mkdir(exist_ok=True)
        (staging / "file").write_bytes(b"payload")
        return files.rename_folder(staging, folder / "entry")

    monkeypatch.setattr(files, "fault_hook", fault)
    with pytest.raises(UnconfirmedError, match="entry is written and can be read.*input/output error"):
        act()
    assert (folder / "entry").exists()
    failing = False
    assert not act() and confirmed == 1


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert files.create_file(tmp_path / "entry", b"first")
    assert not files.create_file(tmp_path / "entry", b"second")
    assert (tmp_path / "entry").read_bytes() == b"first"
    assert not files.link_file(tmp_path / "entry", tmp_path / "other")


def test_hashing_file_records_what_passed(tmp_path: Path) -> None:
    with files.write_file(tmp_path / "a") as handle:
        handle.write(b"abc")
        handle.write(memoryview(b"def"))
    assert handle.record == files.hash_file(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"abcdef"


@pytest.mark.parametrize(
    "payload", [b"{", b'{"a":1,"a":2}', b"[NaN]", b"[1e999", b"\xff", b"[" * 100_000, b"[-Infinity]", b""]
)
def test_strict_json(payload: bytes) -> None:
    with pytest.raises(FormatError, match="here"):
        files.parse_json(payload, source="here")


def test_a_seal_finds_every_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    payload = files.seal_json({"time": "2026", "number": 3})
    for position in range(len(payload)):
        for bit in range(8):
            flipped = bytearray(payload)
            flipped[position] ^= 1 << bit
            path.write_bytes(bytes(flipped))
            with pytest.raises((CorruptionError, FormatError)):
                files.read_sealed_json(path)
    path.write_bytes(payload)
    assert files.read_sealed_json(path) == {"time": "2026", "number": 3}


def test_a_file_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(11))
    assert len(files.read_file(tmp_path / "big", max_bytes=11)) == 11
    with pytest.raises(FormatError, match="larger"):
        files.read_file(tmp_path / "big", max_bytes=10)
