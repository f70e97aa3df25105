from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedstore import Manifest
from embedstore.errors import MissingVectorsError, UnknownNameError, VectorError
from evaltools import features
from evaltools.cohort import build_cohort
from evaltools.features import POOLS, locate, pool_vectors, refuse_missing, require_pool
from evaltools.task import get_task

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
LVEF = get_task("lvef")


def test_vectors_are_joined_by_id_not_by_row(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(10)
    cohort, source = build_cohort(manifest, LVEF), make_source(manifest)
    located = locate(source, cohort, pool="clip")
    assert located.present.all()
    ids = source.index.column("clip_id").to_pylist()
    assert [ids[row] for row in located.rows] == cohort.clip_ids.tolist()
    assert ids != cohort.clip_ids.tolist()
    X = pool_vectors(source, located.rows, pool="clip")
    assert X.dtype == np.float64 and np.array_equal(X, source.clips[located.rows].astype(np.float64))


@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 27])
@pytest.mark.parametrize("pool", ["mean", "meanstd", "max"])
def test_pooled_frames_are_those_of_a_plain_loop(
    make_manifest: MakeManifest, make_source: Make, monkeypatch: pytest.MonkeyPatch, pool: str, block_bytes: int
) -> None:
    monkeypatch.setattr(features, "_BLOCK_BYTES", block_bytes)
    manifest = make_manifest(10)
    source = make_source(manifest)
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 6, len(source.clips))  # clips of differing length
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    source.frames = rng.normal(size=(counts.sum(), 5)).astype(np.float32)
    for name, values in (("frame_row", first), ("n_frame_rows", counts)):
        at = source.index.column_names.index(name)
        source.index = source.index.set_column(at, name, pa.array(values))
    rows = rng.permutation(len(counts))[:17]
    looped = []
    for row in rows:
        own = source.frames[first[row] : first[row] + counts[row]].astype(np.float64)
        looped.append({"mean": own.mean(axis=0), "max": own.max(axis=0),
                       "meanstd": np.concatenate([own.mean(axis=0), own.std(axis=0)])}[pool])  # fmt: skip
    assert pool_vectors(source, rows, pool=pool) == pytest.approx(np.array(looped), rel=1e-6, abs=1e-7)


def test_missing_vectors_are_counted_by_reason_and_refused(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(10)
    cohort = build_cohort(manifest, LVEF)
    source = make_source(manifest, drop=("p000-A4C", "p001-PLAX"))
    source.failures = pa.table({"clip_id": ["p001-PLAX"], "reason": ["corrupt"]})
    at = source.index.column("clip_id").to_pylist().index("p002-A2C")
    content = source.index.column("content_sha256").to_pylist()
    content[at] = "f" * 64
    source.index = source.index.set_column(1, "content_sha256", pa.array(content))
    located = locate(source, cohort, pool="clip")
    assert located.reasons == {"not built": 1, "failed: corrupt": 1, "built from other content": 1}
    assert sorted(cohort.clip_ids[~located.present]) == ["p000-A4C", "p001-PLAX", "p002-A2C"]
    with pytest.raises(
        MissingVectorsError, match="3 of 30 labelled clips of 'toy' have no vectors of toy-encoder"
    ) as no:
        refuse_missing(source, cohort, located)
    assert "--allow-missing" in str(no.value) and "p000-A4C" in str(no.value) and no.value.exit_code == 4


def test_content_that_is_not_known_is_no_reason_to_refuse(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(10, change=lambda rows: [row.update(sha256=None) for row in rows])
    source = make_source(manifest)
    assert locate(source, build_cohort(manifest, LVEF), pool="clip").present.all()


def test_frames_are_needed_only_where_they_are_pooled(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(10)
    cohort, source = build_cohort(manifest, LVEF), make_source(manifest)
    source.frames = None
    assert locate(source, cohort, pool="clip").present.all()
    with pytest.raises(MissingVectorsError, match="holds no frame vectors to pool by 'meanstd'"):
        locate(source, cohort, pool="meanstd")


def test_a_clip_without_frame_rows_is_missing_for_frame_pooling(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(10)
    cohort, source = build_cohort(manifest, LVEF), make_source(manifest)
    counts = source.index.column("n_frame_rows").to_pylist()
    counts[3] = 0
    source.index = source.index.set_column(3, "n_frame_rows", pa.array(counts))
    assert locate(source, cohort, pool="clip").present.all()
    assert locate(source, cohort, pool="mean").reasons == {"no frame vectors": 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("pool", list(POOLS))
def test_vectors_that_are_not_finite_are_refused(
    make_manifest: MakeManifest, make_source: Make, bad: float, pool: str
) -> None:
    source = make_source(make_manifest(10))
    source.clips[4, 2] = bad
    source.frames[4 * 4, 2] = bad
    name = source.index.column("clip_id").to_pylist()[4]
    with (
        pytest.raises(VectorError, match=f"1 vectors of toy-encoder on toy are not finite .{name}"),
        np.errstate(invalid="ignore"),
    ):
        pool_vectors(source, np.arange(len(source.clips)), pool=pool)


def test_poolings_are_known_by_name() -> None:
    assert require_pool("meanstd") == "meanstd"
    with pytest.raises(UnknownNameError, match="unknown pooling 'meanst'; did you mean 'meanstd'"):
        require_pool("meanst")
