"""`Relevance`: what counts as found, and `Retrieval`: how well it was found, with what is needed to find it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import UnknownNameError
from evaltools.closeness import Rows, Space
from evaltools.metrics import Floats
from evaltools.resample import Estimate, estimates_to_dict
from evaltools.result import software_versions
from evaltools.task import Task

__all__ = ["Relevance", "Retrieval", "unanswered"]

N_SHUFFLES = 20
NOT_FITTED = "retrieval predicts no value"
_WITHIN_PERCENT = 5.0  # points of LVEF: about what two readers of one study differ by


@dataclass(frozen=True)
class Relevance:
    """How relevant a clip is to another by their labels.

    Attributes
    ----------
    within : float or None
        None for classes; for numbers the difference at which the gain is gone.
    unit : str or None

    Examples
    --------
    >>> print(Relevance(5.0, "%"))
    gain 1 at the same value, falling to 0 at 5 % away
    """

    within: float | None = None
    unit: str | None = None

    @classmethod
    def of(cls, task: Task, *, within: float | None) -> Relevance:
        """Return the relevance that fits a task.

        Raises
        ------
        UnknownNameError
            ``within`` is not above zero, or given for classes, or needed and not given.
        """
        if task.kind == "classification":
            if within is not None:
                raise UnknownNameError(f"--within is a distance of numbers, and {task.name!r} has classes")
            return cls()
        if within is None and task.unit != "%":
            raise UnknownNameError(
                f"say with --within how far apart two values of {task.name!r} ({task.unit or 'no unit'}) may be and "
                "still count as close"
            )
        if within is not None and not (np.isfinite(within) and within > 0):
            raise UnknownNameError(f"--within must be above 0, not {within:g}")
        return cls(_WITHIN_PERCENT if within is None else within, task.unit)

    def __str__(self) -> str:
        if self.within is None:
            return "gain 1 for the same class"
        return f"gain 1 at the same value, falling to 0 at {self.within:g} {self.unit or ''} away".replace("  ", " ")

    def gains(self, asked: npt.NDArray[Any], held: npt.NDArray[Any]) -> Floats:
        """Return the gain (m, n) of each gallery label (n,) for each query label (m,)."""
        if self.within is None:
            names, codes = np.unique(np.concatenate([asked, held]).astype(str), return_inverse=True)
            same: Floats = (codes[: len(asked), None] == codes[len(asked) :]).astype(np.float64)
            return same
        near: Floats = np.maximum(1.0 - np.abs(asked[:, None] - held) / self.within, 0.0)
        return near

    def score(
        self,
        asked: npt.NDArray[Any],
        held: npt.NDArray[Any],
        order: Rows,
        is_other: npt.NDArray[np.bool_],
        *,
        ks: Sequence[int],
    ) -> dict[str, Floats]:
        """Score rankings.

        Parameters
        ----------
        asked, held : (m,), (n,)
            Labels of queries and gallery.
        order : (m, r) int
            Gallery rows, nearest first; -1 for none. ``map`` has a meaning where it ranks the whole gallery.
        is_other : (m, n) bool
            Which gallery rows may be found.
        ks : sequence of int
            Depths, at most r.

        Returns
        -------
        dict of str to (m,) float64
            ``map``, ``recall@k`` and ``ndcg@k``; NaN for a query to which nothing is relevant.
        """
        gains = np.where(is_other, self.gains(asked, held), 0.0)
        ranked = np.where(order >= 0, np.take_along_axis(gains, order, axis=1), 0.0)
        relevant = ranked > 0
        n_relevant = (gains > 0).sum(axis=1)
        known = np.where(n_relevant > 0, n_relevant, np.nan)
        found = np.cumsum(relevant, axis=1) / np.arange(1, order.shape[1] + 1)
        scores: dict[str, Floats] = {"map": np.einsum("mr,mr->m", found, relevant) / known}
        deepest = max(ks)
        discounts = 1.0 / np.log2(np.arange(2, deepest + 2))
        best = -np.sort(-np.partition(gains, -deepest, axis=1)[:, -deepest:], axis=1) * discounts
        reached = np.cumsum(ranked[:, :deepest] * discounts, axis=1)
        ideal = np.cumsum(best, axis=1)
        for k in ks:
            scores[f"recall@{k}"] = np.where(n_relevant > 0, relevant[:, :k].any(axis=1), np.nan)
            with np.errstate(invalid="ignore"):
                scores[f"ndcg@{k}"] = reached[:, k - 1] / ideal[:, k - 1]
        return scores


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """The numbers of one encoder and pooling on one task and data set.

    Attributes
    ----------
    protocol : str
        ``clip-to-clip``, ``frame-to-clip`` or ``text-to-clip``.
    n_expected, n_scored, n_patients : int
        Labelled test clips, or prompts, that are asked for; those that have something to find; their patients, where
        prompts ask those of the gallery.
    n_gallery, n_without_relevant : int
        Clips among which is looked, own ones included; test clips to which no clip of another patient is relevant.
    index_recall : float or None
        Share of the exact neighbours that the approximate index found.
    clip_ids, patients : (m,) object
        The queries; of prompts the text, and nobody.
    values : dict of str to (m,) float64
        Each metric for each query.
    bank : mapping or None
        Name and digest of the prompt bank.
    """

    task: Task
    dataset: str
    encoder: str
    variant: str
    pool: str
    protocol: str
    dim: int
    metrics: Mapping[str, Estimate]
    controls: Mapping[str, Mapping[str, Estimate]]
    n_expected: int
    n_scored: int
    n_patients: int
    n_gallery: int
    n_without_relevant: int
    relevance: Relevance
    space: Space
    index: str
    index_recall: float | None
    seed: int
    draws: int
    set_id: str
    fingerprint: str
    annotations: str
    leakage: str
    synthetic: bool
    where: str | None
    clip_ids: npt.NDArray[Any]
    patients: npt.NDArray[Any]
    values: Mapping[str, Floats]
    bank: Mapping[str, str] | None = None

    @property
    def title(self) -> str:
        """``NAME`` or ``NAME@VARIANT`` of the encoder."""
        return self.encoder if self.variant == "published" else f"{self.encoder}@{self.variant}"

    @property
    def main_metric(self) -> str:
        """``map``, or the deepest nDCG where an approximate index does not rank the whole gallery."""
        return "map" if self.index == "exact" else [name for name in self.metrics if name.startswith("ndcg@")][-1]

    def to_dict(self, *, predictions: Path | None = None) -> dict[str, Any]:
        """Return the contract's JSON form; ``predictions`` is where the scores of the queries were written."""
        return {
            "task": self.task.name,
            "dataset": self.dataset,
            "encoder": self.encoder,
            "variant": self.variant,
            "protocol": self.protocol,
            "main_metric": self.main_metric,
            "metrics": estimates_to_dict(self.metrics),
            "controls": {name: estimates_to_dict(control) for name, control in self.controls.items()},
            "n_expected": self.n_expected,
            "n_scored": self.n_scored,
            "n_patients": self.n_patients,
            "seed": self.seed,
            "set": self.set_id,
            "annotations": self.annotations,
            "predictions": None if predictions is None else str(predictions),
            "pool": self.pool,
            "dim": self.dim,
            "relevance": str(self.relevance),
            "within": self.relevance.within,
            "metric": self.space.metric,
            "normalize": self.space.normalize,
            "index": self.index,
            "index_recall": self.index_recall,
            "n_gallery": self.n_gallery,
            "n_without_relevant": self.n_without_relevant,
            "bootstrap": self.draws,
            "leakage": self.leakage,
            "synthetic": self.synthetic,
            "where": self.where,
            "fingerprint": self.fingerprint,
            "task_digest": self.task.digest,
            "versions": software_versions(),
            **(self.bank or {}),
        }


def unanswered(metrics: Iterable[str], reason: str) -> dict[str, Estimate]:
    """Return null for each metric of a control that cannot be, with the reason."""
    return {name: Estimate(None, ci_reason=reason) for name in metrics}
