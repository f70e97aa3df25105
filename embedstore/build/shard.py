"""Which share of the work units a worker takes: given as I/N, or read from the scheduler with ``auto``.

Only ``auto`` reads the environment: the commonest array job runs over encoders, and must not be cut in N by accident.
"""

from __future__ import annotations

from collections.abc import Mapping

from embedstore.errors import UnknownNameError

__all__ = ["parse_shard", "shard_from_environment"]

_PAIRS = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdigit():
        raise UnknownNameError(f"--shard auto needs a whole number in {name}, got {text!r}")
    return int(text)


def _from_slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    task = _number(environment, "SLURM_ARRAY_TASK_ID")
    first = _number(environment, "SLURM_ARRAY_TASK_MIN")
    last = _number(environment, "SLURM_ARRAY_TASK_MAX")
    step = _number(environment, "SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environment else 1
    count = (last - first) // step + 1 if step else 0
    stated = environment.get("SLURM_ARRAY_TASK_COUNT", str(count))
    if count >= 1 and ((task - first) % step or not first <= task <= last):
        raise UnknownNameError(
            f"--shard auto: SLURM_ARRAY_TASK_ID={task} is no task of the array {first}-{last}:{step}; "
            "run inside the array, or give --shard I/N"
        )
    if count < 1 or stated != str(count):
        raise UnknownNameError(
            f"--shard auto: the array {first}-{last}:{step} has {stated} tasks, so some shares are nobody's; "
            "submit an array without gaps, or give --shard I/N"
        )
    return (task - first) // step, count


def shard_from_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    """Read (index, count) from a Slurm array, torchrun or Open MPI.

    Raises
    ------
    UnknownNameError
        None of them is there, or an array has gaps.

    Examples
    --------
    >>> shard_from_environment({"RANK": "1", "WORLD_SIZE": "4"})
    (1, 4)
    """
    if "SLURM_ARRAY_TASK_ID" in environment:
        return _from_slurm(environment)
    for rank, size in _PAIRS:
        if rank in environment and size in environment:
            index, count = _number(environment, rank), _number(environment, size)
            if index >= count:
                raise UnknownNameError(f"--shard auto: {rank}={index} is not below {size}={count}")
            return index, count
    raise UnknownNameError(
        "--shard auto found no SLURM_ARRAY_TASK_ID, RANK and WORLD_SIZE, or OMPI_COMM_WORLD_RANK; give --shard I/N"
    )


def parse_shard(text: str | None, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Read ``I/N`` with 0 <= I < N, or ``auto``.

    Raises
    ------
    UnknownNameError
        The text is neither, or ``auto`` finds no array job around it.

    Examples
    --------
    >>> parse_shard("2/8", {})
    (2, 8)
    """
    if text is None:
        return None
    if text == "auto":
        return shard_from_environment(environment)
    index, separator, count = text.partition("/")
    if not (separator and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UnknownNameError(f"--shard needs I/N with 0 <= I < N, or auto, got {text!r}")
    return int(index), int(count)
