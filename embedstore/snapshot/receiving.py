"""`receiving_store`: the store that something comes into, gone again if it was made for what is then refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from embedstore.disk import storage_errors
from embedstore.errors import BusyError, ContentError, UnknownNameError
from embedstore.folders import remove_folder
from embedstore.layout import STAGING_PREFIX, TRASH_PREFIX, StoreLayout
from embedstore.locks import host_lock
from embedstore.store import Store

__all__ = ["receiving_store"]


@contextmanager
def receiving_store(path: Path) -> Iterator[Store]:
    """Yield the store at ``path``, made where there is none.

    A store that was made here is removed where what should come into it is refused, unless something is in it by
    then. It stays where the network or the disk failed or the user stopped: the same command goes on in it.

    Raises
    ------
    UnknownNameError
        The path is a file, or a folder with other content.
    StorageError
        The folder cannot be made.
    """
    layout = StoreLayout(path)
    is_new, has_folder = not layout.store_file.exists(), layout.root.exists()
    store = Store.create(path)
    try:
        yield store
    except (ContentError, UnknownNameError):
        if is_new:
            _remove_unused(layout, keeps_root=has_folder)
        raise


def _remove_unused(layout: StoreLayout, *, keeps_root: bool) -> None:
    """Remove a store that nothing was put into; leave one that another process works in."""
    with (
        suppress(BusyError),
        host_lock(layout.publish_lock, shared=False, wait_s=0, busy="the store is in use"),
        storage_errors(layout.root, "remove"),
    ):
        if not _is_unused(layout):
            return
        if not keeps_root:
            remove_folder(layout.root)
            return
        layout.store_file.unlink()  # from here on it is no store
        for folder in layout.folders:
            remove_folder(folder)


def _is_unused(layout: StoreLayout) -> bool:
    """Return whether a store is as it was made, but for its lock and the rests of transfers."""
    if set(layout.root.iterdir()) != {layout.store_file, *layout.folders}:
        return False
    expected = {layout.log_mark, layout.publish_lock}
    return all(
        entry in expected or entry.name.startswith((STAGING_PREFIX, TRASH_PREFIX))
        for folder in layout.folders
        for entry in folder.iterdir()
    )
