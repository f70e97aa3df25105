"""`Cohort`: the clips that a task is asked of: whose they are, in which split, with which label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError, LeakageError, ManifestError, UnknownNameError, did_you_mean
from embedstore.manifest import SPLITS, Manifest
from embedstore.where import Where, parse_where
from evaltools.task import Task
from evaltools.task_rows import EVERYTHING

__all__ = ["Cohort", "NotRunnableError", "build_cohort", "patients_of", "require_runnable"]

_NAMED = 5
Labels = npt.NDArray[Any]


class NotRunnableError(ContentError):
    """A data set has the label column but cannot answer the task: its labels or splits do not allow a probe."""

    kind = "not-runnable"


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Labelled clips of one manifest that stand in a split.

    Attributes
    ----------
    manifest : Manifest
    task : Task
    rows : (n,) int
        Rows of the manifest.
    clip_ids, patients, splits : (n,) object
        Texts; a clip without a known patient is its own.
    labels : (n,) float64 or object
        Numbers for regression, class names for classification.
    n_unlabelled : int
        Clips that the expression selects and that have a split but no label.
    n_without_split : int
        Clips that the expression selects and that are in no split.
    leakage : str
        What is known of patients and content in two splits.
    """

    manifest: Manifest
    task: Task
    rows: npt.NDArray[np.intp]
    clip_ids: Labels
    patients: Labels
    splits: Labels
    labels: Labels
    n_unlabelled: int
    n_without_split: int
    leakage: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.manifest.name

    def take(self, kept: npt.NDArray[np.bool_]) -> Cohort:
        """Return the cohort of the clips where ``kept`` (n,) is true."""
        names = ("rows", "clip_ids", "patients", "splits", "labels")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def in_split(self, *names: str) -> npt.NDArray[np.bool_]:
        """Return which clips stand in one of the named splits, (n,)."""
        return np.isin(self.splits.astype(str), names)

    def column(self, name: str) -> list[Any]:
        """Return a manifest column for the clips of the cohort."""
        values = self.manifest.column(name)
        return [values[row] for row in self.rows]


def build_cohort(
    manifest: Manifest,
    task: Task,
    *,
    where: Where | None = None,
    allow_leakage: bool = False,
    use_splits: bool = True,
    asked_of: str | None = None,
) -> Cohort:
    """Select the clips that a task is asked of.

    Parameters
    ----------
    asked_of : str, optional
        Expression in place of the one that the task has for the data set; ``everything`` for none.
    use_splits : bool
        Without, clips in no split are selected too, all stand in ``train``, and what must not stand in two splits
        must not be of two patients, for the folds of a cross-validation to be made of.

    Raises
    ------
    UnknownNameError
        The manifest has no such label column, or the expression names an unknown one.
    ManifestError
        A label is no number or not finite; the message names clips.
    LeakageError
        A patient, or identical content, stands in two splits.
    """
    labels = _labels(manifest, task)
    selected = np.ones(len(manifest), dtype=np.bool_) if where is None else where.mask(manifest.table)
    asked = asked_of or task.on(manifest.name).asked_of or EVERYTHING
    if asked != EVERYTHING:
        selected &= parse_where(asked).mask(manifest.table)
    splits = np.array(manifest.column("split"), dtype=object)
    in_split = np.isin(splits.astype(str), SPLITS)
    if not use_splits:
        splits[:] = "train"
        in_split[:] = True
    labelled = np.array([label is not None for label in labels], dtype=np.bool_) & _counts_as_label(manifest, task)
    rows = np.flatnonzero(selected & in_split & labelled)
    known = [labels[row] for row in rows]
    cohort = Cohort(
        manifest=manifest,
        task=task,
        rows=rows,
        clip_ids=np.array(manifest.clip_ids, dtype=object)[rows],
        patients=np.array(patients_of(manifest), dtype=object)[rows],
        splits=splits[rows],
        labels=np.array(known, dtype=np.float64 if task.kind == "regression" else object),
        n_unlabelled=int((selected & in_split & ~labelled).sum()),
        n_without_split=int((selected & ~in_split).sum()),
        leakage="checked",
    )
    return replace(cohort, leakage=_leakage(cohort, allow=allow_leakage, by_patient=not use_splits))


def patients_of(manifest: Manifest) -> Sequence[str]:
    """Return whose each clip is, in the manifest's order; a clip without a known patient is its own."""
    if manifest.patient_ids == "unknown":
        return [f"clip:{clip_id}" for clip_id in manifest.clip_ids]
    return manifest.patients


