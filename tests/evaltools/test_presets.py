from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from embedstore.errors import ContentError, FormatError, UnknownNameError
from evaltools.protocols import PROTOCOLS, LogisticPath, get_protocol
from evaltools.protocols.adamw_linear import AdamWLinear
from evaltools.protocols.fixed_logistic import FixedLogistic, NormLogistic
from evaltools.protocols.mlp import MlpProbe
from evaltools.protocols.peak import peak_grid


def problem(
    classes: int, *, n: int = 120, m: int = 60, dims: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = np.arange(n + m) % max(classes, 2)
    X = rng.normal(size=(n + m, dims)) + 1.0 + 0.8 * np.eye(max(classes, 2), dims)[codes]
    return X, codes if classes else 50 + 4 * X[:, 0] + rng.normal(size=n + m)


def sklearn_probabilities(X: np.ndarray, y: np.ndarray, new: np.ndarray, **settings: object) -> np.ndarray:
    return np.asarray(LogisticRegression(tol=1e-10, max_iter=100_000, **settings).fit(X, y).predict_proba(new))


@pytest.mark.parametrize("classes", [2, 3])
def test_dinov2s_choice_and_refit_are_sklearns_one_at_a_time(classes: int) -> None:
    X, y = problem(classes)
    ours = get_protocol("dinov2-logreg").make().fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:])
    assert isinstance(ours, LogisticPath)
    grid = 10.0 ** np.linspace(-6, 5, 45)
    assert ours.Cs_ == pytest.approx(grid)
    errors = []
    for C in grid[::4]:
        found = sklearn_probabilities(X[:120], y[:120], X[120:], C=C).argmax(axis=1)
        errors.append(np.mean(found != y[120:]))
    assert ours.validation_loss_[::4, 0] == pytest.approx(errors, abs=1 / 60 + 1e-9)
    theirs = sklearn_probabilities(X, y, X, C=ours.C_[0])
    assert ours.predict_proba(X) == pytest.approx(theirs, abs=1e-5)
    assert ours.C_[0] == grid[ours.validation_loss_[:, 0].argmin()]


def test_the_peak_search_tries_a_few_of_97_and_is_named() -> None:
    X, y = problem(3)
    peak = get_protocol("clip-logreg", settings=["search=peak"])
    assert peak.name == "clip-logreg+search=peak" and peak.digest != get_protocol("clip-logreg").digest
    assert get_protocol(peak.name).digest == peak.digest
    found = peak.make().fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:])
    assert len(found.Cs_) == 97 and 9 <= found.chosen()["tried"] <= 15
    tried = np.isfinite(found.validation_loss_[:, 0])
    assert found.validation_loss_[tried, 0].min() == found.validation_loss_[list(found.Cs_).index(found.C_[0]), 0]
    assert len(get_protocol("clip-logreg").make().Cs) == 96
    assert peak_grid(1e-6, 1e6)[[0, 8, -1]] == pytest.approx([1e-6, 1e-5, 1e6])


@pytest.mark.parametrize("C", [0.5, "adaptive"])
def test_pathobench_is_sklearns_balanced_regression(C: float | str) -> None:
    X, y = problem(3)
    keep = np.flatnonzero((y != 2) | (np.arange(180) % 4 == 0))
    X, y = X[keep], y[keep]
    name = "pathobench" if C == 0.5 else "pathobench-adaptive"
    ours = get_protocol(name).make().fit(X[:90], y[:90], X_val=X[90:], y_val=y[90:])
    theirs = sklearn_probabilities(X, y, X, C=0.5 if C == 0.5 else 10 * 3 / 100, class_weight="balanced")
    assert ours.predict_scored(X) == pytest.approx(theirs, abs=1e-5)
    assert ours.chosen()["converged"] and ours.chosen()["C"] == (0.5 if C == 0.5 else 0.3)


@pytest.mark.parametrize("classes", [2, 3])
def test_unis_norm_penalty_is_a_squared_one_of_another_strength(classes: int) -> None:
    """At the minimum the gradient of s ||W|| is that of s / ||W|| times half the squared norm."""
    X, y = problem(classes)
    ours = NormLogistic(C=15.0).fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:])
    norm = np.linalg.norm(ours.coef_[:, 0])
    strength = 0.5 / 15.0
    C = norm / (strength * 180)
    if classes == 2:  # two weight vectors +-w/2 cost half of what sklearn's one w costs
        C *= 2
    assert ours.chosen()["converged"]
    assert ours.predict_proba(X) == pytest.approx(sklearn_probabilities(X, y, X, C=C), abs=1e-4)
    adaptive = get_protocol("uni-logreg").make().fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:])
    assert adaptive.chosen()["C"] == pytest.approx(10 * classes / 100)


