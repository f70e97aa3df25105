from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from embedstore.errors import UnknownNameError, VectorError
from evaltools.closeness import ClipPoints, Space, fewest_candidates, full_rankings, order_with_ties
from evaltools.cohort import NotRunnableError
from evaltools.neighbours import nearest, share_found

SPACES = [Space(), Space("cosine", normalize=False), Space("l2"), Space("l2", normalize=False)]


def _points(vectors: np.ndarray, *, prefix: str = "c", patients: list[str] | None = None) -> ClipPoints:
    ids = np.array([f"{prefix}{row:05d}" for row in range(len(vectors))], dtype=object)
    return ClipPoints(np.asarray(vectors, np.float64), ids, ids if patients is None else np.array(patients, object))


def _plain(queries: ClipPoints, gallery: ClipPoints, *, k: int, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """One query at a time, in float64."""
    rows, scores = [], []
    placed, held = space.place(queries.vectors), space.place(gallery.vectors)
    for query, patient in zip(placed, queries.patients, strict=True):
        closeness = held @ query if space.metric == "cosine" else -np.sqrt(((held - query) ** 2).sum(axis=1))
        found = sorted(
            (round(-value, 11), gallery.clip_ids[row], row)
            for row, value in enumerate(closeness)
            if gallery.patients[row] != patient
        )[:k]
        rows.append([row for _, _, row in found])
        scores.append([closeness[row] for _, _, row in found])
    return np.array(rows), np.array(scores)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.title)
@pytest.mark.parametrize("exact_scores", [True, False])
def test_neighbours_are_those_of_one_query_at_a_time(space: Space, exact_scores: bool) -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{row % 23}" for row in range(150)]
    gallery = _points(rng.normal(size=(150, 9)) + 3, patients=patients)
    queries = gallery.take(rng.permutation(150)[:40])
    found = nearest(queries, gallery, k=12, space=space, exact_scores=exact_scores)
    rows, scores = _plain(queries, gallery, k=12, space=space)
    assert (found.rows == rows).all()
    assert found.scores == pytest.approx(scores, abs=1e-12 if exact_scores else 2e-4)
    assert (gallery.patients[found.rows] != queries.patients[:, None]).all()


def test_neighbours_are_those_of_faiss_and_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    gallery, queries = rng.normal(size=(400, 32)), rng.normal(size=(50, 32))
    found = nearest(_points(queries, prefix="q"), _points(gallery), k=20)
    placed, asked = gallery.astype(np.float32), queries.astype(np.float32)
    faiss.normalize_L2(placed)
    faiss.normalize_L2(asked)
    index = faiss.IndexFlatIP(32)
    index.add(placed)
    scores, rows = index.search(asked, 20)
    assert (found.rows == rows).mean() > 0.99 and found.scores == pytest.approx(scores, abs=1e-6)
    distances, rows = NearestNeighbors(n_neighbors=20, metric="cosine").fit(gallery).kneighbors(queries)
    assert (found.rows == rows).all() and 1 - found.scores == pytest.approx(distances, abs=1e-12)


@pytest.mark.parametrize("space", [SPACES[0], SPACES[3]], ids=lambda space: space.title)
def test_near_identical_frames_are_ordered_in_float64(space: Space) -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=64) * 5
    away = rng.normal(size=64)
    steps = rng.permutation(np.arange(1, 301)) * 1e-9  # far below what float32 tells apart
    gallery = _points(base + steps[:, None] * away)
    found = nearest(_points(base[None], prefix="q"), gallery, k=25, space=space, exact_scores=False)
    if space.metric == "l2":
        assert (found.rows[0] == np.argsort(steps)[:25]).all()
        assert -found.scores[0] == pytest.approx(np.sort(steps)[:25] * np.linalg.norm(away), rel=1e-6)
    else:  # 1 - cosine is quadratic in the step: below float64 too, so ids decide
        assert (found.rows[0] == np.arange(25)).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), copies=st.integers(2, 40), k=st.integers(1, 30))
