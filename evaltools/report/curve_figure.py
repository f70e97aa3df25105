"""The figure of a learning curve: the score against the number of training patients, a line an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaltools.report.drawing import QUIET, figure_files
from evaltools.result import Result

__all__ = ["draw_curve"]


def draw_curve(results: Sequence[Result]) -> dict[str, bytes]:
    """Draw the points of one task and data set: the mean over repeats, and from the worst to the best repeat.

    Returns
    -------
    dict of str to bytes
        File content by suffix, ``png`` and ``svg``; raises as `evaltools.report.drawing.figure_files`.
    """
    first = results[0]
    metric = first.task.main_metric

    def draw(new_figure: Any) -> Any:
        figure = new_figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        lines = dict.fromkeys((result.title, result.pool) for result in results)
        for position, (title, pool) in enumerate(lines):
            own = [result for result in results if (result.title, result.pool) == (title, pool)]
            _draw_line(axes, own, metric, f"{title} {pool}", f"C{position}")
        control = next((one.controls["mean"][metric].value for one in results if one.controls), None)
        if control is not None:
            axes.axhline(control, color=QUIET, linestyle="--", linewidth=1.0, label="mean or majority of train")
        axes.set_xscale("log")
        axes.set_xlabel("clips fitted on (train and validation)")
        axes.set_ylabel(first.task.metric_title(metric), parse_math=False)
        synthetic = " (synthetic)" if first.provenance.synthetic else ""
        axes.set_title(f"{first.task.title} on {first.dataset}{synthetic}, {first.protocol}", parse_math=False)
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)
        return figure

    return figure_files(draw, salt=first.stem)


def _draw_line(axes: Any, own: Sequence[Result], metric: str, label: str, colour: str) -> None:
    points: dict[int, list[float]] = {}
    for result in own:
        value = result.metrics[metric].value
        if value is not None:
            points.setdefault(result.counts.n_train + result.counts.n_val, []).append(value)
    sizes = sorted(points)
    means = [float(np.mean(points[size])) for size in sizes]
    axes.plot(sizes, means, marker="o", markersize=4, color=colour, label=label)
    low, high = ([bound(points[size]) for size in sizes] for bound in (min, max))
    axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
