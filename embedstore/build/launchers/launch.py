"""`launch`: try the request out, give it to workers, and see that the set is complete."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from embedstore.build.launchers.local import run_local
from embedstore.build.launchers.ray_tasks import run_ray
from embedstore.build.launchers.slurm import submit_array
from embedstore.build.launchers.worker import Launcher, LaunchRequest, WorkerEnd
from embedstore.build.request import BuildOutcome, BuildRequest, Progress
from embedstore.build.run import build_sets
from embedstore.errors import EmbedstoreError, UnknownNameError
from embedstore.store import Store

__all__ = ["LAUNCHERS", "LaunchRequest", "WorkerEnd", "WorkerFailedError", "launch"]

_WAITING: Mapping[str, Launcher] = {"local": run_local, "ray": run_ray}
LAUNCHERS = ("local", "slurm", "ray")


class WorkerFailedError(EmbedstoreError):
    """A worker ended with an error; ``exit_code`` is its own."""

    kind = "worker"

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # of the class elsewhere


def _refuse_failures(ends: list[WorkerEnd], n_workers: int) -> None:
    failed = [end for end in ends if not end.is_well]
    if failed:
        first, more = failed[0], f", and {len(failed) - 1} more" if failed[1:] else ""
        raise WorkerFailedError(
            f"worker {first.worker}/{n_workers} failed{more}: {first.message.rstrip('.')}; finished units are kept, "
            "run the same command again",
            exit_code=first.code,
        )


def launch(
    store: Store, request: BuildRequest, launched: LaunchRequest, *, launcher: str, progress: Progress
) -> list[BuildOutcome]:
    """Build the sets of a request with several workers.

    The request is tried out here first, so that a wrong name is refused before anything is started. ``local`` and
    ``ray`` wait for the workers; ``slurm`` submits an array job and returns, with every set still open.

    Raises
    ------
    WorkerFailedError
        A worker failed; with its exit code.
    UnknownNameError
        The request gives a share already, or asks for no worker.
    """
    if request.shard is not None:
        raise UnknownNameError("--launcher gives each worker its --shard; drop one of the two options")
    if launcher not in LAUNCHERS or launched.n_workers < 1:
        raise UnknownNameError(f"--launcher is one of {', '.join(LAUNCHERS)} with at least one worker")
    began = time.perf_counter()
    planned = build_sets(store, replace(request, dry_run=True), progress=progress)
    if request.dry_run:
        return planned
    if launcher == "slurm":
        job = submit_array(launched, folder=Path.cwd())
        progress.note(
            f"submitted as Slurm job {job}: {launched.n_workers} tasks, the last of which completes the sets; see "
            "embedstore status"
        )
        return [replace(outcome, note=f"Slurm job {job}") for outcome in planned]
    if any(outcome.units_open for outcome in planned):
        _refuse_failures(_WAITING[launcher](launched, note=progress.note), launched.n_workers)
    # The last worker committed; this says what became of it, and would do what was left over.
    outcomes = build_sets(store, request, progress=progress)
    reused = {(outcome.dataset, outcome.encoder): outcome.n_reused for outcome in planned}
    seconds = time.perf_counter() - began
    return [
        replace(outcome, n_reused=min(outcome.n_ok, reused[(outcome.dataset, outcome.encoder)]), seconds=seconds)
        for outcome in outcomes
    ]
