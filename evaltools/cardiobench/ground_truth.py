"""Ground-truth CSVs in CardioBench's columns and names, from a manifest: a row a clip, in the order of its own files.

Splits are in lower case, as its scripts compare them, and columns that a manifest does not hold stay empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from embedstore import Manifest

__all__ = ["GROUND_TRUTH", "Table", "ground_truth_files"]

Row = Mapping[str, Any]
Table = tuple[tuple[str, ...], list[tuple[Any, ...]]]
Make = Callable[[Sequence[Row]], dict[str, Table]]

_MEASURES = {"IVSd": "ivsd", "LVIDd": "lvidd", "LVPWd": "lvpwd"}
_CAMUS_VIEWS = {"A2C": "2CH", "A4C": "4CH"}


def _flag(value: Any) -> int | None:
    return None if value is None else int(value)


def _table(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], Any]]) -> Table:
    return tuple(columns), [tuple(cell(row) for cell in columns.values()) for row in rows]


def _of(column: str) -> Callable[[Row], Any]:
    return lambda row: row.get(column)


def _always(value: str) -> Callable[[Row], Any]:
    return lambda row: value


def _raw(folder: str) -> Callable[[Row], str]:
    return lambda row: f"data/raw/{folder}/{row.get('path') or ''}"


def _dynamic(rows: Sequence[Row]) -> dict[str, Table]:
    columns = {
        "FileName": _of("clip_id"),
        "EF": _of("lvef_pct"),
        "ESV": _of("esv_ml"),
        "EDV": _of("edv_ml"),
        "FrameHeight": _of("height"),
        "FrameWidth": _of("width"),
        "FPS": _of("fps"),
        "NumberOfFrames": _of("n_frames"),
        "Split": _of("split"),
    }
    return {"EchoNet-Dynamic/FileList.csv": _table(rows, columns)}


def _fold(row: Row) -> int:
    """Return the fold of a clip; one that stands for its split where the split is not the fold's own."""
    of_split = {"test": 0, "val": 1}
    fold = row.get("fold")
    if fold is not None and {0: "test", 1: "val"}.get(fold, "train") == row["split"]:
        return int(fold)
    return of_split.get(row["split"], 2)


def _pediatric(rows: Sequence[Row]) -> dict[str, Table]:
    columns = {
        "FileName": _of("file_name"),
        "EF": _of("lvef_pct"),
        "Sex": _of("sex"),
        "Age": _of("age_years"),
        "Weight": _of("weight_kg"),
        "Height": _of("height_cm"),
        "Split": _fold,
        "view": _of("view"),
    }
    return {"echonet_pediatric_filelist.csv": _table(rows, columns)}


def _lvh(rows: Sequence[Row]) -> dict[str, Table]:
    files = {}
    for name, target in _MEASURES.items():
        measured = sorted(
            (row for row in rows if row.get(f"{target}_cm_first") is not None), key=lambda row: row[f"{target}_row"]
        )
        ends = {end: _of(f"{target}_{end.lower()}_px") for end in ("X1", "X2", "Y1", "Y2")}
        columns: dict[str, Callable[[Row], Any]] = {
            "Calc": _always(name),
            "CalcValue": _of(f"{target}_cm_first"),
            "HashedFileName": _of("clip_id"),
            "video_path": _raw("EchoNet-LVH"),
            "Frame": _of(f"frame_{target}"),
            **ends,
            "Frames": _of("n_frames"),
            "FPS": _of("fps"),
            "Width": _of("width"),
            "Height": _of("height"),
            "split": _of("split"),
        }
        files[f"echonet_lvh/{name}_split.csv"] = _table(measured, columns)
    return files


def _camus(rows: Sequence[Row]) -> dict[str, Table]:
    columns = {
        "patient_id": _of("patient_id"),
        "view": lambda row: _CAMUS_VIEWS.get(row["view"]),
        "path": _raw("CAMUS"),
        "split": _of("split"),
        "Sex": _of("sex"),
        "Age": _of("age_years"),
        "EF": _of("lvef_pct"),
        "FrameRate": _of("fps"),
        "ImageQuality": _of("image_quality"),
        "unique_id": _of("clip_id"),
    }
    return {"camus_split.csv": _table(rows, columns)}


