"""Alignment: how alike the encoders of a store see the same clips, pair by pair, with intervals over patients.

Duplicates would count as neighbours of each other and bias a kernel, so intervals are not bootstrapped: half of the
patients are drawn without replacement, again and again. Half samples vary around their mean as the full sample does
around the truth, so the quantiles of that deviation, laid around the value, are the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from embedstore import Manifest, Store
from embedstore.errors import UnknownNameError, did_you_mean
from embedstore.identity import derive_seed
from embedstore.manifest import SPLITS
from embedstore.where import parse_where
from evaltools.closeness import ClipPoints
from evaltools.cohort import NotRunnableError
from evaltools.features import VectorSource, require_pool
from evaltools.joined import JoinedClips, join_clips
from evaltools.metrics import Codes
from evaltools.protocols.base import one_blas_thread
from evaltools.resample import LEVEL, MIN_PATIENTS, Estimate, patient_codes
from evaltools.selection import sets_of
from evaltools.similarity import METHODS, Canonical, Seen, Side, measure

__all__ = ["AlignOptions", "Alignment", "align", "align_manifest", "half_samples"]

_MIN_CLIPS = 4  # the unbiased estimator divides by n - 3
_RANGES = {"cka": (0.0, 1.0), "cka-cardiobench": (0.0, 1.0), "mutual-knn": (0.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """How to compare.

    Attributes
    ----------
    methods : tuple of str
        Names of `evaltools.similarity.METHODS`; empty means all, those that cannot be had with a reason.
    split : str
        ``train``, ``val``, ``test`` or ``all``: which clips are compared. CCA is fitted on train and needs ``test``.
    k : int
        Neighbours of ``mutual-knn``.
    components : int
        Principal components, and canonical pairs, of ``cca``.
    pool, where, seed
        As in `evaltools.score_table.ProbeOptions`.
    draws : int
        Subsamples; 0 for no intervals.
    """

    methods: tuple[str, ...] = ()
    split: str = "test"
    k: int = 10
    components: int = 10
    pool: str = "clip"
    where: str | None = None
    seed: int = 0
    draws: int = 200


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """One measure of one pair of encoders on one data set, or of one encoder's text axis and a task.

    Attributes
    ----------
    a, b : str
        Titles of encoders; of a text axis the encoder's and the task's.
    method : str
        Of `evaltools.similarity.METHODS`, or ``text-axis``.
    metric : str or None
        Which number of a text axis: ``pearson``, ``spearman`` or ``r2``.
    set_a, set_b : str
        Ids of the sets; none of a task.
    """

    a: str
    b: str
    dataset: str
    method: str
    estimate: Estimate
    split: str
    n_clips: int
    n_patients: int
    n_dropped: int
    settings: dict[str, Any]
    set_a: str
    set_b: str | None
    media: str
    synthetic: bool
    metric: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the contract's JSON form."""
        names = ("split", "n_clips", "n_patients", "n_dropped", "settings", "set_a", "set_b", "media", "synthetic")
        return {
            "a": self.a,
            "b": self.b,
            "dataset": self.dataset,
            "method": self.method,
            **({} if self.metric is None else {"metric": self.metric}),
            **self.estimate.to_dict(),
            **{name: getattr(self, name) for name in names},
        }


def align(
    store: Store,
    *,
    datasets: Sequence[str | Path] = (),
    encoders: Sequence[str] = (),
    options: AlignOptions | None = None,
) -> list[Alignment]:
    """Compare every pair of encoders on every data set named, or on all with two encoders.

    Raises
    ------
    UnknownNameError
        A data set, encoder, method or split is not known, or there is one encoder only.
    ContentError
        Clips, patients or vectors do not allow a measure that was named.
    """
    chosen = options or AlignOptions()
    if datasets:
        manifests = [store.manifest(name) for name in dict.fromkeys(datasets)]
    else:
        entries = store.entries()
        counts = {
            name: sum(entry.dataset == name for entry in entries) for name in (m.name for m in store.manifests())
        }
        manifests = [store.manifest(name) for name, count in counts.items() if count > 1]
        if not manifests:
            raise UnknownNameError(
                "the store has no data set with vectors of two encoders, and an encoder is aligned with another; "
                "build a second one"
            )
    return [
        alignment
        for manifest in manifests
        for alignment in align_manifest(sets_of(store, manifest.name, titles=encoders), manifest, options=chosen)
    ]


