"""The files beside a sent snapshot that are made from its document: the card for people, and ``croissant.json``.

Both follow from the document alone, so that whoever passes a snapshot on makes the same bytes again.
"""

from __future__ import annotations

import json
from typing import Any

from embedstore.files import FileRecord
from embedstore.identity import sha256_hex
from embedstore.snapshot.describe import CARD_FILE, CROISSANT_FILE, SUMS_FILE, SentSnapshot
from embedstore.snapshot.parts import one_line

__all__ = ["card_bytes", "croissant_bytes", "side_files"]

_BANNER = (
    "> **Patient-level data.** Each vector was computed from one patient's images. Without names it still is data of "
    "that\n> patient: age, sex and disease can be predicted from vectors, and people have been found again by them. "
    "Keep it, share\n> it and delete it as you would the images. What is known about this stands in embedstore's "
    "`docs/privacy.md`."
)


def side_files(snapshot: SentSnapshot) -> dict[str, bytes]:
    """Return the derived files by name: croissant, card, and the list for ``sha256sum -c``."""
    sides = {CROISSANT_FILE: croissant_bytes(snapshot), CARD_FILE: card_bytes(snapshot)}
    records = {name: FileRecord(len(payload), sha256_hex(payload)) for name, payload in sides.items()}
    return {**sides, SUMS_FILE: snapshot.sums(records)}


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"


def _cell(text: str) -> str:
    """Return text for one cell of a table of Markdown: one line, no markup of its own."""
    flat = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\|`*_[]#!" else letter for letter in flat)


def card_bytes(snapshot: SentSnapshot) -> bytes:
    """Return ``README.md``: what, encoders, licences, how made, coverage, contact."""
    titles = ", ".join(dataset.title or dataset.name for dataset in snapshot.datasets)
    lines = [f"# Embeddings of {_cell(titles)}", ""]
    lines += [_BANNER, ""]
    if snapshot.internal:
        lines += ["**Internal copy**: ids, labels and paths are in it. It must not leave the lab.", ""]
    if any(dataset.synthetic for dataset in snapshot.datasets):
        lines += ["Contains synthetic data that show no patient.", ""]
    lines += [f"Snapshot `{snapshot.id}`, {_size(snapshot.n_bytes)} in {len(snapshot.files)} files.", ""]
    if snapshot.note:
        lines += [_cell(snapshot.note), ""]
    lines += ["## What it holds", "", "| data set | clips | patients | ids | licence | may be passed on |"]
    lines += ["|---|---|---|---|---|---|"]
    for dataset in snapshot.datasets:
        patients = "unknown" if dataset.n_patients is None else str(dataset.n_patients)
        cells = (dataset.name, str(dataset.n_clips), patients, dataset.ids, dataset.licence, dataset.redistribution)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += ["", "| encoder | data set | clips | frames | failed | dimension | dtype | licence of the encoder |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for entry in snapshot.sets:
        licence = entry.licence + (f" (forbids: {entry.licence_forbids})" if entry.licence_forbids else "")
        counts = (entry.n_clips, entry.n_frames, entry.n_failed, entry.clip_dim)
        row = (entry.title, entry.dataset, *map(str, counts), entry.dtype, licence)
        lines.append("| " + " | ".join(_cell(cell) for cell in row) + " |")
    lines += ["", "## Licences and permissions", ""]
    for dataset in snapshot.datasets:
        lines.append(f"- {_cell(dataset.name)}: {_cell(dataset.licence)}")
        lines += [f"  - permission: {_cell(reference)}" for reference in dataset.permission_refs]
        lines += [f"  - cite: {_cell(dataset.citation)}"] if dataset.citation else []
    lines += ["", "## How it was made", ""]
    for dataset in snapshot.datasets:
        columns = _cell(", ".join(dataset.columns))
        lines.append(f"- {_cell(dataset.name)}: ids {dataset.ids}, digests {dataset.digests}, columns {columns}")
    lines += [
        "- Each set says in its `description.json` which weights, preprocessing and frames made it.",
        "",
        "## Reading it",
        "",
        "```",
        "sha256sum -c manifest-sha256.txt              # needs no software of ours",
        "embedstore snapshot import .                  # checks everything, then evaltools works on it",
        "```",
        "",
        "Arrays are plain Zarr v3, tables are Parquet. `manifest.json` is authoritative.",
        "",
        "## Contact",
        "",
        _cell(snapshot.contact) or "None was given.",
        "",
    ]
    return "\n".join(lines).encode()


# -- croissant ----------------------------------------------------------------------------------------------

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_INDEX_FIELDS = (("row", "sc:Integer"), ("clip_id", "sc:Text"), ("n_frames", "sc:Integer"), ("fps", "sc:Float"))
_PARQUET = "application/x-parquet"  # as Croissant's own library calls it, which reads no other name
_FORMATS = {"table": _PARQUET, "manifest": _PARQUET}


def croissant_bytes(snapshot: SentSnapshot) -> bytes:
    """Return ``croissant.json``: every file with its digest, the index tables as record sets.

    Arrays are files without a record set: Croissant 1.1 has no source for Zarr.
    """
    distribution = []
    for file in snapshot.files:
        encoding = "application/octet-stream" if file.role == "array" else "application/json"
        distribution.append(
            {
                "@type": "cr:FileObject",
                "@id": file.path,
                "name": file.path,
                "contentUrl": file.path,
                "contentSize": f"{file.size} B",
                "encodingFormat": _FORMATS.get(file.role, encoding),
                "sha256": file.sha256,
            }
        )
    records = []
    for entry in snapshot.sets:
        table = f"{entry.folder}/index.parquet"
        name = f"index of {entry.title} on {entry.dataset}"
        fields = [
            {
                "@type": "cr:Field",
                "@id": f"{entry.folder}/{column}",
                "name": f"{entry.folder}/{column}",
                "dataType": kind,
                "source": {"fileObject": {"@id": table}, "extract": {"column": column}},
            }
            for column, kind in _INDEX_FIELDS
        ]
        records.append({"@type": "cr:RecordSet", "@id": entry.folder, "name": name, "field": fields})
    titles = ", ".join(dataset.title or dataset.name for dataset in snapshot.datasets)
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": f"embeddings-{snapshot.id[:12]}",
        "description": f"Embeddings of {titles}. Patient-level data.",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "license": sorted({dataset.licence for dataset in snapshot.datasets if dataset.licence}),
        "identifier": f"sha256:{snapshot.id}",
        "version": f"1.0.{snapshot.version}",
        "isLiveDataset": False,
        "distribution": distribution,
        "recordSet": records,
        "rai:personalSensitiveInformation": "Vectors computed from medical images of single patients.",
    }
    citations = sorted({dataset.citation for dataset in snapshot.datasets if dataset.citation})
    if citations:
        document["citeAs"] = "; ".join(citations)
    if snapshot.parents:
        document["prov:wasDerivedFrom"] = [{"@id": f"sha256:{parent}"} for parent in snapshot.parents]
    return json.dumps(document, indent=1, ensure_ascii=True, sort_keys=False, allow_nan=False).encode() + b"\n"
