"""`heads`: score a model's own published task heads, with the intervals and controls of a probe.

Heads are applied to each window of a clip, then averaged, as their authors do; to the clip vector where the set has
no windows. Which head answers which task stands in ``head_tasks.yaml``. Nothing is fitted and no threshold is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedstore import EmbeddingSet, Manifest, Store
from embedstore.errors import ContentError, MissingVectorsError, UnknownNameError
from evaltools.features import VectorSource
from evaltools.fitting import Targets
from evaltools.head_outputs import Head, read_head
from evaltools.head_tasks import UNIT_FACTORS, HeadTask, head_task, head_tasks
from evaltools.manifest_loop import once, over_manifests
from evaltools.metrics import Floats
from evaltools.own_clips import each_alone
from evaltools.probe_options import ProbeOptions
from evaltools.prompt_bank import BankSource, match_classes
from evaltools.result import Result
from evaltools.score_table import TableRow
from evaltools.task import Task
from evaltools.unfitted import Answers, UnfittedProtocol, labels_of, unfitted_tables

__all__ = ["HEADS_PROTOCOL", "HeadSource", "heads", "heads_manifest"]

HEADS_PROTOCOL = UnfittedProtocol(
    name="heads",
    summary="The model's own published task heads, on each window, then averaged.",
    source="the authors of each model; evaltools/head_tasks.yaml says which head answers which task",
    differences=("windows are those of the set",),
    rules={
        "regression": {"method": "published head on each window, mean of the windows", "calibration": "none"},
        "classification": {
            "method": "published head on each window, mean share of the windows",
            "decide": "largest share, a finding above one half",
        },
    },
)
_ABSENT, _PRESENT = "absent", "present"


@dataclass(frozen=True)
class HeadSource:
    """A set of vectors with the bank of its encoder's heads, and the head that is asked."""

    source: VectorSource
    bank: BankSource
    asked: HeadTask


def heads(
    store: Store,
    *,
    tasks: Sequence[Task],
    datasets: Sequence[str | Path] = (),
    encoders: Sequence[str] = (),
    options: ProbeOptions | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Result]:
    """Score the published heads of the encoders of a store.

    Parameters
    ----------
    tasks, datasets, encoders
        As in `evaltools.knn.knn`.
    on_skip : callable
        Told the reason for each data set that cannot be scored, and for each encoder without a head for a task.

    Raises
    ------
    UnknownNameError
        A data set, encoder or column is not known.
    MissingVectorsError
        No encoder asked for has a head for the task, or the store has no bank of them.
    ContentError
        Labels, leakage, units, dimensions or missing vectors forbid a result.
    """
    chosen = options or ProbeOptions()
    tell = once(on_skip)

    def score(sets: Sequence[EmbeddingSet], manifest: Manifest, task: Task) -> list[Result]:
        asked: list[HeadSource] = []
        lacking: list[str] = []
        for source in sets:
            mapped = head_task(source.spec.name, task.name)
            if mapped is None:
                lacking.append(_no_head(source, task))
            elif not store.banks(kind="heads", encoder=source.spec.name):
                lacking.append(
                    f"the store has no heads of {source.spec.title}; build it again with its weights at hand"
                )
            else:
                weights = source.spec.weights_sha256
                bank = store.bank(kind="heads", encoder=source.spec.name, weights_sha256=weights)
                asked.append(HeadSource(source, bank, mapped))
        if not asked:
            raise MissingVectorsError("; ".join(dict.fromkeys(lacking)))
        for reason in lacking:
            tell(reason)
        return heads_manifest(asked, manifest, task=task, options=chosen)

    return over_manifests(store, score, tasks=tasks, datasets=datasets, encoders=encoders, on_skip=tell)


def _no_head(source: VectorSource, task: Task) -> str:
    known = sorted(head_tasks().get(source.spec.name, {}))
    which = f", only for {', '.join(known)}" if known else ""
    return f"{source.spec.title} has no published head for the task {task.name!r}{which}"


