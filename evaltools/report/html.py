"""A `PaperTable` as one HTML page: no script, nothing loaded from elsewhere, everything that is shown escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from typing import Any

from evaltools.report.paper_table import Cell, Column, PaperTable, Section
from evaltools.report.text import format_number

__all__ = ["to_html"]

_STYLE = """
:root { color-scheme: light; --ink: #1f2d3d; --quiet: #667483; --line: #d9dee3; --accent: #b5482a; --best: #fdf1ec; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 2.5rem auto;
  max-width: 84rem; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
h2 small { font-weight: 400; color: var(--quiet); }
p { margin: .3rem 0; max-width: 60rem; }
.quiet, figcaption { color: var(--quiet); font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .9rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { font-weight: 600; border-bottom: 0; padding-bottom: 0; }
thead tr.metric th { font-weight: 400; color: var(--quiet); border-bottom: 2px solid var(--ink);
  padding-bottom: .35rem; }
td.best { background: var(--best); font-weight: 700; }
td .ci { color: var(--quiet); font-weight: 400; font-size: .85em; }
sup { color: var(--accent); }
.plots { display: flex; flex-wrap: wrap; gap: 1.25rem 2rem; margin: 1rem 0; }
figure { margin: 0; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .quiet { fill: var(--quiet); font-size: 12px; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
code { font-size: .85em; }
""".strip()
_LABEL, _PLOT, _ROW = 250, 250, 22  # pixels
_MOST_LETTERS = 36  # of a name in a plot; 12-pixel letters are about 6.5 pixels wide


def to_html(table: PaperTable) -> str:
    """Return the page."""
    # 'unsafe-inline' is not needed: the one style sheet is named by its digest.
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    marks: dict[str, int] = {}
    body = [part for section in table.sections for part in _section(section, table, marks)]
    n = len(table.documents)
    suites = sorted({str(one["suite"]) for one in table.documents if one.get("suite")})
    title = "Results" + (f" of the suite {', '.join(suites)}" if suites else "")
    return "\n".join([
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{_count(n, "result")}, {_count(len(table.sections), "protocol")}</p>',
        *(f'<p class="quiet">{escape(note)}</p>' for note in table.notes),
        *body,
        *(f'<p class="quiet"><sup>{number}</sup> {escape(mark)}</p>' for mark, number in marks.items()),
        "<h2>What the numbers are made of</h2>",
        *_provenance(table),
        "</body>",
        "</html>",
        "",
    ])  # fmt: skip


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _section(section: Section, table: PaperTable, marks: dict[str, int]) -> Iterator[str]:
    is_primary = any(one["protocol"] == section.protocol and one.get("primary") for one in table.documents)
    yield f"<h2>{escape(section.protocol)} <small>{'primary' if is_primary else 'secondary'} protocol</small></h2>"
    yield '<div class="wide"><table><thead><tr><th>encoder</th>'
    yield "".join(f"<th>{escape(column.title)}</th>" for column in section.columns)
    yield '</tr><tr class="metric"><th></th>'
    yield "".join(f"<th>{escape(column.metric_title)}, n = {column.n_scored}</th>" for column in section.columns)
    yield "</tr></thead><tbody>"
    for name, cells in section.rows.items():
        yield f"<tr><td>{escape(name)}</td>{''.join(_cell(cell, marks) for cell in cells)}</tr>"
    yield "</tbody></table></div>"
    yield '<div class="plots">'
    for at, column in enumerate(section.columns):
        cells_of = {name: cells[at] for name, cells in section.rows.items()}
        plot = _plot(column, {name: cell for name, cell in cells_of.items() if cell is not None}, table, section)
        if plot:
            yield plot
    yield "</div>"


def _cell(cell: Cell | None, marks: dict[str, int]) -> str:
    if cell is None:
        return "<td></td>"
    of = cell.estimate
    value = "-" if of.value is None else format_number(of.value)
    interval = ""
    if of.ci_low is not None and of.ci_high is not None:
        interval = f' <span class="ci">[{format_number(of.ci_low)}, {format_number(of.ci_high)}]</span>'
    numbers = ",".join(str(marks.setdefault(mark, len(marks) + 1)) for mark in cell.marks)
    raised = f"<sup>{numbers}</sup>" if numbers else ""
    reason = f' title="{escape(of.ci_reason)}"' if of.ci_reason else ""
    best = ' class="best"' if cell.is_best else ""
    return f"<td{best}{reason}>{value}{interval}{raised}</td>"


def _plot(column: Column, cells: dict[str, Cell], table: PaperTable, section: Section) -> str:
    """Draw intervals one beneath the other, with what the controls give as a dashed line."""
    known = {name: cell.estimate for name, cell in cells.items() if cell.estimate.value is not None}
    if not known:
        return ""
    chance = _chance(column, table, section)
    ends = [v for one in known.values() for v in (one.value, one.ci_low, one.ci_high) if v is not None]
    ends += [] if chance is None else [chance]
    low, high = min(ends), max(ends)
    margin = (high - low) * 0.06 or max(abs(high), 1.0) * 0.05
    low, high = low - margin, high + margin

    def across(value: float) -> float:
        return round(_LABEL + (value - low) / (high - low) * _PLOT, 1)

    height = _ROW * len(known) + 34
    width = _LABEL + _PLOT + 20
    parts = [f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">']
    parts.append(f"<title>{escape(column.title)}: {escape(column.metric_title)}</title>")
    bottom = _ROW * len(known) + 6
    if chance is not None:
        parts.append(
            f'<line x1="{across(chance)}" x2="{across(chance)}" y1="2" y2="{bottom}" stroke="#8a97a6" '
            'stroke-dasharray="3 3"/>'
        )
    for row, (name, of) in enumerate(known.items()):
        y = _ROW * row + 14
        shown = name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
        parts.append(f'<text x="{_LABEL - 10}" y="{y + 4}" text-anchor="end">{escape(shown)}</text>')
        colour = "#b5482a" if cells[name].is_best else "#1f2d3d"
        if of.ci_low is not None and of.ci_high is not None:
            parts.append(
                f'<line x1="{across(of.ci_low)}" x2="{across(of.ci_high)}" y1="{y}" y2="{y}" stroke="{colour}" '
                'stroke-width="2"/>'
            )
        assert of.value is not None
        parts.append(f'<circle cx="{across(of.value)}" cy="{y}" r="4" fill="{colour}"/>')
    parts.append(f'<line x1="{_LABEL}" x2="{_LABEL + _PLOT}" y1="{bottom}" y2="{bottom}" stroke="#d9dee3"/>')
    for value, anchor in ((low + margin, "start"), (high - margin, "end")):
        parts.append(
            f'<text class="quiet" x="{across(value)}" y="{bottom + 18}" text-anchor="{anchor}">'
            f"{format_number(value)}</text>"
        )
    parts.append("</svg>")
    dashed = "; dashed: best control" if chance is not None else ""
    caption = f"{column.title}: {column.metric_title}{dashed}"
    return f"<figure>{''.join(parts)}<figcaption>{escape(caption)}</figcaption></figure>"


def _chance(column: Column, table: PaperTable, section: Section) -> float | None:
    """Return the best value that a predictor without images reaches: training mean or facts of the recording."""
    from evaltools.metrics import METRICS

    values = [
        one["controls"][name][column.metric]["value"]
        for one in table.documents
        if (one["task"], one["dataset"], one["protocol"]) == (column.task, column.dataset, section.protocol)
        and one.get("row", "all") == column.row
        for name in ("mean", "metadata")
        if name in one.get("controls", {})
    ]
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    return max(known) if METRICS[column.metric].higher_is_better else min(known)


def _provenance(table: PaperTable) -> Iterator[str]:
    fields = ("set", "fingerprint", "annotations", "media", "task_digest", "protocol_digest", "bank_digest")
    more = ("bank", "leakage", "split_rule", "seed", "bootstrap", "chosen")
    for one in table.documents:
        row = "" if one.get("row", "all") == "all" else f", {one['row']}"
        who = f"{one['encoder']}@{one['variant']} {one.get('pool', '')}".rstrip()
        name = f"{one['task']} on {one['dataset']}{row}, {who}, {one['protocol']}"
        yield f"<details><summary>{escape(name)}</summary>"
        facts: list[tuple[str, Any]] = [(field, one.get(field)) for field in (*fields, *more)]
        facts += [("versions", " ".join(f"{k} {v}" for k, v in one.get("versions", {}).items()))]
        lines = [
            f"{escape(key)}: <code>{escape(str(value))}</code>" for key, value in facts if value not in (None, "")
        ]
        lines += [escape(str(note)) for note in one.get("notes", ())]
        yield f'<p class="quiet">{"<br>".join(lines)}</p></details>'
