"""Tables that come with a data set: CSVs read strictly, columns found by name, names matched to clips.

What every recipe shares. A table is text until somebody asks for numbers: ids such as ``007`` stay as they are.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from embedstore.errors import ManifestError, StorageError, UnknownNameError, did_you_mean
from embedstore.manifest import Finding
from embedstore.manifest.cells import composed
from embedstore.media import stem_without_media_suffix

__all__ = [
    "CLIP_ID_NAMES",
    "PATH_NAMES",
    "PATIENT_ID_NAMES",
    "STUDY_ID_NAMES",
    "NameIndex",
    "Table",
    "found",
    "infer_kind",
    "is_kind",
    "match_names",
    "name_clips",
    "plain_name",
    "read_table",
    "read_text",
]

MAX_TABLE_BYTES = 512 << 20
_DELIMITERS = (",", ";", "\t")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_DECIMAL_POINT = re.compile(r"[+-]?[0-9]+\.[0-9]+")
# Words for a number that is not there: they say nothing about what the rest of a column is.
_NO_NUMBER = {"n/a", "na", "#n/a", "nan", "null", "-", "?", "inf", "+inf", "-inf", "infinity", "-infinity"}
_TRUTH = {"true", "false", "yes", "no"}

CLIP_ID_NAMES = ("clip_id", "unique_id")
PATH_NAMES = ("path", "file_path", "file_name", "file", "video_path", "video")
STUDY_ID_NAMES = ("study_id", "study")
PATIENT_ID_NAMES = ("patient_id", "patient")


def found(kind: str, message: str, names: Iterable[str]) -> list[Finding]:
    """Return one `Finding` whose message begins with how many names it has, none where there are no names.

    Examples
    --------
    >>> found("row-without-file", "rows of the table have no file", ["a", "b"])[0].message
    '2 rows of the table have no file'
    """
    listed = tuple(names)
    return [Finding(kind, f"{len(listed)} {message}", listed)] if listed else []


# -- reading ------------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """Return a column's name without case, spaces, underscores, dots and hyphens: what two spellings share.

    Examples
    --------
    >>> plain_name("Frame_Height") == plain_name("frameheight")
    True
    """
    return re.sub(r"[\s_.-]", "", name).lower()


@dataclass(frozen=True, eq=False)
class Table:
    """A CSV as text.

    Attributes
    ----------
    path : Path
    columns : tuple of str
        Headings, each once.
    rows : tuple of tuple of str
        Cells in the order of ``columns``, without outer white space.
    delimiter : str
    n_unnamed : int
        Columns without a heading, which are left out (the row numbers that some programs write).
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    delimiter: str = ","
    n_unnamed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def cells(self, name: str) -> list[str]:
        """Return one column as text."""
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def decimal_cells(self, name: str) -> list[str]:
        """Return one column with decimal points, also where a table that separates by ``;`` has decimal commas."""
        cells = self.cells(name)
        if self.delimiter == "," or any(_DECIMAL_POINT.fullmatch(cell) for cell in cells):
            return cells
        return [cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell for cell in cells]

    def at(self, lines: Sequence[int]) -> Table:
        """Return the table of these rows, in this order."""
        return replace(self, rows=tuple(self.rows[line] for line in lines))

    def find_column(self, names: Sequence[str]) -> str | None:
        """Return the first column that bears one of ``names``, whatever its case, spaces and underscores.

        Raises
        ------
        ManifestError
            Two columns bear it, and neither is spelled exactly so.
        """
        for name in names:
            if name in self.columns:
                return name
            near = [column for column in self.columns if plain_name(column) == plain_name(name)]
            if len(near) > 1:
                raise ManifestError(
                    f"{self.path} has two columns that could be {name!r}: {near[0]!r} and {near[1]!r}; say which"
                )
            if near:
                return near[0]
        return None

    def require_column(self, name: str, *, option: str) -> str:
        """Return the column that a user named.

        Raises
        ------
        UnknownNameError
            The table has no such column; the message names ``option``.
        """
        if name in self.columns:
            return name
        near = [column for column in self.columns if column.lower() == name.lower()]
        if len(near) == 1:
            return near[0]
        raise UnknownNameError(
            f"{option}: {self.path} has no column {name!r}{did_you_mean(name, list(self.columns))}"
        )


