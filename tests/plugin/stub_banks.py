"""A text tower and published heads without torch, as another package would bring them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedstore.encoder import LoadRequest, TaskHead
from embedstore.errors import StorageError
from embedstore.identity import derive_seed


@dataclass(frozen=True)
class Letters:
    """The tokenizer's identity."""

    kind: str = "letters"

    def to_dict(self) -> dict[str, object]:
        return {"kind": self.kind, "sha256": "0" * 64, "context": 8}


class StubTower:
    """Unit vectors drawn from the texts; remembers what it was loaded with."""

    loaded: list[LoadRequest] = []

    def __init__(self, request: LoadRequest) -> None:
        self.spec, self.tokenizer = request.spec, Letters()
        self.dim, self.logit_scale, self.logit_bias = request.spec.clip_dim, 10.0, -1.5
        StubTower.loaded.append(request)

    def embed(self, prompts: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(derive_seed(prompt)).standard_normal(self.dim) for prompt in prompts]
        return np.array([row / np.linalg.norm(row) for row in rows], dtype=np.float32)


def no_tower(request: LoadRequest) -> StubTower:
    """A tower whose tokenizer lies nowhere."""
    raise StorageError("prompts need the file letters.txt, which is not beside the weights; put it there")


def heads(request: LoadRequest) -> list[TaskHead]:
    """A number, a finding and three classes."""
    rng = np.random.default_rng(3)

    def head(task: str, activation: str, outputs: tuple[str, ...], unit: str | None = None) -> TaskHead:
        weight = rng.standard_normal((len(outputs), request.spec.clip_dim)).astype(np.float32)
        bias = rng.standard_normal(len(outputs)).astype(np.float32)
        return TaskHead(task=task, weight=weight, bias=bias, activation=activation, unit=unit, outputs=outputs)

    return [
        head("EF", "identity", ("EF",), "pct"),
        head("effusion", "one-minus-sigmoid", ("effusion",)),
        head("size", "softmax", ("normal", "mild", "severe")),
    ]


def wide_heads(request: LoadRequest) -> list[TaskHead]:
    """Heads of another model."""
    weight = np.zeros((1, request.spec.clip_dim + 1), dtype=np.float32)
    return [TaskHead(task="EF", weight=weight, bias=weight[0, :1], activation="identity", outputs=("EF",))]
