"""Prompt sensitivity as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from evaltools.report.text import aligned
from evaltools.result import Result

__all__ = ["format_ablations"]

_LONGEST = 72


def format_ablations(results: Sequence[Result]) -> str:
    """Return one table for each result with an ablation, empty without one."""
    return "\n\n".join(_table(result) for result in results if result.extras.get("ablation"))


def _table(result: Result) -> str:
    found = result.extras["ablation"]
    rows = [("change", "class", result.task.metric_title(found[0]["metric"]), "difference", "prompt")]
    for one in found:
        value, difference = (
            "-" if one[name] is None else f"{one[name]:{form}}"
            for name, form in (("value", ".3f"), ("difference", "+.3f"))
        )
        text = one["prompt"].strip()
        shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
        rows.append((one["change"], one["label"] or f"wording {one['template']}", value, difference, shown))
    title = f"prompts of {result.extras['bank']}, {result.task.title} on {result.dataset}, {result.title}"
    return "\n".join([title, "", *aligned(rows)])
