"""Both CardiacNet data sets: folders that end in .nii, ids that restart in each class, the published split."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath

from embedstore.manifest import RecipeOutcome, RecipeRequest
from embedstore.media import stem_without_media_suffix
from manifests.clips import SOURCE_ROW, ClipRows, ReleaseClip, named_stem
from manifests.published_split import PublishedShares, set_published_split
from manifests.release import Progress, Release, open_release

__all__ = ["CardiacnetRecipe"]

REVISION = 1
_SHARES = PublishedShares(test=0.20, val_of_rest=0.10 / 0.80)
_SPLIT_ORDER = ("train", "val", "test")  # rows of the benchmark's file, each split in the order of its paths
_VIEW_NUMBER = re.compile(r"-\d+$")
_CONTROL = re.compile(r"PHI(?![A-Z])", re.IGNORECASE)  # PHI01, PHI01_image, PHI-1-4


class CardiacnetRecipe:
    """A4C sequences of patients with a disease and of others.

    Parameters
    ----------
    disease : str
        ``"ASD"`` or ``"PAH"``: folders ``ASD`` and ``Non-ASD``, label column ``asd``.
    facts_file : Path
        The `dataset.yaml`.
    """

    def __init__(self, disease: str, *, facts_file: Path) -> None:
        self.disease = disease
        self.name = f"cardiacnet-{disease.lower()}"
        self.summary = f"CardiacNet-{disease}: A4C sequences of patients with and without {disease}"
        self._facts_file = facts_file

    def make(self, request: RecipeRequest, *, progress: Progress | None = None) -> RecipeOutcome:
        """Make the manifest.

        Raises
        ------
        UnknownNameError
            The root is not there or of another data set.
        StorageError
            The splits file cannot be read.
        """
        release = open_release(self.name, request, facts_file=self._facts_file)
        release.draft.patient_ids = "derived(file name within its class folder)"
        files = self._find_files(release)
        clips = self._read_clips(files, release)
        self._report_shared_ids(clips, release)
        if request.splits is None:
            self._draw_split(clips, release)
        taken = {path for path, _ in files}
        release.leave_out(
            "segmentations",
            lambda path: path.as_posix() not in taken and _is_nifti(path) and "label" in path.as_posix().lower(),
        )
        release.leave_out(
            "clips of the other disease",
            lambda path: path.as_posix() not in taken and _is_nifti(path) and self._is_other(path),
        )
        release.add_clips(clips, progress=progress, has_fps_column=False)
        return release.finish(
            clips, recipe=f"{self.name} {REVISION}", labels_in_splits={self.disease: self.disease.lower()}
        )

    def _find_files(self, release: Release) -> list[tuple[str, str]]:
        """Return (path, class folder) of every sequence, in the order of the paths, as the benchmark sorts them."""
        classes = {folder.lower(): folder for folder in (self.disease, f"Non-{self.disease}")}
        files = []
        for path in sorted(release.paths):
            parts = PurePosixPath(release.root.name, path).parts[:-1]
            folder = next((classes[part.lower()] for part in reversed(parts) if part.lower() in classes), None)
            is_label = any("label" in part.lower() for part in PurePosixPath(path).parts[-2:])
            if folder is not None and _is_nifti(PurePosixPath(path)) and not is_label:
                files.append((path, folder))
        return files

    def _is_other(self, path: PurePosixPath) -> bool:
        other = "pah" if self.disease == "ASD" else "asd"
        return any(part.lower() in (other, f"non-{other}") for part in path.parts)

    def _read_clips(self, files: list[tuple[str, str]], release: Release) -> ClipRows:
        named = [(path, folder, _unique_id(path, folder)) for path, folder in files]
        counts = Counter(unique_id for _, _, unique_id in named)
        clips = ClipRows()
        for path, folder, unique_id in named:
            stem = named_stem(path)
            row = {
                "clip_id": unique_id if counts[unique_id] == 1 else f"{folder}/{unique_id}",
                "unique_id": unique_id,
                "patient_id": f"{folder}/{_patient_of(stem)}",
                "benchmark_patient_id": _benchmark_patient_of(stem),
                self.disease.lower(): folder == self.disease,
                "group": folder,
                "phi_control": _CONTROL.match(stem) is not None,
                "view": "A4C",
                "view_source": "given",
                "modality": "2d",
            }
            clips.add(ReleaseClip(row, candidates=[path]), place=path)
        absent = [
            folder for folder in (self.disease, f"Non-{self.disease}") if all(folder != own for _, own in files)
        ]
        release.draft.report("class-absent", "classes have no sequence; the data set has both", absent)
        shared = sorted(unique_id for unique_id, count in counts.items() if count > 1)
        release.draft.report("id-in-both-classes", "ids stand in both classes and bear the class here", shared)
        return clips

    def _report_shared_ids(self, clips: ClipRows, release: Release) -> None:
        groups: dict[str, set[str]] = {}
        for clip in clips:
            groups.setdefault(clip.row["benchmark_patient_id"], set()).add(clip.row["group"])
        both = [patient for patient, found in groups.items() if len(found) > 1]
        release.draft.report(
            "patient-in-both-classes",
            "patient ids stand in both classes; numbering restarts, so they are taken for different people",
            both,
        )

    def _draw_split(self, clips: ClipRows, release: Release) -> None:
        positive: dict[str, bool] = {}
        for clip in clips:
            patient = clip.row["benchmark_patient_id"]
            positive[patient] = positive.get(patient, False) or bool(clip.row[self.disease.lower()])
        set_published_split(clips, release, positive, patient_column="benchmark_patient_id", shares=_SHARES)
        ordered = sorted(clips, key=lambda clip: _SPLIT_ORDER.index(clip.row.get("split") or "train"))
        for at, clip in enumerate(ordered):
            clip.row[SOURCE_ROW] = at


def _is_nifti(path: PurePosixPath) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _unique_id(path: str, folder: str) -> str:
    """Return the benchmark's id: the folder of the sequence and its name, both without suffix.

    Examples
    --------
    >>> _unique_id("ASD/001_image.nii/patient-2-4_image.nii", "ASD"), _unique_id("ASD/001_image.nii", "ASD")
    ('001_image_patient-2-4', '001_image')
    """
    parent = stem_without_media_suffix(PurePosixPath(path).parent.name)
    stem = named_stem(path)
    return stem if parent.lower() in ("", folder.lower()) else f"{parent}_{stem.removesuffix('_image')}"


def _benchmark_patient_of(stem: str) -> str:
    """Return the patient of the published rule: ``patient-2`` of ``patient-2-4_image``, else the whole name."""
    return "-".join(stem.split("-")[:2]) if stem.startswith("patient-") else stem


def _patient_of(stem: str) -> str:
    """Return the patient within its class: the name without ``_image`` and without the number of the view.

    Examples
    --------
    >>> _patient_of("patient-2-4_image"), _patient_of("patient23-4_image"), _patient_of("P4-4"), _patient_of("PHI01")
    ('patient-2', 'patient23', 'P4', 'PHI01')
    """
    name = stem.removesuffix("_image")
    if name.startswith("patient-"):
        return _benchmark_patient_of(name)
    return _VIEW_NUMBER.sub("", name) or name
