"""`WorkerPool`: an ordered pool of processes in which a decoder that dies, hangs or eats memory costs one job.

Each worker is a fresh interpreter (no fork, so that no thread or CUDA state of the parent comes along, and nothing
of its main module is run again) and belongs to one thread of the parent, which only waits on it.
"""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from embedstore.errors import EnvironmentFailure, MissingExtraError
from embedstore.media.child import WorkerProcess
from embedstore.media.worker import JobFailure, perform

__all__ = ["JobFailure", "WorkerPool"]

Job = TypeVar("Job")
Result = TypeVar("Result")

_START_ATTEMPTS = 3


class _Batch:
    """The outcomes of one `WorkerPool.imap`, in whatever order they come in."""

    def __init__(self) -> None:
        self._outcomes: dict[int, Any] = {}
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self.is_cancelled = False

    def put(self, index: int, outcome: Any) -> None:
        with self._changed:
            if not self.is_cancelled:
                self._outcomes[index] = outcome
                self._changed.notify()

    def fail(self, error: Exception) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify()

    def take(self, index: int) -> Any:
        with self._changed:
            while index not in self._outcomes:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            return self._outcomes.pop(index)

    def cancel(self) -> None:
        with self._changed:
            self.is_cancelled = True
            self._outcomes.clear()


@dataclass(frozen=True)
class _Task:
    batch: _Batch
    index: int
    job: Any


class _Seat(threading.Thread):
    """A thread that keeps one worker alive and hands it jobs.

    The kernel ties a worker's life to this thread (PR_SET_PDEATHSIG), so the thread outlives its workers.
    """

    def __init__(self, pool: WorkerPool[Any, Any], tasks: queue.SimpleQueue[_Task | None]) -> None:
        super().__init__(name="embedstore-decode", daemon=True)
        self._pool = pool
        self._tasks = tasks
        self._worker: WorkerProcess | None = None
        self._lock = threading.Lock()
        self._is_closing = False

    def run(self) -> None:
        trouble: Exception | None = None
        try:
            try:
                self._start_worker()
            except EnvironmentFailure as error:
                trouble = error  # told to whoever next asks for a result
            while (task := self._tasks.get()) is not None:
                if task.batch.is_cancelled:
                    continue
                try:
                    self._check_open()
                    if trouble is not None:
                        raise trouble
                    task.batch.put(task.index, self._perform(task.job))
                # Whatever happens here, somebody waits for this outcome and has to be told.
                except Exception as error:  # noqa: BLE001
                    self._end_worker()
                    task.batch.fail(error)
        finally:
            self._end_worker()

    def _check_open(self) -> None:
        if self._is_closing:
            raise EnvironmentFailure("the worker pool was closed before the job was done")

    def _start_worker(self) -> WorkerProcess:
        how = ""
        for _ in range(_START_ATTEMPTS):
            with self._lock:
                self._check_open()
                try:
                    self._worker = worker = self._pool.make_worker()
                except OSError as error:
                    raise EnvironmentFailure(f"a decode worker cannot be started ({error.strerror})") from error
            try:
                worker.greet()
            except (OSError, EOFError):
                how = worker.how_it_died()
                self._end_worker()
            else:
                return worker
        raise EnvironmentFailure(f"decode workers die when they start ({how})")

    def _perform(self, job: Any) -> Any:
        worker = self._worker
        if worker is None or not worker.is_alive:
            self._end_worker()
            worker = self._start_worker()
        timeout_s = self._pool.timeout_s
        try:
            kind, outcome = worker.ask(job, timeout_s=timeout_s)
        except TimeoutError:
            self._end_worker()
            return JobFailure("timeout", f"decoding took longer than {timeout_s:g} s")
        except (OSError, EOFError):
            self._check_open()
            how = worker.how_it_died()
            self._end_worker()
            return JobFailure("decoder-died", f"the decoder process died ({how})")
        if kind == "missing-extra":
            raise MissingExtraError(outcome)
        if isinstance(outcome, JobFailure) and outcome.reason == "out-of-memory":
            self._end_worker()  # what it still holds would weigh on the next job
        return outcome

    def _end_worker(self) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def close(self) -> None:
        """Kill the worker, whatever it does; the thread then ends."""
        with self._lock:
            self._is_closing = True
            if self._worker is not None:
                self._worker.kill()