def align_manifest(sources: Sequence[VectorSource], manifest: Manifest, *, options: AlignOptions) -> list[Alignment]:
    """Compare every pair of sets of one data set, all on the clips that all of them have.

    Raises
    ------
    UnknownNameError, ContentError
        As `align`.
    """
    for method in options.methods:
        if method not in METHODS:
            raise UnknownNameError(f"unknown method {method!r}{did_you_mean(method, list(METHODS))}")
    if options.split not in (*SPLITS, "all"):
        raise UnknownNameError(f"unknown split {options.split!r}{did_you_mean(options.split, [*SPLITS, 'all'])}")
    if len(sources) < 2:
        named = sources[0].spec.title if sources else "no encoder"
        raise UnknownNameError(
            f"{named} is alone on {manifest.name!r}, and an encoder is aligned with another; name or build "
            "a second one"
        )
    where = None if options.where is None else parse_where(options.where)
    joined = join_clips(sources, manifest, pool=require_pool(options.pool), where=where)
    return _Comparison(sources, joined, options).alignments()


class _Comparison:
    """The clips that all sets have, and each pair of sets on them."""

    def __init__(self, sources: Sequence[VectorSource], joined: JoinedClips, options: AlignOptions) -> None:
        self.sources, self.joined, self.options = sources, joined, options
        kept = joined.in_split(*(SPLITS if options.split == "all" else (options.split,)))
        kept = np.ones(len(joined), dtype=np.bool_) if options.split == "all" else kept
        self.kept = np.flatnonzero(kept)
        self.patients = patient_codes(joined.patients[kept])
        if len(self.kept) < _MIN_CLIPS or len(set(self.patients)) < 2:
            raise NotRunnableError(
                f"{joined.manifest.name!r} has {len(self.kept)} clips of {len(set(self.patients))} patients in the "
                f"split {options.split!r} that all encoders have; "
                f"{_MIN_CLIPS} clips of 2 patients are the least that can be compared"
            )
        self.methods = self.options.methods or METHODS
        seed = derive_seed(joined.manifest.name, "align", options.split, options.seed)
        self.subsamples = half_samples(self.patients, draws=options.draws, seed=seed)
        self.refusals: dict[str, str] = {}
        self.views = self._views()

    def _views(self) -> dict[tuple[int, int, str], list[float]]:
        """Return each measure of each pair, of all clips first and then of each subsample.

        Subsamples are the outer loop, so that each encoder's kernel of one is made once for all pairs.
        """
        k = self.options.k if "mutual-knn" in self.methods else None
        sides = [Side(points, k=k) for points in self._points()]
        try:
            views = [side.seen() for side in sides]
        except NotRunnableError as refusal:
            if self.options.methods:
                raise
            self.refusals["mutual-knn"] = str(refusal)
            sides = [Side(side.points, k=None) for side in sides]
            views = [side.seen() for side in sides]
        pairs = list(combinations(range(len(sides)), 2))
        values: dict[tuple[int, int, str], list[float]] = {}
        methods = [method for method in self.methods if method != "cca" and method not in self.refusals]

        def look(views: Sequence[Seen]) -> None:
            for first, second in pairs:
                for method in methods:
                    value = measure(method, views[first], views[second])
                    values.setdefault((first, second, method), []).append(value)

        with one_blas_thread():
            look(views)
            for rows in self.subsamples if methods else ():
                try:
                    views = [side.seen(rows) for side in sides]
                except NotRunnableError:  # half of the patients are too few for k: no interval, of no measure
                    return {key: found[:1] for key, found in values.items()}
                look(views)
        return values

    def _points(self) -> list[ClipPoints]:
        who = self.joined.clip_ids[self.kept], self.joined.patients[self.kept]
        return [ClipPoints(X[self.kept], *who) for X in self.joined.vectors]

    def alignments(self) -> list[Alignment]:
        return [
            self._alignment(first, second, method)
            for first, second in combinations(range(len(self.sources)), 2)
            for method in self.methods
        ]

    def _alignment(self, first: int, second: int, method: str) -> Alignment:
        try:
            estimate = self._estimate(method, self._values(first, second, method))
        except NotRunnableError as refusal:
            if self.options.methods:
                raise
            estimate = Estimate(None, ci_reason=str(refusal))
        a, b, manifest = self.sources[first], self.sources[second], self.joined.manifest
        settings: dict[str, Any] = {"pool": self.options.pool, "draws": self.options.draws, "seed": self.options.seed}
        if method == "mutual-knn":
            settings["k"] = self.options.k
        if method == "cca":
            settings |= {"components": self.options.components, "fitted_on": "train"}
        return Alignment(
            a=a.spec.title,
            b=b.spec.title,
            dataset=manifest.name,
            method=method,
            estimate=estimate,
            split=self.options.split,
            n_clips=len(self.kept),
            n_patients=len(set(self.patients)),
            n_dropped=self.joined.n_dropped,
            settings=settings,
            set_a=a.set_id,
            set_b=b.set_id,
            media=manifest.media_digest,
            synthetic=manifest.dataset.synthetic,
        )

    def _values(self, first: int, second: int, method: str) -> list[float]:
        """Return a measure of a pair, of all clips and of each subsample."""
        if method in self.refusals:
            raise NotRunnableError(self.refusals[method])
        if method != "cca":
            return self.views[first, second, method]
        if self.options.split != "test":
            raise NotRunnableError(
                f"CCA is fitted on train and correlated on test, so it cannot be had on the split "
                f"{self.options.split!r}; use --split test"
            )
        train = self.joined.in_split("train")
        test = self.joined.in_split("test")
        shared = set(self.joined.patients[train]) & set(self.joined.patients[test])
        if shared:
            raise NotRunnableError(
                f"{len(shared)} patients of {self.joined.manifest.name!r} stand in train and in test, so a CCA would "
                "be correlated on patients that it was fitted on; mend the splits"
            )
        X, Y = self.joined.vectors[first], self.joined.vectors[second]
        canonical = Canonical.fit(
            (X[train], X[test]),
            (Y[train], Y[test]),
            components=self.options.components,
            n_patients=len(set(self.joined.patients[train])),
        )
        return [canonical.correlation(), *(canonical.correlation(rows) for rows in self.subsamples)]

    def _estimate(self, method: str, values: Sequence[float]) -> Estimate:
        value, replicates, n_patients = values[0], np.array(values[1:]), int(self.patients.max()) + 1
        if np.isnan(value):
            return Estimate(None, ci_reason="not defined: one encoder gives the same vector for every clip")
        if n_patients < MIN_PATIENTS:
            return Estimate(value, ci_reason=f"{n_patients} patients, fewer than {MIN_PATIENTS}")
        if not self.subsamples:
            return Estimate(value, ci_reason="no subsampling was asked for")
        if not len(replicates):
            return Estimate(value, ci_reason=f"half of the patients are too few for k = {self.options.k}")
        if not np.isfinite(replicates).all():
            return Estimate(value, ci_reason="not defined in some subsamples")
        tail = (1 - LEVEL) / 2
        low, high = value + np.quantile(replicates - replicates.mean(), [tail, 1 - tail])
        least, most = _RANGES.get(method, (-1.0, 1.0))
        return Estimate(value, float(np.clip(low, least, most)), float(np.clip(high, least, most)))


def half_samples(patients: Codes, *, draws: int, seed: int) -> list[Codes]:
    """Return the rows of half of the patients, drawn without replacement, for each draw."""
    rng, n_patients = np.random.default_rng(seed), int(patients.max()) + 1
    samples = []
    for _ in range(draws):
        among = np.zeros(n_patients, dtype=np.bool_)
        among[rng.permutation(n_patients)[: n_patients // 2]] = True
        samples.append(np.flatnonzero(among[patients]))
    return samples
