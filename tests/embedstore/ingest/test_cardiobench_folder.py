"""The folder of .pt files and index.csv that CardioBench writes, found by entry point."""

from __future__ import annotations

import csv
import os
import pickle
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedstore.errors import ContentError, FormatError, HostileInputError, MissingExtraError, UnknownNameError

COLUMNS = ("video_id", "n_frames_raw", "n_frames_used", "key_frame", "embedding_file")


@dataclass
class Folder:
    """A folder as CardioBench's embeddings script leaves it."""

    path: Path
    frames: dict[str, np.ndarray]
    pooled: dict[str, np.ndarray]

    def row(self, video_id: str, file: str | None = None) -> tuple[str, ...]:
        return (video_id, "40", "3", "5", f"/out/echo_clip/test/{video_id}.pt" if file is None else file)

    def index(self, rows: Sequence[Sequence[str]]) -> None:
        with (self.path / "index.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows([COLUMNS, *rows])

    def save(self, video_id: str, **changed: Any) -> None:
        held = {
            "video_id": video_id,
            "path": f"/raw/{video_id}.avi",
            "embedding_per_frame": torch.from_numpy(self.frames[video_id]),
            "embedding_pooled": torch.from_numpy(self.pooled[video_id]),
            "frame_indices": [5, 6, 7],
            "normalized": True,
            "dtype": "float16",
            "metadata": {"EF": 61.5, "Split": "TEST", "key_frame": None},
        }
        torch.save({**held, **changed}, self.path / f"{video_id}.pt")


@pytest.fixture
def folder(lab: Any) -> Folder:
    """All clips of the laboratory, three frames each."""
    rng = np.random.default_rng(2)
    frames, pooled = {}, {}
    for clip_id in lab.ids:
        rows = rng.standard_normal((3, 6))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        mean = rows.mean(axis=0)
        frames[clip_id], pooled[clip_id] = rows.astype(np.float16), (mean / np.linalg.norm(mean)).astype(np.float16)
    made = Folder(lab.folder / "embeddings", frames, pooled)
    made.path.mkdir()
    for clip_id in lab.ids:
        made.save(clip_id)
    made.index([made.row(clip_id) for clip_id in lab.ids])
    return made


def test_vectors_are_those_of_the_files(lab: Any, folder: Folder) -> None:
    outcome = lab.ingest(folder.path, encoder="echo-clip@cardiobench")
    opened = lab.store.get(dataset="mine", encoder="echo-clip@cardiobench")
    assert (outcome.n_ok, outcome.n_frames, outcome.dim, outcome.frame_dim) == (7, 21, 6, 6)
    np.testing.assert_array_equal(opened.clips.raw[:], np.stack([folder.pooled[clip_id] for clip_id in lab.ids]))
    np.testing.assert_array_equal(opened.frames.raw[:], np.concatenate([folder.frames[c] for c in lab.ids]))
    assert opened.frame_index.column("frame").to_pylist() == [5, 6, 7] * 7
    spec = opened.spec
    assert (spec.unit, spec.precision, spec.pooling) == ("frame", "bf16", "mean-l2-l2")
    assert spec.unknown == ("sampling", "weights_sha256") and spec.preprocessing["recipe"] == "cardiobench"


def test_the_index_of_a_run_that_was_repeated(lab: Any, folder: Folder) -> None:
    rows = [folder.row(clip_id) for clip_id in lab.ids[:5]]
    skipped = [("c00", "SKIP", "SKIP", "SKIP", "SKIP"), folder.row("c01", "c01.pt"), folder.row("c01", "")]
    mended = [("c02", "ERROR", "ERROR", "ERROR", "ERROR"), ("c05", "40", "0", "5", "ERROR: cannot decode")]
    # The header stands again where a second run appended to the file.
    folder.index([mended[0], *rows, COLUMNS, *skipped, *mended, ("c06", "40", "3", "5", "gone.pt")])
    outcome = lab.ingest(folder.path)
    assert outcome.clips_without_row == ("c05", "c06") and outcome.n_ok == 5
    failures = lab.opened(outcome).failures.to_pylist()
    assert [(row["clip_id"], row["reason"], row["detail"]) for row in failures] == [
        ("c05", "source-error", "index.csv records an error"),
        ("c06", "source-error", "index.csv names a file that is not there"),
    ]
    assert outcome.notes == (
        "rows of index.csv that repeat a video and were resolved: 5",
        ".pt files that stand in no usable row of index.csv and were left out: 2",
    )


def test_files_that_cannot_be_read_are_failures_of_their_clips(lab: Any, folder: Folder) -> None:
    path = folder.path / "c00.pt"
    path.write_bytes(path.read_bytes()[:-200])
    (folder.path / "c01.pt").write_bytes(b"")
    torch.save([1, 2], folder.path / "c02.pt")
    folder.save("c03", frame_indices=[1, 2])
    folder.save("c04", embedding_pooled="lost")
    outcome = lab.ingest(folder.path)
    assert outcome.clips_without_row == ("c00", "c01", "c02", "c03", "c04") and outcome.n_ok == 2
    details = [row["detail"] for row in lab.opened(outcome).failures.to_pylist()]
    assert details == ["its .pt file cannot be read"] * 2 + ["its .pt file lacks parts"] * 3


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_never_run(lab: Any, folder: Folder) -> None:
    canary = lab.folder / "canary"
    folder.save("c03", metadata=Canary(canary))
    with pytest.raises(HostileInputError, match=r"c03\.pt wants to run code on opening"):
        lab.ingest(folder.path)
    (folder.path / "c03.pt").write_bytes(pickle.dumps({"video_id": "c03", "x": Canary(canary)}, protocol=2))
    with pytest.raises(HostileInputError, match=r"c03\.pt wants to run code on opening"):
        lab.ingest(folder.path)
    assert not canary.exists() and lab.is_untouched()


def test_files_that_claim_more_than_they_hold(lab: Any, folder: Folder) -> None:
    endless = torch.zeros(1, 6, dtype=torch.float16).expand(1 << 40, 6)
    folder.save("c03", embedding_per_frame=endless)
    with pytest.raises(HostileInputError, match="more than its size"):
        lab.ingest(folder.path)
    folder.save("c03")
    with zipfile.ZipFile(folder.path / "c03.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder.path / "c03.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, payload in members.items():
            archive.writestr(name, payload + (bytes(64 << 20) if name.endswith("/data/0") else b""))
    with pytest.raises(HostileInputError, match=r"torch\.save packs nothing"):
        lab.ingest(folder.path)
    assert lab.is_untouched()


def test_files_outside_of_the_folder_are_not_read(lab: Any, folder: Folder) -> None:
    outside = lab.folder / "outside"
    outside.mkdir()
    (folder.path / "c00.pt").rename(outside / "c00.pt")
    rows = [folder.row(clip_id) for clip_id in lab.ids[1:]]
    for cell in (str(outside / "c00.pt"), "../outside/c00.pt", "C:\\outside\\c00.pt", "a\0b", "x" * 5000):
        folder.index([folder.row("c00", cell), *rows])
        assert lab.ingest(folder.path).clips_without_row == ("c00",)
    (folder.path / "c00.pt").symlink_to(outside / "c00.pt")
    folder.index([folder.row(clip_id) for clip_id in lab.ids])
    with pytest.raises(HostileInputError, match="lies outside of its folder"):
        lab.ingest(folder.path)


def test_contradictions_are_named(lab: Any, folder: Folder) -> None:
    (folder.path / "again").mkdir()
    (folder.path / "again/c00.pt").write_bytes((folder.path / "c00.pt").read_bytes())
    folder.index([folder.row("c00"), folder.row("c00", "again/c00.pt")])
    with pytest.raises(ContentError, match=r"two files for c00: c00\.pt and again/c00\.pt"):
        lab.ingest(folder.path)
    folder.index([folder.row("c00", "c01.pt")])
    with pytest.raises(ContentError, match="says that it is 'c01'"):
        lab.ingest(folder.path)
    folder.index([folder.row("c00"), folder.row("c01")])
    wide = torch.zeros(3, 8, dtype=torch.float16)
    folder.save("c01", embedding_per_frame=wide, embedding_pooled=wide[0])
    with pytest.raises(ContentError, match="vectors of 6 and 8 dimensions"):
        lab.ingest(folder.path)
    assert lab.is_untouched()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "needs the columns video_id and embedding_file, and has nothing"),
        (b"id,file\n", "and has id, file"),
        (b"video_id,embedding_file\nc00\n", "another number of cells"),
        (b"video_id,embedding_file\n\xff,x\n", "no CSV in UTF-8"),
        (b'video_id,embedding_file\n"c00,x\n', "no readable CSV"),
        (b"video_id,embedding_file\nc00,ERROR\n", r"leads to no file with vectors \(c00: index.csv records"),
    ],
)
def test_an_index_that_is_none(lab: Any, folder: Folder, payload: bytes, message: str) -> None:
    (folder.path / "index.csv").write_bytes(payload)
    with pytest.raises(FormatError, match=message):
        lab.ingest(folder.path)
    assert lab.is_untouched()


