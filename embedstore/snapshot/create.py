"""Create: name a part of a snapshot, by data set, encoder or task, so that it can be cited, sent and kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

from embedstore.errors import UnknownNameError, did_you_mean
from embedstore.files import create_file
from embedstore.history import Snapshot
from embedstore.snapshot.plan import select_snapshot
from embedstore.snapshot.tags import Tag, create_tag, find_snapshot
from embedstore.store import Store

__all__ = ["create_snapshot", "datasets_of_tasks"]

TASK_GROUP = "embedstore.tasks"


class LabelledTask(Protocol):
    """What of a task tells which data sets have its labels."""

    def column_of(self, dataset: str) -> str:
        """Return the column of a data set that holds the label."""


def _tasks() -> Mapping[str, LabelledTask]:
    """Return the tasks of whoever registered some: ``module:function`` that returns them by name."""
    found: dict[str, Any] = {}
    for point in sorted(entry_points(group=TASK_GROUP), key=lambda point: point.name):
        found |= point.load()()
    return found


def datasets_of_tasks(store: Store, snapshot: Snapshot, tasks: Collection[str]) -> list[str]:
    """Return the data sets of a snapshot that have a label for one of the tasks.

    Raises
    ------
    UnknownNameError
        A task is not known, or no data set has its label.
    """
    known = _tasks()
    found: set[str] = set()
    for name in tasks:
        if name not in known:
            raise UnknownNameError(f"there is no task {name!r}{did_you_mean(name, sorted(known))}")
        having = {
            entry.name
            for entry in snapshot.manifests
            if known[name].column_of(entry.name) in store.open_manifest(entry).labels()
        }
        if not having:
            raise UnknownNameError(f"no data set of the snapshot has labels for the task {name!r}")
        found |= having
    return sorted(found)


def create_snapshot(
    store: Store,
    name: str,
    *,
    source: str | None = None,
    datasets: Collection[str] = (),
    encoders: Collection[str] = (),
    tasks: Collection[str] = (),
) -> Tag:
    """Name a part of a snapshot by a tag.

    Parameters
    ----------
    source : str, optional
        Tag or id of the snapshot to take from; the head without.
    datasets, encoders, tasks : collection of str
        What to take; all without. A task takes the data sets that have its label.

    Raises
    ------
    UnknownNameError
        A name is not known, or nothing fits.
    """
    whole = store.snapshot(find_snapshot(store, source))
    chosen = set(datasets)
    if tasks:
        of_tasks = set(datasets_of_tasks(store, whole, tasks))
        chosen = chosen & of_tasks if chosen else of_tasks
        if not chosen:
            raise UnknownNameError("the data sets that were named have no labels for the tasks that were named")
        chosen &= {entry.dataset for entry in whole.sets} or chosen
    part = select_snapshot(whole, datasets=sorted(chosen), encoders=encoders)
    with store.publishing():
        store.claim(part)
        create_file(store.layout.snapshot_file(part.id), part.to_bytes())
        return create_tag(store, name, snapshot_id=part.id)
