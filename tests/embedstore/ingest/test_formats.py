"""Every format gives the same set; what is read back is what was given."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.build.encode import pool_frames
from embedstore.errors import ContentError, FormatError, MissingExtraError, UnknownNameError
from embedstore.ingest import open_source
from embedstore.snapshot.verify import verify_store
from embedstore.spec import EncoderSpec

FORMS = (
    "npy",
    "npz",
    "npz-packed",
    "parquet-list",
    "parquet-fixed",
    "parquet-wide",
    "hdf5",
    "hdf5-packed",
    "hdf5-keyed",
)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_back_is_what_was_given(lab: Any, form: str) -> None:
    outcome = lab.ingest(lab.write(form), dtype="float32")
    opened = lab.store.get(dataset="mine", encoder="lab-net")
    assert opened.set_id == outcome.set_id and opened.spec.variant == "ingested"
    np.testing.assert_array_equal(opened.clips[:], lab.clips)
    assert opened.index.column("clip_id").to_pylist() == lab.ids
    assert (outcome.n_ok, outcome.n_failed, outcome.dim, outcome.frame_dim) == (7, 0, 5, None)
    assert verify_store(lab.store, quick=False).problems == []


def test_plain_zarr_reads_an_ingested_set(lab: Any) -> None:
    with h5py.File(lab.folder / "theirs.h5", "w") as opened:
        opened["clip_ids"] = lab.ids[::-1]
        opened.create_dataset("embeddings", data=lab.clips[::-1].astype(">f8"), compression="lzf")
    outcome = lab.ingest(lab.folder / "theirs.h5")
    folder = lab.store.layout.set_folder(outcome.set_id)
    array = zarr.open_group(folder, mode="r")["clips"]
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array[:], lab.clips.astype(np.float16))


@settings(max_examples=12, deadline=None)
@given(
    first=st.sampled_from(FORMS),
    second=st.sampled_from(FORMS),
    dtypes=st.tuples(*[st.sampled_from(["<f2", "<f4", "<f8", ">f4"])] * 2),
    order=st.permutations(range(7)),
)
def test_order_format_and_source_dtype_change_nothing(
    make_lab: Callable[..., Any], first: str, second: str, dtypes: tuple[str, str], order: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab = make_lab(Path(folder))
        one = lab.ingest(lab.write(first, clips=lab.clips.astype(dtypes[0])))
        shuffled = [lab.ids[at] for at in order]
        other = lab.write(second, ids=shuffled, clips=lab.clips[order].astype(dtypes[1]), name="other")
        assert lab.ingest(other).set_id == one.set_id
        assert len(lab.store.entries()) == 1


def frames_of(lab: Any, *, dim: int = 4) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Three frames of each clip but the last, in any order: vectors, ids, numbers."""
    rng = np.random.default_rng(8)
    ids = [clip_id for clip_id in lab.ids[:-1] for _ in range(3)]
    numbers = np.tile([0, 7, 14], len(lab.ids) - 1)
    vectors = rng.standard_normal((len(ids), dim)).astype(np.float16)
    order = rng.permutation(len(ids))
    return vectors[order], [ids[at] for at in order], numbers[order]


def write_frames(path: Path, vectors: np.ndarray, owners: list[str], numbers: np.ndarray, **more: Any) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, frames=vectors, frame_ids=np.array(owners), frame_numbers=numbers, **more)
    elif path.suffix == ".parquet":
        columns = {
            "clip_id": pa.array(owners),
            "frame": pa.array(numbers),
            "v": pa.array(list(vectors.astype(np.float32))),
        }
        pq.write_table(pa.table(columns), path)
    else:
        with h5py.File(path, "w") as opened:
            for name, values in (
                ("frames", vectors),
                ("frame_ids", owners),
                ("frame_numbers", numbers),
                *more.items(),
            ):
                opened[name] = values
    return path


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
@pytest.mark.parametrize("pooling", ["mean-l2", "mean"])
def test_frames_alone_are_pooled(lab: Any, suffix: str, pooling: str) -> None:
    lab.write_manifest(lab.ids, fps=[30.0] * 6 + [None], n_frames=[15] * 7)
    vectors, ids, numbers = frames_of(lab)
    outcome = lab.ingest(write_frames(lab.folder / f"f{suffix}", vectors, ids, numbers), pooling=pooling)
    opened = lab.opened(outcome)
    assert opened.spec.pooling == pooling and opened.spec.unit == "frame" and opened.spec.frame_dim == 4
    assert outcome.clips_without_row == ("c06",) and outcome.n_frames == 18
    table = opened.frame_index.to_pylist()
    assert [(row["clip_id"], row["frame"]) for row in table] == [(c, f) for c in lab.ids[:-1] for f in (0, 7, 14)]
    assert table[1]["time_s"] == pytest.approx(7 / 30) and table[1]["frame_kind"] == "frame"
    for row, clip_id in enumerate(lab.ids[:-1]):
        of_clip = sorted((numbers[at], at) for at in range(len(ids)) if ids[at] == clip_id)
        frames = vectors[[at for _, at in of_clip]]
        start = opened.index.column("frame_row")[row].as_py()
        np.testing.assert_array_equal(opened.frames.raw[start : start + 3], frames)
        np.testing.assert_array_equal(opened.clips.raw[row], pool_frames(frames, pooling).astype(np.float16))
    assert verify_store(lab.store, quick=False).problems == []


