"""Comparisons as tables for a terminal."""

from __future__ import annotations

from itertools import groupby

from evaltools.compare import Comparison, Comparisons
from evaltools.report.text import aligned, format_estimate
from evaltools.resample import Estimate

__all__ = ["format_comparisons"]


def format_comparisons(found: Comparisons) -> str:
    """Return one table for each task, data set, pooling and protocol, and what the numbers mean."""
    tables = groupby(found.comparisons, key=lambda one: (one.a.task.name, one.a.dataset, one.a.pool, one.a.protocol))
    parts = []
    for names, rows in tables:
        parts.append("\n".join([*_table(list(rows)), *_ties(found, "/".join(names))]))
    return "\n\n".join([*parts, _footing(found)])


def _table(rows: list[Comparison]) -> list[str]:
    first = rows[0]
    title = first.a.task.metric_title(first.metric)
    synthetic = " [synthetic]" if first.a.provenance.synthetic else ""
    header = ("a", "b", f"{title}: a - b", "p", "p Holm (task)", "p Holm (suite)", "better")
    lines = [header]
    for row in rows:
        better = {"a": row.a.title, "b": row.b.title, "neither": "-"}[row.favours]
        adjusted = (_p(row.p), _p(row.p_holm), _p(row.p_holm_suite))
        lines.append((row.a.title, row.b.title, format_difference(row.difference), *adjusted, better))
    counts = f"{first.n_scored} test clips of {first.n_patients} patients"
    if any(row.n_dropped for row in rows):
        counts += f", up to {max(row.n_dropped for row in rows)} that only one of a pair has left out"
    swaps = "all" if first.exact else "drawn"
    return [
        f"{first.a.task.title} on {first.a.dataset}{synthetic}, {first.a.pool} pooling, protocol {first.a.protocol}",
        f"{counts}; {first.permutations} swaps ({swaps}), smallest attainable p = {_p(first.smallest_p)}",
        "",
        *aligned(lines),
        *sorted({f"no interval ({row.difference.ci_reason})" for row in rows if row.difference.ci_reason}),
    ]


def format_difference(estimate: Estimate) -> str:
    """Return a difference with its sign and interval.

    Examples
    --------
    >>> format_difference(Estimate(0.4, -0.2, 1.0))
    '+0.40 [-0.20, 1.00]'
    """
    text = format_estimate(estimate)
    return f"+{text}" if estimate.value is not None and estimate.value > 0 else text


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _ties(found: Comparisons, table: str) -> list[str]:
    ties = found.ties.get(table)
    if ties is None:
        return []
    groups = "  >  ".join(" = ".join(group) for group in ties.groups)
    ranks = ", ".join(
        f"{name} {low}" if low == high else f"{name} {low} to {high}" for name, (low, high) in ties.ranks.items()
    )
    return ["", f"order (= where not told apart at 5 % after Holm): {groups}", f"ranks: {ranks}"]


def _footing(found: Comparisons) -> str:
    tasks = len({one.a.task.name for one in found.comparisons})
    return (
        f"[ ]: 95 % interval of the difference over test patients, {found.comparisons[0].a.draws} draws; p:"
        " two-sided, A and B swapped within patients.\n"
        "     Both cover the sampling of test patients for the fitted probes, not training again.\n"
        f"     {len(found.comparisons)} pairs in {tasks} {'task' if tasks == 1 else 'tasks'} corrected for."
    )
