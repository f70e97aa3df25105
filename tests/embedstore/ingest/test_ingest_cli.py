"""``embedstore ingest`` as a user runs it, and readers of other packages."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.ingest import open_source

PROGRAM = str(Path(sys.executable).parent / "embedstore")


def call(lab: Any, *arguments: str | Path, code: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [PROGRAM, "ingest", *map(str, arguments)], cwd=lab.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_complete_partial_and_refused(lab: Any) -> None:
    common = ("--manifest", "mine.parquet", "--encoder", "lab-net", "--dtype", "float32")
    source = lab.write("npy")
    done = call(lab, source["file"], "--ids", source["id_table"], *common, code=0)
    assert "mine  lab-net@ingested: 7 of 7 clips, 5-d clips, set" in done.stdout and done.stderr == ""

    escape = "\x1b]52;c;eA==\x07\u202e"
    partial = lab.write("npz", ids=[escape, *lab.ids[:6]], name="part")
    named = ("--manifest", "mine", "--encoder", "lab-net@part")
    done = call(lab, partial["file"], *named, code=3)
    assert "clips without a row: 1: c06" in done.stdout and "rows without a clip: 1: \\x1b]52" in done.stdout
    assert "\x1b" not in done.stdout and "\u202e" not in done.stdout
    document = json.loads(call(lab, partial["file"], *named, "--json", code=3).stdout)
    (ingested,) = document["sets"]
    assert (ingested["clips_expected"], ingested["clips_ok"], ingested["clips_failed"]) == (7, 6, 1)
    assert document["clips_without_row"] == ["c06"] and document["rows_without_clip"] == [escape]

    doubled = lab.write("npz", ids=["c00", *lab.ids[:6]], name="doubled")
    done = call(lab, doubled["file"], "--manifest", "mine", "--encoder", "x", "--json", code=4)
    error = json.loads(done.stdout)["error"]
    assert (
        error["code"] == 4 and "more than one vector: c00" in error["message"] and "doubled.npz" in error["message"]
    )
    assert len(lab.store.entries()) == 2


def test_a_bar_where_a_person_looks(lab: Any) -> None:
    """On a terminal; the test above sees nothing in a pipe."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    arguments = [lab.write("npz")["file"], "--manifest", "mine.parquet", "--encoder", "lab-net"]
    done = subprocess.run([PROGRAM, "ingest", *arguments], cwd=lab.folder, stderr=theirs, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "checking vectors.npz" in shown and "writing lab-net@ingested" in shown and "7.00/7.00" in shown


def test_options_that_are_wrong(lab: Any) -> None:
    source = lab.write("npz")["file"]
    call(lab, source, "--manifest", "mine.parquet", code=2)
    call(lab, source, "--manifest", "nobody", "--encoder", "x", code=2)
    call(lab, "gone.npz", "--manifest", "mine.parquet", "--encoder", "x", code=1)


def test_a_reader_of_another_package(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows:
        n_rows, dim, dtype, frame_numbers, plain = 2, 3, np.dtype(np.float32), None, None

        def ids(self) -> list[list[str]]:
            return [["c00"], ["c01"]]

        def blocks(self) -> list[np.ndarray]:
            return [np.ones((1, 3), np.float32), np.full((1, 3), 2.0, np.float32)]

    class Source:
        format, clips, frames, column_names, known, failed, notes = "lab", Rows(), None, (), {}, {}, ()

        def __init__(self, path: Path) -> None:
            self.path = path

        def close(self) -> None:
            self.path.unlink()

    reader = type(sys)("lab_reader")
    reader.read = Source  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lab_reader", reader)
    point = EntryPoint("feather", "lab_reader:read", "embedstore.ingest")
    monkeypatch.setattr(
        "embedstore.ingest.sources.entry_points", lambda **asked: [point] if asked["name"] == "feather" else []
    )
    path = lab.folder / "theirs.feather"
    path.write_bytes(b"ARROW1")
    with open_source(path) as source:
        assert source.format == "lab"
    assert not path.exists()  # it was closed
    path.write_bytes(b"ARROW1")
    monkeypatch.setattr(Source, "close", lambda self: None)
    opened = lab.opened(lab.ingest(path))
    np.testing.assert_array_equal(opened.clips[:], [[1.0] * 3, [2.0] * 3])
    assert opened.provenance["ingested"]["format"] == "lab"
