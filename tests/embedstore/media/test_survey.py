from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import MissingExtraError, UnknownNameError
from embedstore.media import JobFailure, survey
from embedstore.media.survey import list_files, survey_files


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PIXEL = b"".join(
    [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(b"\0\x7f")),
        _chunk(b"IEND", b""),
    ]
)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    contents = {
        "b.png": PIXEL,
        "a.png": PIXEL[:20],
        "still-without-suffix": PIXEL,
        "empty.avi": b"",
        "notes.txt": b"some text",
        "late.bin": bytes(1 << 18) + PIXEL,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.avi").mkdir()
    return [*(tmp_path / name for name in contents), tmp_path / "gone.dcm", tmp_path / "folder.avi"]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_facts_come_in_the_order_of_the_paths(files: list[Path], n_workers: int) -> None:
    told: list[tuple[int, int]] = []
    facts = survey_files(files, n_workers=n_workers, progress=lambda done, total: told.append((done, total)))
    assert [fact.path for fact in facts] == files
    assert told == [(number, len(files)) for number in range(1, len(files) + 1)]
    still, cut, bare, empty, text, late, gone, folder = facts
    assert (still.size, still.sha256, still.problem) == (len(PIXEL), hashlib.sha256(PIXEL).hexdigest(), None)
    assert still.probe is not None
    assert (still.probe.container, still.probe.n_frames, still.probe.height) == ("png", 1, 1)
    assert bare.sha256 == still.sha256
    assert cut.sha256 == hashlib.sha256(PIXEL[:20]).hexdigest()
    assert cut.problem is not None
    assert (empty.size, empty.sha256) == (0, hashlib.sha256(b"").hexdigest())
    assert empty.problem == "the file has no bytes"
    for foreign, size in ((text, 9), (late, (1 << 18) + len(PIXEL))):
        assert (foreign.size, foreign.sha256) == (size, None)
        assert foreign.probe is not None
        assert foreign.probe.container is None
        assert foreign.problem == foreign.probe.problem
    for unread, reason in ((gone, "not there"), (folder, "is a folder")):
        assert (unread.size, unread.sha256, unread.probe) == (0, None, None)
        assert unread.problem is not None
        assert reason in unread.problem


class _Pool:
    """A pool whose jobs fail in the ways of its `outcomes`."""

    outcomes: tuple[Any, ...] = ()

    def __init__(self, function: Callable[..., Any], **_: Any) -> None:
        self.function = function

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def imap(self, jobs: Sequence[Path], *, max_in_flight: int) -> Iterator[Any]:
        for job, outcome in zip(jobs, self.outcomes, strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            yield self.function(job) if outcome is None else outcome


def test_a_worker_that_dies_costs_one_probe(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    died, slow = JobFailure("decoder-died", "the decoder process died"), JobFailure("timeout", "it took too long")
    monkeypatch.setattr(_Pool, "outcomes", (died, slow, None, died))
    monkeypatch.setattr(survey, "WorkerPool", _Pool)
    first, second, third, gone = survey_files([*files[:3], files[6]], n_workers=3)
    assert (first.sha256, first.probe, first.problem) == (hashlib.sha256(PIXEL).hexdigest(), None, died.message)
    assert (second.sha256, second.problem) == (None, slow.message)
    assert third.problem is None
    assert gone.problem is not None
    assert "not there" in gone.problem


class _FatalTogether(_Pool):
    """A pool whose worker dies of one file, with all that travel beside it."""

    jobs: list[int] = []
    fatal: Path

    def imap(self, jobs: Sequence[tuple[Path, ...]], *, max_in_flight: int) -> Iterator[Any]:
        for job in jobs:
            self.jobs.append(len(job))
            died = self.fatal in job
            yield JobFailure("decoder-died", "the decoder process died") if died else self.function(job)


def test_a_file_that_takes_its_neighbours_down_is_looked_at_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{number:02d}.png" for number in range(40)]
    for path in paths:
        path.write_bytes(PIXEL)
    monkeypatch.setattr(_FatalTogether, "fatal", paths[7], raising=False)
    monkeypatch.setattr(_FatalTogether, "jobs", [])
    monkeypatch.setattr(survey, "WorkerPool", _FatalTogether)
    told: list[int] = []
    facts = survey_files(paths, n_workers=1, progress=lambda done, _: told.append(done))
    assert [fact.path for fact in facts] == paths and told == list(range(1, 41))
    assert [fact.path for fact in facts if fact.problem] == [paths[7]]
    assert {fact.sha256 for fact in facts} == {hashlib.sha256(PIXEL).hexdigest()}
    assert _FatalTogether.jobs == [10, *[1] * 10, 10, 10, 10]
    monkeypatch.setattr(survey, "_TOGETHER_BYTES", 2 * len(PIXEL))
    _FatalTogether.jobs.clear()
    survey_files(paths[8:], n_workers=1)
    assert set(_FatalTogether.jobs) == {2}


def test_a_missing_decoder_is_no_fact_about_a_file(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Pool, "outcomes", (MissingExtraError("install it"),))
    monkeypatch.setattr(survey, "WorkerPool", _Pool)
    with pytest.raises(MissingExtraError):
        survey_files(files[:1], n_workers=1)


def test_a_file_over_the_limit_is_hashed_and_not_loaded(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    limits = type(survey.DEFAULT_LIMITS)(max_file_bytes=10)
    monkeypatch.setattr(survey, "DEFAULT_LIMITS", limits)
    (fact,) = survey_files(files[:1], n_workers=0)
    assert fact.sha256 == hashlib.sha256(PIXEL).hexdigest()
    assert fact.problem == f"the file has {len(PIXEL)} bytes, the limit is 10"


def test_a_listing_is_in_the_order_of_paths(tmp_path: Path) -> None:
    for name in ("b/x.avi", "a.avi", "a/x.avi", "a-b/x.avi", ".h/x.avi", "a/.x.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = list_files(tmp_path)
    assert [path.as_posix() for path in listing.paths] == ["a-b/x.avi", "a.avi", "a/x.avi", "b/x.avi"]
    assert (listing.outside, listing.unreadable, listing.badly_named) == ([], [], [])
    with pytest.raises(UnknownNameError, match="no folder"):
        list_files(tmp_path / "none")
