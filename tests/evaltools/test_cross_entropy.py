"""The loss of logistic regression, against its definition; features in parts and in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.metrics import log_loss

from evaltools.protocols import cross_entropy
from evaltools.protocols.cross_entropy import CrossEntropy
from evaltools.protocols.row_space import RowSpace, gram_of


def problem(n: int, dims: int, classes: int, n_targets: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + dims)
    return rng.normal(size=(n, dims)) + 2.0, rng.integers(0, classes, (n, n_targets))


def coefficients(loss: CrossEntropy, space: RowSpace, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = theta.reshape(loss.shape) * loss.scale[:, None, None]
    return np.tensordot(space.basis, scaled[:-1], axes=1), scaled[-1]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "dims"), [(60, 7), (12, 30)])
def test_loss_and_gradient_are_those_of_the_definition(n: int, dims: int, classes: int, weighted: bool) -> None:
    X, y = problem(n, dims, classes)
    weights = np.random.default_rng(1).random((n, 1)) + 0.5 if weighted else None
    space = RowSpace.of(X)
    loss = CrossEntropy(space, y, n_classes=classes, row_weights=weights)
    loss.set_penalty(0.3)
    theta = 0.4 * np.random.default_rng(2).normal(size=loss.shape).ravel()
    coef, intercept = coefficients(loss, space, theta)
    logits = np.tensordot(X - X.mean(axis=0), coef, axes=1)[:, 0] + intercept[0]
    logits = np.column_stack([np.zeros(n), logits]) if classes == 2 else logits
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = None if weights is None else weights[:, 0]
    plain = log_loss(y[:, 0], shares, labels=range(classes), sample_weight=rows, normalize=False) / n
    assert loss(theta)[0] == pytest.approx(plain + 0.15 * np.sum(coef**2), rel=1e-12)
    assert check_grad(lambda at: loss(at)[0], lambda at: loss(at)[1], theta) < 1e-5


def test_parts_blocks_and_other_targets_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = problem(90, 8, 3, n_targets=2)
    together, parts = RowSpace.of(X), RowSpace.of(X[:70], X[70:], gram=gram_of(X[:70]))
    assert len(parts) == 90 and parts.eigenvalues == pytest.approx(together.eigenvalues)
    assert np.abs(together.on_axes()).sum(axis=0) == pytest.approx(np.abs(parts.on_axes()).sum(axis=0))
    whole = CrossEntropy(together, y, n_classes=3)
    theta = np.random.default_rng(3).normal(size=whole.shape)
    value, gradient = whole(theta.ravel())
    alone = [CrossEntropy(together, y[:, [of]], n_classes=3)(theta[:, of].ravel()) for of in (0, 1)]
    assert value == pytest.approx(sum(loss for loss, _ in alone))
    assert gradient.reshape(theta.shape)[:, 1] == pytest.approx(alone[1][1].reshape(theta.shape[0], -1))
    monkeypatch.setattr(cross_entropy, "_BLOCK_BYTES", 8)  # 64 rows a block
    blocks = CrossEntropy(together, y, n_classes=3)
    assert len(blocks._blocks) == 2 and blocks(theta.ravel())[0] == pytest.approx(value, rel=1e-12)
    assert blocks(theta.ravel())[1] == pytest.approx(gradient, rel=1e-9, abs=1e-12)


def test_fewer_rows_than_dimensions_are_turned_and_span_the_same() -> None:
    X, _ = problem(12, 30, 2)
    space = RowSpace.of(X)
    assert space.turn is None and space.basis.shape == (30, 11)  # the mean is taken off
    centred = X - X.mean(axis=0)
    assert space.on_axes() @ space.basis.T == pytest.approx(centred, abs=1e-9)
    assert space.eigenvalues == pytest.approx(np.sort(np.linalg.svd(centred)[1] ** 2)[1:])
