"""Results as tables for a terminal: values with intervals, controls beneath, counts always shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from evaltools.resample import Estimate
from evaltools.result import GroupScores, Result
from evaltools.task_rows import EVERYTHING

__all__ = ["aligned", "format_estimate", "format_number", "format_results"]

_CONTROL_TITLES = {
    "mean": "mean or majority of train",
    "shuffled": "shuffled labels",
    "random": "random vectors",
    "metadata": "metadata only",
    "view-mix": "view mix of the study only",
    "n-images": "number of images of the study only",
}
_SHARED = (
    "mean",
    "metadata",
    "view-mix",
    "n-images",
)  # the same for all encoders of a table: printed once, at its foot
_METRICS_SHOWN = 3

Row = tuple[str, ...]


def format_results(results: Sequence[Result]) -> str:
    """Return one table for each task, data set, row and protocol.

    Parameters
    ----------
    results : sequence of Result
        In the order of `evaltools.probe.probe`.
    """
    tables = groupby(
        results,
        key=lambda result: (
            result.task.name,
            result.dataset,
            result.row.name,
            result.protocol,
            result.axis.get("train_dataset"),
        ),
    )
    return "\n\n".join(_format_table(list(rows)) for _, rows in tables)


def _format_table(results: Sequence[Result]) -> str:
    first = results[0]
    shown = first.task.metrics[:_METRICS_SHOWN]
    if first.task.main_metric not in shown:
        shown = (first.task.main_metric, *shown[:-1])
    header: Row = ("encoder", "pool", *(first.task.metric_title(name) for name in shown))
    rows = [header]
    for result in results:
        rows.append((_marked(result), result.pool, *(format_estimate(result.metrics[name]) for name in shown)))
        rows += [_control_row(result, name, shown) for name in result.controls if name not in _SHARED]
    rows += [_control_row(first, name, shown) for name in first.controls if name in _SHARED]
    theirs = _cardiobench_lines(results)
    lines = [*_heading(first), "", *aligned(rows), *_group_lines(results), *theirs, "", *_footing(results)]
    return "\n".join(lines)


def _marked(result: Result) -> str:
    """Name an encoder, with what flatters its number."""
    marks = ["oracle frames"] if result.provenance.oracle_frames else []
    marks += [f"pretrained on {result.provenance.pretraining}"] if result.provenance.pretraining else []
    return f"{result.title} [{', '.join(marks)}]" if marks else result.title


def _heading(first: Result) -> list[str]:
    synthetic = " [synthetic]" if first.provenance.synthetic else ""
    standing = "primary" if first.is_primary else "secondary"
    counts = first.counts
    fitted_on = f", fitted on {first.axis['train_dataset']}" if "train_dataset" in first.axis else ""
    row = f", {first.row.name}" if first.row.name != "all" else ""
    scored = {"clip": "clips", "patient": "patients", "study": "studies"}[first.row.level]
    how = [f"{first.row.name}: {first.row.aggregation}"] if first.row.level != "clip" else []
    how_fitted = f"fitted on {counts.n_train} train and {counts.n_val} val clips"
    if "bank" in first.extras:
        threshold = " but a threshold on train" if "threshold" in first.chosen else ""
        how_fitted = f"nothing fitted{threshold}, bank {first.extras['bank']}"
    return [
        f"{first.task.title} on {first.dataset}{synthetic}{row}{fitted_on}, protocol {first.protocol} ({standing})",
        *how,
        f"{counts.n_scored} of {counts.n_expected} test {scored} scored, {counts.n_patients} patients; "
        f"{how_fitted}; {counts.n_unlabelled} unlabelled, "
        f"{counts.n_without_split} without split",
        f"leakage {first.provenance.leakage}"
        + "".join(f"; only {part}" for part in (_asked_of(first), first.row.where, first.provenance.where) if part),
    ]


def _asked_of(result: Result) -> str | None:
    asked = result.provenance.asked_of
    return None if asked == EVERYTHING else asked


def _control_row(result: Result, name: str, shown: Sequence[str]) -> Row:
    control = result.controls[name]
    title = _CONTROL_TITLES[name]
    if name == "shuffled" and result.p_shuffled is not None:
        title += f" (p = {result.p_shuffled:.2g})"
    return (f"  {title}", "", *(format_estimate(control[metric]) for metric in shown))


def _group_lines(results: Sequence[Result]) -> list[str]:
    lines: list[str] = []
    main_metric = results[0].task.main_metric
    for column in results[0].groups:
        header: Row = (column, "encoder", "pool", "scored", "patients", results[0].task.metric_title(main_metric))
        rows = [header]
        for value in results[0].groups[column]:
            for result in results:
                rows.append(_group_row(value, result, result.groups[column][value]))
        lines += ["", *aligned(rows)]
    return lines


def _group_row(value: str, result: Result, scores: GroupScores) -> Row:
    main = format_estimate(scores.metrics[result.task.main_metric])
    return value, result.title, result.pool, str(scores.n_scored), str(scores.n_patients), main


def _cardiobench_lines(results: Sequence[Result]) -> list[str]:
    """Return CardioBench's numbers: value, mean of replicates, interval over rows."""
    known = [(result, result.cardiobench) for result in results if result.cardiobench is not None]
    if not known:
        return []
    names = list(known[0][1]["metrics"])
    rows: list[Row] = [("CardioBench's statistics", "pool", "n", *names)]
    for result, numbers in known:
        cells = (_theirs(numbers["metrics"][name]) for name in names)
        rows.append((result.title, result.pool, str(numbers["n"]), *cells))
    first = known[0][1]
    off = [name.replace("_", "-") for name, is_on in first["habits"].items() if not is_on]
    how = "rows" if first["habits"]["row_draws"] else "patients"
    note = f"     95 % interval over {how}, {first['draws']} draws, seed {first['seed']}"
    return ["", *aligned(rows), note + (f"; off: {', '.join(off)}" if off else "")]


