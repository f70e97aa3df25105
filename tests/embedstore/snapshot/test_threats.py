"""The threats of imported data, one by one, and snapshots made to hurt: refused, nothing seen, nothing touched.

S1 names, S2 links, S3 bombs, S4 and S5 array metadata, S6 pickles, S7 Parquet, S8 FAISS, S9 values, S10 ids, S11
YAML, S14 mixtures, S15 and S16 what is shown to people. S12 (checkpoints) and S18 (media) have tests beside their
readers, S13 (addresses) beside the remotes, S17 (spreadsheets) beside the reports; rows that were shuffled (S19)
cannot be told from their digests, and are found by ``embedstore verify --recompute`` where the clips are.

`make test` runs every attack in this process and some in a child with limits; `make test-slow` all of them there.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hostile_snapshots import ARCHIVES, CANARY, METADATA, SET, Honest
from sent_snapshots import copied, export_of, hospital_store, reseal, rewrite_document, run_command, snapshot_at
from small_sets import content_of, tree_of

from embedstore.build.run import BuildRequest, build_sets
from embedstore.errors import EmbedstoreError
from embedstore.identity import sha256_hex
from embedstore.json_files import parse_json
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.safe_yaml import parse_yaml
from embedstore.snapshot.importing import import_snapshot
from embedstore.snapshot.paths import check_path
from embedstore.snapshot.selection import Selection
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store

ATTACKS = {f"archive-{name}": attack for name, attack in ARCHIVES.items()}
ATTACKS |= {f"metadata-{name}": attack for name, attack in METADATA.items()}
SEEDED = sorted(random.Random(7).sample(sorted(ATTACKS), 3))
SLOW = pytest.mark.slow
FUZZED = 300


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    folder = tmp_path_factory.mktemp("honest")
    store = hospital_store(folder / "a")
    export_of(store, folder / "out")
    export_of(store, folder / "out.zip", archive=True)
    canary = folder / "canary"
    canary.write_bytes(CANARY)
    return Honest(folder / "out", folder / "out.zip", canary)


def attack(name: str, honest: Honest, tmp_path: Path) -> tuple[int, str]:
    """Import a hostile snapshot into a store that has something; return the exit code and the error's line."""
    (tmp_path / "made").mkdir()
    source = ATTACKS[name](tmp_path / "made", honest)
    store = hospital_store(tmp_path / "b", name="other", n_clips=6)
    before = {path for path in tree_of(tmp_path) if not path.startswith("b/builds")}
    ran = run_command("snapshot", "import", source, "--store", store.layout.root)
    after = {path for path in tree_of(tmp_path) if not path.startswith("b/builds")}
    assert after == before, "something was left, or written elsewhere"
    assert honest.canary.read_bytes() == CANARY
    assert verify_store(store, quick=False).ok and len(store.log()) == 3
    return ran.code, ran.err


def check_refusal(code: int, line: str) -> None:
    assert code == 4, line
    assert line.startswith("Error: ") and line.count("\n") == 1 and "Traceback" not in line
    assert line.rstrip("\n").isprintable()


def test_there_are_as_many_attacks_as_promised() -> None:
    assert len(ARCHIVES) >= 60 and len(METADATA) >= 40


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_it_is_refused(name: str, honest: Honest, tmp_path: Path) -> None:
    check_refusal(*attack(name, honest, tmp_path))


@pytest.mark.parametrize("name", [n if n in SEEDED else pytest.param(n, marks=SLOW) for n in sorted(ATTACKS)])
def test_it_is_refused_in_a_child(name: str, honest: Honest, tmp_path: Path, in_a_child: None) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    check_refusal(*attack(name, honest, tmp_path))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, since other programs may hold the machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    # A forked child counts pages shared with this process too, and an earlier test's child may be the largest.
    shared = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after.ru_maxrss <= max(shared + (1 << 20), before.ru_maxrss), "more than 1 GiB"


def test_the_honest_one_is_accepted_in_a_child(honest: Honest, tmp_path: Path, in_a_child: None) -> None:
    for source in (honest.folder, honest.archive):
        store = Store.create(tmp_path / source.name)
        assert import_snapshot(store, source).snapshot.id == snapshot_at(honest.folder).id


