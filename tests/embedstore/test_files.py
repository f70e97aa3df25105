"""Writes: whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from embedstore import disk, files, folders
from embedstore.errors import CorruptionError, FormatError, StorageError, UnconfirmedError
from embedstore.json_files import parse_json, read_sealed_json, seal_json
from embedstore.stream_digest import StreamDigest


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

    monkeypatch.setattr(disk, "fault_hook", fault)
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
        return folders.rename_folder(staging, folder / "entry")

    monkeypatch.setattr(disk, "fault_hook", fault)
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


def test_blocks_of_any_size_are_hashed_in_their_order(tmp_path: Path) -> None:
    """Large ones in a thread, beside their way to the disk; none is left when a write returns."""
    sizes = [3, 1 << 20, 10, (5 << 20) + 1, 0, (8 << 20) + 7, (1 << 20) - 1]
    blocks = [bytes([number]) * size for number, size in enumerate(sizes)]
    before = threading.active_count()
    with files.write_file(tmp_path / "a") as handle:
        for block in blocks:
            reused = bytearray(block)
            assert handle.write(reused) == len(block)
            assert threading.active_count() == before
            reused[:] = bytes(len(block))
    whole = b"".join(blocks)
    assert handle.record == files.FileRecord(len(whole), hashlib.sha256(whole).hexdigest())
    assert (tmp_path / "a").read_bytes() == whole


def test_a_large_block_where_no_thread_is_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    block = bytes(2 << 20)
    with files.write_file(tmp_path / "a") as handle:
        handle.write(block)
    assert handle.record == files.FileRecord(len(block), hashlib.sha256(block).hexdigest())


def test_what_fails_beside_a_block_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a disk that refuses a large block nor a hash that breaks off goes unseen, and no thread is left."""
    before = threading.active_count()

    def full(_: memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        StreamDigest().update(memoryview(bytes(2 << 20)), meanwhile=full)
    assert threading.active_count() == before

    class Broken:
        def update(self, _: memoryview) -> None:
            raise MemoryError

    monkeypatch.setattr(hashlib, "sha256", Broken)
    with pytest.raises(MemoryError), files.write_file(tmp_path / "a") as handle:
        handle.write(bytes(2 << 20))
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == before


def test_scratch_bytes_count_as_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write that reaches a file without a name can fail, the last one too, which only mapping calls for."""
    seen: list[str] = []
    monkeypatch.setattr(disk, "fault_hook", lambda operation, path: seen.append(operation))
    scratch = files.scratch_file(tmp_path)
    scratch.append(b"ab")
    scratch.append(memoryview(b"cd"))
    assert seen == ["scratch"]
    scratch.append(bytes(1 << 16))
    assert seen == ["scratch", "write"]
    scratch.append(b"end")
    assert scratch.mapped().tobytes() == b"abcd" + bytes(1 << 16) + b"end"
    assert seen == ["scratch", "write", "write"] and list(tmp_path.iterdir()) == []
    scratch.close()

    def full(operation: str, path: Path) -> None:
        if operation == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "fault_hook", full)
    scratch = files.scratch_file(tmp_path)
    scratch.append(b"ab")
    with pytest.raises(OSError, match="No space"):
        scratch.mapped()
    scratch.close()


@pytest.mark.parametrize(
    "payload", [b"{", b'{"a":1,"a":2}', b"[NaN]", b"[1e999", b"\xff", b"[" * 100_000, b"[-Infinity]", b""]
)
def test_strict_json(payload: bytes) -> None:
    with pytest.raises(FormatError, match="here"):
        parse_json(payload, source="here")


def test_a_seal_finds_every_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    payload = seal_json({"time": "2026", "number": 3})
    for position in range(len(payload)):
        for bit in range(8):
            flipped = bytearray(payload)
            flipped[position] ^= 1 << bit
            path.write_bytes(bytes(flipped))
            with pytest.raises((CorruptionError, FormatError)):
                read_sealed_json(path)
    path.write_bytes(payload)
    assert read_sealed_json(path) == {"time": "2026", "number": 3}


def test_a_file_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(11))
    assert len(files.read_file(tmp_path / "big", max_bytes=11)) == 11
    with pytest.raises(FormatError, match="larger"):
        files.read_file(tmp_path / "big", max_bytes=10)