class WorkerPool(Generic[Job, Result]):
    """Processes that apply one function to many jobs; results come in the order of the jobs.

    Parameters
    ----------
    function : callable
        Takes a job, returns a result; pickled by its name, so it stands at the top of an importable module (or is
        a ``functools.partial`` of one that does). A worker imports that module and no more.
    n_workers : int
        Processes; 0 runs the function in this one, without a time or memory limit.
    timeout_s : float
        Seconds that one job may take.
    memory_limit_bytes : int or None
        Address space of a worker (RLIMIT_AS), libraries included.

    Raises
    ------
    ValueError
        A number out of range, or a function of ``__main__``, which a worker does not have.

    Examples
    --------
    >>> import math
    >>> with WorkerPool(math.sqrt, n_workers=0, timeout_s=10) as pool:
    ...     list(pool.imap([4.0, 9.0, -1.0], max_in_flight=2))
    [2.0, 3.0, JobFailure(reason='decoder-error', message='ValueError: math domain error')]
    """

    def __init__(
        self,
        function: Callable[[Job], Result],
        *,
        n_workers: int,
        timeout_s: float,
        memory_limit_bytes: int | None = None,
    ) -> None:
        if n_workers < 0 or not timeout_s > 0:
            raise ValueError(f"a pool needs n_workers from 0 and timeout_s above 0, got {n_workers} and {timeout_s}")
        inner = function
        while isinstance(inner, partial):
            inner = inner.func
        if n_workers and getattr(inner, "__module__", None) == "__main__":
            raise ValueError("a pool's function must stand in a module that workers can import, not in __main__")
        self.timeout_s = timeout_s
        self._function = function
        self._n_workers = n_workers
        self._memory_limit_bytes = memory_limit_bytes
        self._pickled = pickle.dumps(function) if n_workers else b""
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._seats: list[_Seat] | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        if self._seats is not None:
            raise RuntimeError("a worker pool is entered once")
        self._seats = [_Seat(self, self._tasks) for _ in range(self._n_workers)]
        for seat in self._seats:
            seat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers, busy or not, and wait until they are gone."""
        self._is_closed = True
        seats = self._seats or []
        for seat in seats:
            seat.close()
        for _ in seats:
            self._tasks.put(None)
        for seat in seats:
            seat.join()

    def make_worker(self) -> WorkerProcess:
        """Start a process."""
        return WorkerProcess(self._pickled, memory_limit_bytes=self._memory_limit_bytes)

    def imap(self, jobs: Iterable[Job], *, max_in_flight: int) -> Iterator[Result | JobFailure]:
        """Yield the outcome of each job, in the order of ``jobs``.

        ``jobs`` is read in the caller's thread, ahead by at most ``max_in_flight`` jobs whose outcome has not been
        yielded; workers go on while the caller is busy with an outcome.

        Raises
        ------
        RuntimeError
            Outside of the ``with`` block.
        MissingExtraError, EnvironmentFailure
            No job can run: a package is missing, or workers do not start.
        """
        if self._seats is None or self._is_closed:
            raise RuntimeError("a worker pool is used within its `with` block")
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight starts from 1, got {max_in_flight}")
        if not self._n_workers:
            return (perform(self._function, job) for job in jobs)
        return self._imap(jobs, max_in_flight)

    def _imap(self, jobs: Iterable[Job], max_in_flight: int) -> Iterator[Result | JobFailure]:
        batch = _Batch()
        waiting = enumerate(jobs)
        n_sent = n_yielded = 0
        is_exhausted = False
        try:
            while True:
                while not is_exhausted and n_sent - n_yielded < max_in_flight:
                    if self._is_closed:
                        raise RuntimeError("the worker pool was closed before all jobs were done")
                    found = next(waiting, None)
                    if found is None:
                        is_exhausted = True
                    else:
                        self._tasks.put(_Task(batch, *found))
                        n_sent += 1
                if n_yielded == n_sent:
                    return
                outcome = batch.take(n_yielded)
                n_yielded += 1
                yield outcome
        finally:
            batch.cancel()
