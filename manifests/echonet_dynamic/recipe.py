"""`echonet-dynamic`: FileList.csv, VolumeTracings.csv and Videos/."""

from __future__ import annotations

from pathlib import Path

from embedstore.manifest import RecipeOutcome, RecipeRequest
from manifests.clips import SOURCE_ROW, ClipRows, ReleaseClip, named_stem
from manifests.cross_check import PATIENT_IN_TABLE, patient_cells
from manifests.release import Progress, Release, open_release, require_column
from manifests.tables import Table
from manifests.tracings import set_traced_frames

__all__ = ["RECIPE", "EchonetDynamicRecipe"]

REVISION = 1
_NUMBERS = {
    "lvef_pct": "EF",
    "esv_ml": "ESV",
    "edv_ml": "EDV",
    "fps": "FPS",
    "n_frames": "NumberOfFrames",
    "height": "FrameHeight",
    "width": "FrameWidth",
}


class EchonetDynamicRecipe:
    """Adult A4C videos with ejection fraction, the official split and the two traced frames of each."""

    name = "echonet-dynamic"
    summary = "EchoNet-Dynamic: adult A4C videos with ejection fraction (Stanford)"

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
        release.draft.patient_ids = "one-clip-per-patient(description of the data set)"
        release.draft.split_rule = "official (FileList.csv, column Split)"
        table = release.require_table("FileList.csv", needs=[("FileName",), ("EF",), ("Split",)])
        clips = _read_clips(table, release)
        clips.report(release.draft, labels=["lvef_pct"])
        tracings = release.find_table("VolumeTracings.csv")
        set_traced_frames(clips, [] if tracings is None else [tracings], release.draft)
        release.add_clips(clips, progress=progress, has_fps_column=table.find_column(["FPS"]) is not None)
        return release.finish(clips, recipe=f"{self.name} {REVISION}")


RECIPE = EchonetDynamicRecipe()


def _read_clips(table: Table, release: Release) -> ClipRows:
    names = [named_stem(cell) for cell in table.cells(require_column(table, ["FileName"]))]
    splits = table.cells(require_column(table, ["Split"]))
    numbers = {column: release.read_numbers(table, spelling, column, names) for column, spelling in _NUMBERS.items()}
    patients = patient_cells(table, release.request)
    files = release.media_by_stem()
    clips = ClipRows()
    for line, name in enumerate(names):
        row = {
            "clip_id": name,
            "patient_id": name,
            "split": splits[line],
            "view": "A4C",
            "view_source": "given",
            "modality": "2d",
            SOURCE_ROW: line,
            **{column: values[line] for column, values in numbers.items()},
        }
        if patients is not None:
            row[PATIENT_IN_TABLE] = patients[line]
        clips.add(ReleaseClip(row, candidates=files.get(name, [])), place=f"{table.path.name} row {line + 1}")
    return clips
