"""Push and pull, killed at many points: nothing half-visible, and the same command completes to the same bytes.

`make test` kills at a few points that are drawn, `make test-slow` at fifty of each.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import transfer_child
from fault_server import fault_server
from sent_snapshots import tree_bytes
from small_sets import add_set

from embedstore.errors import UnknownNameError
from embedstore.files import TEMPORARY_PREFIX, hash_file
from embedstore.snapshot.check import check_snapshot
from embedstore.snapshot.fetch import FetchOptions, fetch_files
from embedstore.snapshot.place import find_snapshot
from embedstore.snapshot.pull import pull_folder
from embedstore.snapshot.remotes import open_remote
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store

MANY = [pytest.param(4, id="some"), pytest.param(50, id="fifty", marks=pytest.mark.slow)]
QUICK = FetchOptions(attempts=2, first_pause_s=0.01)


class Killer:
    """The process of `transfer_child`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process = subprocess.Popen(
            [sys.executable, transfer_child.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str | Path, kill: int = 0) -> tuple[int, int]:
        """Run the program; return its status (-9 where it was killed) and the points that it passed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        asked = {"kill": kill, "root": str(self._root), "arguments": [str(argument) for argument in arguments]}
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        return answer["status"], answer["points"]

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Killer]:
    made = Killer(tmp_path)
    yield made
    made.close()


def drawn(total: int, count: int) -> list[int]:
    assert total >= count
    return sorted(random.Random(count).sample(range(1, total + 1), count))


def visible(store: Store) -> dict[str, bytes]:
    """The files of sets and manifests, without what a killed writer leaves for gc: hidden, and read by nobody."""
    found = tree_bytes(store.layout.sets) | tree_bytes(store.layout.manifests)
    return {name: payload for name, payload in found.items() if not name.startswith(TEMPORARY_PREFIX)}


@pytest.mark.parametrize("count", MANY)
def test_a_killed_pull_shows_nothing_and_completes(
    count: int, exported: Path, tmp_path: Path, killer: Killer
) -> None:
    with fault_server(exported) as server:
        command = ("snapshot", "pull", server.url, "--parallel", "3", "--store")
        status, total = killer.run(*command, tmp_path / "whole")
        assert status == 0
        whole = Store.open(tmp_path / "whole")
        expected = visible(whole)
        for number in drawn(total, count):
            root = tmp_path / f"b{number}"
            status, _ = killer.run(*command, root, kill=number)
            assert status in (-9, 0)  # threads share the points differently each time: the last may not be reached
            if (root / "store.json").exists():
                store = Store.open(root)
                assert verify_store(store, quick=False).ok
                assert len(store.entries()) in (0, 2)
            assert killer.run(*command, root)[0] == 0
            store = Store.open(root)
            assert store.snapshot().id == whole.snapshot().id
            assert verify_store(store, quick=False).ok
            assert visible(store) == expected
            assert [path.name for path in store.layout.builds.iterdir() if "pull" in path.name] == []


@pytest.mark.parametrize("count", MANY)
def test_a_killed_pull_into_a_folder_is_no_snapshot_and_completes(
    count: int, exported: Path, tmp_path: Path, killer: Killer
) -> None:
    with fault_server(exported) as server:
        command = ("snapshot", "pull", server.url, "--parallel", "3", "--to")
        status, total = killer.run(*command, tmp_path / "whole")
        assert status == 0 and tree_bytes(tmp_path / "whole") == tree_bytes(exported)
        for number in drawn(total, count):
            folder = tmp_path / f"got{number}"
            killer.run(*command, folder, kill=number)
            if (folder / "manifest.json").exists():
                assert check_snapshot(folder).outcome.ok
            assert killer.run(*command, folder)[0] == 0
            assert tree_bytes(folder) | rests(folder) == tree_bytes(exported) | rests(folder)


def rests(folder: Path) -> dict[str, bytes]:
    """What a killed writer of this folder's own small files may leave: hidden, and looked at by nobody."""
    return {path.name: path.read_bytes() for path in folder.glob(".partial-*")}


def test_an_interrupted_pull_ends_at_once_though_the_server_is_silent(exported: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from embedstore.cli.main import main; main()", "snapshot", "pull"]
    with fault_server(exported) as server:
        server.fail("stall", only=r"small.*clips/c/0/0")
        asked = [*command, server.url, "--store", str(tmp_path / "b")]
        process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while not any("small" in path and "clips/c/0/0" in path for path, _ in server.requests):
            assert time.monotonic() < until
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and len(errors.strip().splitlines()) == 1, errors
        assert time.monotonic() - began < 15, time.monotonic() - began  # the silence would last twice as long
        assert not Store.open(tmp_path / "b").entries()
        server.fail(None)
        assert subprocess.run(asked, capture_output=True).returncode == 0
    assert len(Store.open(tmp_path / "b").entries()) == 2


def test_an_interrupt_between_two_requests_stops_those_that_run(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = ThreadPoolExecutor.submit
    asked: list[str] = []

    def interrupted(pool: ThreadPoolExecutor, act: Any, /, *args: Any, **named: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(str(args))
        return submit(pool, act, *args, **named)

    names = [str(path.relative_to(exported)) for path in sorted(exported.rglob("*")) if path.is_file()]
    files = [(name, hash_file(exported / name)) for name in names]
    with fault_server(exported) as server:
        server.fail("stall")
        monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            fetch_files(open_remote(server.url), files, tmp_path / "here")
        assert time.monotonic() - began < 15, time.monotonic() - began
    assert len(asked) == 2


@pytest.mark.parametrize("count", MANY)
def test_a_killed_push_shows_the_old_or_the_new_and_completes(
    count: int, exported: Path, tmp_path: Path, killer: Killer
) -> None:
    store = Store.open(exported.parent / "store")
    before = tmp_path / "before"
    status, _ = killer.run("snapshot", "pull", exported, "--to", before)
    assert status == 0
    add_set(store, {f"clip{number}": 2 for number in range(12)})
    asked = ("--recipient", "lab-b", "--permission-ref", "letter of 2 May", "--store", store.layout.root)
    after = tmp_path / "after"
    assert killer.run("snapshot", "export", after, *asked)[0] == 0
    ids = {name: check_snapshot(folder).snapshot.id for name, folder in (("old", before), ("new", after))}
    assert ids["old"] != ids["new"]
    for source in (("--from", after), asked):
        status, total = killer.run("snapshot", "push", tmp_path / "whole", *source, "--parallel", "3")
        assert status == 0
        expected = tree_bytes(tmp_path / "whole")
        for number in drawn(total, max(2, count // 2)):
            share = tmp_path / f"share-{len(source)}-{number}"
            assert killer.run("snapshot", "push", share, "--from", before)[0] == 0
            killer.run("snapshot", "push", share, *source, "--parallel", "3", kill=number)
            shown = find_snapshot(open_remote(str(share)), options=QUICK)
            assert shown.snapshot.id in ids.values()
            pull_folder(open_remote(str(share)), tmp_path / "shown" / share.name, found=shown, options=QUICK)
            assert killer.run("snapshot", "push", share, *source, "--parallel", "3")[0] == 0
            found = tree_bytes(share)
            assert {name: found[name] for name in expected} == expected
            assert {name.partition("/")[0] for name in found} == {*ids.values(), "latest.json"}
            assert not [name for name in found if ".partial" in name]


@pytest.mark.parametrize("count", MANY)
def test_a_killed_push_to_nobody_in_particular_completes_what_it_began(
    count: int, exported: Path, tmp_path: Path, killer: Killer
) -> None:
    shutil.copytree(exported.parent / "store", tmp_path / "a")  # where it is killed at too
    asked = ("--permission-ref", "letter of 2 May", "--store", tmp_path / "a", "--parallel", "3")
    status, total = killer.run("snapshot", "push", tmp_path / "whole", *asked)
    assert status == 0
    for number in drawn(total, count):
        share = tmp_path / f"share-{number}"
        killer.run("snapshot", "push", share, *asked, kill=number)
        begun = {path.name for path in share.glob("[!.]*")}
        assert killer.run("snapshot", "push", share, *asked)[0] == 0
        snapshot = find_snapshot(open_remote(str(share)), options=QUICK).snapshot
        assert {dataset.ids for dataset in snapshot.datasets} == {"pseudonyms"}
        assert begun <= {path.name for path in share.iterdir()} == {snapshot.id, "latest.json"}


def test_a_first_push_that_is_killed_shows_nothing(exported: Path, tmp_path: Path, killer: Killer) -> None:
    _, total = killer.run("snapshot", "push", tmp_path / "whole", "--from", exported)
    killer.run("snapshot", "push", tmp_path / "share", "--from", exported, kill=total // 2)
    with pytest.raises(UnknownNameError, match="there is no snapshot"):
        find_snapshot(open_remote(str(tmp_path / "share")), options=QUICK)
