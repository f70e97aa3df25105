"""Kills, failing disks and crowds: whatever happens, the same command ends in the same bytes.

`make test` runs a seeded case of each kind; `make test-slow` runs the stated counts.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import crash_child
import pytest
from clip_files import write_clip_folder
from crash_child import said

from embedstore.manifest import Manifest, RecipeRequest, get_recipe
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["crash_child"])
MODE = pytest.mark.parametrize(
    "many", [pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Ten clips, so four units, and their manifest."""
    folder = tmp_path_factory.mktemp("media")
    root = write_clip_folder(folder, 5)
    manifest = get_recipe("folder").make(RecipeRequest(root=root, table=folder / "clips.csv")).manifest
    return root, manifest


@pytest.fixture(scope="module")
def reference(media: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, int]]:
    """Snapshot id and operation counts of an uninterrupted build."""
    store = fresh(tmp_path_factory.mktemp("reference") / "store", media)
    counts = crash_child.count_operations(store.layout.root)
    return store.snapshot().id, counts


def fresh(path: Path, media: tuple[Path, Manifest]) -> Store:
    store = Store.create(path)
    store.add_manifest(media[1], root=media[0])
    return store


def run(store: Store, *fault: str, shard: tuple[int, int] | None = None) -> int | None:
    process = CONTEXT.Process(target=crash_child.run, args=(store.layout.root, fault, shard))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the build hangs"
    return process.exitcode


def check_whole(store: Store, expected: str) -> None:
    """Everything visible is whole before the next run, and after it the store is the uninterrupted one."""
    before = verify_store(store, quick=False)
    assert before.ok, before.problems
    assert run(store) == 0
    assert store.snapshot().id == expected
    assert verify_store(store, quick=False).ok
    left = [path.name for path in store.layout.builds.iterdir() if not path.name.endswith(".lock")]
    assert [name for name in left if not name.startswith(".")] == []


