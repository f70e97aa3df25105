from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest
from embedstore.errors import UnknownNameError, VectorError
from evaltools.align import AlignOptions, align_manifest, half_samples
from evaltools.closeness import ClipPoints
from evaltools.cohort import NotRunnableError
from evaltools.protocols.base import one_blas_thread
from evaltools.resample import patient_codes
from evaltools.similarity import METHODS, Canonical, Side, cka, cka_cardiobench, cka_unbiased, measure, mutual_knn

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def _centring(n: int) -> np.ndarray:
    return np.eye(n) - np.ones((n, n)) / n


def _plain_cka(X: np.ndarray, Y: np.ndarray) -> float:
    H = _centring(len(X))
    K, L = H @ X @ X.T @ H, H @ Y @ Y.T @ H
    return float(np.trace(K @ L) / np.sqrt(np.trace(K @ K) * np.trace(L @ L)))


def _plain_hsic(K: np.ndarray, L: np.ndarray) -> float:
    n, ones = len(K), np.ones(len(K))
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    crossed = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ K @ L @ ones)
    return float((np.trace(K @ L) + crossed) / (n * (n - 3)))


def _plain_unbiased(X: np.ndarray, Y: np.ndarray) -> float:
    K, L = X @ X.T, Y @ Y.T  # the estimator needs no centring
    return _plain_hsic(K, L) / np.sqrt(_plain_hsic(K, K) * _plain_hsic(L, L))


def _plain_cardiobench(X: np.ndarray, Y: np.ndarray) -> float:
    X, Y = X - X.mean(0), Y - Y.mean(0)
    X, Y = X / np.linalg.norm(X, axis=1, keepdims=True), Y / np.linalg.norm(Y, axis=1, keepdims=True)
    K, L = X @ X.T, Y @ Y.T
    return float((K * L).sum() / (np.linalg.norm(K) * np.linalg.norm(L)))


PLAIN = {"cka": _plain_cka, "cka-unbiased": _plain_unbiased, "cka-cardiobench": _plain_cardiobench}


def _pair(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 9)) + 3
    return X, X @ rng.normal(size=(9, 14)) + 2 * rng.normal(size=(n, 14))


def _points(X: np.ndarray, *, clips_each: int = 3) -> ClipPoints:
    ids = np.array([f"c{row:04d}" for row in range(len(X))], dtype=object)
    return ClipPoints(X, ids, np.array([f"p{row // clips_each:04d}" for row in range(len(X))], dtype=object))


@pytest.mark.parametrize("method", list(PLAIN))
def test_kernels_and_vectors_give_what_a_straight_line_does(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = _pair()
    plain = {"cka": cka, "cka-unbiased": cka_unbiased, "cka-cardiobench": cka_cardiobench}[method]
    assert plain(X, Y) == pytest.approx(PLAIN[method](X, Y), abs=1e-12)
    rows = np.sort(np.random.default_rng(1).permutation(60)[:33])
    for most in (3000, 10):
        monkeypatch.setattr("evaltools.similarity._MOST_BY_KERNEL", most)
        one, other = (Side(_points(side), k=None) for side in (X, Y))
        assert measure(method, one.seen(), other.seen()) == pytest.approx(PLAIN[method](X, Y), abs=1e-12)
        some = measure(method, one.seen(rows), other.seen(rows))
        assert some == pytest.approx(PLAIN[method](X[rows], Y[rows]), abs=1e-12)


@pytest.mark.parametrize("plain", [cka, cka_unbiased, cka_cardiobench])
def test_measures_are_blind_to_the_order_of_clips_and_to_rotations(plain: Callable[..., float]) -> None:
    X, Y = _pair(seed=2)
    order = np.random.default_rng(0).permutation(60)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(9, 9)))[0]
    assert plain(X[order], Y[order]) == pytest.approx(plain(X, Y), abs=1e-12)
    assert plain(X @ turn * 7, Y) == pytest.approx(plain(X, Y), abs=1e-12)
    assert plain(X, X) == pytest.approx(1) and plain(X, Y) == pytest.approx(plain(Y, X))


def test_unrelated_vectors_are_at_chance_by_the_unbiased_measure_only() -> None:
    rng = np.random.default_rng(3)
    values = [
        [measured(rng.normal(size=(50, 200)), rng.normal(size=(50, 200))) for measured in (cka, cka_unbiased)]
        for _ in range(20)
    ]
    biased, unbiased = np.mean(values, axis=0)
    assert biased > 0.7 and abs(unbiased) < 0.02