def test_clips_and_frames_of_other_dims_stand_side_by_side(lab: Any) -> None:
    vectors, ids, numbers = frames_of(lab)
    path = write_frames(lab.folder / "both.npz", vectors, ids, numbers, ids=np.array(lab.ids), clips=lab.clips)
    opened = lab.opened(lab.ingest(path))
    assert opened.clips.shape == (7, 5) and opened.frames.shape == (18, 4)
    assert opened.index.column("n_frame_rows").to_pylist() == [3] * 6 + [0]
    assert opened.frame_index.column("time_s").null_count == 18  # the manifest states no fps
    assert verify_store(lab.store, quick=False).problems == []
    with pytest.raises(UnknownNameError, match="nothing to pool"):
        lab.ingest(path, pooling="mean")


def test_frames_of_no_clip_of_the_manifest_leave_an_empty_array(lab: Any) -> None:
    path = write_frames(
        lab.folder / "both.npz",
        np.ones((2, 4), np.float32),
        ["x", "x"],
        np.array([0, 1]),
        ids=np.array(lab.ids),
        clips=lab.clips,
    )
    outcome = lab.ingest(path)
    assert outcome.rows_without_clip == ("x",) and lab.opened(outcome).frames.shape == (0, 4)
    assert verify_store(lab.store, quick=False).problems == []


