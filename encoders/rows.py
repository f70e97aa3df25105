"""Vectors that do not follow their place in the batch, to the last bit."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["RowByRow", "projected_row_by_row", "rows_of"]


class RowByRow(nn.Module):
    """Run a module on one row of the batch after another, on a CPU.

    A product of few rows is cut up differently for different rows there: at five or six frames the last projection
    of a tower gave other last bits in other places of the batch (MKL, float32). Products over all patches of all
    frames showed none of that, so only what comes after pooling needs it, and costs next to nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the module's result for the whole batch."""
        return rows_of(self.module, batch)


def rows_of(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return what `RowByRow` makes of a module, for modules that keep their names."""
    if batch.device.type != "cpu":
        made: torch.Tensor = module(batch)
        return made
    return torch.cat([module(row) for row in batch.split(1)])


class _Projection(nn.Module):
    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix, requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.matrix


def projected_row_by_row(visual: nn.Module) -> nn.Module:
    """Return open_clip's image tower with its last projection run row by row; its parameters are taken over."""
    if hasattr(visual, "trunk") and isinstance(getattr(visual, "head", None), nn.Module):
        return nn.Sequential(visual.trunk, RowByRow(visual.head))
    matrix = getattr(visual, "proj", None)
    if isinstance(matrix, torch.Tensor):
        visual.proj = None
        return nn.Sequential(visual, RowByRow(_Projection(matrix.detach())))
    return visual
