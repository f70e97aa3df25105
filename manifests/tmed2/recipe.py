"""`tmed2`: labelled PNG stills, labels_per_image.csv and the split of fold 0 of DEV479."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from embedstore.errors import UnknownNameError
from embedstore.manifest import SPLITS, RecipeOutcome, RecipeRequest, normalise_split
from manifests.clips import SOURCE_ROW, ClipRows, ReleaseClip, named_stem
from manifests.cross_check import PATIENT_IN_TABLE, patient_cells
from manifests.release import Progress, Release, open_release, require_column
from manifests.tables import Table, read_table

__all__ = ["RECIPE", "Tmed2Recipe"]

REVISION = 1
# The union label says "an apical view or any other"; it is no view of its own.
UNION_VIEW = "A4CorA2CorOther"
_VIEWS = {view: view for view in ("A2C", "A4C", "PLAX", "PSAX")} | {UNION_VIEW: "Other"}
_IS_STENOSIS = {"no_AS": False, "mild_AS": True, "mildtomod_AS": True, "moderate_AS": True, "severe_AS": True}
_NOT_PROVIDED = "Not_Provided"
_SPLIT_TABLE = re.compile(r"TMED2_fold(\d+)_labeledpart\.csv", re.IGNORECASE)
_SPLIT_COLUMN = "diagnosis_classifier_split"
_STUDY = re.compile(r"((\d+)s\d+)_\d+")
_LABELLED_SET = "view_and_diagnosis_labeled_set"


class Tmed2Recipe:
    """Stills with view and grade of aortic stenosis; the diagnosis is of the study."""

    name = "tmed2"
    summary = "TMED-2: labelled stills with view and aortic stenosis of the study (Tufts)"

    def make(self, request: RecipeRequest, *, progress: Progress | None = None) -> RecipeOutcome:
        """Make the manifest.

        Raises
        ------
        UnknownNameError
            The root is not there or of another data set, or a table or column is missing.
        StorageError
            A table cannot be read.
        """
        release = open_release(self.name, request, facts_file=Path(__file__).with_name("dataset.yaml"))
        release.draft.patient_ids = "derived(file name, digits before s)"
        release.draft.split_rule = f"official (DEV479, fold 0, column {_SPLIT_COLUMN})"
        split_table = _find_split_table(release)
        labels = release.find_table("labels_per_image.csv") or split_table
        if labels is None:
            raise UnknownNameError(f"--root: {release.root} has no labels_per_image.csv; is the download complete?")
        clips = _read_clips(labels, _read_split(split_table, release), release)
        clips.report(release.draft, labels=["as", "view"])
        _report_studies(clips, release)
        release.leave_out("images of the sets without a diagnosis", _is_of_another_set)
        release.add_clips(clips, progress=progress, has_fps_column=False)
        return release.finish(
            clips,
            recipe=f"{self.name} {REVISION}",
            split_ids=["query_key"],
            labels_in_splits={"diagnosis_label": "as", "view": "view_label"},
        )


RECIPE = Tmed2Recipe()


def _find_split_table(release: Release) -> Table | None:
    """Return the table of fold 0 of DEV479, or the only table of a fold 0 that there is."""
    tables = release.take(lambda path: _SPLIT_TABLE.fullmatch(path.name) is not None)
    first_folds = [path for path in tables if re.search(r"fold0_", path, re.IGNORECASE)]
    chosen = [path for path in first_folds if "DEV479" in PurePosixPath(release.root.name, path).parts] or first_folds
    if len(chosen) == 1:
        return read_table(release.root / chosen[0])
    if release.request.splits is None:
        release.draft.report(
            "split-table-absent",
            "table of the official split is not there, or not clear; give --splits FILE",
            chosen or ["DEV479/TMED2_fold0_labeledpart.csv"],
        )
    return None


def _read_split(table: Table | None, release: Release) -> dict[str, str | None]:
    if table is None:
        return {}
    names = [named_stem(cell) for cell in table.cells(require_column(table, ["query_key"]))]
    splits = table.cells(require_column(table, [_SPLIT_COLUMN]))
    return {name: normalise_split(split) for name, split in zip(names, splits, strict=True)}


def _read_clips(table: Table, split_of: dict[str, str | None], release: Release) -> ClipRows:
    names = [named_stem(cell) for cell in table.cells(require_column(table, ["query_key"]))]
    grades = table.cells(require_column(table, ["diagnosis_label"]))
    views = table.cells(require_column(table, ["view_label", "view"]))
    patients = patient_cells(table, release.request)
    files = release.media_by_stem()
    clips = ClipRows()
    undiagnosed, strange, nameless = [], [], []
    for line, (name, grade, view) in enumerate(zip(names, grades, views, strict=True)):
        if grade in (_NOT_PROVIDED, ""):
            undiagnosed.append(name or f"row {line + 1}")
            continue
        named = _STUDY.fullmatch(name)
        if named is None:
            nameless.append(name)
        strange += [f"{name} ({grade})"] if grade not in _IS_STENOSIS else []
        strange += [f"{name} ({view or 'no view'})"] if view not in _VIEWS else []
        split = split_of.get(name)
        row = {
            "clip_id": name,
            "query_key": f"{name}.png",
            "study_id": None if named is None else named[1],
            "patient_id": None if named is None else named[2],
            "split": split if split in SPLITS else None,
            "view": _VIEWS.get(view),
            "view_label": view or None,
            "view_source": "given" if view in _VIEWS else None,
            "modality": "2d",
            "as": _IS_STENOSIS.get(grade),
            "as_grade": grade,
            SOURCE_ROW: line,
        }
        if patients is not None:
            row[PATIENT_IN_TABLE] = patients[line]
        clips.add(
            ReleaseClip(row, candidates=_labelled(files.get(name, []))), place=f"{table.path.name} row {line + 1}"
        )
    release.draft.report(
        "not-diagnosed", "rows have no diagnosis and were left out, as in the official split", undiagnosed
    )
    release.draft.report("value-unusable", "diagnoses or views are none of the known ones", strange)
    release.draft.report("study-unnamed", "file names hold no study (digits, s, digits)", nameless)
    left = set(undiagnosed)
    release.leave_out("images without a diagnosis", lambda path: named_stem(path.name) in left)
    return clips


def _labelled(paths: list[str]) -> list[str]:
    """Return the files in the folder of the labelled set, or all where none is."""
    return [path for path in paths if _LABELLED_SET in PurePosixPath(path).parts] or paths


def _is_of_another_set(path: PurePosixPath) -> bool:
    return any(part in ("unlabeled_set", "view_labeled_set") for part in path.parts)


def _report_studies(clips: ClipRows, release: Release) -> None:
    grades: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.row["study_id"] is not None:
            grades[clip.row["study_id"]].add(clip.row["as_grade"])
    release.draft.report(
        "label-differs",
        "studies have images of different diagnoses",
        [f"{study} ({', '.join(sorted(found))})" for study, found in grades.items() if len(found) > 1],
    )
