"""`echonet-lvh`: MeasurementsList.csv, one row a measurement, and videos in Batch1 to Batch4 or in one folder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from embedstore.manifest import RecipeOutcome, RecipeRequest, normalise_split
from manifests.clips import SOURCE_ROW, ClipRows, ReleaseClip, named_stem
from manifests.cross_check import PATIENT_IN_TABLE, patient_cells
from manifests.measures import as_frame_number
from manifests.release import Progress, Release, open_release, require_column
from manifests.tables import Table

__all__ = ["RECIPE", "TARGETS", "EchonetLvhRecipe"]

REVISION = 1
TARGETS = {"LVIDd": "lvidd", "IVSd": "ivsd", "LVPWd": "lvpwd"}
# Ends of a measured line, as the table spells them, in pixels.
_ENDS = ("X1", "X2", "Y1", "Y2")
# Outliers of a hand-made table are left out and listed; more of them mean another unit.
_TOLERATED = 0.01


class EchonetLvhRecipe:
    """PLAX videos with wall thicknesses and the diameter of the left ventricle, and the frame of each measurement."""

    name = "echonet-lvh"
    summary = "EchoNet-LVH: PLAX videos with LVIDd, IVSd and LVPWd (Stanford)"

    def make(self, request: RecipeRequest, *, progress: Progress | None = None) -> RecipeOutcome:
        """Make the manifest.

        Raises
        ------
        UnknownNameError
            The root is not there or of another data set, or a table or column is missing.
        ManifestError
            Measurements are in another unit.
        StorageError
            A table cannot be read.
        """
        release = open_release(self.name, request, facts_file=Path(__file__).with_name("dataset.yaml"))
        release.draft.split_rule = "official (MeasurementsList.csv, column split)"
        needs = [("HashedFileName",), ("Calc",), ("CalcValue",), ("split",)]
        table = release.require_table("MeasurementsList.csv", needs=needs)
        clips = _read_clips(table, release)
        clips.report(release.draft, labels=[f"{target}_cm" for target in TARGETS.values()])
        release.add_clips(clips, progress=progress, has_fps_column=table.find_column(["FPS"]) is not None)
        return release.finish(clips, recipe=f"{self.name} {REVISION}", split_ids=["HashedFileName"])


RECIPE = EchonetLvhRecipe()


def _read_clips(table: Table, release: Release) -> ClipRows:
    names = [named_stem(cell) for cell in table.cells(require_column(table, ["HashedFileName"]))]
    lines_of: dict[str, list[int]] = defaultdict(list)
    for line, name in enumerate(names):
        lines_of[name].append(line)
    measures = _read_measurements(table, names, release)
    per_clip = {
        "fps": release.read_numbers(table, "FPS", "fps", names),
        "n_frames": release.read_numbers(table, "Frames", "n_frames", names),
        "height": release.read_numbers(table, "Height", "height", names),
        "width": release.read_numbers(table, "Width", "width", names),
        "split": [normalise_split(cell) for cell in table.cells(require_column(table, ["split"]))],
    }
    patients = patient_cells(table, release.request)
    if patients is not None:
        per_clip[PATIENT_IN_TABLE] = [text or None for text in patients]
    files = release.media_by_stem()
    clips, differing = ClipRows(), []
    for name, lines in lines_of.items():
        row: dict[str, Any] = {"clip_id": name, "view": "PLAX", "view_source": "given", "modality": "2d"}
        for column, values in per_clip.items():
            stated = {values[line] for line in lines} - {None, ""}
            if len(stated) > 1:
                differing.append(f"{name} ({column}: {', '.join(sorted(str(value) for value in stated))})")
            # A clip in two splits is in none; of other values the first counts.
            first = next((values[line] for line in lines if values[line] not in (None, "")), None)
            row[column] = None if column == "split" and len(stated) > 1 else first
        row[SOURCE_ROW] = lines[0]
        row |= measures.columns_of(name)
        clips.add(
            ReleaseClip(row, candidates=files.get(name, []), key_frames=measures.frames_of(name)),
            place=f"{table.path.name} row {lines[0] + 1}",
        )
    release.draft.report("row-differs", "clips have rows that disagree; of splits none was taken", differing)
    return clips


class _Measurements:
    """Usable measurements by clip and target: (line, value, frame), in the order of the table.

    Parameters
    ----------
    ends : mapping of str to sequence of float or None
        Column of the table to its value in each line.
    """

    def __init__(self, ends: Mapping[str, Sequence[float | None]]) -> None:
        self._ends = ends
        self._found: dict[tuple[str, str], list[tuple[int, float, int | None]]] = defaultdict(list)

    def add(self, name: str, target: str, measured: tuple[int, float, int | None]) -> None:
        self._found[name, target].append(measured)

    def columns_of(self, name: str) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for target in TARGETS.values():
            found = self._found.get((name, target))
            if found:
                columns[f"{target}_cm"] = fmean(value for _, value, _ in found)
                columns[f"{target}_cm_first"] = found[0][1]
                columns[f"{target}_row"] = found[0][0]
                columns |= {f"{target}_{end.lower()}_px": self._ends[end][found[0][0]] for end in self._ends}
            columns[f"{target}_n"] = len(found or ())
        return columns

    def frames_of(self, name: str) -> list[tuple[str, int]]:
        """Return the frame of each target's first measurement."""
        return [
            (target, frame)
            for target in TARGETS.values()
            for _, _, frame in self._found.get((name, target), [])[:1]
            if frame is not None
        ]

    def repeated(self) -> list[str]:
        return [
            f"{name} ({target} {', '.join(f'{value:g}' for _, value, _ in found)})"
            for (name, target), found in self._found.items()
            if len(found) > 1
        ]


def _read_measurements(table: Table, names: list[str], release: Release) -> _Measurements:
    kinds = [kind.strip() for kind in table.cells(require_column(table, ["Calc"]))]
    by_plain = {kind.lower(): target for kind, target in TARGETS.items()}
    targets = [by_plain.get(kind.lower()) for kind in kinds]
    frame_column = table.find_column(["Frame"])
    frames = table.cells(frame_column) if frame_column else [""] * len(table)
    measures = _Measurements({end: release.read_numbers(table, end, "lvidd_x1_px", names) for end in _ENDS})
    unframed = []
    for target in TARGETS.values():
        own = [line for line, found in enumerate(targets) if found == target]
        part = table.at(own)
        values = release.read_numbers(
            part, "CalcValue", f"{target}_cm", [names[line] for line in own], tolerated=_TOLERATED
        )
        for line, value in zip(own, values, strict=True):
            if value is not None:
                frame = as_frame_number(frames[line])
                measures.add(names[line], target, (line, value, frame))
                if frame is None:
                    unframed.append(f"{names[line]} ({target} {frames[line] or 'empty'})")
    others = Counter(kind or "empty" for kind, target in zip(kinds, targets, strict=True) if target is None)
    release.draft.report(
        "measurement-other",
        "kinds of measurement are none of LVIDd, IVSd and LVPWd and were left out",
        [f"{kind} ({count})" for kind, count in sorted(others.items())],
    )
    release.draft.report(
        "measurement-repeated", "clips have repeated measurements; labels are means", measures.repeated()
    )
    release.draft.report("key-frame-unusable", "measurements have no frame number", unframed)
    return measures
