"""Where closeness is measured, between whose vectors, and how equal scores are ordered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import UnknownNameError, VectorError, did_you_mean
from evaltools.cohort import NotRunnableError
from evaltools.metrics import Codes, Floats

__all__ = [
    "FLOAT64_STEP",
    "SPACE_METRICS",
    "ClipPoints",
    "Rows",
    "Space",
    "fewest_candidates",
    "full_rankings",
    "most_own",
    "order_with_ties",
    "own_codes",
    "require_candidates",
    "require_one_dimension",
]

SPACE_METRICS = ("cosine", "l2")
FLOAT64_STEP = 2.0**-53

_NAMED = 5
_CELLS = 1 << 21  # of a (queries, gallery) matrix held at a time, 16 MiB in float64

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Space:
    """Where closeness is measured.

    Attributes
    ----------
    metric : {"cosine", "l2"}
        ``cosine`` is the inner product, of unit vectors where `normalize` is on; ``l2`` the Euclidean distance.
    normalize : bool
        Bring vectors to unit length first; a zero vector stays zero.

    Examples
    --------
    >>> Space("l2").title, Space("cosine", normalize=False).title
    ('Euclidean distance of unit vectors', 'inner product')
    """

    metric: str = "cosine"
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.metric not in SPACE_METRICS:
            raise UnknownNameError(f"unknown metric {self.metric!r}{did_you_mean(self.metric, [*SPACE_METRICS])}")

    @property
    def title(self) -> str:
        """Name for people."""
        if self.metric == "cosine":
            return "cosine" if self.normalize else "inner product"
        return "Euclidean distance of unit vectors" if self.normalize else "Euclidean distance"

    def place(self, X: Floats) -> Floats:
        """Return vectors (n, D) as they are compared, float64."""
        X = np.asarray(X, dtype=np.float64)
        if not self.normalize:
            return X
        lengths = np.sqrt(np.einsum("nd,nd->n", X, X))
        placed: Floats = X / np.where(lengths > 0, lengths, 1.0)[:, None]
        return placed

    def place_both(self, queries: Floats, gallery: Floats) -> tuple[Floats, Floats]:
        """Return both as they are compared; for ``l2`` the gallery's mean is taken off, which moves no distance and
        leaves float32 more digits.
        """
        placed, held = self.place(queries), self.place(gallery)
        if self.metric == "l2":
            centre = held.mean(axis=0)
            return placed - centre, held - centre
        return placed, held

    def distances(self, scores: Floats) -> Floats:
        """Turn scores into distances: 1 minus the cosine, the Euclidean distance, or minus the inner product."""
        if self.metric == "cosine" and self.normalize:
            return np.maximum(1.0 - scores, 0.0)
        return -scores

    def scale(self, queries: Floats, gallery: Floats) -> Floats:
        """Return the size (m, 1) of the numbers that are summed for a query's scores: rounding is a share of it."""
        if self.metric == "cosine" and self.normalize:
            return np.ones((len(queries), 1))
        lengths = np.sqrt(np.einsum("nd,nd->n", queries, queries))[:, None]
        longest = float(np.sqrt(np.einsum("nd,nd->n", gallery, gallery).max()))
        scale: Floats = lengths * longest if self.metric == "cosine" else (lengths + longest) ** 2
        return scale

    def table(self, queries: Floats, gallery: Floats) -> Floats:
        """Return the closeness (m, n) of all pairs."""
        products: Floats = queries @ gallery.T
        if self.metric == "cosine":
            return products
        squares = (np.einsum("nd,nd->n", vectors, vectors) for vectors in (queries, gallery))
        of_queries, of_gallery = squares
        table: Floats = 2 * products - of_queries[:, None] - of_gallery
        return table

    def closeness(self, query: Floats, placed: Floats) -> Floats:
        """Return inner products, or minus the squared distances, of one vector (D,) and others (n, D)."""
        if self.metric == "cosine":
            product: Floats = placed @ query
            return product
        away = placed - query
        squares: Floats = np.einsum("nd,nd->n", away, away)
        return -squares


@dataclass(frozen=True)
class ClipPoints:
    """Vectors with the clips and patients that they belong to.

    Attributes
    ----------
    vectors : (n, D) float64
    clip_ids, patients : (n,) object
        Texts; a vector of patient ``""`` is of nobody in particular.
    """

    vectors: Floats
    clip_ids: npt.NDArray[Any]
    patients: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, kept: npt.NDArray[Any]) -> ClipPoints:
        """Return some rows, by mask or by number."""
        return ClipPoints(self.vectors[kept], self.clip_ids[kept], self.patients[kept])

    def joined(self, other: ClipPoints) -> ClipPoints:
        """Return the rows of both."""
        return ClipPoints(
            np.concatenate([self.vectors, other.vectors]),
            np.concatenate([self.clip_ids, other.clip_ids]),
            np.concatenate([self.patients, other.patients]),
        )

    def id_ranks(self) -> Rows:
        """Return each row's place in the order of clip ids, rows of one clip in their own order."""
        ranks = np.empty(len(self) + 1, dtype=np.intp)
        ranks[np.argsort(self.clip_ids.astype(str), kind="stable")] = np.arange(len(self))
        ranks[-1] = len(self)  # of no row at all
        return ranks

    @cached_property
    def squared_lengths(self) -> Floats:
        """Squared lengths (n,)."""
        vectors = np.asarray(self.vectors, dtype=np.float64)
        squares: Floats = np.einsum("nd,nd->n", vectors, vectors)
        return squares

    def refuse_strange(self) -> None:
        """Raise where a vector is not finite.

        Raises
        ------
        VectorError
            The message names clips.
        """
        if np.isfinite(self.squared_lengths).all():
            return
        finite = np.isfinite(self.vectors).all(axis=1)
        if not finite.all():
            named = ", ".join(str(clip_id) for clip_id in self.clip_ids[~finite][:_NAMED])
            raise VectorError(
                f"{int((~finite).sum())} vectors are not finite ({named}); mend or leave out these clips"
            )


