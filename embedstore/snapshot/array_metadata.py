"""What a stranger's snapshot says of an array: its part of a description and its ``zarr.json``, on raw JSON."""

from __future__ import annotations

from typing import Any

from embedstore.errors import EmbedstoreError, FormatError, HostileInputError
from embedstore.json_files import parse_json
from embedstore.shards import ArrayDescription

__all__ = ["MAX_ZARR_BYTES", "array_of", "check_zarr_json"]

_CODECS = {"bytes", "crc32c", "sharding_indexed"}
_MAX_CHUNK_BYTES = 256 << 20
_MAX_DEPTH = 32
MAX_ZARR_BYTES = 1 << 20


def check_zarr_json(payload: bytes, described: ArrayDescription, *, source: str) -> None:
    """Hold an array's ``zarr.json`` to the one document that embedstore writes for it, on raw JSON.

    Raises
    ------
    HostileInputError
        It is anything else; the message says what is wrong first.
    """
    if len(payload) > MAX_ZARR_BYTES:
        raise HostileInputError(f"{source} is larger than {MAX_ZARR_BYTES} bytes")
    document = parse_json(payload, source=source)
    if not isinstance(document, dict) or document.get("zarr_format") != 3:
        raise HostileInputError(f"{source} is no Zarr v3 metadata; older formats can run code and are not read")
    if document.get("data_type") not in ("float16", "float32"):
        raise HostileInputError(f"{source} has the data type {str(document.get('data_type'))[:40]!r}")
    strange = sorted(_codec_names(document.get("codecs"), 0) - _CODECS)
    if strange or document.get("storage_transformers"):
        raise HostileInputError(f"{source} asks for the codec {(strange or ['a storage transformer'])[0][:40]!r}")
    if payload != described.zarr_json() and document != parse_json(described.zarr_json(), source=source):
        raise HostileInputError(f"{source} describes another array than the set's description")


def _codec_names(codecs: Any, depth: int) -> set[str]:
    found: set[str] = set()
    if depth > _MAX_DEPTH:
        return {"nested codecs"}
    for codec in codecs if isinstance(codecs, list) else []:
        if not isinstance(codec, dict):
            found.add(str(codec))
            continue
        found.add(str(codec.get("name")))
        configuration = codec.get("configuration")
        if isinstance(configuration, dict):
            for key in ("codecs", "index_codecs"):
                found |= _codec_names(configuration.get(key), depth + 1)
    return found


def array_of(fields: Any, *, source: str) -> ArrayDescription:
    """Return the array that a stranger's description speaks of, bounded and with the files that its shape asks for.

    Raises
    ------
    FormatError, HostileInputError
        It describes no array, one that is too large, or other files.
    """
    try:
        described = ArrayDescription.from_dict(fields)
        names = {"zarr.json", *(f"c/{shard}/0" for shard in range(min(described.n_shards, len(fields["files"]))))}
        sizes = {f"c/{shard}/0": sum(described.shard_bytes(shard)) for shard in range(len(names) - 1)}
    except EmbedstoreError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise FormatError(f"{source} describes an array that is none: {error}") from error
    if described.chunk_rows * described.row_bytes > _MAX_CHUNK_BYTES:
        raise HostileInputError(f"{source} has chunks of more than {_MAX_CHUNK_BYTES} bytes")
    if described.shard_rows * described.row_bytes > 2 * _MAX_CHUNK_BYTES:
        raise HostileInputError(f"{source} has shards of more than {2 * _MAX_CHUNK_BYTES} bytes")
    if set(described.files) != names or len(names) != described.n_shards + 1:
        raise HostileInputError(f"{source} lists other files of an array than its shape asks for")
    if any(described.files[name].size != size for name, size in sizes.items()):
        raise HostileInputError(f"{source} lists a shard in another size than its shape asks for")
    return described
