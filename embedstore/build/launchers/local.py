"""Workers as processes of this machine. Where it has several GPUs, each worker sees one of them, in turn."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from embedstore.build.launchers.worker import LaunchRequest, WorkerEnd, read_end, worker_command
from embedstore.disk import storage_errors

__all__ = ["run_local", "visible_gpus"]

# The NVIDIA driver has a folder there for each GPU, numbered as CUDA numbers them unless told otherwise.
_DRIVER = Path("/proc/driver/nvidia/gpus")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# A worker that is told to end finishes its unit or drops it; one that does not end is killed.
_END_WAIT_S = 60.0


def visible_gpus(environment: Mapping[str, str], driver: Path = _DRIVER) -> list[str]:
    """Return the GPUs that workers may use: those that the user names, else all that the driver knows.

    Examples
    --------
    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3"})
    ['2', '3']
    """
    if _VISIBLE in environment:
        return [name.strip() for name in environment[_VISIBLE].split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(driver.iterdir())] if driver.is_dir() else []


class _Worker:
    """One process, with threads that read what it says."""

    def __init__(self, number: int, request: LaunchRequest, gpu: str | None, note: Callable[[str], None]) -> None:
        self._number, self._label, self._note = number, f"[{number}/{request.n_workers}]", note
        command = worker_command(request.arguments, shard=f"{number}/{request.n_workers}")
        environment = {**os.environ, **({} if gpu is None else {_VISIBLE: gpu})}
        with storage_errors(Path(command[0]), "start a worker of"):
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        self._document = b""
        self._threads = [threading.Thread(target=self._read_document), threading.Thread(target=self._relay)]
        for thread in self._threads:
            thread.start()

    def _read_document(self) -> None:
        assert self.process.stdout is not None
        self._document = self.process.stdout.read()

    def _relay(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._note(f"{self._label} {line.decode(errors='replace').rstrip()}")

    def wait(self) -> WorkerEnd:
        """Wait until it ends."""
        for thread in self._threads:
            thread.join()
        return read_end(self._number, self.process.wait(), self._document.decode(errors="replace"))

    def end(self) -> None:
        """Have it end, and wait until it has."""
        self.process.terminate()
        try:
            self.process.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.wait()


def run_local(request: LaunchRequest, *, note: Callable[[str], None]) -> list[WorkerEnd]:
    """Run every worker on this machine and wait for all of them.

    Raises
    ------
    StorageError
        A worker cannot be started; those that were are ended.
    """
    gpus = visible_gpus(os.environ)
    workers: list[_Worker] = []
    try:
        for number in range(request.n_workers):
            gpu = gpus[number % len(gpus)] if gpus else None
            workers.append(_Worker(number, request, gpu, note))
        return [worker.wait() for worker in workers]
    except BaseException:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in workers:
            worker.end()
        raise
