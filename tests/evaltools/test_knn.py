from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid

from embedstore import Manifest
from embedstore.errors import UnknownNameError, VectorError
from evaltools.closeness import Space
from evaltools.cohort import NotRunnableError
from evaltools.knn import KNN_PROTOCOLS, KnnOptions, knn_manifest, knn_protocols
from evaltools.metrics import classification_metrics, regression_metrics
from evaltools.protocols.knn import NearestNeighbours, SplitClips
from evaltools.protocols.simpleshot import SimpleShot
from evaltools.task import get_task, label_task

LVEF, VIEW = get_task("lvef"), get_task("view")
MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def _split(seed: int, *, classes: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(190, 8))
    y = X @ rng.normal(size=8) + 0.1 * rng.normal(size=190)
    if classes:
        y = np.digitize(y, np.quantile(y, np.linspace(0, 1, classes + 1)[1:-1]))
    return X[:100], y[:100], X[100:140], y[100:140], X[140:], y[140:]


@pytest.mark.parametrize(("metric", "normalize"), [("cosine", True), ("l2", False)])
def test_classification_is_that_of_scikit_learn(metric: str, normalize: bool) -> None:
    X, y, X_val, y_val, X_test, _ = _split(0, classes=3)
    space = Space(metric, normalize)
    probe = NearestNeighbours(ks=(7, 3, 11), space=space).fit(X, y, X_val=X_val, y_val=y_val)
    scores = []
    for k in (3, 7, 11):
        plain = KNeighborsClassifier(k, metric="cosine" if metric == "cosine" else "euclidean")
        scores.append(plain.fit(X, y).score(X_val, y_val))
    assert (
        probe.validation_score_[:, 0] == pytest.approx(scores) and probe.k_[0] == (3, 7, 11)[int(np.argmax(scores))]
    )
    both = np.concatenate([X, X_val]), np.concatenate([y, y_val])
    plain = KNeighborsClassifier(int(probe.k_[0]), metric="cosine" if metric == "cosine" else "euclidean").fit(*both)
    assert probe.predict_scored(X_test) == pytest.approx(plain.predict_proba(X_test))


@pytest.mark.parametrize(("metric", "name"), [("cosine", "cosine"), ("l2", "euclidean")])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_regression_is_that_of_scikit_learn(metric: str, name: str, weights: str) -> None:
    X, y, X_val, y_val, X_test, _ = _split(1)
    space = Space(metric, metric == "cosine")
    probe = NearestNeighbours(kind="regression", ks=(1, 4, 9), space=space, weights=weights, gallery="train")
    probe.fit(X, y, X_val=X_val, y_val=y_val)
    plains = [KNeighborsRegressor(k, metric=name, weights=weights).fit(X, y) for k in (1, 4, 9)]
    errors = [np.mean((plain.predict(X_val) - y_val) ** 2) for plain in plains]
    assert probe.validation_score_[:, 0] == pytest.approx(errors)
    assert probe.predict(X_test) == pytest.approx(plains[int(np.argmin(errors))].predict(X_test))


