"""`hmc-qu`: A2C.csv and A4C.csv with a column a segment, and one video a row."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from embedstore.errors import UnknownNameError
from embedstore.manifest import RecipeOutcome, RecipeRequest
from manifests.clips import SOURCE_ROW, ClipRows, ReleaseClip, named_stem
from manifests.cross_check import PATIENT_IN_TABLE, patient_cells
from manifests.published_split import PublishedShares, set_published_split
from manifests.release import Progress, Release, open_release, require_column
from manifests.tables import Table, plain_name

__all__ = ["RECIPE", "HmcQuRecipe"]

REVISION = 1
VIEWS = ("A2C", "A4C")  # in the order in which the benchmark concatenates the two tables
# Shares of CardioBench's script: 15 % test, then 0.15 / 0.90 of the rest, which is not 15 % of all.
_TEST_SHARE, _VAL_SHARE_OF_REST = 0.15, 0.15 / 0.90
_PATIENT = re.compile(r"ES\d+")
_INFARCTED, _HEALTHY = {"mi"}, {"nonmi"}


class HmcQuRecipe:
    """A2C and A4C videos of patients with and without myocardial infarction, labelled by view."""

    name = "hmc-qu"
    summary = "HMC-QU: A2C and A4C videos with myocardial infarction by segment (Hamad Medical, Qatar University)"

    def make(self, request: RecipeRequest, *, progress: Progress | None = None) -> RecipeOutcome:
        """Make the manifest.

        Raises
        ------
        UnknownNameError
            The root is not there or of another data set, or no table of a view is.
        StorageError
            A table cannot be read.
        """
        release = open_release(self.name, request, facts_file=Path(__file__).with_name("dataset.yaml"))
        release.draft.patient_ids = "derived(file name, ES and digits)"
        tables = {view: table for view in VIEWS if (table := release.find_table(f"{view}.csv")) is not None}
        if not tables:
            raise UnknownNameError(
                f"--root: {release.root} has neither A2C.csv nor A4C.csv; "
                "save A2C.xlsx and A4C.xlsx there as CSV (UTF-8)"
            )
        absent = [f"{view}.csv" for view in VIEWS if view not in tables]
        release.draft.report("view-absent", "tables are not there; the data set has both views", absent)
        clips = _read_clips(tables, release)
        clips.report(release.draft, labels=["stemi"])
        if request.splits is None:
            _draw_split(clips, release)
        release.leave_out("segmentation masks", lambda path: path.suffix.lower() == ".mat" or "Masks" in str(path))
        release.add_clips(clips, progress=progress, has_fps_column=False)
        return release.finish(clips, recipe=f"{self.name} {REVISION}", labels_in_splits={"STEMI": "stemi"})


RECIPE = HmcQuRecipe()


def _read_clips(tables: dict[str, Table], release: Release) -> ClipRows:
    files = release.media_by_stem()
    several = _patients_with_several(tables)
    clips, nameless, strange, first_row = ClipRows(), [], [], 0
    for view, table in tables.items():
        segments = [column for column in table.columns if plain_name(column).startswith("seg")]
        if not segments:
            raise UnknownNameError(f"{table.path} has no columns SEG1, SEG2, ...; is it the table of this data set?")
        cells = [table.cells(column) for column in segments]
        patients = patient_cells(table, release.request)
        for line, echo in enumerate(table.cells(require_column(table, ["ECHO"]))):
            name = named_stem(echo)
            patient = found[0] if (found := _PATIENT.search(name)) else None
            if name and patient is None:
                nameless.append(name)
            words = [plain_name(column[line]) for column in cells]
            strange += [
                f"{name} ({segments[at]} {cells[at][line]})"
                for at, word in enumerate(words)
                if word and word not in _INFARCTED | _HEALTHY
            ]
            unique_id = f"{patient or name}_{view}"
            row = {
                "clip_id": f"{unique_id}_{name}" if (patient, view) in several else unique_id,
                "unique_id": unique_id,
                "patient_id": patient,
                "view": view,
                "view_source": "given",
                "modality": "2d",
                "stemi": any(word in _INFARCTED for word in words) if any(words) else None,
                "n_mi_segments": sum(word in _INFARCTED for word in words) if any(words) else None,
                SOURCE_ROW: first_row + line,
            }
            if not name:
                row["clip_id"] = ""
            if patients is not None:
                row[PATIENT_IN_TABLE] = patients[line]
            candidates = _of_view(files.get(name, []), view)
            clips.add(ReleaseClip(row, candidates=candidates), place=f"{table.path.name} row {line + 1}")
        first_row += len(table)
    release.draft.report("patient-unnamed", "file names hold no patient (ES and digits)", nameless)
    release.draft.report("segment-unknown", "segments are neither MI nor non-MI and count as non-MI", strange)
    release.draft.report(
        "several-clips",
        "patients have several videos in a view; their clip ids bear the file name",
        sorted(f"{patient} {view}" for patient, view in several),
    )
    return clips


def _patients_with_several(tables: dict[str, Table]) -> set[tuple[str, str]]:
    """Return (patient, view) of patients with different videos in one view."""
    videos: dict[tuple[str, str], set[str]] = {}
    for view, table in tables.items():
        for echo in table.cells(require_column(table, ["ECHO"])):
            found = _PATIENT.search(echo)
            if found is not None:
                videos.setdefault((found[0], view), set()).add(named_stem(echo))
    return {key for key, names in videos.items() if len(names) > 1}


def _of_view(paths: list[str], view: str) -> list[str]:
    """Return the files in a folder of the view's name, or all where none is."""
    return [path for path in paths if view in PurePosixPath(path.upper()).parts[:-1]] or paths


def _draw_split(clips: ClipRows, release: Release) -> None:
    positive: dict[str, bool] = {}
    for clip in clips:
        patient = clip.row["patient_id"]
        if patient is not None:
            positive[patient] = positive.get(patient, False) or bool(clip.row["stemi"])
    set_published_split(
        clips,
        release,
        positive,
        patient_column="patient_id",
        shares=PublishedShares(test=_TEST_SHARE, val_of_rest=_VAL_SHARE_OF_REST),
    )