def test_mutual_neighbours_are_a_plain_overlap() -> None:
    X, Y = _pair(seed=4)
    one, other = _points(X), _points(Y)
    shared = 0
    for row in range(60):
        near = []
        for side in (one, other):
            unit = side.vectors / np.linalg.norm(side.vectors, axis=1, keepdims=True)
            closeness = np.where(side.patients == side.patients[row], -np.inf, unit @ unit[row])
            near.append(set(np.argsort(-closeness)[:5]))
        shared += len(near[0] & near[1])
    assert mutual_knn(one, other, k=5) == pytest.approx(shared / 300)
    rows = np.flatnonzero(np.random.default_rng(0).random(20)[np.arange(60) // 3] < 0.5)
    sides = [Side(side, k=5) for side in (one, other)]
    assert measure("mutual-knn", *(side.seen() for side in sides)) == pytest.approx(shared / 300)
    some = measure("mutual-knn", *(side.seen(rows) for side in sides))
    assert some == pytest.approx(mutual_knn(one.take(rows), other.take(rows), k=5))


def test_canonical_correlations_are_those_of_the_textbook_on_train_and_honest_on_test() -> None:
    rng = np.random.default_rng(5)
    shared, dims = rng.normal(size=(400, 2)), 6
    X = np.hstack([shared * 5, rng.normal(size=(400, dims - 2))])
    Y = np.hstack([rng.normal(size=(400, dims - 2)), shared * 5 + 0.5 * rng.normal(size=(400, 2))])
    train, test = slice(0, 200), slice(200, 400)
    fitted = Canonical.fit((X[train], X[train]), (Y[train], Y[train]), components=dims, n_patients=200)
    covariance = np.cov(np.hstack([X[train], Y[train]]).T)
    xx, xy, yy = covariance[:dims, :dims], covariance[:dims, dims:], covariance[dims:, dims:]
    squared = np.linalg.eigvals(np.linalg.solve(xx, xy) @ np.linalg.solve(yy, xy.T)).real
    assert fitted.correlation() == pytest.approx(np.sqrt(np.sort(squared)).mean(), abs=1e-9)
    tested = Canonical.fit((X[train], X[test]), (Y[train], Y[test]), components=2, n_patients=200)
    assert tested.correlation() > 0.97
    noise = rng.normal(size=(400, 50)), rng.normal(size=(400, 50))
    (A, B), many = noise, 40
    inside = Canonical.fit((A[train], A[train]), (B[train], B[train]), components=many, n_patients=200)
    outside = Canonical.fit((A[train], A[test]), (B[train], B[test]), components=many, n_patients=200)
    assert inside.correlation() > 0.3 and abs(outside.correlation()) < 0.05
    with pytest.raises(NotRunnableError, match="CCA of 41 components needs 205 training patients and there are 200"):
        Canonical.fit((A[train], A[test]), (B[train], B[test]), components=41, n_patients=200)
    with pytest.raises(NotRunnableError, match="span 1 dimensions"):
        Canonical.fit((A[train, :1], A[test, :1]), (B[train], B[test]), components=2, n_patients=200)


def test_intervals_cover_the_measure_of_many_patients() -> None:
    """The half-sample interval holds the value of the population in about 95 of 100 data sets, 4 clips a patient."""
    rng = np.random.default_rng(6)
    mixing = rng.normal(size=(4, 5))

    def draw(n_patients: int) -> tuple[np.ndarray, np.ndarray]:
        X = np.repeat(rng.normal(size=(n_patients, 4)), 4, axis=0) + 0.5 * rng.normal(size=(4 * n_patients, 4))
        common = np.repeat(rng.normal(size=(n_patients, 5)), 4, axis=0)
        return X, X @ mixing + 1.5 * common

    truth = cka_unbiased(*draw(20_000))
    covered, data_sets = 0, 60
    with one_blas_thread():
        for seed in range(data_sets):
            X, Y = draw(40)
            codes = patient_codes(_points(X, clips_each=4).patients)
            one, other = Side(_points(X, clips_each=4), k=None), Side(_points(Y, clips_each=4), k=None)
            found = np.array([
                measure("cka-unbiased", one.seen(rows), other.seen(rows))
                for rows in half_samples(codes, draws=60, seed=seed)
            ])  # fmt: skip
            low, high = cka_unbiased(X, Y) + np.quantile(found - found.mean(), [0.025, 0.975])
            covered += low <= truth <= high
    assert 0.85 * data_sets <= covered


def test_pairs_of_encoders_have_every_method_and_intervals(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(150)
    first = make_source(manifest)
    twin = make_source(manifest, name="twin")
    twin.clips = -2 * first.clips  # a rotation and a factor; in the order of the first's index
    unrelated = make_source(manifest, name="unrelated", seed=8)
    unrelated.clips = np.random.default_rng(0).normal(size=unrelated.clips.shape)
    options = AlignOptions(draws=50, components=5)
    found = align_manifest([first, twin, unrelated], manifest, options=options)
    assert [(one.a, one.b) for one in found[::5]] == [
        ("toy-encoder", "twin"), ("toy-encoder", "unrelated"), ("twin", "unrelated")
    ]  # fmt: skip
    assert [one.method for one in found[:5]] == list(METHODS)
    for one in found[:5]:
        assert one.estimate.value == pytest.approx(1.0, abs=1e-6), one.method
    chance = {one.method: one.estimate for one in found[5:10]}
    assert abs(chance["cka-unbiased"].value) < 0.1 and abs(chance["cca"].value) < 0.2
    assert chance["mutual-knn"].value < 0.15 and chance["cka"].ci_low < chance["cka"].value < chance["cka"].ci_high
    document = json.loads(json.dumps([one.to_dict() for one in found], allow_nan=False))
    assert set(document[0]) >= {"a", "b", "dataset", "method", "value", "ci_low", "ci_high"}
    assert document[0]["n_clips"] == 180 and document[0]["n_patients"] == 60
    again = align_manifest([first, twin, unrelated], manifest, options=options)
    assert again == found
    alone = align_manifest([first, unrelated], manifest, options=options)
    assert [one.estimate for one in alone] == [one.estimate for one in found[5:10]]


def test_the_order_of_the_manifest_moves_nothing(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest, backwards = make_manifest(60), make_manifest(60, change=lambda rows: rows.reverse())
    sources = [make_source(manifest), make_source(manifest, name="other", seed=2)]
    options = AlignOptions(draws=30, components=3, split="test")
    one, other = (align_manifest(sources, of, options=options) for of in (manifest, backwards))
    assert [a.estimate for a in one] == [b.estimate for b in other]


def test_clips_that_one_encoder_lacks_are_left_out_and_counted(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(40)
    test = [clip for clip, split in zip(manifest.clip_ids, manifest.column("split"), strict=True) if split == "test"]
    sources = [make_source(manifest), make_source(manifest, name="other", drop=test[:5])]
    found = align_manifest(sources, manifest, options=AlignOptions(methods=("cka",), draws=0))
    assert found[0].n_clips == len(test) - 5 and found[0].n_dropped == 5
    assert found[0].estimate.ci_low is None and "patients" in str(found[0].estimate.ci_reason)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"methods": ("cka-unbaised",)}, UnknownNameError, "did you mean 'cka-unbiased'"),
        ({"split": "tset"}, UnknownNameError, "did you mean 'test'"),
        ({"methods": ("cca",)}, NotRunnableError, "needs 50 training patients and there are 16"),
        ({"methods": ("cca",), "split": "all"}, NotRunnableError, "cannot be had on the split 'all'"),
        ({"methods": ("mutual-knn",), "k": 100}, NotRunnableError, "k is 100, and only 45 clips"),
        ({"where": "view == PSAX"}, NotRunnableError, "no clip of 'toy' has vectors"),
        ({"where": "split == val"}, NotRunnableError, "has 0 clips of 0 patients in the split 'test'"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    make_manifest: MakeManifest, make_source: Make, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    manifest = make_manifest(40)
    sources = [make_source(manifest), make_source(manifest, name="other", seed=2)]
    with pytest.raises(error, match=says):
        align_manifest(sources, manifest, options=AlignOptions(**options))


def test_one_encoder_is_too_few_and_nan_is_refused(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    source = make_source(manifest)
    with pytest.raises(UnknownNameError, match="toy-encoder is alone on 'toy'"):
        align_manifest([source], manifest, options=AlignOptions())
    broken = make_source(manifest, name="broken")
    broken.clips[0, 0] = np.nan
    with pytest.raises(VectorError, match="not finite"):
        align_manifest([source, broken], manifest, options=AlignOptions())


def test_a_measure_that_cannot_be_had_has_a_reason_beside_the_others(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(40)
    constant = make_source(manifest, name="constant")
    constant.clips = np.ones_like(constant.clips)
    found = {
        one.method: one.estimate
        for one in align_manifest([make_source(manifest), constant], manifest, options=AlignOptions(k=60, draws=20))
    }
    assert found["cka"].value is None and "same vector for every clip" in str(found["cka"].ci_reason)
    assert found["mutual-knn"].value is None and "k is 60" in str(found["mutual-knn"].ci_reason)
    assert found["cca"].value is None and "training patients" in str(found["cca"].ci_reason)
