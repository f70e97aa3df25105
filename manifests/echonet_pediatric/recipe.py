"""`echonet-pediatric`: {A4C,PSAX}/FileList.csv, VolumeTracings.csv and Videos/, ten folds."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from embedstore.manifest import SPLITS, RecipeOutcome, RecipeRequest, normalise_split
from manifests.clips import SOURCE_ROW, ClipRows, ReleaseClip, named_stem
from manifests.cross_check import PATIENT_IN_TABLE, patient_cells
from manifests.measures import as_sex, as_whole_number
from manifests.release import Progress, Release, open_release, require_column
from manifests.tables import Table
from manifests.tracings import set_traced_frames

__all__ = ["RECIPE", "EchonetPediatricRecipe"]

REVISION = 1
VIEWS = ("A4C", "PSAX")  # in the order in which the benchmark concatenates the two lists
_TEST_FOLD, _VAL_FOLD, _N_FOLDS = 0, 1, 10
_NUMBERS = {"lvef_pct": "EF", "age_years": "Age", "weight_kg": "Weight", "height_cm": "Height"}


class EchonetPediatricRecipe:
    """Children's A4C and PSAX videos with ejection fraction; the folds are read as the benchmark reads them."""

    name = "echonet-pediatric"
    summary = "EchoNet-Pediatric: children's A4C and PSAX videos with ejection fraction (Stanford)"

    def make(self, request: RecipeRequest, *, progress: Progress | None = None) -> RecipeOutcome:
        """Make the manifest.

        Raises
        ------
        UnknownNameError
            The root is not there or of another data set, or a table or column is missing.
        ManifestError
            Ejection fractions are in another unit.
        StorageError
            A table cannot be read.
        """
        release = open_release(self.name, request, facts_file=Path(__file__).with_name("dataset.yaml"))
        release.draft.patient_ids = "derived(file name, first field)"
        release.draft.split_rule = "official folds (column Split: 0 is test, 1 is val, 2 to 9 are train)"
        lists = {view: table for view in VIEWS if (table := release.find_table("FileList.csv", below=view))}
        missing = [f"{view}/FileList.csv" for view in VIEWS if view not in lists]
        release.draft.report("view-absent", "tables are not there; the data set has both views", missing)
        clips = ClipRows()
        n_rows = 0
        for view, table in lists.items():
            _read_view(view, table, release, clips, first_row=n_rows)
            n_rows += len(table)
        clips.report(release.draft, labels=["lvef_pct"])
        tracings = [
            table for view in lists if (table := release.find_table("VolumeTracings.csv", below=view)) is not None
        ]
        set_traced_frames(clips, tracings, release.draft)
        release.add_clips(clips, progress=progress, has_fps_column=False)
        return release.finish(clips, recipe=f"{self.name} {REVISION}", split_ids=["FileName"])


RECIPE = EchonetPediatricRecipe()


def _read_view(view: str, table: Table, release: Release, clips: ClipRows, *, first_row: int) -> None:
    file_names = table.cells(require_column(table, ["FileName"]))
    names = [named_stem(cell) for cell in file_names]
    require_column(table, ["EF"])
    folds = table.cells(require_column(table, ["Split"]))
    numbers = {column: release.read_numbers(table, spelling, column, names) for column, spelling in _NUMBERS.items()}
    sexes = table.cells(sex) if (sex := table.find_column(["Sex"])) else [""] * len(table)
    patients = patient_cells(table, release.request)
    files = _files_of(view, release)
    strange, shared = [], []
    for line, name in enumerate(names):
        fold = as_whole_number(folds[line])
        split = _split_of(fold) if fold is not None else normalise_split(folds[line])
        if split not in SPLITS:
            strange.append(f"{name} ({folds[line] or 'empty'})")
        in_other_view = name in clips and clips[name].row["view"] != view
        if in_other_view:
            shared.append(name)
        row: dict[str, Any] = {
            "clip_id": f"{view}/{name}" if in_other_view else name,
            "patient_id": name.split("-")[0] or None,
            "split": split if split in SPLITS else None,
            "fold": fold if split in SPLITS else None,
            "view": view,
            "view_source": "given",
            "modality": "2d",
            "sex": as_sex(sexes[line]),
            "file_name": f"{name}.avi",
            SOURCE_ROW: first_row + line,
            **{column: values[line] for column, values in numbers.items()},
        }
        row["bmi"] = _bmi(numbers["weight_kg"][line], numbers["height_cm"][line])
        if patients is not None:
            row[PATIENT_IN_TABLE] = patients[line]
        clip = ReleaseClip(row, candidates=files.get(name, []))
        clips.add(clip, place=f"{view}/{table.path.name} row {line + 1}")
    release.draft.report("fold-unknown", f"rows of {view} have a Split that is no fold from 0 to 9", strange)
    release.draft.report("name-in-both-views", "file names stand in both views; PSAX goes before the second", shared)


def _files_of(view: str, release: Release) -> dict[str, list[str]]:
    """Return the videos of a view: those in a folder of its name."""
    files = {}
    for stem, paths in release.media_by_stem().items():
        of_view = [path for path in paths if _view_of(path, release) == view]
        if of_view:
            files[stem] = of_view
    return files


def _view_of(path: str, release: Release) -> str | None:
    parts = [part.upper() for part in PurePosixPath(release.root.name, path).parts[:-1]]
    return next((part for part in reversed(parts) if part in VIEWS), None)


def _split_of(fold: int) -> str | None:
    """Return the split of a fold as the benchmark takes it; None for a number that is no fold."""
    if not 0 <= fold < _N_FOLDS:
        return None
    return {_TEST_FOLD: "test", _VAL_FOLD: "val"}.get(fold, "train")


def _bmi(weight_kg: float | None, height_cm: float | None) -> float | None:
    if not weight_kg or not height_cm:
        return None
    return weight_kg / (height_cm / 100) ** 2
