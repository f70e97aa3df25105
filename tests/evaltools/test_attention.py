from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from embedstore import Manifest
from embedstore.errors import MissingExtraError
from evaltools.clip_frames import ClipFrames
from evaltools.controls import shuffle_by_patient
from evaltools.curve import CurveOptions, curve_manifest
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.protocols import get_protocol
from evaltools.protocols.attention import FrameAttention, attend
from evaltools.protocols.base import Standardiser
from evaltools.protocols.ridge import RidgePath
from evaltools.task import get_task
from evaltools.transfer import transfer_manifests

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
QUICK = {"lr": [3e-3], "weight_decay": [0.01], "max_epochs": 60}


def planted(n: int, *, seed: int, dims: int = 12, most: int = 10) -> tuple[ClipFrames, np.ndarray]:
    """Every frame says a number in its second dimension; the one marked in the first says the truth."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(most // 2, most + 1, n)
    first = np.cumsum(counts) - counts
    values = rng.normal(size=(int(counts.sum()), dims)).astype(np.float32)
    truth = rng.normal(size=n)
    marked = first + rng.integers(0, counts)
    values[:, 1] *= 2
    values[marked, 0] += 6
    values[marked, 1] = 2 * truth
    return ClipFrames(values, first, counts), truth


def r2(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def straight_line(
    probe: FrameAttention, frames: ClipFrames, standardise: Standardiser, target: int = 0
) -> np.ndarray:
    """One clip, one head, one frame after the other."""
    said = []
    for first, count in zip(frames.first, frames.counts, strict=True):
        seen = standardise(frames.values[first : first + count].astype(np.float32))
        output = probe.bias_[0].copy()
        for query, readout in zip(probe.queries_[0], probe.readout_[0], strict=True):
            powers = [np.exp(query @ frame / np.sqrt(len(frame))) for frame in seen]
            mean = sum(power * frame for power, frame in zip(powers, seen, strict=True)) / sum(powers)
            output = output + readout @ mean
        said.append(output)
    return np.stack(said)


def test_what_one_frame_of_many_says_is_found_where_the_mean_hides_it() -> None:
    (X, y), (X_val, y_val), (X_test, y_test) = (planted(n, seed=n) for n in (300, 80, 200))
    probe = FrameAttention(**QUICK).fit(X, y, X_val=X_val, y_val=y_val)
    predicted = probe.predict_scored(X_test)
    means = RidgePath().fit(X.means(), y, X_val=X_val.means(), y_val=y_val).predict(X_test.means())
    assert r2(predicted, y_test) > 0.7 and r2(means, y_test) < 0.25
    standardise = Standardiser.of(
        np.concatenate([X.values[a : a + n] for a, n in zip(X.first, X.counts, strict=True)])
    )
    shown = straight_line(probe, X_test, standardise)[:, 0] * y.std() + y.mean()
    assert predicted == pytest.approx(shown, abs=1e-5)
    assert probe.chosen()["converged"] is False and probe.chosen()["gradient_norm"] > 0


def test_classes_and_targets_side_by_side_are_as_alone() -> None:
    (X, y), (X_val, y_val), (X_test, y_test) = (planted(n, seed=n) for n in (300, 80, 200))
    edges = [-0.5, 0.5]
    codes, codes_val, codes_test = (np.digitize(part, edges) for part in (y, y_val, y_test))
    other, other_val = codes[::-1].copy(), codes_val[::-1].copy()
    both = FrameAttention(task="classification", **QUICK).fit(
        X, np.column_stack([codes, other]), X_val=X_val, y_val=np.column_stack([codes_val, other_val])
    )
    shares = both.predict_scored(X_test)
    assert shares.shape == (200, 2, 3) and shares.sum(axis=2) == pytest.approx(1)
    assert (
        np.mean(shares[:, 0].argmax(axis=1) == codes_test)
        > 0.7
        > 0.5
        > np.mean(shares[:, 1].argmax(axis=1) == codes_test)
    )
    alone = FrameAttention(task="classification", **QUICK).fit(X, codes, X_val=X_val, y_val=codes_val)
    assert alone.predict_scored(X_test) == pytest.approx(shares[:, 0], abs=1e-3)
    assert clone(alone).get_params() == alone.get_params()


def test_padding_weighs_nothing() -> None:
    rng = np.random.default_rng(0)
    queries, readout, bias = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 4))
    frames = rng.normal(size=(6, 7, 5))
    is_frame = np.arange(7) < np.array([1, 2, 3, 5, 7, 7])[:, None]
    said = attend(frames, is_frame, queries, readout, bias)
    assert said.shape == (6, 2, 4)
    assert attend(np.where(is_frame[..., None], frames, 1e6), is_frame, queries, readout, bias) == pytest.approx(said)
    for clip, n in enumerate([1, 2, 3, 5, 7, 7]):
        cut = attend(frames[clip : clip + 1, :n], np.ones((1, n), np.bool_), queries, readout, bias)
        assert cut[0] == pytest.approx(said[clip])


def test_threads_change_nothing_and_are_left_as_they_were() -> None:
    import torch

    (X, y), (X_val, y_val) = planted(80, seed=1), planted(40, seed=2)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(FrameAttention(max_epochs=3).fit(X, y, X_val=X_val, y_val=y_val).predict_scored(X_val))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


@pytest.mark.parametrize("seed", range(3))
def test_chance_on_random_vectors_and_on_shuffled_labels(seed: int) -> None:
    (X, y), (X_val, y_val), (X_test, y_test) = (planted(n, seed=100 * seed + n) for n in (200, 60, 300))
    noise = [frames.noise(seed=at) for at, frames in enumerate((X, X_val, X_test))]
    probe = FrameAttention(**QUICK).fit(noise[0], y, X_val=noise[1], y_val=y_val)
    assert r2(probe.predict_scored(noise[2]), y_test) < 0.03
    rng = np.random.default_rng(seed)
    mixed, mixed_val = (shuffle_by_patient(part, np.arange(len(part)), rng) for part in (y, y_val))
    probe = FrameAttention(**QUICK).fit(X, mixed, X_val=X_val, y_val=mixed_val)
    assert r2(probe.predict_scored(X_test), y_test) < 0.03


def test_it_probes_as_other_presets_do(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    source = make_source(manifest)
    quick = ("lr=0.003", "weight_decay=0.01", "max_epochs=20")
    options = ProbeOptions(protocol="frame-attentive", settings=quick, draws=50, n_shuffles=2)
    (result,) = probe_manifest([source], manifest, task=get_task("view"), options=options)
    assert result.protocol == "frame-attentive+lr=0.003+weight_decay=0.01+max_epochs=20" and result.pool == "frames"
    assert result.metrics["balanced_accuracy"].value > 0.9 and result.dim == 12 and not result.is_primary
    assert result.chosen["lr"] == 0.003 and result.chosen["converged"] is False
    assert any("stops before it has converged (gradient norm" in note for note in result.provenance.notes)
    assert {"mean", "shuffled", "random", "metadata"} == set(result.controls)
    assert result.controls["random"]["balanced_accuracy"].value < 0.6
    (again,) = probe_manifest([source], manifest, task=get_task("view"), options=options)
    assert (again.predictions.probabilities == result.predictions.probabilities).all()
    bare = ProbeOptions(protocol="frame-attentive", settings=quick, draws=0, controls=False, cv="3")
    (folded,) = probe_manifest([source], manifest, task=get_task("view"), options=bare)
    assert folded.metrics["balanced_accuracy"].value > 0.9
    few = ProbeOptions(protocol="frame-attentive", settings=quick, draws=0, controls=False)
    points = curve_manifest(
        [source], manifest, task=get_task("view"), options=CurveOptions(fractions=(0.3, 1.0), repeats=1, probe=few)
    )
    assert [point.axis["fraction"] for point in points] == [0.3, 1.0]
    assert points[1].metrics["balanced_accuracy"].value == result.metrics["balanced_accuracy"].value
    other = make_manifest(60, name="there", seed=5)  # as many rows, so that its vectors mean the same
    (moved,) = transfer_manifests([(source, make_source(other))], manifest, other, task=get_task("view"), options=few)
    assert moved.metrics["balanced_accuracy"].value > 0.9


def test_without_torch_it_is_listed_and_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "encoders.frame_attention", raising=False)
    protocol = get_protocol("frame-attentive", kind="regression")
    assert json.dumps(protocol.settings) and protocol.settings["pool"]["max_frames"] == 64
    X, y = planted(40, seed=0)
    with pytest.raises(MissingExtraError, match=r"needs the package torch.*install 'embedstore\[build\]'$") as raised:
        protocol.make("regression").fit(X, y, X_val=X, y_val=y)
    assert raised.value.exit_code == 1 and "\n" not in str(raised.value)
