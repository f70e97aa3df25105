from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.fft import dct

from embedstore import Manifest
from embedstore.errors import ContentError, UnknownNameError
from evaltools.features import pool_vectors
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.task import get_task
from evaltools.temporal import TemporalPool

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def beat(hz: float, seconds: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A movement of 1 Hz and a slower one, sampled at a rate, (F, 2), with its times."""
    times = (np.arange(int(hz * seconds)) + 0.5) / hz
    return np.column_stack([3 + 2 * np.cos(2 * np.pi * times), np.cos(np.pi * times) - 1]), times


def pooled(frames: np.ndarray, times: np.ndarray, **settings: Any) -> np.ndarray:
    return TemporalPool(**settings)(frames, times, np.array([0]), np.array([len(times)]))[0].reshape(
        -1, frames.shape[1]
    )


def test_statistics_are_numpys_and_terms_are_those_of_a_dct() -> None:
    frames, times = beat(50, seconds=1.0)
    found = pooled(frames, times)
    for row, wanted in enumerate((frames.mean(axis=0), frames.std(axis=0), frames.min(axis=0), frames.max(axis=0))):
        assert found[row] == pytest.approx(wanted)
    # scipy's DCT-II counts from half a frame before the first.
    turned = TemporalPool()(frames, times - times[0], np.array([0]), np.array([50]))[0].reshape(-1, 2)
    assert turned == pytest.approx(found)
    terms = dct(frames - frames.mean(axis=0), axis=0, type=2)[1:5] / 50
    assert np.abs(found[4:] - terms).max() < 0.15


def test_the_rate_hardly_matters() -> None:
    slow, fast = (pooled(*beat(hz)) for hz in (25, 50))
    assert slow == pytest.approx(fast, abs=0.15)
    assert np.abs(slow[5, 0]) > 1.5 and np.abs(slow[[4, 7], 0]).max() < 0.3  # 1 Hz is in the term of 1 Hz


def test_frames_weigh_the_seconds_they_stand_for() -> None:
    values, times = np.array([[0.0], [0.0], [0.0], [6.0]]), np.array([0.0, 0.1, 0.2, 1.2])
    mean = pooled(values, times)[0, 0]
    assert mean == pytest.approx(6 * 1.0 / (0.1 + 0.1 + 0.55 + 1.0))


def test_clips_side_by_side_are_as_alone_and_one_frame_stands_still() -> None:
    parts = [beat(20), (np.array([[1.0, 2.0]]), np.array([7.0])), beat(30)]
    counts = np.array([len(times) for _, times in parts])
    together = TemporalPool()(
        np.concatenate([frames for frames, _ in parts]), np.concatenate([times for _, times in parts]),
        np.cumsum(counts) - counts, counts,
    )  # fmt: skip
    for row, (frames, times) in zip(together, parts, strict=True):
        assert row == pytest.approx(pooled(frames, times).ravel())
    assert together[1].reshape(-1, 2)[[0, 2, 3]].tolist() == [[1.0, 2.0]] * 3 and not together[1][2:4].any()


def test_motion_is_seen(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    options = ProbeOptions(protocol="temporal", draws=100, n_shuffles=5)
    (result,) = probe_manifest([make_source(manifest)], manifest, task=get_task("lvef"), options=options)
    assert result.pool == "temporal" and result.protocol == "temporal" and not result.is_primary
    assert result.dim == 8 * 12 and result.metrics["r2"].ci_low > 0.9
    (views,) = probe_manifest([make_source(manifest)], manifest, task=get_task("view"), options=options)
    assert views.metrics["balanced_accuracy"].value > 0.8
    with pytest.raises(UnknownNameError, match="pools by 'temporal', not by max"):
        probe_manifest(
            [make_source(manifest)], manifest, task=get_task("lvef"),
            options=ProbeOptions(protocol="temporal", pools=("max",)),
        )  # fmt: skip


class Slow:
    """A source whose frames stand further apart, or at unknown times."""

    def __init__(self, source: Any, step_s: float | None) -> None:
        self._source = source
        times = source.frame_index.column("time_s").to_numpy()
        moved = [None] * len(times) if step_s is None else times * 20 * step_s
        self.frame_index = pa.table({"time_s": pa.array(moved, pa.float64())})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def test_a_set_too_slow_for_a_beat_is_refused_unless_told(make_manifest: MakeManifest, make_source: Make) -> None:
    source = make_source(make_manifest(10))
    rows = np.arange(30)
    assert pool_vectors(Slow(source, 1 / 13), rows, pool="temporal").shape == (30, 96)
    with pytest.raises(ContentError, match=r"5\.0 Hz .* 30 of 30 clips are below 12 Hz.*--set min_hz=0"):
        pool_vectors(Slow(source, 0.2), rows, pool="temporal")
    assert pool_vectors(Slow(source, 0.2), rows, pool="temporal", settings={"min_hz": 0.0}).shape == (30, 96)
    with pytest.raises(ContentError, match="no times for 30 of 30 clips"):
        pool_vectors(Slow(source, None), rows, pool="temporal", settings={"min_hz": 0.0})
