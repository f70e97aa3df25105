"""`zeroshot`: score stored image vectors against stored text vectors, with the intervals and controls of a probe.

Rules are those of `evaltools.zeroshot_rules`, and the retrieval-augmented ones of `evaltools.candidates`. Which text
was embedded is part of the answer, so the name and digest of the prompt bank stand in each result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore import EmbeddingSet, Manifest, Store
from embedstore.errors import UnknownNameError
from evaltools.ablation import ablation
from evaltools.candidates import retrieval_augmented
from evaltools.features import VectorSource
from evaltools.manifest_loop import once, over_manifests
from evaltools.own_clips import each_alone
from evaltools.probe_options import ProbeOptions
from evaltools.prompt_answers import AskedSet, PromptAnswers
from evaltools.prompt_bank import BankSource, banked_sets, match_classes
from evaltools.result import Result
from evaltools.score_table import TableRow
from evaltools.task import Task
from evaltools.unfitted import UnfittedProtocol, labels_of, unfitted_tables
from evaltools.zeroshot_protocols import DEFAULT_PROTOCOL, is_retrieval, zero_shot_protocol

__all__ = ["ZeroShotOptions", "zeroshot", "zeroshot_manifest"]

PAPER_BANK = "cardiobench"  # what the bank of CardioBench's own prompt file is called


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(ProbeOptions):
    """How to ask: the options of a probe, of which poolings and folds mean nothing here, and these.

    Attributes
    ----------
    bank : str or None
        Name of the prompt or candidate bank, where the store has several of an encoder.
    ablate : bool
        Score each prompt alone, and all but it.
    """

    bank: str | None = None
    ablate: bool = False


def zeroshot(
    store: Store,
    *,
    tasks: Sequence[Task],
    datasets: Sequence[str | Path] = (),
    encoders: Sequence[str] = (),
    options: ZeroShotOptions | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Result]:
    """Score the encoders of a store against their stored text vectors.

    Parameters
    ----------
    tasks, datasets, encoders
        As in `evaltools.knn.knn`.
    options : ZeroShotOptions
        Without a protocol: ``cardiobench``.
    on_skip : callable
        Told the reason for each data set that cannot be scored, and for each encoder without text vectors.

    Raises
    ------
    UnknownNameError
        A data set, encoder, bank, protocol or column is not known.
    MissingVectorsError
        No encoder asked for has text vectors, or they have none of the task.
    ContentError
        Labels, leakage, dimensions or missing vectors forbid a result.
    """
    chosen = options or ZeroShotOptions()
    tell = once(on_skip)

    def score(sets: Sequence[EmbeddingSet], manifest: Manifest, task: Task) -> list[Result]:
        if is_retrieval(chosen.protocol or DEFAULT_PROTOCOL):
            protocol = zero_shot_protocol(chosen.protocol or "", task=task, changes=chosen.settings)
            return retrieval_augmented(store, sets, manifest, task=task, protocol=protocol, options=chosen)
        banked = banked_sets(store, sets, name=chosen.bank, tell=tell)
        return zeroshot_manifest(banked, manifest, task=task, options=chosen)

    return over_manifests(store, score, tasks=tasks, datasets=datasets, encoders=encoders, on_skip=tell)


def zeroshot_manifest(
    banked: Sequence[tuple[VectorSource, BankSource]], manifest: Manifest, *, task: Task, options: ZeroShotOptions
) -> list[Result]:
    """Score several sets of one data set, each against its bank, on the clips that all of them have.

    Raises
    ------
    UnknownNameError, ContentError
        As `zeroshot`.
    """
    if options.own_clips:
        return each_alone(lambda own, how: zeroshot_manifest(own, manifest, task=task, options=how), banked, options)
    if options.cv is not None:
        raise UnknownNameError("zero-shot fits nothing, so it has no folds; leave --cv out")
    task = options.task_of(task)
    protocol = zero_shot_protocol(options.protocol or DEFAULT_PROTOCOL, task=task, changes=options.settings)
    asked = [AskedSet.of(source, bank, task) for source, bank in banked]
    labels = labels_of(manifest, task)
    classes = [_classes(one, labels) for one in asked]
    results: list[Result] = []
    for table, located in unfitted_tables(
        [one.pooled for one in asked],
        manifest,
        task=task,
        protocol=protocol,
        options=options,
        spoken=sorted({match for class_of in classes for match in class_of.values()}),
    ):
        for one, class_of, where in zip(asked, classes, located, strict=True):
            answers = PromptAnswers(one, where.rows[table.common], table.targets, protocol, class_of)
            dim = one.prompts.vectors.shape[1]
            noise = answers.answers(noise_seed=table.seed("random", dim)) if options.controls else None
            extras = _bank_facts(one, protocol)
            if options.ablate:
                extras["ablation"] = ablation(table, answers)
            row = TableRow(one.source, one.pool, where, dim=dim)
            results += table.answered(row, answers.answers(), noise=noise, extras=extras)
    return results


def _classes(asked: AskedSet, labels: Sequence[str]) -> dict[str, str]:
    if not labels:
        return {}
    where = f"the bank {asked.bank.name!r} of {asked.bank.encoder}"
    return match_classes(asked.prompts.classes.tolist(), labels, where=where)


def _bank_facts(asked: AskedSet, protocol: UnfittedProtocol) -> dict[str, Any]:
    """Return what a result says of the bank."""
    bank, spec = asked.bank, asked.source.spec
    notes = []
    if protocol.name.split("+")[0] == "cardiobench":
        differs = []
        if bank.name != PAPER_BANK:
            differs.append(f"the prompts of the bank {bank.name!r} are not CardioBench's")
        if spec.variant != "cardiobench":
            differs.append(f"the frames are those of {spec.title}")
        if differs:
            notes.append(f"CardioBench's rule, not the paper's number: {' and '.join(differs)}")
    if asked.pool == "clip":
        notes.append("the set holds no frame vectors that fit the text, so each clip vector counts as one frame")
    return {
        "bank": bank.name,
        "bank_digest": bank.spec["bank_digest"],
        "tokenizer": bank.spec.get("tokenizer"),
        "n_prompts": len(asked.prompts),
        "notes": notes,
    }
