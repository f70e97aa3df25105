"""What ``--set KEY=VALUE`` can change about the presets of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from embedstore.errors import UnknownNameError, did_you_mean
from evaltools.closeness import SPACE_METRICS
from evaltools.protocols.presets import read_value

__all__ = ["read_setting"]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_counts(value: Any) -> bool:
    return all(_is_count(one) for one in (value if isinstance(value, list) else [value]))


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: value in names


_OF_NEIGHBOURS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "k": (_are_counts, "whole numbers above zero"),
    "metric": (_one_of(*SPACE_METRICS), " or ".join(SPACE_METRICS)),
    "normalize": (lambda value: isinstance(value, bool), "true or false"),
    "weights": (_one_of("uniform", "softmax", "distance"), "uniform, softmax or distance"),
    "temperature": (lambda value: isinstance(value, int | float) and 0 < value < float("inf"), "above zero"),
    "gallery": (_one_of("train", "train+val"), "train or train+val"),
    "n_shuffles": (_is_count, "a whole number above zero"),
}
_OF_SHOTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "shots": (_are_counts, "whole numbers above zero"),
    "n_draws": (_is_count, "a whole number above zero"),
    "centre": (_one_of("train", "support"), "train or support"),
    "n_shuffles": (_is_count, "a whole number above zero"),
}


def read_setting(preset: str, change: str) -> tuple[str, Any]:
    """Read a change of a preset: its name and value; numbers of neighbours and shots come as tuples.

    Raises
    ------
    UnknownNameError
        It is no ``KEY=VALUE``, or the preset has no such setting or not of that value.

    Examples
    --------
    >>> read_setting("knn", "k=5,10"), read_setting("dinov2-knn", "temperature=0.1")
    (('k', (5, 10)), ('temperature', 0.1))
    """
    open_to = _OF_SHOTS if preset == "simpleshot" else _OF_NEIGHBOURS
    name, parted, text = change.partition("=")
    if not (name and parted and text):
        raise UnknownNameError(f"a setting is changed by KEY=VALUE, not {change!r}")
    if name not in open_to:
        raise UnknownNameError(f"preset {preset!r} has no setting {name!r}{did_you_mean(name, list(open_to))}")
    value = read_value(text)
    fits, wanted = open_to[name]
    if not fits(value):
        raise UnknownNameError(f"preset {preset!r}: {name} must be {wanted}, not {text!r}")
    if name in ("k", "shots"):
        value = tuple(value) if isinstance(value, list) else (value,)
    return name, float(value) if name == "temperature" else value
