"""`write_phantom`: the data set as a folder of clips with its tables."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.disk import storage_errors
from embedstore.errors import ContentError, UnknownNameError
from embedstore.identity import canonical_json
from embedstore.json_files import read_json
from embedstore.phantom.clip import Clip, plan_clip
from embedstore.phantom.formats import ENCODINGS, MODEL, require_packages
from embedstore.phantom.heart import draw_patient

__all__ = ["CLIP_COLUMNS", "PhantomSummary", "write_phantom"]

REVISION = 1
PARAMETERS_FILE = "phantom.json"
CLIPS_FILE = "clips.csv"
KEY_FRAMES_FILE = "key_frames.csv"
MEDIA_FOLDER = "clips"
MAX_PATIENTS = 10_000
_MAX_THREADS = 8

CLIP_COLUMNS = (
    "clip_id",
    "patient_id",
    "study_id",
    "path",
    "view",
    "split",
    "fps",
    "n_frames",
    "height",
    "width",
    "spacing_x_mm",
    "spacing_y_mm",
    "heart_rate_bpm",
    "manufacturer",
    "model",
    "site",
    "sex",
    "age_years",
    "lvef_pct",
    "edv_ml",
    "esv_ml",
    "lvidd_cm",
    "ivsd_cm",
    "lvpwd_cm",
    "rwma",
    "rwma_wall",
    "rwma_in_view",
)

_README = """SYNTHETIC ECHOCARDIOGRAMS: no patient, no heart, no scanner

Drawn by `embedstore phantom` with --patients {n_patients} --seed {seed} (revision {revision}). The same command
writes the same bytes with the same versions of its packages. For trying out software only: nothing measured here
says anything about real echocardiograms.

clips.csv        a row a clip: ids, path, timing, spacing, split (by patient) and exact labels
key_frames.csv   frames of end-diastole (ed), end-systole (es) and, in PLAX, of the linear measurements
clips/           the clips: AVI (MJPEG), with one DICOM and one NIfTI in every 50 patients

