"""`probe`: fit a simple model on stored vectors and score it, with intervals and controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from embedstore import Manifest, Store
from embedstore.errors import UnknownNameError
from evaltools.cohort import require_runnable
from evaltools.common_clips import locate_in_common
from evaltools.features import Located, VectorSource, require_pool
from evaltools.manifest_loop import over_manifests
from evaltools.own_clips import each_alone
from evaltools.probe_options import ProbeOptions
from evaltools.protocols import EvalProtocol, get_protocol
from evaltools.result import Result
from evaltools.score_table import ScoreTable, asked_cohorts
from evaltools.selection import sets_of
from evaltools.task import Task, get_task
from evaltools.task_rows import MAIN_ROW, TaskRow, pick_rows, rows_by_fit

__all__ = ["ProbeOptions", "asked_protocol", "probe", "probe_all", "probe_manifest", "score_table", "score_tables"]


def probe(
    store: Store,
    *,
    task: str | Path | Task,
    dataset: str | Path | Manifest | None = None,
    encoder: str | Sequence[str] | None = None,
    options: ProbeOptions | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Result]:
    """Probe the encoders of a store on a task.

    All encoders and poolings of one data set are scored on the clips that all of them have.

    Parameters
    ----------
    store : Store
    task : str, Path or Task
        Name of a shipped task, a task file, or a task.
    dataset : str, Path, Manifest or None
        Name of a data set, a manifest file, or a manifest; without, every data set of the store that has both the
        label and vectors, of which those are skipped whose labels or splits do not allow a probe.
    encoder : str, sequence of str or None
        ``NAME[@VARIANT]``; without, every encoder that the store has for the data set.
    options : ProbeOptions
    on_skip : callable
        Told the reason for each data set that is skipped.

    Returns
    -------
    list of Result
        By data set, row of the task, encoder, pooling.

    Raises
    ------
    UnknownNameError
        A task, data set, encoder, protocol, pooling or column is not known, or no data set has the label.
    ContentError
        Labels, splits, leakage or missing vectors forbid a result.

    Examples
    --------
    >>> results = probe(embedstore.open("store"), task="lvef")  # doctest: +SKIP
    >>> results[0].metrics["r2"]  # doctest: +SKIP
    Estimate(value=0.67, ci_low=0.6, ci_high=0.73, ci_reason=None)
    """
    asked = task if isinstance(task, Task) else get_task(task)
    chosen = options or ProbeOptions()
    titles = [encoder] if isinstance(encoder, str) else list(encoder or ())
    if isinstance(dataset, Manifest):
        return probe_manifest(sets_of(store, dataset.name, titles=titles), dataset, task=asked, options=chosen)
    datasets = [] if dataset is None else [dataset]
    return probe_all(store, tasks=[asked], datasets=datasets, encoder=titles, options=chosen, on_skip=on_skip)


def probe_all(
    store: Store,
    *,
    tasks: Sequence[Task],
    datasets: Sequence[str | Path] = (),
    encoder: Sequence[str] = (),
    options: ProbeOptions | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Result]:
    """Probe several tasks and data sets, each as `probe` does; no data set named means all.

    Raises
    ------
    UnknownNameError, ContentError
        As `probe`.
    """
    chosen = options or ProbeOptions()
    return over_manifests(
        store,
        lambda sets, manifest, task: probe_manifest(sets, manifest, task=task, options=chosen),
        tasks=tasks,
        datasets=datasets,
        encoders=encoder,
        on_skip=on_skip,
    )


def probe_manifest(
    sources: Sequence[VectorSource], manifest: Manifest, *, task: Task, options: ProbeOptions
) -> list[Result]:
    """Probe several sets of one data set on the clips that all of them have.

    Raises
    ------
    UnknownNameError, ContentError
        As `probe`.
    """
    if options.own_clips:
        return each_alone(lambda own, how: probe_manifest(own, manifest, task=task, options=how), sources, options)
    task = options.task_of(task)
    task_rows = pick_rows(task.on(manifest.name).rows, options.rows)
    results = [
        result
        for table, rows in score_tables(sources, manifest, task=task, options=options)
        for of in rows
        for result in table.results(*of)
    ]
    return sorted(results, key=lambda result: task_rows.index(result.row))


def asked_protocol(task: Task, options: ProbeOptions) -> tuple[EvalProtocol, list[str]]:
    """Return the protocol of the options, the task's primary one without, and the poolings.

    Raises
    ------
    UnknownNameError
        A protocol, setting or pooling is not known, or the protocol has a pooling of its own and another is asked.
    """
    protocol = get_protocol(options.protocol or task.protocol, kind=task.kind, settings=options.settings)
    pools = [require_pool(pool) for pool in dict.fromkeys(options.pools)]
    if protocol.pool is None:
        return protocol, pools
    if pools not in ([protocol.pool], list(ProbeOptions().pools)):
        raise UnknownNameError(
            f"protocol {protocol.name!r} pools by {protocol.pool!r}, not by {', '.join(pools)}; leave --pool out"
        )
    return protocol, [protocol.pool]


def score_table(
    sources: Sequence[VectorSource], manifest: Manifest, *, task: Task, options: ProbeOptions
) -> tuple[ScoreTable, list[tuple[VectorSource, str, Located]]]:
    """Return the table of the task's main row, see `score_tables`.

    Raises
    ------
    UnknownNameError, ContentError
        As `probe`.
    """
    return score_tables(sources, manifest, task=task, options=replace(options, rows=(MAIN_ROW,)))[0]


def score_tables(
    sources: Sequence[VectorSource], manifest: Manifest, *, task: Task, options: ProbeOptions
) -> list[tuple[ScoreTable, list[tuple[VectorSource, str, Located]]]]:
    """Return a table for each fit: the clips that all sets have, and its rows: set, pooling, where the vectors stand.

    Rows of a task that are asked of the same clips share a fit.

    Raises
    ------
    UnknownNameError, ContentError
        As `probe`.
    """
    task = options.task_of(task)
    task_rows = pick_rows(task.on(manifest.name).rows, options.rows)
    return [_table_of(sources, manifest, task, options, of_fit) for of_fit in rows_by_fit(task_rows)]


def _table_of(
    sources: Sequence[VectorSource],
    manifest: Manifest,
    task: Task,
    options: ProbeOptions,
    task_rows: tuple[TaskRow, ...],
) -> tuple[ScoreTable, list[tuple[VectorSource, str, Located]]]:
    protocol, pools = asked_protocol(task, options)
    is_cv = options.cv is not None
    cohort, whole = asked_cohorts(manifest, task, options, asked_of=task_rows[0].asked_of)
    for column in options.by:
        manifest.column(column)
    if not is_cv:
        require_runnable(cohort)
    pooled = [(source, pool) for source in sources for pool in pools]
    located, common = locate_in_common(pooled, cohort, allow_missing=options.allow_missing)
    rows = [(*pair, one) for pair, one in zip(pooled, located, strict=True)]
    table = ScoreTable(cohort, cohort.take(common), common, protocol, options, task_rows, whole)
    if not is_cv:
        require_runnable(table.scored)
    return table, rows
