"""`import_predictions`: other people's predictions, in CardioBench's columns, scored by our statistics.

Predictions are joined by id and never by position. What is missing is refused or counted, never lost: an inner join
would score a part of the test set under the name of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstore import EncoderSpec, Manifest
from embedstore.errors import FormatError, MissingVectorsError, UnknownNameError
from embedstore.files import hash_file
from evaltools.cardiobench.csv_files import read_csv
from evaltools.cardiobench.layout import PredictionFile, file_of
from evaltools.cardiobench.metrics import VIEWS, view_probabilities
from evaltools.cardiobench.statistics import Habits
from evaltools.cohort import Cohort, NotRunnableError
from evaltools.features import Located
from evaltools.metrics import Floats
from evaltools.probe_options import ProbeOptions
from evaltools.result import Result
from evaltools.score_table import TableRow, asked_cohorts
from evaltools.task import Task
from evaltools.task_rows import EVERYTHING, TaskRow, pick_rows, rows_by_fit
from evaltools.unfitted import Answers, UnfittedProtocol, UnfittedTable

__all__ = ["IMPORTED", "import_predictions"]

IMPORTED = UnfittedProtocol(
    name="imported",
    summary="Predictions that another program made.",
    source="a file",
    rules={"regression": {}, "classification": {}},
)
_NAMED = 5
_ROUNDING = 1e-9
_UNITS = ("patient_id", "study_id")  # ids that are not of one clip
_SPELLINGS: Mapping[str, Any] = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


@dataclass(frozen=True, kw_only=True)
class _FileSource:
    """A file of predictions in the place of a set of vectors."""

    dataset: str
    spec: EncoderSpec
    set_id: str
    index: pa.Table = field(default_factory=lambda: pa.table({}))
    failures: pa.Table = field(default_factory=lambda: pa.table({}))
    frame_index: pa.Table = field(default_factory=lambda: pa.table({}))
    provenance: Mapping[str, Any] = field(default_factory=dict)
    clips: npt.NDArray[Any] = field(default_factory=lambda: np.zeros((0, 1)))

    @property
    def fingerprint(self) -> str:
        return self.set_id

    def array(self, kind: str) -> None:
        return None


@dataclass(frozen=True)
class _Read:
    """What a file says.

    Attributes
    ----------
    kind : PredictionFile
    values : dict of str to array
        Id to a number (), or shares (K,).
    classes : tuple of str
    notes : tuple of str
    """

    kind: PredictionFile
    values: Mapping[str, Floats]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def import_predictions(
    manifest: Manifest, path: str | Path, *, task: Task, options: ProbeOptions | None = None, model: str | None = None
) -> list[Result]:
    """Score a file of predictions.

    Parameters
    ----------
    path : str or Path
        A CSV with CardioBench's columns for the task and data set.
    options : ProbeOptions
        ``allow_missing`` scores the clips that have predictions; ``statistics`` as in a probe.
    model : str, optional
        Name in the results; the name of the file without.

    Raises
    ------
    UnknownNameError
        CardioBench has no such task there, columns are missing, or a row of the task is not known.
    FormatError
        A value is no number, label or share.
    MissingVectorsError
        Test clips have no prediction.
    ContentError
        As `evaltools.probe.probe`.
    """
    chosen = replace(options or ProbeOptions(), near_duplicates=False, controls=False)
    if chosen.cv is not None:
        raise UnknownNameError("predictions from a file were not made by folds; leave --cv out")
    task = chosen.task_of(task)
    habits = Habits.without(chosen.habits_off)
    path = Path(path)
    header, lines = read_csv(path)
    kind = file_of(task.name, manifest.name, header=header, name=path.name)
    read = _read_values(path, kind, header, lines, task, chosen, habits)
    name = model or path.stem.removesuffix(kind.suffix)
    source = _FileSource(
        dataset=manifest.name,
        spec=EncoderSpec(name=name, variant="imported", clip_dim=1, sampling=None),
        set_id=hash_file(path).sha256,
    )
    results: list[Result] = []
    task_rows = _rows_of(task, manifest, kind, chosen)
    of_units = kind.id_column in _UNITS and kind.where_view is None
    for of_fit in rows_by_fit(task_rows):
        # What is predicted for a study does not depend on which of its images a probe would be asked of.
        asked_of = EVERYTHING if of_units else of_fit[0].asked_of
        cohort, whole = asked_cohorts(manifest, task, chosen, asked_of=asked_of)
        cohort = _to_score(cohort, read, task, chosen, habits)
        values, known, strange = _joined(cohort, manifest, read)
        if not known.any():
            raise UnknownNameError(
                f"no id of {path.name} is one of {manifest.name!r} ({kind.id_header}, such as "
                f"{', '.join(list(read.values)[:3])}); is it of another data set?"
            )
        missing = cohort.clip_ids[~known]
        if len(missing) and not chosen.allow_missing:
            named = ", ".join(str(clip) for clip in missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
            raise MissingVectorsError(
                f"{len(missing)} of {len(cohort)} test clips of {manifest.name!r} have no prediction in {path.name} "
                f"({named}); give --allow-missing to score the rest"
            )
        scored = cohort.take(known)
        test_whole = None if whole is None else whole.take(whole.in_split("test"))
        table = UnfittedTable(cohort, scored, known, IMPORTED, chosen, of_fit, test_whole, read.classes)
        predictions = _in_order(values[known], read.classes, table)
        notes = (*read.notes, *([f"{strange} ids of the file are of no clip that is scored"] if strange else []))
        row = TableRow(source, "none", Located(np.where(known, 0, -1), {}), dim=0)
        extras = {"file": path.name, "notes": notes}
        results += table.answered(row, _as_answers(predictions), noise=None, extras=extras)
    return sorted(results, key=lambda result: [one.name for one in task_rows].index(result.row.name))


def _as_answers(predictions: Floats) -> Answers:
    return Answers(predict=lambda _: predictions)


def _rows_of(task: Task, manifest: Manifest, kind: PredictionFile, options: ProbeOptions) -> tuple[TaskRow, ...]:
    """Return the rows that a file can answer: its own where it holds patients, studies or one view."""
    rows = task.on(manifest.name).rows
    if kind.id_column in _UNITS or kind.where_view is not None:
        return pick_rows(rows, (kind.row,))
    return pick_rows(rows, options.rows)


def _to_score(cohort: Cohort, read: _Read, task: Task, options: ProbeOptions, habits: Habits) -> Cohort:
    """Return the clips that are scored: those of test, and all with predictions where CardioBench takes any."""
    kind = read.kind
    every_split = (
        options.statistics == "cardiobench"
        and habits.view_all_splits
        and (task.name, cohort.dataset) == ("view", "camus")
    )
    if every_split:
        known = np.array([str(clip) in read.values for clip in cohort.clip_ids], dtype=np.bool_)
        cohort = replace(cohort, splits=np.where(known, "test", cohort.splits.astype(str)).astype(object))
    kept = cohort.in_split("test")
    if kind.where_view is not None:
        kept &= np.array(cohort.column("view"), dtype=object) == kind.where_view
    cohort = cohort.take(kept)
    if not len(cohort):
        raise NotRunnableError(f"task {task.name!r} on {cohort.dataset!r} has no labelled clip to score")
    return cohort


def _joined(cohort: Cohort, manifest: Manifest, read: _Read) -> tuple[Floats, npt.NDArray[np.bool_], int]:
    """Return a value a clip, which clips have one, and how many ids are of no clip."""
    if read.kind.id_column == "clip_id":
        ids = [str(clip) for clip in cohort.clip_ids]
    else:
        ids = [str(value) for value in cohort.column(read.kind.id_column)]
    known = np.array([name in read.values for name in ids], dtype=np.bool_)
    shape = next(iter(read.values.values())).shape
    values = np.array([read.values.get(name, np.zeros(shape)) for name in ids], dtype=np.float64)
    return values, known, len(set(read.values) - set(ids))


def _in_order(values: Floats, classes: Sequence[str], table: UnfittedTable) -> Floats:
    """Bring shares into the order of the table's classes."""
    if not classes:
        return values
    shares = np.zeros((len(values), len(table.targets.classes)))
    for code, name in enumerate(classes):
        shares[:, table.targets.classes.index(name)] = values[:, code]
    return shares


