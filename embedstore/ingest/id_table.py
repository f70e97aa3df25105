"""The CSV that gives the rows of a ``.npy`` file their ids."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from embedstore.disk import storage_errors
from embedstore.errors import FormatError
from embedstore.files import read_file
from embedstore.ingest.source import ID_NAMES, the_one_of

__all__ = ["read_id_table"]

_MAX_TABLE_BYTES = 1 << 30


def read_id_table(path: Path, *, n_rows: int) -> list[str]:
    """Read ids in row order: from the column ``clip_id`` (or ``ids``), else from the first.

    A first line that is no header is told by the count: one line a row is then ids all through.

    Raises
    ------
    StorageError
        The file cannot be read.
    FormatError
        It is no CSV in UTF-8, or has another number of rows than there are vectors.
    """
    with storage_errors(path, "read"):
        size = path.stat().st_size
    if size > _MAX_TABLE_BYTES:
        raise FormatError(f"{path} is larger than the {_MAX_TABLE_BYTES} bytes that a table of ids may have")
    payload = read_file(path, max_bytes=size)
    ids: list[str] = []
    try:
        text = io.TextIOWrapper(io.BytesIO(payload), encoding="utf-8-sig", newline="")
        lines = (cells for cells in csv.reader(text, strict=True) if cells)
        header = next(lines, None)
        if header is None:
            raise FormatError(f"{path} is empty; it needs one id for each of the {n_rows} vectors")
        named = the_one_of(ID_NAMES, header, what=f"the header of {path}")
        at = 0 if named is None else header.index(named)
        for cells in lines:
            ids.append(cells[at])
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no CSV in UTF-8") from error
    except csv.Error as error:
        raise FormatError(f"{path} is no readable CSV: {error}") from error
    except IndexError as error:
        raise FormatError(f"{path} has no id in row {len(ids) + 1}: it has fewer cells than the header") from error
    if named is None and len(ids) == n_rows - 1:
        ids.insert(0, header[0])
    if len(ids) != n_rows:
        raise FormatError(f"{path} has {len(ids)} rows below its header, but there are {n_rows} vectors")
    return ids