def own_codes(queries: ClipPoints, gallery: ClipPoints) -> tuple[Codes, Codes]:
    """Number patients: equal numbers are one patient; vectors of nobody have -1 as query and -2 as gallery."""
    names = np.concatenate([queries.patients, gallery.patients]).astype(str)
    codes = np.unique(names, return_inverse=True)[1].astype(np.intp)
    asked, held = codes[: len(queries)], codes[len(queries) :]
    asked, held = np.where(names[: len(queries)] == "", -1, asked), np.where(names[len(queries) :] == "", -2, held)
    return asked, held


def fewest_candidates(queries: ClipPoints, gallery: ClipPoints) -> int:
    """Return how many gallery rows of other patients the worst-off query has."""
    return len(gallery) - most_own(*own_codes(queries, gallery))


def most_own(asked: Codes, held: Codes) -> int:
    """Return the most gallery rows that one query's own patient has."""
    known, counts = np.unique(held, return_counts=True)
    own = counts[np.isin(known, asked)]
    return int(own.max()) if len(own) else 0


def order_with_ties(closeness: Floats, ranks: Rows, tie: Floats) -> Rows:
    """Return the order of each row, nearest first, ties by rank.

    Parameters
    ----------
    closeness : (m, f) float64
        Minus infinity for what must not be found.
    ranks : (m, f) int
        Order among equals.
    tie : (m, 1) float64
        What neighbouring values may differ by and be equal.
    """
    order = np.argsort(-closeness, axis=1, kind="stable")
    ordered = np.take_along_axis(closeness, order, axis=1)
    with np.errstate(invalid="ignore"):  # infinities, which are all alike
        apart = ordered[:, :-1] - ordered[:, 1:] > tie
    tied = np.flatnonzero(~apart.all(axis=1))
    if len(tied):
        level = np.zeros((len(tied), closeness.shape[1]), dtype=np.intp)
        np.cumsum(apart[tied], axis=1, out=level[:, 1:])
        ranked = np.take_along_axis(ranks[tied], order[tied], axis=1)
        again = np.argsort(level * (int(ranks.max()) + 1) + ranked, axis=1, kind="stable")
        order[tied] = np.take_along_axis(order[tied], again, axis=1)
    return order


def require_candidates(k: int, available: int) -> None:
    """Check that k neighbours can be had.

    Raises
    ------
    NotRunnableError
        k is larger than the set.
    """
    if not 1 <= k <= available:
        raise NotRunnableError(
            f"k is {k}, and only {available} clips of other patients can be neighbours; give a smaller --k"
        )


def require_one_dimension(queries: ClipPoints, gallery: ClipPoints) -> None:
    """Check that vectors can be compared.

    Raises
    ------
    VectorError
        Their dimensions differ, or one is not finite.
    """
    if queries.vectors.shape[1] != gallery.vectors.shape[1]:
        raise VectorError(
            f"queries have {queries.vectors.shape[1]} dimensions and the gallery {gallery.vectors.shape[1]}; "
            "both must come from one encoder"
        )
    queries.refuse_strange()
    gallery.refuse_strange()


def full_rankings(
    queries: ClipPoints, gallery: ClipPoints, *, space: Space
) -> Iterator[tuple[Rows, Rows, npt.NDArray[np.bool_]]]:
    """Yield, for some queries at a time, the order of the whole gallery in float64, ties by clip id.

    Yields
    ------
    (b,) int
        Rows of the queries.
    (b, n) int
        Gallery rows, nearest first, those of the query's own patient last.
    (b, n) bool
        Which gallery rows are of another patient, in the gallery's order.
    """
    require_one_dimension(queries, gallery)
    asked, held = own_codes(queries, gallery)
    placed, others = space.place_both(queries.vectors, gallery.vectors)
    tie = placed.shape[1] * FLOAT64_STEP * space.scale(placed, others)
    ranks, step = gallery.id_ranks()[:-1], max(_CELLS // len(gallery), 1)
    for start in range(0, len(queries), step):
        rows = np.arange(start, min(start + step, len(queries)))
        is_other = asked[rows][:, None] != held
        closeness = np.where(is_other, space.table(placed[rows], others), -np.inf)
        yield rows, order_with_ties(closeness, np.tile(ranks, (len(rows), 1)), tie[rows]), is_other
