"""`ScoreTable`: results of several sets of vectors on the same clips, with their shared controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from evaltools.clip_frames import ClipFrames, Features, clip_vectors
from evaltools.controls import (
    CONTROLS,
    ShuffledFits,
    mean_predictions,
    metadata_features,
    random_features,
    score_shuffled,
    shuffled_fits,
    study_features,
)
from evaltools.features import Located, VectorSource, pool_vectors
from evaltools.fitting import Fitted, fit_and_predict
from evaltools.metrics import Floats
from evaltools.near_duplicates import NearDuplicates, find_near_duplicates
from evaltools.probe_options import ProbeOptions
from evaltools.result import Result
from evaltools.row_table import RowTable, TableRow, asked_cohorts

__all__ = ["Fits", "ProbeOptions", "ScoreTable", "TableRow", "asked_cohorts"]


@dataclass(frozen=True)
class Fits:
    """What was fitted for one set of vectors: predictions for the test clips, before they are put together.

    Attributes
    ----------
    fitted : Fitted
    controls : mapping of str to array
        Predictions of each control but ``shuffled``.
    shuffled : ShuffledFits or None
    near_duplicates : NearDuplicates or None
    """

    fitted: Fitted
    controls: Mapping[str, Floats]
    shuffled: ShuffledFits | None
    near_duplicates: NearDuplicates | None = None


@dataclass(frozen=True)
class ScoreTable(RowTable):
    """Sets of vectors fitted and scored on the same clips, with their shared controls."""

    def per_row(self) -> list[Self]:
        """Return a table for each row, all of the same fit."""
        if len(self.rows) < 2:
            return [self]
        return [replace(self, rows=(row,)) for row in self.rows]

    def facts(self) -> Floats:
        """Return the facts of the recordings (n, M) that the metadata control is fitted on."""
        return metadata_features(self.scored)

    @cached_property
    def shared_controls(self) -> dict[str, Floats]:
        """Predictions of the controls that no vectors enter."""
        features = {"metadata": self.facts()}
        for name in self.scored.task.on(self.scored.dataset).controls:
            features[name] = study_features(self.scored, self.whole or self.asked, name)
        predicted = {
            name: fit_and_predict(self.protocol, X, self.targets).predictions for name, X in features.items()
        }
        return {"mean": mean_predictions(self.targets), **predicted}

    def features(self, source: VectorSource, pool: str, located: Located) -> Features:
        """Read the pooled vectors (n, D) of the scored clips."""
        return pool_vectors(source, located.rows[self.common], pool=pool, settings=self.protocol.pool_settings)

    def result(self, source: VectorSource, pool: str, located: Located) -> Result:
        """Fit and score one set of vectors, pooled in one way."""
        return self.results(source, pool, located)[0]

    def results(self, source: VectorSource, pool: str, located: Located) -> list[Result]:
        """Fit one set of vectors, pooled in one way, and score every row."""
        X = self.features(source, pool, located)
        return self.score_rows(X, TableRow(source, pool, located, dim=X.shape[1]))

    def score(
        self,
        X: Features,
        source: VectorSource,
        pool: str,
        located: Located,
        axis: Mapping[str, Any] | None = None,
    ) -> Result:
        """Fit features (n, D) of the scored clips, and score the first row.

        Parameters
        ----------
        axis : mapping, optional
            Keys that tell the result apart on a curve or in a transfer, see `Result.axis`.
        """
        first = replace(self, rows=(self.row,))
        return first.score_rows(X, TableRow(source, pool, located, dim=X.shape[1]), axis)[0]

    def score_rows(self, X: Features, of: TableRow, axis: Mapping[str, Any] | None = None) -> list[Result]:
        """Fit features (n, D) of the scored clips, and score every row."""
        fits = self._fits(X)
        return [table._scored(fits, of, axis) for table in self.per_row()]

    def _fits(self, X: Features) -> Fits:
        fitted = fit_and_predict(self.protocol, X, self.targets)
        near = None
        if self.options.near_duplicates and not self.targets.folds:
            near = find_near_duplicates(clip_vectors(X), self.scored, self.targets, seed=self.seed("near-duplicates"))
        if not self.options.controls:
            return Fits(fitted, {}, None, near)
        seed = self.seed("random", X.shape[1])
        noise: Features = X.noise(seed=seed) if isinstance(X, ClipFrames) else random_features(X.shape, seed=seed)
        controls = {**self.shared_controls, "random": fit_and_predict(self.protocol, noise, self.targets).predictions}
        n_shuffles = self.options.n_shuffles
        shuffled = shuffled_fits(
            self.protocol if n_shuffles is None else self.protocol.shuffled(n_shuffles),
            X,
            self.targets,
            seed=self.seed(self.protocol.name, "shuffled"),
        )
        return Fits(fitted, controls, shuffled, near)

    def _scored(self, fits: Fits, of: TableRow, axis: Mapping[str, Any] | None) -> Result:
        metrics = self.estimates(fits.fitted.predictions)
        shuffled = None
        if fits.shuffled is not None:
            main_metric = self.scored.task.main_metric
            shuffled = score_shuffled(
                fits.shuffled,
                self.targets,
                observed=metrics[main_metric],
                main_metric=main_metric,
                level=self.level,
            )
        controls = {name: self.estimates(predictions) for name, predictions in fits.controls.items()}
        if shuffled is not None:
            controls["shuffled"] = {name: shuffled.estimates[name] for name in self.scored.task.metrics}
        order = [*CONTROLS, *(name for name in controls if name not in CONTROLS)]
        result = self.assemble(
            of,
            fits.fitted,
            metrics,
            {name: controls[name] for name in order if name in controls},
            shuffled=shuffled,
            axis=axis,
        )
        if self.options.statistics == "cardiobench" and not self.targets.folds:
            result = replace(result, cardiobench=self._cardiobench(result.predictions))
        if fits.near_duplicates is None:
            return result
        return replace(result, near_duplicates=self._without_copies(fits.near_duplicates, fits.fitted.predictions))
