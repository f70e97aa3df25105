"""`ScoreTable`: results of several sets of vectors on the same clips, with their shared controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import UnknownNameError
from embedstore.identity import derive_seed
from evaltools.cohort import Cohort
from evaltools.controls import Shuffled, mean_predictions, metadata_features, random_features, shuffled_control
from evaltools.cross_validation import cross_targets, parse_cv
from evaltools.features import Located, VectorSource, pool_vectors
from evaltools.fitting import Fitted, Targets, class_order, fit_and_predict
from evaltools.metrics import Floats
from evaltools.protocols import EvalProtocol
from evaltools.resample import DEFAULT_DRAWS, Estimate
from evaltools.result import Counts, GroupScores, Predictions, Provenance, Result

__all__ = ["ProbeOptions", "ScoreTable", "TableRow"]

_MAX_GROUPS = 20
_UNKNOWN_GROUP = "unknown"


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How to probe.

    Attributes
    ----------
    protocol : str or None
        The task's primary protocol without.
    pools : tuple of str
        Poolings, each a row of its own.
    where : str or None
        Expression that selects clips, see `embedstore.where`.
    by : tuple of str
        Manifest columns to give metrics of each group by.
    seed : int
        Changes the draws of bootstrap, shuffles and random vectors.
    draws : int
        Bootstrap draws.
    allow_missing, allow_leakage : bool
        Score what has vectors; mark leakage instead of refusing.
    settings : tuple of str
        ``KEY=VALUE`` of the protocol, which stand in its name then.
    cv : str or None
        ``K`` or ``KxR``: R times K folds of patients in place of the splits.
    controls : bool
        Whether to run the controls.
    n_shuffles : int or None
        Label permutations of the shuffled control; the protocol's number without.
    """

    protocol: str | None = None
    pools: tuple[str, ...] = ("clip",)
    where: str | None = None
    by: tuple[str, ...] = ()
    seed: int = 0
    draws: int = DEFAULT_DRAWS
    allow_missing: bool = False
    allow_leakage: bool = False
    settings: tuple[str, ...] = ()
    cv: str | None = None
    controls: bool = True
    n_shuffles: int | None = None


@dataclass(frozen=True)
class TableRow:
    """One set of vectors in a table: pooled how, where its vectors stand, of how many dimensions."""

    source: VectorSource
    pool: str
    located: Located
    dim: int