def test_dinov2_votes_are_its_softmax_over_the_largest_k_then_cut_off() -> None:
    X, y, X_val, y_val, X_test, _ = _split(2, classes=4)
    probe = NearestNeighbours(ks=(10, 20, 100, 200), weights="softmax", gallery="train")
    probe.fit(X, y, X_val=X_val, y_val=y_val)
    assert probe.ks_.tolist() == [10, 20, 100]  # k <= n
    unit, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X, X_test))
    similarity = asked @ unit.T
    nearest = np.argsort(-similarity, axis=1)[:, :100]
    top = np.take_along_axis(similarity, nearest, axis=1) / 0.07
    weights = np.exp(top - top.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    k = int(probe.k_[0])
    votes = np.stack([(weights[:, :k] * (y[nearest[:, :k]] == code)).sum(axis=1) for code in range(4)], axis=1)
    shares = votes / votes.sum(axis=1, keepdims=True)
    assert probe.predict_scored(X_test) == pytest.approx(shares, abs=1e-6)


def test_many_targets_are_fits_of_their_own() -> None:
    for kind, classes in (("classification", 3), ("regression", 0)):
        X, y, X_val, y_val, X_test, _ = _split(3, classes=classes)
        rng = np.random.default_rng(0)
        order, order_val = rng.permutation(100), rng.permutation(40)
        many = np.stack([y, y[order]], axis=1), np.stack([y_val, y_val[order_val]], axis=1)
        probe = NearestNeighbours(kind=kind, ks=(1, 5, 25)).fit(X, many[0], X_val=X_val, y_val=many[1])
        together = probe.predict_scored(X_test)
        for at in range(2):
            alone = clone(probe).fit(X, many[0][:, at], X_val=X_val, y_val=many[1][:, at])
            assert together[:, at] == pytest.approx(alone.predict_scored(X_test)) and alone.k_[0] == probe.k_[at]


def test_the_own_patient_is_never_a_neighbour() -> None:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(60, 5))
    y = np.arange(60.0)
    names = {"train": X, "val": X[:10], "test": X[10:30]}
    ids = {split: np.array([f"{split}{row}" for row in range(len(rows))], object) for split, rows in names.items()}
    whose = {
        "train": np.array([f"p{row}" for row in range(60)], object),
        "val": np.array([f"p{row}" for row in range(10)], object),
        "test": np.array([f"p{row}" for row in range(10, 30)], object),
    }
    how: dict[str, Any] = {"kind": "regression", "ks": (1,), "gallery": "train"}
    leaky = NearestNeighbours(**how).fit(X, y, X_val=X[:10], y_val=y[:10])
    assert leaky.predict(X[10:30]) == pytest.approx(y[10:30])
    safe = NearestNeighbours(**how, clips=SplitClips(ids, whose)).fit(X, y, X_val=X[:10], y_val=y[:10])
    assert not (safe.predict(X[10:30]) == y[10:30]).any()
    assert "clips" not in safe.settings()


def test_simpleshot_with_every_clip_is_the_nearest_centroid() -> None:
    rng = np.random.default_rng(5)
    y = np.repeat(np.arange(3), 16)
    X = rng.normal(size=(48, 6)) + 4 * np.eye(3)[y] @ rng.normal(size=(3, 6)) / 3 + 10
    test = rng.normal(size=(30, 6)) + 10
    for centre in ("train", "support"):  # with every clip drawn they are the same
        shares = SimpleShot(n_shots=16, n_draws=30, centre=centre).fit(X, y, X_val=X[:0], y_val=y[:0])
        away, seen = X - X.mean(axis=0), test - X.mean(axis=0)
        unit = away / np.linalg.norm(away, axis=1, keepdims=True)
        plain = NearestCentroid().fit(unit, y).predict(seen / np.linalg.norm(seen, axis=1, keepdims=True))
        assert shares.predict_scored(test) == pytest.approx(np.eye(3)[plain])


@pytest.mark.parametrize("centre", ["train", "support"])
def test_simpleshot_draws_are_those_of_one_draw_at_a_time(centre: str) -> None:
    rng = np.random.default_rng(6)
    y = np.tile(np.arange(3), 20)
    X, test = rng.normal(size=(60, 5)) + y[:, None], rng.normal(size=(25, 5)) + 1
    probe = SimpleShot(n_shots=4, n_draws=50, centre=centre, seed=9).fit(X, y, X_val=X[:0], y_val=y[:0])
    support = probe._draw(y, 50, np.random.default_rng(9))
    shares = np.zeros((25, 3))
    for draw in support:
        assert all(len(set(rows)) == 4 and (y[rows] == code).all() for code, rows in enumerate(draw))
        mean = X.mean(axis=0) if centre == "train" else X[draw.ravel()].mean(axis=0)
        unit = (X[draw] - mean) / np.linalg.norm(X[draw] - mean, axis=2, keepdims=True)
        seen = (test - mean) / np.linalg.norm(test - mean, axis=1, keepdims=True)
        away = np.linalg.norm(seen[:, None] - unit.mean(axis=1), axis=2)
        shares[np.arange(25), away.argmin(axis=1)] += 1 / 50
    assert probe.predict_scored(test) == pytest.approx(shares)


def _run(manifest: Manifest, source: Any, task: Any, **options: Any) -> list[Any]:
    return knn_manifest([source], manifest, task=task, options=KnnOptions(**{"draws": 100, **options}))


