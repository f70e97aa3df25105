"""Protocols: how a task is measured. Each has a name, full settings and the digest of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from embedstore.errors import UnknownNameError, did_you_mean
from embedstore.identity import digest_json
from evaltools.metrics import Kind
from evaltools.protocols.base import Probe
from evaltools.protocols.logistic import LogisticPath
from evaltools.protocols.ridge import RidgePath

__all__ = ["PROTOCOLS", "EvalProtocol", "LogisticPath", "RidgePath", "get_protocol"]


@dataclass(frozen=True)
class EvalProtocol:
    """A named way of fitting.

    Attributes
    ----------
    name, summary : str
        Name in commands and results, one sentence.
    kind : {"regression", "classification"}
        Which tasks it can measure.
    make : callable
        Returns a fresh estimator.
    n_shuffles : int
        Label permutations of the shuffled control.
    n_together : int
        How many of them are fitted at once, each pass over the vectors serving them all; bounds memory.
    """

    name: str
    summary: str
    kind: Kind
    make: Callable[[], Probe]
    n_shuffles: int
    n_together: int

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting as JSON values."""
        return {**self.make().settings(), "n_shuffles": self.n_shuffles}

    @property
    def digest(self) -> str:
        """SHA-256 of the settings."""
        return digest_json(self.settings)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "summary": self.summary,
            "settings": self.settings,
            "digest": self.digest,
        }


PROTOCOLS: Mapping[str, EvalProtocol] = {
    protocol.name: protocol
    for protocol in (
        EvalProtocol(
            "ridge",
            "Ridge regression on standardised vectors, penalty chosen on validation patients.",
            "regression",
            RidgePath,
            200,
            200,
        ),
        EvalProtocol(
            "logreg",
            "Logistic regression on standardised vectors, C chosen on validation patients.",
            "classification",
            LogisticPath,
            50,
            25,
        ),
    )
}


def get_protocol(name: str, *, kind: Kind | None = None) -> EvalProtocol:
    """Return a protocol by name.

    Parameters
    ----------
    kind : {"regression", "classification"} or None
        What it must be able to measure.

    Raises
    ------
    UnknownNameError
        There is none of that name, or it measures another kind of task.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError(f"unknown protocol {name!r}{did_you_mean(name, list(PROTOCOLS))}")
    protocol = PROTOCOLS[name]
    if kind is not None and protocol.kind != kind:
        fitting = ", ".join(known.name for known in PROTOCOLS.values() if known.kind == kind)
        raise UnknownNameError(f"protocol {name!r} is for {protocol.kind}, and the task is {kind}; use {fitting}")
    return protocol
