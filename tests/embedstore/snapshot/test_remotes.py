"""Push and pull: through a folder, a web server that fails in every way, an S3-compatible server, and the hub."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedstore.errors import (
    ContentError,
    CorruptionError,
    EmbedstoreError,
    EnvironmentFailure,
    HostileInputError,
    PolicyError,
    UnknownNameError,
)
from embedstore.files import FileRecord
from embedstore.snapshot.describe import DOCUMENT_FILE, SentSnapshot
from embedstore.snapshot.export import export_snapshot
from embedstore.snapshot.fetch import FetchOptions
from embedstore.snapshot.place import LATEST_FILE, find_snapshot
from embedstore.snapshot.plan import ExportRequest
from embedstore.snapshot.pull import pull_folder
from embedstore.snapshot.push import PushOptions, push_folder
from embedstore.snapshot.remotes import Address, Broken, Remote, connection, open_remote
from embedstore.snapshot.selection import PARTIAL_FILE, Selection, read_partial
from embedstore.store import Store
from tests.plugin.fault_server import FaultServer, fault_server
from tests.plugin.small_sets import add_set, manifest_of, spec_of

QUICK = FetchOptions(n_parallel=4, attempts=3, first_pause_s=0.01, window_s=0.3)
PUSH = PushOptions(n_parallel=4, attempts=3, first_pause_s=0.01)
CLIPS = {f"clip{number}": 1 for number in range(12)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of one data set with two encoders."""
    folder = tmp_path_factory.mktemp("exported")
    store = Store.create(folder / "store")
    store.add_manifest(manifest_of({clip_id: clip_id for clip_id in CLIPS}))
    for name in ("small", "other"):
        add_set(store, CLIPS, spec=spec_of(name))
    request = ExportRequest(target=folder / "sent", recipient="lab b", permission_ref="letter of 2 May")
    export_snapshot(store, request)
    return folder / "sent"


@pytest.fixture
def served(exported: Path) -> Iterator[FaultServer]:
    with fault_server(exported) as server:
        yield server


def listed(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pull_pinned(remote: Remote, snapshot_id: str, folder: Path) -> None:
    found = find_snapshot(remote, snapshot_id=snapshot_id, options=QUICK)
    pull_folder(remote, folder, found=found, options=QUICK)


def test_pull_from_a_web_server_brings_the_exported_bytes(
    exported: Path, served: FaultServer, tmp_path: Path
) -> None:
    outcome = pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert listed(tmp_path / "got") == listed(exported)
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


# -- faults -------------------------------------------------------------------------------------------------

TRANSIENT = ["reset", "stall", "trickle", "short", "500", "429", "wrong-range"]
LASTING: list[tuple[str, type[EmbedstoreError], str]] = [
    ("reset", EnvironmentFailure, "did not come"),
    ("stall", EnvironmentFailure, "did not come"),
    ("trickle", EnvironmentFailure, "did not come"),
    ("short", EnvironmentFailure, "did not come"),
    ("long", HostileInputError, "longer than"),
    ("endless", HostileInputError, "longer than"),
    ("wrong-bytes", CorruptionError, "is not the file"),
    ("500", EnvironmentFailure, "the server answers 500"),
    ("429", EnvironmentFailure, "the server answers 429"),
    ("redirect-loop", HostileInputError, "redirect"),
]


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TIMEOUT_S", 0.4)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_passing_fault_is_outlasted(exported: Path, served: FaultServer, tmp_path: Path, fault: str) -> None:
    served.fail(fault, times=2, only=r"c/0/0")
    pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert listed(tmp_path / "got") == listed(exported)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(("fault", "error", "says"), LASTING)
def test_a_lasting_fault_is_one_sentence_and_nothing_is_visible(
    exported: Path, served: FaultServer, tmp_path: Path, fault: str, error: type[EmbedstoreError], says: str
) -> None:
    served.fail(fault, only=r"small.*clips/c/0/0")
    with pytest.raises(error, match=says) as caught:
        pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "got" / DOCUMENT_FILE).exists()
    served.fail(None)
    pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert listed(tmp_path / "got") == listed(exported)


def test_what_came_is_gone_on_with(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    served.fail("short", times=1, only=r"small.*clips/c/0/0")
    pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    ranges = [asked for path, asked in served.requests if re.search(r"small.*clips/c/0/0", path)]
    size = next(
        file.size for file in SentSnapshot.read(exported).files if re.search(r"small.*clips/c/0/0", file.path)
    )
    assert ranges == [None, f"bytes={size // 2}-"]


def test_a_server_without_ranges_is_read_from_the_start(exported: Path, served: FaultServer, tmp_path: Path) -> None:
    served.ranges = False
    served.fail("short", times=1, only=r"c/0/0")
    pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert listed(tmp_path / "got") == listed(exported)


def test_bytes_of_another_version_behind_a_range_are_found_and_fetched_again(
    exported: Path, served: FaultServer, tmp_path: Path
) -> None:
    target = next(file for file in SentSnapshot.read(exported).files if file.path.endswith("clips/c/0/0"))
    stale = tmp_path / "got" / f"{target.path}.partial"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"\1" * (target.size // 2))
    pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)
    assert listed(tmp_path / "got") == listed(exported)


def test_an_unreachable_server_is_an_environment_failure(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EnvironmentFailure, match="was not reached in 3 attempts"):
            pull_folder(open_remote(url), tmp_path / "got", options=QUICK)


def test_a_huge_document_is_cut_off(served: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedstore.snapshot.place.MAX_DOCUMENT_BYTES", 10_000)
    served.fail("endless", only="manifest.json")
    with pytest.raises(HostileInputError, match="is larger than 10000 bytes"):
        pull_folder(open_remote(served.url), tmp_path / "got", options=QUICK)


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
        ("gopher://x", UnknownNameError, "snapshots lie in"),
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


def test_push_to_a_folder_and_pull_again(exported: Path, tmp_path: Path) -> None:
    place = open_remote(str(tmp_path / "share"))
    sent = push_folder(exported, place, options=PUSH)
    assert sent.n_sent == sent.n_files - 1 > 0
    again = push_folder(exported, place, options=PUSH)
    assert again.n_sent == 0
    pull_folder(place, tmp_path / "got", options=QUICK)
    assert listed(tmp_path / "got") == listed(exported)
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
    import shutil

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
        assert listed(tmp_path / "got") == listed(exported)
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
    assert listed(tmp_path / "got") == listed(exported)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EnvironmentFailure, match="HF_HUB_OFFLINE"):
        open_remote("hf://datasets/lab/echo/v1")
