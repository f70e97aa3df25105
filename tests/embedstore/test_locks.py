"""Locks that the kernel frees, and removal in one step."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedstore import disk, locks
from embedstore.errors import BusyError, StorageError
from embedstore.files import mark_used
from embedstore.folders import remove_folder, trash_folder
from embedstore.locks import host_lock, is_locked


def test_shared_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path) and not path.exists()
    with host_lock(path, shared=True, wait_s=0, busy="busy"):
        assert is_locked(path)
        with host_lock(path, shared=True, wait_s=0, busy="busy"):
            pass
        with pytest.raises(BusyError, match="busy"), host_lock(path, shared=False, wait_s=0.05, busy="busy"):
            pass
    assert path.exists() and not is_locked(path)
    with (
        host_lock(path, shared=False, wait_s=0, busy=""),
        pytest.raises(BusyError, match="wait"),
        host_lock(path, shared=True, wait_s=0, busy="wait"),
    ):
        pass


def test_a_killed_owner_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import sys, time; from pathlib import Path; from embedstore.locks import host_lock\n"
        "with host_lock(Path(sys.argv[1]), shared=False, wait_s=0, busy=''):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
        assert is_locked(path)
        owner.send_signal(signal.SIGKILL)
    with host_lock(path, shared=False, wait_s=0, busy="a dead owner"):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with host_lock(tmp_path / "lock", shared=False, wait_s=0, busy=""):
        assert not is_locked(tmp_path / "lock")
    monkeypatch.setattr(locks, "_UNSUPPORTED", set())
    with (
        pytest.raises(StorageError, match="cannot lock"),
        host_lock(tmp_path / "lock", shared=False, wait_s=0, busy=""),
    ):
        pass


def test_a_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(StorageError, match="cannot lock .*/file/lock"),
        host_lock(tmp_path / "file" / "lock", shared=True, wait_s=0, busy=""),
    ):
        pass


def test_a_folder_disappears_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    (folder / "clips" / "c").mkdir(parents=True)
    (folder / "clips" / "c" / "0").write_bytes(b"x")
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(disk, "fault_hook", lambda operation, path: seen.append((operation, folder.exists())))
    remove_folder(folder)
    assert list(tmp_path.iterdir()) == []
    assert [operation for operation, _ in seen] == ["rename", "fsync", *["unlink"] * 4]
    assert [is_there for _, is_there in seen] == [True, *[False] * 5]
    remove_folder(folder)  # somebody else was quicker


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"x")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "to-folder").symlink_to(outside)
    (folder / "to-file").symlink_to(outside / "kept")
    (tmp_path / "linked-set").symlink_to(outside)
    for path in (folder, tmp_path / "linked-set"):
        remove_folder(path)
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert [path.name for path in outside.iterdir()] == ["kept"]


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "0").write_bytes(b"x")

    def refuse(operation: str, path: Path) -> None:
        if operation == "unlink":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(disk, "fault_hook", refuse)
    with pytest.raises(StorageError, match="cannot remove .*: the file system is read-only"):
        remove_folder(folder)
    monkeypatch.undo()
    (trash,) = tmp_path.iterdir()
    assert trash.name.startswith(".trash-")
    remove_folder(trash)
    with pytest.raises(StorageError, match="not there"):
        trash_folder(folder)


def test_marking_as_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set"
    assert not mark_used(path)
    path.mkdir()
    os.utime(path, (1, 1))
    assert mark_used(path) and path.stat().st_mtime > 1e9

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refuse)
    assert mark_used(path) and not mark_used(tmp_path / "none")
