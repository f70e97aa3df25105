"""The space that rows of features span: where the solution of a penalised fit lies, and how stretched it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaltools.metrics import Floats

__all__ = ["RowSpace", "gram_of"]

_RANK = 1e-12  # principal axes below this share of the largest eigenvalue are rounding


@dataclass(frozen=True)
class RowSpace:
    """Features in parts, together (n, D), and the principal axes of what they span around their mean.

    Features that outnumber their dimensions stay as they are, since turning them onto the axes costs more than
    turning the weights of every step of a fit; the others are turned, to fewer columns.

    Attributes
    ----------
    parts : tuple of (m, Q) float64
        As they are multiplied with weights: Q is D, or R where they were turned.
    offset : (Q,) float64
        Their mean, which is taken off.
    turn : (Q, R) float64 or None
        From weights on the axes to weights of the parts.
    basis : (D, R) float64
        From weights on the axes to weights of the features: orthonormal columns.
    eigenvalues : (R,) float64
        Squared singular values.
    """

    parts: tuple[Floats, ...]
    offset: Floats
    turn: Floats | None
    basis: Floats
    eigenvalues: Floats

    @classmethod
    def of(cls, *parts: Floats, gram: Floats | None = None) -> RowSpace:
        """Find the axes of features.

        Parameters
        ----------
        parts : (m, D) float64
            All rows, in one part or several.
        gram : (D, D) float64, optional
            Product of the first part's transpose with it, where it is known.
        """
        n = sum(len(part) for part in parts)
        mean = sum(part.sum(axis=0) for part in parts) / n
        if n > parts[0].shape[1]:
            products = [part.T @ part for part in (parts if gram is None else parts[1:])]
            products += [] if gram is None else [gram]
            eigenvalues, basis = _kept(sum(products) - n * np.outer(mean, mean))
            return cls(parts, mean, basis, basis, eigenvalues)
        features = (parts[0] if len(parts) == 1 else np.concatenate(parts)) - mean
        eigenvalues, vectors = _kept(features @ features.T)
        basis = features.T @ (vectors / np.sqrt(eigenvalues))
        turned = features @ basis
        return cls((turned,), np.zeros(turned.shape[1]), None, basis, eigenvalues)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def on_axes(self) -> Floats:
        """Return the rows (n, R) on the axes, mean taken off."""
        rows: Floats = np.concatenate(self.parts) - self.offset
        return rows if self.turn is None else rows @ self.turn


def gram_of(features: Floats) -> Floats | None:
    """Return the product (D, D) of features' transpose with them, None where they are no more than dimensions."""
    n, dims = features.shape
    return features.T @ features if n > dims else None


def _kept(product: Floats) -> tuple[Floats, Floats]:
    """Return eigenvalues and vectors of a symmetric matrix without those that are rounding."""
    eigenvalues, vectors = np.linalg.eigh(product)
    kept = eigenvalues > _RANK * max(eigenvalues[-1], 1e-300)
    return eigenvalues[kept], vectors[:, kept]
