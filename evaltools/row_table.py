"""`RowTable`: the clips of one data set, what is scored of them, and a result from predictions, however they came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore import Manifest
from embedstore.errors import UnknownNameError
from embedstore.identity import derive_seed
from embedstore.where import parse_where
from evaltools.aggregation import Aggregation
from evaltools.cardiobench.numbers import cardiobench_numbers, file_order
from evaltools.cardiobench.statistics import Habits
from evaltools.cohort import Cohort, build_cohort
from evaltools.controls import (
    Shuffled,
)
from evaltools.cross_validation import OFFICIAL, cross_targets, official_targets, parse_cv
from evaltools.detail import EF_CUTOFFS_PCT, agreement, calibration, cutoff_auroc, subgroup_gap
from evaltools.features import Located, VectorSource
from evaltools.fitting import Fitted, Targets, class_order
from evaltools.metrics import Floats
from evaltools.near_duplicates import NearDuplicates
from evaltools.probe_options import ProbeOptions
from evaltools.protocols import EvalProtocol
from evaltools.resample import Estimate
from evaltools.result import Counts, GroupScores, Predictions, Provenance, Result
from evaltools.soundness import pretraining_overlap, uses_oracle_frames
from evaltools.task import Task
from evaltools.task_rows import EVERYTHING, Subgroup, TaskRow

__all__ = ["RowTable", "TableRow", "asked_cohorts"]

_MAX_GROUPS = 20
_UNKNOWN_GROUP = "unknown"
_NAMED = 5


@dataclass(frozen=True)
class TableRow:
    """One set of vectors in a table: pooled how, where its vectors stand, of how many dimensions."""

    source: VectorSource
    pool: str
    located: Located
    dim: int


@dataclass(frozen=True)
class RowTable:
    """What results of one data set share: the clips, their labels, and what is scored.

    Attributes
    ----------
    asked : Cohort
        n clips that the task asks for.
    scored : Cohort
        Those of them that have vectors in every row of the table.
    common : (n,) bool
        Which those are.
    protocol : EvalProtocol
    options : ProbeOptions
    rows : tuple of TaskRow
        What the predictions are put together to, the task's main row without. One table has one fit: its numbers are
        those of the first row, `per_row` has a table for each.
    whole : Cohort or None
        All clips with a label, where the task is asked of some of them only.
    """

    asked: Cohort
    scored: Cohort
    common: npt.NDArray[np.bool_]
    protocol: EvalProtocol
    options: ProbeOptions
    rows: tuple[TaskRow, ...] = ()
    whole: Cohort | None = None

    @property
    def row(self) -> TaskRow:
        """The row that is scored."""
        return (self.rows or self.scored.task.on(self.scored.dataset).rows)[0]

    @cached_property
    def level(self) -> Aggregation:
        """How predictions of clips become those that are scored."""
        return Aggregation(self.row, self.scored, self.targets)

    @cached_property
    def targets(self) -> Targets:
        """Labels of the scored clips, and their splits or folds."""
        if self.options.cv is None:
            return Targets.of(self.scored)
        if self.options.cv == OFFICIAL:
            return official_targets(self.scored, allow_leakage=self.options.allow_leakage)
        return cross_targets(self.scored, parse_cv(self.options.cv), seed=self.seed("cv", self.options.cv))

    def seed(self, *purpose: str | int) -> int:
        """Return the seed of a purpose: of this data set and task, whatever else is evaluated."""
        return derive_seed(self.scored.dataset, self.scored.task.name, *purpose, self.options.seed)

    def estimates(self, predictions: Floats) -> dict[str, Estimate]:
        """Score predictions for the test clips; all of a table share their draws, so their replicates pair."""
        made = self.level.predictions(predictions)
        estimates = self.level.targets.estimates(made, draws=self.options.draws, seed=self.seed("bootstrap"))
        return {name: estimates[name] for name in self.scored.task.metrics}

    def _cardiobench(self, predictions: Predictions) -> dict[str, Any]:
        """Return CardioBench's numbers of predictions of this row."""
        is_number = predictions.probabilities is None
        groups = {
            group.column: [group.group_of(value) for value in self.level.column(self.scored.column(group.column))]
            for group in (self._subgroups() if is_number else [])
        }
        return cardiobench_numbers(
            predictions,
            task=self.scored.task,
            order=file_order(self.scored.manifest, self.scored.task, predictions),
            groups=groups,
            habits=Habits.without(self.options.habits_off),
        )

    def _without_copies(self, near: NearDuplicates, predictions: Floats) -> dict[str, Any]:
        """Return what is known of near-duplicates, with the metrics of the units that have none."""
        touched = self.level.touched(near.flagged)
        known: dict[str, Any] = {**near.to_dict(), "n_units": int(touched.sum()), "metrics_without": None}
        if not touched.any() or touched.all():
            return known
        estimates = self.level.targets.estimates(
            self.level.predictions(predictions),
            draws=self.options.draws,
            seed=self.seed("bootstrap", "without near-duplicates"),
            kept=~touched,
        )
        known["metrics_without"] = {name: estimates[name].to_dict() for name in self.scored.task.metrics}
        return known

    def assemble(
        self,
        row: TableRow,
        fitted: Fitted,
        metrics: Mapping[str, Estimate],
        controls: Mapping[str, Mapping[str, Estimate]],
        *,
        shuffled: Shuffled | None,
        axis: Mapping[str, Any] | None = None,
    ) -> Result:
        """Return the result of predictions, however they came about."""
        source = row.source
        return Result(
            task=self.scored.task,
            dataset=self.scored.dataset,
            encoder=source.spec.name,
            variant=source.spec.variant,
            pool=row.pool,
            protocol=self.protocol.name,
            dim=row.dim,
            metrics=metrics,
            controls=controls,
            n_shuffles=0 if shuffled is None else shuffled.n,
            p_shuffled=None if shuffled is None else shuffled.p,
            groups={group.column: self._groups(group, fitted.predictions) for group in self._subgroups()},
            counts=self._counts(row.located),
            chosen=fitted.chosen,
            seed=self.options.seed,
            draws=self.options.draws,
            provenance=self._provenance(source, fitted),
            predictions=self._predictions(fitted.predictions),
            axis=dict(axis or {}),
            extras=self._detail(fitted.predictions),
            row=self.row,
            units_missing=self._units_missing,
        )

    def _subgroups(self) -> list[Subgroup]:
        """Columns asked for, and those of the task that are known for some scored clip."""
        found = [Subgroup(column=column) for column in self.options.by]
        for group in self.scored.task.on(self.scored.dataset).subgroups:
            if group.column in self.scored.manifest.fields and group.column not in self.options.by:
                known = {value for value in self.level.column(self.scored.column(group.column)) if value is not None}
                found += [group] if known else []
        return found

    @cached_property
    def _units_missing(self) -> tuple[str, ...]:
        """Test units of a label that have no clip of those that the task is asked of."""
        if self.row.level == "clip":
            return ()
        return tuple(self.level.without(self.whole or self.asked))

    def _detail(self, predictions: Floats) -> dict[str, Any]:
        """Return what stands beside the metrics, see `evaltools.detail`."""
        task, targets, made = self.scored.task, self.level.targets, self.level.predictions(predictions)
        draws, seed = self.options.draws, self.seed("bootstrap")
        detail: dict[str, Any] = {}
        if targets.kind == "classification":
            detail["calibration"] = calibration(targets, made, draws=draws, seed=seed)
        else:
            detail["agreement"] = agreement(targets, made, draws=draws, seed=seed)
            if task.name == "lvef":
                detail["cutoffs"] = {
                    f"{cutoff:g}": cutoff_auroc(targets, made, cutoff=cutoff, draws=draws, seed=seed).to_dict()
                    for cutoff in EF_CUTOFFS_PCT
                }
        gaps = {
            group.column: subgroup_gap(
                targets, made, self._group_names(group), metric=task.main_metric, draws=draws, seed=seed
            )
            for group in self._subgroups()
        }
        return {**detail, "gaps": gaps} if gaps else detail

    def _group_names(self, group: Subgroup) -> npt.NDArray[Any]:
        values = [group.group_of(value) for value in self.level.column(self.scored.column(group.column))]
        return np.array([_group_name(value) for value in values], dtype=object)

    def _groups(self, group: Subgroup, predictions: Floats) -> Mapping[str, GroupScores]:
        names = self._group_names(group)
        found = set(names)
        groups = [name for name in (*group.labels, _UNKNOWN_GROUP) if name in found] if group.edges else []
        groups = groups or sorted(found, key=class_order)
        if len(groups) > _MAX_GROUPS:
            raise UnknownNameError(
                f"column {group.column!r} has {len(groups)} different values among the test clips; "
                f"--by needs one with at most {_MAX_GROUPS}"
            )
        targets, made = self.level.targets, self.level.predictions(predictions)
        scores = {}
        for name in groups:
            kept = names == name
            estimates = targets.estimates(
                made, draws=self.options.draws, seed=self.seed("bootstrap", group.column, name), kept=kept
            )
            scores[name] = GroupScores(
                n_scored=int(kept.sum()),
                n_patients=len(set(targets.patients[kept])),
                metrics={metric: estimates[metric] for metric in self.scored.task.metrics},
            )
        return scores

    def _n_expected(self) -> int:
        """Units that have a label and stand in test, whether or not they have vectors."""
        if self.row.level != "clip":
            return len(set(self.level.ids) | set(self._units_missing))
        expected = np.ones(len(self.asked), np.bool_) if self.targets.folds else self.asked.in_split("test")
        if self.row.where is not None:
            expected &= parse_where(self.row.where).mask(self.asked.manifest.table)[self.asked.rows]
        return int(expected.sum())

    def _counts(self, located: Located) -> Counts:
        targets = self.targets
        return Counts(
            n_expected=self._n_expected(),
            n_scored=len(set(self.level.ids)),
            n_patients=len(set(self.level.targets.patients)),
            n_train=len(targets.train),
            n_val=len(targets.val),
            n_val_patients=len(set(targets.patients[targets.val])),
            n_unlabelled=self.asked.n_unlabelled,
            n_without_split=self.asked.n_without_split,
            n_missing=int((~located.present).sum()),
            n_dropped=int((located.present & ~self.common).sum()),
        )

    def _provenance(self, source: VectorSource, fitted: Fitted) -> Provenance:
        manifest = self.scored.manifest
        return Provenance(
            set_id=source.set_id,
            fingerprint=source.fingerprint,
            media=manifest.media_digest,
            annotations=manifest.annotations_digest,
            task=self.scored.task.digest,
            protocol=self.protocol.digest,
            split_rule=f"{self.options.cv} folds of patients" if self.targets.folds else manifest.split_rule,
            leakage=self.scored.leakage,
            synthetic=manifest.dataset.synthetic,
            where=self.options.where,
            asked_of=self.row.asked_of or self.scored.task.on(self.scored.dataset).asked_of,
            oracle_frames=uses_oracle_frames(source.spec),
            pretraining=pretraining_overlap(source.spec.name, self.scored.dataset),
            notes=(*self._label_notes, *_choice_notes(fitted)),
        )

    @cached_property
    def _label_notes(self) -> tuple[str, ...]:
        task, targets = self.scored.task, self.targets
        notes = []
        if task.plausible is not None:
            low, high = task.plausible
            outside = int(((self.scored.labels < low) | (self.scored.labels > high)).sum())
            if outside:
                notes.append(
                    f"{outside} labels lie outside the plausible {low:g} to {high:g} {task.unit or ''}".rstrip()
                )
        if targets.folds:
            notes.append(
                f"{self.options.cv} cross-validation over patients, out-of-fold predictions pooled; counts of train "
                "and val are those of the first fold"
            )
        late = targets.classes[targets.n_known :]
        if late:
            wrong = int((targets.values[targets.test] >= targets.n_known).sum())
            notes.append(f"train lacks the classes {', '.join(late)}: {wrong} test clips count as wrong")
        if self._units_missing:
            named = ", ".join(self._units_missing[:_NAMED]) + (", ..." if len(self._units_missing) > _NAMED else "")
            units = "studies" if self.row.level == "study" else "patients"
            of = f"{len(self._units_missing)} of {self._n_expected()} {units}"
            notes.append(f"{of} have no clip to be scored by ({named})")
        note = task.on(self.scored.dataset).note
        return (*notes, note) if note else tuple(notes)

    def _predictions(self, predictions: Floats) -> Predictions:
        level, targets = self.level, self.level.targets
        who: dict[str, Any] = {"clip_ids": level.ids, "patients": targets.patients, "level": self.row.level}
        if level.unit_repeats is not None:
            who["repeats"] = level.unit_repeats
        made = level.predictions(predictions)
        if targets.kind == "regression":
            return Predictions(**who, y_true=targets.values.astype(np.float64), y_pred=made)
        classes = np.array(targets.classes, dtype=object)
        named = {"y_true": classes[targets.values], "y_pred": classes[made.argmax(axis=1)]}
        return Predictions(**who, **named, probabilities=made, classes=targets.classes)