def test_frames_longer_than_a_block_are_pooled_clip_by_clip(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, ids, numbers = frames_of(lab)
    path = write_frames(lab.folder / "f.npz", vectors, ids, numbers)
    whole = lab.ingest(path)
    monkeypatch.setattr("embedstore.ingest.source.BLOCK_BYTES", 16)
    assert lab.ingest(path).set_id == whole.set_id


def test_the_spec_says_what_is_known_and_what_is_not(lab: Any) -> None:
    spec: EncoderSpec = lab.opened(lab.ingest(lab.write("npz"))).spec
    assert spec.unknown == ("pooling", "precision", "preprocessing", "sampling", "unit", "weights_sha256")
    assert spec.sampling is None and spec.weights_sha256 is None and spec.pooling == "unknown"
    assert len(spec.preprocessing["ingested_sha256"]) == 64
    assert EncoderSpec.from_dict(spec.to_dict()) == spec


def test_keys_are_those_that_a_spec_gives(lab: Any) -> None:
    digests = ["ab" * 32] * 6 + [None]
    lab.write_manifest(lab.ids, sha256=digests)
    opened = lab.opened(lab.ingest(lab.write("npz")))
    keys = opened.index.column("vector_key").to_pylist()
    assert len(set(keys)) == 7 and opened.index.column("content_sha256").to_pylist() == digests
    import hashlib

    for row in (0, 6):
        resolved = hashlib.sha256(f"ingested\0{lab.ids[row]}\0".encode()).hexdigest()
        content = digests[row] or "unknown"
        assert keys[row] == opened.spec.vector_key(content_sha256=content, resolved_digest=resolved)


def test_provenance_names_the_file_and_no_path(lab: Any) -> None:
    import hashlib

    source = lab.write("npz")
    opened = lab.opened(lab.ingest(source))
    payload = source["file"].read_bytes()
    assert opened.provenance["ingested"] == {
        "format": "npz",
        "size": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    assert str(lab.folder) not in json.dumps(opened.provenance) + json.dumps(opened.described)


def test_whole_numbers_are_ids_as_they_are_written(lab: Any) -> None:
    lab.write_manifest(["7", "12"])
    np.savez(lab.folder / "n.npz", ids=np.array([12, 7]), clips=lab.clips[:2])
    opened = lab.opened(lab.ingest(lab.folder / "n.npz", dtype="float32"))
    assert opened.index.column("clip_id").to_pylist() == ["12", "7"]
    np.testing.assert_array_equal(opened.clips[:], lab.clips[:2])


def test_bytes_are_ids_in_utf_8(lab: Any) -> None:
    lab.write_manifest(["caf\u00e9", "k"])
    np.savez(lab.folder / "n.npz", ids=np.array([b"k", "caf\u00e9".encode()]), clips=lab.clips[:2])
    opened = lab.opened(lab.ingest(lab.folder / "n.npz", dtype="float32"))
    np.testing.assert_array_equal(opened.clips[:], lab.clips[[1, 0]])


def test_groups_of_hdf5_stand_for_folders_in_ids(lab: Any) -> None:
    lab.write_manifest(["a/x", "a/y", "b/x"])
    with h5py.File(lab.folder / "k.h5", "w") as opened:
        for clip_id, vector in zip(["b/x", "a/y", "a/x"], lab.clips, strict=False):
            opened[clip_id] = vector
    opened_set = lab.opened(lab.ingest(lab.folder / "k.h5", dtype="float32"))
    assert opened_set.index.column("clip_id").to_pylist() == ["a/x", "a/y", "b/x"]
    np.testing.assert_array_equal(opened_set.clips[:], lab.clips[[2, 1, 0]])


def test_two_spellings_of_one_accented_letter_are_one_id(lab: Any) -> None:
    lab.write_manifest(["Jos\u00e9", "k"])
    np.savez(lab.folder / "n.npz", ids=np.array(["Jose\u0301", "k"]), clips=lab.clips[:2])
    outcome = lab.ingest(lab.folder / "n.npz")
    assert outcome.n_ok == 2
    assert lab.opened(outcome).index.column("clip_id").to_pylist() == ["Jos\u00e9", "k"]


def test_column_order_is_read_as_rows(lab: Any) -> None:
    source = lab.write("npy", clips=np.asfortranarray(lab.clips))
    np.testing.assert_array_equal(lab.opened(lab.ingest(source, dtype="float32")).clips[:], lab.clips)


@pytest.mark.parametrize(
    ("text", "works"),
    [
        ("clip_id\nc00\nc01\n", True),
        ("c00\nc01\n", True),
        ("file,ids\nx,c00\ny,c01\n", True),
        ("\ufeffclip_id\r\nc00\r\nc01\r\n", True),
        ('name\n"c00"\n\nc01\n', True),
        ("clip_id\nc00\n", False),
        ("c00\nc01\nc02\nc03\n", False),
        ("view,clip_id\nA4C,c00\nA4C\n", False),
        ("clip_id,ids\nc00,c00\nc01,c01\n", False),
        ('clip_id\n"c00\nc01\n', False),
        ("", False),
    ],
)
def test_the_table_of_ids(lab: Any, text: str, works: bool) -> None:
    np.save(lab.folder / "v.npy", lab.clips[:2])
    (lab.folder / "ids.csv").write_text(text, encoding="utf-8", newline="")
    source = {"file": lab.folder / "v.npy", "id_table": lab.folder / "ids.csv"}
    if works:
        opened = lab.opened(lab.ingest(source, dtype="float32"))
        np.testing.assert_array_equal(opened.clips[:], lab.clips[:2])
    else:
        with pytest.raises(FormatError, match=r"ids\.csv"):
            lab.ingest(source)


def test_options_that_do_not_go_together(lab: Any) -> None:
    source = lab.write("npy")
    with pytest.raises(UnknownNameError, match="give them in row order with --ids"):
        lab.ingest(source["file"])
    with pytest.raises(UnknownNameError, match="holds its own ids"):
        lab.ingest(lab.write("npz"), id_table=source["id_table"])
    for encoder in ("a/b", "../x", "", "x@", "weights.pt@a b", "é"):
        with pytest.raises(UnknownNameError, match="--encoder needs NAME"):
            lab.ingest(source, encoder=encoder)
    assert lab.is_untouched()


def test_without_h5py_the_extra_is_named(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = lab.write("hdf5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"embedstore\[hdf5\]"):
        lab.ingest(source)


def test_blocks_are_bounded(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedstore.ingest.source.BLOCK_BYTES", 40)
    for form in FORMS:
        source = lab.write(form)
        with open_source(source["file"], id_table=source.get("id_table")) as opened:
            blocks = list(opened.clips.blocks())
            # One chunk of the file at least, else 40 bytes: two float32 vectors of 5 dimensions.
            assert len(blocks) >= 4 and max(map(len, blocks)) <= 2
            given = np.concatenate(blocks)
        np.testing.assert_array_equal(given, lab.clips)
    assert len({lab.ingest(lab.write(form)).set_id for form in FORMS}) == 1


def test_labels_are_no_part_of_a_vector(lab: Any) -> None:
    path = lab.write("parquet-wide")["file"]
    table = pq.read_table(path)
    pq.write_table(table.append_column("lvef_pct", pa.array([50.0] * 7)), path)
    with pytest.raises(ContentError, match="'lvef_pct' is a column of the manifest"):
        lab.ingest(path)
    pq.write_table(table.append_column("age", pa.array([50] * 7)), path)
    with pytest.raises(FormatError, match="'age' of int64"):
        lab.ingest(path)
    assert lab.is_untouched()
