from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from embedstore.errors import ContentError, UnknownNameError
from evaltools.protocols import PROTOCOLS, LogisticPath, RidgePath, get_protocol
from evaltools.protocols.logistic import C_GRID
from evaltools.protocols.ridge import STRENGTHS


def problem(n: int, m: int, dims: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of differing scale, offset and correlation; a target of a few of them and noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + m, 6)) @ rng.normal(size=(6, dims)) + rng.normal(size=(n + m, dims))
    y = 55 + 6 * X[:, :4].sum(axis=1) / np.sqrt(dims) + rng.normal(0, 3, n + m)
    return X * np.exp(rng.normal(size=dims)) + rng.normal(0, 5, dims), y


SHAPES = [(60, 30, 200), (200, 50, 12), (40, 20, 40)]


def scaled_on(X: np.ndarray, n: int) -> np.ndarray:
    """Standardise on the first n rows; no deviation counts for less than a tenth of their median."""
    deviation = X[:n].std(axis=0)
    return (X - X[:n].mean(axis=0)) / np.maximum(deviation, 0.1 * np.median(deviation))


@pytest.mark.parametrize(("n", "m", "dims"), SHAPES)
def test_every_penalty_of_the_path_is_sklearns_ridge(n: int, m: int, dims: int) -> None:
    X, y = problem(n, m, dims)
    path = RidgePath().fit(X[:n], y[:n], X_val=X[n:], y_val=y[n:])
    scaled = scaled_on(X, n)
    one_by_one = []
    for strength in sorted(STRENGTHS, reverse=True):
        ridge = Ridge(alpha=strength * n, solver="svd").fit(scaled[:n], y[:n])
        one_by_one.append(np.mean((ridge.predict(scaled[n:]) - y[n:]) ** 2))
    assert path.validation_mse_[:, 0] == pytest.approx(one_by_one, rel=1e-6)
    assert path.strength_[0] == sorted(STRENGTHS, reverse=True)[int(np.argmin(one_by_one))]


@pytest.mark.parametrize(("n", "m", "dims"), SHAPES)
def test_the_refit_is_sklearns_ridge_on_train_and_val(n: int, m: int, dims: int) -> None:
    X, y = problem(n, m, dims)
    path = RidgePath().fit(X[:n], y[:n], X_val=X[n:], y_val=y[n:])
    scaled = scaled_on(X, n)
    ridge = Ridge(alpha=path.strength_[0] * (n + m), solver="svd").fit(scaled, y)
    assert path.predict(X) == pytest.approx(ridge.predict(scaled), rel=1e-6)
    assert path.coef_[:, 0] == pytest.approx(ridge.coef_, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("n", "m", "dims"), SHAPES)
def test_many_targets_are_fitted_as_each_alone(n: int, m: int, dims: int) -> None:
    X, y = problem(n, m, dims)
    rng = np.random.default_rng(3)
    Y = np.column_stack([y, rng.permutation(y), 2 * y - 7, rng.normal(size=n + m)])
    together = RidgePath().fit(X[:n], Y[:n], X_val=X[n:], y_val=Y[n:]).predict(X)
    for target in range(4):
        alone = RidgePath().fit(X[:n], Y[:n, target], X_val=X[n:], y_val=Y[n:, target]).predict(X)
        assert together[:, target] == pytest.approx(alone, rel=1e-9)


def test_ridge_has_45_penalties_and_shrinks_noise_away() -> None:
    assert len(STRENGTHS) >= 45
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(90, 300)), rng.normal(50, 10, 90)
    fitted = RidgePath().fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert np.ptp(fitted.predict(rng.normal(size=(50, 300)))) < 0.5 * np.ptp(y)
    assert fitted.chosen()["strength"] == fitted.strength_[0]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("n", "m", "dims"), [(60, 30, 100), (150, 60, 8)])
@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0])
def test_a_fit_is_sklearns_logistic_regression(classes: int, n: int, m: int, dims: int, C: float) -> None:
    X, y = problem(n, m, dims)
    codes = np.searchsorted(np.quantile(y, np.arange(1, classes) / classes), y)
    ours = LogisticPath(Cs=[C]).fit(X[:n], codes[:n], X_val=X[n:], y_val=codes[n:])
    scaled = scaled_on(X, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = LogisticRegression(C=C, tol=1e-10, max_iter=50_000).fit(scaled, codes)
    assert ours.predict_proba(X) == pytest.approx(theirs.predict_proba(scaled), abs=5e-6)
    assert np.array_equal(ours.predict(X), theirs.predict(scaled))


def test_c_is_chosen_by_validation_loss_and_a_path_that_only_rises_ends_early() -> None:
    X, y = problem(120, 60, 200)
    codes = (y > np.median(y)).astype(int)
    full = LogisticPath(patience=1000).fit(X[:120], codes[:120], X_val=X[120:], y_val=codes[120:])
    early = LogisticPath().fit(X[:120], codes[:120], X_val=X[120:], y_val=codes[120:])
    assert len(full.validation_loss_) == len(C_GRID)
    assert int(full.validation_loss_[:, 0].argmin()) == sorted(C_GRID).index(full.C_[0])
    assert len(early.validation_loss_) < len(C_GRID) and early.C_[0] == full.C_[0]
    alone = LogisticPath(Cs=full.C_).fit(X[:120], codes[:120], X_val=X[120:], y_val=codes[120:])
    assert alone.validation_loss_[0, 0] == pytest.approx(full.validation_loss_.min(), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "m", "dims"), [(80, 40, 120), (150, 60, 8)])
