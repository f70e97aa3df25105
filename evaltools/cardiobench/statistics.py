"""CardioBench's intervals: rows drawn one by one, metrics rounded in each replicate, seed 42, 1,000 draws.

Rows are not independent where a patient has several, and rounding moves the mean, so these stand beside our own
numbers and never in their place. Each habit has a switch, see `Habits`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import UnknownNameError, did_you_mean
from evaltools.metrics import Floats

__all__ = ["DRAWS", "SEED", "Habits", "bootstrap", "delta_row"]

SEED = 42
DRAWS = 1000
_TAIL = 0.025
Rows = npt.NDArray[np.intp]
Score = Callable[[Rows, bool], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What changes CardioBench's numbers, each with a switch; all on is CardioBench.

    Attributes
    ----------
    row_draws : bool
        Draw rows; off: draw patients with all their rows.
    round_inside : bool
        Round metrics in each replicate, then their means and interval ends; off: round nothing.
    other_from_sum : bool
        Take the share of ``Other`` as what the five views leave of 1; off: as predicted.
    drop_oldest : bool
        Leave out the oldest group of CAMUS, whose name its script does not find; off: score it.
    view_all_splits : bool
        Score CAMUS views of every split that has predictions; off: of test.
    """

    row_draws: bool = True
    round_inside: bool = True
    other_from_sum: bool = True
    drop_oldest: bool = True
    view_all_splits: bool = True

    @classmethod
    def without(cls, names: tuple[str, ...]) -> Habits:
        """Return the habits with some switched off, named with dashes.

        Raises
        ------
        UnknownNameError
            There is no habit of that name.

        Examples
        --------
        >>> Habits.without(("row-draws",)).row_draws
        False
        """
        known = [field.name.replace("_", "-") for field in fields(cls)]
        for name in names:
            if name not in known:
                raise UnknownNameError(f"CardioBench has no habit {name!r}{did_you_mean(name, known)}")
        return cls(**{name.replace("-", "_"): False for name in names})

    def to_dict(self) -> dict[str, bool]:
        """Return JSON values."""
        return dict(vars(self))


def bootstrap(
    score: Score, n: int, *, patients: npt.NDArray[Any], habits: Habits | None = None, digits: int = 2
) -> dict[str, dict[str, float | None]]:
    """Return each metric with the mean and interval of its replicates.

    Parameters
    ----------
    score : callable
        From rows (m,) and whether to round, to metrics.
    n : int
        Rows, in the order of the ground-truth file: the draws go by position.
    patients : (n,)
        Whose the rows are; looked at where patients are drawn.
    digits : int
        Decimals of means and interval ends, which are rounded too.

    Returns
    -------
    dict
        Metric to ``value``, ``mean``, ``ci_low``, ``ci_high``; None where it has no value.
    """
    chosen = habits or Habits()
    point = score(np.arange(n), chosen.round_inside)
    rng = np.random.default_rng(SEED)
    draw = _row_draw(n) if chosen.row_draws else _patient_draw(patients)
    replicates = [score(draw(rng), chosen.round_inside) for _ in range(DRAWS)]
    kept = digits if chosen.round_inside else None
    return {name: _summary(value, np.array([of[name] for of in replicates]), kept) for name, value in point.items()}


def _row_draw(n: int) -> Callable[[np.random.Generator], Rows]:
    return lambda rng: rng.integers(0, n, size=n).astype(np.intp)


def _patient_draw(patients: npt.NDArray[Any]) -> Callable[[np.random.Generator], Rows]:
    _, codes = np.unique(patients.astype(str), return_inverse=True)
    rows_of = [np.flatnonzero(codes == code) for code in range(int(codes.max()) + 1)]

    def draw(rng: np.random.Generator) -> Rows:
        drawn = rng.integers(0, len(rows_of), size=len(rows_of))
        return np.concatenate([rows_of[code] for code in drawn])

    return draw


def _summary(value: float, replicates: Floats, digits: int | None) -> dict[str, float | None]:
    known = replicates[~np.isnan(replicates)]
    if not len(known):
        return {"value": _number(value), "mean": None, "ci_low": None, "ci_high": None}
    found = (known.mean(), *np.quantile(known, [_TAIL, 1.0 - _TAIL]))
    mean, low, high = (float(of) if digits is None else round(float(of), digits) for of in found)
    return {"value": _number(value), "mean": mean, "ci_low": low, "ci_high": high}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def delta_row(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """Return the largest minus the smallest value of each metric over groups.

    Examples
    --------
    >>> delta_row({"F": {"MAE": 5.25}, "M": {"MAE": 6.5}})
    {'MAE': 1.25}
    """
    names = next(iter(groups.values()), {})
    deltas: dict[str, float | None] = {}
    for name in names:
        values = [of[name] for of in groups.values() if not np.isnan(of[name])]
        deltas[name] = round(max(values) - min(values), 10) if values else None
    return deltas
