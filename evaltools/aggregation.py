"""`Aggregation`: from predictions a clip to predictions of what is scored: clips, patients or studies.

It stands between every protocol and the metrics. A protocol, whatever it is, predicts the test clips of a cohort in
the order of ``targets.test``; `Aggregation.predictions` makes one prediction a unit, `Aggregation.targets` holds one
label and one patient a unit, so that estimates, controls and subgroups are computed as they are for clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import ManifestError, UnknownNameError
from embedstore.where import parse_where
from evaltools.cohort import Cohort, NotRunnableError
from evaltools.fitting import Targets
from evaltools.metrics import Codes, Floats
from evaltools.task_rows import TaskRow

__all__ = ["Aggregation", "unit_ids"]

_NAMED = 5


def unit_ids(cohort: Cohort, level: str) -> npt.NDArray[Any]:
    """Return what each clip of a cohort belongs to at a level, (n,) texts; a clip in no study is its own.

    Raises
    ------
    UnknownNameError
        The manifest has no studies.
    """
    if level == "clip":
        return cohort.clip_ids
    if level == "patient":
        return cohort.patients
    studies = cohort.column("study_id")
    if not any(studies):
        raise UnknownNameError(
            f"task {cohort.task.name!r} is scored by study, and {cohort.dataset!r} has no study_id; "
            "add the column, or take a row of clips with --row"
        )
    named = [study or f"clip:{clip}" for study, clip in zip(studies, cohort.clip_ids, strict=True)]
    return np.array(named, dtype=object)


@dataclass(frozen=True, eq=False)
class Aggregation:
    """Which test predictions make each unit of a row.

    Attributes
    ----------
    row : TaskRow
    cohort : Cohort
        The clips that were fitted on and predicted.
    clips : Targets
        Their labels; ``clips.test`` (m,) is the order of the predictions.
    """

    row: TaskRow
    cohort: Cohort
    clips: Targets

    @cached_property
    def kept(self) -> Codes:
        """Positions (k,) among the m predictions of those that count, the clips of a unit side by side.

        Raises
        ------
        NotRunnableError
            None does.
        """
        test = self.clips.test
        kept = np.arange(len(test))
        if self.row.where is not None:
            of_manifest = parse_where(self.row.where).mask(self.cohort.manifest.table)
            chosen = np.zeros(len(self.cohort), np.bool_)
            # Test clips stand last where clips of another data set are fitted on.
            chosen[len(self.cohort) - len(self.cohort.rows) :] = of_manifest[self.cohort.rows]
            kept = np.flatnonzero(chosen[test])
            if not len(kept):
                raise NotRunnableError(
                    f"row {self.row.name!r} of task {self.cohort.task.name!r} on {self.cohort.dataset!r} has no "
                    f"labelled test clip: {self.row.where}"
                )
        if self.row.level == "clip":
            return kept
        return kept[np.argsort(self._keys[kept], kind="stable")]

    @cached_property
    def repeats(self) -> Codes | None:
        """Repeat of a cross-validation that each prediction is of, (m,); None without one."""
        return np.arange(len(self.clips.test)) // len(self.cohort) if self.clips.folds else None

    @cached_property
    def _keys(self) -> Codes:
        """Number of the unit of each prediction, (m,): by repeat, then by id."""
        names, codes = np.unique(unit_ids(self.cohort, self.row.level).astype(str), return_inverse=True)
        keys: Codes = codes[self.clips.test].astype(np.intp)
        return keys if self.repeats is None else keys + self.repeats * len(names)

    @cached_property
    def starts(self) -> Codes:
        """Where each unit begins among `kept`, (u,)."""
        if self.row.level == "clip":
            return np.arange(len(self.kept))
        keys = self._keys[self.kept]
        return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))

    @cached_property
    def first(self) -> Codes:
        """Row in the cohort of each unit's first clip, (u,)."""
        rows: Codes = self.clips.test[self.kept[self.starts]]
        return rows

    @cached_property
    def ids(self) -> npt.NDArray[Any]:
        """Id of each unit, (u,) texts."""
        ids: npt.NDArray[Any] = unit_ids(self.cohort, self.row.level)[self.first]
        return ids

    @cached_property
    def n_clips(self) -> Codes:
        """Clips of each unit, (u,)."""
        return np.diff(np.append(self.starts, len(self.kept)))

    @cached_property
    def unit_repeats(self) -> Codes | None:
        """Repeat of a cross-validation that each unit is of, (u,)."""
        return None if self.repeats is None else self.repeats[self.kept[self.starts]]

    @cached_property
    def _weights(self) -> Floats:
        """Share of each kept prediction in its unit's, (k,)."""
        unit = np.repeat(np.arange(len(self.starts)), self.n_clips)
        if self.row.prediction != "mean-of-views":
            return np.asarray(1.0 / self.n_clips[unit], dtype=np.float64)
        views = np.array(self.cohort.column("view"), dtype=object)[self.clips.test[self.kept]].astype(str)
        _, view = np.unique(views, return_inverse=True)
        cell = unit * (view.max() + 1) + view
        n_of_cell = np.bincount(cell, minlength=len(self.starts) * (int(view.max()) + 1))
        n_views = (n_of_cell.reshape(len(self.starts), -1) > 0).sum(axis=1)
        return np.asarray(1.0 / (n_of_cell[cell] * n_views[unit]), dtype=np.float64)

    def predictions(self, predicted: Floats) -> Floats:
        """Return one prediction a unit.

        Parameters
        ----------
        predicted : (m, ...) float64
            Of clips, in the order of ``targets.test``: values, or class probabilities on the last axis.

        Returns
        -------
        (u, ...) float64 array

        Raises
        ------
        UnknownNameError
            The row asks for any positive clip, and the task has not two classes.
        """
        kept = predicted[self.kept]
        if self.row.prediction == "each":
            return kept
        if self.row.prediction == "any":
            if len(self.clips.classes) != 2:
                raise UnknownNameError(
                    f"row {self.row.name!r} asks for any positive clip, and task {self.cohort.task.name!r} has "
                    f"{len(self.clips.classes)} classes; it needs two"
                )
            positive = np.maximum.reduceat(kept[..., 1], self.starts, axis=0)
            return np.stack([1.0 - positive, positive], axis=-1)
        weights = self._weights.reshape(-1, *[1] * (kept.ndim - 1))
        made: Floats = np.add.reduceat(kept * weights, self.starts, axis=0)
        return made

    def truth(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return one label a unit; of different ones where they should be the same, the first.

        Parameters
        ----------
        values : (n, ...)
            Labels of the cohort's clips, numbers or class codes.
        """
        of_clips = values[self.clips.test][self.kept]
        if self.row.truth == "mean":
            sums = np.add.reduceat(of_clips, self.starts, axis=0)
            return np.asarray(sums / self.n_clips.reshape(-1, *[1] * (sums.ndim - 1)))
        if self.row.truth == "any":
            return np.asarray(np.maximum.reduceat(of_clips, self.starts, axis=0))
        return np.asarray(of_clips[self.starts])

    @cached_property
    def targets(self) -> Targets:
        """Labels and patients of the units; all of them are test, in their order.

        Raises
        ------
        ManifestError
            A unit has clips of different labels, or two patients.
        """
        of_clips = self.clips.values[self.clips.test][self.kept]
        if self.row.truth == "same":
            self._refuse_mixed(of_clips, "labels")
        if self.row.level == "study":
            self._refuse_mixed(self.clips.patients[self.clips.test][self.kept], "patients")
        return replace(
            self.clips,
            values=self.truth(self.clips.values),
            patients=self.clips.patients[self.first],
            test=np.arange(len(self.starts)),
            folds=(),
        )

    def _refuse_mixed(self, of_clips: npt.NDArray[Any], what: str) -> None:
        differs = of_clips != np.repeat(of_clips[self.starts], self.n_clips)
        unit = np.repeat(np.arange(len(self.starts)), self.n_clips)
        mixed = [str(name) for name in self.ids[np.unique(unit[differs])]]
        if mixed:
            more = f" and {len(mixed) - _NAMED} more" if len(mixed) > _NAMED else ""
            raise ManifestError(
                f"{len(mixed)} {_plural(self.row.level)} of {self.cohort.dataset!r} have clips of different {what} "
                f"({', '.join(mixed[:_NAMED])}{more}), so they have no one label; mend the manifest's table"
            )

    def column(self, values: Sequence[Any]) -> list[Any]:
        """Return a value a unit, that of its first clip, from values of the cohort's clips (n,)."""
        return [values[row] for row in self.first]

    def touched(self, clips: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return which units (u,) have one of the predictions where ``clips`` (m,) is true."""
        return np.logical_or.reduceat(clips[self.kept], self.starts)

    def without(self, whole: Cohort) -> list[str]:
        """Return the ids of test units of a wider cohort that have no clip here, sorted."""
        test = whole.in_split("test") if not self.clips.folds else np.ones(len(whole), np.bool_)
        return sorted(set(unit_ids(whole, self.row.level)[test].astype(str)) - set(self.ids.astype(str)))


def _plural(level: str) -> str:
    return "studies" if level == "study" else f"{level}s"