def test_planted_views_are_found_and_controls_are_at_chance(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    (result,) = _run(manifest, make_source(manifest), VIEW)
    assert result.protocol == "knn" and not result.is_primary and result.chosen["k"] in KNN_KS
    assert result.metrics["balanced_accuracy"].ci_low > 0.85
    for name in ("shuffled", "random", "mean"):
        assert result.controls[name]["balanced_accuracy"].value == pytest.approx(1 / 3, abs=0.17)
    scored = result.predictions
    codes = [scored.classes.index(name) for name in scored.y_true]
    plain = classification_metrics(codes, scored.probabilities)
    assert {name: of.value for name, of in result.metrics.items()} == pytest.approx(
        {name: plain[name] for name in VIEW.metrics}
    )
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["protocol_digest"] == KNN_PROTOCOLS["knn"].digest and set(document["controls"]) == {
        *("mean", "shuffled", "random", "metadata")
    }


KNN_KS = (1, 3, 5, 7, 9, 11, 15, 21)


def test_a_planted_angle_is_found_by_regression(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(80)
    source = make_source(manifest)
    truth = dict(zip(manifest.clip_ids, manifest.column("lvef_pct"), strict=True))
    angle = np.array([truth[clip] for clip in source.index.column("clip_id").to_pylist()]) / 40
    noise = np.random.default_rng(0).normal(0, 0.03, (len(angle), 2))
    source.clips = np.stack([np.cos(angle), np.sin(angle)], axis=1) + noise
    for protocol in ("knn", "dinov2-knn"):
        (result,) = _run(manifest, source, LVEF, protocol=protocol)
        assert result.metrics["r2"].value > 0.9 and result.p_shuffled == pytest.approx(1 / 201)
        for name in ("random", "shuffled", "metadata"):
            assert result.controls[name]["r2"].value < 0.2
    (length,) = _run(manifest, source, LVEF, ks=(1, 5, 15), metric="l2", normalize=False)
    assert length.metrics["r2"].value > 0.9 and length.protocol == "knn+k=1,5,15+metric=l2+normalize=no"
    scored = length.predictions
    plain = regression_metrics(scored.y_true, scored.y_pred)
    assert {name: of.value for name, of in length.metrics.items()} == pytest.approx(plain)


def test_simpleshot_has_a_result_for_each_number_of_shots(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    results = _run(manifest, make_source(manifest), VIEW, protocol="simpleshot")
    assert [one.protocol for one in results] == [f"simpleshot+shots={n}" for n in (1, 2, 4, 8, 16)]
    values = [one.metrics["balanced_accuracy"].value for one in results]
    assert values[0] > 0.5 and values == sorted(values)
    last = results[-1]
    shares, truth = last.predictions.probabilities, last.predictions.y_true
    right = np.array([row[last.predictions.classes.index(name)] for row, name in zip(shares, truth, strict=True)])
    assert last.metrics["accuracy"].value == pytest.approx(right.mean())
    means = [right[truth == name].mean() for name in last.predictions.classes]
    assert last.metrics["balanced_accuracy"].value == pytest.approx(np.mean(means))
    assert last.metrics["auroc"].value is None and last.metrics["balanced_accuracy"].ci_low is not None
    assert last.controls["shuffled"]["balanced_accuracy"].value == pytest.approx(1 / 3, abs=0.07)
    assert last.chosen == {"n_shots": 16, "n_draws": 1000, "centre": "train"}


def test_the_order_of_clips_and_an_encoder_beside_it_move_no_number(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(40)
    shuffled = make_manifest(40, change=lambda rows: rows.reverse())
    source, other = make_source(manifest), make_source(manifest, name="other", seed=5)
    options = KnnOptions(draws=50)
    (one,) = knn_manifest([source], manifest, task=VIEW, options=options)
    _, beside = knn_manifest([other, source], shuffled, task=VIEW, options=options)
    first, second = one.to_dict(), beside.to_dict()
    assert first["metrics"] == second["metrics"] and first["controls"] == second["controls"]


def test_options_stand_in_the_name() -> None:
    def name(**options: Any) -> str:
        given = KnnOptions(**options)
        return knn_protocols(given.protocol or "knn", kind="classification", options=given)[0].name

    assert name(ks=(9, 5), metric="l2") == "knn+k=5,9+metric=l2" and name(metric="cosine", normalize=True) == "knn"
    assert name(protocol="dinov2-knn", normalize=False) == "dinov2-knn+normalize=no"
    assert name(settings=("k=9,5", "metric=l2")) == "knn+k=5,9+metric=l2"
    assert name(settings=("normalize=false", "temperature=0.1"), protocol="dinov2-knn") == (
        "dinov2-knn+normalize=no+temperature=0.1"
    )
    assert name(settings=("shots=4", "n_draws=50"), protocol="simpleshot") == "simpleshot+shots=4+n_draws=50"
    digests = {protocol.digest for protocol in KNN_PROTOCOLS.values()}
    assert len(digests) == 3
    plain = KNN_PROTOCOLS["dinov2-knn"].settings["classification"]
    assert plain["ks"] == [10, 20, 100, 200] and plain["temperature"] == 0.07 and plain["gallery"] == "train"


def test_a_setting_is_what_its_option_is(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    source = make_source(manifest)
    (option,) = _run(manifest, source, VIEW, ks=(5,), metric="l2")
    (setting,) = _run(manifest, source, VIEW, settings=("k=5", "metric=l2"))
    assert setting.to_dict() == option.to_dict()
    (weighed,) = _run(manifest, source, LVEF, settings=("weights=uniform", "n_shuffles=3"))
    (plain,) = _run(manifest, source, LVEF)
    assert weighed.protocol == "knn+weights=uniform+n_shuffles=3" and weighed.n_shuffles == 3
    assert weighed.provenance.protocol != plain.provenance.protocol
    assert weighed.metrics["mae"].value != plain.metrics["mae"].value


def test_folds_keep_patients_apart(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    (result,) = _run(manifest, make_source(manifest), VIEW, cv="4")
    assert result.counts.n_scored == len(manifest) and result.metrics["balanced_accuracy"].value > 0.85


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"ks": (500,)}, NotRunnableError, "k is 500 at least, and only 72 training clips"),
        ({"ks": (2,)}, NotRunnableError, "k is 2 at most for 3 classes"),
        ({"protocol": "dino-knn"}, UnknownNameError, "did you mean 'dinov2-knn'"),
        ({"shots": (4,)}, UnknownNameError, "--shots is for simpleshot"),
        ({"protocol": "simpleshot", "shots": (30,)}, NotRunnableError, "30 shots need as many training clips"),
        ({"protocol": "simpleshot", "shots": (0,)}, UnknownNameError, "must be 1 or more"),
        ({"protocol": "simpleshot", "ks": (3,)}, UnknownNameError, "simpleshot has no k"),
        ({"settings": ("k=0",)}, UnknownNameError, "preset 'knn': k must be whole numbers above zero, not '0'"),
        ({"settings": ("kk=3",)}, UnknownNameError, "preset 'knn' has no setting 'kk'; did you mean 'k'"),
        ({"settings": ("n_draws=3",)}, UnknownNameError, "preset 'knn' has no setting 'n_draws'"),
        ({"settings": ("metric",)}, UnknownNameError, "a setting is changed by KEY=VALUE, not 'metric'"),
        ({"metric": "cosin"}, UnknownNameError, "unknown metric 'cosin'"),
        ({"where": "split != val"}, NotRunnableError, "needed to choose k"),
        ({"where": "view == A4C"}, NotRunnableError, "one class only"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    make_manifest: MakeManifest, make_source: Make, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    manifest = make_manifest(60)
    with pytest.raises(error, match=says):
        _run(manifest, make_source(manifest), VIEW, **options)


def test_presets_refuse_what_they_cannot_measure(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(30)
    source = make_source(manifest)
    with pytest.raises(UnknownNameError, match="'simpleshot' is for classification"):
        _run(manifest, source, LVEF, protocol="simpleshot")
    with pytest.raises(NotRunnableError, match="inner product is no distance"):
        _run(manifest, source, LVEF, normalize=False)
    ranked = label_task("view", kind="classification").model_copy(update={"main_metric": "auroc"})
    with pytest.raises(UnknownNameError, match="the main metric of 'view' is auroc"):
        _run(manifest, source, ranked, protocol="simpleshot")
    source.clips[3] = np.nan
    with pytest.raises(VectorError, match="not finite"):
        _run(manifest, source, VIEW)
