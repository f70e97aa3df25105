"""Scoring of predictions that no probe was fitted for: zero-shot, retrieval-augmented, published heads.

Nothing but, where a rule asks for it, one threshold comes from labels, and those are of train. So a data set needs no
training clips where no threshold is asked for, and its controls are: the training mean where there is one, the same
predictions scored on labels permuted by patient (the threshold found again each time), and the same rule on Gaussian
vectors. Facts of the recording cannot enter a rule that is not fitted, so the metadata control says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore import Manifest
from evaltools.cohort import Cohort, NotRunnableError
from evaltools.common_clips import locate_in_common
from evaltools.controls import ShuffledFits, mean_predictions, shuffle_by_patient
from evaltools.features import Located, VectorSource
from evaltools.fitting import Fitted, Targets, class_order
from evaltools.metrics import Floats, Kind
from evaltools.probe_options import ProbeOptions
from evaltools.protocols.protocol import EvalProtocol
from evaltools.recall import as_recall, is_of_one_class
from evaltools.resample import Estimate
from evaltools.result import Result
from evaltools.score_table import Fits, ScoreTable, TableRow, asked_cohorts
from evaltools.task import Task
from evaltools.task_rows import pick_rows, rows_by_fit

__all__ = ["Answers", "UnfittedProtocol", "UnfittedTable", "labels_of", "unfitted_tables"]

_NO_TRAIN = "no labelled training clip"
_NOT_FITTED = "nothing is fitted, so facts of the recording cannot enter"


@dataclass(frozen=True, kw_only=True)
class UnfittedProtocol(EvalProtocol):
    """A published rule by name.

    Attributes
    ----------
    rules : mapping of {"regression", "classification"} to mapping
        What it can answer, and its settings as JSON values.
    """

    methods: Mapping[Kind, Any] = field(default_factory=dict)
    rules: Mapping[Kind, Mapping[str, Any]]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Which tasks it can measure."""
        return tuple(self.rules)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting as JSON values: of the one rule, or by kind of task."""
        of: dict[str, Any] = {kind: dict(rule) for kind, rule in self.rules.items()}
        expanded: dict[str, Any] = of[self.kinds[0]] if len(of) == 1 else of
        return {**expanded, "n_shuffles": self.n_shuffles}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a rule says of every clip of a cohort.

    Attributes
    ----------
    predict : callable
        From labels (n,), of which those of train may be read, to predictions (n,) or shares (n, K).
    chosen : callable
        From the same labels to JSON values: what was calibrated.
    calibrated : bool
        Whether `predict` looks at the labels at all.
    """

    predict: Callable[[npt.NDArray[Any]], Floats]
    chosen: Callable[[npt.NDArray[Any]], Mapping[str, Any]] = lambda values: {}
    calibrated: bool = False


