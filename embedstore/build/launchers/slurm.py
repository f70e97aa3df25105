"""Workers as the tasks of a Slurm array job, which reads its share with ``--shard auto``."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from embedstore.build.launchers.worker import LaunchRequest, worker_command
from embedstore.errors import EnvironmentFailure, MissingExtraError, UnknownNameError

__all__ = ["array_script", "submit_array"]

_OURS = ("array", "chdir")
_SUBMIT_TIMEOUT_S = 120.0


def array_script(request: LaunchRequest, *, folder: Path) -> str:
    """Return the batch script of an array job.

    Parameters
    ----------
    folder : Path
        Where the tasks run, for relative paths in the arguments.

    Raises
    ------
    UnknownNameError
        An option of sbatch stands on several lines, or is one that the script sets itself.
    """
    for option in request.scheduler_options:
        name = option.lstrip("-").partition("=")[0].strip()
        if not option.isprintable() or name in _OURS or not name:
            raise UnknownNameError(
                f"--sbatch takes one option of sbatch without its dashes, such as gres=gpu:1, and none of "
                f"{' and '.join(_OURS)}, which the launcher sets; got {option!r}"
            )
    if not str(folder).isprintable():
        raise UnknownNameError(f"the folder {folder!r} cannot stand in a batch script; run from another one")
    options = ["job-name=embedstore-build", *(option.lstrip("-") for option in request.scheduler_options)]
    lines = [
        "#!/bin/bash",
        f"#SBATCH --array=0-{request.n_workers - 1}",
        f'#SBATCH --chdir="{folder}"' if " " in str(folder) else f"#SBATCH --chdir={folder}",
        *(f"#SBATCH --{option}" for option in options),
        f"exec {shlex.join(worker_command(request.arguments, shard='auto'))}",
    ]
    return "\n".join(lines) + "\n"


def submit_array(request: LaunchRequest, *, folder: Path) -> str:
    """Submit the array job; return its id.

    Raises
    ------
    MissingExtraError
        There is no ``sbatch`` here.
    EnvironmentFailure
        Slurm refused the job; the message has its words.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"],
            input=array_script(request, folder=folder),
            capture_output=True,
            text=True,
            timeout=_SUBMIT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise MissingExtraError(
            "--launcher slurm needs the command sbatch, which is not here: run it where jobs are submitted, or print "
            "the script with --dry-run"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailure(f"sbatch cannot be run: {error}") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EnvironmentFailure(f"sbatch refused the job: {said}")
    return done.stdout.strip().partition(";")[0]
