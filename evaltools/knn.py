"""`knn`: score stored vectors by their nearest neighbours, with the intervals and controls of a probe.

Presets: ``knn`` (k chosen on validation among CardioBench's), ``dinov2-knn`` (softmax votes, temperature 0.07) and
``simpleshot`` (nearest centroid of n drawn clips a class, a result for each n). No clip of a test clip's own patient
is ever its neighbour, whatever the splits say; the metadata control is standardised, as its columns have units.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore import Manifest, Store
from embedstore.errors import UnknownNameError, did_you_mean
from evaltools.closeness import Space
from evaltools.cohort import Cohort, NotRunnableError, require_runnable
from evaltools.common_clips import locate_in_common
from evaltools.controls import metadata_features
from evaltools.features import Located, VectorSource, require_pool
from evaltools.fitting import Targets
from evaltools.manifest_loop import over_manifests
from evaltools.metrics import Codes, Floats, Kind, metric_names
from evaltools.neighbour_settings import read_setting
from evaltools.own_clips import each_alone
from evaltools.probe_options import ProbeOptions
from evaltools.protocols.base import Probe, Standardiser
from evaltools.protocols.knn import CARDIOBENCH_KS, DINOV2_KS, NearestNeighbours, SplitClips
from evaltools.protocols.protocol import EvalProtocol, Method
from evaltools.protocols.simpleshot import SHOTS, SimpleShot
from evaltools.result import Result
from evaltools.score_table import ScoreTable, asked_cohorts
from evaltools.task import Task
from evaltools.task_rows import TaskRow, pick_rows, rows_by_fit

__all__ = ["KNN_PROTOCOLS", "KnnOptions", "NeighbourProtocol", "knn", "knn_manifest", "knn_protocols"]

_ESTIMATORS: Mapping[str, type[Probe]] = {"nearest-neighbours": NearestNeighbours, "simpleshot": SimpleShot}
_OF_DRAWS = ("accuracy", "balanced_accuracy")  # what a mean over draws of the metric follows from shares of draws


@dataclass(frozen=True, kw_only=True)
class KnnOptions(ProbeOptions):
    """How to score by neighbours: the options of a probe, and these.

    Attributes
    ----------
    ks : tuple of int
        In place of the preset's numbers of neighbours.
    metric : {"cosine", "l2"} or None
        In place of the preset's.
    normalize : bool or None
        In place of the preset's.
    shots : tuple of int
        Of ``simpleshot``.
    """

    ks: tuple[int, ...] = ()
    metric: str | None = None
    normalize: bool | None = None
    shots: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NeighbourProtocol(EvalProtocol):
    """A protocol that looks at neighbours, and so must know whose the clips are.

    Attributes
    ----------
    clips : SplitClips or None
        Not part of the settings.
    """

    clips: SplitClips | None = field(default=None, compare=False)

    def make(self, kind: Kind | None = None) -> Probe:
        """Return a fresh estimator for a kind of task."""
        method = self.methods[self.kinds[0] if kind is None else kind]
        known = {"clips": self.clips} if method.estimator == "nearest-neighbours" else {}
        return _ESTIMATORS[method.estimator](**method.settings, **known)


def _both(ks: Sequence[int], weights: Mapping[Kind, str], gallery: str) -> dict[Kind, Method]:
    return {
        kind: Method("nearest-neighbours", {"kind": kind, "ks": tuple(ks), "weights": of, "gallery": gallery})
        for kind, of in weights.items()
    }


KNN_PROTOCOLS: Mapping[str, NeighbourProtocol] = {
    protocol.name: protocol
    for protocol in (
        NeighbourProtocol(
            name="knn",
            summary="Plain nearest neighbours by cosine, k chosen on validation: a vote, or the mean weighted by the "
            "inverse of the distance.",
            source="CardioBench, fit_tmed2.py (its list of k, uniform votes, neighbours from train and validation)",
            differences=("k is chosen on the validation split, not by five folds of train",),
            methods=_both(CARDIOBENCH_KS, {"classification": "uniform", "regression": "distance"}, "train+val"),
            n_together=25,
        ),
        NeighbourProtocol(
            name="dinov2-knn",
            summary="Nearest neighbours by cosine, weighed by a softmax of temperature 0.07 over the largest k, then "
            "cut off at k.",
            source="DINOv2, dinov2/eval/knn.py",
            differences=(
                "k is chosen on validation, where DINOv2 prints each",
                "votes are divided by their sum, so that they are shares",
                "regression, the mean with the same weights, is not in DINOv2",
            ),
            methods=_both(DINOV2_KS, {"classification": "softmax", "regression": "softmax"}, "train"),
            n_together=25,
        ),
        NeighbourProtocol(
            name="simpleshot",
            summary="Nearest centroid of n drawn training clips a class, the mean over 1,000 draws, for n = "
            f"{', '.join(str(shots) for shots in SHOTS)}.",
            source="SimpleShot, arXiv:1911.04623, with the mean of train taken off as in UNI",
            differences=("the shuffled control spreads the draws over its permutations",),
            methods={"classification": Method("simpleshot", {})},
            n_shuffles=50,
            n_together=50,
        ),
    )
}


def knn_protocols(name: str, *, kind: Kind, options: KnnOptions) -> list[NeighbourProtocol]:
    """Return the protocols of a preset with what the options change, which stands in their names.

    Raises
    ------
    UnknownNameError
        There is none of that name, it measures another kind of task, or an option is not one of its.
    """
    if name not in KNN_PROTOCOLS:
        raise UnknownNameError(f"unknown preset of neighbours {name!r}{did_you_mean(name, list(KNN_PROTOCOLS))}")
    plain = KNN_PROTOCOLS[name]
    if kind not in plain.kinds:
        raise UnknownNameError(
            f"preset {name!r} is for {plain.kinds[0]}, and the task is {kind}; use knn or dinov2-knn"
        )
    options, others = _settled(name, options)
    if name == "simpleshot":
        if options.ks or options.metric or options.normalize is not None:
            raise UnknownNameError(
                "simpleshot has no k, metric or normalisation of choice; give --shots, or --protocol knn"
            )
        return [_with_others(_with_shots(plain, shots), others) for shots in options.shots or SHOTS]
    if options.shots:
        raise UnknownNameError(f"--shots is for simpleshot, not for {name!r}")
    settings: dict[str, Any] = {}
    changes = []
    if options.ks:
        settings["ks"] = tuple(sorted(set(options.ks)))
        changes.append(f"k={','.join(str(k) for k in settings['ks'])}")
    if options.metric is not None or options.normalize is not None:
        space = Space(options.metric or "cosine", options.normalize is not False)
        settings["space"] = space
        changes += [f"metric={space.metric}"] if space.metric != "cosine" else []
        changes += [] if space.normalize else ["normalize=no"]
    methods = {kind: Method(of.estimator, {**of.settings, **settings}) for kind, of in plain.methods.items()}
    return [_with_others(replace(plain, name="+".join([name, *changes]), methods=methods), others)]


def _settled(name: str, options: KnnOptions) -> tuple[KnnOptions, dict[str, Any]]:
    """Return the options with what ``--set`` says in their place, and the settings that have no option."""
    own = {"k": "ks", "metric": "metric", "normalize": "normalize", "shots": "shots"}
    others: dict[str, Any] = {}
    for change in options.settings:
        key, value = read_setting(name, change)
        if key in own:
            options = replace(options, **{own[key]: value})
        else:
            others[key] = value
    return options, others


def _with_others(protocol: NeighbourProtocol, settings: Mapping[str, Any]) -> NeighbourProtocol:
    changes = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items()
    ]
    of_method = {key: value for key, value in settings.items() if key != "n_shuffles"}
    methods = {kind: Method(of.estimator, {**of.settings, **of_method}) for kind, of in protocol.methods.items()}
    n_shuffles = settings.get("n_shuffles", protocol.n_shuffles)
    return replace(protocol, name="+".join([protocol.name, *changes]), methods=methods, n_shuffles=n_shuffles)


def _with_shots(plain: NeighbourProtocol, shots: int) -> NeighbourProtocol:
    if shots < 1:
        raise UnknownNameError(f"--shots must be 1 or more, not {shots}")
    method = Method("simpleshot", {**plain.methods["classification"].settings, "n_shots": shots})
    return replace(plain, name=f"simpleshot+shots={shots}", methods={"classification": method})


class _ShareScorer:
    """Accuracy and balanced accuracy, each the mean over the draws, from the share of draws that are right."""

    def __init__(self, true: Codes, shares: Floats, patients: Codes) -> None:
        self.n_patients = int(patients.max()) + 1
        n_classes = shares.shape[1]
        cells = patients * n_classes + true
        right = shares[np.arange(len(true)), true]
        size = self.n_patients * n_classes
        self._right = np.bincount(cells, weights=right, minlength=size).reshape(self.n_patients, n_classes)
        self._all = np.bincount(cells, minlength=size).reshape(self.n_patients, n_classes).astype(np.float64)

    def __call__(self, counts: Floats, *, ranked: Collection[str] = ()) -> dict[str, Floats]:
        """Return each metric for each row of ``counts`` (B, P); those that do not follow from shares are NaN."""
        right, occurring = counts @ self._right, counts @ self._all
        known = occurring > 0
        recall = np.where(known, right / np.where(known, occurring, 1.0), 0.0)
        scores = {name: np.full(len(counts), np.nan) for name in metric_names("classification")}
        scores["accuracy"] = right.sum(axis=1) / occurring.sum(axis=1)
        scores["balanced_accuracy"] = recall.sum(axis=1) / known.sum(axis=1)
        return scores


@dataclass(frozen=True, kw_only=True)
class _DrawnTargets(Targets):
    """Targets whose predictions are shares of draws."""

    def scorer(self, true: npt.NDArray[Any], predicted: Floats, patients: Codes) -> Any:
        """Return what averages over the draws."""
        return _ShareScorer(true, predicted, patients)


@dataclass(frozen=True)
class _KnnTable(ScoreTable):
    """A score table whose metadata are standardised, and whose draws are averaged."""

    @cached_property
    def targets(self) -> Targets:
        """Labels of the scored clips, and their splits or folds."""
        plain = super().targets
        if not self.protocol.name.startswith("simpleshot"):
            return plain
        return _DrawnTargets(**{one.name: getattr(plain, one.name) for one in fields(plain)})

    def facts(self) -> Floats:
        """Return the standardised facts of the recordings (n, M) that the metadata control is fitted on."""
        facts = metadata_features(self.scored)
        return Standardiser.of(facts[self.targets.train])(facts)


def knn(
    store: Store,
    *,
    tasks: Sequence[Task],
    datasets: Sequence[str | Path] = (),
    encoders: Sequence[str] = (),
    options: KnnOptions | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Result]:
    """Score the encoders of a store by nearest neighbours.

    Parameters
    ----------
    tasks : sequence of Task
    datasets, encoders : sequence of str
        Names; none means all that have the label and vectors, of which those are skipped that cannot be scored.
    options : KnnOptions
        Without a protocol: ``knn``.
    on_skip : callable
        Told the reason for each data set that is skipped.

    Raises
    ------
    UnknownNameError
        A data set, encoder, preset, metric or column is not known.
    ContentError
        Labels, splits, leakage, missing vectors or k forbid a result.
    """
    chosen = options or KnnOptions()
    return over_manifests(
        store,
        lambda sets, manifest, task: knn_manifest(sets, manifest, task=task, options=chosen),
        tasks=tasks,
        datasets=datasets,
        encoders=encoders,
        on_skip=on_skip,
    )


def knn_manifest(
    sources: Sequence[VectorSource], manifest: Manifest, *, task: Task, options: KnnOptions
) -> list[Result]:
    """Score several sets of one data set on the clips that all of them have.

    Raises
    ------
    UnknownNameError, ContentError
        As `knn`.
    """
    if options.own_clips:
        return each_alone(lambda own, how: knn_manifest(own, manifest, task=task, options=how), sources, options)
    protocols = knn_protocols(options.protocol or "knn", kind=task.kind, options=options)
    if protocols[0].name.startswith("simpleshot") and task.main_metric not in _OF_DRAWS:
        raise UnknownNameError(
            f"simpleshot gives {' and '.join(_OF_DRAWS)}, and the main metric of {task.name!r} is "
            f"{task.main_metric}; use knn or dinov2-knn"
        )
    task = options.task_of(task)
    task_rows = pick_rows(task.on(manifest.name).rows, options.rows)
    results = [
        result
        for of_fit in rows_by_fit(task_rows)
        for table, located in _tables(sources, manifest, task, options, protocols, of_fit)
        for of in located
        for result in table.results(*of)
    ]
    names = [protocol.name for protocol in protocols]
    return sorted(results, key=lambda result: (names.index(result.protocol), task_rows.index(result.row)))


def _tables(
    sources: Sequence[VectorSource],
    manifest: Manifest,
    task: Task,
    options: KnnOptions,
    protocols: Sequence[NeighbourProtocol],
    task_rows: tuple[TaskRow, ...],
) -> list[tuple[ScoreTable, list[tuple[VectorSource, str, Located]]]]:
    """Return a table for each protocol, with its rows: set, pooling, where the vectors stand."""
    pools = [require_pool(pool) for pool in dict.fromkeys(options.pools)]
    is_cv = options.cv is not None
    asked_of = task_rows[0].asked_of
    cohort, whole = asked_cohorts(manifest, task, options, asked_of=asked_of)
    in_order: Any = np.argsort(cohort.clip_ids.astype(str), kind="stable")
    cohort = cohort.take(in_order)
    for column in options.by:
        manifest.column(column)
    if not is_cv:
        _require(cohort)
    pooled = [(source, pool) for source in sources for pool in pools]
    located, common = locate_in_common(pooled, cohort, allow_missing=options.allow_missing)
    rows = [(*pair, one) for pair, one in zip(pooled, located, strict=True)]
    scored = cohort.take(common)
    if not is_cv:
        _require(scored)
    clips = None if is_cv else _clips_of(scored)  # folds keep patients whole, so nobody can be his own neighbour
    return [
        (_KnnTable(cohort, scored, common, replace(protocol, clips=clips), options, task_rows, whole), rows)
        for protocol in protocols
    ]


def _require(cohort: Cohort) -> None:
    if len(cohort) and cohort.in_split("train").any() and not cohort.in_split("val").any():
        raise NotRunnableError(
            f"task {cohort.task.name!r} on {cohort.dataset!r} has no labelled clip in the split 'val', which is "
            "needed to choose k"
        )
    require_runnable(cohort)


def _clips_of(cohort: Cohort) -> SplitClips:
    targets = Targets.of(cohort)
    rows = {"train": targets.train, "val": targets.val, "test": targets.test}
    return SplitClips(
        {split: cohort.clip_ids[of] for split, of in rows.items()},
        {split: cohort.patients[of] for split, of in rows.items()},
    )