def _labels(manifest: Manifest, task: Task) -> list[Any]:
    """Return labels by manifest row: float or class name, None where there is none."""
    column = task.column_of(manifest.name)
    if column not in manifest.fields:
        raise UnknownNameError(
            f"task {task.name!r} needs the column {column!r}, which manifest {manifest.name!r} does not have"
            f"{did_you_mean(column, manifest.labels())}"
        )
    bad = [
        f"{clip_id} ({text})"
        for (name, clip_id), text in ((key.split("\t", 1), text) for key, text in manifest.unreadable.items())
        if name == column
    ]
    labels: list[Any] = []
    for clip_id, value in zip(manifest.clip_ids, manifest.column(column), strict=True):
        label = value if value is None else _number(value) if task.kind == "regression" else _class_name(value)
        if value is not None and label is None:
            bad.append(f"{clip_id} ({value})")
        elif task.classes:
            label = task.classes.get(str(label))
        labels.append(label)
    if bad:
        wanted = "finite numbers" if task.kind == "regression" else "classes"
        raise ManifestError(
            f"column {column!r} of {manifest.name!r} must hold {wanted} for the {task.kind} task {task.name!r}, "
            f"got {_listed(bad)}; mend the manifest's table"
        )
    return labels


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _class_name(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value == int(value) else None
    return str(value)


def _counts_as_label(manifest: Manifest, task: Task) -> npt.NDArray[np.bool_]:
    counts = np.ones(len(manifest), dtype=np.bool_)
    for column, values in task.unlabelled_where.items():
        if column in manifest.fields:
            counts &= np.array([value not in values for value in manifest.column(column)], dtype=np.bool_)
    return counts


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _leakage(cohort: Cohort, *, allow: bool, by_patient: bool) -> str:
    crossing = _in_two_splits(cohort.patients, cohort.splits)
    contents = np.array(cohort.column("sha256"), dtype=object)
    copies = _in_two_splits(contents, cohort.patients if by_patient else cohort.splits)
    found = []
    if crossing:
        found.append(f"{len(crossing)} patients in two splits ({_listed(crossing)})")
    if copies:
        clips = [
            str(clip_id) for clip_id, content in zip(cohort.clip_ids, contents, strict=True) if content in copies
        ]
        parts = "of two patients" if by_patient else "in two splits"
        found.append(f"{len(copies)} identical contents {parts} (clips {_listed(clips)})")
    if found and not allow:
        raise LeakageError(
            f"{cohort.dataset!r} has {' and '.join(found)}, which lets a probe see its test clips; "
            "mend the splits, or give --allow-leakage to mark the result"
        )
    if found:
        return f"allowed: {' and '.join(found)}"
    stated = cohort.manifest.patient_ids
    if stated == "unknown":
        return "unchecked: patients are not known, each clip counts as its own"
    if stated.startswith("one-clip-per-patient"):
        return f"assumed: {stated}"
    return "checked"


def _in_two_splits(names: Labels, splits: Labels) -> list[str]:
    first: dict[Any, Any] = {}
    pairs = zip(names.tolist(), splits.tolist(), strict=True)
    return sorted({str(name) for name, split in pairs if first.setdefault(name, split) != split and name is not None})


def require_runnable(cohort: Cohort, *, one_test_class: bool = False) -> None:
    """Check that a probe can be fitted, chosen and scored.

    Parameters
    ----------
    one_test_class : bool
        Whether test may have one class only.

    Raises
    ------
    NotRunnableError
        One sentence: no labels, an empty split, constant labels, or one class only.
    """
    where = f"task {cohort.task.name!r} on {cohort.dataset!r}"
    if not len(cohort):
        unlabelled = f"; {cohort.n_unlabelled} clips have no label" if cohort.n_unlabelled else ""
        adrift = f"; {cohort.n_without_split} clips are in no split" if cohort.n_without_split else ""
        raise NotRunnableError(f"{where} has no labelled clip in train, val or test{unlabelled}{adrift}")
    for split in SPLITS:
        if not cohort.in_split(split).any():
            needed = {"train": "to fit", "val": "to choose the penalty", "test": "to score"}[split]
            raise NotRunnableError(f"{where} has no labelled clip in the split {split!r}, which is needed {needed}")
    train, val, test = (cohort.labels[cohort.in_split(split)] for split in SPLITS)
    if cohort.task.kind == "regression":
        if np.ptp(train) == 0:
            raise NotRunnableError(f"{where} has the same label {train[0]:g} for every training clip: nothing to fit")
        return
    if not set(val) & set(train):
        raise NotRunnableError(
            f"{where} has no validation clip of a class that stands in train: nothing to choose by"
        )
    for split, labels in (("train", train), ("test", test)):
        if len(set(labels)) < 2 and not (one_test_class and split == "test"):
            raise NotRunnableError(
                f"{where} has one class only, {labels[0]!r}, in the split {split!r}: "
                f"{'nothing to tell apart' if split == 'train' else 'no score would mean anything'}"
            )
