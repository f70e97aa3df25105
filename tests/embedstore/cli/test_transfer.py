"""Push and pull as commands: what lab A sends is what lab B evaluates."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fault_server import fault_server
from small_sets import add_set, content_of, manifest_of, run_program, spec_of

import embedstore
from embedstore.errors import EnvironmentFailure, StorageError
from embedstore.snapshot.describe import DOCUMENT_FILE, SIGNATURE_FILE
from embedstore.snapshot.place import LATEST_FILE
from embedstore.snapshot.remotes.folder import FolderRemote
from embedstore.store import Store

CLIPS = {f"clip{number}": 1 for number in range(8)}
PERMIT = ("--permission-ref", "letter of 2 May", "--recipient", "lab-b")


@pytest.fixture
def lab_a(tmp_path: Path) -> Path:
    store = Store.create(tmp_path / "a")
    store.add_manifest(manifest_of({clip_id: clip_id for clip_id in CLIPS}, ids="public"))
    for name in ("small", "other"):
        add_set(store, CLIPS, spec=spec_of(name))
    return tmp_path / "a"


def test_what_is_pushed_can_be_pulled_and_read(
    lab_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share, lab_b = tmp_path / "share", tmp_path / "b"
    assert run_program("snapshot", "push", str(share), *PERMIT, "--store", lab_a, "--json") == 0
    pushed = json.loads(capsys.readouterr().out)
    with fault_server(share) as server:
        pinned = f"{server.url}@sha256:{pushed['snapshot']}"
        assert run_program("snapshot", "pull", pinned, "--encoder", "small", "--store", lab_b, "--json") == 0
    pulled = json.loads(capsys.readouterr().out)
    assert pulled["trust"] == "intact, unsigned"
    assert 0 < pulled["files_absent"] < pushed["files"]
    (entry,) = embedstore.open(lab_b).entries()
    assert entry.encoder == "small"
    mine = content_of(embedstore.open(lab_a).get(dataset="mine", encoder="small"))
    assert content_of(embedstore.open(lab_b).get(dataset="mine", encoder="small")) == mine
    assert not [path for path in (lab_b / "builds").iterdir() if path.name.startswith(".staging")]


def test_the_licence_gate_stands_before_a_push(
    lab_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("snapshot", "push", str(tmp_path / "share"), "--store", lab_a) == 4
    assert "permission" in capsys.readouterr().err
    assert not (tmp_path / "share").exists()


def test_an_internal_copy_is_not_pushed(lab_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("snapshot", "export", str(tmp_path / "copy"), "--internal", "--store", lab_a) == 0
    assert run_program("snapshot", "push", str(tmp_path / "share"), "--from", str(tmp_path / "copy")) == 4
    assert "internal copy" in capsys.readouterr().err


def test_a_refused_pull_leaves_nothing_and_can_be_tried_again(
    lab_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent, lab_b = tmp_path / "sent", tmp_path / "b"
    assert run_program("snapshot", "export", str(sent), *PERMIT, "--store", lab_a) == 0
    with fault_server(sent) as server:
        server.fail("long", only=r"frames/c/0/0")
        assert run_program("snapshot", "pull", server.url, "--store", lab_b) == 4
        assert "is longer than" in capsys.readouterr().err
        assert not lab_b.exists(), "a store was made for what was refused"
        server.fail(None)
        before = len(server.requests)
        assert run_program("snapshot", "pull", server.url, "--store", lab_b) == 0
        again = {path for path, _ in server.requests[before:]}
    assert len(embedstore.open(lab_b).entries()) == 2
    assert any(path.endswith("frames/c/0/0") for path in again)
    assert (sent / DOCUMENT_FILE).exists()


def test_options_of_what_is_not_done_are_not_swallowed(
    lab_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("snapshot", "push", tmp_path / "share", "--from", "sent", "--with-labels", "sex") == 2
    assert "--with-labels is for an export" in capsys.readouterr().err
    assert run_program("snapshot", "pull", "share", "--to", tmp_path / "got", "--allow-rollback") == 2
    assert "--allow-rollback is for the import" in capsys.readouterr().err
    assert run_program("snapshot", "push", "https://lab.example/x", *PERMIT, "--store", lab_a) == 4
    assert "takes no files" in capsys.readouterr().err
    assert run_program("snapshot", "ls", "--store", lab_a, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sent"] == [], "it was exported for a place that takes nothing"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("pull", "nowhere"), 2, "there is no snapshot at nowhere"),
        (("pull", "http://93.184.216.34/x"), 4, "use https"),
        (("pull", "nowhere@sha256:12"), 2, "64 hexadecimal digits"),
        (("push", "ftp://x/y", "--from", "z"), 2, "snapshots lie in a folder"),
        (("push", "share", "--from", "z"), 2, "there is no exported snapshot at z"),
        (("pull", "https://[::1/x"), 2, "no address of a web server"),
        (("pull", "https://lab.example:abc/x"), 2, "no address of a web server"),
        (("pull", "http://nosuch.invalid/x"), 1, "the host 'nosuch.invalid' is not found"),
    ],
)
def test_bad_addresses_are_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_program("snapshot", *arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert says in lines[0]
    assert list(tmp_path.iterdir()) == []


# -- without a recipient ------------------------------------------------------------------------------------


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A store whose ids are private."""
    store = Store.create(tmp_path / "a")
    store.add_manifest(manifest_of({clip_id: clip_id for clip_id in CLIPS}, ids="private"))
    add_set(store, CLIPS)
    return tmp_path / "a"


def drawn(hospital: Path) -> set[str]:
    return {path.stem for path in (hospital / "private" / "pseudonyms").glob("*.json")}


def test_an_interrupted_push_to_nobody_in_particular_goes_on_with_its_names(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share = tmp_path / "share"
    command = ("snapshot", "push", str(share), *PERMIT[:2], "--parallel", "1", "--store", hospital, "--json")
    put, calls = FolderRemote.put, []

    def fail_later(self: FolderRemote, path: str, content: Path | bytes, **named: Any) -> None:
        calls.append(path)
        if len(calls) > 4:
            raise EnvironmentFailure("the line broke")
        put(self, path, content, **named)

    with monkeypatch.context() as broken:
        broken.setattr(FolderRemote, "put", fail_later)
        assert run_program(*command) == 1
    (begun,) = [path.name for path in share.iterdir()]
    assert not (share / LATEST_FILE).exists()
    capsys.readouterr()
    assert run_program(*command) == 0
    pushed = json.loads(capsys.readouterr().out)
    assert pushed["snapshot"] == begun, "the push made another snapshot instead of completing the one that was there"
    assert pushed["files_sent"] < pushed["files"]
    assert len(drawn(hospital)) == 1
    assert run_program(*command) == 0
    assert json.loads(capsys.readouterr().out)["snapshot"] != begun, "two recipients got the same names"
    assert len(drawn(hospital)) == 2


def test_an_export_to_nobody_in_particular_that_was_not_signed_is_completed(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    command = ("snapshot", "export", str(tmp_path / "sent"), *PERMIT[:2], "--sign", str(key), "--store", hospital)

    def refuse(*_: object) -> None:
        raise StorageError("the agent does not answer")

    with monkeypatch.context() as broken:
        broken.setattr("embedstore.snapshot.signature.sign", refuse)
        assert run_program(*command) == 1
    assert run_program(*command) == 0, capsys.readouterr().err
    assert (tmp_path / "sent" / SIGNATURE_FILE).is_file()
    assert len(drawn(hospital)) == 1
