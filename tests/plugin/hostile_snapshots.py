"""Snapshots that somebody made to hurt: 60 archives and 40 sets of metadata, each a change of an honest snapshot.

An attack is a function of an empty folder and of honest things (`Honest`); it returns what is given to import. All
that an attacker can recompute is recomputed (digests, ids, the document), so that only the attack itself is wrong.
"""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sent_snapshots import copied, edit_json, reseal, rewrite_document

from embedstore.files import write_file
from embedstore.snapshot.archive import _Writer
from embedstore.tables import table_bytes

CANARY = b"canary\n"
SET = "emb/mine/small"


@dataclass(frozen=True)
class Honest:
    """An honest folder, the same as an archive, and a file that nobody may touch."""

    folder: Path
    archive: Path
    canary: Path


Attack = Callable[[Path, Honest], Path]


# -- archives -----------------------------------------------------------------------------------------------


def _members(honest: Honest) -> dict[str, bytes]:
    with zipfile.ZipFile(honest.archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def _strict(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Write members in our own strict form, whatever their names."""
    place = path.parent / "member"
    with write_file(path) as handle:
        writer = _Writer(handle)
        for name, payload in members:
            place.write_bytes(payload)
            writer.add(name, place)
        writer.finish()
    place.unlink(missing_ok=True)
    return path


NAMES = [
    "../canary",
    "a/../../canary",
    "/etc/canary",
    "C:\\canary",
    "D:canary",
    "\\\\host\\share",
    "a\0b",
    "CON",
    "nul.parquet",
    "COM1.json",
    ".",
    "..",
    "",
    "x" * 5000,
    "a//b",
    "a/",
    " a",
    "a ",
    "a.",
    "a:b",
    "a\nb",
    "a\x1b[31m",
    "a\\b",
    "~root",
    "$HOME",
    "emb/mine/small/clips/zarr.json/x",
]


def named(name: str, folder: Path, honest: Honest) -> Path:
    return _strict(folder / "x.zip", [*sorted(_members(honest).items()), (name, CANARY)])


def case_twin(folder: Path, honest: Honest) -> Path:
    return _strict(folder / "x.zip", [*sorted(_members(honest).items()), ("readme.MD", CANARY)])


def twice(folder: Path, honest: Honest) -> Path:
    members = sorted(_members(honest).items())
    return _strict(folder / "x.zip", [*members, members[0]])


def unlisted(name: str, folder: Path, honest: Honest) -> Path:
    return _strict(folder / "x.zip", [*sorted(_members(honest).items()), (name, b"IxF2" + bytes(64))])


def without(name: str, folder: Path, honest: Honest) -> Path:
    return _strict(folder / "x.zip", [(n, p) for n, p in sorted(_members(honest).items()) if n != name])


def swapped(folder: Path, honest: Honest) -> Path:
    members = _members(honest)
    a, b = f"{SET}/clips/zarr.json", f"{SET}/frames/zarr.json"
    members[a], members[b] = members[b], members[a]
    return _strict(folder / "x.zip", sorted(members.items()))


def two_parts_one_file(folder: Path, honest: Honest) -> Path:
    members = sorted(_members(honest).items())
    _strict(folder / "x.more.zip", members[:1])
    return _strict(folder / "x.zip", members)


def packed(method: int, folder: Path, honest: Honest) -> Path:
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w", method) as out:
        for name, payload in sorted(_members(honest).items()):
            out.writestr(name, payload)
    return path


def bomb(folder: Path, honest: Honest) -> Path:
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name, payload in sorted(_members(honest).items()):
            out.writestr(name, payload)
        out.writestr(f"{SET}/clips/c/1/0", bytes(100 << 20))
    return path


def link(target: str, folder: Path, honest: Honest) -> Path:
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w") as out:
        entry = zipfile.ZipInfo("emb")
        entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        out.writestr(entry, target)
        for name, payload in sorted(_members(honest).items()):
            out.writestr(name, payload)
    return path


def mode(bits: int, folder: Path, honest: Honest) -> Path:
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name, payload in sorted(_members(honest).items()):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, bits << 16
            out.writestr(entry, payload)
    return path


def patched(change: Callable[[bytearray], object], folder: Path, honest: Honest) -> Path:
    payload = bytearray(honest.archive.read_bytes())
    changed = change(payload)
    path = folder / "x.zip"
    path.write_bytes(changed if isinstance(changed, bytes) else payload)
    return path


def _put(at: int, form: str, value: int) -> Callable[[bytearray], object]:
    def change(payload: bytearray) -> None:
        struct.pack_into(form, payload, len(payload) + at if at < 0 else at, value)

    return change


def _in_central(offset: int, form: str, value: int) -> Callable[[bytearray], object]:
    """Change a field of the second member's entry in the central directory."""

    def change(payload: bytearray) -> None:
        first = payload.index(b"PK\1\2")
        struct.pack_into(form, payload, payload.index(b"PK\1\2", first + 4) + offset, value)

    return change


def tarred(folder: Path, honest: Honest) -> Path:
    path = folder / "x.zip"
    with tarfile.open(path, "w") as out:
        for name, payload in sorted(_members(honest).items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            out.addfile(entry, io.BytesIO(payload))
        evil = tarfile.TarInfo("../canary")
        evil.size = len(CANARY)
        out.addfile(evil, io.BytesIO(CANARY))
    return path


def bare(payload: bytes, folder: Path, honest: Honest) -> Path:
    path = folder / "x.zip"
    path.write_bytes(payload)
    return path


# The end of an archive: 56 bytes of ZIP64 end, 20 of its locator, 22 of the end.
ARCHIVES: dict[str, Attack] = {
    **{f"name-{number}-{name[:12]!r}": partial(named, name) for number, name in enumerate(NAMES)},
    "case-twin": case_twin,
    "member-twice": twice,
    "faiss-index": partial(unlisted, f"{SET}/index.faiss"),
    "pickle": partial(unlisted, "labels.pkl"),
    "zarr-v2": partial(unlisted, f"{SET}/clips/.zarray"),
    "no-document": partial(without, "manifest.json"),
    "no-shard": partial(without, f"{SET}/clips/c/0/0"),
    "swapped": swapped,
    "one-file-in-two-parts": two_parts_one_file,
    "deflated": partial(packed, zipfile.ZIP_DEFLATED),
    "bzip2": partial(packed, zipfile.ZIP_BZIP2),
    "lzma": partial(packed, zipfile.ZIP_LZMA),
    "bomb": bomb,
    "link-out": partial(link, "/tmp"),
    "link-up": partial(link, "../.."),
    "setuid": partial(mode, stat.S_IFREG | 0o4755),
    "fifo": partial(mode, stat.S_IFIFO | 0o644),
    "bytes-before": partial(patched, lambda p: b"#!/bin/sh\n" + bytes(p)),
    "bytes-after": partial(patched, lambda p: bytes(p) + b"x"),
    "comment": partial(patched, lambda p: bytes(p[:-2]) + b"\5\0hello"),
    "cut-at-10": partial(patched, lambda p: bytes(p[: len(p) // 10])),
    "cut-at-50": partial(patched, lambda p: bytes(p[: len(p) // 2])),
    "cut-at-90": partial(patched, lambda p: bytes(p[: 9 * len(p) // 10])),
    "cut-by-one": partial(patched, lambda p: bytes(p[:-1])),
    "too-many-members": partial(patched, _put(-98 + 32, "<Q", 3_000_000)),
    "endless-directory": partial(patched, _put(-98 + 40, "<Q", 1 << 62)),
    "directory-elsewhere": partial(patched, _put(-98 + 48, "<Q", 0)),
    "encrypted": partial(patched, _in_central(8, "<H", 1)),
    "overlapping": partial(patched, _in_central(46 + len(f"{SET}/clips/c/0/0") - 6 + 20, "<Q", 0)),
    "local-size-lies": partial(patched, _put(18, "<L", 5)),
    "tar": tarred,
    "gzip": partial(bare, b"\x1f\x8b\x08\0" + bytes(200)),
    "empty": partial(bare, b""),
    "zeros": partial(bare, bytes(4096)),
}


# -- metadata -----------------------------------------------------------------------------------------------


def in_zarr(change: Callable[[dict[str, Any]], object], folder: Path, honest: Honest) -> Path:
    made = copied(honest.folder, folder / "s")
    path = made / SET / "clips" / "zarr.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))
    reseal(made)
    return made


def zarr_bytes(payload: bytes, folder: Path, honest: Honest) -> Path:
    made = copied(honest.folder, folder / "s")
    (made / SET / "clips" / "zarr.json").write_bytes(payload)
    reseal(made)
    return made


def in_description(change: Callable[[dict[str, Any]], object], folder: Path, honest: Honest) -> Path:
    made = copied(honest.folder, folder / "s")
    edit_json(made / SET / "description.json", change)
    reseal(made)
    return made


def in_document(change: Callable[[dict[str, Any]], object], folder: Path, honest: Honest) -> Path:
    made = copied(honest.folder, folder / "s")
    rewrite_document(made, change)
    return made


def in_table(name: str, change: Callable[[pa.Table], pa.Table | bytes], folder: Path, honest: Honest) -> Path:
    made = copied(honest.folder, folder / "s")
    path = made / SET / name
    found = change(pq.read_table(path))
    path.write_bytes(found if isinstance(found, bytes) else table_bytes(found))
    reseal(made)
    return made


def in_shard(change: Callable[[bytearray], object], folder: Path, honest: Honest) -> Path:
    made = copied(honest.folder, folder / "s")
    path = made / SET / "clips" / "c" / "0" / "0"
    payload = bytearray(path.read_bytes())
    change(payload)
    path.write_bytes(payload)
    reseal(made)
    return made


def in_folder(change: Callable[[Path, Honest], object], folder: Path, honest: Honest) -> Path:
    made = copied(honest.folder, folder / "s")
    change(made, honest)
    return made


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, store_schema=False, **options)
    return bytes(sink.getvalue())


def _with_metadata(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"pandas": "{}"})
    return bytes(sink.getvalue())


def _cells(table: pa.Table, column: str, cells: Sequence[Any]) -> pa.Table:
    kind = table.schema.field(column).type
    return table.set_column(table.column_names.index(column), column, pa.array(cells, kind))


def _first(table: pa.Table, column: str, value: Any) -> pa.Table:
    return _cells(table, column, [value, *table.column(column).to_pylist()[1:]])


def _codec(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda d: d["codecs"][0]["configuration"]["codecs"].append({"name": name, "configuration": {}})


def _nested(depth: int) -> bytes:
    return b'{"zarr_format":3,"codecs":' + b"[" * depth + b"]" * depth + b"}"


def _replace_by_link(made: Path, honest: Honest) -> None:
    shard = made / SET / "clips" / "c" / "0" / "0"
    shard.unlink()
    shard.symlink_to(honest.canary)


def _folder_link(made: Path, honest: Honest) -> None:
    (made / SET / "clips").rename(made.parent / "elsewhere")
    (made / SET / "clips").symlink_to(made.parent / "elsewhere")


def _float16(value: float) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.float16(value).tobytes()


PICKLE_V2 = {
    "zarr_format": 2,
    "dtype": "|O",
    "shape": [1],
    "filters": [{"id": "pickle"}],
    "chunks": [1],
    "order": "C",
}

METADATA: dict[str, Attack] = {
    "zarr-format-2": partial(in_zarr, lambda d: d.update(zarr_format=2)),
    "zarr-2-pickle": partial(zarr_bytes, json.dumps(PICKLE_V2).encode()),
    "dtype-object": partial(in_zarr, lambda d: d.update(data_type="object")),
    "dtype-string": partial(in_zarr, lambda d: d.update(data_type="vlen-utf8")),
    "codec-blosc": partial(in_zarr, _codec("blosc")),
    "codec-pickle": partial(in_zarr, _codec("pickle")),
    "codec-gzip": partial(in_zarr, _codec("gzip")),
    "storage-transformer": partial(in_zarr, lambda d: d.update(storage_transformers=[{"name": "x"}])),
    "shape-huge": partial(in_zarr, lambda d: d.update(shape=[1 << 40, 768])),
    "shape-negative": partial(in_zarr, lambda d: d.update(shape=[-1, 6])),
    "shape-text": partial(in_zarr, lambda d: d.update(shape=["22", 6])),
    "shape-float": partial(in_zarr, lambda d: d.update(shape=[1e308, 6])),
    "fill-not-finite": partial(in_zarr, lambda d: d.update(fill_value="NaN")),
    "nested": partial(zarr_bytes, _nested(100_000)),
    "key-twice": partial(zarr_bytes, b'{"zarr_format":3,"zarr_format":3}'),
    "nan-literal": partial(zarr_bytes, b'{"zarr_format":3,"shape":[NaN,6]}'),
    "zarr-json-large": partial(zarr_bytes, b'{"zarr_format":3,"x":"' + b"x" * (1 << 21) + b'"}'),
    "rows-huge": partial(in_description, lambda d: d["arrays"]["clips"].update(n_rows=1 << 47)),
    "rows-float": partial(in_description, lambda d: d["arrays"]["clips"].update(n_rows=22.0)),
    "dim-other": partial(in_description, lambda d: d["arrays"]["clips"].update(dim=7)),
    "shard-rows-huge": partial(in_description, lambda d: d["arrays"]["clips"].update(shard_rows=1 << 40)),
    "chunk-rows-zero": partial(in_description, lambda d: d["arrays"]["clips"].update(chunk_rows=0)),
    "file-outside": partial(
        in_description, lambda d: d["arrays"]["clips"]["files"].update({"../../x": {"size": 1, "sha256": "0" * 64}})
    ),
    "spec-other": partial(in_description, lambda d: d["spec"].update(weights_sha256="0" * 64)),
    "key-unknown": partial(in_description, lambda d: d.update(extra=1)),
    "document-path": partial(in_document, lambda d: d["files"][0].update(path="../../canary")),
    "document-set-twice": partial(in_document, lambda d: d["sets"].append(d["sets"][0])),
    "document-counts": partial(in_document, lambda d: d["sets"][0].update(n_clips=1 << 50)),
    "document-escape": partial(in_document, lambda d: d["datasets"][0].update(title="a\x1b]52;c;x\x07\x9b31m\u202e")),
    "document-licence": partial(in_document, lambda d: d["datasets"][0].update(licence="free for all")),
    "clip-twice": partial(in_table, "index.parquet", lambda t: _first(t, "clip_id", t.column("clip_id")[1].as_py())),
    "clip-unknown": partial(in_table, "index.parquet", lambda t: _first(t, "clip_id", "c-elsewhere")),
    "frame-rows-negative": partial(in_table, "index.parquet", lambda t: _first(t, "n_frame_rows", -5)),
    "column-more": partial(
        in_table, "index.parquet", lambda t: t.append_column("x", pa.nulls(t.num_rows, pa.int64()))
    ),
    "parquet-snappy": partial(in_table, "index.parquet", lambda t: _parquet(t, compression="snappy")),
    "parquet-metadata": partial(in_table, "index.parquet", _with_metadata),
    "parquet-bomb": partial(
        in_table,
        "failures.parquet",
        lambda t: _parquet(
            _cells(t, "detail", ["x" * (60 << 20)] * t.num_rows), compression="zstd", use_dictionary=False
        ),
    ),
    "reason-escape": partial(in_table, "failures.parquet", lambda t: _first(t, "reason", "a\rok\x9b31m")),
    "row-nan": partial(in_shard, lambda p: p.__setitem__(slice(26, 28), _float16(np.nan))),
    "row-infinite": partial(in_shard, lambda p: p.__setitem__(slice(26, 28), _float16(70000.0))),
    "padding-smuggles": partial(in_shard, lambda p: p.__setitem__(slice(-5000, -4990), b"smuggled!!")),
    "shard-index": partial(in_shard, lambda p: p.__setitem__(slice(-4, None), b"\0\0\0\0")),
    "shard-link": partial(in_folder, _replace_by_link),
    "folder-link": partial(in_folder, _folder_link),
    "fifo-in-folder": partial(in_folder, lambda made, honest: os.mkfifo(made / SET / "pipe")),
    "partial-bomb": partial(in_folder, lambda made, honest: (made / "partial.json").write_bytes(b"[" * 100_000)),
}