def _cardiacnet(disease: str) -> Make:
    def make(rows: Sequence[Row]) -> dict[str, Table]:
        columns = {
            "path": _raw("CardiacNet"),
            disease.upper(): lambda row: _flag(row.get(disease)),
            "patient_id": _of("benchmark_patient_id"),
            "split": _of("split"),
            "image_name": lambda row: PurePosixPath(row.get("path") or "").name,
            "unique_id": _of("unique_id"),
            "parent": lambda row: PurePosixPath(row.get("path") or "").parent.name.removesuffix(".nii"),
            "stem": lambda row: PurePosixPath(row.get("path") or "").name.split(".")[0].removesuffix("_image"),
        }
        return {f"cardiacnet/cardiacnet_{disease}_split.csv": _table(rows, columns)}

    return make


def _hmc_qu(rows: Sequence[Row]) -> dict[str, Table]:
    columns = {
        "path": _raw("HMC_QU"),
        "view": _of("view"),
        "patient_id": _of("patient_id"),
        "STEMI": lambda row: _flag(row.get("stemi")),
        "split": _of("split"),
        "unique_id": _of("unique_id"),
    }
    return {"hmcqu_split.csv": _table(rows, columns)}


def _segrwma(rows: Sequence[Row]) -> dict[str, Table]:
    columns = {
        "patient_id": _of("patient_id"),
        "path": _raw("Regional_wall_motion_abnormality"),
        "modality": _of("contrast_mode"),
        "view": _of("view"),
        "n_frames": _of("n_frames"),
        "first_annotated_frame_index": _of("frame_annotated"),
        "split": _of("split"),
        "abnormal": lambda row: _flag(row.get("rwma")),
        "patient_view_id": _of("patient_view_id"),
    }
    return {"segrwma_split.csv": _table(rows, columns)}


def _tmed2(rows: Sequence[Row]) -> dict[str, Table]:
    columns = {
        "query_key": _of("query_key"),
        "view": _of("view_label"),
        "diagnosis_label": lambda row: _flag(row.get("as")),
        "split": _of("split"),
        "file_path": _raw("TMED_2"),
    }
    first: dict[str, Row] = {}
    for row in rows:
        if row.get("study_id") is not None:
            first.setdefault(row["study_id"], row)
    studies = {
        "study_id": _of("study_id"),
        "diagnosis_label": lambda row: _flag(row.get("as")),
        "split": _of("split"),
    }
    return {
        "tmed2/per_image.csv": _table(rows, columns),
        "tmed2/per_study.csv": _table([first[study] for study in sorted(first)], studies),
    }


GROUND_TRUTH: Mapping[str, Make] = {
    "echonet-dynamic": _dynamic,
    "echonet-pediatric": _pediatric,
    "echonet-lvh": _lvh,
    "camus": _camus,
    "cardiacnet-asd": _cardiacnet("asd"),
    "cardiacnet-pah": _cardiacnet("pah"),
    "hmc-qu": _hmc_qu,
    "segrwma": _segrwma,
    "tmed2": _tmed2,
}


def ground_truth_files(manifest: Manifest) -> dict[str, Table]:
    """Return the ground-truth files of a data set: path to header and rows; none where CardioBench has none.

    Rows without a split are in no file.
    """
    make = GROUND_TRUTH.get(manifest.name)
    if make is None:
        return {}
    frames = {(clip, role): frame for clip, role, frame in _key_frames(manifest)}
    rows = []
    for row in manifest.table.to_pylist():
        if row.get("split") is None:
            continue
        for role in ("annotated", *_MEASURES.values()):
            row[f"frame_{role}"] = frames.get((row["clip_id"], role))
        rows.append(row)
    rows.sort(key=lambda row: (row.get("source_row") is None, row.get("source_row") or 0, row["clip_id"]))
    return make(rows)


def _key_frames(manifest: Manifest) -> list[tuple[str, str, int]]:
    """Return the first key frame of each clip and role, last first, so that the first one stays."""
    rows = sorted(manifest.key_frames.to_pylist(), key=lambda row: -row["frame"])
    return [(row["clip_id"], row["role"], row["frame"]) for row in rows]
