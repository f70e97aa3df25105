"""Pull from a server that fails: the file that was sent or one clean sentence, never a wait beyond the time-outs.

Twenty kinds of failure, five cases each: the document or a file, for one answer, for two or for all, with and
without ranges, one file at a time or several. `make test` runs the first case of each, `make test-slow` all.
"""

from __future__ import annotations

import errno
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_server import FaultServer, fault_server
from sent_snapshots import copied, tree_bytes

from embedstore.errors import (
    ContentError,
    CorruptionError,
    EmbedstoreError,
    EnvironmentFailure,
    HostileInputError,
    StorageError,
)
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.fetch import FetchOptions
from embedstore.snapshot.pull import pull_folder
from embedstore.snapshot.remotes import connection, open_remote, s3

SLOW = pytest.mark.slow
N_CASES = 5
QUICK = FetchOptions(n_parallel=4, attempts=3, first_pause_s=0.01, window_s=0.3)
FIRST = r"small.*clips/c/0/0"
# What each may end in when it lasts. Whatever only stops the bytes is outlasted when it passes.
BROKEN, STRANGE = (EnvironmentFailure,), (ContentError,)
KINDS: dict[str, tuple[type[EmbedstoreError], ...]] = {
    "reset": BROKEN,
    "hang-up": BROKEN,
    "silence": BROKEN,
    "stall": BROKEN,
    "trickle": BROKEN,
    "drip-headers": BROKEN,
    "drip-chunks": BROKEN,
    "short": BROKEN,
    "garbage": BROKEN,
    "wrong-range": BROKEN,
    "500": BROKEN,
    "429": BROKEN,
    "long": STRANGE,
    "endless": STRANGE,
    "wrong-bytes": STRANGE,
    "redirect-loop": STRANGE,
    "redirect-file": STRANGE,
    "redirect-nowhere": STRANGE,
    # Half of one version and half of another, until the whole is asked for again.
    "stale": BROKEN + STRANGE,
    # Shorter than stated, or longer, or not the bytes.
    "compressed": BROKEN + STRANGE,
}


@dataclass(frozen=True)
class FaultCase:
    """How a server fails."""

    kind: str
    only: str
    times: int
    ranges: bool
    n_parallel: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.times if self.times < 9 else 'all'}-{self.only.rpartition('/')[2].strip('$')}"


def cases_of(kind: str) -> list[FaultCase]:
    """Five cases of a kind: it lasts on a file, passes on a file, lasts on the document, and two that are drawn."""
    draw = random.Random(kind)
    cases = [FaultCase(kind, FIRST, 10**9, True, 4), FaultCase(kind, FIRST, 2, True, 4)]
    cases.append(FaultCase(kind, f"{DOCUMENT_FILE}$", 10**9, True, 4))
    while len(cases) < N_CASES:
        only = draw.choice(
            [f"/{DOCUMENT_FILE}$", "other.*/index.parquet$", "small.*/description.json$", "/frames/c/0/0"]
        )
        cases.append(FaultCase(kind, only, draw.choice([1, 2, 10**9]), draw.random() < 0.5, draw.choice([1, 8])))
    return draw.sample(cases, len(cases))


CASES = [
    pytest.param(case, id=str(case), marks=[SLOW] if number else [])
    for kind in KINDS
    for number, case in enumerate(cases_of(kind))
]


@pytest.fixture
def served(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    monkeypatch.setattr(connection, "TIMEOUT_S", 0.4)
    with fault_server(exported) as server:
        yield server


@pytest.mark.parametrize("case", CASES)
def test_the_right_bytes_or_one_sentence(
    case: FaultCase, exported: Path, served: FaultServer, tmp_path: Path
) -> None:
    served.ranges = case.ranges
    served.fail(case.kind, times=case.times, only=case.only)
    options = FetchOptions(n_parallel=case.n_parallel, attempts=3, first_pause_s=0.01, window_s=0.3)
    is_outlasted = case.times <= 2 and KINDS[case.kind] == BROKEN
    began = time.monotonic()
    try:
        pull_folder(open_remote(served.url), tmp_path / "got", options=options)
    except EmbedstoreError as error:
        assert not is_outlasted, error
        assert isinstance(error, KINDS[case.kind]), error
        message = str(error)
        assert "\n" not in message and len(message) < 400
        assert not (tmp_path / "got" / DOCUMENT_FILE).exists()
        assert not any(
            path.read_bytes() != (exported / path.relative_to(tmp_path / "got")).read_bytes()
            for path in (tmp_path / "got").rglob("*")
            if path.is_file() and path.suffix != ".partial"
        )
    else:
        assert case.times <= 2, "what fails for ever was pulled"
    # Attempts, twice where a file is asked for anew, at the time-out each; and a machine that others use too.
    assert time.monotonic() - began < 15
    served.fail(None)
    pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)


def test_there_are_as_many_faults_as_promised() -> None:
    assert len(KINDS) >= 12 and len(CASES) == N_CASES * len(KINDS)


