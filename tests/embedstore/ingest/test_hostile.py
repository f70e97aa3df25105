"""Files that want to run code, exhaust the machine, or are damaged: one sentence, nothing changed."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedstore.errors import EmbedstoreError, FormatError, HostileInputError, StorageError


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def npy(header: str, *, body: bytes = b"", version: int = 1) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + body


@contextmanager
def little_memory() -> Iterator[None]:
    """Let the process grow by no more than 3 GiB: a larger array is a MemoryError, touched or not."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (3 << 30), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def refused(lab: Any, file: Path, **options: Any) -> EmbedstoreError:
    """Ingest a file that must be refused, in bounded memory; the store is as before."""
    with little_memory(), pytest.raises(EmbedstoreError) as caught:
        lab.ingest(file, **options)
    assert lab.is_untouched()
    message = str(caught.value)
    assert "\n" not in message and file.name in message + "".join(getattr(caught.value, "__notes__", ()))
    return caught.value


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (8589934592, 1), }"), FormatError),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4), }", body=bytes(64)), FormatError),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", body=bytes(23)), FormatError),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", body=bytes(25)), FormatError),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }"), FormatError),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }", body=bytes(24)), FormatError),
        (npy("{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }", body=bytes(24)), FormatError),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 70000), }", body=bytes(280_000)), FormatError),
        (npy("{'descr': '|V99999999', 'fortran_order': False, 'shape': (2, 3), }"), FormatError),
        (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,), }", body=bytes(24)), FormatError),
        (npy("__import__('os').mkdir('/tmp/x')"), FormatError),
        (npy("(" * 110), FormatError),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }"), HostileInputError),
        (npy("{'descr': '<f4', 'shape': (2, 3), }", body=bytes(24)), FormatError),
        (b"\x93NUMPY\x02\x00\xf0\xff\xff\xff" + b"{}", FormatError),
        (b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + b"{}", FormatError),
        (b"\x93NUMPY\x01\x00", FormatError),
        (b"\x93NUMPY\x09\x00\x10\x00\x00\x00" + bytes(64), FormatError),
        (b"", FormatError),
        (b"<html>log in</html>", FormatError),
    ],
)
def test_headers_are_held_against_sizes(lab: Any, payload: bytes, kind: type[EmbedstoreError]) -> None:
    (lab.folder / "v.npy").write_bytes(payload)
    (lab.folder / "ids.csv").write_text("clip_id\nc00\nc01\n")
    assert isinstance(refused(lab, lab.folder / "v.npy", id_table=lab.folder / "ids.csv"), kind)


def test_pickles_are_never_read(lab: Any) -> None:
    canary = lab.folder / "canary"
    held = np.array([Canary(canary), None], dtype=object)
    written: list[Path] = []
    np.save(lab.folder / "objects.npy", held, allow_pickle=True)
    np.savez(lab.folder / "ids.npz", ids=held, clips=lab.clips[:2])
    np.savez(lab.folder / "clips.npz", ids=np.array(["c00", "c01"]), clips=held[:, None])
    np.savez_compressed(lab.folder / "frames.npz", frames=lab.clips[:2], frame_ids=held, frame_numbers=[0, 1])
    for name in ("raw.npy", "raw.npz", "raw.h5", "raw.parquet", "raw.pkl", "raw.joblib"):
        (lab.folder / name).write_bytes(pickle.dumps(Canary(canary)))
        written.append(lab.folder / name)
    (lab.folder / "ids.csv").write_text("clip_id\nc00\nc01\n")
    for path in [*written, *(lab.folder / f"{name}.npz" for name in ("ids", "clips", "frames"))]:
        error = refused(lab, path, id_table=lab.folder / "ids.csv" if path.suffix == ".npy" else None)
        assert error.exit_code == 4
    error = refused(lab, lab.folder / "objects.npy", id_table=lab.folder / "ids.csv")
    assert isinstance(error, HostileInputError) and "never unpickled" in str(error)
    assert not canary.exists()


