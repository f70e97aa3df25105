"""One question over the data sets of a store: those named, or all that can answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from embedstore import EmbeddingSet, Manifest, Store
from evaltools.cohort import NotRunnableError
from evaltools.selection import runnable_manifests, sets_of
from evaltools.task import Task

__all__ = ["once", "over_manifests"]

Scored = TypeVar("Scored")


def once(on_skip: Callable[[str], None] | None) -> Callable[[str], None]:
    """Return what tells each reason one time only: an encoder that cannot be asked lacks the same for every task."""
    told: set[str] = set()

    def tell(reason: str) -> None:
        if on_skip is not None and reason not in told:
            told.add(reason)
            on_skip(reason)

    return tell


def over_manifests(
    store: Store,
    score: Callable[[Sequence[EmbeddingSet], Manifest, Task], list[Scored]],
    *,
    tasks: Sequence[Task],
    datasets: Sequence[str | Path],
    encoders: Sequence[str],
    on_skip: Callable[[str], None] | None,
) -> list[Scored]:
    """Score sets, manifest by manifest, for each task.

    Parameters
    ----------
    datasets : sequence of str or Path
        None named means all that have the label and vectors, of which those are skipped that cannot be scored.
    on_skip : callable
        Told the reason for each that is skipped.

    Raises
    ------
    UnknownNameError
        A data set or encoder is not known.
    NotRunnableError
        A data set that was named cannot be scored, or none can.
    """
    scored: list[Scored] = []
    named = [store.manifest(name) for name in dict.fromkeys(datasets)]
    for task in tasks:
        refusals: list[NotRunnableError] = []
        manifests = named or runnable_manifests(store, task, titles=encoders)
        for manifest in manifests:
            try:
                scored += score(sets_of(store, manifest.name, titles=encoders), manifest, task)
            except NotRunnableError as refusal:
                if named:
                    raise
                refusals.append(refusal)
        if len(refusals) == len(manifests):
            raise refusals[0]
        if on_skip is not None:
            for skipped in refusals:
                on_skip(str(skipped))
    return scored
