"""Tags: names for snapshots, fixed once made. Also how a snapshot is named on the command line.

A tag is a create-only file; deleting one is another create-only file beside it, so that a name is never used for two
snapshots and a deletion cannot be half done.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from embedstore.disk import storage_errors
from embedstore.errors import AmbiguousNameError, ContentError, CorruptionError, UnknownNameError, did_you_mean
from embedstore.files import create_file
from embedstore.json_files import read_sealed_json, seal_json
from embedstore.layout import HEAD_NAME, is_digest, is_tag_name
from embedstore.store import Store

__all__ = ["Tag", "create_tag", "delete_tag", "find_snapshot", "list_tags"]

_SUFFIX = ".json"
_LEAST_PREFIX = 4


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A name for a snapshot.

    Attributes
    ----------
    name : str
    snapshot_id : str
    time : str
        When it was made, ISO 8601.
    is_deleted : bool
        Whether the name was given up; it stays taken.
    """

    name: str
    snapshot_id: str
    time: str
    is_deleted: bool = False


def _read_tag(store: Store, name: str) -> Tag:
    path = store.layout.tag_file(name)
    described = read_sealed_json(path)
    try:
        return Tag(
            name=name,
            snapshot_id=described["snapshot"],
            time=described["time"],
            is_deleted=store.layout.tag_end(name).exists(),
        )
    except KeyError as error:
        raise CorruptionError(f"{path} is no tag: it lacks {error}") from error


def list_tags(store: Store, *, deleted: bool = False) -> list[Tag]:
    """Return the tags of a store, sorted by name.

    Parameters
    ----------
    deleted : bool
        With those that were deleted.

    Raises
    ------
    CorruptionError
        A tag's file is not what was written.
    """
    folder = store.layout.tags
    if not folder.is_dir():
        return []
    with storage_errors(folder, "read"):
        names = [entry.name.removesuffix(_SUFFIX) for entry in os.scandir(folder) if entry.name.endswith(_SUFFIX)]
    tags = [_read_tag(store, name) for name in sorted(names) if is_tag_name(name)]
    return [tag for tag in tags if deleted or not tag.is_deleted]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def create_tag(store: Store, name: str, *, snapshot_id: str) -> Tag:
    """Name a snapshot for ever. Naming the same snapshot by the same name again changes nothing.

    Raises
    ------
    UnknownNameError
        The name cannot be one of a tag.
    ContentError
        The name is or was that of another snapshot, or sets of the snapshot were removed.
    """
    if not is_tag_name(name):
        raise UnknownNameError(
            f"a tag cannot be called {name!r}: it takes 1 to 100 letters, digits, dots, dashes and underscores, the "
            f"first a letter or digit, and not {HEAD_NAME!r}"
        )
    path = store.layout.tag_file(name)
    with storage_errors(path, "write"):
        path.parent.mkdir(exist_ok=True)
    with store.publishing():
        if not path.exists():
            snapshot = store.snapshot(snapshot_id)
            absent = store.absent(snapshot)
            if absent:
                raise ContentError(
                    f"snapshot {snapshot_id[:12]} cannot be tagged: gc or forget-patient removed {len(absent)} of "
                    "its sets and manifests"
                )
            store.claim(snapshot)
            create_file(path, seal_json({"snapshot": snapshot_id, "time": _now()}))
    tag = _read_tag(store, name)
    if tag.is_deleted:
        raise ContentError(f"the tag {name!r} was deleted and its name is not used again; choose another")
    if tag.snapshot_id != snapshot_id:
        raise ContentError(
            f"the tag {name!r} already names snapshot {tag.snapshot_id[:12]} and is fixed; choose another name"
        )
    return tag


def delete_tag(store: Store, name: str) -> Tag:
    """Give up a tag: its snapshot is no longer kept for its sake, its name stays taken.

    Raises
    ------
    UnknownNameError
        There is no such tag.
    """
    known = {tag.name: tag for tag in list_tags(store)}
    if name not in known:
        raise UnknownNameError(f"the store has no tag {name!r}{did_you_mean(name, list(known))}")
    tag = known[name]
    create_file(store.layout.tag_end(name), seal_json({"snapshot": tag.snapshot_id, "time": _now()}))
    return _read_tag(store, name)


def find_snapshot(store: Store, text: str | None = None) -> str:
    """Return the id of a snapshot named by a tag, by the beginning of its id, or as ``head``.

    A tag wins over an id that begins the same, since a tag must go on meaning what it meant.

    Parameters
    ----------
    text : str, optional
        The head without.

    Raises
    ------
    UnknownNameError
        Nothing is called so, or the store has no snapshot.
    AmbiguousNameError
        Several snapshots begin so.
    """
    entries = store.log()
    if not entries:
        raise UnknownNameError(f"the store at {store.layout.root} has no snapshot yet")
    if text is None or text.lower() == HEAD_NAME:
        return entries[0].snapshot_id
    tags = {tag.name: tag for tag in list_tags(store)}
    if text in tags:
        return tags[text].snapshot_id
    known = {entry.snapshot_id for entry in entries} | {tag.snapshot_id for tag in tags.values()}
    beginning = text.lower()
    matching = sorted(snapshot_id for snapshot_id in known if snapshot_id.startswith(beginning))
    if len(matching) > 1 and not is_digest(beginning) and len(beginning) >= _LEAST_PREFIX:
        listed = ", ".join(snapshot_id[:16] for snapshot_id in matching)
        raise AmbiguousNameError(f"several snapshots begin with {text!r}: {listed}; give more of the id")
    if not matching or len(beginning) < _LEAST_PREFIX:
        raise UnknownNameError(
            f"the store has no snapshot or tag {text!r}{did_you_mean(text, [*tags, HEAD_NAME])}; give a tag, "
            f"{HEAD_NAME} or at least the first {_LEAST_PREFIX} digits of an id (see embedstore log)"
        )
    return matching[0]
