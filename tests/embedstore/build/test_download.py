"""Downloads from a plain URL, from a server on this machine that can break in every way."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import stub_encoder

from embedstore.build.download import Download, download
from embedstore.build.weights import find_weights, has_weights
from embedstore.encoder import EncoderCard
from embedstore.errors import (
    BusyError,
    CorruptionError,
    EnvironmentFailure,
    HostileInputError,
    PolicyError,
    StorageError,
)
from embedstore.locks import host_lock

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """What the server does next."""

    content: bytes = CONTENT
    etag: str | None = '"first"'
    status: int | None = None
    knows_ranges: bool = True
    states_length: bool = True
    cut_after: list[int] = field(default_factory=list)
    redirect: str | None = None
    asked: list[str | None] = field(default_factory=list)
    base: str = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EMBEDSTORE_CACHE", str(tmp_path / "cache"))
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            self.close_connection = True
            if state.redirect is not None and self.path != "/moved":
                self.send_response(302)
                self.send_header("Location", state.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if state.status is not None:
                self.send_response(state.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = 0
            if wanted and state.knows_ranges and self.headers.get("If-Range") == state.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            else:
                self.send_response(200)
            if state.etag is not None:
                self.send_header("ETag", state.etag)
            if state.states_length:
                self.send_header("Content-Length", str(len(state.content) - start))
            self.send_header("Connection", "close")
            self.end_headers()
            stop = state.cut_after.pop(0) if state.cut_after else len(state.content)
            self.wfile.write(state.content[start : start + stop])

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that gives up is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.base = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def wanted(site: Site, tmp_path: Path) -> Download:
    target = tmp_path / "weights" / "model.pt"
    return Download(name="stub", url=f"{site.base}/v1/model.pt", target=target, sha256=SHA256, first_pause_s=0.001)


def left_beside(wanted: Download) -> set[str]:
    return {path.name for path in wanted.target.parent.iterdir()} - {f".{wanted.target.name}.lock"}


def test_a_file_is_fetched_whole_and_once(site: Site, wanted: Download) -> None:
    told: list[str] = []
    assert download(replace(wanted, tell=told.append)) == wanted.target
    assert wanted.target.read_bytes() == CONTENT and left_beside(wanted) == {"model.pt"}
    assert told == [f"fetching the weights of stub from {wanted.url} (3 MB)"]
    download(wanted)
    assert site.asked == [None]


def test_broken_connections_go_on_where_they_stopped(site: Site, wanted: Download) -> None:
    site.cut_after = [1_000_000, 700_000]
    download(wanted)
    assert wanted.target.read_bytes() == CONTENT
    assert site.asked == [None, "bytes=1000000-", "bytes=1700000-"]


def test_another_run_goes_on_where_one_gave_up(site: Site, wanted: Download) -> None:
    site.cut_after = [100] * 5
    with pytest.raises(EnvironmentFailure, match=r"in 5 attempts \(the connection ended after 500 of"):
        download(wanted)
    assert not wanted.target.exists()
    site.asked.clear()
    download(wanted)
    assert site.asked == ["bytes=500-"] and wanted.target.read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["other version", "no ranges", "no version"])
def test_what_cannot_be_resumed_starts_over(change: str, site: Site, wanted: Download) -> None:
    site.cut_after = [1_000_000] + [0] * 4
    if change == "no version":
        site.etag = None
    with pytest.raises(EnvironmentFailure, match="5 attempts"):
        download(wanted)
    site.content = CONTENT[:2_000_000] if change == "other version" else CONTENT
    if change == "other version":
        site.etag = '"second"'
    site.knows_ranges = change != "no ranges"
    download(replace(wanted, sha256=None))
    assert wanted.target.read_bytes() == site.content


def test_a_short_answer_without_a_length_is_found_by_the_digest(site: Site, wanted: Download) -> None:
    site.states_length = False
    site.cut_after = [1_000_000]
    with pytest.raises(CorruptionError, match=f"published is {SHA256}; it was removed"):
        download(wanted)
    assert left_beside(wanted) == set()
    download(wanted)
    assert wanted.target.read_bytes() == CONTENT


def test_another_file_is_refused_and_removed(site: Site, wanted: Download) -> None:
    site.content = b"not those weights"
    found = hashlib.sha256(site.content).hexdigest()
    with pytest.raises(CorruptionError, match=f"has SHA-256 {found}, published is {SHA256}; it was removed"):
        download(wanted)
    assert left_beside(wanted) == set()


@pytest.mark.parametrize(
    ("status", "error", "complaint"),
    [
        (404, EnvironmentFailure, "is not there any more (the server answers 404); look for the weights of 'stub'"),
        (410, EnvironmentFailure, "is not there any more"),
        (
            401,
            PolicyError,
            "ask for a login or consent; fetch the file in a browser and give it with --weights",
        ),
        (403, PolicyError, "is not open to this machine (the server answers 403)"),
        (503, EnvironmentFailure, "was not fetched in 5 attempts (the server answers 503)"),
    ],
)
def test_refusals_say_what_to_do(
    status: int, error: type[Exception], complaint: str, site: Site, wanted: Download
) -> None:
    site.status = status
    with pytest.raises(error) as caught:
        download(wanted)
    assert complaint in str(caught.value) and wanted.url in str(caught.value) and "\n" not in str(caught.value)
    assert len(site.asked) == (5 if status == 503 else 1) and left_beside(wanted) == set()


def test_a_server_that_is_not_there(wanted: Download) -> None:
    gone = replace(wanted, url="http://127.0.0.1:9/model.pt")
    with pytest.raises(EnvironmentFailure, match=r"5 attempts .* put it at .*/weights/model.pt, or give it with"):
        download(gone)


def test_redirects_are_followed_but_not_to_other_schemes(site: Site, wanted: Download) -> None:
    site.redirect = f"{site.base}/moved"
    download(wanted)
    assert wanted.target.read_bytes() == CONTENT
    wanted.target.unlink()
    for place in ("http://example.org/model.pt", "ftp://127.0.0.1/model.pt"):
        site.redirect = place
        with pytest.raises(HostileInputError, match=f"leads to {place}, which is not https"):
            download(wanted)
    site.redirect = f"{site.base}/again"
    with pytest.raises(EnvironmentFailure):
        download(wanted)
    for url in ("http://example.org/model.pt", "file:///etc/passwd"):
        with pytest.raises(HostileInputError, match="which is not https"):
            download(replace(wanted, url=url))


def test_one_process_fetches_a_file_at_a_time(site: Site, wanted: Download) -> None:
    wanted.target.parent.mkdir()
    lock = wanted.target.parent / ".model.pt.lock"
    with host_lock(lock, shared=False, wait_s=0, busy=""), pytest.raises(BusyError, match="another process fetches"):
        download(wanted)
    assert site.asked == []


def test_a_full_disk_is_not_taken_for_a_broken_connection(
    site: Site, wanted: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(StorageError, match="the disk is full"):
        download(wanted)
    assert site.asked == [None]


def card(site: Site, **changes: object) -> EncoderCard:
    fields = {"weights_url": f"{site.base}/v1/model.pt", "weights_sha256": SHA256, **changes}
    return replace(stub_encoder.STUB, **fields)  # type: ignore[arg-type]


def test_an_encoder_that_is_named_is_fetched_from_its_url(site: Site, tmp_path: Path) -> None:
    stub = card(site)
    assert not has_weights(stub) and stub.takes_weights
    with pytest.raises(EnvironmentFailure, match="not on this machine"):
        find_weights(stub)
    assert site.asked == []
    found = find_weights(stub, download=True)
    assert found.path == tmp_path / "cache" / "weights" / "stub" / "model.pt" and found.sha256 == SHA256
    assert has_weights(stub) and find_weights(stub) == found


def test_offline_nothing_is_fetched_and_the_sentence_says_where_to_put_the_file(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EnvironmentFailure) as caught:
        find_weights(card(site), download=True)
    place = tmp_path / "cache" / "weights" / "stub" / "model.pt"
    for part in ("HF_HUB_OFFLINE is set", f"{site.base}/v1/model.pt", f"put it at {place}", "--weights stub=FILE"):
        assert part in str(caught.value)
    assert site.asked == []
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert find_weights(card(site), download=True).path == place


def test_installed_weights_must_be_the_published_ones_given_ones_need_not(site: Site, tmp_path: Path) -> None:
    stub = card(site)
    find_weights(stub, download=True)
    place = tmp_path / "cache" / "weights" / "stub" / "model.pt"
    place.write_bytes(b"damaged")
    with pytest.raises(CorruptionError, match="remove them and fetch or install them again"):
        find_weights(stub)
    mine = tmp_path / "mine.pt"
    mine.write_bytes(b"tuned further")
    told: list[str] = []
    found = find_weights(stub, mine, tell=told.append)
    assert found.sha256 == hashlib.sha256(b"tuned further").hexdigest()
    (sentence,) = told
    assert f"mine.pt has SHA-256 {found.sha256}, not that of the published weights ({SHA256})" in sentence
    mine.write_bytes(CONTENT)
    told.clear()
    assert find_weights(stub, mine, tell=told.append).sha256 == SHA256 and told == []


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def test_weights_inside_an_archive_are_taken_out(site: Site, tmp_path: Path) -> None:
    site.content = zipped({"model_data/weights/model.pt": CONTENT, "model_data/readme.txt": b"read"})
    stub = card(site, weights_url=f"{site.base}/model_data.zip", weights_member="model_data/weights/model.pt")
    found = find_weights(stub, download=True)
    assert found.path == tmp_path / "cache" / "weights" / "stub" / "model.pt" and found.sha256 == SHA256
    kept = {path.name for path in found.path.parent.iterdir() if not path.name.startswith(".")}
    assert kept == {"model.pt"}, "the archive is not kept"


@pytest.mark.parametrize("fault", ["damaged", "other", "absent", "no archive"])
def test_archives_that_do_not_hold_the_weights(fault: str, site: Site, tmp_path: Path) -> None:
    member = "weights/model.pt"
    content = zipped({"else.pt" if fault == "absent" else member: b"else" if fault == "other" else CONTENT})
    if fault == "damaged":
        content = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
    site.content = b"<html>" if fault == "no archive" else content
    stub = card(site, weights_url=f"{site.base}/data.zip", weights_member=member)
    error, said = {
        "damaged": (CorruptionError, "is damaged .*CRC-32"),
        "other": (CorruptionError, f"published is {SHA256}"),
        "absent": (StorageError, "holds no weights/model.pt"),
        "no archive": (CorruptionError, "is damaged .*not a zip"),
    }[fault]
    with pytest.raises(error, match=said):
        find_weights(stub, download=True)
    assert not (tmp_path / "cache" / "weights" / "stub" / "model.pt").exists()
