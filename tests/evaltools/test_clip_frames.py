from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest
from embedstore.errors import MissingVectorsError, VectorError
from evaltools.clip_frames import ClipFrames, FramePool, clip_vectors, join_features
from evaltools.features import POOLS, locate, pool_vectors
from evaltools.task import get_task

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def ragged(n: int = 9, dims: int = 3, seed: int = 0, most: int = 6) -> ClipFrames:
    """Clips of different numbers of frames, in another order than their vectors."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most + 1, n)
    order = rng.permutation(n)
    first = np.cumsum(counts) - counts
    values = rng.normal(2.0, 3.0, size=(int(counts.sum()), dims)).astype(np.float16)
    return ClipFrames(values, first[order], counts[order])


def each(frames: ClipFrames) -> list[np.ndarray]:
    return [
        frames.values[first : first + count].astype(np.float64)
        for first, count in zip(frames.first, frames.counts, strict=True)
    ]


def test_clips_are_taken_as_rows_are() -> None:
    frames = ragged()
    assert frames.shape == (9, 3) and len(frames) == 9 and frames.size == 27
    mask = np.arange(9) % 2 == 0
    for taken, wanted in ((np.array([4, 1]), [4, 1]), (mask, [0, 2, 4, 6, 8]), (slice(2, 4), [2, 3])):
        part = frames[taken]
        assert part.values is frames.values
        for found, of in zip(each(part), wanted, strict=True):
            assert (found == each(frames)[of]).all()


def test_padding_holds_every_frame_and_is_masked() -> None:
    frames = ragged()
    padded, is_frame = frames.padded()
    assert padded.shape == (9, int(frames.counts.max()), 3) and padded.dtype == np.float32
    assert is_frame.sum(axis=1).tolist() == frames.counts.tolist()
    for clip, vectors in enumerate(each(frames)):
        assert (padded[clip, : len(vectors)] == vectors).all() and is_frame[clip, : len(vectors)].all()
        assert not padded[clip, len(vectors) :].any()


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_sums_are_those_of_clip_after_clip(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = ragged(30)
    monkeypatch.setattr(ClipFrames.blocks, "__defaults__", (most,))
    assert [one for block in frames.blocks() for one in range(30)[block]] == list(range(30))
    assert frames.means() == pytest.approx(np.stack([vectors.mean(axis=0) for vectors in each(frames)]))
    mean, deviation = frames[:20].moments()
    stacked = np.concatenate(each(frames[:20]))
    assert mean == pytest.approx(stacked.mean(axis=0)) and deviation == pytest.approx(stacked.std(axis=0))
    frames.values[frames.first[5]] = np.nan
    assert np.flatnonzero(~frames.finite()).tolist() == [5]


def test_joined_clips_are_those_of_the_parts_and_noise_has_their_frames() -> None:
    parts = [ragged(4), ragged(5, seed=1)]
    joined = join_features(parts)
    for found, wanted in zip(each(joined), [*each(parts[0]), *each(parts[1])], strict=True):
        assert (found == wanted).all()
    assert join_features([np.zeros((2, 3)), np.ones((1, 3))]).shape == (3, 3)
    noise = parts[0].noise(seed=3)
    assert noise.counts.tolist() == parts[0].counts.tolist() and noise.values.shape == (parts[0].counts.sum(), 3)
    assert (noise.values == parts[0].noise(seed=3).values).all() and noise.values.std() == pytest.approx(1, abs=0.3)


def test_rows_are_clips_of_one_frame() -> None:
    X = np.arange(6.0).reshape(3, 2)
    frames = ClipFrames.of(X)
    assert frames.counts.tolist() == [1, 1, 1] and (frames.means() == X).all() and ClipFrames.of(frames) is frames
    assert clip_vectors(X) is X and (clip_vectors(frames) == X).all()


def test_long_clips_are_thinned_evenly_from_first_to_last() -> None:
    stored = np.arange(20.0)[:, None]
    read = FramePool(max_frames=4).read(stored, np.array([10, 0, 3]), np.array([10, 3, 4]), dtype="float16")
    assert read.values.dtype == np.float16
    assert [vectors[:, 0].tolist() for vectors in each(read)] == [[10, 13, 16, 19], [0, 1, 2], [3, 4, 5, 6]]
    (one,) = each(FramePool(max_frames=1).read(stored, np.array([2]), np.array([5]), dtype="float32"))
    assert one[:, 0].tolist() == [2]


def test_frames_of_a_set_are_found_by_clip(make_manifest: MakeManifest, make_source: Make) -> None:
    from evaltools.cohort import build_cohort

    manifest = make_manifest(10)
    source = make_source(manifest)
    cohort = build_cohort(manifest, get_task("lvef"))
    rows = locate(source, cohort, pool="frames").rows
    read = pool_vectors(source, rows, pool="frames")
    assert "frames" not in POOLS and read.means() == pytest.approx(source.clips[rows], abs=1e-2)
    source.frames[int(source.index.column("frame_row").to_numpy()[rows[3]])] = np.inf
    with pytest.raises(VectorError, match=rf"1 vectors .* not finite \({cohort.clip_ids[3]}\)"):
        pool_vectors(source, rows, pool="frames")
    source.frames = None
    with pytest.raises(MissingVectorsError, match="holds no frame vectors to attend to; build it with frames, or"):
        locate(source, cohort, pool="frames")