def test_equal_vectors_are_ordered_by_id_in_whatever_order_they_stand(seed: int, copies: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    gallery = _points(np.repeat(rng.normal(size=(3, 7)), copies, axis=0))
    queries = _points(rng.normal(size=(5, 7)), prefix="q")
    k = min(k, len(gallery))
    shuffled = gallery.take(rng.permutation(len(gallery)))
    one, other = nearest(queries, gallery, k=k), nearest(queries, shuffled, k=k)
    assert (gallery.clip_ids[one.rows] == shuffled.clip_ids[other.rows]).all()
    for ids, scores in zip(gallery.clip_ids[one.rows], one.scores, strict=True):
        for level in np.unique(scores.round(9)):
            tied = ids[scores.round(9) == level]
            assert list(tied) == sorted(tied)


def test_threads_and_block_sizes_change_nothing() -> None:
    rng = np.random.default_rng(3)
    gallery = _points(rng.normal(size=(2000, 48)), patients=[f"p{row // 4}" for row in range(2000)])
    before = faiss.omp_get_max_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            faiss.omp_set_num_threads(threads)
            found.append(nearest(gallery, gallery, k=30, exact_scores=False))
    finally:
        faiss.omp_set_num_threads(before)
    assert all((one.rows == found[0].rows).all() for one in found)
    assert all(np.abs(one.scores - found[0].scores).max() < 1e-6 for one in found)
    some = nearest(gallery.take(np.arange(7)), gallery, k=30)
    assert (some.rows == found[0].rows[:7]).all()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_finds_most_and_the_same_each_time(kind: str) -> None:
    rng = np.random.default_rng(4)
    gallery = _points(rng.normal(size=(40, 16))[rng.integers(0, 40, 3000)] + 0.3 * rng.normal(size=(3000, 16)))
    queries = gallery.take(np.arange(0, 3000, 30))
    exact = nearest(queries, gallery, k=10)
    one, again = (nearest(queries, gallery, k=10, index=kind) for _ in range(2))
    assert (one.rows == again.rows).all() and (one.scores == again.scores).all()
    assert 0.8 < share_found(one, exact) <= 1 and share_found(exact, exact) == 1
    assert (gallery.patients[one.rows] != queries.patients[:, None])[one.rows >= 0].all()


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.title)
def test_full_rankings_begin_with_the_nearest(space: Space) -> None:
    rng = np.random.default_rng(5)
    gallery = _points(rng.normal(size=(90, 6)) + 2, patients=[f"p{row % 30}" for row in range(90)])
    found = nearest(gallery, gallery, k=20, space=space)
    for rows, order, is_other in full_rankings(gallery, gallery, space=space):
        assert (order[:, :20] == found.rows[rows]).all() and (is_other.sum(axis=1) == 87).all()
        own = np.take_along_axis(is_other, order, axis=1)
        assert not own[:, 87:].any() and own[:, :87].all()


def test_what_cannot_be_searched_is_one_sentence() -> None:
    rng = np.random.default_rng(6)
    gallery = _points(rng.normal(size=(12, 3)), patients=["a"] * 5 + ["b"] * 7)
    assert fewest_candidates(gallery, gallery) == 5
    with pytest.raises(NotRunnableError, match="k is 6, and only 5 clips of other patients"):
        nearest(gallery, gallery, k=6)
    with pytest.raises(VectorError, match="4 dimensions and the gallery 3"):
        nearest(_points(np.zeros((1, 4))), gallery, k=1)
    broken = _points(np.array([[1.0, np.nan, 0.0]]), prefix="bad")
    with pytest.raises(VectorError, match="not finite .bad00000"):
        nearest(broken, gallery, k=1)
    with pytest.raises(UnknownNameError, match="did you mean 'hnsw'"):
        nearest(gallery, gallery, k=1, index="hsnw")
    with pytest.raises(UnknownNameError, match="unknown metric 'cosin'; did you mean 'cosine'"):
        Space("cosin")


def test_a_vector_of_nobody_excludes_nothing() -> None:
    gallery = _points(np.eye(3), patients=["", "", "x"])
    query = ClipPoints(np.eye(3)[:1], np.array(["q"], object), np.array([""], object))
    assert nearest(query, gallery, k=3).rows[0].tolist() == [0, 1, 2]


def test_a_zero_vector_is_as_far_from_all() -> None:
    found = nearest(_points(np.zeros((1, 2)), prefix="q"), _points(np.eye(2)), k=2)
    assert found.rows.tolist() == [[0, 1]] and found.scores.tolist() == [[0.0, 0.0]]


def test_ties_by_rank() -> None:
    closeness = np.array([[0.5, 0.9, 0.5, -np.inf, 0.9 - 1e-15]])
    order = order_with_ties(closeness, np.array([[4, 3, 2, 1, 0]]), np.array([[1e-14]]))
    assert order.tolist() == [[4, 1, 2, 0, 3]]
