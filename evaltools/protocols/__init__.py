"""Protocols: how a task is measured. Each has a name, full settings and the digest of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedstore.errors import UnknownNameError, did_you_mean
from evaltools.metrics import Kind
from evaltools.protocols.logistic import LogisticPath
from evaltools.protocols.presets import read_preset, shipped_presets, with_settings
from evaltools.protocols.protocol import EvalProtocol
from evaltools.protocols.ridge import RidgePath

__all__ = ["PROTOCOLS", "EvalProtocol", "LogisticPath", "RidgePath", "get_protocol"]

PROTOCOLS: Mapping[str, EvalProtocol] = shipped_presets()


def get_protocol(name: str, *, kind: Kind | None = None, settings: Sequence[str] = ()) -> EvalProtocol:
    """Return a protocol by name, ``NAME+KEY=VALUE`` with a setting changed, or from a preset file (``*.yaml``).

    Parameters
    ----------
    kind : {"regression", "classification"} or None
        What it must be able to measure.
    settings : sequence of str
        More changes, ``KEY=VALUE``.

    Raises
    ------
    UnknownNameError
        There is none of that name, it has no such setting, or it measures another kind of task.

    Examples
    --------
    >>> get_protocol("clip-logreg", settings=["search=peak"]).name
    'clip-logreg+search=peak'
    """
    plain, changes = _found(name)
    protocol = with_settings(plain, [*changes, *settings])
    if kind is not None and kind not in protocol.kinds:
        fitting = ", ".join(known.name for known in PROTOCOLS.values() if kind in known.kinds)
        raise UnknownNameError(
            f"protocol {name!r} is for {' and '.join(protocol.kinds)}, and the task is {kind}; use {fitting}"
        )
    return protocol


def _found(name: str) -> tuple[EvalProtocol, list[str]]:
    """Return the unchanged protocol and the changes that its name states."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UnknownNameError(f"there is no preset file {name!r}")
        return read_preset(path), []
    plain, *changes = re.split(r"\+(?=[A-Za-z_]+=)", name)  # not the plus of 1e+5
    if plain not in PROTOCOLS:
        raise UnknownNameError(f"unknown protocol {plain!r}{did_you_mean(plain, list(PROTOCOLS))}")
    return PROTOCOLS[plain], changes
