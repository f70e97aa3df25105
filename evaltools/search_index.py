"""FAISS indexes over float32 vectors: exact by default, IVF and HNSW where speed is worth missed neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import UnknownNameError, did_you_mean

__all__ = ["INDEXES", "build_index", "require_index", "search_exact"]

INDEXES = ("exact", "ivf", "hnsw")

_POINTS_A_LIST = 39  # what FAISS asks for to train a k-means centroid (Clustering.h: min_points_per_centroid)
_LISTS_PROBED = 0.1  # share of the inverted lists that a query looks into, at least 8
_HNSW_LINKS = 32
_HNSW_BUILD_EFFORT = 200
_HNSW_SEARCH_EFFORT = 128


def require_index(name: str) -> str:
    """Return the name of a kind of index.

    Raises
    ------
    UnknownNameError
        There is none of that name.
    """
    if name not in INDEXES:
        raise UnknownNameError(f"unknown index {name!r}{did_you_mean(name, list(INDEXES))}")
    return name


@contextmanager
def _one_faiss_thread(faiss: Any) -> Iterator[None]:
    """Add on one thread: links of HNSW depend on the order in which threads come (faiss issue 983)."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def search_exact(
    queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], *, metric: str, k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Return scores and rows (m, k) of the nearest vectors, as an index that holds them all gives them.

    Parameters
    ----------
    queries, vectors : (m, D), (n, D) float32
    metric : {"cosine", "l2"}
        Inner product, or squared Euclidean distance.
    """
    import faiss

    code = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    scores, rows = faiss.knn(queries, vectors, k, metric=code)
    return scores, rows


def build_index(kind: str, vectors: npt.NDArray[np.float32], *, metric: str, k: int) -> Any:
    """Return a FAISS index that holds vectors in the order given; equal vectors give equal indexes.

    Parameters
    ----------
    kind : str
        A name of `INDEXES`.
    vectors : (n, D) float32
    metric : {"cosine", "l2"}
        Inner product, or squared Euclidean distance.
    k : int
        How many neighbours will be asked for; HNSW must search at least as wide.
    """
    import faiss

    n, dims = vectors.shape
    by_product = metric == "cosine"
    code = faiss.METRIC_INNER_PRODUCT if by_product else faiss.METRIC_L2
    flat = faiss.IndexFlatIP(dims) if by_product else faiss.IndexFlatL2(dims)
    if kind == "exact":
        flat.add(vectors)
        return flat
    index: Any
    with _one_faiss_thread(faiss):
        if kind == "ivf":
            n_lists = max(1, min(int(4 * np.sqrt(n)), n // _POINTS_A_LIST))
            index = faiss.IndexIVFFlat(flat, dims, n_lists, code)
            index.nprobe = min(n_lists, max(8, int(np.ceil(_LISTS_PROBED * n_lists))))
            index.train(vectors)
        else:
            index = faiss.IndexHNSWFlat(dims, _HNSW_LINKS, code)
            index.hnsw.efConstruction = _HNSW_BUILD_EFFORT
            index.hnsw.efSearch = max(_HNSW_SEARCH_EFFORT, 2 * k)
        index.add(vectors)
    return index
