"""How alike two encoders see the same clips: measures between two matrices of vectors with the rows in common.

``cka``
    Linear centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414): 1 for vectors that are equal up to a
    rotation and a factor. Biased upwards where clips are fewer than dimensions.
``cka-unbiased``
    The same from the unbiased estimator of HSIC (Song et al. 2012; Nguyen et al. 2021): near 0 for unrelated vectors.
``cka-cardiobench``
    CardioBench's: columns are centred, then rows brought to unit length, and the kernels are not centred again. It is
    not the linear CKA and must not be compared with it.
``mutual-knn``
    The mean share of the k nearest clips of other patients, by cosine, that two encoders have in common (Huh et al.
    2024, arXiv:2405.07987).
``cca``
    Mean canonical correlation of the test clips, by directions fitted on train: principal components first, then CCA
    of them. On the clips it was fitted on CCA is near 1 by construction where patients are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evaltools.closeness import ClipPoints, Rows, fewest_candidates, require_candidates
from evaltools.cohort import NotRunnableError
from evaltools.metrics import Codes, Floats
from evaltools.neighbours import nearest

__all__ = ["METHODS", "Canonical", "Seen", "Side", "cka", "cka_cardiobench", "cka_unbiased", "measure", "mutual_knn"]

METHODS = ("cka", "cka-unbiased", "cka-cardiobench", "mutual-knn", "cca")
PATIENTS_A_COMPONENT = 5
_RANK = 1e-10  # principal components below this share of the largest variance are rounding
_MOST_BY_KERNEL = 3000  # clips, 72 MB a kernel; beyond, products of the vectors are the quicker way too
_DEPTH = 8  # times k: how deep neighbours are looked up, so that a subsample of clips still holds k of them


class Seen:
    """One encoder's view of some clips: their vectors less the mean, as a kernel or, for many clips, as they are.

    Parameters
    ----------
    centred : (n, n) or (n, D) float64
        Inner products of the centred vectors, or the centred vectors.
    is_kernel : bool
    near : (n, k) int, optional
        The k nearest clips of each.
    """

    def __init__(self, centred: Floats, *, is_kernel: bool, near: Rows | None = None) -> None:
        self.centred, self.is_kernel, self.near = centred, is_kernel, near

    @cached_property
    def squares(self) -> Floats:
        """Squared lengths of the centred vectors (n,)."""
        squares: Floats = (
            self.centred.diagonal().copy() if self.is_kernel else np.einsum("nd,nd->n", self.centred, self.centred)
        )
        return squares

    @cached_property
    def unit(self) -> Floats:
        """`centred`, of vectors that were brought to unit length after centring."""
        lengths = np.sqrt(np.maximum(self.squares, 0.0))
        lengths = np.where(lengths > 0, lengths, 1.0)
        unit: Floats = self.centred / lengths[:, None]
        return unit / lengths if self.is_kernel else unit

    @cached_property
    def sizes(self) -> dict[str, float]:
        """The measures' products of the view with itself, as they are asked for."""
        return {}

    def size(self, method: str) -> float:
        """Return the product of the view with itself."""
        if method not in self.sizes:
            self.sizes[method] = _product(method, self, self)
        return self.sizes[method]


def _product(method: str, a: Seen, b: Seen) -> float:
    """Return the inner product of two kernels, for the unbiased measure without their diagonals."""
    one, other = (a.unit, b.unit) if method == "cka-cardiobench" else (a.centred, b.centred)
    product = float(np.vdot(one, other) if a.is_kernel else np.sum((one.T @ other) ** 2))
    if method != "cka-unbiased":
        return product
    # Song et al. 2012, equation 5, times n (n - 3). Rows of a centred kernel sum to zero, so without the diagonal
    # they sum to minus its entry.
    n, of_diagonals = len(a.squares), float(a.squares @ b.squares)
    crossed = float(a.squares.sum() * b.squares.sum()) / ((n - 1) * (n - 2))
    return product - of_diagonals + crossed - 2 * of_diagonals / (n - 2)


def measure(method: str, a: Seen, b: Seen) -> float:
    """Return a measure of two views of the same clips: one of `METHODS` but ``cca``; NaN where it is not defined."""
    if method == "mutual-knn":
        assert a.near is not None and b.near is not None
        return float((a.near[:, :, None] == b.near[:, None, :]).sum() / a.near.size)
    size = a.size(method) * b.size(method)
    return _product(method, a, b) / float(np.sqrt(size)) if size > 0 else float("nan")


def _of_vectors(X: Floats) -> Seen:
    return Seen(X - X.mean(axis=0), is_kernel=False)


def cka(X: Floats, Y: Floats) -> float:
    """Return the linear CKA of (n, D) and (n, E).

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(cka(X, 3 * X[:, ::-1]), 6)
    1.0
    """
    return measure("cka", _of_vectors(X), _of_vectors(Y))


def cka_unbiased(X: Floats, Y: Floats) -> float:
    """Return the linear CKA of (n, D) and (n, E) by the unbiased estimator of HSIC; n is at least 4."""
    return measure("cka-unbiased", _of_vectors(X), _of_vectors(Y))