def read_table(path: Path, *, option: str = "--table") -> Table:
    """Read a CSV: UTF-8 (UTF-16 with its mark), separated by comma, semicolon or tab.

    Raises
    ------
    UnknownNameError
        There is no such file.
    StorageError
        The file cannot be read, or is no CSV; the message names the line.
    ManifestError
        A heading stands twice.
    """
    if not path.exists():
        raise UnknownNameError(f"{option}: there is no file {path}")
    if path.is_dir():
        raise UnknownNameError(f"{option}: {path} is a folder, not a CSV file")
    text = read_text(path)
    delimiter = _delimiter_of(text)
    records = _records(path, text, delimiter)
    if not records:
        raise StorageError(f"cannot read {path}: it has no heading line")
    (_, heading), *body = records
    headings = [composed(cell.strip()) for cell in heading]
    odd = [name for name in headings if not name.isprintable()]
    if odd:
        raise StorageError(f"cannot read {path}: the heading {odd[0]!r} has control characters")
    doubled = sorted({name for name in headings if name and headings.count(name) > 1})
    if doubled:
        raise ManifestError(f"{path} has the column {doubled[0]!r} twice; give each column a name of its own")
    named = [at for at, name in enumerate(headings) if name]
    for line, cells in body:
        extra = [cell for cell in cells[len(headings) :] if cell.strip()]
        if len(cells) < len(headings) or extra:
            raise StorageError(
                f"cannot read {path}: line {line} has {len(cells)} cells where the heading has {len(headings)}"
            )
    return Table(
        path=path,
        columns=tuple(headings[at] for at in named),
        rows=tuple(tuple(cells[at].strip() for at in named) for _, cells in body),
        delimiter=delimiter,
        n_unnamed=len(headings) - len(named),
    )


