"""CSV files as CardioBench's scripts read and write them: a header, commas, UTF-8, numbers in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from embedstore.disk import storage_errors
from embedstore.errors import FormatError, StorageError
from embedstore.files import replace_file

__all__ = ["read_csv", "write_csv"]

_MAX_BYTES = 256 << 20


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a file whole; its folder is made where it is not. None is an empty cell.

    Raises
    ------
    StorageError
        The folder or file cannot be written.
    """
    with storage_errors(path.parent, "make the folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else _cell(cell) for cell in row] for row in rows)
    replace_file(path, text.getvalue().encode())


def _cell(value: Any) -> str:
    return repr(float(value)) if isinstance(value, float) else str(value)


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the header and the rows of a file as texts.

    Raises
    ------
    StorageError
        The file cannot be read.
    FormatError
        It is too large, not UTF-8, or a row has more cells than the header.
    """
    with storage_errors(path, "read"):
        if not path.is_file():
            raise StorageError(f"there is no file {path}")
        if path.stat().st_size > _MAX_BYTES:
            raise FormatError(f"{path} is larger than {_MAX_BYTES >> 20} MiB, which no file of predictions is")
        payload = path.read_bytes()
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8; save it as a CSV in UTF-8") from error
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(lines, [])]
        rows = []
        for number, cells in enumerate(lines, start=2):
            if not cells:
                continue
            if len(cells) > len(header):
                raise FormatError(f"{path} line {number} has {len(cells)} cells and the header {len(header)}")
            rows.append(dict(zip(header, (cell.strip() for cell in cells), strict=False)))
    except csv.Error as error:
        raise FormatError(f"{path} is no CSV: {error}") from error
    if not header or not rows:
        raise FormatError(f"{path} holds no row")
    return header, rows
