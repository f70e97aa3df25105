"""A second reader of the format, written from `docs/format.md` alone: it must not import embedstore.

It is strict, not fast: whatever it reads it checks, and what the document calls wrong it refuses.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = 1
DIGEST = re.compile(r"[0-9a-f]{64}")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NO_CHUNK = b"\xff" * 16


class Refused(ValueError):
    """The store breaks the document."""


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise Refused(sentence)


# -- section 2: JSON ----------------------------------------------------------------------------------------------


def parse_json(payload: bytes) -> Any:
    def pairs(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(entries)) == len(entries), "a key stands twice")
        return dict(entries)

    def constant(word: str) -> Any:
        raise Refused(f"{word} is no JSON")

    require(not payload.startswith(b"\xef\xbb\xbf"), "a byte order mark")
    try:
        return json.loads(payload.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Refused(f"no JSON: {error}") from error


ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def canonical_string(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    return '"' + "".join(ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in composed) + '"'


def canonical_number(number: float) -> str:
    """Rule 5, by hand: shortest digits that read back, then placed by the decimal exponent."""
    require(math.isfinite(number), "a number that is not finite")
    if number == 0:
        return "-0.0" if math.copysign(1, number) < 0 else "0.0"
    exact, sign = Decimal(abs(number)), "-" if number < 0 else ""
    for precision in range(1, 18):
        rounded = [Context(prec=precision, rounding=rule).plus(exact) for rule in (ROUND_FLOOR, ROUND_CEILING)]
        right = [candidate for candidate in rounded if float(candidate) == abs(number)]
        if right:
            break
    nearest = min(right, key=lambda candidate: (abs(candidate - exact), candidate.as_tuple().digits[-1] % 2))
    digits, exponent = "".join(map(str, nearest.as_tuple().digits)).rstrip("0"), nearest.adjusted()
    if not -4 <= exponent < 16:
        point = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{point}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    whole = digits[: exponent + 1].ljust(exponent + 1, "0")
    return f"{sign}{whole}.{digits[exponent + 1 :] or '0'}"


def canonical_text(value: Any) -> str:
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return canonical_string(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return canonical_number(value)
    if isinstance(value, Mapping):
        members = sorted((unicodedata.normalize("NFC", key), entry) for key, entry in value.items())
        return "{" + ",".join(f"{canonical_string(key)}:{canonical_text(entry)}" for key, entry in members) + "}"
    return "[" + ",".join(canonical_text(entry) for entry in value) + "]"


def canonical(value: Any) -> bytes:
    return canonical_text(value).encode("utf-8")


def sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def digest(value: Any) -> str:
    return sha256(canonical(value))


def read_sealed(path: Path) -> dict[str, Any]:
    payload = path.read_bytes()
    whole = parse_json(payload)
    require(canonical(whole) == payload, f"{path} is not canonical")
    rest = {key: value for key, value in whole.items() if key != "seal"}
    require(whole.get("seal") == digest(rest), f"the seal of {path} does not fit")
    return rest


def read_named(path: Path, *, kind: str) -> dict[str, Any]:
    """A canonical file that its digest names: the file's stem, or its folder."""
    payload = path.read_bytes()
    name = path.parent.name if path.name == "description.json" else path.stem
    require(sha256(payload) == name, f"{path} is not what its name says")
    described = parse_json(payload)
    require(described["format"] <= FORMAT, f"{path} is of a newer format")
    require(canonical(described) == payload and described["kind"] == kind, f"{path} is no {kind}")
    return dict(described)


# -- sections 1 and 3: the store and its history --------------------------------------------------------------------


def names_in(folder: Path, suffix: str) -> list[str]:
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))


def check_store(root: Path) -> None:
    described = parse_json((root / "embedstore.json").read_bytes())
    require(described["format"] <= FORMAT, f"needs embedstore >= {described['needs']}")
    require(read_sealed(root / "embedstore.json")["kind"] == "store", "no store")


def read_log(root: Path) -> list[dict[str, Any]]:
    """Entries, oldest first."""
    numbers = sorted(int(name) for name in names_in(root / "log", ".json") if name != "reached")
    require(numbers == list(range(1, len(numbers) + 1)), "the log has a gap")
    require(read_sealed(root / "log/reached.json")["number"] <= len(numbers), "the log had more entries")
    entries = [read_sealed(root / "log" / f"{number:06d}.json") for number in numbers]
    parents = [None, *(entry["snapshot"] for entry in entries[:-1])]
    require([entry["parent"] for entry in entries] == parents, "an entry has another parent")
    return entries