@dataclass(frozen=True)
class UnfittedTable(ScoreTable):
    """A score table without fits.

    Attributes
    ----------
    spoken : tuple of str
        Classes that rules can answer with, beside those of the labels.
    """

    spoken: tuple[str, ...] = ()

    @cached_property
    def targets(self) -> Targets:
        """Labels of the scored clips; every class counts as known, since none is learnt from train."""
        plain: Targets = Targets.of(self.scored)
        if plain.kind == "regression":
            return plain
        classes = tuple(sorted({*plain.classes, *self.spoken}, key=class_order))
        position = {name: code for code, name in enumerate(classes)}
        values = np.array([position[label] for label in self.scored.labels], dtype=np.intp)
        val = np.flatnonzero(self.scored.in_split("val"))
        return replace(plain, classes=classes, n_known=len(classes), values=values, val=val)

    def answered(
        self, row: TableRow, answers: Answers, *, noise: Answers | None, extras: Mapping[str, Any]
    ) -> list[Result]:
        """Score what a rule answers, every row of the task.

        Parameters
        ----------
        noise : Answers or None
            Of the same rule on Gaussian vectors; without, no controls are run.
        extras : mapping
            See `evaltools.result.Result.extras`; ``notes`` join the result's.
        """
        targets = self.targets
        fitted = Fitted(answers.predict(targets.values)[targets.test], answers.chosen(targets.values))
        controls: dict[str, Floats] = {}
        if noise is not None:
            if len(targets.train):
                controls["mean"] = mean_predictions(targets)
            controls["random"] = noise.predict(targets.values)[targets.test]
        fits = Fits(fitted, controls, None if noise is None else self._permuted(answers))
        results = [table._scored(fits, row, None) for table in self.per_row()]
        stated = [self._stated(result, extras, with_controls=noise is not None) for result in results]
        recall = self.scored.task.recall_on_one_class
        return [as_recall(result) if recall and is_of_one_class(result) else result for result in stated]

    def _permuted(self, answers: Answers) -> ShuffledFits:
        targets = self.targets
        rng = np.random.default_rng(self.seed(self.protocol.name, "shuffled"))
        n = self.protocol.n_shuffles if self.options.n_shuffles is None else self.options.n_shuffles
        plain = answers.predict(targets.values)[targets.test]
        labels, predictions = [], []
        for _ in range(n):
            values = targets.values.copy()
            for rows in (np.concatenate([targets.train, targets.val]), targets.test):
                values[rows] = shuffle_by_patient(targets.values[rows], targets.patients[rows], rng)
            labels.append(values)
            predictions.append(answers.predict(values)[targets.test] if answers.calibrated else plain)
        return ShuffledFits(np.stack(labels, axis=1), np.stack(predictions, axis=1))

    def _stated(self, result: Result, extras: Mapping[str, Any], *, with_controls: bool) -> Result:
        controls = dict(result.controls)
        if with_controls:
            names = result.task.metrics
            if "mean" not in controls:
                controls = {"mean": _refused(names, _NO_TRAIN), **controls}
            controls["metadata"] = _refused(names, _NOT_FITTED)
        notes = (*result.provenance.notes, *extras.get("notes", ()))
        kept = {**result.extras, **{name: value for name, value in extras.items() if name != "notes"}}
        return replace(result, controls=controls, extras=kept, provenance=replace(result.provenance, notes=notes))


def _refused(names: Sequence[str], reason: str) -> dict[str, Estimate]:
    return {name: Estimate(None, ci_reason=reason) for name in names}


def labels_of(manifest: Manifest, task: Task) -> list[str]:
    """Return the classes of a task's labels in a manifest; none for numbers."""
    if task.kind == "regression":
        return []
    cohort, _ = asked_cohorts(manifest, task, ProbeOptions(allow_leakage=True))
    return sorted(set(cohort.labels), key=class_order)


def unfitted_tables(
    pooled: Sequence[tuple[VectorSource, str]],
    manifest: Manifest,
    *,
    task: Task,
    protocol: EvalProtocol,
    options: ProbeOptions,
    spoken: Sequence[str] = (),
) -> list[tuple[UnfittedTable, list[Located]]]:
    """Return a table for each choice of clips: those that all sets have, and where the vectors of each stand.

    Parameters
    ----------
    pooled : sequence of (VectorSource, str)
        Sets, and which of their vectors are read: a name of `evaltools.features.POOLS`.
    spoken : sequence of str
        Classes that can be answered.

    Raises
    ------
    UnknownNameError
        A column or row is not known, or folds are asked for.
    ContentError
        Labels, leakage or missing vectors forbid a result.
    """
    for column in options.by:
        manifest.column(column)
    tables = []
    for of_fit in rows_by_fit(pick_rows(task.on(manifest.name).rows, options.rows)):
        cohort, whole = asked_cohorts(manifest, task, options, asked_of=of_fit[0].asked_of)
        _require_scorable(cohort)
        located, common = locate_in_common(pooled, cohort, allow_missing=options.allow_missing)
        scored = cohort.take(common)
        _require_scorable(scored)
        table = UnfittedTable(cohort, scored, common, protocol, options, of_fit, whole, tuple(spoken))
        tables.append((table, located))
    return tables


def _require_scorable(cohort: Cohort) -> None:
    where = f"task {cohort.task.name!r} on {cohort.dataset!r}"
    if not cohort.in_split("test").any():
        raise NotRunnableError(f"{where} has no labelled clip in the split 'test', which is needed to score")
