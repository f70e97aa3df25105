"""Shares of the work units."""

from __future__ import annotations

import pytest

from embedstore.build.shard import parse_shard
from embedstore.errors import UnknownNameError


def slurm(task: int, first: int, last: int, count: int, step: int | None = None) -> dict[str, str]:
    found = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
    if step is not None:
        found["STEP"] = step
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in found.items()}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (slurm(0, 0, 3, 4), (0, 4)),
        (slurm(7, 5, 9, 5), (2, 5)),
        (slurm(9, 1, 13, 4, 4), (2, 4)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 2)),
    ],
)
def test_auto_reads_the_scheduler(environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert parse_shard("auto", environment) == expected
    assert parse_shard(None, environment) is None  # never without being asked


@pytest.mark.parametrize(
    "environment",
    [
        {},
        slurm(3, 0, 9, 4),  # an array such as 0,3,9 with gaps
        slurm(2, 1, 9, 3, 4),
        {"SLURM_ARRAY_TASK_ID": "x"},
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "0"},
    ],
)
def test_gaps_and_absences_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UnknownNameError, match="--shard"):
        parse_shard("auto", environment)


@pytest.mark.parametrize("task", [4, 20])
def test_a_task_outside_the_array_is_named(task: int) -> None:
    """Neither beyond its last task nor between two of them: the array itself has no gaps."""
    with pytest.raises(UnknownNameError, match=f"SLURM_ARRAY_TASK_ID={task} is no task of the array 1-9:2"):
        parse_shard("auto", slurm(task, 1, 9, 5, 2))


@pytest.mark.parametrize("text", ["3/3", "a/2", "1", "-1/4", "1/0", "/", "1/2/3"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(UnknownNameError, match="0 <= I < N"):
        parse_shard(text, {})
