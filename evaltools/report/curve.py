"""Learning curves as a table for a terminal, and as files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.disk import storage_errors
from embedstore.files import replace_file
from evaltools.report.curve_figure import draw_curve
from evaltools.report.files import write_document
from evaltools.report.text import aligned, format_number
from evaltools.result import Result, file_name

__all__ = ["format_curve", "write_curve"]


def _tables(results: Sequence[Result]) -> list[list[Result]]:
    found = groupby(results, key=lambda one: (one.task.name, one.dataset))
    return [list(rows) for _, rows in found]


def format_curve(results: Sequence[Result]) -> str:
    """Return one table for each task and data set: a row a point, the mean and the range over its repeats."""
    return "\n\n".join(_format_table(rows) for rows in _tables(results))


def _format_table(rows: list[Result]) -> str:
    first = rows[0]
    metric = first.task.main_metric
    points: dict[tuple[Any, ...], list[Result]] = {}
    for row in rows:
        shots, fraction = row.axis["shots"], row.axis["fraction"]
        point = f"{shots} shots" if shots is not None else f"{100 * fraction:g} %"
        points.setdefault((row.title, row.pool, shots is not None, shots or fraction, point), []).append(row)
    header = (
        "encoder",
        "pool",
        "share",
        "train clips",
        "val clips",
        first.task.metric_title(metric),
        "range",
        "repeats",
    )
    lines = [header]
    for (title, pool, _, _, point), own in sorted(points.items(), key=lambda entry: entry[0][:4]):
        values = [value for one in own if (value := one.metrics[metric].value) is not None]
        mean = format_number(float(np.mean(values))) if values else "-"
        spread = f"{format_number(min(values))} to {format_number(max(values))}" if len(values) > 1 else "-"
        clips = [
            format_number(float(np.mean([getattr(one.counts, name) for one in own]))) for name in ("n_train", "n_val")
        ]
        lines.append((title, pool, point, *clips, mean, spread, str(len(own))))
    synthetic = " [synthetic]" if first.provenance.synthetic else ""
    return "\n".join([
        f"{first.task.title} on {first.dataset}{synthetic}, protocol {first.protocol}: label efficiency",
        f"{first.counts.n_scored} test clips of {first.counts.n_patients} patients at every point; mean over repeats",
        "",
        *aligned(lines),
    ])  # fmt: skip


def write_curve(results: Sequence[Result], out: str | Path) -> None:
    """Write ``curve-TASK-DATASET.json``, ``.png`` and ``.svg`` below a folder.

    Raises
    ------
    StorageError
        A folder or file cannot be written.
    """
    out = Path(out)
    with storage_errors(out, "make the folder"):
        out.mkdir(parents=True, exist_ok=True)
    for rows in _tables(results):
        stem = f"curve-{file_name(rows[0].task.name)}-{file_name(rows[0].dataset)}"
        write_document({"results": [row.to_dict() for row in rows]}, out / f"{stem}.json")
        for suffix, payload in draw_curve(rows).items():
            replace_file(out / f"{stem}.{suffix}", payload)
