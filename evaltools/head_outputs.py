"""What a model's own published heads say of vectors: linear layers from a bank, each with its activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import FormatError, MissingVectorsError, VectorError, did_you_mean
from evaltools.features import Rows, VectorSource, pool_by_blocks
from evaltools.metrics import Floats
from evaltools.prompt_bank import BankSource, require_dims
from evaltools.zeroshot_rules import softmax

__all__ = ["Head", "read_head"]


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


@dataclass(frozen=True)
class Head:
    """One published head.

    Attributes
    ----------
    task : str
        The authors' name.
    labels : tuple of str
        What each output is.
    weight : (K, D) float64
    bias : (K,) float64
    activation : {"identity", "sigmoid", "one-minus-sigmoid", "softmax"}
    unit : str or None
    """

    task: str
    labels: tuple[str, ...]
    weight: Floats
    bias: Floats
    activation: str
    unit: str | None

    def __call__(self, vectors: npt.NDArray[Any]) -> Floats:
        """Return outputs (n, K) for vectors (n, D): values, or shares.

        Raises
        ------
        VectorError
            A vector is not finite.
        """
        rows = np.asarray(vectors, dtype=np.float64)
        logits = rows @ self.weight.T + self.bias
        if not np.isfinite(logits).all():
            raise VectorError(
                "vectors that a head is asked of are not finite; run embedstore verify and build them again"
            )
        outputs: Floats = _ACTIVATIONS[self.activation](logits)
        return outputs

    def of_clips(self, source: VectorSource, rows: Rows, *, noise: np.random.Generator | None = None) -> Floats:
        """Return outputs (n, K) of clips: of each window, then averaged; of the clip vector without windows.

        Parameters
        ----------
        rows : (n,) int
            Rows of the set's index.
        noise : Generator or None
            Draws Gaussian vectors in place of the stored ones.
        """

        def seen(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return vectors if noise is None else noise.standard_normal(vectors.shape)

        if source.array("windows") is None:
            return self(seen(np.asarray(source.clips[rows])))

        def pool(windows: npt.NDArray[Any], _: Rows, starts: Rows, counts: Rows) -> Floats:
            outputs: Floats = np.add.reduceat(self(seen(windows)), starts, axis=0) / counts[:, None]
            return outputs

        return pool_by_blocks(source, rows, pool, kind="windows")


_ACTIVATIONS: Mapping[str, Any] = {
    "identity": lambda logits: logits,
    "sigmoid": _sigmoid,
    "one-minus-sigmoid": lambda logits: 1.0 - _sigmoid(logits),
    "softmax": softmax,
}


def read_head(bank: BankSource, task: str, source: VectorSource) -> Head:
    """Read one head of a bank.

    Raises
    ------
    MissingVectorsError
        The bank has no head of that task.
    VectorError
        It is of other dimensions than the vectors.
    FormatError
        Its outputs do not go together.
    """
    rows = bank.rows.to_pylist()
    at = sorted((row for row, one in enumerate(rows) if one["task"] == task), key=lambda row: rows[row]["output"])
    if not at:
        known = sorted({one["task"] for one in rows})
        raise MissingVectorsError(f"the heads of {bank.encoder} have none for {task!r}{did_you_mean(task, known)}")
    require_dims(bank, source.clips.shape[1], title=source.spec.title, dataset=source.dataset)
    activations, units = ({rows[row][name] for row in at} for name in ("activation", "unit"))
    if len(activations) != 1 or len(units) != 1 or not activations <= set(_ACTIVATIONS):
        raise FormatError(f"the head {task!r} of {bank.encoder} has outputs of different activations or units")
    return Head(
        task,
        tuple(str(rows[row]["label"] or task) for row in at),
        np.asarray(bank.vectors[np.array(at)], dtype=np.float64),
        np.array([rows[row]["bias"] for row in at], dtype=np.float64),
        activations.pop(),
        units.pop(),
    )
