"""Arrays on disk: written by us, read by us and by plain zarr-python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import embedstore.shards
import embedstore.vector_array
from embedstore.errors import CorruptionError, FormatError, VectorError
from embedstore.shards import ArrayDescription, ArrayWriter, cast_for_storage
from embedstore.vector_array import VectorArray


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedstore.shards, "_SHARD_ROWS", 512)


def matrix(n_rows: int, dim: int = 6, dtype: str = "float16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, dim)).astype(dtype)


def write(folder: Path, rows: np.ndarray, *, block: int = 100) -> VectorArray:
    with ArrayWriter(folder, dim=rows.shape[1], dtype=str(rows.dtype)) as writer:
        for start in range(0, len(rows), block):
            writer.append(rows[start : start + block])
        return VectorArray(folder, writer.finish())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("n_rows", [0, 1, 255, 256, 257, 511, 512, 513, 1300])
def test_rows_come_back_here_and_in_zarr(tmp_path: Path, n_rows: int, dtype: str) -> None:
    rows = matrix(n_rows, dtype=dtype)
    if n_rows > 300:
        rows[:300] = 0  # zarr-python would drop chunks of zeros
    array = write(tmp_path / "a", rows)
    assert array.shape == (n_rows, 6) and array.dtype == np.float32
    np.testing.assert_array_equal(array.raw[:], rows)
    np.testing.assert_array_equal(array[:], rows.astype(np.float32))
    plain = zarr.open_array(str(tmp_path / "a"), mode="r")
    assert plain.metadata.zarr_format == 3 and str(plain.dtype) == dtype
    np.testing.assert_array_equal(plain[:], rows)


def test_zarr_json_is_what_zarr_python_writes(tmp_path: Path) -> None:
    write(tmp_path / "ours", matrix(700))
    zarr.create_array(
        str(tmp_path / "theirs"),
        shape=(700, 6),
        dtype="float16",
        chunks=(256, 6),
        shards=(512, 6),
        compressors=None,
        filters=None,
        fill_value=0,
    )[:] = matrix(700)
    assert (tmp_path / "ours/zarr.json").read_bytes() == (tmp_path / "theirs/zarr.json").read_bytes()
    for shard in ("c/0/0", "c/1/0"):
        assert (tmp_path / "ours" / shard).read_bytes() == (tmp_path / "theirs" / shard).read_bytes()


@settings(max_examples=60)
@given(keys=st.lists(st.integers(-1300, 1299), max_size=30), start=st.integers(-1400, 1400), step=st.integers(-3, 3))
def test_indexing_is_numpys(tmp_path_factory: pytest.TempPathFactory, keys: list[int], start: int, step: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "indexing"
    rows = matrix(1300)
    array = VectorArray(folder, _described(folder)) if folder.exists() else write(folder, rows)
    np.testing.assert_array_equal(array.raw[keys], rows[np.array(keys, dtype=int)])
    piece = slice(start, None, step or None)
    np.testing.assert_array_equal(array.raw[piece], rows[piece])
    mask = np.zeros(1300, bool)
    mask[keys] = True
    np.testing.assert_array_equal(array.raw[mask], rows[mask])
    if keys:
        np.testing.assert_array_equal(array.raw[keys[0]], rows[keys[0]])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("cached_bytes", [1, 5000, 1 << 20])
def test_a_gather_larger_than_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, cached_bytes: int
) -> None:
    monkeypatch.setattr(embedstore.vector_array, "_CACHED_BYTES", cached_bytes)
    rows = matrix(1300, dim=7, dtype=dtype)
    array = write(tmp_path / "a", rows)
    picked = np.random.default_rng(0).integers(0, 1300, 4000)
    assert array.raw[picked].tobytes() == rows[picked].tobytes()
    np.testing.assert_array_equal(array[picked], rows[picked].astype(np.float32))
    np.testing.assert_array_equal(array.raw[np.sort(picked)], rows[np.sort(picked)])


def _described(folder: Path) -> ArrayDescription:
    files = {}
    from embedstore.files import hash_file

    for path in [folder / "zarr.json", *sorted(folder.glob("c/*/0"))]:
        files[path.relative_to(folder).as_posix()] = hash_file(path)
    return ArrayDescription(n_rows=1300, dim=6, dtype="float16", chunk_rows=256, shard_rows=512, files=files)


@pytest.mark.parametrize("wrong", [1300, -1301, [0, 1300], 1.5, [0.5], "a", np.ones(3, bool), [[0, 1]]])
def test_rows_that_are_not_there(tmp_path: Path, wrong: object) -> None:
    array = write(tmp_path / "a", matrix(1300))
    with pytest.raises((IndexError, ValueError)):
        array[wrong]


def test_a_grown_array_links_whole_shards(tmp_path: Path) -> None:
    old, new = matrix(1300), matrix(400, seed=1)
    parent = write(tmp_path / "old", old)
    with ArrayWriter(tmp_path / "new", dim=6, dtype="float16") as writer:
        writer.adopt(parent, 1300)
        writer.append(new)
        grown = VectorArray(tmp_path / "new", writer.finish())
    np.testing.assert_array_equal(grown.raw[:], np.concatenate([old, new]))
    inode = [(tmp_path / name / "c/0/0").stat().st_ino for name in ("old", "new")]
    assert inode[0] == inode[1]
    assert write(tmp_path / "fresh", np.concatenate([old, new])).description == grown.description


@pytest.mark.parametrize("is_raw", [True, False])
def test_a_foreign_writer_is_read_through_zarr(tmp_path: Path, is_raw: bool) -> None:
    """Chunks in another order inside one of three shards: the direct path must notice."""
    rows = matrix(1300)
    array = write(tmp_path / "a", rows)
    shard = tmp_path / "a/c/1/0"
    payload = shard.read_bytes()
    half = 256 * 12
    import struct

    import google_crc32c

    index = struct.pack("<4Q", half, half, 0, half)
    swapped = payload[half : 2 * half] + payload[:half] + index
    shard.write_bytes(swapped + struct.pack("<I", google_crc32c.value(index)))
    again = VectorArray(tmp_path / "a", array.description)
    again = again.raw if is_raw else again
    rows = rows.astype(again.dtype)
    np.testing.assert_array_equal(again[:], rows)
    np.testing.assert_array_equal(again[[515, 900, 3, 1299, 515]], rows[[515, 900, 3, 1299, 515]])


def test_a_missing_chunk_is_corruption_not_fill(tmp_path: Path) -> None:
    array = write(tmp_path / "a", matrix(512))
    shard = tmp_path / "a/c/0/0"
    import struct

    import google_crc32c

    index = struct.pack("<4Q", 0, 256 * 12, 2**64 - 1, 2**64 - 1)
    shard.write_bytes(shard.read_bytes()[: 256 * 12] + index + struct.pack("<I", google_crc32c.value(index)))
    with pytest.raises(CorruptionError, match="lacks a chunk"):
        VectorArray(tmp_path / "a", array.description)[:]


@pytest.mark.parametrize("keep", [0, 10, 3000, 6140])
def test_a_truncated_shard_is_corruption(tmp_path: Path, keep: int) -> None:
    array = write(tmp_path / "a", matrix(1300))
    shard = tmp_path / "a/c/1/0"
    shard.write_bytes(shard.read_bytes()[:keep])
    opened = VectorArray(tmp_path / "a", array.description)
    np.testing.assert_array_equal(opened[[500, 1200]], array[[500, 1200]])
    for wanted in ([600], [500, 600], slice(None)):
        for view in (opened, opened.raw):
            with pytest.raises(CorruptionError, match="c/1/0"):
                view[wanted]


def test_what_does_not_fit_is_refused() -> None:
    rows = np.ones((4, 3), np.float32)
    for value, message in ((np.nan, "row 2 is not finite"), (70000.0, "65504")):
        wrong = rows.copy()
        wrong[2, 1] = value
        with pytest.raises(VectorError, match=message):
            cast_for_storage(wrong, "float16", what="clips of x")
    assert cast_for_storage(np.full((1, 1), 70000.0), "float32", what="x").dtype == np.float32


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "object"},
        {"n_rows": -1},
        {"n_rows": 2**60},
        {"dim": 0},
        {"dim": "6"},
        {"shard_rows": 300},
        {"dim": True},
    ],
)
def test_impossible_descriptions(change: dict[str, object]) -> None:
    fields = {"n_rows": 4, "dim": 6, "dtype": "float16", "chunk_rows": 256, "shard_rows": 512, "files": {}}
    with pytest.raises(FormatError):
        ArrayDescription(**{**fields, **change})
