"""Which tasks, manifests and sets of a store a command speaks of, when it names some or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedstore import EmbeddingSet, Manifest, Store
from embedstore.encoder import split_title
from embedstore.errors import ContentError, UnknownNameError, did_you_mean
from embedstore.history import SetEntry
from evaltools.cohort import build_cohort, require_runnable
from evaltools.metrics import Kind
from evaltools.task import Task, get_task, label_task, shipped_tasks

__all__ = ["asked_tasks", "describe_tasks", "labelled_manifests", "runnable_manifests", "sets_of"]


def _matches(entry: SetEntry, title: str) -> bool:
    name, variant = split_title(title)
    return entry.encoder == name and variant in (None, entry.variant)


def sets_of(store: Store, dataset: str, *, titles: Sequence[str] = ()) -> list[EmbeddingSet]:
    """Return the sets of a data set: those of the encoders named, else all, sorted.

    Raises
    ------
    UnknownNameError
        The store has no such set.
    AmbiguousNameError
        Several sets match a title.
    """
    if titles:
        return [store.get(dataset=dataset, encoder=title) for title in dict.fromkeys(titles)]
    entries = store.entries()
    found = [store.open_set(entry.set_id) for entry in entries if entry.dataset == dataset]
    if not found:
        known = sorted({entry.dataset for entry in entries})
        raise UnknownNameError(f"the store has no vectors of data set {dataset!r}{did_you_mean(dataset, known)}")
    return found


def labelled_manifests(store: Store, task: Task) -> list[Manifest]:
    """Return the manifests of the head that hold at least one label of a task, sorted by name."""
    manifests = [store.open_manifest(entry) for entry in store.manifests()]
    return [manifest for manifest in manifests if _n_labelled(manifest, task.column_of(manifest.name))]


def _n_labelled(manifest: Manifest, column: str) -> int:
    """Count the values of a column, whatever its role: a subgroup can be a label too."""
    return len(manifest) - manifest.table.column(column).null_count if column in manifest.fields else 0


def runnable_manifests(store: Store, task: Task, *, titles: Sequence[str] = ()) -> list[Manifest]:
    """Return the manifests of the head that hold the task's label and have sets of every encoder named.

    Raises
    ------
    UnknownNameError
        No manifest holds the label, no set is of an encoder named, or none is of a data set with the label.
    """
    labelled = labelled_manifests(store, task)
    if not labelled:
        manifests = [store.open_manifest(entry) for entry in store.manifests()]
        columns = sorted({label for manifest in manifests for label in manifest.labels()})
        raise UnknownNameError(
            f"no manifest of the store holds the label {task.column!r} that task {task.name!r} needs"
            f"{did_you_mean(task.column, columns)}"
        )
    entries = store.entries()
    for title in titles:
        if not any(_matches(entry, title) for entry in entries):
            known = sorted({entry.title for entry in entries})
            raise UnknownNameError(f"the store has no vectors of {title!r}{did_you_mean(title, known)}")
    of = {manifest.name: [entry for entry in entries if entry.dataset == manifest.name] for manifest in labelled}
    found = [
        manifest
        for manifest in labelled
        if of[manifest.name] and all(any(_matches(entry, title) for entry in of[manifest.name]) for title in titles)
    ]
    if not found:
        raise UnknownNameError(
            f"the store has no vectors of {', '.join(titles) or 'any encoder'} for a data set with the label "
            f"{task.column!r} ({', '.join(of)}); build them"
        )
    return found


def asked_tasks(
    store: Store,
    *,
    names: Sequence[str | Path] = (),
    labels: Sequence[str] = (),
    kind: Kind | None = None,
    datasets: Sequence[str | Path] = (),
) -> list[Task]:
    """Return the tasks named, and one for each label column named.

    With neither, all tasks that have labels in every data set named, or in any of the store.

    Raises
    ------
    UnknownNameError
        A task or column is not known, or the column's values do not tell its kind and none is given.
    """
    tasks = [get_task(name) for name in dict.fromkeys(names)]
    if kind is not None and not labels:
        raise UnknownNameError("--kind says what a --label is, and none is named")
    if names and not labels:
        return tasks
    manifests = [store.manifest(name) for name in datasets or [entry.name for entry in store.manifests()]]
    tasks += [_task_of_label(manifests, column, kind) for column in dict.fromkeys(labels)]
    if tasks:
        return tasks
    enough = all if datasets else any
    for task in shipped_tasks().values():
        if enough(_n_labelled(manifest, task.column_of(manifest.name)) for manifest in manifests):
            tasks.append(task)
    if not tasks:
        where = "the data sets named hold" if datasets else "the store's manifests hold"
        raise UnknownNameError(f"{where} no label of a shipped task; name a column with --label")
    return tasks


def _task_of_label(manifests: Sequence[Manifest], column: str, kind: Kind | None) -> Task:
    holding = [manifest for manifest in manifests if column in manifest.fields]
    if not holding:
        known = sorted({name for manifest in manifests for name in manifest.fields})
        raise UnknownNameError(f"no manifest has the column {column!r}{did_you_mean(column, known)}")
    declared = holding[0].fields[column]
    values = [value for value in holding[0].column(column) if value is not None]
    told = kind or _kind_of(declared.kind, values)
    if told is None:
        raise UnknownNameError(
            f"column {column!r} holds whole numbers, which may be values or classes; say which with --kind"
        )
    return label_task(column, kind=told, unit=declared.unit if told == "regression" else None)


def _kind_of(declared: str, values: Sequence[Any]) -> Kind | None:
    if declared not in ("number", "integer") or set(values) <= {0, 1}:
        return "classification"
    return "regression" if any(value != int(value) for value in values) else None


def describe_tasks(store: Store | None) -> list[dict[str, Any]]:
    """Return the shipped tasks as JSON values, with what a store can run of each.

    ``runs`` has an entry a data set with at least one label; ``reason`` says why a probe cannot be made of it.
    ``missing`` has one for each data set that the task is made for and that the store has no label of.
    """
    entries = [] if store is None else store.entries()
    held = set() if store is None else {entry.name for entry in store.manifests()}
    described = []
    for task in shipped_tasks().values():
        runs = []
        for manifest in [] if store is None else labelled_manifests(store, task):
            encoders = [entry.title for entry in entries if entry.dataset == manifest.name]
            runs.append({"dataset": manifest.name, "encoders": encoders, **_describe_run(manifest, task, encoders)})
        fields = ("name", "title", "kind", "unit", "metrics", "main_metric", "protocol", "column", "citation")
        stated = task.model_dump(mode="json")
        found = {run["dataset"] for run in runs}
        missing = [
            {"dataset": name, "reason": _reason_missing(task, name, in_store=name in held)}
            for name in task.datasets
            if name not in found
        ]
        described.append(
            {**{name: stated[name] for name in fields}, "digest": task.digest, "runs": runs, "missing": missing}
        )
    return described


def _describe_run(manifest: Manifest, task: Task, encoders: Sequence[str]) -> dict[str, Any]:
    column = task.column_of(manifest.name)
    reason = None if encoders else "no vectors"
    try:
        require_runnable(build_cohort(manifest, task))
    except ContentError as refusal:
        reason = str(refusal)
    done = task.on(manifest.name)
    rows = [
        {
            "row": row.name,
            "level": row.level,
            "aggregation": row.aggregation,
            "where": row.where,
            "default": row.default,
        }
        for row in done.rows
    ]
    known = {"rows": rows, "note": done.note, "subgroups": [group.column for group in done.subgroups]}
    return {"column": column, "n_labelled": _n_labelled(manifest, column), "reason": reason, **known}


def _reason_missing(task: Task, dataset: str, *, in_store: bool) -> str:
    if in_store:
        return f"its manifest has no label in {task.column_of(dataset)!r}"
    return f"no manifest; make one with embedstore manifest make {dataset} --root DIR, and add it"
