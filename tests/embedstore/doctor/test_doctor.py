"""The doctor on healthy and on broken machines: every finding says what to do, nothing hangs or imports torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import stub_encoder
from click.testing import CliRunner

from embedstore.cli.doctor import doctor
from embedstore.doctor import Finding, models
from embedstore.doctor.decoders import check_decoders
from embedstore.doctor.packages import check_torch, probe_torch
from embedstore.doctor.places import check_hub, check_store
from embedstore.store import Store


@pytest.fixture
def in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that puts a module of that name in front of the installed one, for child processes too."""
    folder = tmp_path / "in_front"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ["PYTHONPATH"]]))
    monkeypatch.syspath_prepend(folder)

    def put(name: str, text: str) -> None:
        (folder / f"{name}.py").write_text(text)

    return put


def by_name(findings: object) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}  # type: ignore[attr-defined]


def test_the_report_of_this_machine(tmp_path: Path) -> None:
    """As the command prints it, from a process that is then asked what it imported."""
    script = (
        "import sys; from embedstore.cli.main import program;"
        "code = program.main(['doctor', '--json'], standalone_mode=False);"
        "assert not {'torch', 'torchvision', 'transformers', 'open_clip'} & set(sys.modules), 'heavy';"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    named = {(check["area"], check["name"]): check for check in report["checks"]}
    assert {area for area, _ in named} == {"python", "packages", "device", "decoders", "encoders", "hub", "store"}
    for name in ("av", "cv2", "pydicom+gdcm", "nibabel", "pillow"):
        assert named["decoders", name]["status"] == "ok", named["decoders", name]
    assert named["packages", "torchvision"]["status"] == "ok"
    assert "as published" in named["encoders", "efficientnet-lite0"]["message"]
    assert "--weights echo-clip=" in named["encoders", "echo-clip"]["message"]
    assert all("\n" not in check["message"] for check in report["checks"])
    assert list(tmp_path.iterdir()) == []


def test_a_problem_is_exit_code_one(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        Finding(area="store", name="store", status="ok", message="fine"),
        Finding(area="device", name="cuda", status="note", message="none"),
    ]
    monkeypatch.setattr("embedstore.doctor.examine", lambda store: iter(findings))
    assert CliRunner().invoke(doctor, []).exit_code == 0
    findings.append(Finding(area="hub", name="hub", status="problem", message="mend it"))
    shown = CliRunner().invoke(doctor, [])
    assert shown.exit_code == 1 and "PROBLEM  hub" in shown.output and "mend it" in shown.output
    assert json.loads(CliRunner().invoke(doctor, ["--json"]).output)["ok"] is False


def test_a_pair_that_does_not_match_is_named(in_front: Callable[[str, str], None]) -> None:
    in_front("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    finding = by_name(check_torch(probe_torch()))["torchvision"]
    assert finding.status == "problem"
    assert "operator torchvision::nms does not exist" in finding.message and "pip install -c" in finding.message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import os; os.abort()", "ends the process with code -6"),
        ("import time; time.sleep(60)", "takes more than 1 s"),
        ("raise OSError('libcudart.so is not there')", "OSError: libcudart.so is not there"),
    ],
)
def test_a_torch_that_cannot_be_imported(text: str, complaint: str, in_front: Callable[[str, str], None]) -> None:
    in_front("torch", text)
    finding = by_name(check_torch(probe_torch(1.0 if "sleep" in text else 60.0)))["torch"]
    assert finding.status == "problem" and complaint in finding.message


def test_what_torch_says_is_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = by_name(check_torch({"torch": "2.5.1+cpu", "torchvision": "0.20.1", "devices": []}))
    assert old["torch"].status == "problem" and "CVE-2025-32434" in old["torch"].message
    assert by_name(check_torch({}))["torch"].status == "note"
    device = {"name": "GPU", "free": 3 << 30, "total": 8 << 30}
    found = by_name(check_torch({"torch": "2.15.0", "torchvision": "0.29.2", "devices": [device]}))
    assert found["cuda:0"].message == "GPU, 3.0 GiB of 8.0 GiB free" and found["torch"].status == "ok"
    driver = tmp_path / "version"
    driver.write_text("NVRM")
    monkeypatch.setattr("embedstore.doctor.packages._DRIVER", driver)
    unseen = by_name(check_torch({"torch": "2.15.0", "cuda_build": None, "devices": []}))["cuda"]
    assert unseen.status == "problem" and "built without CUDA" in unseen.message