def test_a_pickle_inside_an_archive_is_no_array(lab: Any) -> None:
    canary = lab.folder / "canary"
    with zipfile.ZipFile(lab.folder / "v.npz", "w") as archive:
        for name in ("ids.npy", "clips.npy"):
            archive.writestr(name, pickle.dumps(Canary(canary)))
    assert isinstance(refused(lab, lab.folder / "v.npz"), FormatError) and not canary.exists()


def test_a_zip_bomb_is_seen_before_it_is_unpacked(lab: Any) -> None:
    n_rows, dim = 7, 65_536
    packed = io.BytesIO()
    header = npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({n_rows}, {dim}), }}")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        ids = io.BytesIO()
        np.save(ids, np.array(lab.ids))
        archive.writestr("ids.npy", ids.getvalue())
        archive.writestr("clips.npy", header + bytes(n_rows * dim * 8))
    (lab.folder / "bomb.npz").write_bytes(packed.getvalue())
    assert len(packed.getvalue()) < 20_000
    error = refused(lab, lab.folder / "bomb.npz")
    assert isinstance(error, HostileInputError) and "more than 200 times" in str(error)


def test_an_archive_that_lies_about_sizes(lab: Any) -> None:
    path = lab.write("npz-packed")["file"]
    payload = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        honest = archive.getinfo("clips.npy").file_size
    directory = payload.rindex(b"PK\x01\x02")
    assert struct.unpack_from("<L", payload, directory + 24)[0] == honest
    for size in (honest + 4, honest - 4, 1 << 30):
        struct.pack_into("<L", payload, directory + 24, size)
        path.write_bytes(payload)
        assert isinstance(refused(lab, path), FormatError | HostileInputError)


def test_two_members_of_one_name(lab: Any) -> None:
    path = lab.write("npz")["file"]
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("clips.npy", b"x")
    assert isinstance(refused(lab, path), HostileInputError)


@pytest.mark.parametrize("form", ["npz", "npz-packed"])
def test_a_flipped_bit_in_an_archive_is_found(lab: Any, form: str) -> None:
    path = lab.write(form)["file"]
    payload = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("clips.npy")
        at = member.header_offset + 30 + len("clips.npy") + 20 + (140 if form == "npz" else member.compress_size // 2)
    path.write_bytes(payload[:at] + bytes([payload[at] ^ 4]) + payload[at + 1 :])
    assert isinstance(refused(lab, path), FormatError)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": ["c00"]}, "holds the arrays ids; needed are"),
        ({"clips": np.ones((1, 2))}, "holds the arrays clips; needed are"),
        ({"ids": ["c00", "c01"], "clips": np.ones((1, 2))}, r"has the shape \(2,\), but there are 1 vectors"),
        ({"ids": ["c00"], "clips": np.ones((1, 2)), "vectors": np.ones((1, 2))}, "both 'clips' and 'vectors'"),
        ({"ids": ["c00"], "clips": np.ones((1, 2)), "frames": np.ones((1, 2))}, "no 'frame_ids'"),
        ({"frames": np.ones((1, 2)), "frame_ids": ["c00"]}, "no 'frame_numbers'"),
        ({"frames": np.ones((1, 2)), "frame_ids": ["c00"], "frame_numbers": [0.5]}, "not whole frame numbers"),
        ({"ids": [1.5], "clips": np.ones((1, 2))}, "not ids as text or whole numbers"),
        ({"ids": ["c00"], "clips": np.ones((1, 2), complex)}, "not float16, float32 or float64"),
        ({"ids": ["c00"], "clips": np.ones((1, 2, 2))}, r"not \(rows, dimensions\)"),
        ({"ids": np.array([b"\xff"]), "clips": np.ones((1, 2))}, "no valid Unicode"),
        ({"ids": np.array(["\ud800"]), "clips": np.ones((1, 2))}, "no valid Unicode"),
        ({"ids": np.array([0x110000], "<u4").view("<U1"), "clips": np.ones((1, 2))}, "no valid Unicode"),
    ],
)
def test_archives_without_the_right_arrays(lab: Any, arrays: dict[str, Any], message: str) -> None:
    np.savez(lab.folder / "v.npz", **arrays)
    with pytest.raises(FormatError, match=message):
        lab.ingest(lab.folder / "v.npz")
    assert lab.is_untouched()