def test_many_labellings_are_fitted_as_each_alone(classes: int, n: int, m: int, dims: int) -> None:
    X, y = problem(n, m, dims)
    codes = np.searchsorted(np.quantile(y, np.arange(1, classes) / classes), y)
    rng = np.random.default_rng(3)
    Y = np.column_stack([codes, rng.permutation(codes), classes - 1 - codes, rng.permutation(codes)])
    together = LogisticPath().fit(X[:n], Y[:n], X_val=X[n:], y_val=Y[n:])
    assert together.predict_proba(X).shape == (n + m, 4, classes)
    for target in range(4):
        alone = LogisticPath().fit(X[:n], Y[:n, target], X_val=X[n:], y_val=Y[n:, target])
        assert together.C_[target] == alone.C_[0]
        assert together.predict_proba(X)[:, target] == pytest.approx(alone.predict_proba(X), abs=2e-6)


def test_a_fit_that_does_not_converge_is_an_error() -> None:
    X, y = problem(60, 30, 100)
    codes = (y > np.median(y)).astype(int)
    with pytest.raises(ContentError, match="did not converge in 2 iterations"):
        LogisticPath(Cs=[1.0], max_iter=2).fit(X[:60], codes[:60], X_val=X[60:], y_val=codes[60:])


def test_classes_that_lie_far_apart_are_fitted_too() -> None:
    rng = np.random.default_rng(0)  # five views told by brightness, seen through overlapping bins of a histogram
    codes = np.arange(150) % 5
    brightness = 40.0 * codes + rng.uniform(-12, 12, 150)
    X = np.exp(-(((brightness[:, None] - np.linspace(-20, 180, 48)) / 45) ** 2)) + rng.normal(0, 2e-3, (150, 48))
    parts = {"X_val": X[100:], "y_val": codes[100:]}
    with pytest.raises(ContentError, match="C = 1000 did not converge in 2000 iterations"):
        LogisticPath(max_iter=2000).fit(X[:100], codes[:100], **parts)
    fitted = LogisticPath().fit(X[:100], codes[:100], **parts)
    assert fitted.chosen()["converged"] and fitted.n_iter_ > 2000
    assert (fitted.predict(X) == codes).all()


@pytest.mark.parametrize("extra", ["constant", "nothing"])
def test_columns_that_do_not_vary_do_no_harm(extra: str) -> None:
    X, y = problem(60, 30, 10)
    codes = (y > np.median(y)).astype(int)
    padded = np.column_stack([X, np.full(90, 0.1)]) if extra == "constant" else np.zeros((90, 1))
    ridge = RidgePath().fit(padded[:60], y[:60], X_val=padded[60:], y_val=y[60:]).predict(padded)
    logistic = LogisticPath().fit(padded[:60], codes[:60], X_val=padded[60:], y_val=codes[60:]).predict_proba(padded)
    if extra == "nothing":
        assert ridge == pytest.approx(np.full(90, y.mean()))
        assert logistic[:, 1] == pytest.approx(np.full(90, codes.mean()), abs=1e-6)
    else:
        plain = RidgePath().fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:]).predict(X)
        assert ridge == pytest.approx(plain, rel=1e-8)


def test_threads_do_not_move_a_prediction() -> None:
    X, y = problem(70, 30, 120)
    codes = (y > np.median(y)).astype(int)
    found = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            ridge = RidgePath().fit(X[:70], y[:70], X_val=X[70:], y_val=y[70:]).predict(X)
            logistic = LogisticPath().fit(X[:70], codes[:70], X_val=X[70:], y_val=codes[70:])
            found.append((ridge, logistic.predict_proba(X)))
    for ridge, probabilities in found[1:]:
        assert ridge == pytest.approx(found[0][0], rel=1e-6)
        assert probabilities == pytest.approx(found[0][1], abs=1e-6)


@pytest.mark.parametrize("estimator", [RidgePath(strengths=[1.0, 2.0]), LogisticPath(Cs=[0.1], patience=2)])
def test_estimators_follow_sklearns_conventions(estimator: RidgePath | LogisticPath) -> None:
    copy = clone(estimator)
    assert copy is not estimator and copy.get_params() == estimator.get_params()
    name = next(iter(copy.get_params()))
    assert copy.set_params(**{name: [3.0]}).get_params()[name] == [3.0]
    with pytest.raises(ValueError, match="no parameter 'nothing'"):
        copy.set_params(nothing=1)


def test_a_setting_moves_the_digest() -> None:
    digests = {protocol.name: protocol.digest for protocol in PROTOCOLS.values()}
    assert len(set(digests.values())) == len(PROTOCOLS)
    assert PROTOCOLS["ridge"].digest == digests["ridge"]
    assert RidgePath().settings() != RidgePath(strengths=STRENGTHS[1:]).settings()
    assert LogisticPath().settings() != LogisticPath(tolerance=1e-5).settings()
    assert PROTOCOLS["logreg"].settings["max_iter"] == LogisticPath().max_iter


def test_protocols_are_found_by_name_and_kind() -> None:
    assert get_protocol("ridge", kind="regression").name == "ridge"
    with pytest.raises(UnknownNameError, match="did you mean 'ridge'"):
        get_protocol("rigde")
    with pytest.raises(UnknownNameError, match="is for regression, and the task is classification; use logreg"):
        get_protocol("ridge", kind="classification")


def test_a_near_dead_column_does_not_throw_a_test_clip_far_out() -> None:
    """A column that hardly varies in train wakes up in one test row: the prediction stays possible."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((90, 40))
    y = 50 + 10 * X[:, 0]
    X[:, 7] = 1e-6 * y + 1e-7 * rng.standard_normal(90)
    X[85, 7] = 2.0
    predicted = RidgePath().fit(X[:50], y[:50], X_val=X[50:70], y_val=y[50:70]).predict(X[70:])
    assert abs(predicted[15] - y[85]) < 15
    assert np.abs(np.delete(predicted - y[70:], 15)).max() < 5
