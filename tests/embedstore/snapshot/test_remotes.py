"""Push and pull: through a folder, a web server, an S3-compatible server, and the hub."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from fault_server import FaultServer, fault_server
from sent_snapshots import tree_bytes

from embedstore.errors import (
    ContentError,
    CorruptionError,
    EnvironmentFailure,
    HostileInputError,
    PolicyError,
    UnknownNameError,
)
from embedstore.files import FileRecord
from embedstore.locks import folder_lock
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.fetch import FetchOptions
from embedstore.snapshot.place import LATEST_FILE, find_snapshot
from embedstore.snapshot.pull import pull_folder
from embedstore.snapshot.push import PushOptions, push_folder
from embedstore.snapshot.remotes import Address, Broken, Remote, connection, open_remote
from embedstore.snapshot.remotes.http import HttpRemote
from embedstore.snapshot.selection import PARTIAL_FILE, Selection, read_partial

QUICK = FetchOptions(n_parallel=4, attempts=3, first_pause_s=0.01, window_s=0.3)
PUSH = PushOptions(n_parallel=4, attempts=3, first_pause_s=0.01)


def pull_pinned(remote: Remote, snapshot_id: str, folder: Path) -> None:
    found = find_snapshot(remote, snapshot_id=snapshot_id, options=QUICK)
    pull_folder(remote, folder, found=found, options=QUICK)


def test_pull_from_a_web_server_brings_the_exported_bytes(
    exported: Path, served: FaultServer, tmp_path: Path
) -> None:
    outcome = pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)
    assert outcome.n_absent == 0
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "manifest-sha256.txt"], cwd=tmp_path / "got", capture_output=True
    )
    assert checked.returncode == 0, checked.stdout


def test_an_id_pins_the_snapshot(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    snapshot_id = SentSnapshot.read(exported).id
    pull_folder(
        open_remote(served.url),
        tmp_path / "a",
        found=find_snapshot(open_remote(served.url), snapshot_id=snapshot_id, options=QUICK),
        options=QUICK,
    )
    with pytest.raises(UnknownNameError, match="no snapshot abababababab"):
        pull_folder(
            open_remote(served.url),
            tmp_path / "b",
            found=find_snapshot(open_remote(served.url), snapshot_id="ab" * 32, options=QUICK),
            options=QUICK,
        )
    assert not (tmp_path / "b").exists()


def test_a_part_moves_its_own_bytes_only(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    snapshot = SentSnapshot.read(exported)
    selection = Selection(encoders=("small",), clips_only=True)
    outcome = pull_folder(open_remote(served.url), tmp_path / "part", selection=selection, options=QUICK)
    asked = {path.lstrip("/") for path, _ in served.requests}
    wanted = {file.path for file in snapshot.select(selection)}
    assert asked & {file.path for file in snapshot.files} == wanted
    assert 0 < outcome.n_files < len(snapshot.files)
    assert outcome.n_absent == len(snapshot.files) - outcome.n_files
    assert read_partial(tmp_path / "part", snapshot.id) == selection
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "manifest-sha256.txt"], cwd=tmp_path / "part", capture_output=True
    )
    assert checked.returncode == 0, checked.stdout
    with pytest.raises(UnknownNameError, match="another part"):
        pull_folder(open_remote(served.url), tmp_path / "part", options=QUICK)
    with pytest.raises(UnknownNameError, match="no encoder 'smal'.*small"):
        pull_folder(open_remote(served.url), tmp_path / "x", selection=Selection(encoders=("smal",)), options=QUICK)


# -- addresses ----------------------------------------------------------------------------------------------


def test_a_redirect_out_of_the_public_network_is_refused(
    served: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server here stands for a public one; where it leads is the address of a cloud's metadata service."""
    remote = open_remote(served.url)
    monkeypatch.setattr(connection, "is_private_host", lambda host: host != "127.0.0.1")
    served.fail("redirect-private", only="manifest.json")
    with pytest.raises(HostileInputError, match="inside a private network"):
        pull_folder(remote, tmp_path / "got", options=QUICK)