@pytest.mark.parametrize("form", ["npy", "npz", "npz-packed", "parquet-list", "parquet-wide", "hdf5", "hdf5-packed"])
def test_files_that_are_cut_off(lab: Any, form: str) -> None:
    source = lab.write(form)
    payload = source["file"].read_bytes()
    for kept in (1, 8, len(payload) // 2, len(payload) - 9, len(payload) - 1):
        source["file"].write_bytes(payload[:kept])
        error = refused(lab, source["file"], id_table=source.get("id_table"))
        assert isinstance(error, FormatError)


@pytest.mark.parametrize("form", ["npz", "npz-packed", "parquet-list"])
def test_damage_anywhere_is_refused_in_one_sentence_or_changes_nothing(lab: Any, form: str) -> None:
    path = lab.write(form)["file"]
    payload, chance = path.read_bytes(), random.Random(5)
    sound = lab.opened(lab.ingest(path)).clips.raw[:]
    for number in range(25):
        at = chance.randrange(len(payload))
        path.write_bytes(payload[:at] + bytes([payload[at] ^ (1 << chance.randrange(8))]) + payload[at + 1 :])
        try:
            outcome = lab.ingest(path, encoder=f"lab-net@{number}")
        except EmbedstoreError as error:
            assert error.exit_code == 4 and "\n" not in str(error)
        else:
            # Parquet has no checksums of its own unless its writer asks for them.
            assert form == "parquet-list" or (lab.opened(outcome).clips.raw[:] == sound).all()


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"clip_id": ["c00", "c01"], "v": [[1.0, 2.0], [1.0]]}, "has 1 dimensions in row 1, but 2 dimensions"),
        ({"clip_id": ["c00", "c01"], "v": [[1.0, 2.0], None]}, "has no vector in row 1"),
        ({"clip_id": ["c00", "c01"], "v": [None, [1.0, 2.0]]}, "from 1 to 65536"),
        ({"clip_id": ["c00"], "v": [[]]}, "from 1 to 65536|lists of null"),
        ({"clip_id": ["c00"], "v": [[1.0, None]]}, "empty place in a vector"),
        ({"clip_id": ["c00", None], "v": [[1.0], [2.0]]}, "an empty cell, not an id"),
        ({"clip_id": [1.5], "v": [[1.0]]}, "double, not an id"),
        ({"clip_id": ["c00"], "v": [["x"]]}, "lists of string"),
        ({"clip_id": ["c00"], "v": [[1]]}, "lists of int64"),
        ({"clip_id": ["c00"]}, "no column of vectors"),
        ({"name": ["c00"], "v": [[1.0]]}, "no column 'clip_id'; it has name, v"),
        ({"clip_id": ["c00"], "v": [[1.0]], "w": [[1.0]]}, "several columns of lists"),
        ({"clip_id": ["c00"], "a": [1.0], "split": ["train"]}, "'split' of string among its vectors"),
        ({"clip_id": ["c00"], "a": pa.array([None], pa.float32())}, "an empty cell"),
        ({"clip_id": ["c00"], "frame": [0.5], "v": [[1.0]]}, "not a whole number in each row"),
        ({"clip_id": ["c00"], "ids": ["c00"], "v": [[1.0]]}, "both 'ids' and 'clip_id'"),
        ({"clip_id": pa.array([], pa.string()), "v": pa.array([], pa.list_(pa.float32()))}, "has 0 rows"),
    ],
)
def test_tables_without_the_right_columns(lab: Any, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        lab.ingest(parquet(lab.folder / "v.parquet", **columns))
    assert lab.is_untouched()


def test_a_table_that_claims_more_than_it_can_hold(lab: Any) -> None:
    n_rows = 400_000
    offsets = pa.array(np.arange(n_rows + 1) * 4, pa.int32())
    vectors = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(4 * n_rows, np.float32)))
    ids = pa.array(["c00"] * n_rows).dictionary_encode()
    path = parquet(lab.folder / "v.parquet", clip_id=ids, v=vectors)
    assert path.stat().st_size < 50_000
    error = refused(lab, path)
    assert isinstance(error, HostileInputError) and "more than 200 times" in str(error)


