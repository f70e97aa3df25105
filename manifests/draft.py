"""`Draft`: a manifest in the making. What recipes do alike once they know their rows: media, patients, splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedstore.manifest import (
    DatasetFacts,
    Finding,
    Manifest,
    ManifestField,
    draw_patient_split,
    normalise_split,
)
from embedstore.media.survey import FileFacts
from manifests.splits import SplitsFile
from manifests.tables import found, is_kind

__all__ = ["FPS_HEADER", "Draft"]

FPS_HEADER = "fps_header"

# What was found in the file counts, whatever a table says.
_OF_THE_FILE = ("n_frames", "height", "width")
# From the file where the table does not say. Patients are another matter: see `Draft.set_patients`.
_OF_THE_TAGS = (
    "fps",
    "study_id",
    "modality",
    "manufacturer",
    "model",
    "heart_rate_bpm",
    "spacing_x_mm",
    "spacing_y_mm",
)


@dataclass
class Draft:
    """Rows with their files, and what a person should know about them.

    Attributes
    ----------
    rows : list of dict
        Values by manifest column.
    files : list of FileFacts or None
        The file of each row, None for a row without one.
    findings : list of Finding
    fields : list of ManifestField
        Columns beyond the standard ones.
    patient_ids, split_rule : str
        Statements of the manifest.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    files: list[FileFacts | None] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    fields: list[ManifestField] = field(default_factory=list)
    patient_ids: str = "unknown"
    split_rule: str = "provided"

    def add_row(self, row: dict[str, Any], file: FileFacts | None) -> None:
        """Add a clip and its file."""
        self.rows.append(row)
        self.files.append(file)

    def report(self, kind: str, message: str, names: Sequence[str]) -> None:
        """Add a finding that counts and lists ``names``, where there are any."""
        self.findings += found(kind, message, names)

    def ids_where(self, holds: Callable[[Mapping[str, Any], FileFacts | None], bool]) -> list[str]:
        """Return the clip ids of the rows for which ``holds``."""
        pairs = zip(self.rows, self.files, strict=True)
        return [_id_of(row) for row, file in pairs if holds(row, file)]

    # -- media ----------------------------------------------------------------------------------------------

    def take_media_values(self, *, has_fps_column: bool) -> None:
        """Fill in what the files say: content, size and frame count always, the rest where the row does not.

        Parameters
        ----------
        has_fps_column : bool
            Whether the frame rate comes from a table: then that of the file is kept beside it, as ``fps_header``.
        """
        differing, counted = [], []
        for row, file in zip(self.rows, self.files, strict=True):
            if file is None:
                continue
            claimed, row["sha256"] = row.get("sha256"), file.sha256
            if claimed and file.sha256 and claimed.lower() != file.sha256:
                differing.append(f"{_id_of(row)} (sha256)")
            probe = file.probe
            if probe is None:
                continue
            for name in _OF_THE_FILE:
                value = getattr(probe, name)
                if not value:  # 0 frames: what is left of a file that was cut short
                    continue
                claimed, row[name] = row.get(name), value
                if claimed is not None and not (is_kind(str(claimed), "number") and float(claimed) == value):
                    differing.append(f"{_id_of(row)} ({name} {claimed}, in the file {value})")
            for name in _OF_THE_TAGS:
                if row.get(name) is None:
                    row[name] = getattr(probe, name)
            if has_fps_column:
                row[FPS_HEADER] = probe.fps
            if None not in (probe.n_header_frames, probe.n_frames) and probe.n_header_frames != probe.n_frames:
                counted.append(f"{_id_of(row)} ({probe.n_frames}, its header says {probe.n_header_frames})")
        if has_fps_column and any(file is not None for file in self.files):
            self.fields.append(ManifestField(name=FPS_HEADER, role="extra", kind="number", unit="1/s"))
        self.report("table-differs", "values of the table differ from the file's, which were taken", differing)
        self.report("frame-count", "clips hold another number of frames than their header says", counted)

    # -- patients -------------------------------------------------------------------------------------------

    def set_patients(self, *, has_column: bool) -> None:
        """State where the patients come from: the table's column, else DICOM tags where every file has one.

        The two are never mixed: a table's pseudonym and a tag's record number may be the same person.
        """
        tags = [None if file is None or file.probe is None else file.probe.patient_id for file in self.files]
        n_tagged = sum(tag is not None for tag in tags)
        if has_column:
            self._check_patients(tags)
        elif self.rows and n_tagged == len(self.rows):
            self.patient_ids = "derived(DICOM PatientID)"
            for row, tag in zip(self.rows, tags, strict=True):
                row["patient_id"] = tag
            if len(set(tags)) == 1 and len(tags) > 1:
                self.findings.append(
                    Finding(
                        "patient-single",
                        f"all {len(tags)} files bear one DICOM PatientID; if it is a placeholder, give a table "
                        "with a patient_id column",
                    )
                )
        else:
            tagged = f" ({n_tagged} of {len(tags)} files bear a DICOM PatientID)" if n_tagged else ""
            self.findings.append(
                Finding(
                    "patients-unknown",
                    f"nothing names the patients{tagged}: say which column of a table does with "
                    "--column patient_id=COLUMN",
                )
            )

    def _check_patients(self, tags: Sequence[str | None]) -> None:
        without = self.ids_where(lambda row, _: row.get("patient_id") is None)
        self.patient_ids = "unknown" if len(without) == len(self.rows) else "provided"
        self.report("patient-missing", f"of {len(self.rows)} clips have no patient and count as their own", without)
        patients_of: dict[str, set[str]] = defaultdict(set)
        for row, tag in zip(self.rows, tags, strict=True):
            if tag is not None and row.get("patient_id") is not None:
                patients_of[tag].add(row["patient_id"])
        # One tag everywhere is a placeholder; several tags that each stand for one patient are the rule.
        parted = {tag: sorted(patients) for tag, patients in patients_of.items() if len(patients) > 1}
        if len(patients_of) > 1:
            self.report(
                "patient-differs",
                "DICOM PatientIDs stand for several patients of the table",
                [f"{tag} ({', '.join(patients)})" for tag, patients in sorted(parted.items())],
            )

    # -- splits ---------------------------------------------------------------------------------------------

    def take_splits(self, splits: SplitsFile) -> None:
        """Take each clip's split from a splits file; clips that it does not cover have none."""
        assigned, findings = splits.assign(
            [[str(row[key]) for key in ("clip_id", "path") if row.get(key)] or [""] for row in self.rows],
            studies=[row.get("study_id") for row in self.rows],
            patients=[row.get("patient_id") for row in self.rows],
        )
        self.findings += findings
        differing = []
        for row, split in zip(self.rows, assigned, strict=True):
            before = normalise_split(row.get("split"))
            if before is not None and before != split:
                differing.append(f"{_id_of(row)} ({before}, now {split or 'none'})")
            row["split"] = split
        self.report("split-differs", "clips had another split in the table; the splits file was taken", differing)
        self.split_rule = "provided (splits file)"

    def normalise_splits(self) -> None:
        """Bring the splits of the rows to the names in use; empty ones stay empty and are counted."""
        for row in self.rows:
            row["split"] = normalise_split(row.get("split"))
        without = self.ids_where(lambda row, _: row["split"] is None)
        self.report("split-missing", f"of {len(self.rows)} clips have no split and are in no task", without)

    def draw_splits(self, seed: int) -> None:
        """Draw a split by patient; clips without a patient count as their own."""
        patients = [
            f"clip:{_id_of(row)}" if row.get("patient_id") is None else str(row["patient_id"]) for row in self.rows
        ]
        for row, split in zip(self.rows, draw_patient_split(patients, seed=seed), strict=True):
            row["split"] = split
        unit = "clip, patients unknown" if self.patient_ids == "unknown" else "patient"
        self.split_rule = f"drawn by {unit}: seed {seed}, 50/20/30 % train/val/test"
        self.findings.append(Finding("split-drawn", f"no column gives a split: one was drawn from the seed {seed}"))

    # -- the manifest ---------------------------------------------------------------------------------------

    def to_manifest(
        self, dataset: DatasetFacts, *, recipe: str, key_frames: Sequence[tuple[str, str, int]] = ()
    ) -> Manifest:
        """Return the manifest; whether it breaks a rule is asked of it afterwards."""
        return Manifest.from_rows(
            self.rows,
            dataset=dataset,
            fields=self.fields,
            key_frames=key_frames,
            patient_ids=self.patient_ids,
            split_rule=self.split_rule,
            recipe=recipe,
        )


def _id_of(row: Mapping[str, Any]) -> str:
    return str(row.get("clip_id") or "")
