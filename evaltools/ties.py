"""Which encoders cannot be told apart, and which rank each may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["TieGroups", "tie_groups"]


@dataclass(frozen=True)
class TieGroups:
    """The order of encoders as far as it is known.

    Attributes
    ----------
    groups : tuple of tuple of str
        Best first. The first of a group is the best by value; the others are not told apart from it. A member of a
        later group is worse than the first of each group before.
    ranks : mapping of str to (int, int)
        1 + how many are shown to be better, and how many there are less those shown to be worse.
    """

    groups: tuple[tuple[str, ...], ...]
    ranks: Mapping[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "groups": [list(group) for group in self.groups],
            "ranks": {name: list(ranks) for name, ranks in self.ranks.items()},
        }


def tie_groups(
    values: Mapping[str, float | None], *, better: Sequence[tuple[str, str]], higher_is_better: bool
) -> TieGroups:
    """Group encoders by what was shown.

    Parameters
    ----------
    values : mapping of str to float or None
        Main metric of each encoder.
    better : sequence of (str, str)
        Pairs of which the first is shown to be better than the second.

    Examples
    --------
    >>> ties = tie_groups({"a": 0.9, "b": 0.8, "c": 0.1}, better=[("a", "c"), ("b", "c")], higher_is_better=True)
    >>> ties.groups, ties.ranks["b"]
    ((('a', 'b'), ('c',)), (1, 2))
    """
    sign = -1.0 if higher_is_better else 1.0
    order = sorted(values, key=lambda name: (values[name] is None, sign * (values[name] or 0.0), name))
    shown = set(better)
    groups: list[tuple[str, ...]] = []
    left = order
    while left:
        group = tuple(name for name in left if (left[0], name) not in shown)
        groups.append(group)
        left = [name for name in left if name not in group]
    ranks = {
        name: (1 + sum(worse == name for _, worse in shown), len(order) - sum(best == name for best, _ in shown))
        for name in order
    }
    return TieGroups(tuple(groups), ranks)