def external_link(opened: h5py.File, other: Path) -> None:
    opened["clips"] = h5py.ExternalLink(other.name, "clips")


def external_bytes(opened: h5py.File, other: Path) -> None:
    opened.create_dataset("clips", (7, 5), "f4", external=[(str(other), 0, 140)])


def virtual(opened: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((7, 5), "f4")
    layout[:] = h5py.VirtualSource(str(other), "clips", (7, 5))
    opened.create_virtual_dataset("clips", layout)


def never_written(opened: h5py.File, other: Path) -> None:
    opened.create_dataset("clips", (7, 60_000), "f4", chunks=(1, 60_000))


def huge_chunk(opened: h5py.File, other: Path) -> None:
    opened.create_dataset("clips", (7, 65_536), "f8", chunks=(7, 65_536), maxshape=(None, None))
    opened["clips"].resize((7, 5))


def group(opened: h5py.File, other: Path) -> None:
    opened.create_group("clips")


def objects(opened: h5py.File, other: Path) -> None:
    opened["clips"] = ["a"] * 7


def references(opened: h5py.File, other: Path) -> None:
    opened["clips"] = np.array([[opened["ids"].ref] * 5] * 7, dtype=h5py.ref_dtype)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (external_link, HostileInputError),
        (external_bytes, HostileInputError),
        (virtual, HostileInputError),
        (never_written, HostileInputError),
        (group, FormatError),
        (objects, HostileInputError),
        (references, HostileInputError),
    ],
)
def test_hdf5_that_reaches_out_or_claims_too_much(
    lab: Any, make: Callable[[h5py.File, Path], None], kind: type[EmbedstoreError]
) -> None:
    other = lab.write("hdf5", name="other")["file"]
    with h5py.File(lab.folder / "v.h5", "w") as opened:
        opened["ids"] = lab.ids
        make(opened, other)
    assert isinstance(refused(lab, lab.folder / "v.h5"), kind)


def test_hdf5_of_another_layout_says_what_is_needed(lab: Any) -> None:
    for shape, message in (((3, 5), "frames need 'frames'"), ((), "neither 'ids' and 'clips' nor one vector")):
        with h5py.File(lab.folder / "v.h5", "w") as opened:
            opened["c00"] = np.ones(shape, np.float32)
        with pytest.raises(FormatError, match=message):
            lab.ingest(lab.folder / "v.h5")
    with h5py.File(lab.folder / "v.h5", "w") as opened:
        opened.create_group("empty")
    with pytest.raises(FormatError, match="holds no array"):
        lab.ingest(lab.folder / "v.h5")


def test_paths_that_are_no_file_of_vectors(lab: Any) -> None:
    (lab.folder / "notes.txt").write_text("x")
    (lab.folder / "vectors.feather").write_bytes(b"ARROW1\0\0" + bytes(64))
    with pytest.raises(StorageError, match="not there"):
        lab.ingest(lab.folder / "gone.npz")
    for name in ("notes.txt", "vectors.feather"):
        assert isinstance(refused(lab, lab.folder / name), FormatError)
    os.mkfifo(lab.folder / "pipe.npz")
    assert isinstance(refused(lab, lab.folder / "pipe.npz"), FormatError)
