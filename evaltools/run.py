"""`run`: a whole suite, several jobs at a time, each kept when it is done.

A job is every encoder of one data set on one task by one protocol. Its results are kept in ``jobs/DIGEST.json`` below
the output folder, the digest being of everything that decides them, so a run that was stopped goes on and a run of
unchanged digests computes nothing. What was predicted for each clip is always written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import embedstore
from embedstore import Store
from embedstore.errors import ContentError, EnvironmentFailure, FormatError, UnknownNameError
from embedstore.files import read_file
from evaltools.report.files import write_document, write_predictions
from evaltools.result import Result, software_versions
from evaltools.suite import Job, RunOptions, Suite, plan_jobs
from evaltools.task import get_task

__all__ = ["SuiteRun", "run", "run_job", "write_run"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_MAX_JOB_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """What came of a suite.

    Attributes
    ----------
    suite : Suite
    results : tuple of dict
        JSON form of each result, with ``command``, ``suite``, ``stamp`` and ``job``.
    skipped : tuple of dict
        Jobs that cannot be run, and encoders that a job leaves out, each with a ``reason``.
    n_computed, n_reused : int
        Jobs.
    seconds : float
        Of this call.
    """

    suite: Suite
    results: tuple[dict[str, Any], ...]
    skipped: tuple[dict[str, Any], ...]
    n_computed: int
    n_reused: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "suite": self.suite.name,
            "results": list(self.results),
            "skipped": list(self.skipped),
            "computed": self.n_computed,
            "reused": self.n_reused,
            "seconds": round(self.seconds, 2),
            "versions": software_versions(),
        }


def run(
    store: Store,
    suite: Suite,
    *,
    out: str | Path,
    jobs: Sequence[Job] | None = None,
    workers: int | None = None,
    options: RunOptions | None = None,
    on_done: Callable[[Job, bool], None] | None = None,
) -> SuiteRun:
    """Run a suite, and write ``results.json`` and ``results.parquet`` below a folder.

    Parameters
    ----------
    out : str or Path
        Made where it is not there; results of earlier runs in it are used again where their digests are the same.
    jobs : sequence of Job, optional
        From `evaltools.suite.plan_jobs`; all of the suite without.
    workers : int, optional
        Processes; as many as there are cores without. The cores are shared among them, one is this process. A script
        that calls this with more than one needs ``if __name__ == "__main__"``, since they import it again.
    on_done : callable
        Told each job as it is done, and whether it was reused.

    Raises
    ------
    UnknownNameError
        Nothing of the suite can be run.
    StorageError
        The folder cannot be written.
    EnvironmentFailure
        A process was ended from outside; what was done is kept.
    """
    started, out = time.perf_counter(), Path(out)
    planned = list(plan_jobs(store, suite, options=options) if jobs is None else jobs)
    kept = {job.digest: _kept(out, job) for job in planned}
    missing = [job for job in planned if kept[job.digest] is None]
    for job in planned:
        if kept[job.digest] is not None and on_done is not None:
            on_done(job, True)
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_workers = max(min(workers or n_cores, len(missing)), 1)
    for job, outcome in _computed(store, missing, out, n_workers, max(n_cores // n_workers, 1)):
        kept[job.digest] = outcome
        if on_done is not None:
            on_done(job, False)
    results, skipped = [], []
    for job in planned:
        outcome = kept[job.digest] or {"results": [], "skipped": []}
        of_job = outcome["results"]
        results += [{**one, "suite": suite.name, "stamp": _stamp(one, suite)} for one in of_job]
        skipped += outcome["skipped"]
    done = SuiteRun(
        suite=suite,
        results=tuple(results),
        skipped=tuple(skipped),
        n_computed=len(missing),
        n_reused=len(planned) - len(missing),
        seconds=time.perf_counter() - started,
    )
    write_run(done, out)
    return done


def _stamp(document: dict[str, Any], suite: Suite) -> str | None:
    """Return what keeps a result from being the suite's own."""
    if suite.variant is None or document["variant"] == suite.variant:
        return None
    return f"not the frames of @{suite.variant}: {document['variant']}"


def _job_file(out: Path, job: Job) -> Path:
    return out / "jobs" / f"{job.digest[:32]}.json"


