"""Retrieval: do the nearest clips of other patients share the label? Nothing is fitted and nothing chosen.

Queries are the labelled test clips, the gallery is every labelled clip of other patients, whatever its split. With
classes a clip of the same class is relevant, with gain 1. With numbers the gain falls linearly from 1 at the same
value to 0 at a distance of ``within``; relevant is what has a gain.

``recall@k`` is the share of queries with a relevant clip among the first k; ``map`` the mean over queries of the
average precision of the whole ranking; ``ndcg@k`` the gain of the first k, discounted by the logarithm of the rank,
as a share of the best that could be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore import EmbeddingSet, Manifest, Store
from embedstore.errors import MissingVectorsError, UnknownNameError, VectorError
from embedstore.identity import derive_seed
from embedstore.where import parse_where
from evaltools.closeness import ClipPoints, Space, full_rankings, require_candidates
from evaltools.cohort import Cohort, NotRunnableError, build_cohort
from evaltools.common_clips import locate_in_common
from evaltools.controls import metadata_features, random_features, shuffle_by_patient
from evaltools.features import VectorSource, pool_vectors, require_pool
from evaltools.manifest_loop import once, over_manifests
from evaltools.metrics import Codes, Floats
from evaltools.neighbours import nearest, share_found
from evaltools.prompt_bank import banked_sets
from evaltools.protocols.base import Standardiser
from evaltools.resample import DEFAULT_DRAWS, Estimate, estimate_metrics, interval_refusal, patient_codes
from evaltools.retrieval import N_SHUFFLES, NOT_FITTED, Relevance, Retrieval, unanswered
from evaltools.search_index import require_index
from evaltools.task import Task

__all__ = ["LEVELS", "RetrieveOptions", "retrieve", "retrieve_manifest"]

LEVELS = ("clip", "frame", "text")
_CUT_OFF = "an approximate index does not rank the whole gallery"


@dataclass(frozen=True, kw_only=True)
class RetrieveOptions:
    """How to retrieve.

    Attributes
    ----------
    ks : tuple of int
        Depths of recall and nDCG.
    space : Space
    index : {"exact", "ivf", "hnsw"}
    level : {"clip", "frame", "text"}
        What a query is: a clip, a frame of one, whose scores are averaged over the frames of the clip, or a prompt of
        the encoder's bank, see `evaltools.text_retrieval`.
    frames_each : int
        How many frames of a clip are queries, evenly spaced.
    within : float or None
        Distance at which the gain of a number is gone, in its unit; 5 where the unit is %.
    pools : tuple of str
        Poolings of the gallery's, and of clip queries', vectors.
    where, seed, draws, allow_missing, allow_leakage
        As in `evaltools.score_table.ProbeOptions`.
    bank : str or None
        Of prompts, where the store has several of an encoder.
    """

    ks: tuple[int, ...] = (1, 5, 10)
    space: Space = field(default_factory=Space)
    index: str = "exact"
    level: str = "clip"
    frames_each: int = 4
    within: float | None = None
    pools: tuple[str, ...] = ("clip",)
    where: str | None = None
    seed: int = 0
    draws: int = DEFAULT_DRAWS
    allow_missing: bool = False
    allow_leakage: bool = False
    bank: str | None = None


class _MeanScorer:
    """Means of values (m,) of queries, for many weightings of patients at once."""

    def __init__(self, values: dict[str, Floats], patients: Codes) -> None:
        self.n_patients = int(patients.max()) + 1
        self._sums = {name: np.bincount(patients, weights=of) for name, of in values.items()}
        self._counts = np.bincount(patients).astype(np.float64)

    def __call__(self, counts: Floats) -> dict[str, Floats]:
        """Return each mean for each row of ``counts`` (B, P)."""
        n = counts @ self._counts
        return {name: (counts @ sums) / n for name, sums in self._sums.items()}


def retrieve(
    store: Store,
    *,
    tasks: Sequence[Task],
    datasets: Sequence[str | Path] = (),
    encoders: Sequence[str] = (),
    options: RetrieveOptions | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Retrieval]:
    """Score the encoders of a store by what their neighbours have in common.

    All encoders and poolings of one data set are scored on the clips that all of them have.

    Parameters
    ----------
    tasks, datasets, encoders, on_skip
        As in `evaltools.knn.knn`.
    options : RetrieveOptions

    Raises
    ------
    UnknownNameError
        A data set, encoder, bank, pooling or column is not known.
    ContentError
        Labels, leakage, dimensions, missing vectors or k forbid a result; or prompts are asked and there are none.
    """
    chosen = options or RetrieveOptions()
    tell = once(on_skip)

    def score(sets: Sequence[EmbeddingSet], manifest: Manifest, task: Task) -> list[Retrieval]:
        if chosen.level != "text":
            return retrieve_manifest(sets, manifest, task=task, options=chosen)
        from evaltools.text_retrieval import retrieve_by_text

        banked = banked_sets(store, sets, name=chosen.bank, tell=tell)
        return retrieve_by_text(banked, manifest, task=task, options=chosen)

    return over_manifests(store, score, tasks=tasks, datasets=datasets, encoders=encoders, on_skip=tell)


def retrieve_manifest(
    sources: Sequence[VectorSource], manifest: Manifest, *, task: Task, options: RetrieveOptions
) -> list[Retrieval]:
    """Score several sets of one data set on the clips that all of them have.

    Raises
    ------
    UnknownNameError, ContentError
        As `retrieve`.
    """
    if options.level not in LEVELS[:2]:
        raise UnknownNameError(f"a query is a clip or a frame of the set, not a {options.level!r}")
    if options.bank is not None:
        raise UnknownNameError("--bank names prompts, and none are asked; leave it out, or give --from text")
    require_index(options.index)
    pools = [require_pool(pool) for pool in dict.fromkeys(options.pools)]
    where = None if options.where is None else parse_where(options.where)
    cohort = build_cohort(manifest, task, where=where, allow_leakage=options.allow_leakage)
    in_order: Any = np.argsort(cohort.clip_ids.astype(str), kind="stable")
    cohort = cohort.take(in_order)
    _require_queries(cohort)
    relevance = Relevance.of(task, within=options.within)
    pooled = [(source, pool) for source in sources for pool in pools]
    located, common = locate_in_common(pooled, cohort, allow_missing=options.allow_missing)
    rows = [(*pair, one) for pair, one in zip(pooled, located, strict=True)]
    scored = cohort.take(common)
    _require_queries(scored)
    require_candidates(max(options.ks), len(scored) - int(np.bincount(patient_codes(scored.patients)).max()))
    table = _Table(cohort, scored, relevance, options)
    return [table.result(source, pool, located.rows[common]) for source, pool, located in rows]


def _require_queries(cohort: Cohort) -> None:
    where = f"task {cohort.task.name!r} on {cohort.dataset!r}"
    if not cohort.in_split("test").any():
        raise NotRunnableError(f"{where} has no labelled clip in the split 'test', which holds the queries")
    if len(set(cohort.patients)) < 2:
        raise NotRunnableError(f"{where} has one patient only, so no clip of another patient can be found")
    if len(set(cohort.labels)) < 2:
        raise NotRunnableError(f"{where} has the same label for every clip: everything would be relevant")


class _Table:
    """What all rows of one data set share."""

    def __init__(self, asked: Cohort, scored: Cohort, relevance: Relevance, options: RetrieveOptions) -> None:
        self.asked, self.scored, self.relevance, self.options = asked, scored, relevance, options
        self.test = np.flatnonzero(scored.in_split("test"))
        rng = np.random.default_rng(self.seed("retrieve", "shuffled"))
        shuffles = [shuffle_by_patient(scored.labels, scored.patients, rng) for _ in range(N_SHUFFLES)]
        self.labels = np.stack([scored.labels, *shuffles], axis=1)
        self.metadata = self._metadata()

    def seed(self, *purpose: str | int) -> int:
        return derive_seed(self.scored.dataset, self.scored.task.name, *purpose, self.options.seed)

    def points(self, X: Floats) -> ClipPoints:
        return ClipPoints(X, self.scored.clip_ids, self.scored.patients)

    def result(self, source: VectorSource, pool: str, rows: npt.NDArray[np.intp]) -> Retrieval:
        X = pool_vectors(source, rows, pool=pool)
        gallery = self.points(X)
        queries, of = gallery.take(self.test), self.test
        if self.options.level == "frame":
            queries, of = self._frames(source, rows, X.shape[1])
        ranked = self._values(queries, of, gallery, self.options.index)
        values = {name: by_labels[:, 0] for name, by_labels in ranked.items()}
        metrics, kept = self._estimates(values)
        noise = random_features(X.shape, seed=self.seed("random", X.shape[1]))
        random = self.points(noise)
        unranked = self._values(random.take(self.test), self.test, random, "exact", shuffles=False)
        scored = self.scored
        return Retrieval(
            task=scored.task,
            dataset=scored.dataset,
            encoder=source.spec.name,
            variant=source.spec.variant,
            pool=pool,
            protocol=f"{self.options.level}-to-clip",
            dim=X.shape[1],
            metrics=metrics,
            controls={
                "mean": unanswered(metrics, NOT_FITTED),
                "shuffled": self._shuffled(ranked, list(metrics)),
                "random": self._estimates({name: of[:, 0] for name, of in unranked.items()})[0],
                "metadata": self.metadata,
            },
            n_expected=int(self.asked.in_split("test").sum()),
            n_scored=int(kept.sum()),
            n_patients=len(set(scored.patients[self.test][kept])),
            n_gallery=len(scored),
            n_without_relevant=int((~kept).sum()),
            relevance=self.relevance,
            space=self.options.space,
            index=self.options.index,
            index_recall=self._index_recall(queries, gallery),
            seed=self.options.seed,
            draws=self.options.draws,
            set_id=source.set_id,
            fingerprint=source.fingerprint,
            annotations=scored.manifest.annotations_digest,
            leakage=scored.leakage,
            synthetic=scored.manifest.dataset.synthetic,
            where=self.options.where,
            clip_ids=scored.clip_ids[self.test],
            patients=scored.patients[self.test],
            values=values,
        )

    def _frames(self, source: VectorSource, rows: npt.NDArray[np.intp], dims: int) -> tuple[ClipPoints, Codes]:
        """Return evenly spaced frames of the test clips, and the clip that each is of."""
        frames = source.array("frames")
        if frames is None:
            raise MissingVectorsError(
                f"the set of {source.spec.title} on {source.dataset} holds no frame vectors to ask by; "
                "build it with frames, or use --level clip"
            )
        if frames.shape[1] != dims:
            raise VectorError(
                f"frames of {source.spec.title} have {frames.shape[1]} dimensions and its clips {dims}, so a frame "
                "cannot be compared with a clip; use --level clip"
            )
        first, counts = (
            np.asarray(source.index.column(name).to_numpy())[rows[self.test]].astype(np.intp)
            for name in ("frame_row", "n_frame_rows")
        )
        each = [
            np.unique(np.linspace(0, count - 1, min(self.options.frames_each, count)).round().astype(np.intp)) + start
            for start, count in zip(first, counts, strict=True)
        ]
        if not all(len(one) for one in each):
            raise MissingVectorsError(f"some test clips of {source.dataset} have no frame vectors; use --level clip")
        of = np.repeat(self.test, [len(one) for one in each])
        vectors = np.asarray(frames[np.concatenate(each)], dtype=np.float64)
        return ClipPoints(vectors, self.scored.clip_ids[of], self.scored.patients[of]), of

    def _values(
        self, queries: ClipPoints, of: Codes, gallery: ClipPoints, index: str, *, shuffles: bool = True
    ) -> dict[str, Floats]:
        """Return each metric for each test clip and labelling, (m, 1 + shuffles); NaN where nothing is relevant."""
        labels = self.labels if shuffles else self.labels[:, :1]
        deepest, parts = max(self.options.ks), []
        if index == "exact":
            rankings = full_rankings(queries, gallery, space=self.options.space)
        else:
            found = nearest(queries, gallery, k=deepest, space=self.options.space, index=index).rows
            rankings = iter([(np.arange(len(queries)), found, self._is_other(queries, gallery))])
        for asked, order, is_other in rankings:
            scores = [
                self.relevance.score(labels[of[asked], at], labels[:, at], order, is_other, ks=self.options.ks)
                for at in range(labels.shape[1])
            ]
            parts.append({name: np.stack([score[name] for score in scores], axis=1) for name in scores[0]})
        by_query = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if index != "exact":
            by_query["map"] = np.full_like(by_query["map"], np.nan)
        clip = np.searchsorted(self.test, of)
        asked_often = np.bincount(clip)[:, None]
        means = {}
        for name, values in by_query.items():
            total = np.zeros((len(self.test), values.shape[1]))
            np.add.at(total, clip, values)
            means[name] = total / asked_often
        return means

    def _is_other(self, queries: ClipPoints, gallery: ClipPoints) -> npt.NDArray[np.bool_]:
        return np.asarray(queries.patients[:, None] != gallery.patients[None, :], dtype=np.bool_)

    def _estimates(self, values: dict[str, Floats]) -> tuple[dict[str, Estimate], npt.NDArray[np.bool_]]:
        """Return each metric over the test clips that have something to find, and which those are."""
        kept = np.isfinite(values[f"ndcg@{max(self.options.ks)}"])
        if not kept.any():
            raise NotRunnableError(
                f"no test clip of {self.scored.dataset!r} has a relevant clip of another patient ({self.relevance}); "
                "there is nothing to retrieve"
            )
        patients = patient_codes(self.scored.patients[self.test][kept])
        scorer = _MeanScorer({name: of[kept] for name, of in values.items()}, patients)
        estimates = estimate_metrics(
            scorer,
            n_patients=scorer.n_patients,
            draws=self.options.draws,
            seed=self.seed("bootstrap"),
            refusal=interval_refusal(patients),
        )
        if self.options.index != "exact" and np.isnan(values["map"]).all():
            estimates["map"] = Estimate(None, ci_reason=_CUT_OFF)
        return estimates, kept

    def _shuffled(self, ranked: dict[str, Floats], names: list[str]) -> dict[str, Estimate]:
        """Mean and middle 95 % over the permutations."""
        estimates = {}
        for name in names:
            columns = ranked[name][:, 1:]
            kept = np.isfinite(columns)
            if not kept.any():
                estimates[name] = Estimate(None, ci_reason=_CUT_OFF)
                continue
            means = np.where(kept, columns, 0).sum(axis=0) / np.maximum(kept.sum(axis=0), 1)
            low, high = np.quantile(means, [0.025, 0.975])
            estimates[name] = Estimate(float(means.mean()), float(low), float(high))
        return estimates

    def _metadata(self) -> dict[str, Estimate]:
        """Retrieve by facts of the recording: standardised, nearest by Euclidean distance."""
        facts = metadata_features(self.scored)
        points = self.points(Standardiser.of(facts)(facts))
        rankings = full_rankings(points.take(self.test), points, space=Space("l2", normalize=False))
        parts = [
            self.relevance.score(
                self.labels[self.test[asked], 0], self.labels[:, 0], order, is_other, ks=self.options.ks
            )
            for asked, order, is_other in rankings
        ]
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return self._estimates(values)[0]

    def _index_recall(self, queries: ClipPoints, gallery: ClipPoints) -> float | None:
        if self.options.index == "exact":
            return None
        how: dict[str, Any] = {"k": max(self.options.ks), "space": self.options.space}
        found = nearest(queries, gallery, index=self.options.index, **how)
        return share_found(found, nearest(queries, gallery, **how))
