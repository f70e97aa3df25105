"""Retrieval, neighbours and alignments as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from evaltools.align import Alignment
from evaltools.query import Neighbour
from evaltools.report.text import format_estimate
from evaltools.retrieval import Retrieval

__all__ = ["format_alignments", "format_neighbours", "format_retrievals"]

Row = tuple[str, ...]
_CONTROL_TITLES = {"shuffled": "shuffled labels", "random": "random vectors", "metadata": "metadata only"}


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_retrievals(results: Sequence[Retrieval]) -> str:
    """Return one table for each task and data set, controls beneath each row."""
    tables = groupby(results, key=lambda result: (result.task.name, result.dataset))
    return "\n\n".join(_retrieval_table(list(rows)) for _, rows in tables)


def _retrieval_table(results: Sequence[Retrieval]) -> str:
    first = results[0]
    synthetic = " [synthetic]" if first.synthetic else ""
    rows: list[Row] = [("encoder", "pool", *first.metrics)]
    for result in results:
        rows.append((result.title, result.pool, *(format_estimate(of) for of in result.metrics.values())))
        for name, title in _CONTROL_TITLES.items():
            if name != "metadata" or result is results[-1]:
                rows.append((f"  {title}", "", *(format_estimate(result.controls[name][m]) for m in first.metrics)))
    lines = [
        f"{first.task.title} on {first.dataset}{synthetic}, {first.protocol} by {first.space.title}, {first.index}",
        _asked(first),
        f"{first.relevance}; leakage {first.leakage}" + (f"; only {first.where}" if first.where else ""),
        "",
        *_aligned(rows),
        "",
        f"[ ]: 95 % interval over {'the patients found among' if first.bank else 'query patients'}, {first.draws} "
        "draws; for shuffled labels the middle 95 % of permutations by patient",
    ]
    for result in results:
        who = f"{result.title} {result.pool}"
        if result.index_recall is not None:
            lines.append(f"{who}: {result.index} found {result.index_recall:.1%} of the exact neighbours")
        if result.bank is not None:
            lines.append(f"{who}: bank {result.bank['bank']} ({result.bank['bank_digest'][:12]})")
        reasons = {of.ci_reason for of in result.metrics.values() if of.ci_reason}
        lines += [f"{who}: no interval ({reason})" for reason in sorted(reasons)]
    return "\n".join(lines)


def _asked(first: Retrieval) -> str:
    nothing = f"{first.n_without_relevant} with nothing to find"
    if first.bank is not None:
        return (
            f"{first.n_scored} of {first.n_expected} prompts as queries, among {first.n_gallery} test clips of "
            f"{first.n_patients} patients; {nothing}"
        )
    return (
        f"{first.n_scored} of {first.n_expected} test clips as queries, {first.n_patients} patients, among "
        f"{first.n_gallery} clips, own patients left out; {nothing}"
    )


def format_neighbours(neighbours: Sequence[Neighbour]) -> str:
    """Return one table for each query and set of vectors, nearest first."""
    lines: list[str] = []
    for _, group in groupby(neighbours, key=lambda one: (one.query, one.dataset, one.encoder)):
        found = list(group)
        first = found[0]
        labels = list(first.labels)
        rows: list[Row] = [("rank", "clip", "score", "distance", *labels)]
        for one in found:
            cells = (_cell(one.labels[name]) for name in labels)
            rows.append((str(one.rank), one.clip_id, f"{one.score:.6f}", f"{one.distance:.6f}", *cells))
        asked = f" ({', '.join(f'{name} {_cell(value)}' for name, value in first.query_labels.items())})"
        lines += ["", f"{first.query}{asked if first.query_labels else ''} in {first.dataset}, {first.encoder}"]
        if first.index_recall is not None:
            lines.append(f"{first.index} found {first.index_recall:.1%} of the exact neighbours")
        lines += _aligned(rows)
    return "\n".join(lines[1:])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_alignments(alignments: Sequence[Alignment]) -> str:
    """Return one table for each data set."""
    lines: list[str] = []
    for (dataset, with_text), group in groupby(alignments, key=lambda one: (one.dataset, one.metric is not None)):
        found = list(group)
        first = found[0]
        rows: list[Row] = [("a", "b", "method", "value")]
        if with_text:
            rows = [("encoder", "task", "text axis", "value")]
        rows += [(one.a, one.b, one.metric or one.method, _small(one)) for one in found]
        synthetic = " [synthetic]" if first.synthetic else ""
        lines += [
            "",
            f"{dataset}{synthetic}, split {first.split}: {first.n_clips} clips of {first.n_patients} patients; "
            f"{first.n_dropped} clips left out because an encoder lacks them",
            "",
            *_aligned(rows),
            "",
            "[ ]: 95 % interval from "
            + (
                f"{first.settings['draws']} bootstrap draws of patients; prompts of the bank {first.settings['bank']}"
                if with_text
                else f"{first.settings['draws']} draws of half of the patients without replacement"
            ),
        ]
        reasons = {(one.metric or one.method, one.estimate.ci_reason) for one in found if one.estimate.ci_reason}
        lines += [f"{method}: {reason}" for method, reason in sorted(reasons)]
    return "\n".join(lines[1:])


def _small(one: Alignment) -> str:
    estimate = one.estimate
    if estimate.value is None:
        return "-"
    if estimate.ci_low is None or estimate.ci_high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.ci_low:.3f}, {estimate.ci_high:.3f}]"