@MODE
def test_a_kill_at_every_operation(
    many: bool, media: tuple[Path, Manifest], reference: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    expected, counts = reference
    total = sum(counts.values())
    numbers = range(1, total + 1) if many else random.Random(0).sample(range(1, total + 1), 6)
    for number in numbers:
        store = fresh(tmp_path / f"store-{number}", media)
        assert run(store, "kill", str(number)) == -9
        check_whole(store, expected)
        shutil.rmtree(store.layout.root)


@MODE
def test_kills_at_random_instants(
    many: bool, media: tuple[Path, Manifest], reference: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    expected, _ = reference
    draw = random.Random(1)
    began = time.perf_counter()
    assert run(fresh(tmp_path / "timed", media)) == 0
    whole_s = time.perf_counter() - began
    for number in range(200 if many else 4):
        store = fresh(tmp_path / f"store-{number}", media)
        for _ in range(draw.choice([1, 1, 2])):
            process = CONTEXT.Process(target=crash_child.run, args=(store.layout.root,))
            process.start()
            process.join(draw.random() * whole_s)
            process.kill()
            process.join()
        check_whole(store, expected)
        shutil.rmtree(store.layout.root)


@MODE
@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
def test_a_disk_that_fails(
    many: bool, code: str, media: tuple[Path, Manifest], reference: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    expected, counts = reference
    draw = random.Random(2)
    for operation in ("open", "write", "scratch", "fsync", "link", "rename", "unlink"):
        last = min(counts.get(operation, 0), 100)
        for number in range(1, last + 1) if many else [draw.randint(1, last)]:
            store = fresh(tmp_path / f"store-{operation}-{number}", media)
            assert run(store, operation, code, str(number)) == 1, (operation, number)
            # The disk may fail when the commit is made: then the sentence says that it is.
            is_made = store.log()[0].snapshot_id == expected
            assert ("is made" in said(store.layout.root) or "is committed" in said(store.layout.root)) == is_made, (
                operation,
                number,
            )
            check_whole(store, expected)
            shutil.rmtree(store.layout.root)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("EACCES", "permission is denied"),
        ("EROFS", "the file system is read-only"),
        ("EDQUOT", "the disk quota is used up"),
        ("ESTALE", "the network file system went away"),
    ],
)
def test_other_refusals_of_the_disk(
    code: str, words: str, media: tuple[Path, Manifest], reference: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    expected, counts = reference
    store = fresh(tmp_path / "store", media)
    before = store.snapshot().id
    number = random.Random(code).randint(1, counts["write"] // 2)
    assert run(store, "write", code, str(number)) == 1
    told = said(store.layout.root)
    assert words in told and f"cannot write {store.layout.root}" in told
    assert store.snapshot().id == before
    check_whole(store, expected)


SYSTEM_CALLS = {
    "write": "write,pwrite64,writev",
    "fsync": "fsync,fdatasync",
    "link": "link,linkat",
    "rename": "rename,renameat,renameat2",
    "unlink": "unlink,unlinkat,rmdir",
}
BUILD_ONCE = "import pathlib, sys, crash_child; crash_child.run(pathlib.Path(sys.argv[1]))"


def traced(store: Store, calls: str, what: str) -> int:
    """Build in a process whose system calls the kernel's tracer spoils; the counts are for each thread."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:{what}"]
    done = subprocess.run(
        [*command, sys.executable, "-B", "-c", BUILD_ONCE.replace(".run(", ".run_silently("), str(store.layout.root)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode


WHATS = ("error=ENOSPC", "error=EIO", "signal=KILL")
EVERY_CALL = [
    pytest.param(operation, what, 100, marks=pytest.mark.slow) for operation in SYSTEM_CALLS for what in WHATS
]
SOME_CALLS = [("fsync", "error=EIO", 1), ("rename", "signal=KILL", 1)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("operation", "what", "last"), [*SOME_CALLS, *EVERY_CALL])
def test_system_calls_that_fail(
    operation: str,
    what: str,
    last: int,
    media: tuple[Path, Manifest],
    reference: tuple[str, dict[str, int]],
    tmp_path: Path,
) -> None:
    """Call 1, 2, 3 ... fails, until a build comes through: nothing is left that could."""
    expected, _ = reference
    for number in range(1, last + 1):
        store = fresh(tmp_path / f"store-{number}", media)
        code = traced(store, SYSTEM_CALLS[operation], f"{what}:when={number}")
        if code == 0 and number > 1:
            assert store.snapshot().id == expected
            break
        assert code in ((-9, 137) if what == "signal=KILL" else (1,)), (operation, what, number, code)
        check_whole(store, expected)
        shutil.rmtree(store.layout.root)


SMALL_DISK = """
mkdir "$1/disk" && mount -t tmpfs -o size=120k none "$1/disk" && cp -r "$1/store" "$1/disk/store" || exit 1
build() { CRASH_CHILD_SAID="$1/$2" "$PYTHON" -c "$BUILD_ONCE" "$1/disk/store"; echo "$2 $?"; }
build "$1" small
mount -o remount,size=64m,ro "$1/disk"
build "$1" read-only
mount -o remount,rw "$1/disk"
build "$1" large
rm -r "$1/store" && cp -r "$1/disk/store" "$1/store"
"""


def test_a_disk_that_is_really_full_and_then_read_only(
    media: tuple[Path, Manifest], reference: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    """A file system of a few hundred KiB in a name space of its own."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("name spaces are not to be had here")
    store = fresh(tmp_path / "store", media)
    before, expected = store.snapshot().id, reference[0]
    done = subprocess.run(
        [*unshare, "bash", "-c", SMALL_DISK, "bash", str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable, "BUILD_ONCE": BUILD_ONCE},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["small 1", "read-only 1", "large 0"], done.stdout + done.stderr
    for name, words in (("small", "the disk is full"), ("read-only", "the file system is read-only")):
        told = (tmp_path / name).read_text()
        assert words in told and f"{tmp_path}/disk/store" in told
    assert before != expected and Store.open(tmp_path / "store").snapshot().id == expected
    check_whole(Store.open(tmp_path / "store"), expected)


@MODE
def test_eight_builders_at_once(
    many: bool, media: tuple[Path, Manifest], reference: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    expected, _ = reference
    for number in range(50 if many else 2):
        store = fresh(tmp_path / f"store-{number}", media)
        shards: list[tuple[int, int] | None] = [None] * 8 if number % 2 else [(index, 8) for index in range(8)]
        crowd = [CONTEXT.Process(target=crash_child.run, args=(store.layout.root, (), shard)) for shard in shards]
        for process in crowd:
            process.start()
        for process in crowd:
            process.join(60)
        codes = [process.exitcode for process in crowd]
        assert set(codes) <= ({0, 5} if number % 2 else {0}) and 0 in codes, codes
        assert store.snapshot().id == expected
        check_whole(store, expected)
        shutil.rmtree(store.layout.root)


@pytest.fixture(scope="module")
def built(media: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A committed store; tests put back what they break."""
    store = fresh(tmp_path_factory.mktemp("built") / "store", media)
    crash_child.build(store.layout.root)
    return store


def guarded_files(store: Store) -> list[Path]:
    """Every file whose bytes the store promises: all but local settings and lock files."""
    left_out = {store.layout.local_file}
    found = [path for path in store.layout.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(path for path in found if path not in left_out)


@MODE
def test_every_flipped_bit_is_found(many: bool, built: Store) -> None:
    draw = random.Random(3)
    paths = guarded_files(built)
    assert verify_store(built, quick=False).ok
    for number in range(1000 if many else 60):
        path = paths[number % len(paths)]
        payload = path.read_bytes()
        flipped = bytearray(payload)
        flipped[draw.randrange(len(payload))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(flipped))
        found = verify_store(Store(built.layout), quick=False)
        path.write_bytes(payload)
        assert not found.ok, path
    assert verify_store(built, quick=False).ok


def _delete(path: Path) -> str:
    path.unlink()
    return "missing"


def _truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-1])
    return "truncated"


def _alter(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    return "altered"


@pytest.mark.parametrize("damage", [_delete, _truncate, _alter])
def test_damage_to_each_file_is_told_apart(built: Store, damage: Callable[[Path], str]) -> None:
    for path in guarded_files(built):
        payload = path.read_bytes()
        kind = damage(path)
        found = verify_store(Store(built.layout), quick=False) if path != built.layout.store_file else None
        path.write_bytes(payload)
        if found is None:
            continue
        assert not found.ok, path
        name = path.relative_to(built.layout.root).as_posix()
        if "sets/" in name and path.name not in ("description.json", "provenance.json"):
            assert [(problem.file, problem.kind) for problem in found.problems] == [(name, kind)]
    assert verify_store(built, quick=False).ok


def test_added_and_swapped_files_are_found(built: Store) -> None:
    (folder,) = [path for path in built.layout.sets.iterdir() if path.is_dir()]
    stranger = folder / "frames" / "c" / "1"
    stranger.mkdir()
    (stranger / "0").write_bytes(b"more")
    (problem,) = verify_store(built, quick=True).problems
    assert problem.kind == "added" and problem.file.endswith("frames/c/1/0")
    shutil.rmtree(stranger)
    one, two = folder / "index.parquet", folder / "frame_index.parquet"
    bytes_of = {path: path.read_bytes() for path in (one, two)}
    one.write_bytes(bytes_of[two])
    two.write_bytes(bytes_of[one])
    kinds = {problem.kind for problem in verify_store(built, quick=False).problems}
    one.write_bytes(bytes_of[one])
    two.write_bytes(bytes_of[two])
    assert "swapped" in kinds
    assert verify_store(built, quick=False).ok
