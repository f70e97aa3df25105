"""Text to clip: do the clips nearest to a prompt show what it says? Nothing is fitted and nothing chosen.

Queries are the prompts of the task in the encoder's bank, the gallery is every labelled test clip. A clip is relevant
to a prompt of its class; to a prompt with a number its gain falls with the distance, as between clips. Each metric is
the mean over the prompts to which some clip is relevant.

The prompts are given, so nothing of them is sampled: an interval is of the patients among whose clips is looked, all
their clips drawn together, every ranking drawn again with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore import Manifest
from embedstore.errors import UnknownNameError
from embedstore.identity import derive_seed
from embedstore.where import parse_where
from evaltools.closeness import ClipPoints, Rows, full_rankings
from evaltools.cohort import Cohort, NotRunnableError, build_cohort
from evaltools.common_clips import locate_in_common
from evaltools.controls import random_features, shuffle_by_patient
from evaltools.features import VectorSource, pool_vectors, require_pool
from evaltools.metrics import Codes, Floats
from evaltools.prompt_bank import BankSource, TaskPrompts, match_classes, read_prompts, require_dims
from evaltools.resample import Estimate, estimate_metrics, interval_refusal, patient_codes
from evaltools.retrieval import N_SHUFFLES, NOT_FITTED, Relevance, Retrieval, unanswered
from evaltools.retrieve import RetrieveOptions
from evaltools.task import Task

__all__ = ["TextScorer", "retrieve_by_text"]

_NO_WORDS = "facts of the recording cannot be compared with words"


class TextScorer:
    """Retrieval metrics of given rankings for many weightings of patients at once.

    A patient who is drawn twice has each clip twice, one behind the other. What the copies add to an average
    precision or a discounted gain is a difference of harmonic numbers or of summed discounts.

    Parameters
    ----------
    gains : (m, n) float64
        Of each clip for each prompt.
    order : (m, n) int
        Clips, nearest first.
    patients : (n,) int
        Of each clip, 0 to P - 1.
    ks : sequence of int
        Depths.
    """

    def __init__(self, gains: Floats, order: Rows, patients: Codes, *, ks: Sequence[int]) -> None:
        self.n_patients, self._patients, self._order, self._ks = int(patients.max()) + 1, patients, order, tuple(ks)
        ranked = np.take_along_axis(gains, order, axis=1)
        prompt, self._place = np.nonzero(ranked)
        self._prompt, self._gains = prompt, ranked[prompt, self._place]
        self._known = np.unique(prompt)  # prompts with a relevant clip
        self._starts = np.searchsorted(prompt, self._known)
        self._n_prompts = len(gains)
        self._best = np.lexsort((-self._gains, prompt))
        self._clips = order[prompt, self._place]

    def __call__(self, counts: Floats) -> dict[str, Floats]:
        """Return the mean of each metric over prompts for each row of ``counts`` (B, P); NaN where none has one."""
        of_rows = [self.of_prompts(row) for row in counts]
        means = {}
        for name in of_rows[0]:
            values = np.stack([of[name] for of in of_rows])
            n_known = np.isfinite(values).sum(axis=1)
            means[name] = np.nansum(values, axis=1) / np.where(n_known > 0, n_known, np.nan)
        return means

    def of_prompts(self, counts: Floats) -> dict[str, Floats]:
        """Return each metric for each prompt (m,), for one weighting (P,); NaN where no relevant clip has weight."""
        weights = counts[self._patients]
        n = int(weights.sum())
        steps = np.arange(1, n + 1)
        harmonic, discounts = (np.append(0.0, np.cumsum(each)) for each in (1 / steps, 1 / np.log2(steps + 1)))
        reached = np.cumsum(weights[self._order], axis=1)[self._prompt, self._place].astype(np.intp)
        of_clip = weights[self._clips]
        before = reached - of_clip.astype(np.intp)
        n_relevant = np.add.reduceat(of_clip, self._starts)
        irrelevant = before - self._before(of_clip)
        precision = of_clip - irrelevant * (harmonic[reached] - harmonic[before])
        shown = np.where(n_relevant > 0, n_relevant, np.nan)
        scores = {"map": np.add.reduceat(precision, self._starts) / shown}
        ideal = of_clip[self._best]
        ideal_before = self._before(ideal).astype(np.intp)
        ideal_reached = ideal_before + ideal.astype(np.intp)
        for k in self._ks:
            found = np.logical_or.reduceat((of_clip > 0) & (before < k), self._starts)
            scores[f"recall@{k}"] = np.where(n_relevant > 0, found, np.nan)
            near, best = (
                np.add.reduceat(
                    gains * (discounts[np.minimum(stop, k)] - discounts[np.minimum(start, k)]), self._starts
                )
                for gains, start, stop in (
                    (self._gains, before, reached),
                    (self._gains[self._best], ideal_before, ideal_reached),
                )
            )
            scores[f"ndcg@{k}"] = near / np.where(n_relevant > 0, best, np.nan)
        return {name: self._of_all(of) for name, of in scores.items()}

    def _of_all(self, of_known: Floats) -> Floats:
        values = np.full(self._n_prompts, np.nan)
        values[self._known] = of_known
        return values

    def _before(self, of_clip: Floats) -> Floats:
        """Return the weight that stands before each relevant clip of its prompt."""
        before = np.cumsum(of_clip) - of_clip
        sizes = np.diff(np.append(self._starts, len(before)))
        sums: Floats = before - np.repeat(before[self._starts], sizes)
        return sums


@dataclass(frozen=True)
class _Asked:
    """One set of vectors with its bank, the prompts, and what each prompt says in the words of the labels."""

    source: VectorSource
    bank: BankSource
    prompts: TaskPrompts
    said: npt.NDArray[Any]


def retrieve_by_text(
    banked: Sequence[tuple[VectorSource, BankSource]], manifest: Manifest, *, task: Task, options: RetrieveOptions
) -> list[Retrieval]:
    """Score several sets of one data set by the prompts of their encoders, on the test clips that all of them have.

    Raises
    ------
    UnknownNameError
        A pooling or column is not known, or an approximate index is asked for.
    ContentError
        Labels, leakage, dimensions, missing vectors or k forbid a result, or a bank has no prompts of the task.
    """
    if options.index != "exact":
        raise UnknownNameError("prompts rank the whole gallery, so they are asked exactly; leave --index out")
    pools = [require_pool(pool) for pool in dict.fromkeys(options.pools)]
    where = None if options.where is None else parse_where(options.where)
    cohort = build_cohort(manifest, task, where=where, allow_leakage=options.allow_leakage)
    in_order: Any = np.argsort(cohort.clip_ids.astype(str), kind="stable")
    cohort = cohort.take(in_order)
    tested: Any = cohort.in_split("test")
    cohort = cohort.take(tested)
    _require_gallery(cohort, task, manifest)
    relevance = Relevance.of(task, within=options.within)
    asked = [_asked(source, bank, cohort) for source, bank in banked]
    pairs = [(one, pool) for one in asked for pool in pools]
    places, common = locate_in_common(
        [(one.source, pool) for one, pool in pairs], cohort, allow_missing=options.allow_missing
    )
    scored = cohort.take(common)
    _require_gallery(scored, task, manifest)
    if max(options.ks) > len(scored):
        raise NotRunnableError(
            f"k is {max(options.ks)}, and only {len(scored)} test clips can be found; give a smaller --k"
        )
    table = _Table(scored, relevance, options)
    return [
        table.result(one, pool, pool_vectors(one.source, place.rows[common], pool=pool))
        for (one, pool), place in zip(pairs, places, strict=True)
    ]


def _require_gallery(cohort: Cohort, task: Task, manifest: Manifest) -> None:
    where = f"task {task.name!r} on {manifest.name!r}"
    if not len(cohort):
        raise NotRunnableError(f"{where} has no labelled clip in the split 'test', among which is looked")
    if len(set(cohort.labels)) < 2:
        raise NotRunnableError(f"{where} has the same label for every test clip: everything would be relevant")


def _asked(source: VectorSource, bank: BankSource, cohort: Cohort) -> _Asked:
    prompts = read_prompts(bank, cohort.task)
    if cohort.task.kind == "regression":
        return _Asked(source, bank, prompts, prompts.values)
    where = f"the bank {bank.name!r} of {bank.encoder}"
    class_of = match_classes(prompts.classes.tolist(), sorted(set(cohort.labels)), where=where)
    return _Asked(source, bank, prompts, np.array([class_of[name] for name in prompts.classes], dtype=object))


class _Table:
    """What all rows of one data set share."""

    def __init__(self, scored: Cohort, relevance: Relevance, options: RetrieveOptions) -> None:
        self.scored, self.relevance, self.options = scored, relevance, options
        self.patients = patient_codes(scored.patients)
        classes = scored.labels.astype(str) if scored.task.kind == "classification" else None
        self.refusal = interval_refusal(self.patients, classes)
        rng = np.random.default_rng(self.seed("retrieve by text", "shuffled"))
        self.shuffles = [shuffle_by_patient(scored.labels, scored.patients, rng) for _ in range(N_SHUFFLES)]

    def seed(self, *purpose: str | int) -> int:
        return derive_seed(self.scored.dataset, self.scored.task.name, *purpose, self.options.seed)

    def result(self, asked: _Asked, pool: str, X: Floats) -> Retrieval:
        source, bank, scored = asked.source, asked.bank, self.scored
        require_dims(bank, X.shape[1], title=source.spec.title, dataset=source.dataset)
        order = self._order(asked, X)
        gains = self.relevance.gains(asked.said, scored.labels)
        relevant: npt.NDArray[np.bool_] = np.any(gains > 0, axis=1)
        if not relevant.any():
            raise NotRunnableError(
                f"no test clip of {scored.dataset!r} is relevant to a prompt of {bank.name!r} ({self.relevance}); "
                "there is nothing to retrieve"
            )
        scorer = self._scorer(asked, scored.labels, order)
        metrics = estimate_metrics(
            scorer,
            n_patients=scorer.n_patients,
            draws=self.options.draws,
            seed=self.seed("bootstrap"),
            refusal=self.refusal,
        )
        noise = random_features((len(X), X.shape[1]), seed=self.seed("random", X.shape[1]))
        random = self._scorer(asked, scored.labels, self._order(asked, noise))
        return Retrieval(
            task=scored.task,
            dataset=scored.dataset,
            encoder=source.spec.name,
            variant=source.spec.variant,
            pool=pool,
            protocol="text-to-clip",
            dim=X.shape[1],
            metrics=metrics,
            controls={
                "mean": unanswered(metrics, NOT_FITTED),
                "shuffled": self._shuffled(asked, order),
                "random": estimate_metrics(
                    random,
                    n_patients=scorer.n_patients,
                    draws=self.options.draws,
                    seed=self.seed("bootstrap"),
                    refusal=self.refusal,
                ),
                "metadata": unanswered(metrics, _NO_WORDS),
            },
            n_expected=len(relevant),
            n_scored=int(relevant.sum()),
            n_patients=scorer.n_patients,
            n_gallery=len(scored),
            n_without_relevant=int((~relevant).sum()),
            relevance=self.relevance,
            space=self.options.space,
            index="exact",
            index_recall=None,
            seed=self.options.seed,
            draws=self.options.draws,
            set_id=source.set_id,
            fingerprint=source.fingerprint,
            annotations=scored.manifest.annotations_digest,
            leakage=scored.leakage,
            synthetic=scored.manifest.dataset.synthetic,
            where=self.options.where,
            clip_ids=np.array(asked.prompts.texts, dtype=object),
            patients=np.full(len(relevant), "", dtype=object),
            values=scorer.of_prompts(np.ones(scorer.n_patients)),
            bank={"bank": bank.name, "bank_digest": str(bank.spec["bank_digest"])},
        )

    def _order(self, asked: _Asked, X: Floats) -> Rows:
        """Return the clips nearest to each prompt first, (m, n); ties by clip id."""
        n = len(asked.prompts)
        prompts = ClipPoints(asked.prompts.vectors, np.arange(n).astype(str).astype(object), np.full(n, "", object))
        gallery = ClipPoints(X, self.scored.clip_ids, self.scored.patients)
        return np.concatenate([order for _, order, _ in full_rankings(prompts, gallery, space=self.options.space)])

    def _scorer(self, asked: _Asked, labels: npt.NDArray[Any], order: Rows) -> TextScorer:
        return TextScorer(self.relevance.gains(asked.said, labels), order, self.patients, ks=self.options.ks)

    def _shuffled(self, asked: _Asked, order: Rows) -> dict[str, Estimate]:
        """Mean and middle 95 % over the permutations."""
        once = np.ones((1, int(self.patients.max()) + 1))
        scores = [self._scorer(asked, labels, order)(once) for labels in self.shuffles]
        estimates = {}
        for name in scores[0]:
            means = np.array([score[name][0] for score in scores])
            low, high = np.quantile(means, [0.025, 0.975])
            estimates[name] = Estimate(float(means.mean()), float(low), float(high))
        return estimates
