"""A `PaperTable` as Markdown, LaTeX (booktabs) or CSV. HTML is `evaltools.report.html`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping

from evaltools.report.html import to_html
from evaltools.report.paper_table import Cell, PaperTable, Section

__all__ = ["FORMATS", "to_csv", "to_markdown", "to_tex"]

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
}  # fmt: skip
# A spreadsheet runs text cells that begin so (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")


def _marked(section: Section, marks: dict[str, int]) -> Callable[[Cell], str]:
    """Return a function that numbers what a cell is marked with."""

    def numbers(cell: Cell) -> str:
        return ",".join(str(marks.setdefault(mark, len(marks) + 1)) for mark in cell.marks)

    return numbers


def to_markdown(table: PaperTable) -> str:
    """Return the table as GitHub's Markdown."""
    marks: dict[str, int] = {}
    lines: list[str] = []
    for section in table.sections:
        numbers = _marked(section, marks)
        lines += [f"**{_md(section.protocol)}**", ""]
        lines.append(f"| encoder | {' | '.join(_md(column.title) for column in section.columns)} |")
        lines.append(f"|---|{'---|' * len(section.columns)}")
        lines.append(f"| | {' | '.join(_md(column.metric_title) for column in section.columns)} |")
        lines.append(f"| n | {' | '.join(f'{c.n_scored} ({c.n_patients} patients)' for c in section.columns)} |")
        for name, cells in section.rows.items():
            shown = []
            for cell in cells:
                text = "" if cell is None else _md(cell.text)
                text = f"**{text}**" if cell is not None and cell.is_best else text
                mark = "" if cell is None else numbers(cell)
                shown.append(f"{text} ^{mark}^" if mark else text)
            lines.append(f"| {_md(name)} | {' | '.join(shown)} |")
        lines.append("")
    lines += [f"{_md(note)}\n" for note in table.notes]
    lines += [f"^{number}^ {_md(mark)}\n" for mark, number in marks.items()]
    return "\n".join(lines).rstrip() + "\n"


def _md(text: str) -> str:
    escaped = (
        text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ").replace("\r", " ")
    )
    return escaped.replace("*", "\\*").replace("_", "\\_").replace("`", "\\`")


def to_tex(table: PaperTable) -> str:
    """Return the table in LaTeX; it needs the package booktabs."""
    marks: dict[str, int] = {}
    lines: list[str] = ["% \\usepackage{booktabs}"]
    for section in table.sections:
        numbers = _marked(section, marks)
        columns = section.columns
        lines += [
            f"% protocol {_tex(section.protocol)}",
            f"\\begin{{tabular}}{{l{'c' * len(columns)}}}",
            "\\toprule",
            " & ".join([f"\\textit{{{_tex(section.protocol)}}}", *(_tex(column.title) for column in columns)])
            + r" \\",
            " & ".join(["", *(_tex(column.metric_title) for column in columns)]) + r" \\",
            " & ".join(["$n$", *(str(column.n_scored) for column in columns)]) + r" \\",
            "\\midrule",
        ]
        for name, cells in section.rows.items():
            shown = [_tex(name)]
            for cell in cells:
                text = "" if cell is None else _tex(cell.text)
                text = f"\\textbf{{{text}}}" if cell is not None and cell.is_best else text
                mark = "" if cell is None else numbers(cell)
                shown.append(f"{text}\\textsuperscript{{{mark}}}" if mark else text)
            lines.append(" & ".join(shown) + r" \\")
        lines += ["\\bottomrule", "\\end{tabular}", ""]
    lines += [f"% {_tex(note)}" for note in table.notes]
    lines += [f"% {number}: {_tex(mark)}" for mark, number in marks.items()]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, " " if character in "\n\r" else character) for character in text)


def to_csv(table: PaperTable) -> str:
    """Return one line a number; text that a spreadsheet would run as a formula gets an apostrophe before it."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(
        ["protocol", "task", "dataset", "row", "encoder", "metric", "unit", "value", "ci_low", "ci_high", "best",
         "n_scored", "n_patients", "marks"]
    )  # fmt: skip
    for section in table.sections:
        for name, cells in section.rows.items():
            for column, cell in zip(section.columns, cells, strict=True):
                if cell is None:
                    continue
                texts = (section.protocol, column.task, column.dataset, column.row, name, column.metric)
                of = cell.estimate
                numbers = ["" if value is None else repr(value) for value in (of.value, of.ci_low, of.ci_high)]
                tail = [str(cell.is_best).lower(), column.n_scored, column.n_patients]
                writer.writerow(
                    [*map(_cell, texts), _cell(column.unit or ""), *numbers, *tail, _cell("; ".join(cell.marks))]
                )
    return sink.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


FORMATS: Mapping[str, Callable[[PaperTable], str]] = {
    "md": to_markdown,
    "tex": to_tex,
    "csv": to_csv,
    "html": to_html,
}