def cka_cardiobench(X: Floats, Y: Floats) -> float:
    """Return CardioBench's row-normalised similarity of (n, D) and (n, E)."""
    return measure("cka-cardiobench", _of_vectors(X), _of_vectors(Y))


def mutual_knn(a: ClipPoints, b: ClipPoints, *, k: int) -> float:
    """Return the mean share of the k nearest clips of other patients that two encoders have in common."""
    one, other = nearest(a, a, k=k).rows, nearest(b, b, k=k).rows
    return float((one[:, :, None] == other[:, None, :]).sum() / one.size)


class Side:
    """One encoder's vectors of the clips in common, of which subsamples are looked at.

    Parameters
    ----------
    points : ClipPoints
        In the order of clip ids.
    k : int or None
        Neighbours of the mutual k nearest; None where they are not asked for.
    """

    def __init__(self, points: ClipPoints, *, k: int | None) -> None:
        points.refuse_strange()
        self.points, self.k = points, k

    @cached_property
    def _kernel(self) -> Floats:
        away = self.points.vectors - self.points.vectors.mean(axis=0)
        kernel: Floats = away @ away.T
        return kernel

    @cached_property
    def _candidates(self) -> Rows:
        """The nearest clips of other patients (n, f), f being several times k."""
        assert self.k is not None
        available = fewest_candidates(self.points, self.points)
        require_candidates(self.k, available)
        return nearest(self.points, self.points, k=min(available, _DEPTH * self.k), exact_scores=False).rows

    def seen(self, rows: Codes | None = None) -> Seen:
        """Return the view of all clips, or of all clips of some patients.

        Raises
        ------
        NotRunnableError
            k is larger than the set.
        """
        near = None if self.k is None else self._near(rows)
        if len(self.points) > _MOST_BY_KERNEL:
            X = self.points.vectors if rows is None else self.points.vectors[rows]
            return Seen(X - X.mean(axis=0), is_kernel=False, near=near)
        if rows is None:
            return Seen(self._kernel, is_kernel=True, near=near)
        K = self._kernel[np.ix_(rows, rows)]
        means = K.mean(axis=0)
        return Seen(K - means - means[:, None] + means.mean(), is_kernel=True, near=near)

    def _near(self, rows: Codes | None) -> Rows:
        assert self.k is not None
        if rows is None:
            return self._candidates[:, : self.k]
        among = np.zeros(len(self.points), dtype=np.bool_)
        among[rows] = True
        candidates = self._candidates[rows]
        first = among[candidates]
        first &= np.cumsum(first, axis=1) <= self.k
        if (first.sum(axis=1) == self.k).all():
            return candidates[first].reshape(len(rows), -1)
        few = self.points.take(rows)
        return rows[nearest(few, few, k=self.k, exact_scores=False).rows]


@dataclass(frozen=True)
class Canonical:
    """Canonical variates of clips, by directions that were fitted on others.

    Attributes
    ----------
    of_a, of_b : (n, C) float64
        Pairs of columns.
    """

    of_a: Floats
    of_b: Floats

    @classmethod
    def fit(
        cls, a: tuple[Floats, Floats], b: tuple[Floats, Floats], *, components: int, n_patients: int
    ) -> Canonical:
        """Fit on train and project test.

        Parameters
        ----------
        a, b : ((n, D), (m, D)), ((n, E), (m, E))
            Training and test vectors of the two encoders.
        components : int
            Principal components of each encoder, and canonical pairs.
        n_patients : int
            Patients in train.

        Raises
        ------
        NotRunnableError
            There are too few training patients for so many components.
        """
        if n_patients < PATIENTS_A_COMPONENT * components:
            raise NotRunnableError(
                f"CCA of {components} components needs {PATIENTS_A_COMPONENT * components} training patients and "
                f"there are {n_patients}; give fewer --components"
            )
        (whitened_a, seen_a), (whitened_b, seen_b) = (_whitened(*side, components=components) for side in (a, b))
        left, _, right = np.linalg.svd(whitened_a.T @ whitened_b)
        return cls(seen_a @ left, seen_b @ right.T)

    def correlation(self, rows: Codes | None = None) -> float:
        """Return the mean correlation of the pairs, over all clips or some."""
        chosen = slice(None) if rows is None else rows
        one, other = (side[chosen] - side[chosen].mean(axis=0) for side in (self.of_a, self.of_b))
        with np.errstate(divide="ignore", invalid="ignore"):
            each = (one * other).sum(axis=0) / np.sqrt((one**2).sum(axis=0) * (other**2).sum(axis=0))
        return float(each.mean())


def _whitened(train: Floats, test: Floats, *, components: int) -> tuple[Floats, Floats]:
    """Return the leading principal components with unit variance in train."""
    mean = train.mean(axis=0)
    left, sizes, right = np.linalg.svd(train - mean, full_matrices=False)
    known = int((sizes > np.sqrt(_RANK) * max(float(sizes[0]), 1e-300)).sum())
    if known < components:
        raise NotRunnableError(
            f"the training vectors span {known} dimensions, fewer than the {components} components; "
            "give fewer --components"
        )
    return left[:, :components], (test - mean) @ right[:components].T / sizes[:components]
