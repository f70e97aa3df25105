"""Nearest neighbours by FAISS, ordered by scores in float64, equal scores by clip id; own patients left out.

FAISS ranks in float32, in which near-identical frames cannot be told apart. Where neighbours lie closer together
than float32 can resolve, their scores are computed again in float64; where such a run crosses the last place, the
whole gallery is. Scores that are equal up to float64 rounding are ties. So the neighbours, and their order, depend
neither on the order of the rows nor on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaltools.closeness import (
    FLOAT64_STEP,
    ClipPoints,
    Rows,
    Space,
    most_own,
    order_with_ties,
    own_codes,
    require_candidates,
    require_one_dimension,
)
from evaltools.metrics import Floats
from evaltools.placed import Placed
from evaltools.search_index import build_index, require_index, search_exact
from evaltools.threads import one_blas_thread

__all__ = ["Neighbours", "nearest", "share_found"]

_SPARE = 8  # neighbours fetched beyond those asked for, so that a tie across the last place is mostly seen whole
_QUERIES_AT_ONCE = 4096
_WHOLE_CELLS = 1 << 24  # float64 scores of a whole-gallery search held at a time, 128 MiB
_FLOAT32 = 2.0**-24
_SAFETY = 4.0  # times sqrt(D) roundings: 60 times the largest difference seen on 1,277 x 7,465 x 768


@dataclass(frozen=True)
class Neighbours:
    """Nearest first.

    Attributes
    ----------
    rows : (m, k) int
        Rows of the gallery; -1 where an approximate index found fewer.
    scores : (m, k) float64
        Inner products, or minus the Euclidean distances: higher is nearer. Minus infinity where there is no row.
    """

    rows: Rows
    scores: Floats


def nearest(
    queries: ClipPoints,
    gallery: ClipPoints,
    *,
    k: int,
    space: Space | None = None,
    index: str = "exact",
    exact_scores: bool = True,
) -> Neighbours:
    """Return the k nearest gallery rows of other patients for each query.

    Parameters
    ----------
    queries, gallery : ClipPoints
        m and n vectors of the same dimensions.
    k : int
        At most the rows of other patients that every query has.
    space : Space
        Cosine without.
    index : {"exact", "ivf", "hnsw"}
        The approximate ones may miss neighbours; what they find is scored and ordered as exactly.
    exact_scores : bool
        Give every score in float64. Without, only the order is as in float64: a score that no neighbour comes near
        stays FAISS's, with a float32 error.

    Raises
    ------
    NotRunnableError
        k is larger than the set.
    VectorError
        Vectors are not finite, or their dimensions differ.
    """
    require_index(index)
    search = _Search(queries, gallery, k, space or Space(), index, exact_scores)
    blocks = [
        search.block(np.arange(start, min(start + _QUERIES_AT_ONCE, len(queries))))
        for start in range(0, len(queries), _QUERIES_AT_ONCE)
    ]
    rows = np.concatenate([rows for rows, _ in blocks])
    closeness = np.concatenate([scores for _, scores in blocks])
    return Neighbours(rows, closeness if search.space.metric == "cosine" else -np.sqrt(np.maximum(-closeness, 0.0)))


def share_found(found: Neighbours, exact: Neighbours) -> float:
    """Return the recall of an approximate search: the share of exact neighbours that it found too."""
    hits = sum(
        len(set(one) & set(other)) for one, other in zip(found.rows.tolist(), exact.rows.tolist(), strict=True)
    )
    return hits / exact.rows.size


class _Search:
    """One gallery and all that is needed to ask it."""

    def __init__(
        self, queries: ClipPoints, gallery: ClipPoints, k: int, space: Space, index: str, exact_scores: bool
    ) -> None:
        require_one_dimension(queries, gallery)
        self.asked, self.held = own_codes(queries, gallery)
        n_own = most_own(self.asked, self.held)
        require_candidates(k, len(gallery) - n_own)
        self.k, self.space, self.is_exact, self.exact_scores = k, space, index == "exact", exact_scores
        centre = Placed(gallery, space).mean() if space.metric == "l2" else None  # float32 then has more digits
        self.queries, self.gallery = (Placed(points, space, centre=centre) for points in (queries, gallery))
        self.ranks = gallery.id_ranks()
        self.excludes = n_own > 0
        self.fetched = min(len(gallery), k + n_own + _SPARE)
        self.single = self.gallery.single()
        self.index = None if self.is_exact else build_index(index, self.single, metric=space.metric, k=self.fetched)
        self.scale = space.scale(queries.vectors, gallery.vectors)
        if space.metric == "l2":
            self.scale = space.scale(self.queries.rows(slice(None)), self.gallery.rows(slice(None)))

    def block(self, rows: Rows) -> tuple[Rows, Floats]:
        """Return gallery rows and closeness, both (m, k), for some queries."""
        raw, found = self._search(self.queries.single(rows))
        closeness = raw.astype(np.float64) if self.space.metric == "cosine" else -raw.astype(np.float64)
        lowest = closeness[:, -1].copy()
        closeness[found < 0] = -np.inf
        if self.excludes:
            closeness[self.held[found] == self.asked[rows][:, None]] = -np.inf
            first = np.argsort(-closeness, axis=1, kind="stable")
            closeness, found = np.take_along_axis(closeness, first, axis=1), np.take_along_axis(found, first, axis=1)
        scale, dims = self.scale[rows], self.queries.dims
        unsure = _SAFETY * np.sqrt(dims) * _FLOAT32 * scale
        with one_blas_thread():  # thousands of small products
            self._rescore(closeness, found, rows, unsure)
        order = order_with_ties(closeness, self.ranks[found], dims * FLOAT64_STEP * scale)[:, : self.k]
        closeness, found = np.take_along_axis(closeness, order, axis=1), np.take_along_axis(found, order, axis=1)
        if self.is_exact and self.fetched < len(self.gallery):
            cut = np.flatnonzero(closeness[:, -1] - lowest <= unsure[:, 0])
            if len(cut):
                found[cut], closeness[cut] = self._whole(rows[cut])
        found[np.isneginf(closeness)] = -1
        return found.astype(np.intp), closeness

    def _search(self, queries: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], Rows]:
        if self.index is None:  # no index is made, which would be a copy of the gallery
            return search_exact(queries, self.single, metric=self.space.metric, k=self.fetched)
        raw, found = self.index.search(queries, self.fetched)
        return raw, found

    def _rescore(self, closeness: Floats, found: Rows, rows: Rows, unsure: Floats) -> None:
        """Replace scores by those in float64: all, or those that stand closer to another than float32 can tell."""
        known = np.isfinite(closeness)
        again = known
        if not self.exact_scores:
            with np.errstate(invalid="ignore"):
                close = closeness[:, :-1] - closeness[:, 1:] <= unsure
            again = np.zeros_like(known)
            again[:, :-1] = close
            again[:, 1:] |= close
            again &= known
        lines, places = np.nonzero(again)
        if not len(lines):
            return
        starts = np.flatnonzero(np.diff(lines, prepend=-1))
        queries, gathered = self.queries.rows(rows[lines[starts]]), np.empty((again.shape[1], self.queries.dims))
        candidates = found[lines, places]
        scores = [
            self.gallery.closeness(query, candidates[start:end], gathered=gathered)
            for query, start, end in zip(queries, starts, np.append(starts[1:], len(lines)), strict=True)
        ]
        closeness[lines, places] = np.concatenate(scores)

    def _whole(self, rows: Rows) -> tuple[Rows, Floats]:
        """Search the whole gallery in float64."""
        scale, dims, n = self.scale[rows], self.queries.dims, len(self.gallery)
        gallery = self.gallery.rows(slice(None))
        ranks = np.broadcast_to(self.ranks[:-1], (1, n))
        found, scores = np.empty((len(rows), self.k), dtype=np.intp), np.empty((len(rows), self.k))
        step = max(_WHOLE_CELLS // n, 1)
        for start in range(0, len(rows), step):
            at = rows[start : start + step]
            closeness = np.stack([self.space.closeness(query, gallery) for query in self.queries.rows(at)])
            closeness[self.held[None, :] == self.asked[at][:, None]] = -np.inf
            tie = dims * FLOAT64_STEP * scale[start : start + step]
            order = order_with_ties(closeness, np.repeat(ranks, len(at), axis=0), tie)[:, : self.k]
            found[start : start + step] = order
            scores[start : start + step] = np.take_along_axis(closeness, order, axis=1)
        return found, scores