# -- values ---------------------------------------------------------------------------------------------------


def _read_values(
    path: Path,
    kind: PredictionFile,
    header: Sequence[str],
    lines: Sequence[Mapping[str, str]],
    task: Task,
    options: ProbeOptions,
    habits: Habits,
) -> _Read:
    ids = [_plain_id(line.get(kind.id_header, ""), kind) for line in lines]
    first: dict[str, int] = {}
    for at, name in enumerate(ids):
        first.setdefault(name, at)
    notes = [f"{len(ids) - len(first)} rows repeat an id; the first counts"] if len(first) < len(ids) else []
    kept = list(first.values())
    made: Floats
    classes: tuple[str, ...] = ()
    if task.name == "view":
        shares = _shares(path, header, [lines[at] for at in kept], options, habits)
        # A view that a model never gives a share to, up to the rounding of 1 - sum, is none of its classes.
        spoken = np.asarray(shares.max(axis=0) > _ROUNDING)
        made, classes = shares[:, spoken], tuple(view for view, is_said in zip(VIEWS, spoken, strict=True) if is_said)
    elif task.kind == "regression":
        made = np.array([_number(path, lines[at].get(kind.value, ""), at) for at in kept])
    else:
        classes = ("false", "true")
        made, more = _binary(path, kind, header, [lines[at] for at in kept])
        notes += more
    return _Read(kind, dict(zip(first, made, strict=True)), classes, tuple(notes))