def _theirs(metric: Mapping[str, float | None]) -> str:
    value, low, high = (metric[name] for name in ("value", "ci_low", "ci_high"))
    if value is None:
        return "-"
    return f"{value:g}" if low is None or high is None else f"{value:g} [{low:.2f}, {high:.2f}]"


def _footing(results: Sequence[Result]) -> list[str]:
    first = results[0]
    n_shuffles = first.n_shuffles if first.controls else 0  # none where one class is scored, by recall
    more = ";" if n_shuffles else ""
    lines = [f"[ ]: 95 % interval over test patients of the fitted probe, {first.draws} draws{more}"]
    if n_shuffles:
        lines.append(
            f"     for shuffled labels the middle 95 % of {n_shuffles} permutations by patient, with the share "
            f"p that is as good by {first.task.metric_title(first.task.main_metric)}"
        )
    for result in results:
        who = f"{result.title} {result.pool}"
        if result.counts.n_missing or result.counts.n_dropped:
            lines.append(
                f"{who}: {result.counts.n_missing} labelled clips without vectors, "
                f"{result.counts.n_dropped} left out because another row lacks them"
            )
        lines += _copies_lines(result, who)
        lines += _detail_lines(result, who)
        reasons = {estimate.ci_reason for estimate in result.metrics.values() if estimate.ci_reason}
        lines += [f"{who}: no interval ({reason})" for reason in sorted(reasons)]
        lines += [f"{who}: {note}" for note in result.provenance.notes]
    return lines


def _detail_lines(result: Result, who: str) -> list[str]:
    """Say how values agree or shares are calibrated, and how far apart the best and worst group are."""
    extras = result.extras
    lines = []
    if "calibration" in extras:
        found = {name: format_estimate(_read(extras["calibration"][name])) for name in ("ece", "brier", "nll")}
        lines.append(f"{who}: ECE {found['ece']}, Brier {found['brier']}, NLL {found['nll']}")
    if "agreement" in extras:
        found = {name: format_estimate(_read(one)) for name, one in extras["agreement"].items()}
        lines.append(f"{who}: bias {found['bias']}, limits of agreement {found['loa_low']} and {found['loa_high']}")
    for cutoff, one in extras.get("cutoffs", {}).items():
        lines.append(f"{who}: AUROC below {cutoff} {result.task.unit} {format_estimate(_read(one))}")
    for column, one in extras.get("gaps", {}).items():
        if one is not None:
            gap = _read(one["gap"])
            why = f" (no interval: {gap.ci_reason})" if gap.ci_reason else ""
            lines.append(f"{who}: {column} {one['best']} less {one['worst']}, {format_estimate(gap)}{why}")
    return lines


def _read(stated: Mapping[str, Any]) -> Estimate:
    return Estimate(stated["value"], stated["ci_low"], stated["ci_high"], stated.get("ci_reason"))


def _copies_lines(result: Result, who: str) -> list[str]:
    """Say what is known of test clips that nearly equal a training clip."""
    near = result.near_duplicates
    if near is None or not near["n_clips"]:
        return []
    pair = near["pairs"][0]
    without = (
        ""
        if near["metrics_without"] is None
        else (
            f"; without them {result.task.metric_title(result.task.main_metric)} "
            f"{format_number(near['metrics_without'][result.task.main_metric]['value'] or 0.0)}"
        )
    )
    return [
        f"{who}: {near['n_clips']} test clips nearly equal a training clip (cosine above {near['threshold']:.6f}; "
        f"{pair['test']} and {pair['train']}, {pair['cosine']:.6f}){without}"
    ]


def aligned(rows: Sequence[Row]) -> list[str]:
    """Return lines of cells, each column as wide as its widest."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_estimate(estimate: Estimate) -> str:
    """Return a value with its interval.

    Examples
    --------
    >>> format_estimate(Estimate(5.1234, 4.6, 5.71)), format_estimate(Estimate(0.5)), format_estimate(Estimate(None))
    ('5.12 [4.60, 5.71]', '0.50', '-')
    """
    if estimate.value is None:
        return "-"
    if estimate.ci_low is None or estimate.ci_high is None:
        return format_number(estimate.value)
    return f"{format_number(estimate.value)} [{format_number(estimate.ci_low)}, {format_number(estimate.ci_high)}]"


def format_number(value: float) -> str:
    """Return about three digits.

    Examples
    --------
    >>> [format_number(value) for value in (123.4, 55.55, -0.034, 0.0001, 0.999)]
    ['123', '55.5', '-0.03', '0.00', '1.00']
    """
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"
