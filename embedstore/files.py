"""Every write of a file of a store: whole file, fsync, hash, create-only link.

A file appears under its name only when it is complete and on disk: it is written beside its place under a
temporary name, fsynced, linked (which fails where the name is taken) or renamed, and its folder fsynced.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.disk import SendAhead, announce, storage_errors
from embedstore.errors import FormatError
from embedstore.folders import confirm_names
from embedstore.scratch import ScratchFile
from embedstore.stream_digest import StreamDigest

__all__ = [
    "FileRecord",
    "HashingFile",
    "create_file",
    "hash_file",
    "link_file",
    "mark_used",
    "read_file",
    "remove_file",
    "replace_file",
    "scratch_file",
    "write_file",
]

TEMPORARY_PREFIX = ".partial-"
_BLOCK_BYTES = 1 << 20
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of a written file."""

    size: int
    sha256: str


class HashingFile(io.RawIOBase):
    """A file open for writing that hashes what passes; give it to anything that writes to a file object.

    Use as a context manager: on success the bytes are fsynced; `record` then holds size and digest.
    """

    def __init__(self, path: Path, *, private: bool = False) -> None:
        super().__init__()
        self._path = path
        self._digest = StreamDigest()
        self._size = 0
        announce("open", path)
        self._file = path.open("xb", buffering=0)
        self._ahead = SendAhead(self._file.fileno())
        if private:
            os.fchmod(self._file.fileno(), 0o600)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, payload: Any) -> int:
        view = memoryview(payload).cast("B")
        announce("write", self._path)
        self._digest.update(view, meanwhile=self._write_all)
        self._size += len(view)
        self._ahead.written(self._size)
        return len(view)

    def _write_all(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += self._file.write(view[done:]) or 0

    def sync(self) -> None:
        """Bring the bytes to disk."""
        announce("fsync", self._path)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    @property
    def record(self) -> FileRecord:
        """Size and SHA-256 of what was written so far."""
        return FileRecord(self._size, self._digest.hexdigest())


@contextmanager
def write_file(path: Path, *, named: Path | None = None, private: bool = False) -> Iterator[HashingFile]:
    """Write a new file in a folder that nobody reads yet: fsynced and hashed, without a temporary name.

    Parameters
    ----------
    named : Path, optional
        The path that errors name, where ``path`` is a temporary one.
    private : bool
        Only the owner may read it (mode 0600).

    Raises
    ------
    StorageError
        The disk refused; what was written of this file is removed.
    """
    with storage_errors(named or path, "write"):
        handle = HashingFile(path, private=private)
        try:
            with handle:
                yield handle
                handle.sync()
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def scratch_file(folder: Path) -> ScratchFile:
    """Open a file without a name on the disk of ``folder``, to append to and to map."""
    with storage_errors(folder, "write"):
        announce("scratch", folder)
        return ScratchFile(folder, before_write=lambda: announce("write", folder))


def _write_temporary(path: Path, payload: bytes, *, private: bool = False) -> Path:
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with write_file(temporary, named=path, private=private) as handle:
        handle.write(payload)
    return temporary


def create_file(path: Path, payload: bytes, *, private: bool = False) -> bool:
    """Create ``path`` with ``payload``, or change nothing where the name is taken: the compare-and-swap.

    Parameters
    ----------
    private : bool
        Only the owner may read it (mode 0600).

    Either way the name is on disk afterwards: whoever took it may have failed to bring it there.

    Returns
    -------
    bool
        False where something of that name is already there.

    Raises
    ------
    StorageError
        The disk refused; nothing of that name was made.
    UnconfirmedError
        The file is there, but the disk did not confirm its name.
    """
    with storage_errors(path, "write"):
        temporary = _write_temporary(path, payload, private=private)
        try:
            announce("link", path)
            is_new = _link_or_rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        confirm_names(path)
        return is_new


def _link_or_rename(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here: rename after an exclusive reservation is the nearest thing.
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        temporary.replace(path)
    return True


def replace_file(path: Path, payload: bytes, *, private: bool = False) -> None:
    """Put ``payload`` under ``path``, replacing what is there in one step (local settings only)."""
    with storage_errors(path, "write"):
        temporary = _write_temporary(path, payload, private=private)
        try:
            announce("rename", path)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        confirm_names(path)


def link_file(source: Path, target: Path) -> bool:
    """Give ``source`` a second name; False where the file system cannot."""
    with storage_errors(target, "write"):
        announce("link", target)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno in _NO_LINKS or error.errno == errno.EXDEV:
                return False
            raise
        return True


def remove_file(path: Path) -> None:
    """Remove a file that may already be gone."""
    with storage_errors(path, "remove"):
        announce("unlink", path)
        path.unlink(missing_ok=True)


def mark_used(path: Path) -> bool:
    """Set the modification time of a file or folder to now, so that gc lets it be; False where it is not there."""
    with storage_errors(path, "mark"):
        announce("touch", path)
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except PermissionError:
            return path.exists()  # another user's: it cannot be marked, and its age alone protects it
        return True


def hash_file(path: Path) -> FileRecord:
    """Return size and SHA-256 of a file, read in blocks."""
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(_BLOCK_BYTES)
    view = memoryview(buffer)
    with storage_errors(path, "read"), path.open("rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            digest.update(view[:count])
            size += count
    return FileRecord(size, digest.hexdigest())


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Read a whole file that must not be larger than ``max_bytes``.

    Raises
    ------
    FormatError
        The file is larger.
    StorageError
        The file cannot be read.
    """
    with storage_errors(path, "read"), path.open("rb") as handle:
        # One byte more than there is, not than there may be: a read allocates what it is asked for.
        payload = handle.read(min(max_bytes, os.fstat(handle.fileno()).st_size) + 1)
    if len(payload) > max_bytes:
        raise FormatError(f"{path} is larger than the {max_bytes} bytes that such a file may have")
    return payload