def straight_adamw(X: np.ndarray, y: np.ndarray, val: np.ndarray, y_val: np.ndarray, *, epochs: int) -> np.ndarray:
    """CardioBench's head for values as the facts have it, one step after the other, with nothing shared."""
    rng = np.random.default_rng(42)
    X, val = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (X, val))
    start = rng.uniform(-1 / np.sqrt(X.shape[1]), 1 / np.sqrt(X.shape[1]), (X.shape[1] + 1, 1, 1))[:, 0, 0]
    parameters = [start[:-1].copy(), start[-1:].copy()]
    first, second = [np.zeros_like(one) for one in parameters], [np.zeros_like(one) for one in parameters]
    best, kept, bar, waited, step = np.inf, parameters, np.inf, 0, 0
    for _ in range(epochs):
        order = rng.permutation(len(X))
        for at in range(len(X) // 64):
            rows = order[64 * at : 64 * at + 64]
            residual = 2 * (X[rows] @ parameters[0] + parameters[1] - y[rows]) / 64
            step += 1
            for which, gradient in enumerate((X[rows].T @ residual, residual.sum(keepdims=True))):
                parameters[which] = parameters[which] * (1 - 1e-4 * 1e-2)
                first[which] = 0.9 * first[which] + 0.1 * gradient
                second[which] = 0.999 * second[which] + 0.001 * gradient**2
                moved = first[which] / (1 - 0.9**step) / (np.sqrt(second[which] / (1 - 0.999**step)) + 1e-8)
                parameters[which] = parameters[which] - 1e-4 * moved
        loss = np.mean((val @ parameters[0] + parameters[1] - y_val) ** 2)
        if loss < best:
            best, kept = loss, [one.copy() for one in parameters]
        if loss < bar - 1e-3:
            bar, waited = loss, 0
        else:
            waited += 1
            if waited >= 20:
                break
    return val @ kept[0] + kept[1]


@pytest.mark.parametrize("offset", [50.0, 0.0])
def test_cardiobench_linear_is_the_straight_line_version(offset: float) -> None:
    X, y = problem(0, n=140)
    y = y - 50 + offset
    fitted = AdamWLinear(max_epochs=60).fit(X[:140], y[:140], X_val=X[140:], y_val=y[140:])
    wanted = straight_adamw(X[:140], y[:140], X[140:], y[140:], epochs=60)
    assert fitted.predict_scored(X[140:]) == pytest.approx(wanted, abs=1e-9)
    chosen = fitted.chosen()
    assert chosen["converged"] is False and chosen["gradient_norm"] > 0


def test_cardiobench_linear_stops_by_patience_and_learns_classes() -> None:
    X, y = problem(2, n=640)
    quick = AdamWLinear(task="classification", lr=0.02).fit(X[:640], y[:640], X_val=X[640:], y_val=y[640:])
    chosen = quick.chosen()
    assert chosen["stopped_by"] == "patience" and chosen["best_epoch"] < chosen["epochs"] < 1000
    assert np.mean(quick.predict_scored(X[640:]).argmax(axis=1) == y[640:]) > 0.6
    with pytest.raises(ContentError, match="needs at least 64 training clips, and there are 20"):
        AdamWLinear().fit(X[:20], y[:20], X_val=X[20:], y_val=y[20:])
    settings = get_protocol("cardiobench-linear").settings["regression"]
    expected = {"lr": 1e-4, "weight_decay": 1e-2, "batch_size": 64, "max_epochs": 1000, "patience": 20, "seed": 42}
    assert {name: settings[name] for name in expected} == expected and settings["min_delta"] == 1e-3


ESTIMATORS = [
    AdamWLinear(task="classification", max_epochs=15),
    AdamWLinear(task="regression", max_epochs=15),
    MlpProbe(task="classification", hidden=8, alphas=[0.1], lr=0.01),
    MlpProbe(task="regression", hidden=8, alphas=[0.1], lr=0.01),
    FixedLogistic(C=0.5, class_weight="balanced"),
    NormLogistic(),
    LogisticPath(search="peak", strict=False, standardise=False, choose_by="accuracy"),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda one: type(one).__name__)
def test_many_targets_are_fitted_as_each_alone_on_any_number_of_threads(estimator: object) -> None:
    regression = getattr(estimator, "task", "") == "regression"
    X, y = problem(0 if regression else 3)
    Y = np.column_stack([y, np.random.default_rng(1).permutation(y)])
    with threadpool_limits(4):
        together = clone(estimator).fit(X[:120], Y[:120], X_val=X[120:], y_val=Y[120:]).predict_scored(X)
    assert together.shape == ((180, 2) if regression else (180, 2, 3))
    with threadpool_limits(1):
        for target in range(2):
            own = clone(estimator).fit(X[:120], Y[:120, target], X_val=X[120:], y_val=Y[120:, target])
            assert together[:, target] == pytest.approx(own.predict_scored(X), abs=1e-6)
    if not regression:
        assert together.sum(axis=2) == pytest.approx(np.ones((180, 2)))


def test_the_perceptron_sees_what_no_line_does_and_says_when_it_was_cut_short() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 4))
    y = X[:, 0] * X[:, 1] * 5 + 50
    fitted = MlpProbe(hidden=32, alphas=[1e-4, 1.0], lr=0.01).fit(
        X[:300], y[:300], X_val=X[300:400], y_val=y[300:400]
    )
    predicted = fitted.predict_scored(X[400:])
    assert 1 - np.mean((predicted - y[400:]) ** 2) / y[400:].var() > 0.6
    assert fitted.chosen()["alpha"] == 1e-4
    with pytest.raises(ContentError, match="still getting better after 2 epochs"):
        MlpProbe(max_epochs=2).fit(X[:300], y[:300], X_val=X[300:400], y_val=y[300:400])


