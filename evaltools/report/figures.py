"""One figure a result: predicted against true with limits of agreement, or a confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaltools.report.drawing import QUIET, figure_files
from evaltools.report.text import format_estimate, format_number
from evaltools.result import Result

__all__ = ["draw_result"]

_AGREEMENT = 1.96  # Bland and Altman, Lancet 1986;1:307-310: mean difference +/- 1.96 standard deviations
_INK, _ACCENT = "#1f2d3d", "#b5482a"
_PLATE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}


def draw_result(result: Result) -> dict[str, bytes]:
    """Draw the figure of a result.

    Returns
    -------
    dict of str to bytes
        File content by suffix, ``png`` and ``svg``; raises as `evaltools.report.drawing.figure_files`.
    """

    def draw(new_figure: Any) -> Any:
        if result.task.kind == "regression":
            figure = new_figure(figsize=(9.0, 4.6), layout="constrained")
            _draw_agreement(figure, result)
        else:
            size = 3.4 + 0.55 * len(result.predictions.classes)
            figure = new_figure(figsize=(size + 1.2, size + 0.6), layout="constrained")
            _draw_confusion(figure, result)
        figure.suptitle(_title(result), color=_INK, parse_math=False)
        return figure

    return figure_files(draw, salt=result.stem)


def _title(result: Result) -> str:
    synthetic = " (synthetic)" if result.provenance.synthetic else ""
    counts = result.counts
    return (
        f"{result.task.title} on {result.dataset}{synthetic}\n{result.title}, {result.pool} pooling, "
        f"{result.protocol}: {counts.n_scored} clips of {counts.n_patients} patients"
    )


def _with_unit(name: str, unit: str | None) -> str:
    return f"{name} ({unit})" if unit else name


def _draw_agreement(figure: Any, result: Result) -> None:
    scatter, agreement = figure.subplots(1, 2)
    true = result.predictions.y_true.astype(np.float64)
    predicted = result.predictions.y_pred.astype(np.float64)
    unit = result.task.unit
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    scatter.plot(limits, limits, color=QUIET, linewidth=1.0, linestyle="--", zorder=1)
    scatter.scatter(true, predicted, s=14, color=_INK, alpha=0.55, linewidths=0, zorder=2)
    scatter.set(xlim=limits, ylim=limits, aspect="equal")
    scatter.set_xlabel(_with_unit("true", unit), parse_math=False)
    scatter.set_ylabel(_with_unit("predicted", unit), parse_math=False)
    lines = [
        f"{result.task.metric_title(name)}: {format_estimate(result.metrics[name])}"
        for name in result.task.metrics
        if result.metrics[name].value is not None
    ]
    scatter.text(
        0.03, 0.97, "\n".join(lines[:3]), transform=scatter.transAxes, va="top", color=_INK, parse_math=False,
        bbox=_PLATE,
    )  # fmt: skip
    _draw_differences(agreement, (true + predicted) / 2, predicted - true, unit)


def _draw_differences(axes: Any, means: Any, differences: Any, unit: str | None) -> None:
    bias = float(differences.mean())
    spread = _AGREEMENT * float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    axes.scatter(means, differences, s=14, color=_INK, alpha=0.55, linewidths=0)
    axes.axhline(0.0, color=QUIET, linewidth=0.8)
    # Lines of equal height would print their texts over each other.
    drawn = ((bias + spread, "upper limit", "--"), (bias, "bias", "-"), (bias - spread, "lower limit", "--"))
    for height, name, style in drawn if spread else drawn[1:2]:
        axes.axhline(height, color=_ACCENT, linewidth=1.2, linestyle=style)
        axes.annotate(
            f"{name} {format_number(height)}{' ' + unit if unit else ''}", (0.985, height),
            xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points", ha="right", va="bottom",
            color=_ACCENT, parse_math=False, bbox=_PLATE,
        )  # fmt: skip
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel(_with_unit("mean of true and predicted", unit), parse_math=False)
    axes.set_ylabel(_with_unit("predicted - true", unit), parse_math=False)
    axes.set_title("agreement: bias and 95 % limits, clip by clip", fontsize=9, color=_INK)


def _draw_confusion(figure: Any, result: Result) -> None:
    axes = figure.subplots()
    classes = result.predictions.classes
    position = {name: code for code, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for true, predicted in zip(result.predictions.y_true, result.predictions.y_pred, strict=True):
        counts[position[true], position[predicted]] += 1
    of_class = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(of_class, 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*counts.shape):
        ink = "white" if shares[row, column] > 0.6 else _INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=ink)
    axes.set_xticks(range(len(classes)))
    axes.set_yticks(range(len(classes)))
    for label in axes.set_xticklabels(classes, rotation=45 if len(classes) > 6 else 0):
        label.set_parse_math(False)
    for label in axes.set_yticklabels([f"{name} (n={n})" for name, n in zip(classes, of_class[:, 0], strict=True)]):
        label.set_parse_math(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    main = result.task.main_metric
    axes.set_title(
        f"{result.task.metric_title(main)}: {format_estimate(result.metrics[main])}",
        fontsize=9, color=_INK, parse_math=False,
    )  # fmt: skip
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