@dataclass(frozen=True)
class ScoreTable:
    """What all results of one data set share: the clips, the targets, the controls that need no vectors.

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
    """

    asked: Cohort
    scored: Cohort
    common: npt.NDArray[np.bool_]
    protocol: EvalProtocol
    options: ProbeOptions

    @cached_property
    def targets(self) -> Targets:
        """Labels of the scored clips, and their splits or folds."""
        if self.options.cv is None:
            return Targets.of(self.scored)
        return cross_targets(self.scored, parse_cv(self.options.cv), seed=self.seed("cv", self.options.cv))

    def seed(self, *purpose: str | int) -> int:
        """Return the seed of a purpose: of this data set and task, whatever else is evaluated."""
        return derive_seed(self.scored.dataset, self.scored.task.name, *purpose, self.options.seed)

    def estimates(self, predictions: Floats) -> dict[str, Estimate]:
        """Score test predictions; all of a table share their draws, so their replicates pair."""
        estimates = self.targets.estimates(predictions, draws=self.options.draws, seed=self.seed("bootstrap"))
        return {name: estimates[name] for name in self.scored.task.metrics}

    @cached_property
    def shared_controls(self) -> dict[str, dict[str, Estimate]]:
        """Controls that no vectors enter."""
        metadata = fit_and_predict(self.protocol, metadata_features(self.scored), self.targets)
        return {
            "mean": self.estimates(mean_predictions(self.targets)),
            "metadata": self.estimates(metadata.predictions),
        }

    def controls(self, X: Floats, shuffled: Shuffled | None) -> dict[str, dict[str, Estimate]]:
        """All controls of one row, in the order of `CONTROLS`; none where none were asked for."""
        if shuffled is None:
            return {}
        noise = random_features(X.shape, seed=self.seed("random", X.shape[1]))
        return {
            "mean": self.shared_controls["mean"],
            "shuffled": {name: shuffled.estimates[name] for name in self.scored.task.metrics},
            "random": self.estimates(fit_and_predict(self.protocol, noise, self.targets).predictions),
            "metadata": self.shared_controls["metadata"],
        }

    def features(self, source: VectorSource, pool: str, located: Located) -> Floats:
        """Read the pooled vectors (n, D) of the scored clips."""
        return pool_vectors(source, located.rows[self.common], pool=pool, settings=self.protocol.pool_settings)

    def result(self, source: VectorSource, pool: str, located: Located) -> Result:
        """Fit and score one set of vectors, pooled in one way."""
        return self.score(self.features(source, pool, located), source, pool, located)

    def score(
        self,
        X: Floats,
        source: VectorSource,
        pool: str,
        located: Located,
        axis: Mapping[str, Any] | None = None,
    ) -> Result:
        """Fit and score features (n, D) of the scored clips.

        Parameters
        ----------
        axis : mapping, optional
            Keys that tell the result apart on a curve or in a transfer, see `Result.axis`.
        """
        fitted = fit_and_predict(self.protocol, X, self.targets)
        metrics = self.estimates(fitted.predictions)
        shuffled = self._shuffled(X, metrics) if self.options.controls else None
        row = TableRow(source, pool, located, dim=X.shape[1])
        return self.assemble(row, fitted, metrics, self.controls(X, shuffled), shuffled=shuffled, axis=axis)

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
            groups={column: self._groups(column, fitted.predictions) for column in self.options.by},
            counts=self._counts(row.located),
            chosen=fitted.chosen,
            seed=self.options.seed,
            draws=self.options.draws,
            provenance=self._provenance(source, fitted),
            predictions=self._predictions(fitted.predictions),
            axis=dict(axis or {}),
        )

    def _shuffled(self, X: Floats, metrics: Mapping[str, Estimate]) -> Shuffled:
        main_metric = self.scored.task.main_metric
        return shuffled_control(
            self.protocol if self.options.n_shuffles is None else self.protocol.shuffled(self.options.n_shuffles),
            X,
            self.targets,
            observed=metrics[main_metric],
            main_metric=main_metric,
            seed=self.seed(self.protocol.name, "shuffled"),
        )

    def _groups(self, column: str, predictions: Floats) -> Mapping[str, GroupScores]:
        values = self.scored.column(column)
        names = np.array([_group_name(values[row]) for row in self.targets.test], dtype=object)
        groups = sorted(set(names), key=class_order)
        if len(groups) > _MAX_GROUPS:
            raise UnknownNameError(
                f"column {column!r} has {len(groups)} different values among the test clips; "
                f"--by needs one with at most {_MAX_GROUPS}"
            )
        patients = self.targets.patients[self.targets.test]
        scores = {}
        for name in groups:
            kept = names == name
            estimates = self.targets.estimates(
                predictions, draws=self.options.draws, seed=self.seed("bootstrap", column, name), kept=kept
            )
            scores[name] = GroupScores(
                n_scored=int(kept.sum()),
                n_patients=len(set(patients[kept])),
                metrics={metric: estimates[metric] for metric in self.scored.task.metrics},
            )
        return scores

    def _counts(self, located: Located) -> Counts:
        targets = self.targets
        is_expected = np.ones(len(self.asked), np.bool_) if targets.folds else self.asked.in_split("test")
        return Counts(
            n_expected=int(is_expected.sum()),
            n_scored=len(set(targets.test.tolist())),
            n_patients=len(set(targets.patients[targets.test])),
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
        return tuple(notes)

    def _predictions(self, predictions: Floats) -> Predictions:
        test, targets = self.targets.test, self.targets
        who: dict[str, Any] = {"clip_ids": self.scored.clip_ids[test], "patients": targets.patients[test]}
        if targets.folds:
            who["repeats"] = np.repeat(np.arange(len(test) // len(self.scored)), len(self.scored))
        y_true = self.scored.labels[test]
        if targets.kind == "regression":
            return Predictions(**who, y_true=y_true, y_pred=predictions)
        names = np.array(targets.classes, dtype=object)[predictions.argmax(axis=1)]
        return Predictions(**who, y_true=y_true, y_pred=names, probabilities=predictions, classes=targets.classes)


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
        notes.append(f"the published setting stops before it has converged (gradient norm {norm:.1e})")
    return tuple(notes)