def test_a_decoder_that_dies_or_lies_is_a_problem_of_its_own(in_front: Callable[[str, str], None]) -> None:
    in_front("nibabel", "import os; os.abort()")
    in_front("cv2", "raise ImportError('libGL.so.1: cannot open shared object file')")
    found = by_name(check_decoders())
    assert found["nibabel"].status == "problem" and "decoder-died" in found["nibabel"].message
    assert found["cv2"].status == "problem" and "libGL.so.1" in found["cv2"].message
    assert found["av"].status == found["pillow"].status == "ok"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "Git LFS pointer"),
        (b"", "is empty"),
        (b"PK\x03\x04 and no end", "is cut off or damaged"),
        (b"<!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_weights_that_are_none_are_found(
    content: bytes, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encoders.imagenet import MOBILENET_V2_CARD

    file = tmp_path / "cache" / "weights" / "mobilenet-v2" / "mobilenet_v2-b0353104.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    monkeypatch.setenv("EMBEDSTORE_CACHE", str(tmp_path / "cache"))
    card = replace(MOBILENET_V2_CARD, weights_locator=None)
    finding = models._check(card, {})
    assert finding.status == "problem" and complaint in finding.message and str(file) in finding.message


def test_other_weights_and_too_little_memory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDSTORE_CACHE", str(tmp_path))
    card = replace(stub_encoder.STUB, weights_url="https://host/w.pt", weights_sha256="0" * 64, n_parameters=1 << 30)
    absent = models._check(card, {"cpu": 1})
    assert absent.status == "note" and "--weights stub=" in absent.message and "about 4.0 GiB" in absent.message
    file = tmp_path / "weights" / "stub" / "w.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"other")
    other = models._check(card, {})
    assert other.status == "problem" and f"published is {'0' * 64}" in other.message
    unknown = replace(card, weights_sha256=None)
    whole = models._check(unknown, {"cpu": 8 << 30, "cuda:0": 4 << 30})
    assert whole.status == "ok" and "no digest is published" in whole.message
    tight = models._check(unknown, {"cpu": 7 << 30, "cuda:0": 3 << 30})
    assert tight.status == "problem"
    assert "cpu has 7.0 GiB of 8.0 GiB" in tight.message and "cuda:0 has 3.0 GiB of 4.0 GiB" in tight.message


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "hf_hub_offline"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return lambda address: monkeypatch.setenv("HF_ENDPOINT", address)


def test_a_hub_that_is_silent_costs_no_more_than_the_limit(network: Callable[[str], None]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        network(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        finding = check_hub(timeout_s=0.3)
        assert time.monotonic() - began < 5
    assert finding.status == "note" and "is not reached" in finding.message and "--weights" in finding.message


def test_a_name_that_is_never_looked_up_does_not_hang(
    network: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    network("http://hub.invalid")
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait() and [])
    finding = check_hub(timeout_s=0.2)
    released.set()
    assert "no answer in 0.2 s" in finding.message


def test_a_hub_that_answers_or_must_not_be_asked(
    network: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.send_response(405)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        network(f"http://127.0.0.1:{server.server_address[1]}")
        assert check_hub().status == "ok"
        thread.join()
    network("ftp://example.org")
    assert check_hub().status == "problem"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in check_hub().message


def test_stores_that_are_there_are_not_there_or_are_no_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    assert by_name(check_store(store))["store"].status == "note" and not store.exists()
    Store.create(store)
    before = sorted(store.rglob("*"))
    assert by_name(check_store(store))["store"].status == "ok"
    assert sorted(store.rglob("*")) == before, "the trial leaves nothing behind"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "--store" in by_name(check_store(tmp_path / "full"))["store"].message

    def read_only(operation: str, path: Path) -> None:
        if operation == "open":
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr("embedstore.disk.fault_hook", read_only)
    refused = by_name(check_store(store))["store"]
    assert refused.status == "problem" and "the file system is read-only" in refused.message
