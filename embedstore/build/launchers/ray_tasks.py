"""Workers as tasks of a Ray cluster whose nodes share the store and the media. Ray is an optional package."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedstore.build.launchers.worker import LaunchRequest, WorkerEnd, read_end, worker_command
from embedstore.errors import EnvironmentFailure, MissingExtraError

__all__ = ["run_ray"]


def run_command(command: list[str], folder: str) -> tuple[int, str, str]:
    """Run one worker on the node where Ray put it."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def run_ray(request: LaunchRequest, *, note: Callable[[str], None]) -> list[WorkerEnd]:
    """Run every worker as a Ray task and wait for all of them; each gets one GPU where the cluster has any.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    EnvironmentFailure
        The cluster cannot be reached, or a node was lost.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--launcher ray needs the package ray: pip install ray") from error
    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            ray.init(log_to_driver=False, logging_level="error")
        n_gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        task: Any = ray.remote(num_cpus=1, num_gpus=n_gpus)(run_command)
        folder = str(Path.cwd())
        shares = [f"{number}/{request.n_workers}" for number in range(request.n_workers)]
        # The interpreter by its full path: nodes have the same environment, as Ray asks of a cluster.
        commands = [worker_command(request.arguments, shard=share) for share in shares]
        ends = []
        for number, (code, document, said) in enumerate(ray.get([task.remote(each, folder) for each in commands])):
            for line in said.splitlines():
                note(f"[{shares[number]}] {line}")
            ends.append(read_end(number, code, document))
        return ends
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        raise EnvironmentFailure(f"Ray failed: {' '.join(str(error).split())[:300]}") from error
    finally:
        if is_ours:
            ray.shutdown()
