"""The named rules of zero-shot, with their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from embedstore.errors import UnknownNameError, did_you_mean
from evaltools.protocols.presets import read_value
from evaltools.task import Task
from evaltools.unfitted import UnfittedProtocol
from evaltools.zeroshot_rules import TOP_SHARE

__all__ = ["DEFAULT_PROTOCOL", "ZERO_SHOT_PROTOCOLS", "is_retrieval", "zero_shot_protocol"]

DEFAULT_PROTOCOL = "cardiobench"
RETRIEVED = 50  # EchoPrime, predict_metrics
_RENORMALISED = "mean of the unit frame vectors, brought to unit length"
_RETRIEVAL: Mapping[str, Any] = {
    "section": "sum over the clips of the section's weight for their view times the vector, brought to unit length",
    "without_weight": "where every weight is zero, equal weights",
    "k": RETRIEVED,
    "value": "mean of the phenotype over the retrieved candidates that have it",
    "phenotype": "auto",
}


def _retrieval(name: str, sections: str, differences: tuple[str, ...]) -> UnfittedProtocol:
    rule = {**_RETRIEVAL, "section_rows": sections}
    return UnfittedProtocol(
        name=name,
        summary="EchoPrime's retrieval-augmented answer: the mean phenotype of the 50 nearest candidate studies.",
        source="echonet/EchoPrime, predict_metrics (arXiv:2410.09704)",
        differences=differences,
        rules={"regression": rule, "classification": {**rule, "decide": "above one half"}},
    )


ZERO_SHOT_PROTOCOLS: Mapping[str, UnfittedProtocol] = {
    protocol.name: protocol
    for protocol in (
        UnfittedProtocol(
            name="cardiobench",
            summary="Classes by the mean cosine of their prompts; numbers by the median of the top fifth of prompts "
            "in each frame, averaged over frames.",
            source="BioMedIA-MBZUAI/CardioBench, src/text.py and src/regression.py (arXiv:2510.00520)",
            differences=("frames are those of the set; cosines in float64 of the stored vectors",),
            rules={
                "classification": {
                    "image": _RENORMALISED,
                    "score": "mean cosine of the prompts of a class",
                    "shares": "softmax of the scores without temperature",
                    "decide": "argmax",
                },
                "regression": {"rule": "cardiobench", "top_share": TOP_SHARE, "median": "lower"},
            },
        ),
        UnfittedProtocol(
            name="softmax",
            summary="Classes by the softmax of cosines with the mean prompt of each, times the model's logit scale.",
            source="CLIP, arXiv:2103.00020, section 3.1.4: prompts of a class are averaged, then of unit length",
            rules={
                "classification": {
                    "image": _RENORMALISED,
                    "score": "cosine with the mean unit prompt of a class, times the logit scale",
                    "shares": "softmax",
                    "decide": "argmax",
                }
            },
        ),
        UnfittedProtocol(
            name="echoclip",
            summary="A finding by the mean cosine of its prompts over frames, against the threshold of best F1 on "
            "train; numbers by ranked value lists averaged over frames.",
            source="echonet/echo_CLIP, zero-shot example",
            differences=("frames are those of the set; theirs are the first 20 at stride 2",),
            rules={
                "classification": {
                    "image": "mean of the unit frame vectors",
                    "score": "mean cosine of the prompts of the finding",
                    "shares": "sigmoid of the distance from the threshold",
                    "decide": "threshold",
                },
                "regression": {"rule": "echoclip", "top_share": TOP_SHARE, "median": "lower"},
            },
        ),
        UnfittedProtocol(
            name="text-axis",
            summary="Numbers along the first principal component of their prompts, brought to their unit by a line "
            "fitted on train; correlations do not depend on that line.",
            source="BioMedIA-MBZUAI/CardioBench, evaluation/vizualizations/ef_vis.py (arXiv:2510.00520)",
            differences=("CardioBench gives correlations alone; the line makes errors mean something",),
            rules={
                "regression": {
                    "rule": "axis",
                    "axis": "first principal component of the unit prompts, towards larger numbers",
                    "image": _RENORMALISED,
                    "unit": "least squares on train for the size of the slope, its sign is the text's",
                }
            },
        ),
        _retrieval(
            "echoprime",
            "the weights at the position of the section in the phenotype file, as upstream",
            ("upstream's table of weights has more sections than its file of phenotypes, in another order",),
        ),
        _retrieval(
            "echoprime-aligned",
            "the weights of the section by name",
            ("the weights are those of the section by name, where upstream takes them by position",),
        ),
    )
}

_CHANGEABLE: Mapping[str, Callable[[Any], bool]] = {
    "decide": lambda value: value in ("argmax", "threshold"),
    "top_share": lambda value: isinstance(value, float) and 0 < value <= 1,
    "k": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    "phenotype": lambda value: isinstance(value, str),
}


def is_retrieval(name: str) -> bool:
    """Return whether a protocol retrieves candidates instead of asking in words."""
    return name.split("+")[0] in ("echoprime", "echoprime-aligned")


def zero_shot_protocol(name: str, *, task: Task, changes: Sequence[str] = ()) -> UnfittedProtocol:
    """Return a protocol by name, with settings changed, which then stand in its name.

    Raises
    ------
    UnknownNameError
        There is none of that name, it has no such setting, or it does not answer the task's kind.

    Examples
    --------
    >>> from evaltools.task import get_task
    >>> zero_shot_protocol("cardiobench", task=get_task("lvef"), changes=["top_share=0.1"]).name
    'cardiobench+top_share=0.1'
    """
    plain, *stated = name.split("+")
    if plain not in ZERO_SHOT_PROTOCOLS:
        raise UnknownNameError(
            f"unknown zero-shot protocol {plain!r}{did_you_mean(plain, list(ZERO_SHOT_PROTOCOLS))}"
        )
    protocol = ZERO_SHOT_PROTOCOLS[plain]
    if task.kind not in protocol.rules:
        fitting = ", ".join(other.name for other in ZERO_SHOT_PROTOCOLS.values() if task.kind in other.rules)
        raise UnknownNameError(
            f"protocol {name!r} is for {' and '.join(protocol.kinds)}, and the task is {task.kind}; use {fitting}"
        )
    for change in (*stated, *changes):
        key, parted, text = change.partition("=")
        rule = protocol.rules[task.kind]
        open_to = [setting for setting in rule if setting in _CHANGEABLE]
        if not (parted and key in open_to):
            raise UnknownNameError(f"protocol {plain!r} has no setting {key!r}{did_you_mean(key, open_to)}")
        value = text if key == "phenotype" else read_value(text)
        if not _CHANGEABLE[key](value) or (plain == "softmax" and value == "threshold"):
            raise UnknownNameError(f"protocol {plain!r} cannot have {change}")
        protocol = replace(
            protocol,
            rules={**protocol.rules, task.kind: {**rule, key: value}},
            name=f"{protocol.name}+{change}",
        )
    return protocol