def read_snapshot(root: Path, snapshot_id: str) -> dict[str, Any]:
    snapshot = read_named(root / "snapshots" / f"{snapshot_id}.json", kind="snapshot")
    require(set(snapshot) == {"format", "kind", "sets", "manifests", "prompts"}, "other keys in a snapshot")
    orders = {
        "sets": ("dataset", "encoder", "variant", "fingerprint", "set_id"),
        "manifests": ("name", "manifest_id", "media_digest", "annotations_digest"),
    }
    for kind, keys in orders.items():
        rows = [tuple(entry[key] for key in keys) for entry in snapshot[kind]]
        require(rows == sorted(rows) and all(set(e) == set(keys) for e in snapshot[kind]), f"{kind} are not sorted")
    return snapshot


def read_tags(root: Path) -> dict[str, str]:
    """Snapshot by name, without the names that were given up."""
    tags = {name: read_sealed(root / "tags" / f"{name}.json") for name in names_in(root / "tags", ".json")}
    ends = {name: read_sealed(root / "tags" / f"{name}.deleted") for name in names_in(root / "tags", ".deleted")}
    for name, tag in tags.items():
        require(bool(TAG.fullmatch(name)) and name.lower() != "head", f"a tag called {name}")
        require(isinstance(tag["time"], str) and bool(DIGEST.fullmatch(tag["snapshot"])), f"{name} is no tag")
    require(all(ends[name]["snapshot"] == tags[name]["snapshot"] for name in ends), "the end of another tag")
    return {name: tag["snapshot"] for name, tag in tags.items() if name not in ends}


def read_forgotten(root: Path) -> dict[str, set[str]]:
    """Ids of sets and manifests that the snapshot of a tag may lack, by the tag's name."""
    lost: dict[str, set[str]] = {}
    for number in names_in(root / "forgotten", ".json"):
        record = read_sealed(root / "forgotten" / f"{number}.json")
        require(set(record) >= {"commit", "sets", "manifests", "tags"}, f"{number} is no record")
        for name in record["tags"]:
            lost.setdefault(name, set()).update(record["sets"], record["manifests"])
    return lost


# -- section 4: sets ------------------------------------------------------------------------------------------------

TEXT, INT, FLOAT = pa.string(), pa.int64(), pa.float64()


def typed(text: str = "", integer: str = "", number: str = "") -> dict[str, pa.DataType]:
    kinds = ((text, TEXT), (integer, INT), (number, FLOAT))
    return {name: kind for names, kind in kinds for name in names.split()}


COLUMNS = {
    "index.parquet": typed(
        "clip_id content_sha256 vector_key",
        "row n_frames n_header_frames n_decode_errors n_pts_gaps height width n_padded "
        "frame_row n_frame_rows window_row n_window_rows",
        "fps fps_header covered_s effective_hz",
    ),
    "frame_index.parquet": typed("clip_id frame_kind", "frame frame_start frame_stop", "time_s"),
    "window_index.parquet": typed("clip_id", "frame_start frame_stop n_padded"),
    "failures.parquet": typed("clip_id content_sha256 vector_key reason detail"),
}
NEVER_NULL = {
    "index.parquet": {"row", "clip_id", "vector_key"},
    "frame_index.parquet": {"clip_id"},
    "window_index.parquet": {"clip_id"},
    "failures.parquet": {"clip_id", "reason"},
}
TABLE_OF = {"clips": "index.parquet", "frames": "frame_index.parquet", "windows": "window_index.parquet"}


@dataclass(frozen=True)
class Vectors:
    """A set: its description, its arrays in the stored dtype, its tables as rows."""

    described: dict[str, Any]
    arrays: dict[str, np.ndarray]
    tables: dict[str, list[dict[str, Any]]]
    provenance: dict[str, Any]


def read_listed(path: Path, listed: Mapping[str, Any]) -> bytes:
    require(path.is_file() and not path.is_symlink(), f"{path} is missing")
    payload = path.read_bytes()
    require(len(payload) == listed["size"], f"{path} has another size")
    require(sha256(payload) == listed["sha256"], f"{path} has another digest")
    return payload


