"""Where exported files go: under CardioBench's names or the user's, with a list of what each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from embedstore.errors import UnknownNameError, did_you_mean
from embedstore.files import replace_file

__all__ = ["Renames", "write_list"]

_LIST = "EXPORTED.md"  # no README.md, which a clone of CardioBench has
# These scripts read no folder but a dictionary of names and paths, by folder of predictions.
_DICTIONARIES: Mapping[str, str] = {
    "predictions/EchoNet-Dynamic/EF": "EF_MODELS of echonet_dynamic.py",
    "predictions/EchoNet-Dynamic/view": "VIEW_MODELS of echonet_dynamic.py",
    "predictions/EchoNet-Pediatric/view": "PEDIATRIC_VIEW_MODELS of echonet_pediatric.py",
}
_TOP = """\
# Files for CardioBench's evaluation scripts

`predictions/` holds a file a model, task and data set, `ground_truth/` the tables they are joined with. Rows stand in
the order of the ground truth. The scripts join what matches and say nothing of the rest: compare the last columns.

`predictions/` has the names of its `evaluation/example_predictions/`, `ground_truth/` those of its `data/splits/`:
copy them there, or point `evaluation/config.py` at them. `evaltools export --rename OLD=NEW` writes other names.

| predictions | data set | task | model | rows | rows that the scripts score |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Renames:
    """Other names for exported files and folders.

    Attributes
    ----------
    new_of : mapping of str to str
        Path of a file or folder below the exported one, to its new path.

    Examples
    --------
    >>> Renames.parse(("ground_truth=data/splits",)).path("ground_truth/camus_split.csv")
    'data/splits/camus_split.csv'
    """

    new_of: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Renames:
        """Read ``OLD=NEW`` texts.

        Raises
        ------
        UnknownNameError
            A text is no such pair, or leads out of the folder.
        """
        new_of = {}
        for text in texts:
            old, separator, new = (part.strip().rstrip("/") for part in text.partition("="))
            if not (separator and old and new):
                raise UnknownNameError(f"--rename needs OLD=NEW, two paths below --out, got {text!r}")
            for path in (old, new):
                if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
                    raise UnknownNameError(f"--rename takes paths below --out, got {path!r}")
            new_of[old] = new
        return cls(new_of)

    def path(self, path: str) -> str:
        """Return where a file goes: by its own name, else by the innermost folder that has a new one."""
        for known in (path, *(parent.as_posix() for parent in PurePosixPath(path).parents)):
            if known in self.new_of:
                return PurePosixPath(self.new_of[known], PurePosixPath(path).relative_to(known)).as_posix()
        return path

    def check(self, paths: Sequence[str]) -> None:
        """Check that every name is that of a file or folder, and that no two files get one name.

        Raises
        ------
        UnknownNameError
            One is not, or two do.
        """
        known = {*paths, *(parent.as_posix() for path in paths for parent in PurePosixPath(path).parents)}
        for old in self.new_of:
            if old not in known:
                raise UnknownNameError(f"--rename: nothing is written to {old!r}{did_you_mean(old, sorted(known))}")
        taken: dict[str, str] = {_LIST: _LIST}
        for path in paths:
            new = self.path(path)
            if taken.setdefault(new, path) != path:
                raise UnknownNameError(f"--rename: {taken[new]} and {path} would both be written to {new}")


def write_list(out: Path, written: Sequence[Mapping[str, Any]]) -> None:
    """Write what each file is.

    Parameters
    ----------
    written : sequence of mapping
        ``name`` and ``original``, its path below ``out`` and that without a new name; ``rows``, ``dataset`` and, of
        predictions, ``task``, ``encoder`` and ``expected``.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    text = _TOP
    of_models = [one for one in written if one["task"] is not None]
    for one in of_models:
        cells = (f"`{one['name']}`", one["dataset"], one["task"], one["encoder"], one["rows"])
        text += f"| {' | '.join(str(cell) for cell in cells)} | {one['expected']} |\n"
    text += "\n| ground truth | data set | rows |\n|---|---|---|\n"
    for one in written:
        if one["task"] is None:
            text += f"| `{one['name']}` | {one['dataset']} | {one['rows']} |\n"
    entries = [
        (dictionary, one)
        for folder, dictionary in _DICTIONARIES.items()
        for one in of_models
        if PurePosixPath(one["original"]).parent.as_posix() == folder
    ]
    if entries:
        text += "\nThree lists in `evaluation/config.py` name their files one by one; add:\n\n"
    for dictionary, one in entries:
        text += f'- {dictionary}: `"{PurePosixPath(one["original"]).stem}": "{one["name"]}"`\n'
    replace_file(out / _LIST, text.encode())
