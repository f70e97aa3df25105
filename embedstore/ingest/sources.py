"""`open_source`: the right reader for a file, by its suffix and content, or by entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from embedstore.disk import storage_errors
from embedstore.encoder import resolve_string
from embedstore.errors import FormatError, HostileInputError, StorageError, UnknownNameError
from embedstore.ingest.source import IngestSource

__all__ = ["ENTRY_POINT_GROUP", "open_source"]

ENTRY_POINT_GROUP = "embedstore.ingest"
_FOLDER_READER = "cardiobench"
_FORMATS = {
    ".npy": "npy",
    ".npz": "npz",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
}
_MAGICS = {"npy": b"\x93NUMPY", "npz": b"PK\x03\x04", "parquet": b"PAR1", "hdf5": b"\x89HDF\r\n\x1a\n"}
_PICKLES = (".pkl", ".pickle", ".joblib")


def _entry_point_reader(name: str) -> Callable[[Path], IngestSource] | None:
    points = sorted(entry_points(group=ENTRY_POINT_GROUP, name=name), key=lambda point: point.value)
    # A package of the user's own may give the same name as ours; two of the same value are one.
    if len({point.value for point in points}) > 1:
        listed = ", ".join(point.value for point in points)
        raise UnknownNameError(f"several installed packages read {name!r} ({listed}); uninstall all but one")
    return cast("Callable[[Path], IngestSource]", resolve_string(points[0].value)) if points else None


def _head(path: Path) -> bytes:
    with storage_errors(path, "read"), path.open("rb") as handle:
        return handle.read(8)


def _reader_of(path: Path, id_table: Path | None) -> Callable[[], IngestSource]:
    suffix = path.suffix.lower()
    if path.is_dir():
        reader = _entry_point_reader(_FOLDER_READER)
        if reader is None:
            raise UnknownNameError(
                f"{path} is a folder, and no installed package reads folders of vectors; "
                "install the extra with: pip install 'embedstore[build]'"
            )
        folder_reader = reader
        return lambda: folder_reader(path)
    if not path.exists():
        raise StorageError(f"cannot read {path}: the file or folder is not there")
    if not path.is_file():
        raise FormatError(f"{path} is neither a file nor a folder")
    head = _head(path)
    name = _FORMATS.get(suffix)
    if name is None:
        reader = _entry_point_reader(suffix.lstrip(".")) if suffix else None
        if reader is not None:
            file_reader = reader
            return lambda: file_reader(path)
        if suffix in _PICKLES:
            raise HostileInputError(f"{path} is a pickle, which can run code and is never read; save it as .npz")
        raise FormatError(
            f"{path} is of no format that can be ingested: give .npz, .npy with --ids, .parquet, .h5, "
            "or a folder that CardioBench wrote"
        )
    # HDF5 may begin after a block of the user's own, so its library decides.
    if name != "hdf5" and not head.startswith(_MAGICS[name]):
        is_pickle = head[:1] == b"\x80"
        raise (HostileInputError if is_pickle else FormatError)(
            f"{path} is no {suffix} file: it begins with other bytes"
            + (" and looks like a pickle, which is never read" if is_pickle else "")
        )
    if name == "npy":
        from embedstore.ingest.numpy_files import open_npy

        return lambda: open_npy(path, id_table=id_table)
    if name == "npz":
        from embedstore.ingest.numpy_files import open_npz

        return lambda: open_npz(path)
    if name == "parquet":
        from embedstore.ingest.parquet_file import open_parquet

        return lambda: open_parquet(path)
    from embedstore.ingest.hdf5_file import open_hdf5

    return lambda: open_hdf5(path)


@contextmanager
def open_source(path: Path, *, id_table: Path | None = None) -> Iterator[IngestSource]:
    """Open a file or folder of vectors.

    Parameters
    ----------
    path : Path
    id_table : Path, optional
        CSV with the ids of a ``.npy`` file in row order.

    Raises
    ------
    StorageError
        It cannot be read.
    UnknownNameError
        Ids are given for a format that has its own, or are missing for one that has none.
    FormatError, HostileInputError
        It is of another format, damaged, or made to run code or exhaust the machine.
    MissingExtraError
        The package that reads the format is not installed.
    """
    if id_table is not None and (path.is_dir() or path.suffix.lower() != ".npy"):
        raise UnknownNameError(f"--ids goes with a .npy file; {path.name} holds its own ids")
    source = _reader_of(path, id_table)()
    try:
        yield source
    finally:
        source.close()
