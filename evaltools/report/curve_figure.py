"""The figure of a learning curve: the score against the number of training patients, a line an encoder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedstore.errors import MissingExtraError
from evaltools.report.figures import FORMATS
from evaltools.result import Result

__all__ = ["draw_curve"]

_QUIET = "#8a97a6"


def draw_curve(results: Sequence[Result]) -> dict[str, bytes]:
    """Draw the points of one task and data set: the mean over repeats, and from the worst to the best repeat.

    Returns
    -------
    dict of str to bytes
        File content by suffix, ``png`` and ``svg``.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "drawing a figure needs matplotlib; install it with: pip install matplotlib"
        ) from error

    first = results[0]
    metric = first.task.main_metric
    with mpl.rc_context({"svg.hashsalt": first.stem, "font.size": 9.0, "axes.edgecolor": _QUIET}):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        lines = dict.fromkeys((result.title, result.pool) for result in results)
        for position, (title, pool) in enumerate(lines):
            own = [result for result in results if (result.title, result.pool) == (title, pool)]
            _draw_line(axes, own, metric, f"{title} {pool}", f"C{position}")
        control = next((one.controls["mean"][metric].value for one in results if one.controls), None)
        if control is not None:
            axes.axhline(control, color=_QUIET, linestyle="--", linewidth=1.0, label="mean or majority of train")
        axes.set_xscale("log")
        axes.set_xlabel("clips fitted on (train and validation)")
        axes.set_ylabel(first.task.metric_title(metric), parse_math=False)
        synthetic = " (synthetic)" if first.provenance.synthetic else ""
        axes.set_title(f"{first.task.title} on {first.dataset}{synthetic}, {first.protocol}", parse_math=False)
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)
        return {suffix: _saved(figure, suffix) for suffix in FORMATS}


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


def _saved(figure: Any, suffix: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
    return buffer.getvalue()
