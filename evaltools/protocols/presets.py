"""Presets: protocols as YAML values. Those of ``evaltools/presets``, and one's own by path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedstore.errors import FormatError, UnknownNameError, did_you_mean
from embedstore.safe_yaml import read_yaml
from evaltools.metrics import Kind
from evaltools.protocols.protocol import ESTIMATORS, POOL_SETTINGS, EvalProtocol, Method

__all__ = ["read_preset", "read_value", "shipped_presets", "with_settings"]

_FOLDER = Path(__file__).parent.parent / "presets"
# The published and the plain ones in the order of `evaltools protocols`; others follow by name.
_FIRST = ("ridge", "logreg")


class _MethodFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    estimator: str
    settings: dict[str, Any] = Field(default_factory=dict)


class _PresetFile(BaseModel):
    """What a preset file may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    summary: str
    source: str = ""
    differences: tuple[str, ...] = ()
    methods: dict[Kind, _MethodFile] = Field(min_length=1)
    pool: str | None = None
    pool_settings: dict[str, Any] = Field(default_factory=dict)
    n_shuffles: int = Field(200, ge=1, le=100_000)
    n_together: int = Field(25, ge=1, le=1000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind, method in self.methods.items():
            if method.estimator not in ESTIMATORS:
                raise ValueError(f"estimator {method.estimator!r} is none of {', '.join(ESTIMATORS)}")
            if kind not in ESTIMATORS[method.estimator][1]:
                raise ValueError(f"estimator {method.estimator!r} is not for {kind}")
        if self.pool is not None and self.pool not in POOL_SETTINGS:
            raise ValueError(f"pool {self.pool!r} is none that has settings ({', '.join(POOL_SETTINGS)})")
        if self.pool_settings and self.pool is None:
            raise ValueError("pool_settings need a pool")
        return self

    def protocol(self) -> EvalProtocol:
        """Return the protocol, each setting checked against its estimator."""
        methods = {
            kind: Method(method.estimator, _checked(method.settings, _defaults(method.estimator)))
            for kind, method in self.methods.items()
        }
        plain = self.model_dump(exclude={"methods", "pool_settings"})
        pooling = {} if self.pool is None else _checked(self.pool_settings, _pool_defaults(self.pool))
        return EvalProtocol(methods=methods, pool_settings=pooling, **plain)


def _defaults(estimator: str) -> dict[str, Any]:
    parameters = inspect.signature(ESTIMATORS[estimator][0]).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "task"}


def _pool_defaults(pool: str) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(POOL_SETTINGS[pool]).parameters.items()}


def _checked(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in the types of the defaults.

    Raises
    ------
    ValueError
        A name is not known, or a value is of another type.
    """
    settings = {}
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"there is no setting {name!r}{did_you_mean(name, list(defaults))}")
        settings[name] = _typed(name, value, defaults[name])
    return settings


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "choose_by": ("loss", "accuracy"),
    "search": ("full", "peak"),
    "class_weight": ("none", "balanced"),
}


def _typed(name: str, value: Any, default: Any) -> Any:
    if name == "C":
        return value if value == "adaptive" else _number(name, value, above=0.0)
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
        return value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {value!r}")
        return value
    if isinstance(default, int):
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name == "seed" else 1):
            raise ValueError(f"{name} must be a whole number above zero, not {value!r}")
        return value
    if isinstance(default, float):
        return _number(name, value, above=None)
    return _numbers(name, value)


def _number(name: str, value: Any, *, above: float | None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a number that is not negative, not {value!r}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be above {above:g}, not {value!r}")
    return float(value)


def _numbers(name: str, value: Any) -> list[float]:
    """Read a list of numbers above zero, or ``{log10: [FIRST, LAST, COUNT]}``."""
    if isinstance(value, dict) and set(value) == {"log10"} and len(value["log10"]) == 3:
        first, last, count = value["log10"]
        if isinstance(count, int) and 1 <= count <= 10_000:
            return [float(10.0**exponent) for exponent in np.linspace(float(first), float(last), count)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a list of numbers, or {{log10: [FIRST, LAST, COUNT]}}, not {value!r}")
    return [_number(name, one, above=0.0) for one in value]


def read_preset(path: str | Path) -> EvalProtocol:
    """Read and validate a preset file.

    Raises
    ------
    FormatError
        A field is missing, unknown, or does not fit; the message names it.
    """
    try:
        return _PresetFile.model_validate(read_yaml(Path(path))).protocol()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the preset"
        raise FormatError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from error


def shipped_presets() -> dict[str, EvalProtocol]:
    """Return the protocols that come with evaltools, by name."""
    found = [read_preset(path) for path in sorted(_FOLDER.glob("*.yaml"))]
    found.sort(key=lambda protocol: (protocol.name not in _FIRST, protocol.name not in _FIRST[:1]))
    return {protocol.name: protocol for protocol in found}


def with_settings(protocol: EvalProtocol, changes: Sequence[str]) -> EvalProtocol:
    """Return a protocol with settings changed, which then stand in its name.

    Parameters
    ----------
    changes : sequence of str
        ``KEY=VALUE``; a comma parts the numbers of a list.

    Raises
    ------
    UnknownNameError
        A change is no ``KEY=VALUE``, or the protocol has no such setting or not of that type.
    """
    for change in changes:
        name, parted, text = change.partition("=")
        if not (name and parted and text):
            raise UnknownNameError(f"a setting is changed by KEY=VALUE, not {change!r}")
        protocol = replace(_changed(protocol, name, read_value(text)), name=f"{protocol.name}+{change}")
    return protocol


def _changed(protocol: EvalProtocol, name: str, value: Any) -> EvalProtocol:
    known: list[str] = []
    try:
        if name == "n_shuffles":
            return replace(protocol, n_shuffles=_typed(name, value, protocol.n_shuffles))
        if protocol.pool is not None:
            defaults = _pool_defaults(protocol.pool)
            known += defaults
            if name in defaults:
                return replace(
                    protocol, pool_settings={**protocol.pool_settings, **_checked({name: value}, defaults)}
                )
        methods = dict(protocol.methods)
        for kind, method in protocol.methods.items():
            defaults = _defaults(method.estimator)
            known += defaults
            if name in defaults:
                methods[kind] = replace(method, settings={**method.settings, **_checked({name: value}, defaults)})
    except ValueError as error:
        raise UnknownNameError(f"protocol {protocol.name!r}: {error}") from error
    if name not in known:
        raise UnknownNameError(f"protocol {protocol.name!r} has no setting {name!r}{did_you_mean(name, known)}")
    return replace(protocol, methods=methods)


def read_value(text: str) -> Any:
    """Read a value as a person types it."""
    if text in ("true", "false"):
        return text == "true"
    if "," in text:
        return [read_value(part) for part in text.split(",")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
