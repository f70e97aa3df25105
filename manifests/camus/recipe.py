"""`camus`: half sequences in NIfTI, one `.cfg` file a view, and the official lists of patients."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from embedstore.errors import UnknownNameError
from embedstore.manifest import RecipeOutcome, RecipeRequest
from embedstore.manifest.fields import STANDARD
from manifests.clips import SOURCE_ROW, ClipRows, ReleaseClip
from manifests.measures import as_frame_number, as_sex, read_measures
from manifests.release import Progress, Release, open_release
from manifests.tables import read_text

__all__ = ["RECIPE", "CamusRecipe"]

REVISION = 1
_VIEW_OF = {"2CH": "A2C", "4CH": "A4C"}  # in the order in which the benchmark lists a patient's views
_SPLIT_OF = {"subgroup_training.txt": "train", "subgroup_validation.txt": "val", "subgroup_testing.txt": "test"}
_SEQUENCE = re.compile(r"(patient\d+)_(2CH|4CH)_half_sequence\.nii(?:\.gz)?", re.IGNORECASE)
_OTHER_PICTURES = re.compile(r"patient\d+_(?:2CH|4CH)_(?:ED|ES|half_sequence)(?:_gt)?\.nii(?:\.gz)?", re.IGNORECASE)
_INFO = re.compile(r"Info_(2CH|4CH)\.cfg", re.IGNORECASE)
_QUALITIES = ("Poor", "Medium", "Good")  # from the worst
_NUMBERS = {"lvef_pct": "ef", "age_years": "age", "fps": "framerate", "n_frames": "nbframe"}

Key = tuple[str, str]  # patient, and 2CH or 4CH
Info = Mapping[str, str]


class CamusRecipe:
    """Two apical half sequences of each patient with ejection fraction, image quality and both key frames."""

    name = "camus"
    summary = "CAMUS: A2C and A4C half sequences with ejection fraction and image quality (CREATIS)"

    def make(self, request: RecipeRequest, *, progress: Progress | None = None) -> RecipeOutcome:
        """Make the manifest.

        Raises
        ------
        UnknownNameError
            The root is not there or of another data set, or holds a patient twice.
        ManifestError
            Ejection fractions are in another unit.
        StorageError
            A file cannot be read.
        """
        release = open_release(self.name, request, facts_file=Path(__file__).with_name("dataset.yaml"))
        release.draft.patient_ids = "provided"
        release.draft.split_rule = "official (database_split, subgroup_*.txt)"
        infos = _read_infos(release)
        sequences = _find_sequences(release)
        clips = _read_clips(infos, sequences, _read_split_lists(release), release)
        clips.report(release.draft, labels=["lvef_pct"])
        _report_infos(infos, clips, release)
        taken = {path for paths in sequences.values() for path in paths}
        release.leave_out(
            "single frames and segmentations",
            lambda path: path.as_posix() not in taken and _OTHER_PICTURES.fullmatch(path.name) is not None,
        )
        release.add_clips(clips, progress=progress, has_fps_column=True)
        return release.finish(clips, recipe=f"{self.name} {REVISION}")


RECIPE = CamusRecipe()


# -- what lies on disk --------------------------------------------------------------------------------------


def _read_infos(release: Release) -> dict[Key, Info]:
    infos: dict[Key, Info] = {}
    for path in release.take(lambda path: _INFO.fullmatch(path.name) is not None):
        key = PurePosixPath(release.root.name, path).parent.name, PurePosixPath(path).stem[-3:].upper()
        if key in infos:
            raise UnknownNameError(
                f"--root: {release.root} holds the {key[1]} of {key[0]} twice; give the folder of one release"
            )
        infos[key] = _read_info(release.root / path)
    return infos


def _read_info(path: Path) -> Info:
    """Return a file of lines ``key: value`` with keys in lower case."""
    pairs = (line.partition(":") for line in read_text(path).splitlines())
    return {key.strip().lower(): value.strip() for key, separator, value in pairs if separator}


def _find_sequences(release: Release) -> dict[Key, list[str]]:
    sequences: dict[Key, list[str]] = defaultdict(list)
    for path in release.paths:
        named = _SEQUENCE.fullmatch(PurePosixPath(path).name)
        if named is not None:
            sequences[named[1], named[2].upper()].append(path)
    return sequences


def _read_split_lists(release: Release) -> dict[str, str]:
    splits: dict[str, str] = {}
    crossing, absent = [], []
    for name, split in _SPLIT_OF.items():
        lists = release.take(_is_named(name))
        if not lists:
            absent.append(name)
        for path in lists:
            for patient in read_text(release.root / path).split():
                if splits.setdefault(patient, split) != split:
                    crossing.append(f"{patient} ({splits[patient]}, {split})")
    if release.request.splits is None:
        release.draft.report(
            "split-lists-absent",
            "official lists are not below the root; give the folder that holds database_split/ too, or --splits FILE",
            absent,
        )
    release.draft.report("split-crossing", "patients stand in two official lists; the first counts", crossing)
    return splits


def _is_named(name: str) -> Callable[[PurePosixPath], bool]:
    return lambda path: path.name.lower() == name


# -- clips --------------------------------------------------------------------------------------------------


def _read_clips(
    infos: Mapping[Key, Info], sequences: Mapping[Key, list[str]], splits: Mapping[str, str], release: Release
) -> ClipRows:
    keys = sorted({*infos, *sequences})
    names = [f"{patient}_{view}" for patient, view in keys]
    numbers = {}
    for column, key in _NUMBERS.items():
        declared = next((own for own in release.draft.fields if own.name == column), STANDARD.get(column))
        assert declared is not None
        cells = [infos.get(of, {}).get(key, "") for of in keys]
        measured = read_measures(cells, names, declared, source=f"the .cfg files, {key}")
        release.draft.findings += measured.findings
        numbers[column] = measured.values
    clips, unframed = ClipRows(), []
    for at, (patient, view) in enumerate(keys):
        info = infos.get((patient, view), {})
        row = {
            "clip_id": names[at],
            "patient_id": patient,
            "split": splits.get(patient),
            "view": _VIEW_OF[view],
            "view_source": "given",
            "modality": "2d",
            "sex": as_sex(info.get("sex", "")),
            "image_quality": info.get("imagequality") or None,
            "image_quality_worst": _worst([infos.get((patient, other), {}) for other in _VIEW_OF]),
            SOURCE_ROW: at,
            **{column: values[at] for column, values in numbers.items()},
        }
        key_frames = []
        for role in ("ed", "es"):
            frame = as_frame_number(info.get(role, ""))
            if frame:  # counted from 1 in the files: the last frame bears the number of frames
                key_frames.append((role, frame - 1))
            elif info:
                unframed.append(f"{names[at]} ({role.upper()} {info.get(role) or 'missing'})")
        clip = ReleaseClip(row, candidates=sequences.get((patient, view), []), key_frames=key_frames)
        clips.add(clip, place=names[at])
    release.draft.report("key-frame-unusable", "key frames are no frame number from 1", unframed)
    absent = sorted(set(splits) - {patient for patient, _ in keys})
    release.draft.report("split-without-row", "patients of the official lists have no clip", absent)
    return clips


def _worst(infos: list[Info]) -> str | None:
    found = {info.get("imagequality", "").capitalize() for info in infos}
    return next((quality for quality in _QUALITIES if quality in found), None)


def _report_infos(infos: Mapping[Key, Info], clips: ClipRows, release: Release) -> None:
    without = [clip.clip_id for clip in clips if (clip.row["patient_id"], clip.clip_id[-3:]) not in infos]
    release.draft.report("info-missing", "clips have no Info_2CH.cfg or Info_4CH.cfg", without)
    fractions: dict[str, set[float]] = defaultdict(set)
    for clip in clips:
        if clip.row["lvef_pct"] is not None:
            fractions[clip.row["patient_id"]].add(clip.row["lvef_pct"])
    release.draft.report(
        "label-differs",
        "patients have another ejection fraction in each view",
        [
            f"{patient} ({', '.join(f'{value:g}' for value in sorted(values))})"
            for patient, values in fractions.items()
            if len(values) > 1
        ],
    )
