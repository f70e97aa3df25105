"""A hospital's store with names wherever a name can stand, and what is made of it, for tests of sharing."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_sets import add_set, manifest_of, run_program, spec_of

from embedstore.identity import canonical_json, sha256_hex
from embedstore.manifest import DatasetFacts, Manifest, ManifestField
from embedstore.snapshot.describe import DOCUMENT_FILE, SIDE_FILES, SentSnapshot
from embedstore.snapshot.export import ExportOutcome, export_snapshot
from embedstore.snapshot.plan import ExportRequest
from embedstore.store import Store

N_CLIPS = 24
SPLITS = ("train", "val", "test")
LABELS = (
    ManifestField(name="lvef_pct", role="label", kind="number", unit="%"),
    ManifestField(name="sex", role="subgroup", kind="category"),
    ManifestField(name="age_years", role="subgroup", kind="number"),
    ManifestField(name="seen_on", role="extra", kind="text"),
    ManifestField(name="remark", role="extra", kind="text"),
)


def clip_id_of(number: int) -> str:
    """A record number as a clip id, as hospitals do."""
    return f"MRN{4_711_000 + 13 * number}-echo"


def hospital_rows(n_clips: int = N_CLIPS) -> list[dict[str, Any]]:
    """Rows of two clips a patient; a name, a record number, a date or a path wherever one can stand."""
    return [
        {
            "clip_id": clip_id_of(number),
            "patient_id": f"MUELLER^ANNA^{number // 2:03d}",
            "study_id": f"1.2.840.{20190304 + number // 2}",
            "path": f"2019-03-04/MUELLER_ANNA_{number // 2:03d}/{clip_id_of(number)}.dcm",
            "sha256": sha256_hex(f"file {number}".encode()),
            "n_frames": 30 + number,
            "fps": 30.0,
            "split": SPLITS[number // 2 % 3],
            "site": "St. Hedwig",
            "lvef_pct": 40.0 + number,
            "sex": "F" if number // 2 % 2 else "M",
            "age_years": 60.0 if number // 2 % 2 else 93.0,
            "seen_on": f"2019-03-{1 + number // 2:02d}",
            "remark": f"seen with Dr. Schmidt about {clip_id_of(number)}",
        }
        for number in range(n_clips)
    ]


def hospital_manifest(n_clips: int = N_CLIPS, **facts: Any) -> Manifest:
    """The hospital's manifest, private unless it is said otherwise."""
    given = {"name": "mine", "title": "Clips of one hospital", "redistribution": "yes", "licence": "local"}
    described: dict[str, Any] = {**given, **facts}
    return Manifest.from_rows(
        hospital_rows(n_clips), dataset=DatasetFacts(**described), fields=LABELS, patient_ids="provided"
    )


def hospital_store(path: Path, *, n_clips: int = N_CLIPS, **facts: Any) -> Store:
    """A store of the hospital: a manifest, and sets of two encoders with failed clips."""
    store = Store.create(path)
    store.add_manifest(hospital_manifest(n_clips, **facts))
    clips = [clip_id_of(number) for number in range(n_clips)]
    name = facts.get("name", "mine")
    add_set(store, dict.fromkeys(clips[:-2], 1), failed=clips[-2:], dataset=name)
    add_set(store, dict.fromkeys(clips, 1), spec=spec_of("other", dtype="float32"), kinds=("clips",), dataset=name)
    return store


def export_of(store: Store, target: Path, **request: Any) -> ExportOutcome:
    """Export with the default rules."""
    return export_snapshot(store, ExportRequest(target=target, **{"recipient": "lab-b", **request}))


def two_encoders(folder: Path) -> Path:
    """Export a small data set with two encoders below a folder; return where."""
    clips = {f"clip{number}": 1 for number in range(12)}
    store = Store.create(folder / "store")
    store.add_manifest(manifest_of({clip_id: clip_id for clip_id in clips}))
    for name in ("small", "other"):
        add_set(store, clips, spec=spec_of(name))
    export_of(store, folder / "sent", permission_ref="letter of 2 May")
    return folder / "sent"


def secrets_of(manifest: Manifest) -> set[str]:
    """Everything that a default export of the hospital's clips must not hold."""
    words: set[str] = set()
    for row in manifest.table.to_pylist():
        words |= {row["clip_id"], row["patient_id"], row["study_id"], row["path"], row["sha256"], row["remark"]}
        words |= {row["site"], row["seen_on"], row["clip_id"].removesuffix("-echo")}
        words |= set(row["path"].split("/"))
    return words


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


def run_command(*arguments: str | Path) -> Ran:
    """Run the program in this process and keep what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run_program(*arguments)
    return Ran(code, out.getvalue(), err.getvalue())


# -- attacks ------------------------------------------------------------------------------------------------


def rewrite_document(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the document of a snapshot as an attacker would: canonical again, nothing else is wrong with it."""
    path = folder / DOCUMENT_FILE
    described = json.loads(path.read_bytes())
    change(described)
    described["files"].sort(key=lambda file: str(file.get("path")))
    path.write_bytes(canonical_json(described))


def reseal(folder: Path) -> None:
    """Put the sizes and digests of all files as they are now into the document, and drop what is derived from it.

    Descriptions get new digests of their tables and arrays too, and sets new ids: everything an attacker can do.
    """
    described = json.loads((folder / DOCUMENT_FILE).read_bytes())
    for entry in described["sets"]:
        _reseal_set(folder / entry["folder"], entry)
    for file in described["files"]:
        path = folder / file["path"]
        if path.is_file():
            payload = path.read_bytes()
            file["size"], file["sha256"] = len(payload), sha256_hex(payload)
    (folder / DOCUMENT_FILE).write_bytes(canonical_json(described))
    for name in SIDE_FILES:
        (folder / name).unlink(missing_ok=True)


def _reseal_set(folder: Path, entry: dict[str, Any]) -> None:
    path = folder / "description.json"
    try:
        described = json.loads(path.read_bytes())
        for kind, array in described["arrays"].items():
            _records(folder / kind, array["files"])
        _records(folder, described["tables"])
        _records(folder, described["metadata"])
        path.write_bytes(canonical_json(described))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        pass  # what cannot be described honestly is left as the attack made it
    if path.is_file():
        entry["set_id"] = sha256_hex(path.read_bytes())


def _records(folder: Path, files: Mapping[str, dict[str, Any]]) -> None:
    for name, record in files.items():
        if (folder / name).is_file():
            payload = (folder / name).read_bytes()
            record["size"], record["sha256"] = len(payload), sha256_hex(payload)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(canonical_json(document))


def copied(source: Path, target: Path) -> Path:
    """Copy a folder to attack it."""
    shutil.copytree(source, target, symlinks=True)
    return target


def snapshot_at(folder: Path) -> SentSnapshot:
    """Read the document of a folder."""
    return SentSnapshot.read(folder)