def test_a_published_preset_that_stops_early_says_so_and_ours_is_an_error() -> None:
    X, y = problem(3)
    short = get_protocol("dinov2-logreg", settings=["max_iter=2", "Cs=100000.0"])
    chosen = short.make().fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:]).chosen()
    assert chosen["converged"] is False and chosen["gradient_norm"] > 1e-7
    ours = get_protocol("logreg", settings=["max_iter=2", "Cs=1.0"])
    with pytest.raises(ContentError, match="did not converge"):
        ours.make().fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:])


def test_every_preset_has_a_digest_of_its_own_and_fits() -> None:
    assert len({protocol.digest for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)
    wanted = {"ridge", "logreg", "dinov2-logreg", "clip-logreg", "uni-logreg", "pathobench", "mlp", "temporal"}
    assert set(PROTOCOLS) >= {*wanted, "cardiobench-linear"} and list(PROTOCOLS)[:2] == ["ridge", "logreg"]
    for protocol in PROTOCOLS.values():
        assert protocol.to_dict()["summary"].endswith(".") and protocol.source
        for kind in protocol.kinds:
            assert protocol.make(kind).settings()["method"]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("ridge", "strength=1", "no setting 'strength'; did you mean 'strengths'"),
        ("ridge", "strengths=a", "list of numbers"),
        ("ridge", "strengths", "KEY=VALUE"),
        ("mlp", "hidden=0", "above zero"),
        ("logreg", "standardise=maybe", "true or false"),
        ("clip-logreg", "search=hill", "one of full, peak"),
        ("pathobench", "C=-1", "not negative"),
        ("pathobench", "C=0", "above 0"),
    ],
)
def test_a_change_that_does_not_fit_is_one_sentence(name: str, change: str, says: str) -> None:
    with pytest.raises(UnknownNameError, match=says):
        get_protocol(name, settings=[change])


def test_changes_are_typed_and_named() -> None:
    changed = get_protocol("ridge", settings=["strengths=1,10.0", "n_shuffles=7"])
    assert changed.name == "ridge+strengths=1,10.0+n_shuffles=7" and changed.n_shuffles == 7
    assert changed.settings["strengths"] == [1.0, 10.0]
    assert get_protocol("pathobench+C=1e+3").make().C == 1000.0
    assert get_protocol("temporal", settings=["min_hz=0"]).settings["pool"]["min_hz"] == 0.0
    both = get_protocol("cardiobench-linear", settings=["lr=0.01"])
    assert [both.make(kind).lr for kind in both.kinds] == [0.01, 0.01]


def test_a_preset_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nsummary: Mine.\nmethods:\n  classification:\n    estimator: logistic\n"
        "    settings: {Cs: {log10: [-2, 2, 5]}, choose_by: accuracy}\n"
    )
    mine = get_protocol(str(path), kind="classification", settings=["max_iter=50"])
    assert mine.name == "mine+max_iter=50" and mine.settings["Cs"] == pytest.approx([0.01, 0.1, 1, 10, 100])
    with pytest.raises(UnknownNameError, match="no preset file"):
        get_protocol(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\nsummary: X.\nmethods: {regression: {estimator: forest}}", "'forest' is none of ridge"),
        ("name: x\nsummary: X.\nmethods: {regression: {estimator: logistic}}", "not for regression"),
        (
            "name: x\nsummary: X.\nmethods: {regression: {estimator: ridge, settings: {alpha: 1}}}",
            "no setting 'alpha'",
        ),
        ("name: x\nsummary: X.\nmethods: {}", "methods"),
        ("name: x y\nsummary: X.\nmethods: {regression: {estimator: ridge}}", "name"),
        ("name: x\nsummary: X.\npool: mean\nmethods: {regression: {estimator: ridge}}", "pool 'mean'"),
        ("name: x\nsummary: X.\nmore: 1\nmethods: {regression: {estimator: ridge}}", "more"),
    ],
)
def test_a_preset_file_that_does_not_fit_names_the_field(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(FormatError, match=says):
        get_protocol(str(tmp_path / "x.yaml"))
