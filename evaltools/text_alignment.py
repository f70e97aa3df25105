"""The text axis of an encoder: do clips stand in the order of their true value along the line its prompts span?

The axis is the first principal component of the prompts that say a number, towards the larger ones; a clip stands
where the mean of its unit frame vectors, brought to unit length, falls on it. Nothing is fitted: r and rho say how
places and truth go together, with their sign, and ``r2`` is the share of the variance that a straight line through
these clips explains, the square of r (BioMedIA-MBZUAI/CardioBench, evaluation/vizualizations/ef_vis.py).

Clips are not compared with each other here, so intervals are bootstrapped over patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embedstore import EmbeddingSet, Manifest, Store
from embedstore.errors import UnknownNameError, did_you_mean
from embedstore.identity import derive_seed
from embedstore.manifest import SPLITS
from embedstore.where import parse_where
from evaltools.align import Alignment, AlignOptions
from evaltools.cohort import Cohort, NotRunnableError, build_cohort
from evaltools.common_clips import locate_in_common
from evaltools.features import VectorSource
from evaltools.fitting import Targets
from evaltools.manifest_loop import once, over_manifests
from evaltools.metrics import Floats, RegressionScorer
from evaltools.prompt_answers import AskedSet, PromptAnswers
from evaltools.prompt_bank import BankSource, banked_sets
from evaltools.resample import estimate_metrics, interval_refusal, patient_codes
from evaltools.task import Task
from evaltools.zeroshot_protocols import ZERO_SHOT_PROTOCOLS

__all__ = ["TEXT_AXIS", "align_text", "align_text_manifest"]

TEXT_AXIS = "text-axis"
METRICS = ("pearson", "spearman", "r2")
_MIN_CLIPS = 3


class _AxisScorer:
    """Pearson, Spearman and the square of the former, for many weightings of patients at once."""

    def __init__(self, scorer: RegressionScorer) -> None:
        self._scorer, self.n_patients = scorer, scorer.n_patients

    def __call__(self, counts: Floats) -> dict[str, Floats]:
        scores = self._scorer(counts)
        return {"pearson": scores["pearson"], "spearman": scores["spearman"], "r2": scores["pearson"] ** 2}


def align_text(
    store: Store,
    *,
    task: Task,
    datasets: Sequence[str | Path] = (),
    encoders: Sequence[str] = (),
    options: AlignOptions | None = None,
    bank: str | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Alignment]:
    """Hold the text axis of each encoder against the truth, on every data set named, or on all with labels.

    Parameters
    ----------
    task : Task
        One of numbers.
    options : AlignOptions
        Of which the split, selection, seed and number of draws are read; without, 2,000 draws.
    bank : str or None
        Of prompts, where the store has several of an encoder.
    on_skip : callable
        Told the reason for each data set that cannot be scored, and for each encoder without text vectors.

    Returns
    -------
    list of Alignment
        Three for each data set and encoder, told apart by ``metric``.

    Raises
    ------
    UnknownNameError
        A data set, encoder, bank or split is not known, or the task has classes.
    MissingVectorsError
        No encoder asked for has text vectors, or they have none of the task.
    ContentError
        Labels, leakage, dimensions or missing vectors forbid a result.
    """
    chosen = options or AlignOptions(draws=2000)
    _require_numbers(task)
    tell = once(on_skip)

    def score(sets: Sequence[EmbeddingSet], manifest: Manifest, task: Task) -> list[Alignment]:
        banked = banked_sets(store, sets, name=bank, tell=tell)
        return align_text_manifest(banked, manifest, task=task, options=chosen)

    return over_manifests(store, score, tasks=[task], datasets=datasets, encoders=encoders, on_skip=tell)


def align_text_manifest(
    banked: Sequence[tuple[VectorSource, BankSource]], manifest: Manifest, *, task: Task, options: AlignOptions
) -> list[Alignment]:
    """Hold the text axes of several sets of one data set against the truth, on the clips that all of them have.

    Raises
    ------
    UnknownNameError, ContentError
        As `align_text`.
    """
    if task.kind != "regression":
        raise UnknownNameError(f"a text axis is one of numbers, and {task.name!r} has classes; give another --task")
    if options.split not in (*SPLITS, "all"):
        raise UnknownNameError(f"unknown split {options.split!r}{did_you_mean(options.split, [*SPLITS, 'all'])}")
    where = None if options.where is None else parse_where(options.where)
    cohort = build_cohort(manifest, task, where=where, allow_leakage=True)  # nothing is fitted that could leak
    if options.split != "all":
        in_split: Any = cohort.in_split(options.split)
        cohort = cohort.take(in_split)
    asked = [AskedSet.of(source, bank, task) for source, bank in banked]
    located, common = locate_in_common([one.pooled for one in asked], cohort, allow_missing=True)
    scored = cohort.take(common)
    if len(scored) < _MIN_CLIPS or len(set(scored.labels)) < 2:
        raise NotRunnableError(
            f"task {task.name!r} on {manifest.name!r} has {len(scored)} clips of {len(set(scored.labels))} different "
            f"labels in the split {options.split!r}; {_MIN_CLIPS} clips of 2 are the least that go along an axis"
        )
    return [
        alignment
        for one, place in zip(asked, located, strict=True)
        for alignment in _alignments(one, place.rows[common], scored, options, n_dropped=int((~common).sum()))
    ]


def _require_numbers(task: Task) -> None:
    if task.kind != "regression":
        raise UnknownNameError(f"a text axis is one of numbers, and {task.name!r} has classes; give another --task")


def _alignments(
    asked: AskedSet, rows: Any, scored: Cohort, options: AlignOptions, *, n_dropped: int
) -> list[Alignment]:
    everyone, nobody = np.arange(len(scored)), np.arange(0)
    targets = replace(Targets.of(scored), train=nobody, val=nobody, test=everyone)
    answers = PromptAnswers(asked, rows, targets, ZERO_SHOT_PROTOCOLS[TEXT_AXIS], {})
    patients = patient_codes(scored.patients)
    scorer = _AxisScorer(RegressionScorer(scored.labels, answers.places_on_axis(), patients=patients))
    estimates = estimate_metrics(
        scorer,
        n_patients=scorer.n_patients,
        draws=options.draws,
        seed=derive_seed(scored.dataset, scored.task.name, TEXT_AXIS, options.split, options.seed),
        refusal=interval_refusal(patients),
    )
    settings = {
        "vectors": asked.pool,
        "draws": options.draws,
        "seed": options.seed,
        "bank": asked.bank.name,
        "bank_digest": asked.bank.spec["bank_digest"],
        "n_prompts": len(asked.prompts),
        "annotations": scored.manifest.annotations_digest,
    }
    return [
        Alignment(
            a=asked.source.spec.title,
            b=scored.task.name,
            dataset=scored.dataset,
            method=TEXT_AXIS,
            metric=metric,
            estimate=estimates[metric],
            split=options.split,
            n_clips=len(scored),
            n_patients=scorer.n_patients,
            n_dropped=n_dropped,
            settings=settings,
            set_a=asked.source.set_id,
            set_b=None,
            media=scored.manifest.media_digest,
            synthetic=scored.manifest.dataset.synthetic,
        )
        for metric in METRICS
    ]