def _kept(out: Path, job: Job) -> dict[str, Any] | None:
    """Return what an earlier run kept of a job, None where it has to be run."""
    path = _job_file(out, job)
    if not path.is_file():
        return None
    try:
        kept = json.loads(read_file(path, max_bytes=_MAX_JOB_BYTES))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is no results of a job; remove it") from error
    there = all(Path(out / one["predictions"]).is_file() for one in kept["results"])
    return kept if kept.get("digest") == job.digest and there else None


def _computed(
    store: Store, missing: Sequence[Job], out: Path, n_workers: int, n_threads: int
) -> Iterator[tuple[Job, dict[str, Any]]]:
    if not missing:
        return
    root = store.layout.root
    if n_workers == 1:
        for job in missing:
            yield job, run_job(root, job, out)
        return
    # Large ones first, so that no process is left with one at the end; a data set's follow each other, so that what
    # was read for one is at hand for the next.
    missing = sorted(missing, key=lambda job: (-job.n_vectors, job.dataset))
    with _threads(n_threads), ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        waiting: dict[Future[dict[str, Any]], Job] = {pool.submit(run_job, root, job, out): job for job in missing}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise EnvironmentFailure(
                "a process of the run was ended from outside, perhaps for want of memory; give fewer --jobs and run "
                "it again: what was done is kept"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let processes that are started meanwhile use n threads each."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(n)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@lru_cache(maxsize=1)
def _opened(root: Path) -> Store:
    """Open the store of a run once for each process: its handle keeps the manifests that it has read."""
    return embedstore.open(root)


def run_job(root: Path, job: Job, out: Path) -> dict[str, Any]:
    """Run one job, keep what came of it, and return it.

    A job whose labels, splits or vectors do not allow a result is kept with the reason.
    """
    store = _opened(root)
    skipped: list[dict[str, Any]] = []

    def skip(reason: str) -> None:
        skipped.append({
            "command": job.command, "task": job.task, "dataset": job.dataset, "protocol": job.protocol,
            "reason": reason,
        })  # fmt: skip

    try:
        results = _results(store, job, skip)
    except (ContentError, UnknownNameError) as refusal:
        skip(str(refusal))
        results = []
    documents = []
    for result in results:
        of = f"{result.provenance.fingerprint[:8]}-{job.digest[:8]}"
        name = write_predictions(result, out / "predictions", stem=f"{result.stem}__{of}")
        document = result.to_dict(predictions=name.relative_to(out))
        documents.append({**document, "command": job.command, "job": job.digest})
    outcome = {"digest": job.digest, "results": documents, "skipped": skipped}
    write_document(outcome, _job_file(out, job))
    return outcome


def _results(store: Store, job: Job, skip: Callable[[str], None]) -> list[Result]:
    from evaltools.heads import heads
    from evaltools.knn import KnnOptions, knn
    from evaltools.probe import ProbeOptions, probe_all
    from evaltools.zeroshot import ZeroShotOptions, zeroshot

    given = job.options
    common: dict[str, Any] = {
        "draws": given.draws,
        "seed": given.seed,
        "controls": given.controls,
        "n_shuffles": given.n_shuffles,
        "near_duplicates": given.controls,
        "allow_missing": given.allow_missing,
        "allow_leakage": given.allow_leakage,
        "statistics": job.statistics,
    }
    fitted = {**common, "protocol": job.protocol, "pools": job.pools}
    asked: dict[str, Any] = {"tasks": [get_task(job.task)], "datasets": [job.dataset], "on_skip": skip}
    if job.command == "probe":
        options = ProbeOptions(**fitted, settings=job.settings)
        return probe_all(store, **asked, encoder=job.encoders, options=options)
    if job.command == "knn":
        return knn(store, **asked, encoders=job.encoders, options=KnnOptions(**fitted, settings=job.settings))
    if job.command == "heads":
        return heads(store, **asked, encoders=job.encoders, options=ProbeOptions(**common))
    words = ZeroShotOptions(**common, protocol=job.protocol, settings=job.settings)
    return zeroshot(store, **asked, encoders=job.encoders, options=words)


def write_run(done: SuiteRun, out: str | Path) -> None:
    """Write ``results.json``, and ``results.parquet`` with a row a value.

    Raises
    ------
    StorageError
        The folder or a file cannot be written.
    """
    from embedstore.files import replace_file
    from evaltools.report.tidy import tidy_bytes

    write_document(done.to_dict(), Path(out) / "results.json")
    replace_file(Path(out) / "results.parquet", tidy_bytes(done.results))
