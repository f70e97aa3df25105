"""`EvalProtocol`: a named way of fitting, read from a preset file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from embedstore.identity import digest_json
from evaltools.clip_frames import FramePool
from evaltools.metrics import Kind
from evaltools.protocols.adamw_linear import AdamWLinear
from evaltools.protocols.attention import FrameAttention
from evaltools.protocols.base import Probe
from evaltools.protocols.fixed_logistic import FixedLogistic, NormLogistic
from evaltools.protocols.logistic import LogisticPath
from evaltools.protocols.mlp import MlpProbe
from evaltools.protocols.ridge import RidgePath
from evaltools.protocols.sampled import SampledLogistic, SampledRidge
from evaltools.temporal import TemporalPool

__all__ = ["ESTIMATORS", "POOL_SETTINGS", "EvalProtocol", "Method"]

ESTIMATORS: Mapping[str, tuple[type[Probe], Mapping[Kind, Mapping[str, Any]]]] = {
    "ridge": (RidgePath, {"regression": {}}),
    "logistic": (LogisticPath, {"classification": {}}),
    "logistic-fixed": (FixedLogistic, {"classification": {}}),
    "logistic-norm": (NormLogistic, {"classification": {}}),
    "adamw-linear": (AdamWLinear, {kind: {"task": kind} for kind in ("regression", "classification")}),
    "sampled-ridge": (SampledRidge, {"regression": {}}),
    "sampled-logistic": (SampledLogistic, {"classification": {}}),
    "mlp": (MlpProbe, {kind: {"task": kind} for kind in ("regression", "classification")}),
    "frame-attention": (FrameAttention, {kind: {"task": kind} for kind in ("regression", "classification")}),
}
POOL_SETTINGS: Mapping[str, type[TemporalPool] | type[FramePool]] = {"temporal": TemporalPool, "frames": FramePool}


@dataclass(frozen=True)
class Method:
    """An estimator of `ESTIMATORS` and the settings that differ from its own."""

    estimator: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """A named way of fitting.

    Attributes
    ----------
    name, summary : str
        Name in commands and results, with ``+key=value`` for each setting that was changed; one sentence.
    source : str
        Where the settings come from.
    differences : tuple of str
        In what it differs from there.
    methods : mapping of {"regression", "classification"} to Method
        Which tasks it can measure, and how.
    pool : str or None
        The pooling that belongs to it; None where that is the user's choice.
    pool_settings : mapping
        Of that pooling.
    n_shuffles : int
        Label permutations of the shuffled control.
    n_together : int
        How many of them are fitted at once, each pass over the vectors serving them all; bounds memory.
    """

    name: str
    summary: str
    methods: Mapping[Kind, Method]
    source: str = ""
    differences: tuple[str, ...] = ()
    pool: str | None = None
    pool_settings: Mapping[str, Any] = field(default_factory=dict)
    n_shuffles: int = 200
    n_together: int = 200

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Which tasks it can measure."""
        return tuple(self.methods)

    def make(self, kind: Kind | None = None) -> Probe:
        """Return a fresh estimator for a kind of task; the only one there is without."""
        asked = self.kinds[0] if kind is None else kind
        method = self.methods[asked]
        estimator, fixed = ESTIMATORS[method.estimator]
        return estimator(**method.settings, **fixed[asked])

    def shuffled(self, n: int) -> Self:
        """Return the protocol with another number of label permutations."""
        return replace(self, n_shuffles=n)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting as JSON values: of the one method, or by kind of task."""
        of: dict[str, Any] = {kind: self.make(kind).settings() for kind in self.kinds}
        expanded: dict[str, Any] = dict(of[self.kinds[0]]) if len(of) == 1 else of
        if self.pool is not None:
            expanded["pool"] = {"name": self.pool, **POOL_SETTINGS[self.pool](**self.pool_settings).settings()}
        return {**expanded, "n_shuffles": self.n_shuffles}

    @property
    def digest(self) -> str:
        """SHA-256 of the settings."""
        return digest_json(self.settings)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "kinds": list(self.kinds),
            "summary": self.summary,
            "source": self.source,
            "differences": list(self.differences),
            "settings": self.settings,
            "digest": self.digest,
        }
