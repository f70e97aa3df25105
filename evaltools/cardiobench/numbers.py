"""CardioBench's numbers of one result: rows in the order of its ground-truth file, its metrics, its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedstore import Manifest
from evaltools.cardiobench.metrics import (
    CLASS_DIGITS,
    OTHER_DIGITS,
    VIEWS,
    hard_label_metrics,
    regression_metrics,
    view_metrics,
    view_probabilities,
)
from evaltools.cardiobench.statistics import DRAWS, SEED, Habits, Rows, Score, bootstrap, delta_row
from evaltools.metrics import Floats
from evaltools.result import Predictions
from evaltools.task import Task

__all__ = ["cardiobench_numbers", "file_order", "six_shares"]

_OLDEST = ">=80"  # as its labels call the group that its list of groups calls 80
# Groups that its scripts name; other values of these columns are in none.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "sex": ("F", "M"),
    "image_quality": ("Poor", "Medium", "Good"),
    "age_years": ("0-1", "1-5", "6-12", "13-18", "<=45", "46-65", "66-80", _OLDEST),
}


def file_order(manifest: Manifest, task: Task, predictions: Predictions) -> Rows:
    """Return the order in which the ground-truth file holds what was scored, (m,).

    Clips and patients stand where their first row of the official table does; studies in the order of their ids.
    """
    names = predictions.clip_ids.astype(str)
    if predictions.level == "study":
        return np.argsort(names, kind="stable")
    # EchoNet-LVH has a table a measurement; that of the posterior wall lists the videos whose view is scored.
    measured = f"{'lvpwd' if task.name == 'view' else task.name}_row"
    column = next((name for name in (measured, "source_row") if name in manifest.fields), None)
    lines = list(range(len(manifest))) if column is None else manifest.column(column)
    keys = manifest.clip_ids if predictions.level == "clip" else manifest.patients
    first: dict[str, int] = {}
    for key, line in zip(keys, lines, strict=True):
        place = len(manifest) if line is None else int(line)
        first[str(key)] = min(place, first.get(str(key), place))
    places = np.array([first.get(name, len(manifest)) for name in names])
    return np.lexsort((names, places))


def six_shares(predictions: Predictions) -> Floats:
    """Return shares of CardioBench's six views (m, 6); a view that is none of them counts as ``Other``."""
    assert predictions.probabilities is not None
    shares = np.zeros((len(predictions), len(VIEWS)))
    for code, name in enumerate(predictions.classes):
        shares[:, VIEWS.index(name) if name in VIEWS else -1] += predictions.probabilities[:, code]
    return shares


def _scorer(task: Task, predictions: Predictions, habits: Habits) -> Score:
    if predictions.probabilities is None:
        true, predicted = (np.asarray(of, dtype=np.float64) for of in (predictions.y_true, predictions.y_pred))
        return lambda rows, rounded: regression_metrics(true[rows], predicted[rows], rounded=rounded)
    if task.name == "view":
        codes = np.array([VIEWS.index(name) if name in VIEWS else len(VIEWS) - 1 for name in predictions.y_true])
        shares = view_probabilities(six_shares(predictions), other_from_sum=habits.other_from_sum)
        return lambda rows, rounded: view_metrics(codes[rows], shares[rows], rounded=rounded)
    names = {name: code for code, name in enumerate(predictions.classes)}
    of_true, of_predicted = (
        np.array([names[name] for name in of]) for of in (predictions.y_true, predictions.y_pred)
    )
    return lambda rows, rounded: hard_label_metrics(of_true[rows], of_predicted[rows], rounded=rounded)


def cardiobench_numbers(
    predictions: Predictions,
    *,
    task: Task,
    order: Rows,
    groups: Mapping[str, Sequence[Any]] | None = None,
    habits: Habits | None = None,
) -> dict[str, Any]:
    """Return CardioBench's numbers as JSON values.

    Parameters
    ----------
    order : (m,) int
        From `file_order`.
    groups : mapping of str to (m,) sequence
        Column to the group of each scored row, None where it is unknown; metrics of each without interval, and the
        largest difference.
    """
    chosen = habits or Habits()
    score = _scorer(task, predictions, chosen)
    patients = predictions.patients[order]
    of_groups: dict[str, Any] = {}
    for column, values in (groups or {}).items():
        named = np.array([values[row] for row in order], dtype=object)
        known = [name for name in dict.fromkeys(named) if name is not None and name in _GROUPS.get(column, (name,))]
        if chosen.drop_oldest:
            known = [name for name in known if name != _OLDEST]
        scored = {str(name): dict(score(order[named == name], chosen.round_inside)) for name in known}
        of_groups[column] = {
            "groups": {
                name: {"n": int((named == name).sum()), **{of: _json(value) for of, value in metrics.items()}}
                for name, metrics in scored.items()
            },
            "delta": delta_row(scored),
        }
    per_view = _per_view(predictions, chosen) if task.name == "view" else {}
    return {
        "n": len(predictions),
        **per_view,
        "metrics": bootstrap(
            lambda rows, rounded: score(order[rows], rounded),
            len(order),
            patients=patients,
            habits=chosen,
            digits=CLASS_DIGITS if task.kind == "classification" and task.name != "view" else OTHER_DIGITS,
        ),
        "groups": of_groups,
        "draws": DRAWS,
        "seed": SEED,
        "habits": chosen.to_dict(),
    }


def _per_view(predictions: Predictions, habits: Habits) -> dict[str, Any]:
    """Return the accuracy within each view that occurs, in per cent, and how often each is predicted."""
    shares = view_probabilities(six_shares(predictions), other_from_sum=habits.other_from_sum)
    named = np.array(VIEWS, dtype=object)[shares.argmax(axis=1)]
    true = np.array([name if name in VIEWS else VIEWS[-1] for name in predictions.y_true], dtype=object)
    accuracy = {
        view: {
            "n": int((true == view).sum()),
            "accuracy": round(100.0 * float((named[true == view] == view).mean()), 2),
        }
        for view in VIEWS
        if (true == view).any()
    }
    return {"per_view": accuracy, "predicted": {view: int((named == view).sum()) for view in VIEWS}}


def _json(value: float) -> float | None:
    return None if np.isnan(value) else value