@pytest.mark.parametrize(
    "kind", [kind if kind in ("trickle", "wrong-bytes") else pytest.param(kind, marks=SLOW) for kind in KINDS]
)
def test_a_bucket_that_fails(kind: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a client that reads, a bucket is a web server too."""
    pytest.importorskip("obstore")
    monkeypatch.setattr(s3, "TIMEOUT_S", 0.4)
    copied(exported, tmp_path / "served/bucket/echo")
    with fault_server(tmp_path / "served") as server:
        for name, value in (("ENDPOINT_URL", server.url), ("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret")):
            monkeypatch.setenv(f"AWS_{name}", value)
        place = open_remote("s3://bucket/echo")
        for times in (10**9, 2):
            server.fail(kind, times=times, only=FIRST)
            began = time.monotonic()
            try:
                pull_folder(place, tmp_path / "got", options=QUICK)
            except EmbedstoreError as error:
                assert times > 2 or KINDS[kind] != BROKEN, error
                assert "\n" not in str(error) and len(str(error)) < 600
                assert not (tmp_path / "got" / DOCUMENT_FILE).exists()
            else:
                assert times == 2
            assert time.monotonic() - began < 15
        server.fail(None)
        pull_folder(place, tmp_path / "got", options=QUICK)
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("stall", EnvironmentFailure, "did not come"),
        ("long", HostileInputError, "longer than"),
        ("wrong-bytes", CorruptionError, "is not the file"),
        ("429", EnvironmentFailure, "the server answers 429"),
        ("redirect-file", HostileInputError, "no web address"),
    ],
)
def test_the_sentence_says_what_happened(
    served: FaultServer, tmp_path: Path, fault: str, error: type[EmbedstoreError], says: str
) -> None:
    served.fail(fault, only=FIRST)
    with pytest.raises(error, match=says):
        pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)


def test_a_server_that_asks_for_time_gets_it(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    served.retry_after = "1"
    served.fail("429", times=1, only=FIRST)
    began = time.monotonic()
    pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert time.monotonic() - began >= 1
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)


def test_one_failure_does_not_wait_for_the_others(
    served: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is wrong while another server connection is silent: the silence is not sat out."""
    monkeypatch.setattr(connection, "TIMEOUT_S", 60.0)
    silent = threading.Event()
    take = served.take

    def fault_of(path: str) -> str | None:
        if re.search(FIRST, path):
            silent.set()
            return "stall"
        if path.endswith("frames/c/0/0"):
            silent.wait(10)
            return "wrong-bytes"
        return take(path)

    monkeypatch.setattr(served, "take", fault_of)
    began = time.monotonic()
    with pytest.raises(CorruptionError):
        pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert time.monotonic() - began < 10


def test_bodies_in_chunks_are_read(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    served.chunked = True
    pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)


def test_what_came_is_gone_on_with(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    served.fail("short", times=1, only=FIRST)
    pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    ranges = [asked for path, asked in served.requests if re.search(FIRST, path)]
    size = next(file.size for file in SentSnapshot.read(exported).files if re.search(FIRST, file.path))
    assert ranges == [None, f"bytes={size // 2}-"]


def test_bytes_of_another_version_behind_a_range_are_found_and_fetched_again(
    exported: Path, served: FaultServer, tmp_path: Path
) -> None:
    target = next(file for file in SentSnapshot.read(exported).files if file.path.endswith("clips/c/0/0"))
    stale = tmp_path / "got" / f"{target.path}.partial"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"\1" * (target.size // 2))
    told: list[int] = []
    options = FetchOptions(n_parallel=1, attempts=3, first_pause_s=0.01, on_bytes=told.append)
    pull_folder(open_remote(served.url), tmp_path / "got", options=options)
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)
    assert sum(told) == SentSnapshot.read(exported).n_bytes, "progress ends at another sum than it began with"


def test_a_file_that_is_listed_and_not_there_is_told(exported: Path, tmp_path: Path) -> None:
    part = copied(exported, tmp_path / "part")
    next(part.rglob("small*/clips/c/0/0")).unlink()
    with fault_server(part) as server:
        for url in (server.url, str(part)):
            with pytest.raises(EnvironmentFailure, match="and does not have it: its upload may not be complete"):
                pull_folder(open_remote(url), tmp_path / "got", options=QUICK)


@pytest.mark.parametrize("of_a_folder", [True, False])
def test_a_full_disk_is_told_of_the_disk_that_is_full(
    of_a_folder: bool, exported: Path, served: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, block: memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("embedstore.snapshot.fetch._Partial.append", full)
    place = open_remote(str(exported) if of_a_folder else served.url)
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/got/.*: the disk is full"):
        pull_folder(place, tmp_path / "got", options=QUICK)


def test_an_unreachable_server_is_an_environment_failure(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EnvironmentFailure, match="was not reached in 3 attempts"):
            pull_folder(open_remote(url), tmp_path / "got", options=QUICK)


def test_a_huge_document_is_cut_off(served: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedstore.snapshot.place.MAX_DOCUMENT_BYTES", 10_000)
    served.fail("endless", only=DOCUMENT_FILE)
    with pytest.raises(HostileInputError, match="is larger than 10000 bytes"):
        pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