def crc32c(payload: bytes) -> int:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in payload:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def array_metadata(listed: Mapping[str, Any]) -> dict[str, Any]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    columns = listed["dim"]
    return {
        "shape": [listed["n_rows"], columns],
        "data_type": listed["dtype"],
        "fill_value": 0.0,
        "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [listed["shard_rows"], columns]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [listed["chunk_rows"], columns],
                    "codecs": [little],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def read_array(folder: Path, listed: Mapping[str, Any]) -> np.ndarray:
    require(set(listed) == {"n_rows", "dim", "dtype", "chunk_rows", "shard_rows", "files"}, "other keys of an array")
    require(listed["dtype"] in ("float16", "float32"), "another dtype")
    n_rows, dim, chunk, shard = (listed[key] for key in ("n_rows", "dim", "chunk_rows", "shard_rows"))
    require(0 <= n_rows < 2**48 and 1 <= dim <= 65_536 and chunk >= 1 and shard % chunk == 0, "impossible sizes")
    names = [f"c/{number}/0" for number in range(-(-n_rows // shard))]
    require(set(listed["files"]) == {"zarr.json", *names}, f"{folder} lists other files")
    metadata = parse_json(read_listed(folder / "zarr.json", listed["files"]["zarr.json"]))
    require(metadata == array_metadata(listed), f"{folder}/zarr.json says something else")
    dtype = np.dtype(listed["dtype"]).newbyteorder("<")
    parts = [np.empty((0, dim), dtype)]
    for number, name in enumerate(names):
        payload = read_listed(folder / name, listed["files"][name])
        rows = min((number + 1) * shard, n_rows) - number * shard
        chunks, row_bytes = -(-rows // chunk), dim * dtype.itemsize
        data_bytes, slots = chunks * chunk * row_bytes, shard // chunk
        require(len(payload) == data_bytes + 16 * slots + 4, f"{name} has another size")
        index = payload[data_bytes:-4]
        expected = b"".join(struct.pack("<QQ", j * chunk * row_bytes, chunk * row_bytes) for j in range(chunks))
        require(index == expected + NO_CHUNK * (slots - chunks), f"{name} has another index")
        require(struct.unpack("<I", payload[-4:])[0] == crc32c(index), f"{name}: the index's CRC does not fit")
        require(not any(payload[rows * row_bytes : data_bytes]), f"{name} is not filled with zeros")
        parts.append(np.frombuffer(payload, dtype, count=rows * dim).reshape(rows, dim))
    whole = np.concatenate(parts)
    require(bool(np.isfinite(whole).all()), f"{folder} holds values that are not finite")
    return whole


def read_table(path: Path, listed: Mapping[str, Any]) -> list[dict[str, Any]]:
    table = pq.read_table(pa.BufferReader(read_listed(path, listed)))
    found = dict(zip(table.schema.names, table.schema.types, strict=True))
    require(found == COLUMNS[path.name], f"{path} has other columns")
    require(table.num_rows == listed["rows"], f"{path} has another number of rows")
    rows: list[dict[str, Any]] = table.to_pylist()
    require(all(row[key] is not None for row in rows for key in NEVER_NULL[path.name]), f"{path} has an empty cell")
    return rows


def check_rows(arrays: Mapping[str, np.ndarray], tables: Mapping[str, list[dict[str, Any]]]) -> None:
    index = tables["index.parquet"]
    ids = [row["clip_id"] for row in index]
    failed = [row["clip_id"] for row in tables["failures.parquet"]]
    require([row["row"] for row in index] == list(range(len(index))), "rows are not numbered")
    require(len({*ids, *failed}) == len(ids) + len(failed), "a clip stands twice")
    require(failed == sorted(failed), "failures are not sorted")
    for kind, table in TABLE_OF.items():
        require((kind in arrays) == (table in tables), f"{kind} without {table}")
        if kind not in arrays:
            continue
        require(len(arrays[kind]) == len(tables[table]), f"{kind} has other rows than {table}")
        if kind == "clips":
            continue
        prefix, at, owners = kind.removesuffix("s"), 0, []
        for row in index:
            require(row[f"{prefix}_row"] == at, f"{kind} of a clip do not follow")
            at += row[f"n_{prefix}_rows"]
            owners += [row["clip_id"]] * row[f"n_{prefix}_rows"]
        require(owners == [row["clip_id"] for row in tables[table]], f"{table} names other clips")


def read_set(root: Path, set_id: str) -> Vectors:
    folder = root / "sets" / set_id
    described = read_named(folder / "description.json", kind="embedding-set")
    keys = {"format", "kind", "dataset", "spec", "fingerprint", "arrays", "tables", "metadata"}
    require(set(described) == keys and set(described["arrays"]) <= set(TABLE_OF), "other keys in a description")
    spec = described["spec"]
    require(described["fingerprint"] == digest(spec), "the fingerprint is another")
    require(set(described["metadata"]) == {"zarr.json"}, "other metadata")
    group = parse_json(read_listed(folder / "zarr.json", described["metadata"]["zarr.json"]))
    require(group == {"attributes": {}, "zarr_format": 3, "node_type": "group"}, "no Zarr group")
    arrays = {kind: read_array(folder / kind, listed) for kind, listed in described["arrays"].items()}
    for kind, rows in arrays.items():
        dim = spec["frame_dim" if kind == "frames" else "clip_dim"]
        require(rows.shape[1] == dim and rows.dtype.name == spec["dtype"], f"{kind} are not those of the spec")
    tables = {name: read_table(folder / name, listed) for name, listed in described["tables"].items()}
    check_rows(arrays, tables)
    known = {"description.json", "provenance.json", "zarr.json", *tables}
    known |= {f"{kind}/{name}" for kind, listed in described["arrays"].items() for name in listed["files"]}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    require(found == known, f"{folder} has other files: {found ^ known}")
    return Vectors(described, arrays, tables, read_sealed(folder / "provenance.json"))


# -- section 3.5: banks ---------------------------------------------------------------------------------------------

ACTIVATIONS = {"identity", "sigmoid", "one-minus-sigmoid", "softmax"}
BANK_COLUMNS = {
    "prompts": {"task": TEXT, "prompt": TEXT, "label": TEXT, "value": FLOAT, "template": INT},
    "heads": {"task": TEXT, "output": INT, "label": TEXT, "bias": FLOAT, "activation": TEXT, "unit": TEXT},
}
BANK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Bank:
    """A bank: its description, its vectors, its tables as rows."""

    described: dict[str, Any]
    vectors: np.ndarray
    tables: dict[str, list[dict[str, Any]]]
    provenance: dict[str, Any]


def bank_columns(kind: str, name: str, found: Sequence[str]) -> dict[str, pa.DataType]:
    """The columns of a table of a bank, those with names of their own as they are found."""
    if name == "section_phenotypes.parquet":
        return {"position": INT, "section": TEXT, "phenotype": TEXT}
    if name == "rows.parquet" and kind != "candidates":
        return BANK_COLUMNS[kind]
    first = "section" if name == "section_weights.parquet" else "candidate_id"
    return {first: TEXT, **dict.fromkeys(found[1:], FLOAT)}


def read_bank(root: Path, bank_id: str) -> Bank:
    folder = root / "prompts" / bank_id
    described = read_named(folder / "description.json", kind="bank")
    keys = {"format", "kind", "bank_kind", "name", "encoder", "spec", "arrays", "tables", "metadata"}
    kind, spec = described["bank_kind"], described["spec"]
    require(set(described) == keys and kind in {*BANK_COLUMNS, "candidates"}, "no bank of a known kind")
    require(bool(BANK_NAME.fullmatch(described["name"])) and isinstance(described["encoder"], str), "no name")
    require({"bank_digest", "weights_sha256", "dim"} <= set(spec), "a spec without its keys")
    if kind == "prompts":
        require({"tokenizer", "text_files", "logit_scale", "logit_bias"} <= set(spec), "prompts without a tokenizer")
    require(set(described["arrays"]) == {"vectors"} and set(described["metadata"]) == {"zarr.json"}, "other files")
    parse_json(read_listed(folder / "zarr.json", described["metadata"]["zarr.json"]))
    vectors = read_array(folder / "vectors", described["arrays"]["vectors"])
    require(vectors.shape[1] == spec["dim"] and vectors.dtype == np.dtype("<f4"), "vectors of another kind")
    sections = {"section_weights.parquet", "section_phenotypes.parquet"} if kind == "candidates" else set()
    require(set(described["tables"]) == {"rows.parquet", *sections}, "other tables")
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, listed in described["tables"].items():
        table = pq.read_table(pa.BufferReader(read_listed(folder / name, listed)))
        found = dict(zip(table.schema.names, table.schema.types, strict=True))
        require(found == bank_columns(kind, name, table.schema.names), f"{name} has other columns")
        tables[name] = table.to_pylist()
        require(len(tables[name]) == listed["rows"], f"{name} has another number of rows")
    rows = tables["rows.parquet"]
    require(len(rows) == len(vectors), "rows without vectors")
    needed = {"prompts": ("task", "prompt"), "heads": ("task", "output", "bias"), "candidates": ("candidate_id",)}
    require(all(row[key] is not None for row in rows for key in needed[kind]), "a row has an empty cell")
    require(kind != "heads" or all(row["activation"] in ACTIVATIONS for row in rows), "another activation")
    known = {"description.json", "provenance.json", "zarr.json", *tables}
    known |= {f"vectors/{name}" for name in described["arrays"]["vectors"]["files"]}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    require(there == known, f"{folder} has other files: {there ^ known}")
    return Bank(described, vectors, tables, read_sealed(folder / "provenance.json"))


# -- section 5: sampling and keys -----------------------------------------------------------------------------------


def spread(n: int, k: int) -> list[int]:
    if k >= n:
        return list(range(n))
    if k == 1:
        return [(n - 1) // 2]
    return [(2 * i * (n - 1) + k - 1) // (2 * (k - 1)) for i in range(k)]


def windows_of(
    sampling: Mapping[str, Any], *, n: int, fps: float | None, key_frames: Mapping[str, Sequence[int]]
) -> list[list[int]] | None:
    """The windows of section 5.3; None where the rule cannot be applied."""
    name, _, numbers = sampling["rule"].partition(":")
    offsets: list[int] = []
    if name == "keyframe":
        frames = sorted(set(key_frames.get(numbers, ())))
        return [frames] if frames and frames[0] >= 0 and frames[-1] < n else None
    if name == "all":
        windows, wanted = [list(range(n))], n
    elif name == "uniform":
        windows, wanted = [spread(n, int(numbers))], int(numbers)
    elif name == "linspace":
        wanted = int(numbers)
        windows = [[i * (n - 1) // max(wanted - 1, 1) for i in range(wanted)]]
    else:
        step, _, count = numbers.rpartition("x")
        wanted = int(count)
        if name == "rate":
            if fps is None or fps <= 0:
                return None
            offsets = [math.floor(i * fps / float(step) + 0.5) for i in range(wanted)]
        else:
            offsets = [i * int(step or 1) for i in range(wanted)]
        last = max(n - 1 - offsets[-1], 0)
        starts = [0] if sampling["n_windows"] == 1 else spread(last + 1, sampling["n_windows"])
        windows = [[start + offset for offset in offsets if start + offset < n] for start in starts]
    padding = "repeat-last" if n == 1 and sampling["padding"] != "none" else sampling["padding"]
    return [padded(window, wanted, padding) for window in windows]


def padded(window: list[int], wanted: int, padding: str) -> list[int]:
    short = wanted - len(window)
    if short <= 0 or padding == "none":
        return window
    if padding == "zero":
        return window + [-1] * short
    if padding == "repeat-last":
        return window + [window[-1]] * short
    backwards = window[1:-1][::-1] if padding == "palindrome" else []
    cycle = window + backwards
    return [cycle[i % len(cycle)] for i in range(wanted)]


def vector_key(spec: Mapping[str, Any], row: Mapping[str, Any], *, frames: Sequence[int] = ()) -> str:
    """The key of a manifest's row under a spec; ``frames`` are the clip's numbers in the frame index."""
    resolved = "unresolved"
    if spec["sampling"] is None:
        picked = np.array(frames, "<i8").tobytes()
        resolved = sha256(b"ingested\0" + row["clip_id"].encode("utf-8") + b"\0" + picked)
    elif row["n_frames"] is not None:
        roles: dict[str, list[int]] = {}
        for entry in row["key_frames"]:
            roles.setdefault(entry["role"], []).append(entry["frame"])
        windows = windows_of(spec["sampling"], n=row["n_frames"], fps=row["fps"], key_frames=roles)
        resolved = "refused" if windows is None else digest(windows)
    return digest([digest(spec), row["sha256"] or "unknown", resolved])


# -- section 6: manifests -------------------------------------------------------------------------------------------

KINDS = {"text": TEXT, "category": TEXT, "number": FLOAT, "integer": INT, "boolean": pa.bool_()}


@dataclass(frozen=True)
class Clips:
    """A manifest: its header, its rows, its digests."""

    header: dict[str, Any]
    rows: list[dict[str, Any]]
    media_digest: str
    annotations_digest: str
    id: str


def read_manifest_file(path: Path) -> Clips:
    parquet = pq.ParquetFile(path)
    table = parquet.read()
    text = parquet.metadata.metadata[b"embedstore.manifest"]
    header = parse_json(text)
    require(header["version"] <= 1, f"{path} is of a newer version")
    require(canonical(header) == text, f"the header of {path} is not canonical")
    fields = header["fields"]
    require(table.schema.names == [*(field["name"] for field in fields), "key_frames"], f"{path} has other columns")
    for field, found in zip(fields, table.schema.types, strict=False):
        require(found == KINDS[field["kind"]], f"{path} has other types")
    rows: list[dict[str, Any]] = table.to_pylist()
    ids = [row["clip_id"] for row in rows]
    require(ids == sorted(set(ids)), f"{path} is not in order")
    media, annotations = {"clip_id"}, {"path"}
    for field in fields:
        wanted = media if field["role"] in ("media", "sampling") else annotations
        wanted.add(field["name"])
    media.discard("path")
    key_frames = [[{"role": entry["role"], "frame": entry["frame"]} for entry in row["key_frames"]] for row in rows]

    def columns(names: set[str]) -> dict[str, list[Any]]:
        return {name: [row[name] for row in rows] for name in names}

    media_digest = digest({"columns": columns(media), "key_frames": key_frames})
    annotations_digest = digest({"columns": columns(annotations), "header": header})
    manifest_id = digest({"media": media_digest, "annotations": annotations_digest})
    return Clips(header, rows, media_digest, annotations_digest, manifest_id)


def read_manifest(root: Path, manifest_id: str) -> Clips:
    path = root / "manifests" / f"{manifest_id}.parquet"
    record = read_sealed(root / "manifests" / f"{manifest_id}.json")
    require(record["manifest"] == manifest_id, "the record is of another manifest")
    read_listed(path, record)
    manifest = read_manifest_file(path)
    require(manifest.id == manifest_id, f"{path} is not what its name says")
    return manifest


@dataclass(frozen=True)
class WholeStore:
    """Everything that the log and the tags lead to, read and checked."""

    log: list[dict[str, Any]]
    tags: dict[str, str]
    snapshots: dict[str, dict[str, Any]]
    sets: dict[str, Vectors]
    manifests: dict[str, Clips]
    banks: dict[str, Bank]


def check_listing(entry: Mapping[str, str], found: Vectors | Clips) -> None:
    """Compare what a snapshot says of a set or a manifest with what it is."""
    if isinstance(found, Vectors):
        spec = found.described["spec"]
        stated = {"dataset": found.described["dataset"], "encoder": spec["name"], "variant": spec["variant"]}
        stated |= {"fingerprint": found.described["fingerprint"], "set_id": entry["set_id"]}
    else:
        stated = {"name": found.header["dataset"]["name"], "manifest_id": found.id}
        stated |= {"media_digest": found.media_digest, "annotations_digest": found.annotations_digest}
    require(stated == entry, f"a snapshot lists {entry} as something else")


def must_be_there(root: Path, log: Sequence[Mapping[str, Any]], tags: Mapping[str, str]) -> set[str]:
    """Ids of the sets and manifests that the head and the tags need."""
    lost = read_forgotten(root)
    ids: set[str] = set()
    for name, snapshot_id in [*tags.items(), *(("", entry["snapshot"]) for entry in log[-1:])]:
        snapshot = read_snapshot(root, snapshot_id)
        listed = {entry["set_id"] for entry in snapshot["sets"]}
        listed |= {entry["manifest_id"] for entry in snapshot["manifests"]} | {*snapshot["prompts"]}
        ids |= listed - lost.get(name, set())
    return ids


def read_store(root: Path) -> WholeStore:
    """Read and check a whole store; what only an old snapshot leads to may have been removed."""
    check_store(root)
    log, tags = read_log(root), read_tags(root)
    ids = must_be_there(root, log, tags)
    store = WholeStore(log, tags, {}, {}, {}, {})
    for snapshot_id in sorted({*tags.values(), *(entry["snapshot"] for entry in log)}):
        snapshot = store.snapshots[snapshot_id] = read_snapshot(root, snapshot_id)
        for entry in snapshot["sets"]:
            name = entry["set_id"]
            if name not in store.sets and (name in ids or (root / "sets" / name).is_dir()):
                store.sets[name] = read_set(root, name)
            if name in store.sets:
                check_listing(entry, store.sets[name])
        for entry in snapshot["manifests"]:
            name = entry["manifest_id"]
            if name not in store.manifests and (name in ids or (root / "manifests" / f"{name}.parquet").exists()):
                store.manifests[name] = read_manifest(root, name)
            if name in store.manifests:
                check_listing(entry, store.manifests[name])
        for name in snapshot["prompts"]:
            if name not in store.banks and (name in ids or (root / "prompts" / name).is_dir()):
                store.banks[name] = read_bank(root, name)
    return store
