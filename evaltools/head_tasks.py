"""`HeadTask`: which published head answers a task, read from ``head_tasks.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from embedstore.safe_yaml import read_yaml

__all__ = ["UNIT_FACTORS", "HeadTask", "head_task", "head_tasks"]

_FILE = Path(__file__).parent / "head_tasks.yaml"

# From the unit of a head to that of a task: what to multiply by.
UNIT_FACTORS: Mapping[tuple[str, str], float] = {
    ("pct", "%"): 1.0,
    ("pct_shortening", "%"): -1.0,  # strain is negative where the wall shortens
    ("cm", "mm"): 10.0,
    ("mm", "cm"): 0.1,
    ("ml", "mL"): 1.0,
}


class HeadTask(BaseModel):
    """How a head answers a task.

    Attributes
    ----------
    head : str
        The authors' name of the head.
    present : tuple of str
        Outputs whose shares together are that of the finding; where there are none, each output is a class.
    classes : mapping of str to str
        Output to the class of the labels; others keep their names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: str
    present: tuple[str, ...] = ()
    classes: Mapping[str, str] = Field(default_factory=dict)


@cache
def head_tasks() -> dict[str, dict[str, HeadTask]]:
    """Return every mapping: encoder to task to head.

    Examples
    --------
    >>> head_tasks()["panecho"]["lvef"].head
    'EF'
    """
    return {
        encoder: {task: HeadTask.model_validate(stated) for task, stated in tasks.items()}
        for encoder, tasks in read_yaml(_FILE).items()
    }


def head_task(encoder: str, task: str) -> HeadTask | None:
    """Return the head of an encoder that answers a task, None where there is none."""
    return head_tasks().get(encoder, {}).get(task)