def test_a_folder_of_something_else(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(FormatError, match=r"has no index\.csv; give the folder that CardioBench wrote"):
        lab.ingest(tmp_path / "photos")


def test_without_torch_the_extra_is_named(lab: Any, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"embedstore\[build\]"):
        lab.ingest(folder.path)


def test_without_a_reader_the_folder_is_refused(lab: Any, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedstore.ingest.sources.entry_points", lambda **asked: [])
    with pytest.raises(UnknownNameError, match="no installed package reads folders"):
        lab.ingest(folder.path)


def test_wider_floats_keep_their_values_and_numpy_scalars_are_read(lab: Any, folder: Folder) -> None:
    exact = np.array([[1 + 2**-20, 0, 0, 0, 0, 1]], np.float32)
    for clip_id in lab.ids:
        folder.save(
            clip_id,
            embedding_per_frame=torch.from_numpy(exact),
            embedding_pooled=torch.from_numpy(exact[0]).to(torch.bfloat16),
            frame_indices=torch.tensor([3]) if clip_id == "c00" else [np.int64(3)],
            metadata={"EF": np.float64(61.5), "View": np.str_("A4C"), "is_test": np.bool_(True)},
        )
    opened = lab.opened(lab.ingest(folder.path, dtype="float32"))
    np.testing.assert_array_equal(opened.frames[:1], exact)
    assert opened.frame_index.column("frame").to_pylist() == [3] * 7
