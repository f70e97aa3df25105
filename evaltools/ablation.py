"""Prompt sensitivity: the main metric with each prompt alone, and with each left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evaltools.prompt_answers import PromptAnswers
from evaltools.unfitted import UnfittedTable

__all__ = ["ablation"]

Kept = npt.NDArray[np.bool_]


def ablation(table: UnfittedTable, answers: PromptAnswers) -> list[dict[str, Any]]:
    """Return the main metric of a table's main row with other prompts.

    A prompt of a class is alone where it is the only one of its class, those of the other classes staying. Of prompts
    with numbers a wording is alone or left out, with all its numbers.

    Returns
    -------
    list of dict
        JSON values: ``prompt``, ``label``, ``template``, ``change`` (``alone`` or ``left-out``), ``n_prompts``,
        ``value``, and ``difference`` from all prompts.
    """
    metric, prompts = table.scored.task.main_metric, answers.asked.prompts
    whole = _value(table, answers, None)
    if table.targets.kind == "regression":
        groups = [(prompts.templates == template, int(template)) for template in np.unique(prompts.templates)]
        others = [np.zeros(len(prompts), dtype=np.bool_) for _ in groups]
    else:
        groups = [(np.arange(len(prompts)) == row, int(prompts.templates[row])) for row in range(len(prompts))]
        others = [prompts.classes != prompts.classes[row] for row in range(len(prompts))]
    found: list[dict[str, Any]] = []
    for (group, template), rest in zip(groups, others, strict=True):
        first = int(np.flatnonzero(group)[0])
        for change, kept in (("alone", group | rest), ("left-out", ~group)):
            if not (kept & ~rest).any() or kept.all():
                continue  # nothing of the class or no wording would be left, or nothing is left out
            value = _value(table, answers, kept)
            found.append({
                "prompt": prompts.texts[first],
                "label": prompts.classes[first],
                "template": template if template >= 0 else None,
                "change": change,
                "n_prompts": int(kept.sum()),
                "metric": metric,
                "value": value,
                "difference": None if value is None or whole is None else value - whole,
            })  # fmt: skip
    return found


def _value(table: UnfittedTable, answers: PromptAnswers, kept: Kept | None) -> float | None:
    main, targets = table.per_row()[0], table.targets
    made = main.level.predictions(answers.answers(kept=kept).predict(targets.values)[targets.test])
    estimates = main.level.targets.estimates(made, draws=0, seed=0)
    return estimates[table.scored.task.main_metric].value