Volumes are integrals over the cavity that is drawn; lvef_pct = 100 (edv_ml - esv_ml) / edv_ml. lvidd_cm, ivsd_cm
and lvpwd_cm lie in the PLAX plane at end-diastole. rwma is 1 where one wall (rwma_wall) hardly moves, rwma_in_view
is 1 where that wall lies in the clip's plane. Size and wall thickness in the middle of a beat, gain, depth, noise,
heart rate, sex, age and site are independent of the ejection fraction, unlike in life.
"""


@dataclass(frozen=True, kw_only=True)
class PhantomSummary:
    """What was written.

    Attributes
    ----------
    out : Path
        The folder.
    n_patients, n_clips, n_frames, n_bytes : int
        Totals; bytes of the clips.
    clips_by_view, clips_by_suffix, clips_by_split : dict of str to int
    """

    out: Path
    n_patients: int
    n_clips: int
    n_frames: int
    n_bytes: int
    clips_by_view: dict[str, int]
    clips_by_suffix: dict[str, int]
    clips_by_split: dict[str, int]


def _suffix(clip: Clip) -> str:
    """AVI, but for one DICOM and one NIfTI in every fifty patients, so that every reader is used."""
    if clip.patient.number % 50 == 0 and clip.view == clip.patient.views[1]:
        return ".nii.gz"
    if clip.patient.number % 50 == 0 and clip.view == clip.patient.views[-1]:
        return ".dcm"
    return ".avi"


def _path(clip: Clip) -> str:
    return f"{MEDIA_FOLDER}/SYNTHETIC_{clip.clip_id}{_suffix(clip)}"


def _row(clip: Clip, split: str) -> dict[str, Any]:
    patient, ventricle = clip.patient, clip.patient.ventricle
    return {
        "clip_id": clip.clip_id,
        "patient_id": patient.patient_id,
        "study_id": patient.study_id,
        "path": _path(clip),
        "view": clip.view,
        "split": split,
        "fps": clip.fps,
        "n_frames": clip.n_frames,
        "height": clip.settings.height,
        "width": clip.settings.width,
        "spacing_x_mm": f"{clip.settings.spacing_mm:.6f}",
        "spacing_y_mm": f"{clip.settings.spacing_mm:.6f}",
        "heart_rate_bpm": f"{patient.heart_rate_bpm:.1f}",
        "manufacturer": clip.manufacturer,
        "model": MODEL,
        "site": patient.site,
        "sex": patient.sex,
        "age_years": patient.age_years,
        "lvef_pct": f"{ventricle.lvef_pct:.4f}",
        "edv_ml": f"{ventricle.edv_ml:.4f}",
        "esv_ml": f"{ventricle.esv_ml:.4f}",
        "lvidd_cm": f"{ventricle.lvidd_cm:.4f}",
        "ivsd_cm": f"{ventricle.ivsd_cm:.4f}",
        "lvpwd_cm": f"{ventricle.lvpwd_cm:.4f}",
        "rwma": int(ventricle.hypokinetic_wall is not None),
        "rwma_wall": ventricle.hypokinetic_wall or "",
        "rwma_in_view": int(clip.shows_defect),
    }


def _csv(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def _write(path: Path, payload: bytes) -> None:
    with storage_errors(path, "write"):
        path.write_bytes(payload)


def _open_folder(out: Path, parameters: dict[str, Any]) -> None:
    """Make the folder; take one that is there only if it is empty or a phantom of the same parameters."""
    with storage_errors(out, "write"):
        out.mkdir(parents=True, exist_ok=True)
        is_empty = next(out.iterdir(), None) is None
    marker = out / PARAMETERS_FILE
    found = read_json(marker) if marker.is_file() else None
    if not is_empty and found != parameters:
        holds = "other files"
        if isinstance(found, dict) and found.keys() == parameters.keys():
            holds = "a phantom of {n_patients} patients, seed {seed}, revision {revision}".format_map(found)
        raise ContentError(f"{out} already holds {holds}; give an empty or new folder by --out")
    _write(marker, canonical_json(parameters) + b"\n")
    with storage_errors(out, "write"):
        (out / MEDIA_FOLDER).mkdir(exist_ok=True)


def _write_clip(out: Path, clip: Clip) -> int:
    payload = ENCODINGS[_suffix(clip)](clip, clip.draw())
    _write(out / _path(clip), payload)
    return len(payload)


def _draw_all(out: Path, clips: list[Clip]) -> Iterator[int]:
    """Draw and write clips on threads: each clip has its own seed, so their number and order do not matter."""
    with ThreadPoolExecutor(max_workers=min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        try:
            yield from pool.map(lambda clip: _write_clip(out, clip), clips)
        finally:
            pool.shutdown(cancel_futures=True)


def write_phantom(
    out: str | Path, *, n_patients: int = 150, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> PhantomSummary:
    """Write a data set of synthetic echocardiograms.

    Parameters
    ----------
    out : str or Path
        A new or empty folder, or one that holds a phantom of the same parameters, which is written again.
    n_patients : int
        From 1 to 10,000, about three clips each.
    seed : int
        Patient k is the same whatever ``n_patients`` is; the split is not.
    progress : callable
        Told (clips done, clips in all).

    Raises
    ------
    UnknownNameError
        ``n_patients`` is out of range.
    ContentError
        The folder holds something else.
    StorageError
        The folder cannot be written.
    MissingExtraError
        A package that writes clips is not installed.
    """
    if not 1 <= n_patients <= MAX_PATIENTS:
        raise UnknownNameError(f"a phantom has 1 to {MAX_PATIENTS} patients, got {n_patients}")
    require_packages()
    from embedstore.manifest.split import draw_patient_split

    parameters = {"n_patients": n_patients, "seed": seed, "revision": REVISION}
    out = Path(out)
    _open_folder(out, {"generator": MODEL, "synthetic": True, **parameters})
    patients = [draw_patient(number, seed=seed) for number in range(n_patients)]
    splits = draw_patient_split([patient.patient_id for patient in patients], seed=seed)
    split_of = {patient.patient_id: split for patient, split in zip(patients, splits, strict=True)}
    clips = [plan_clip(patient, view, seed=seed) for patient in patients for view in patient.views]
    n_bytes = 0
    for done, size in enumerate(_draw_all(out, clips), start=1):
        n_bytes += size
        if progress is not None:
            progress(done, len(clips))
    rows = [_row(clip, split_of[clip.patient.patient_id]) for clip in clips]
    key_frames = [
        {"clip_id": clip.clip_id, "role": role, "frame": frame}
        for clip in clips
        for role, frame in clip.key_frames().items()
    ]
    _write(out / KEY_FRAMES_FILE, _csv(("clip_id", "role", "frame"), key_frames))
    _write(out / "README.txt", _README.format(**parameters).encode())
    # The table comes last: a folder without it is not finished.
    _write(out / CLIPS_FILE, _csv(CLIP_COLUMNS, rows))
    return PhantomSummary(
        out=out,
        n_patients=n_patients,
        n_clips=len(clips),
        n_frames=sum(clip.n_frames for clip in clips),
        n_bytes=n_bytes,
        clips_by_view=dict(sorted(Counter(clip.view for clip in clips).items())),
        clips_by_suffix=dict(sorted(Counter(_suffix(clip) for clip in clips).items())),
        clips_by_split=dict(sorted(Counter(row["split"] for row in rows).items())),
    )
