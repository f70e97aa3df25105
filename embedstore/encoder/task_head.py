"""`TaskHead`: a linear head that a model was published with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ACTIVATIONS", "TaskHead"]

#: What a published head does to its outputs; `one-minus-sigmoid` where the authors trained for the absence.
ACTIVATIONS = ("identity", "sigmoid", "one-minus-sigmoid", "softmax")


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """A task's head as its authors published it: one linear layer on the vectors of the encoder.

    Attributes
    ----------
    task : str
        The authors' own name of the task.
    weight : (n_out, D) float32
    bias : (n_out,) float32
    activation : {"identity", "sigmoid", "one-minus-sigmoid", "softmax"}
    unit : str or None
        Of a measured number, e.g. ``"pct"``, ``"cm"``.
    outputs : tuple of str
        What each output is: the class, or the task's name where there is one output only.

    Raises
    ------
    ValueError
        The shapes do not fit, a number is not finite, or the activation is none of these.
    """

    task: str
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    activation: str
    unit: str | None = None
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"head {self.task!r} has the activation {self.activation!r}, not one of {ACTIVATIONS}")
        n_out = len(self.outputs)
        if self.weight.ndim != 2 or self.weight.shape[0] != n_out or self.bias.shape != (n_out,):
            raise ValueError(
                f"head {self.task!r} has {n_out} outputs, weights {self.weight.shape} and bias {self.bias.shape}"
            )
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise ValueError(f"head {self.task!r} has a weight or bias that is not finite")