def _plain_id(text: str, kind: PredictionFile) -> str:
    """Return an id as the manifest has it: EchoNet-Dynamic and -LVH without .avi, EchoNet-Pediatric with it."""
    if kind.id_column == "clip_id" and kind.id_header in ("FileName", "HashedFileName"):
        return text.removesuffix(".avi")
    if kind.id_column == "file_name" and text and not text.endswith(".avi"):
        return f"{text}.avi"
    return text


def _number(path: Path, text: str, at: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FormatError(
            f"{path.name} line {at + 2} holds {text!r} where a finite number belongs; mend or leave it out"
        )
    return value


def _binary(
    path: Path, kind: PredictionFile, header: Sequence[str], lines: Sequence[Mapping[str, str]]
) -> tuple[Floats, list[str]]:
    """Return shares (m, 2) whose larger one is the label of the file."""
    labels = []
    for at, line in enumerate(lines):
        text = line.get(kind.value, "")
        if text not in _SPELLINGS:
            raise FormatError(f"{path.name} line {at + 2} holds {text!r} in {kind.value}, which must be 0 or 1")
        labels.append(_SPELLINGS[text])
    hard = np.array(labels)
    one_hot = np.eye(2)[hard]
    if kind.probability is None or kind.probability not in header:
        return one_hot, ["the file holds labels only, so that AUROC and AUPRC rank 0 and 1"]
    shares = np.array([_number(path, line.get(kind.probability or "", ""), at) for at, line in enumerate(lines)])
    if ((shares < 0) | (shares > 1)).any():
        raise FormatError(f"{path.name}: {kind.probability} must lie between 0 and 1")
    against = int(((shares > 0.5) != (hard == 1)).sum() - ((shares == 0.5) & (hard == 1)).sum())
    if against:
        return one_hot, [
            f"{against} labels contradict their {kind.probability} at 0.5, so the labels were taken and AUROC and "
            "AUPRC rank 0 and 1"
        ]
    shares = np.where((shares == 0.5) & (hard == 1), np.nextafter(0.5, 1.0), shares)
    return np.column_stack([1.0 - shares, shares]), []


def _shares(
    path: Path, header: Sequence[str], lines: Sequence[Mapping[str, str]], options: ProbeOptions, habits: Habits
) -> Floats:
    """Return shares (m, 6) of `VIEWS`."""
    needed = [f"prob_{view}" for view in VIEWS[:-1]]
    absent = [name for name in needed if name not in header]
    if absent:
        raise UnknownNameError(f"{path.name} has no column {absent[0]}; views need {', '.join(needed)}")
    names = [*needed, "prob_Other"] if "prob_Other" in header else needed
    raw = np.array([[_number(path, line.get(name, ""), at) for name in names] for at, line in enumerate(lines)])
    if (raw < 0).any() or (raw.sum(axis=1) <= 0).any():
        raise FormatError(f"{path.name}: the shares of a row must be 0 or more, and not all 0")
    shares = raw if raw.shape[1] == len(VIEWS) else np.column_stack([raw, np.zeros(len(raw))])
    from_sum = options.statistics == "cardiobench" and habits.other_from_sum
    return view_probabilities(shares, other_from_sum=from_sum)
