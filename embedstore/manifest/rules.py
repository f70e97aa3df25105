"""The rules of a manifest, each reported with the rows that break it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath

from embedstore.layout import is_digest
from embedstore.manifest.cells import composed
from embedstore.manifest.fields import KEY_FRAME_ROLES, KEY_FRAMES_COLUMN
from embedstore.manifest.split import SPLITS
from embedstore.manifest.table import Manifest, Problem

__all__ = ["GUESSED_PATIENTS", "find_problems"]

_MAX_ID_CHARACTERS = 512
# How `patient_ids` begins where a recipe reads patients out of file names. A guess that crosses an official split
# is noted, not refused: nobody can mend that split, and evaluation refuses or marks what comes of it.
GUESSED_PATIENTS = "derived(file name"


def _identity_problems(manifest: Manifest) -> list[Problem]:
    problems = []
    ids = manifest.column("clip_id")
    empty = [f"row {row}" for row, clip_id in enumerate(ids) if not clip_id]
    if empty:
        problems.append(Problem("clip-id-empty", "rows without a clip id", tuple(empty)))
    # Ids are compared as digests see them: two spellings of one accented letter are one id there.
    seen = Counter(composed(clip_id) for clip_id in ids if clip_id)
    doubled = tuple(clip_id for clip_id, count in seen.items() if count > 1)
    if doubled:
        problems.append(Problem("clip-id-duplicate", "clip ids that stand more than once", doubled))
    for name in ("clip_id", "patient_id", "study_id"):
        odd = tuple(
            repr(text)
            for text in manifest.column(name)
            if text is not None and (len(text) > _MAX_ID_CHARACTERS or not text.isprintable())
        )
        if odd:
            problems.append(Problem("id-characters", f"{name} with control characters or too long", odd))
    return problems


def _split_problems(manifest: Manifest) -> list[Problem]:
    problems = []
    splits = manifest.column("split")
    unknown = tuple(
        f"{clip_id} ({split})"
        for clip_id, split in zip(manifest.clip_ids, splits, strict=True)
        if split is not None and split not in SPLITS
    )
    if unknown:
        problems.append(Problem("split-unknown", f"split names other than {', '.join(SPLITS)}, by clip", unknown))
    splits_of: dict[str, set[str]] = defaultdict(set)
    for patient, split in zip(manifest.patients, splits, strict=True):
        if split in SPLITS:
            splits_of[patient].add(split)
    crossing = tuple(
        f"{patient} ({', '.join(sorted(found))})" for patient, found in splits_of.items() if len(found) > 1
    )
    if crossing and not manifest.patient_ids.startswith(GUESSED_PATIENTS):
        problems.append(Problem("patient-in-two-splits", "patients in more than one split", crossing))
    return problems


def _value_problems(manifest: Manifest) -> list[Problem]:
    problems = []
    by_column: dict[str, list[str]] = defaultdict(list)
    for key, text in sorted(manifest.unreadable.items()):
        column, _, clip_id = key.partition("\t")
        by_column[column].append(f"{clip_id} ({text})")
    for name, declared in manifest.fields.items():
        if declared.kind == "number":
            by_column[name] += [
                f"{clip_id} ({value})"
                for clip_id, value in zip(manifest.clip_ids, manifest.column(name), strict=True)
                if value is not None and not math.isfinite(value)
            ]
    for column in (*manifest.fields, KEY_FRAMES_COLUMN):
        rows = by_column[column]
        if not rows:
            continue
        if column == KEY_FRAMES_COLUMN:
            problems.append(Problem("key-frame-clip", "key frames of clips that are not there", tuple(rows)))
        else:
            kind = manifest.fields[column].kind
            wanted = {"boolean": "true or false", "integer": "a whole number"}.get(kind, "a finite number")
            problems.append(Problem("not-a-number", f"column {column!r} needs {wanted}, by clip", tuple(rows)))
    for name, declared in manifest.fields.items():
        if declared.plausible is None:
            continue
        low, high = declared.plausible
        outside = tuple(
            f"{clip_id} ({value:g})"
            for clip_id, value in zip(manifest.clip_ids, manifest.column(name), strict=True)
            if value is not None and math.isfinite(value) and not low <= value <= high
        )
        if outside:
            unit = f" {declared.unit}" if declared.unit else ""
            problems.append(
                Problem(
                    "implausible",
                    f"column {name!r} outside {low:g} to {high:g}{unit} (is the unit right?), by clip",
                    outside,
                )
            )
    return problems


def _column_problem(
    manifest: Manifest, name: str, rule: str, message: str, is_wrong: Callable[..., bool]
) -> list[Problem]:
    wrong = tuple(
        f"{clip_id} ({value})"
        for clip_id, value in zip(manifest.clip_ids, manifest.column(name), strict=True)
        if value is not None and is_wrong(value)
    )
    return [Problem(rule, message, wrong)] if wrong else []


def _media_problems(manifest: Manifest) -> list[Problem]:
    problems = [
        *_column_problem(
            manifest, "fps", "fps", "fps that is not above 0, by clip", lambda fps: not 0 < fps < 100_000
        ),
        *_column_problem(manifest, "n_frames", "n-frames", "n_frames below 1, by clip", lambda count: count < 1),
        *_column_problem(
            manifest, "sha256", "sha256", "sha256 that is no SHA-256, by clip", lambda text: not is_digest(text)
        ),
        *_column_problem(manifest, "path", "path", "paths that leave the root, by clip", _leaves_root),
        *(
            problem
            for name in ("height", "width", "spacing_x_mm", "spacing_y_mm")
            for problem in _column_problem(
                manifest, name, "size", f"{name} that is not above 0, by clip", lambda size: size <= 0
            )
        ),
    ]
    counts = dict(zip(manifest.clip_ids, manifest.column("n_frames"), strict=True))
    odd = tuple(
        f"{clip_id} ({role} {frame})"
        for clip_id, entries in manifest.key_frames_of.items()
        for role, frame in entries
        if role not in KEY_FRAME_ROLES
        or frame is None
        or frame < 0
        or (counts[clip_id] is not None and frame >= counts[clip_id])
    )
    if odd:
        problems.append(Problem("key-frame", "key frames of unknown role or outside their clip", odd))
    return problems


def _leaves_root(path: str) -> bool:
    windows = PureWindowsPath(path)
    return (
        PurePosixPath(path).is_absolute()
        or bool(windows.drive or windows.root)
        or ".." in PurePosixPath(path).parts
        or ".." in windows.parts
        or not path.isprintable()
    )


def find_problems(manifest: Manifest) -> list[Problem]:
    """Return every broken rule of a manifest, in the order in which a person would mend them."""
    return [
        *_identity_problems(manifest),
        *_split_problems(manifest),
        *_value_problems(manifest),
        *_media_problems(manifest),
    ]