def test_a_reader_that_crashes_or_hangs_is_a_refusal(
    honest: Honest, tmp_path: Path, in_a_child: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S7: a library in C may die of what it reads; the import is refused and the store stays."""
    from embedstore.snapshot import quarantine

    for crash in (
        "import os, sys; sys.stdin.read(); os.abort()",
        "import sys; sys.stdin.read(); x = bytearray(1 << 50)",
    ):
        monkeypatch.setattr(quarantine, "_BOOTSTRAP", crash)
        store = Store.create(tmp_path / f"b{len(crash)}")
        with pytest.raises(EmbedstoreError, match="took more memory, time or space than it may, or crashed"):
            import_snapshot(store, honest.folder)
        assert not store.entries()


FENCED = """
import ctypes, errno, json, os, pickle, socket, subprocess, sys, threading
from embedstore.snapshot import inspection

def python_refuses(action):
    try:
        action()
    except Exception as error:
        return type(error).__name__
    return "allowed"

def answer(request, *, is_child):
    address = ("127.0.0.1", PORT)
    library = ctypes.CDLL(None, use_errno=True)
    found = {
        "socket": python_refuses(socket.socket),
        "connection": python_refuses(lambda: socket.create_connection(address, timeout=5)),
        "look-up": python_refuses(lambda: socket.getaddrinfo("localhost", 80)),
        "program": python_refuses(lambda: subprocess.run(["true"])),
        "shell": python_refuses(lambda: os.system("true")),
        "pickle": python_refuses(lambda: pickle.loads(b"cos\\nsystem\\n(S'true'\\ntR.")),
    }
    def call():
        found["call"] = library.socket(socket.AF_INET, socket.SOCK_STREAM, 0), errno.errorcode.get(ctypes.get_errno())
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return {"refused": {"kind": "hostile", "message": json.dumps(found)}}

inspection.answer = answer
inspection.main()
"""


def test_the_child_reaches_no_network_and_starts_no_program(
    honest: Honest, tmp_path: Path, in_a_child: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever runs in it: Python code is stopped by the audit hook, a library in C by the kernel."""
    from embedstore.snapshot import quarantine

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        script = "import os, sys; sys.path[:] = sys.argv[1].split(os.pathsep)\n"
        script += FENCED.replace("PORT", str(server.getsockname()[1]))
        monkeypatch.setattr(quarantine, "_BOOTSTRAP", script)
        with pytest.raises(EmbedstoreError) as refused:
            import_snapshot(Store.create(tmp_path / "b"), honest.folder)
        with pytest.raises(BlockingIOError):
            server.accept()
    found = json.loads(str(refused.value))
    call = found.pop("call")
    assert set(found.values()) == {"HostileInputError"}, found
    if sys.platform.startswith("linux") and os.uname().machine in ("x86_64", "aarch64"):
        assert call == [-1, "EPERM"]


# -- S1, S5, S11, S16: what single functions refuse ---------------------------------------------------------


@pytest.mark.parametrize("path", ["a/b.json", "emb/x/y/c/0/0", "A-Z_0.9", "index.parquet"])
def test_plain_paths_pass(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a//b", "e\u0301", "é", "a b", "aux", "LPT9.txt", "x" * 201, "a/.", ".x"]
)
def test_odd_paths_do_not(path: str) -> None:
    with pytest.raises(EmbedstoreError):
        check_path(path)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system [x]", "a: &a [x]\nb: *a", "a: 1\na: 2"])
def test_yaml_is_values(text: str) -> None:
    with pytest.raises(EmbedstoreError):
        parse_yaml(text.encode(), source="x")


@pytest.mark.parametrize("text", [b'{"a":1,"a":2}', b"[NaN]", b"[Infinity]", b"[" * 100_000])
def test_json_is_strict(text: bytes) -> None:
    with pytest.raises(EmbedstoreError):
        parse_json(text, source="x")


def test_s9_odd_vectors_are_told(tmp_path: Path) -> None:
    from small_sets import add_set

    store = hospital_store(tmp_path / "a", ids="public", n_clips=8)
    clips = store.manifest("mine").clip_ids
    add_set(store, dict.fromkeys(clips, 1), shift={clips[0]: 0.0, clips[1]: 0.0, clips[2]: -0.0})
    export_of(store, tmp_path / "out", encoders=("small",))
    outcome = import_snapshot(Store.create(tmp_path / "b"), tmp_path / "out")
    assert any("3 clips have a vector of zeros" in note for note in outcome.notes)
    assert any("2 clips have the same vector as another" in note for note in outcome.notes)


def not_finite(folder: Path, rows: dict[str, list[int]]) -> None:
    """Put NaN and infinity into rows of the set of ``small``, by kind of array, and seal everything again."""
    description = json.loads((folder / SET / "description.json").read_bytes())
    for kind, numbers in rows.items():
        path = folder / SET / kind / "c/0/0"
        payload = bytearray(path.read_bytes())
        width = 2 * description["arrays"][kind]["dim"]
        for position, row in enumerate(numbers):
            payload[row * width + 2 : row * width + 4] = (b"\0\x7e", b"\0\xfc")[position % 2]
        path.write_bytes(payload)
    reseal(folder)


def test_s9_rows_that_are_not_finite_refuse_or_are_left_out(honest: Honest, tmp_path: Path) -> None:
    whole = Store.create(tmp_path / "whole")
    import_snapshot(whole, honest.folder)
    before = whole.get(dataset="mine", encoder="small")
    index = before.index.to_pylist()
    folder = copied(honest.folder, tmp_path / "s")
    in_frame = next(row for row in index[8:] if row["n_frame_rows"])
    not_finite(folder, {"clips": [3, 5], "frames": [in_frame["frame_row"] + in_frame["n_frame_rows"] - 1]})
    ran = run_command("snapshot", "import", folder, "--store", tmp_path / "b")
    assert ran.code == 4 and "row 3, 5 is not finite" in ran.err and "--quarantine-rows" in ran.err
    assert not (tmp_path / "b").exists()

    ran = run_command("snapshot", "import", folder, "--store", tmp_path / "b", "--quarantine-rows", "--json")
    assert ran.code == 0, ran.err
    out = [index[3]["clip_id"], index[5]["clip_id"], in_frame["clip_id"]]
    assert json.loads(ran.out)["quarantined"] == [{"dataset": "mine", "encoder": "small", "clips": out}]
    store = Store.open(tmp_path / "b")
    assert verify_store(store, quick=False).ok
    after = store.get(dataset="mine", encoder="small")
    contents = content_of(before), content_of(after)
    assert contents[1] == {clip: vectors for clip, vectors in contents[0].items() if clip not in out}
    reasons = {row["clip_id"]: row["reason"] for row in after.failures.to_pylist()}
    assert {clip for clip, reason in reasons.items() if reason == "not-finite"} == set(out)
    assert len(after) + len(reasons) == len(before) + before.n_failed
    told = run_command("snapshot", "import", folder, "--store", tmp_path / "c", "--quarantine-rows")
    assert all(f"    {clip}\n" in told.out for clip in out)
    again = run_command("snapshot", "import", folder, "--store", tmp_path / "b", "--quarantine-rows", "--json")
    assert again.code == 0 and json.loads(again.out)["store_snapshot"] == store.snapshot().id

    clips = run_command(
        "snapshot", "import", folder, "--store", tmp_path / "d", "--quarantine-rows", "--clips-only", "--json"
    )
    assert json.loads(clips.out)["quarantined"][0]["clips"] == out[:2]
    assert verify_store(Store.open(tmp_path / "d"), quick=False).ok


def test_s9_a_set_of_nothing_finite_is_refused_whole(honest: Honest, tmp_path: Path) -> None:
    folder = copied(honest.folder, tmp_path / "s")
    n_clips = next(entry.n_clips for entry in snapshot_at(folder).sets if entry.folder == SET)
    not_finite(folder, {"clips": list(range(n_clips))})
    ran = run_command("snapshot", "import", folder, "--store", tmp_path / "b", "--quarantine-rows")
    assert ran.code == 4 and "every clip has a vector that is not finite" in ran.err
    ran = run_command("snapshot", "import", folder, "--store", tmp_path / "b")
    assert f"row 0, 1, 2, 3, 4 and {n_clips - 5} more is not finite" in ran.err


def test_s9_odd_lengths_are_told(tmp_path: Path) -> None:
    from small_sets import add_set, spec_of

    store = hospital_store(tmp_path / "a", ids="public", n_clips=12)
    clips = store.manifest("mine").clip_ids
    add_set(store, dict.fromkeys(clips, 1), shift={clips[0]: 100.0, clips[4]: 0.001})
    export_of(store, tmp_path / "out", encoders=("small",))
    notes = import_snapshot(Store.create(tmp_path / "b"), tmp_path / "out").notes
    odd = "2 clips have a vector of more than ten times, or less than a tenth of, the median length"
    assert any(odd in note for note in notes)
    assert spec_of().pooling == "mean-l2" and any("longer than 1" in note for note in notes)


def test_s15_names_do_not_become_markup(tmp_path: Path) -> None:
    store = hospital_store(tmp_path / "a", title='</script><img src=x onerror="a()">|`x`', n_clips=6)
    export_of(store, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "<img" not in card and "</script>" not in card


def test_s14_files_of_two_snapshots_do_not_mix(tmp_path: Path) -> None:
    from small_sets import add_set

    store = hospital_store(tmp_path / "a", n_clips=8)
    export_of(store, tmp_path / "v1")
    add_set(store, dict.fromkeys(store.manifest("mine").clip_ids, 2))
    export_of(store, tmp_path / "v2")
    mixed = copied(tmp_path / "v2", tmp_path / "mixed")
    shutil.copy(tmp_path / "v1" / SET / "clips/c/0/0", mixed / SET / "clips/c/0/0")
    assert run_command("snapshot", "import", mixed, "--store", tmp_path / "b").code == 4


def test_s19_shuffled_rows_are_found_where_the_clips_are(tmp_path: Path, clip_folder: Callable[..., Path]) -> None:
    """No digest tells that two clips' vectors were exchanged before it was written; embedding again does."""
    root = clip_folder()
    paths = [path for path in sorted(root.glob("*.avi")) if path.stat().st_size > 1000]
    rows = [
        {"clip_id": path.stem, "path": path.name, "sha256": sha256_hex(path.read_bytes()), "split": "train"}
        for path in paths
    ]
    facts = DatasetFacts(name="clips", title="Clips of a test", ids="public", redistribution="yes", licence="CC0-1.0")
    own = Store.create(tmp_path / "a")
    own.add_manifest(Manifest.from_rows(rows, dataset=facts), root=root)
    build_sets(own, BuildRequest(encoders=("stub",), n_workers=0))
    export_of(own, tmp_path / "right")
    wrong = copied(tmp_path / "right", tmp_path / "wrong")
    shard = next(wrong.rglob("clips/c/0/0"))
    payload = shard.read_bytes()
    row = 2 * own.get(dataset="clips", encoder="stub").clips.shape[1]  # float16, and the first rows of the shard
    shard.write_bytes(payload[row : 2 * row] + payload[:row] + payload[2 * row :])
    reseal(wrong)
    found = {}
    for name in ("right", "wrong"):
        store = Store.create(tmp_path / f"b-{name}")
        store.add_manifest(Manifest.from_rows(rows, dataset=facts), root=root)
        import_snapshot(store, tmp_path / name)
        assert verify_store(store, quick=False).ok
        ran = run_command("verify", "--recompute", "100", "--store", store.layout.root, "--json")
        document = json.loads(ran.out)
        assert document["recomputed"][0]["clips"] == len(paths), ran
        found[name] = (ran.code, document["recomputed"][0]["differing_rows"])
    assert found == {"right": (0, []), "wrong": (4, [0, 1])}


# -- fuzzing ------------------------------------------------------------------------------------------------


def mutate(folder: Path, draw: random.Random) -> None:
    """Change one file somehow, and put the document right again, as far as it still can be."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ("README.md",))
    path = draw.choice(files)
    payload = bytearray(path.read_bytes())
    kind = draw.randrange(6)
    at = draw.randrange(max(1, len(payload)))
    if kind == 0 and payload:
        payload[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del payload[at : at + draw.randrange(1, 64)]
    elif kind == 2:
        payload[at:at] = draw.randbytes(draw.randrange(1, 64))
    elif kind == 3:
        payload[at : at + 8] = draw.choice([b"\xff" * 8, bytes(8), b"99999999", b"\x00\x7e" * 4])
    elif kind == 4:
        payload = payload[:at]
    else:
        other = draw.choice(files)
        payload = bytearray(other.read_bytes())
    path.write_bytes(payload)
    if draw.random() < 0.8:
        # Where the document itself was hit it cannot be put right.
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            reseal(folder)


class Inspector:
    """A process that inspects one snapshot after another with the program's limits, and is started anew if it dies.

    A library in C may crash of what it reads; that must end neither the tests nor, in the program, the import.
    """

    SCRIPT = """
import json, os, resource, sys
os.fsync = lambda descriptor: None
from embedstore.snapshot.inspection import FILE_BYTES, MEMORY_BYTES, answer
resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line), is_child=False)), flush=True)
"""

    def __init__(self) -> None:
        self.n_crashes = 0
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        )

    def ask(self, source: Path, quarantine: Path, *, quarantine_rows: bool) -> dict[str, Any] | None:
        """Return the verdict, None where the process died of it."""
        selection = Selection().model_dump(mode="json")
        asked = {
            "source": str(source),
            "quarantine": str(quarantine),
            "selection": selection,
            "is_partial": False,
            "quarantine_rows": quarantine_rows,
        }
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        line = stdout.readline()
        if line:
            verdict: dict[str, Any] = json.loads(line)
            return verdict
        code, errors = self.close()
        # A signal, and no exception of Python's: those are errors of ours, not of a library in C.
        assert code < 0 and "Traceback" not in errors, errors
        self.n_crashes += 1
        self._start()
        return None

    def close(self) -> tuple[int, str]:
        """End the process; return its status and what it wrote to stderr."""
        _, errors = self._process.communicate()
        return self._process.returncode, errors


@pytest.mark.parametrize(
    ("count", "seed"), [(FUZZED, 300), *(pytest.param(1_000, seed, marks=SLOW) for seed in range(5))]
)
def test_a_mutated_snapshot_is_ok_or_refused(count: int, seed: int, honest: Honest, tmp_path: Path) -> None:
    """Five thousand mutations in `make test-slow`, in five parts."""
    draw = random.Random(seed)
    refused = 0
    inspector = Inspector()
    try:
        for number in range(count):
            folder = copied(honest.folder, tmp_path / "m")
            for _ in range(draw.choice([1, 1, 2])):
                mutate(folder, draw)
            quarantine = tmp_path / f"q{number}"
            quarantine.mkdir()
            verdict = inspector.ask(folder, quarantine, quarantine_rows=number % 2 == 1)
            if verdict is None:
                refused += 1  # as the program says it: "crashed its reader; it is refused"
            elif "refused" in verdict:
                assert "\n" not in verdict["refused"]["message"], verdict
                refused += 1
            else:
                assert set(verdict) == {"ok"}
            shutil.rmtree(folder)
            shutil.rmtree(quarantine)
    finally:
        inspector.close()
    assert refused > count // 2  # what is left is a change of nothing, or of provenance that is sealed again
    assert inspector.n_crashes <= count // 50, "the reader dies too often"


def test_a_document_with_a_million_files_is_bounded(honest: Honest, tmp_path: Path) -> None:
    made = copied(honest.folder, tmp_path / "s")

    def change(document: dict[str, list[dict[str, object]]]) -> None:
        first = document["files"][0]
        document["files"] += [{**first, "path": f"{SET}/clips/c/{n}/0"} for n in range(20_000)]

    rewrite_document(made, change)
    began = time.process_time()
    assert run_command("snapshot", "import", made, "--store", tmp_path / "b").code == 4
    assert time.process_time() - began < 10
