"""The same matrix in other formats, for comparison. What is not installed is skipped."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_ROWS, SHARD_ROWS = 256, 65_536
WRITE_ROWS = 65_536


@dataclass(frozen=True)
class Format:
    """How one library writes, scans and gathers.

    ``write`` takes (folder, matrix) and need not fsync; ``scan`` and ``gather`` return rows of the stored dtype.
    """

    package: str
    write: Callable[[Path, Any], None]
    scan: Callable[[Path], Any]
    gather: Callable[[Path, Any], Any]

    @property
    def is_installed(self) -> bool:
        """Whether the library is there."""
        return importlib.util.find_spec(self.package) is not None


def sorted_gather(read: Callable[[Any], Any], rows: Any) -> Any:
    """Gather in ascending order, as these libraries want it, and put the rows back in the order asked for."""
    order = np.argsort(rows, kind="stable")
    result = None
    found = read(rows[order])
    result = np.empty_like(found)
    result[order] = found
    return result


# -- Zarr: zarr-python and tensorstore ------------------------------------------------------------------------------


def write_zarr(folder: Path, matrix: Any) -> None:
    import zarr

    array = zarr.create_array(
        str(folder / "zarr"),
        shape=matrix.shape,
        dtype=matrix.dtype,
        chunks=(CHUNK_ROWS, matrix.shape[1]),
        shards=(SHARD_ROWS, matrix.shape[1]),
        compressors=None,
        filters=None,
    )
    for start in range(0, len(matrix), SHARD_ROWS):
        stop = min(start + SHARD_ROWS, len(matrix))
        array[start:stop] = matrix[start:stop]


def open_zarr(folder: Path) -> Any:
    import zarr

    return zarr.open_array(str(folder / "zarr"), mode="r")


def gather_zarr(folder: Path, rows: Any) -> Any:
    array = open_zarr(folder)
    return sorted_gather(lambda wanted: array.get_orthogonal_selection((wanted, slice(None))), rows)


def open_tensorstore(folder: Path, matrix: Any = None) -> Any:
    import tensorstore  # type: ignore[import-not-found,unused-ignore]

    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "ts")}}
    if matrix is None:
        return tensorstore.open(spec, read=True).result()
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    columns = matrix.shape[1]
    sharding = {
        "chunk_shape": [CHUNK_ROWS, columns],
        "codecs": [little],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    spec["metadata"] = {
        "shape": list(matrix.shape),
        "data_type": matrix.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD_ROWS, columns]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    return tensorstore.open(spec, create=True).result()


def write_tensorstore(folder: Path, matrix: Any) -> None:
    array = open_tensorstore(folder, matrix)
    for start in range(0, len(matrix), SHARD_ROWS):
        stop = min(start + SHARD_ROWS, len(matrix))
        array[start:stop].write(matrix[start:stop]).result()


def gather_tensorstore(folder: Path, rows: Any) -> Any:
    return open_tensorstore(folder)[rows].read().result()


# -- Arrow: Parquet and Lance ---------------------------------------------------------------------------------------


def as_table(matrix: Any) -> Any:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])})


def as_matrix(table: Any) -> Any:
    column = table.column("vector").combine_chunks()
    column = column.chunk(0) if hasattr(column, "chunk") else column
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def write_parquet(folder: Path, matrix: Any) -> None:
    import pyarrow.parquet as pq

    table = as_table(matrix[:1])
    with pq.ParquetWriter(folder / "rows.parquet", table.schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, len(matrix), WRITE_ROWS):
            writer.write_table(as_table(matrix[start : start + WRITE_ROWS]), row_group_size=16_384)


def scan_parquet(folder: Path) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / "rows.parquet") as parquet:
        return as_matrix(parquet.read())


def gather_parquet(folder: Path, rows: Any) -> Any:
    """Row groups are what can be read: ten thousand random rows touch them all."""
    import pyarrow.parquet as pq

    result = None
    with pq.ParquetFile(folder / "rows.parquet") as parquet:
        starts = np.cumsum([0] + [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)])
        group_of = np.searchsorted(starts, rows, side="right") - 1
        for group in np.unique(group_of):
            picked = np.flatnonzero(group_of == group)
            part = as_matrix(parquet.read_row_group(int(group)))
            if result is None:
                result = np.empty((len(rows), part.shape[1]), part.dtype)
            result[picked] = part[rows[picked] - starts[group]]
    return result


def write_lance(folder: Path, matrix: Any) -> None:
    import lance  # type: ignore[import-not-found,unused-ignore]
    import pyarrow as pa

    batches = (
        batch
        for start in range(0, len(matrix), WRITE_ROWS)
        for batch in as_table(matrix[start : start + WRITE_ROWS]).to_batches()
    )
    reader = pa.RecordBatchReader.from_batches(as_table(matrix[:1]).schema, batches)
    lance.write_dataset(reader, str(folder / "rows.lance"))


def scan_lance(folder: Path) -> Any:
    import lance

    return as_matrix(lance.dataset(str(folder / "rows.lance")).to_table())


def gather_lance(folder: Path, rows: Any) -> Any:
    import lance

    return as_matrix(lance.dataset(str(folder / "rows.lance")).take(rows.tolist()))


# -- HDF5 -----------------------------------------------------------------------------------------------------------


def write_hdf5(folder: Path, matrix: Any) -> None:
    import h5py

    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("rows", data=matrix)


def scan_hdf5(folder: Path) -> Any:
    import h5py

    with h5py.File(folder / "rows.h5", "r") as file:
        return file["rows"][:]


def gather_hdf5(folder: Path, rows: Any) -> Any:
    """Row by row: h5py's own list selection is slower still."""
    import h5py

    with h5py.File(folder / "rows.h5", "r") as file:
        dataset = file["rows"]
        result = np.empty((len(rows), dataset.shape[1]), dataset.dtype)
        for at, row in enumerate(rows.tolist()):
            dataset.read_direct(result, np.s_[row], np.s_[at])
        return result


FORMATS = {
    "zarr-python": Format("zarr", write_zarr, lambda folder: open_zarr(folder)[:], gather_zarr),
    "tensorstore": Format(
        "tensorstore", write_tensorstore, lambda folder: open_tensorstore(folder).read().result(), gather_tensorstore
    ),
    "Lance": Format("lance", write_lance, scan_lance, gather_lance),
    "Parquet": Format("pyarrow", write_parquet, scan_parquet, gather_parquet),
    "HDF5": Format("h5py", write_hdf5, scan_hdf5, gather_hdf5),
}


def version_of(package: str) -> str:
    """Installed version, for the result file."""
    module = importlib.import_module(package)
    return str(getattr(module, "__version__", None) or importlib.metadata.version(package))


if __name__ == "__main__":
    print(json.dumps({name: other.is_installed for name, other in FORMATS.items()}))
