from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from evaltools.protocols import get_protocol
from evaltools.protocols.logistic import LogisticPath
from evaltools.protocols.ridge import RidgePath
from evaltools.protocols.sampled import SampledLogistic, SampledRidge


def _rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    return X, X @ np.arange(6) + rng.normal(size=n)


def test_it_is_the_path_on_the_drawn_rows_and_nothing_else() -> None:
    (X, y), (X_val, y_val), (X_test, _) = _rows(900, 0), _rows(300, 1), _rows(50, 2)
    probe = SampledRidge(seed=4).fit(X, y, X_val=X_val, y_val=y_val)
    rng = np.random.default_rng(4)
    train, val = np.sort(rng.permutation(900)[:800]), np.sort(rng.permutation(300)[:200])
    plain = RidgePath().fit(X[train], y[train], X_val=X_val[val], y_val=y_val[val])
    assert probe.chosen()["n_drawn"] == [800, 200]
    assert probe.predict(X_test) == pytest.approx(plain.predict(X_test))
    fewer = SampledRidge().fit(X[:80], y[:80], X_val=X_val[:20], y_val=y_val[:20])
    assert fewer.predict(X_test) == pytest.approx(
        RidgePath().fit(X[:80], y[:80], X_val=X_val[:20], y_val=y_val[:20]).predict(X_test)
    )
    assert clone(SampledRidge(n_train=5)).get_params() == {"n_train": 5, "n_val": 200, "seed": 0}


def test_no_class_is_lost() -> None:
    (X, values), (X_val, values_val) = _rows(900, 0), _rows(300, 1)
    y, y_val = (values > 0).astype(int), (values_val > 0).astype(int)
    order = np.random.default_rng(0).permutation(900)
    y[order[850]] = 2  # a class whose one row is not among the first 800 of the draw
    X[order[850]] += 10
    probe = SampledLogistic().fit(X, y, X_val=X_val, y_val=y_val)
    assert probe.chosen()["n_drawn"] == [801, 200] and probe.predict_scored(X_val).shape == (300, 3)
    assert isinstance(probe, LogisticPath)


def test_the_preset_says_what_it_is() -> None:
    protocol = get_protocol("vtab1k", kind="regression", settings=["n_train=400"])
    assert protocol.name == "vtab1k+n_train=400" and protocol.settings["regression"]["n_train"] == 400
    assert get_protocol("vtab1k").digest != protocol.digest
