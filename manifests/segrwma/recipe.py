"""`segrwma`: NIfTI sequences by patient, modality and view; labels and splits come from the benchmark's file."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from embedstore.manifest import Finding, RecipeOutcome, RecipeRequest, normalise_split
from embedstore.manifest.cells import read_cell
from manifests.clips import SOURCE_ROW, ClipRows, ReleaseClip, named_stem
from manifests.measures import as_frame_number, as_whole_number
from manifests.release import Progress, Release, open_release
from manifests.tables import Table, read_table

__all__ = ["RECIPE", "SegrwmaRecipe"]

REVISION = 1
_CLIP = re.compile(r"((patient\d+)-(2D|LVO|MCE)-(A[234]C))_image", re.IGNORECASE)
_OF_THE_SET = re.compile(r"patient\d+-(?:2D|LVO|MCE)-A[234]C.*", re.IGNORECASE)
_LABELLED = ("path", "abnormal")


class SegrwmaRecipe:
    """A2C, A3C and A4C sequences, 2-D and with contrast, of patients with and without abnormal wall motion."""

    name = "segrwma"
    summary = "SegRWMA: A2C, A3C and A4C sequences with regional wall motion abnormality"

    def make(self, request: RecipeRequest, *, progress: Progress | None = None) -> RecipeOutcome:
        """Make the manifest.

        Raises
        ------
        UnknownNameError
            The root is not there or of another data set.
        StorageError
            The splits file cannot be read.
        """
        release = open_release(self.name, request, facts_file=Path(__file__).with_name("dataset.yaml"))
        release.draft.patient_ids = "derived(file name, patient and digits)"
        release.draft.split_rule = "none; give CardioBench's segrwma_split.csv with --splits"
        table = None if request.splits is None else read_table(request.splits, option="--splits")
        is_labelled = table is not None and all(table.find_column([name]) for name in _LABELLED)
        if not is_labelled:
            release.draft.findings.append(
                Finding(
                    "labels-absent",
                    "nothing below the root says which wall motion is abnormal, nor how to split: labels, splits and "
                    "annotated frames come from CardioBench's segrwma_split.csv, given with --splits FILE",
                )
            )
        clips = ClipRows()
        files = _find_files(release)
        if table is not None and is_labelled:
            _read_labelled(table, files, clips, release)
            clips.report(release.draft, labels=["rwma"])
        for stem, paths in files.items():
            if stem not in clips:
                clips.add(ReleaseClip(_row_of(stem), candidates=paths), place=paths[0])
        taken = {path for paths in files.values() for path in paths}
        release.leave_out(
            "annotations",
            lambda path: path.as_posix() not in taken and _OF_THE_SET.fullmatch(path.name) is not None,
        )
        release.add_clips(clips, progress=progress, has_fps_column=False)
        return release.finish(clips, recipe=f"{self.name} {REVISION}")


RECIPE = SegrwmaRecipe()


def _find_files(release: Release) -> dict[str, list[str]]:
    files: dict[str, list[str]] = defaultdict(list)
    for stem, paths in release.media_by_stem().items():
        named = _CLIP.fullmatch(stem)
        if named is not None:
            files[named[1]] += paths
    return files


def _row_of(stem: str) -> dict[str, Any]:
    """Return what the name of a clip says of it."""
    patient, mode, view = stem.split("-")
    return {
        "clip_id": stem,
        "patient_id": patient,
        "view": view.upper(),
        "view_source": "given",
        "modality": "2d" if mode.upper() == "2D" else "contrast",
        "contrast_mode": mode.upper(),
        "patient_view_id": f"{patient}_{view.upper()}",
    }


def _read_labelled(table: Table, files: dict[str, list[str]], clips: ClipRows, release: Release) -> None:
    """Add a clip for each row of the benchmark's file, with or without a file of its own."""

    def cells(name: str) -> list[str]:
        column = table.find_column([name])
        return [""] * len(table) if column is None else table.cells(column)

    strange, unlabelled, unframed = [], [], []
    columns = [cells(name) for name in ("path", "abnormal", "split", "first_annotated_frame_index", "n_frames")]
    for line, (path, label, split, frame, n_frames) in enumerate(zip(*columns, strict=True)):
        named = _CLIP.fullmatch(named_stem(path))
        if named is None:
            strange.append(path or f"row {line + 1}")
            continue
        abnormal, text = read_cell(label, "boolean")
        if text is not None:
            unlabelled.append(f"{named[1]} ({text})")
        annotated = as_frame_number(frame)
        if frame and annotated is None:
            unframed.append(f"{named[1]} ({frame})")
        row = {
            **_row_of(named[1]),
            "path": PurePosixPath(PurePosixPath(path).parent.name, PurePosixPath(path).name).as_posix(),
            "rwma": abnormal,
            "split": normalise_split(split),
            "n_frames": as_whole_number(n_frames),
            SOURCE_ROW: line,
        }
        key_frames = [] if annotated is None else [("annotated", annotated)]
        clip = ReleaseClip(row, candidates=files.get(named[1], []), key_frames=key_frames)
        clips.add(clip, place=f"{table.path.name} row {line + 1}")
    release.draft.report("row-strange", "rows of the splits file name no sequence of this data set", strange)
    release.draft.report("value-unusable", "labels of the splits file cannot be used", unlabelled)
    release.draft.report("key-frame-unusable", "annotated frames are no frame number", unframed)
