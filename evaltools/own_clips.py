"""Scoring each set of vectors on the clips that it has, where the rows of a table would share theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from evaltools.probe_options import ProbeOptions
from evaltools.result import Result

__all__ = ["OWN_CLIPS_NOTE", "each_alone"]

OWN_CLIPS_NOTE = "scored on its own clips, whatever other encoders lack: not comparable with other rows"
Source = TypeVar("Source")
Options = TypeVar("Options", bound=ProbeOptions)


def each_alone(
    score: Callable[[Sequence[Source], Options], list[Result]], sources: Sequence[Source], options: Options
) -> list[Result]:
    """Return the results of each set alone, marked as not comparable."""
    alone = replace(options, own_clips=False, allow_missing=True)
    results = [result for source in sources for result in score([source], alone)]
    return [
        replace(
            result,
            extras={**result.extras, "clips": "own"},
            provenance=replace(result.provenance, notes=(*result.provenance.notes, OWN_CLIPS_NOTE)),
        )
        for result in results
    ]