def read_text(path: Path) -> str:
    """Return a small text file: UTF-8, or UTF-16 with its mark.

    Raises
    ------
    StorageError
        The file cannot be read, or is no text; the message names the line.
    """
    try:
        with path.open("rb") as handle:
            payload = handle.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if len(payload) > MAX_TABLE_BYTES:
        raise StorageError(f"cannot read {path}: it is larger than the {MAX_TABLE_BYTES} bytes that a table may have")
    encoding = "utf-16" if payload[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding == "utf-8-sig" and (b"\0" in payload or payload[:4] == b"PK\x03\x04"):
        raise StorageError(f"cannot read {path}: it is no text; save the table as CSV (UTF-8)")
    try:
        return payload.decode(encoding)
    except UnicodeDecodeError as error:
        line = payload[: error.start].count(b"\n") + 1
        raise StorageError(f"cannot read {path}: line {line} is no UTF-8; save the table as CSV (UTF-8)") from error


def _delimiter_of(text: str) -> str:
    def n_cells(delimiter: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=n_cells)  # the first of equals: comma


def _records(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                records.append((reader.line_num, cells))
    except csv.Error as error:
        raise StorageError(f"cannot read {path}: line {reader.line_num} is no CSV: {error}") from error
    return records


def infer_kind(cells: Iterable[str]) -> Literal["number", "boolean", "text"]:
    """Return what most of the cells that say something are: numbers, truth values (0 and 1 only too) or text.

    Empty cells say nothing, nor do words such as ``n/a`` and ``inf``.

    Examples
    --------
    >>> infer_kind(["55.1", "", "n/a", "60"]), infer_kind(["0", "1", ""]), infer_kind(["mild", "severe"])
    ('number', 'boolean', 'text')
    """
    filled = [cell for cell in cells if cell and cell.lower() not in _NO_NUMBER]
    numbers = [float(cell) for cell in filled if is_kind(cell, "number")]
    if 2 * len(numbers) > len(filled):
        return "boolean" if set(numbers) <= {0.0, 1.0} else "number"
    n_truths = sum(is_kind(cell, "boolean") for cell in filled)
    return "boolean" if 2 * n_truths > len(filled) else "text"


def is_kind(cell: str, kind: str) -> bool:
    """Return whether a cell reads as a finite number or as a truth value; anything is text."""
    if kind == "text":
        return True
    if _NUMBER.fullmatch(cell):
        return math.isfinite(float(cell)) if kind == "number" else float(cell) in (0, 1)
    return kind == "boolean" and cell.lower() in _TRUTH


# -- names --------------------------------------------------------------------------------------------------


def name_clips(paths: Sequence[str]) -> list[str]:
    """Return a clip id for each path below the root: without its media suffix, where that leaves it unique.

    Examples
    --------
    >>> name_clips(["p1/a.avi", "p1/b.avi", "p1/b.mp4", "v/c.nii.gz", "IM0001"])
    ['p1/a', 'p1/b.avi', 'p1/b.mp4', 'v/c', 'IM0001']
    """
    whole = [composed(path) for path in paths]
    ids = [composed(stem_without_media_suffix(path)) for path in paths]
    while True:
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, clip_id in enumerate(ids):
            rows_of[clip_id].append(row)
        colliding = [row for rows in rows_of.values() if len(rows) > 1 for row in rows if ids[row] != whole[row]]
        if not colliding:
            return ids
        for row in colliding:
            ids[row] = whole[row]


class NameIndex:
    """Finds clips by what tables call them: an id, a path, a file name, each with or without media suffix.

    Parameters
    ----------
    names : sequence of sequence of str
        For each clip, everything that names it in full: its id, its path below the root.

    Examples
    --------
    >>> index = NameIndex([["p1/a.avi"], ["p2/b.avi"]])
    >>> index.find("b"), index.find("data/raw/p1/a.avi"), index.find("p1/b")
    ((1,), (0,), ())
    """

    def __init__(self, names: Sequence[Sequence[str]]) -> None:
        self._by_name: dict[str, set[int]] = defaultdict(set)
        self._by_tail: dict[str, set[int]] = defaultdict(set)
        for row, spellings in enumerate(names):
            for spelling in {composed(name) for name in spellings}:
                for name in {spelling, stem_without_media_suffix(spelling)}:
                    self._by_name[name].add(row)
                    parts = name.split("/")
                    for at in range(1, len(parts)):
                        self._by_tail["/".join(parts[at:])].add(row)

    def find(self, text: str) -> tuple[int, ...]:
        """Return the clips that ``text`` may mean: by whole name, by the end of their name, or because ``text``
        ends in a whole name (a path that starts from another root)."""
        spelled = composed(text.strip())
        parts = [part for part in spelled.replace("\\", "/").split("/") if part not in ("", ".")]
        tail = "/".join(parts)
        for name, index in ((spelled, self._by_name), (tail, self._by_name), (tail, self._by_tail)):
            if name in index:
                return tuple(sorted(index[name]))
        for at in range(1, len(parts)):
            tail = "/".join(parts[at:])
            if tail in self._by_name:
                return tuple(sorted(self._by_name[tail]))
        return ()


def match_names(texts: Sequence[str], index: NameIndex) -> tuple[list[int | None], list[str]]:
    """Return the clip of each text, and the texts that are ambiguous.

    A text that several clips answer to is ambiguous; so are different texts that mean one clip, since one of them
    must be wrong. Ambiguous texts have no clip.
    """
    rows: list[int | None] = []
    ambiguous = set()
    texts_of: dict[int, set[str]] = defaultdict(set)
    for text in texts:
        candidates = index.find(text) if text else ()
        if len(candidates) > 1:
            ambiguous.add(text)
        rows.append(candidates[0] if len(candidates) == 1 else None)
        if len(candidates) == 1:
            texts_of[candidates[0]].add(text)
    for meant in texts_of.values():
        if len(meant) > 1:
            ambiguous |= meant
    return [None if text in ambiguous else row for text, row in zip(texts, rows, strict=True)], sorted(ambiguous)
