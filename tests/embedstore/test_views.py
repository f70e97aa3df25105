"""Plain views of a set: a sequence for torch's DataLoader, Arrow, pandas."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedstore.embedding_set import (
    FAILURES_SCHEMA,
    FRAME_INDEX_SCHEMA,
    INDEX_SCHEMA,
    WINDOW_INDEX_SCHEMA,
    EmbeddingSet,
    SetWriter,
)
from embedstore.errors import FormatError, MissingExtraError, UnknownNameError
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import rows_to_table

N_CLIPS, DIM, PER_CLIP = 9, 4, 3


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSet:
    """Nine clips of a clip encoder, three frame vectors and one window each."""
    store = Store.create(tmp_path_factory.mktemp("views") / "store")
    rng = np.random.default_rng(1)
    spec = EncoderSpec(name="net", unit="clip", clip_dim=DIM, frame_dim=DIM)
    with SetWriter(store.layout.sets, dataset="mine", spec=spec) as writer:
        for kind, n_rows in (("clips", N_CLIPS), ("frames", N_CLIPS * PER_CLIP), ("windows", N_CLIPS)):
            writer.array(kind, dim=DIM).append(rng.standard_normal((n_rows, DIM)).astype(np.float16))
        index = [
            {"row": row, "clip_id": f"c{row}", "frame_row": PER_CLIP * row, "n_frame_rows": PER_CLIP}
            for row in range(N_CLIPS)
        ]
        frames = [{"clip_id": f"c{at // PER_CLIP}", "frame": at % PER_CLIP} for at in range(N_CLIPS * PER_CLIP)]
        windows = [{"clip_id": f"c{row}", "frame_start": 0, "frame_stop": 16} for row in range(N_CLIPS)]
        tables = {
            "index.parquet": rows_to_table(index, INDEX_SCHEMA),
            "frame_index.parquet": rows_to_table(frames, FRAME_INDEX_SCHEMA),
            "window_index.parquet": rows_to_table(windows, WINDOW_INDEX_SCHEMA),
            "failures.parquet": rows_to_table([], FAILURES_SCHEMA),
        }
        return store.open_set(writer.finish(tables, provenance={}))


@pytest.fixture
def clips_only(opened: EmbeddingSet, tmp_path: Path) -> EmbeddingSet:
    """A set without frames."""
    store = Store.create(tmp_path / "store")
    with SetWriter(store.layout.sets, dataset="mine", spec=EncoderSpec(name="net", clip_dim=DIM)) as writer:
        writer.array("clips", dim=DIM).append(opened.clips.raw[:1])
        tables = {
            "index.parquet": rows_to_table([{"row": 0, "clip_id": "c0"}], INDEX_SCHEMA),
            "failures.parquet": rows_to_table([], FAILURES_SCHEMA),
        }
        return store.open_set(writer.finish(tables, provenance={}))


def test_a_sequence_of_vectors_and_ids(opened: EmbeddingSet) -> None:
    clips = opened.as_dataset()
    assert len(clips) == N_CLIPS
    for row in (0, 3, N_CLIPS - 1, -1):
        vector, clip_id = clips[row]
        np.testing.assert_array_equal(vector, opened.clips[row])
        assert clip_id == f"c{row % N_CLIPS}" and vector.dtype == np.float32 and vector.flags.writeable
    for row in (N_CLIPS, -N_CLIPS - 1):
        with pytest.raises(IndexError):
            clips[row]
    assert [clip_id for _, clip_id in clips] == [f"c{row}" for row in range(N_CLIPS)]
    assert [clip_id for _, clip_id in clips[6:2:-2]] == ["c6", "c4"]
    vector, _ = clips[0]
    vector[:] = 0
    assert clips[0][0].any()


def test_frames_and_windows_say_where_they_belong(opened: EmbeddingSet) -> None:
    vector, key = opened.as_dataset("frames")[4]
    np.testing.assert_array_equal(vector, opened.frames[4])
    assert key == {"clip_id": "c1", "frame": 1}
    assert opened.as_dataset("windows")[2][1] == {"clip_id": "c2", "frame_start": 0, "frame_stop": 16}


def test_a_sequence_is_pickled_without_its_vectors(opened: EmbeddingSet) -> None:
    clips = opened.as_dataset()
    _ = clips[0]
    payload = pickle.dumps(clips)
    assert opened.clips.raw[:].tobytes()[:16] not in payload
    np.testing.assert_array_equal(pickle.loads(payload)[5][0], clips[5][0])  # noqa: S301
    assert repr(clips) == "VectorSequence(9 x 4, clip_id)"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "n_workers", "context"),
    [("clips", 0, None), ("frames", 0, None), ("clips", 2, "fork"), ("frames", 2, "fork"), ("clips", 1, "spawn")],
)
def test_torch_takes_it_with_its_default_collate(
    opened: EmbeddingSet, kind: str, n_workers: int, context: str | None
) -> None:
    import torch.utils.data

    dataset: Any = opened.as_dataset(kind)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=n_workers, multiprocessing_context=context
    )
    batches = list(loader)
    vectors = torch.cat([batch for batch, _ in batches])
    array = opened.array(kind)
    assert array is not None
    np.testing.assert_array_equal(vectors.numpy(), array[:])
    if kind == "clips":
        assert [clip_id for _, ids in batches for clip_id in ids] == [f"c{row}" for row in range(N_CLIPS)]
    else:
        assert torch.cat([keys["frame"] for _, keys in batches]).tolist() == [0, 1, 2] * N_CLIPS


def test_arrow_and_back_through_parquet(opened: EmbeddingSet, tmp_path: Path) -> None:
    for kind in ("clips", "frames", "windows"):
        table = opened.to_arrow(kind)
        assert table.schema.field("vector").type == pa.list_(pa.float32(), DIM)
        array = opened.array(kind)
        assert array is not None
        values = table.column("vector").combine_chunks().flatten().to_numpy().reshape(-1, DIM)
        np.testing.assert_array_equal(values, array[:])
        pq.write_table(table, tmp_path / "t.parquet")
        assert pq.read_table(tmp_path / "t.parquet").equals(table)
    assert opened.to_arrow().drop_columns("vector").equals(opened.index)
    assert opened.to_arrow("frames").column("clip_id").to_pylist()[3] == "c1"


def test_pandas(opened: EmbeddingSet) -> None:
    frame = opened.to_pandas()
    np.testing.assert_array_equal(np.stack(frame["vector"]), opened.clips[:])
    assert frame["clip_id"].tolist() == [f"c{row}" for row in range(N_CLIPS)]
    assert opened.to_pandas("frames").groupby("clip_id")["frame"].max().tolist() == [2] * N_CLIPS


def test_without_pandas_the_package_is_named(opened: EmbeddingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        opened.to_pandas()


@pytest.mark.parametrize("view", ["as_dataset", "to_arrow", "to_pandas"])
def test_kinds_that_are_not_there(opened: EmbeddingSet, clips_only: EmbeddingSet, view: str) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'frames'"):
        getattr(opened, view)("frame")
    for kind in ("frames", "windows"):
        with pytest.raises(FormatError, match=f"holds no {kind[:-1]} vectors"):
            getattr(clips_only, view)(kind)


def test_views_import_neither_torch_nor_pandas() -> None:
    probe = "import sys, embedstore.views, embedstore.ingest, embedstore.cli.ingest\n"
    probe += "print(sorted({'torch', 'pandas', 'h5py', 'av', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