def asked_cohorts(
    manifest: Manifest, task: Task, options: ProbeOptions, *, asked_of: str | None = None
) -> tuple[Cohort, Cohort | None]:
    """Return the clips that a task is asked of, and all with a label where those are a part of them.

    Raises
    ------
    UnknownNameError, ContentError
        As `evaltools.cohort.build_cohort`.
    """
    where = None if options.where is None else parse_where(options.where)
    how: dict[str, Any] = {"where": where, "use_splits": options.cv is None, "allow_leakage": options.allow_leakage}
    cohort = build_cohort(manifest, task, asked_of=asked_of, **how)
    if (asked_of or task.on(manifest.name).asked_of or EVERYTHING) == EVERYTHING:
        return cohort, None
    return cohort, build_cohort(manifest, task, asked_of=EVERYTHING, **{**how, "allow_leakage": True})


def _group_name(value: Any) -> str:
    if value is None:
        return _UNKNOWN_GROUP
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choice_notes(fitted: Fitted) -> tuple[str, ...]:
    notes = ["validation chose an end of the grid of penalties"] if fitted.chosen.get("at_edge") else []
    if fitted.chosen.get("converged") is False:
        norm = fitted.chosen["gradient_norm"]
        notes.append(f"the protocol stops before it has converged (gradient norm {norm:.1e})")
    return tuple(notes)
