"""Every write of a store that makes, moves or removes a folder, and bringing the names in it to disk.

A folder appears under its name only when it is complete and on disk, and goes out of sight in one step before what
is in it is deleted, so that nobody ever sees a half of one.
"""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path

from embedstore.disk import announce, cause_of, storage_errors
from embedstore.errors import StorageError, UnconfirmedError
from embedstore.layout import TRASH_PREFIX

__all__ = ["confirm_names", "fsync_folder", "remove_folder", "rename_folder", "trash_folder"]


def fsync_folder(folder: Path) -> None:
    """Bring a folder's entries to disk."""
    announce("fsync", folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def confirm_names(path: Path) -> None:
    """Bring to disk that ``path``, and whatever else is in its folder, has its name.

    Raises
    ------
    UnconfirmedError
        The disk refused; the file is there and can be read.
    """
    try:
        fsync_folder(path.parent)
    except OSError as error:
        raise UnconfirmedError(
            f"{path} is written and can be read, but the disk did not confirm its name ({cause_of(error)}), so a "
            "power cut may still lose it; check the disk and run the same command again"
        ) from error


def rename_folder(staging: Path, target: Path) -> bool:
    """Make a finished folder visible under its name; False where one of that name is already there.

    Either way the name is on disk afterwards.

    Raises
    ------
    StorageError
        The disk refused; nothing of that name was made.
    UnconfirmedError
        The folder is there, but the disk did not confirm its name.
    """
    is_new = True
    with storage_errors(target, "write"):
        fsync_folder(staging)
        announce("rename", target)
        try:
            staging.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            is_new = False
        confirm_names(target)
    return is_new


def trash_folder(folder: Path) -> Path:
    """Take a folder out of sight in one step, for `remove_folder`; return its new name beside the old one."""
    trash = folder.with_name(f"{TRASH_PREFIX}{uuid.uuid4().hex}")
    with storage_errors(folder, "remove"):
        announce("rename", folder)
        folder.rename(trash)
        fsync_folder(folder.parent)
    return trash


def remove_folder(folder: Path, *, in_place: bool = False) -> None:
    """Delete a folder with all that is in it; what another process deletes meanwhile is no error.

    A folder under its own name is first taken out of sight, so that nobody ever sees a half of it; unless it is
    deleted ``in_place``, because nobody looks for it under that name but whoever clears it.
    """
    if not in_place and not folder.name.startswith(TRASH_PREFIX):
        try:
            folder = trash_folder(folder)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return
            raise
    with storage_errors(folder, "remove"):
        walked = () if folder.is_symlink() else os.walk(folder, topdown=False, followlinks=False)
        for root, folders, names in walked:
            for name in (*names, *folders):
                _remove_entry(Path(root, name))
        _remove_entry(folder)


def _remove_entry(path: Path) -> None:
    announce("unlink", path)
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