def heads_manifest(
    sources: Sequence[HeadSource], manifest: Manifest, *, task: Task, options: ProbeOptions
) -> list[Result]:
    """Score the heads of several sets of one data set, on the clips that all of them have.

    Raises
    ------
    UnknownNameError, ContentError
        As `heads`.
    """
    task = options.task_of(task)
    if options.own_clips:
        return each_alone(lambda own, how: heads_manifest(own, manifest, task=task, options=how), sources, options)
    if options.cv is not None:
        raise UnknownNameError("published heads are not fitted, so they have no folds; leave --cv out")
    read = [read_head(one.bank, one.asked.head, one.source) for one in sources]
    labels = labels_of(manifest, task)
    classes = [_classes(one.asked, head, labels) for one, head in zip(sources, read, strict=True)]
    results: list[Result] = []
    for table, located in unfitted_tables(
        [(one.source, "clip") for one in sources],
        manifest,
        task=task,
        protocol=HEADS_PROTOCOL,
        options=options,
        spoken=sorted({name for of_head in classes for name in of_head}),
    ):
        for one, head, of_head, where in zip(sources, read, classes, located, strict=True):
            rows, dim = where.rows[table.common], head.weight.shape[1]

            def answered(
                noise: np.random.Generator | None, one: HeadSource = one, head: Head = head, rows: Any = rows,
                of_head: Mapping[str, list[int]] = of_head, targets: Targets = table.targets,
            ) -> Answers:  # fmt: skip
                outputs = head.of_clips(one.source, rows, noise=noise)
                predicted = _predicted(outputs, head, of_head, targets, task)
                return Answers(predict=lambda labels: predicted)

            drawn = np.random.default_rng(table.seed("random", dim))
            extras = {
                "head": head.task,
                "bank": one.bank.name,
                "bank_digest": one.bank.spec["bank_digest"],
                "windows": "each window" if one.source.array("windows") is not None else "the clip vector",
            }
            row = TableRow(one.source, "windows" if extras["windows"] == "each window" else "clip", where, dim=dim)
            noise = answered(drawn) if options.controls else None
            results += table.answered(row, answered(None), noise=noise, extras=extras)
    return results


def _classes(asked: HeadTask, head: Head, labels: Sequence[str]) -> dict[str, list[int]]:
    """Return which outputs of the head make each class of the labels; nothing for numbers."""
    if not labels:
        return {}
    where = f"the head {head.task!r}"
    if asked.present or len(head.labels) == 1:
        present = [at for at, name in enumerate(head.labels) if name in asked.present] or [0]
        named = match_classes([_PRESENT, _ABSENT], labels, where=where)
        return {named[_ABSENT]: [], named[_PRESENT]: present}
    renamed = [asked.classes.get(name, name) for name in head.labels]
    matched = match_classes(renamed, labels, where=where)
    of_head: dict[str, list[int]] = {}
    for at, name in enumerate(renamed):
        of_head.setdefault(matched[name], []).append(at)
    return of_head


def _predicted(outputs: Floats, head: Head, of_head: Mapping[str, list[int]], targets: Targets, task: Task) -> Floats:
    if targets.kind == "regression":
        return outputs[:, 0] * _factor(head, task)
    shares = np.zeros((len(outputs), len(targets.classes)))
    for name, columns in of_head.items():
        at = targets.classes.index(name)
        shares[:, at] = outputs[:, columns].sum(axis=1) if columns else 0.0
        if not columns:  # the finding that is not there: what the present ones leave
            others = [column for of_class in of_head.values() for column in of_class]
            shares[:, at] = 1.0 - outputs[:, others].sum(axis=1)
    return shares


def _factor(head: Head, task: Task) -> float:
    if head.unit == task.unit or head.unit is None or task.unit is None:
        return 1.0
    factor = UNIT_FACTORS.get((head.unit, task.unit))
    if factor is None:
        raise ContentError(
            f"the head {head.task!r} answers in {head.unit}, and task {task.name!r} asks for {task.unit}; neither is "
            "converted into the other"
        )
    return factor