def test_a_name_that_changes_its_address_after_it_was_looked_up_leads_nowhere(
    served: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both names pass for public when they are looked up, and the connection ends on this machine all the same."""
    remote = open_remote(served.url)
    monkeypatch.setattr(connection, "is_private_host", lambda host: False)
    served.fail("redirect-other", only="manifest.json")
    with pytest.raises(HostileInputError, match="whose address is inside a private network"):
        pull_folder(remote, tmp_path / "got", options=QUICK)
    assert [path for path, _ in served.requests] == [f"/{DOCUMENT_FILE}"]


def test_a_redirect_is_followed_without_the_key_to_the_first_host(
    exported: Path, served: FaultServer, tmp_path: Path
) -> None:
    served.fail("redirect-other", times=1, only="manifest.json")
    remote = HttpRemote(served.url, headers={"Authorization": "Bearer secret"})
    pull_folder(remote, tmp_path / "got", options=QUICK)
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)
    first, second, *rest = [headers.get("Authorization") for headers in served.headers]
    assert first == "Bearer secret" and second is None and set(rest) == {"Bearer secret"}


def test_a_server_over_tls_must_prove_who_it_is(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with fault_server(exported, tls=context) as server:
        with pytest.raises(EnvironmentFailure, match="does not prove who it is"):
            pull_folder(open_remote(server.url), tmp_path / "got", options=QUICK)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        server.fail("short", times=1, only=r"small.*clips/c/0/0")
        pull_folder(open_remote(server.url), tmp_path / "got", options=QUICK)
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.8", "0x7f.1", "192.168.1.1", "[fe80::1]", "[::ffff:10.0.0.1]"],
)
def test_private_hosts_are_known(host: str) -> None:
    assert connection.is_private_host(host.strip("[]"))


@pytest.mark.parametrize("host", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_hosts_are_known(host: str) -> None:
    assert not connection.is_private_host(host)


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("http://93.184.216.34/x", HostileInputError, "use https"),
        ("https://user:secret@lab.example/x", HostileInputError, "carries a password"),
        ("https://lab.example/x?token=1", HostileInputError, "no address of a folder"),
        ("ftp://lab.example/x", UnknownNameError, "snapshots lie in"),
        ("gopher://user:secret@x", UnknownNameError, "snapshots lie in"),
        ("s3://key:secret@bucket/x", UnknownNameError, "names no bucket"),
        ("https://user:secret@lab.example:port/x", UnknownNameError, "no address of a web server"),
        ("s3:///folder", UnknownNameError, "names no bucket"),
        ("hf://models/a/b", UnknownNameError, "names no data set repository"),
    ],
)
def test_strange_addresses_are_refused(url: str, error: type[ContentError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        open_remote(url)
    assert "secret" not in str(caught.value)


def test_a_wrong_pin_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="64 hexadecimal digits"):
        Address.parse("https://lab.example/x@sha256:abc")


# -- push ---------------------------------------------------------------------------------------------------


def test_what_a_killed_push_left_is_cleared_and_a_live_one_is_not(exported: Path, tmp_path: Path) -> None:
    place = open_remote(str(tmp_path / "share"))
    folder = tmp_path / "share" / SentSnapshot.read(exported).id
    folder.mkdir(parents=True)
    dead, live = (folder / f".partial-{DOCUMENT_FILE}-{name}" for name in ("dead", "live"))
    dead.write_bytes(b"half")
    live.write_bytes(b"half")
    with folder_lock(live, busy="it is held"):
        push_folder(exported, place, options=PUSH)
    assert [path.name for path in folder.glob(".partial*")] == [live.name]


def test_push_to_a_folder_and_pull_again(exported: Path, tmp_path: Path) -> None:
    place = open_remote(str(tmp_path / "share"))
    sent = push_folder(exported, place, options=PUSH)
    assert sent.n_sent == sent.n_files - 1 > 0
    again = push_folder(exported, place, options=PUSH)
    assert again.n_sent == 0
    pull_folder(place, tmp_path / "got", options=QUICK)
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)
    pull_folder(
        place,
        tmp_path / "pinned",
        found=find_snapshot(place, snapshot_id=sent.snapshot_id, options=QUICK),
        options=QUICK,
    )


def test_a_push_that_was_cut_short_shows_nothing_and_goes_on(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_remote(str(tmp_path / "share"))
    put, n_put = type(place).put, 0

    def failing(self: object, path: str, content: object, *, record: FileRecord) -> None:
        nonlocal n_put
        n_put += 1
        if n_put > 5:
            raise Broken("the share is gone")
        put(place, path, content, record=record)  # type: ignore[arg-type]

    monkeypatch.setattr(type(place), "put", failing)
    with pytest.raises(EnvironmentFailure, match="was not written in 3 attempts"):
        push_folder(exported, place, options=PUSH)
    with pytest.raises(UnknownNameError, match="there is no snapshot"):
        find_snapshot(place, options=QUICK)
    monkeypatch.setattr(type(place), "put", put)
    assert push_folder(exported, place, options=PUSH).n_sent < len(SentSnapshot.read(exported).files)
    pull_folder(place, tmp_path / "got", options=QUICK)


def test_a_changed_file_is_not_pushed(exported: Path, tmp_path: Path) -> None:

    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    target = next(copy.rglob("clips/c/0/0"))
    target.write_bytes(b"\0" * target.stat().st_size)
    with pytest.raises(CorruptionError, match="is not what its snapshot lists"):
        push_folder(copy, open_remote(str(tmp_path / "share")), options=PUSH)
    assert not (tmp_path / "share" / LATEST_FILE).exists()


def test_a_part_is_not_pushed(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    pull_folder(open_remote(served.url), tmp_path / "part", selection=Selection(encoders=("small",)), options=QUICK)
    assert (tmp_path / "part" / PARTIAL_FILE).exists()
    with pytest.raises(PolicyError, match="only a part"):
        push_folder(tmp_path / "part", open_remote(str(tmp_path / "share")), options=PUSH)


def test_a_web_server_takes_no_files(exported: Path, served: FaultServer) -> None:
    with pytest.raises(PolicyError, match="takes no files"):
        push_folder(exported, open_remote(served.url), options=PUSH)


def test_nothing_is_pushed_into_the_folder_of_one_snapshot(exported: Path, tmp_path: Path) -> None:
    """Who pulls from there would go on seeing that one."""
    for source in (exported, tmp_path):
        with pytest.raises(UnknownNameError, match="is the folder of one snapshot|no exported snapshot"):
            push_folder(source, open_remote(str(exported)), options=PUSH)


def test_links_in_a_folder_are_not_followed(exported: Path, tmp_path: Path) -> None:
    place = tmp_path / "share"
    place.mkdir()
    (place / DOCUMENT_FILE).symlink_to(exported / DOCUMENT_FILE)
    with pytest.raises(HostileInputError, match="is a link"):
        find_snapshot(open_remote(str(place)), options=QUICK)


def test_an_s3_compatible_server(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        with pytest.raises((UnknownNameError, EnvironmentFailure)):
            find_snapshot(open_remote("s3://bucket/echo"), options=QUICK)
        _make_bucket(f"http://{host}:{port}/bucket")
        place = open_remote("s3://bucket/echo/v1")
        sent = push_folder(exported, place, options=PUSH)
        assert push_folder(exported, place, options=PUSH).n_sent == 0
        pull_folder(
            place,
            tmp_path / "got",
            found=find_snapshot(place, snapshot_id=sent.snapshot_id, options=QUICK),
            options=QUICK,
        )
        assert tree_bytes(tmp_path / "got") == tree_bytes(exported)
        target = next(file for file in SentSnapshot.read(exported).files if file.path.endswith("clips/c/0/0"))
        with place.open(f"{sent.snapshot_id}/{target.path}", start=5) as stream:
            assert stream.start == 5
            assert b"".join(stream.blocks) == (exported / target.path).read_bytes()[5:]
        with pytest.raises(FileNotFoundError), place.open("nothing"):
            pass
    finally:
        server.stop()


def _make_bucket(url: str) -> None:
    import urllib.request

    with urllib.request.urlopen(urllib.request.Request(url, method="PUT")):
        pass


def test_the_hub(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder served under the hub's paths stands for it; what is committed lands there in one step."""
    hub = pytest.importorskip("huggingface_hub")
    root = tmp_path / "hub"
    tree = root / "datasets/lab/echo/resolve/main"
    commits: list[int] = []

    def commit(self: object, repository: str, operations: list[object], **options: object) -> None:
        assert (repository, options["repo_type"], options["revision"]) == ("lab/echo", "dataset", "main")
        commits.append(len(operations))
        for operation in operations:
            target = tree / operation.path_in_repo  # type: ignore[attr-defined]
            target.parent.mkdir(parents=True, exist_ok=True)
            held = operation.path_or_fileobj  # type: ignore[attr-defined]
            target.write_bytes(held if isinstance(held, bytes) else Path(held).read_bytes())

    monkeypatch.setattr(hub.HfApi, "create_commit", commit)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    root.mkdir()
    with fault_server(root) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        place = open_remote("hf://datasets/lab/echo/v1")
        sent = push_folder(exported, place, options=PUSH)
        assert commits == [sent.n_files + 1]
        pull_folder(
            place,
            tmp_path / "got",
            found=find_snapshot(place, snapshot_id=sent.snapshot_id, options=QUICK),
            options=QUICK,
        )
    assert tree_bytes(tmp_path / "got") == tree_bytes(exported)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EnvironmentFailure, match="HF_HUB_OFFLINE"):
        open_remote("hf://datasets/lab/echo/v1")
