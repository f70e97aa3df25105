"""The small files that stand alone: tags, ends of tags, and records of what was forgotten. Each has its own seal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from embedstore.errors import EmbedstoreError
from embedstore.json_files import read_sealed_json
from embedstore.layout import is_digest, is_tag_name, log_number
from embedstore.store import Store

__all__ = ["check_seals"]

_MAX_BYTES = 64 << 20
_LISTS = ("sets", "manifests", "tags")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()


def _tag_problem(store: Store, path: Path) -> tuple[str, str] | None:
    if path.suffix not in (".json", ".deleted") or not is_tag_name(path.stem):
        return "added", "no tag is called so"
    described = read_sealed_json(path, max_bytes=_MAX_BYTES)
    snapshot_id = described.get("snapshot")
    if not isinstance(snapshot_id, str) or not is_digest(snapshot_id):
        return "altered", "names no snapshot"
    if not store.layout.snapshot_file(snapshot_id).is_file():
        return "inconsistent", f"names the snapshot {snapshot_id[:12]}, which is not there"
    return None


def _forgotten_problem(path: Path) -> tuple[str, str] | None:
    if log_number(path.name) is None:
        return "added", "no record is called so"
    described = read_sealed_json(path, max_bytes=_MAX_BYTES)
    lists = [described.get(key) for key in _LISTS]
    is_whole = isinstance(described.get("commit"), int) and all(isinstance(names, list) for names in lists)
    return None if is_whole else ("altered", "lacks a list of what was forgotten")


def check_seals(store: Store) -> Iterator[tuple[str, str, str] | None]:
    """Yield (file below the store, kind, detail) of each such file with a problem, None for each that is sound.

    Nothing inside a store shows that a tag, the end of a tag or the last record of what was forgotten is gone.
    """
    layout = store.layout
    tags, forgotten = _names(layout.tags), _names(layout.forgotten)
    last = max((log_number(name) or 0 for name in forgotten), default=0)
    expected = [layout.tags / f"{name.removesuffix('.deleted')}.json" for name in tags if name.endswith(".deleted")]
    expected += [layout.forgotten_record(number) for number in range(1, last + 1)]
    present = [layout.tags / name for name in tags] + [layout.forgotten / name for name in forgotten]
    for path in sorted({*present, *expected}):
        name = path.relative_to(layout.root).as_posix()
        if path.is_symlink() or not path.is_file():
            yield name, "missing", "no regular file"
            continue
        try:
            problem = _tag_problem(store, path) if path.parent == layout.tags else _forgotten_problem(path)
        except EmbedstoreError as error:
            problem = ("altered", str(error))
        yield None if problem is None else (name, *problem)
