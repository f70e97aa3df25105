"""What comes into a store: whole or not at all, the same bytes again when it is passed on."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from sent_snapshots import (
    N_CLIPS,
    clip_id_of,
    copied,
    export_of,
    hospital_manifest,
    hospital_rows,
    hospital_store,
    reseal,
    rewrite_document,
    run_command,
    snapshot_at,
    tree_bytes,
)
from small_sets import add_set, content_of, count_operations, kill_at, tree_of

from embedstore.embedding_set import EmbeddingSet
from embedstore.errors import ContentError, CorruptionError, PolicyError, UnknownNameError
from embedstore.identity import sha256_hex
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.snapshot.importing import ImportRequest, import_snapshot
from embedstore.snapshot.pseudonyms import read_join_key
from embedstore.snapshot.receiving import receiving_store
from embedstore.snapshot.selection import PARTIAL_FILE, Selection, partial_bytes
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store

MODE = pytest.mark.parametrize(
    "many", [pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hospital's store ``a``, its map, and what was sent of it as ``out`` and ``out.zip``."""
    folder = tmp_path_factory.mktemp("sent")
    store = hospital_store(folder / "a")
    export_of(store, folder / "out", map_file=folder / "map.json")
    export_of(store, folder / "out.zip", archive=True)
    return folder


def labels_csv(path: Path, *, key: str = "clip_id") -> Path:
    lines = [f"{key},lvef_pct,diagnosis"]
    lines += [f"{row[key]},{row['lvef_pct']},{'hcm' if n % 2 else 'normal'}" for n, row in enumerate(hospital_rows())]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("source", ["out", "out.zip"])
def test_what_comes_in_is_sound_and_goes_out_the_same(source: str, sent: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "b")
    outcome = import_snapshot(store, sent / source)
    assert outcome.trust == "intact, unsigned"
    found = verify_store(store, quick=False)
    assert found.ok, found.problems
    assert len(store.entries()) == 2 and len(store.manifest("mine")) == N_CLIPS
    for path in store.layout.sets.iterdir():
        assert not path.name.startswith(".")
    export_of(store, tmp_path / "again", recipient=None)
    assert tree_bytes(tmp_path / "again") == tree_bytes(sent / "out")
    third = Store.create(tmp_path / "c")
    import_snapshot(third, tmp_path / "again")
    assert third.snapshot().id == store.snapshot().id
    again = import_snapshot(store, sent / source)
    assert again.store_snapshot == outcome.store_snapshot and len(store.log()) == 1


def test_split_archives_come_in_together(sent: Path, tmp_path: Path) -> None:
    export_of(Store.open(sent / "a"), tmp_path / "s.zip", archive=True, split_bytes=60_000)
    store = Store.create(tmp_path / "b")
    assert import_snapshot(store, tmp_path / "s.zip").snapshot.id == snapshot_at(sent / "out").id
    (tmp_path / "s.other.zip").unlink()
    with pytest.raises(CorruptionError, match="lacks emb/mine/other"):
        import_snapshot(Store.create(tmp_path / "c"), tmp_path / "s.zip")


def test_a_part_comes_in_with_and_without_frames(sent: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "b")
    chosen = Selection(encoders=("small",), clips_only=True)
    outcome = import_snapshot(store, sent / "out", ImportRequest(selection=chosen))
    opened = store.get(dataset="mine", encoder="small")
    assert set(opened.described["arrays"]) == {"clips"} and len(store.entries()) == 1
    assert verify_store(store, quick=False).ok and outcome.to_dict()["partial"] is True
    whole = Store.create(tmp_path / "w")
    import_snapshot(whole, sent / "out")
    clips = content_of(whole.get(dataset="mine", encoder="small"))
    assert {k: v["clips"] for k, v in content_of(opened).items()} == {k: v["clips"] for k, v in clips.items()}


def test_a_folder_that_holds_a_part_says_so(sent: Path, tmp_path: Path) -> None:
    part = copied(sent / "out", tmp_path / "part")
    snapshot = snapshot_at(part)
    chosen = Selection(encoders=("small",))
    taken = {file.path for file in snapshot.select(chosen)}
    for file in snapshot.files:
        if file.path not in taken:
            (part / file.path).unlink()
    with pytest.raises(CorruptionError, match="lacks"):
        import_snapshot(Store.create(tmp_path / "b"), part)
    assert run_command("snapshot", "verify", part).code == 4
    (part / PARTIAL_FILE).write_bytes(partial_bytes(snapshot.id, chosen))
    checked = run_command("snapshot", "verify", part, "--json")
    assert checked.code == 0 and json.loads(checked.out)["files_absent_by_choice"] == len(snapshot.files) - len(taken)
    import_snapshot(Store.open(tmp_path / "b"), part)
    assert [entry.encoder for entry in Store.open(tmp_path / "b").entries()] == ["small"]
    (part / PARTIAL_FILE).write_bytes(partial_bytes("0" * 64, chosen))
    with pytest.raises(ContentError, match="another snapshot"):
        import_snapshot(Store.create(tmp_path / "c"), part)


# -- labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "key"),
    [
        (b"\n" + bytes(range(100, 130)) + b"\t", b"\n" + bytes(range(100, 130)) + b"\t"),
        (bytes(range(200, 232)) + b" ", bytes(range(200, 232)) + b" "),
        (bytes(range(200, 232)).hex().encode() + b"\r\n", bytes(range(200, 232))),
        (b" the long sentence that both labs agreed upon\n", b"the long sentence that both labs agreed upon"),
    ],
)
def test_a_join_key_is_all_its_bytes_or_its_text(tmp_path: Path, written: bytes, key: bytes) -> None:
    (tmp_path / "key").write_bytes(written)
    assert read_join_key(tmp_path / "key") == key


def test_labels_join_by_map_by_key_and_by_public_id(sent: Path, tmp_path: Path) -> None:
    labels = labels_csv(tmp_path / "labels.csv")
    store = tmp_path / "b"
    refused = run_command("snapshot", "import", sent / "out", "--store", store, "--labels-from", labels)
    assert refused.code == 4 and "--map" in refused.err and "was imported" in refused.err
    for idle in ("--map", "--join-key"):
        ran = run_command("snapshot", "import", sent / "out", "--store", store, idle, sent / "map.json")
        assert ran.code == 2 and f"{idle} is of --labels-from, which is not given" in ran.err
    ran = run_command(
        "snapshot", "import", sent / "out", "--store", store, "--labels-from", labels, "--map", sent / "map.json"
    )
    assert ran.code == 0 and f"{N_CLIPS} clips matched, 0 unmatched" in ran.out
    assert Store.open(store).manifest("mine").labels() == ["lvef_pct", "diagnosis"]

    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    export_of(Store.open(sent / "a"), tmp_path / "keyed", join_key=key, recipient="lab-k")
    by_content = labels_csv(tmp_path / "by-content.csv", key="sha256")
    arguments = ("--store", tmp_path / "k", "--labels-from", by_content, "--join-key", key)
    assert f"{N_CLIPS} clips matched" in run_command("snapshot", "import", tmp_path / "keyed", *arguments).out

    public = hospital_store(tmp_path / "p", ids="public")
    export_of(public, tmp_path / "public")
    ran = run_command("snapshot", "import", tmp_path / "public", "--store", tmp_path / "q", "--labels-from", labels)
    assert f"{N_CLIPS} clips matched" in ran.out
    from evaltools.cohort import build_cohort
    from evaltools.task import get_task

    cohort = build_cohort(Store.open(tmp_path / "q").manifest("mine"), get_task("lvef"))
    assert len(cohort) == N_CLIPS and cohort.leakage == "checked"


def test_evaltools_runs_on_an_import_as_on_a_build(sent: Path, tmp_path: Path) -> None:
    """The same numbers: a probe does not see whether its vectors were built here or sent under other names."""
    from evaltools.cli.main import program

    labels = labels_csv(tmp_path / "labels.csv")
    run_command(
        "snapshot",
        "import",
        sent / "out",
        "--store",
        tmp_path / "b",
        "--labels-from",
        labels,
        "--map",
        sent / "map.json",
    )
    values = []
    for store in (sent / "a", tmp_path / "b"):
        ran = run_evaltools(program, "probe", "--task", "lvef", "--encoder", "other", "--store", store, "--json")
        assert ran.returncode == 0, ran.stderr
        (result,) = json.loads(ran.stdout)["results"]
        values.append((result["metrics"]["mae"]["value"], result["n_scored"], result["n_patients"]))
    assert values[0][1:] == values[1][1:]
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-5)


def test_evaltools_runs_where_the_recipients_own_manifest_stays(tmp_path: Path) -> None:
    """Published ids: the digests of what was sent are keyed, and are not held against those of one's own files."""
    export_of(hospital_store(tmp_path / "a", ids="public"), tmp_path / "out")
    own = Store.create(tmp_path / "b")
    own.add_manifest(hospital_manifest(ids="public"))
    assert import_snapshot(own, tmp_path / "out").kept_manifests == ("mine",)
    plain = Store.create(tmp_path / "c")
    import_snapshot(plain, tmp_path / "out")
    hospital_manifest(ids="public").write(tmp_path / "mine.parquet")
    for arguments in (
        ("--store", tmp_path / "b"),
        ("--store", tmp_path / "c", "--dataset", tmp_path / "mine.parquet"),
    ):
        ran = run_evaltools(None, "probe", "--task", "lvef", "--encoder", "other", *arguments, "--json")
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["results"][0]["n_scored"] > 0


def run_evaltools(program: object, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    import sys

    command = [sys.executable, "-m", "evaltools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# -- trust --------------------------------------------------------------------------------------------------


def test_pinning_by_id(sent: Path, tmp_path: Path) -> None:
    right = snapshot_at(sent / "out").id
    ran = run_command("snapshot", "import", sent / "out", "--store", tmp_path / "b", "--id", f"sha256:{right}")
    assert ran.code == 0
    wrong = run_command("snapshot", "import", sent / "out", "--store", tmp_path / "c", "--id", "0" * 64)
    assert wrong.code == 4 and right in wrong.err
    assert run_command("snapshot", "verify", sent / "out", "--id", "0" * 64).code == 4
    assert not (tmp_path / "c").exists()


def test_a_refused_import_leaves_no_new_store(sent: Path, tmp_path: Path) -> None:
    broken = copied(sent / "out", tmp_path / "broken")
    next(broken.rglob("clips/c/0/0")).write_bytes(b"x")
    arguments: list[tuple[str | Path, ...]] = [("import", broken), ("import", tmp_path / "nowhere")]
    resealed = copied(broken, tmp_path / "resealed")  # comes whole, and breaks a rule
    reseal(resealed)
    arguments += [("pull", str(resealed)), ("pull", str(sent / "out"), "--encoder", "smal")]
    before = tree_of(tmp_path)
    for given in arguments:
        assert run_command("snapshot", *given, "--store", tmp_path / "new").code in (2, 4), given
        assert tree_of(tmp_path) == before, given
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "old")
    assert run_command("snapshot", "import", broken, "--store", tmp_path / "empty").code == 4
    assert list((tmp_path / "empty").iterdir()) == []
    assert run_command("snapshot", "import", broken, "--store", tmp_path / "old").code == 4
    assert not Store.open(tmp_path / "old").entries()


def test_a_store_in_use_stays_where_an_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError), receiving_store(tmp_path / "b") as store:
        store.add_manifest(hospital_manifest())
        raise PolicyError("refused")
    assert Store.open(tmp_path / "b").manifest("mine").clip_ids
    with pytest.raises(PolicyError), receiving_store(tmp_path / "c") as store, store.publishing():
        raise PolicyError("refused")
    assert not (tmp_path / "c").exists()  # nobody holds it by the time it is removed
    with pytest.raises(PolicyError), Store.create(tmp_path / "d").publishing():
        (tmp_path / "d" / "embedstore.json").unlink()
        with receiving_store(tmp_path / "d"):
            raise PolicyError("refused")
    assert Store.open(tmp_path / "d").log() == []


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    for name in ("mine", "theirs"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a@b", "-f", tmp_path / name], check=True
        )
    return tmp_path


@pytest.mark.parametrize("name", ["s", "s.zip"])
def test_signatures_are_made_and_required(name: str, sent: Path, keys: Path, tmp_path: Path) -> None:
    options = ("--recipient", "lab-b", "--store", sent / "a", *(["--archive"] if name == "s.zip" else []))
    assert run_command("snapshot", "export", tmp_path / name, *options, "--sign", keys / "mine").code == 0
    signed, store = tmp_path / name, tmp_path / "b"
    public = keys / "mine.pub"
    ran = run_command("snapshot", "verify", signed, "--require-signature", public)
    assert ran.code == 0 and "intact, signed by SHA256:" in ran.out
    allowed = keys / "allowed"
    allowed.write_text(f"lab-a {public.read_text()}")
    ran = run_command("snapshot", "import", signed, "--store", store, "--require-signature", allowed)
    assert "intact, signed by lab-a" in ran.out
    unnamed = run_command("snapshot", "verify", signed)
    assert "a key that you have not named" in unnamed.out
    for wrong in (keys / "theirs.pub", keys / "mine"):
        assert run_command("snapshot", "verify", signed, "--require-signature", wrong).code == 4
    unsigned = run_command(
        "snapshot", "import", sent / "out", "--store", tmp_path / "c", "--require-signature", public
    )
    assert unsigned.code == 4 and "not signed" in unsigned.err
    again = run_command("snapshot", "import", sent / "out", "--store", store)
    assert again.code == 4 and "earlier snapshots of this sender were signed" in again.err


def test_a_signature_for_another_document_or_purpose_does_not_count(sent: Path, keys: Path, tmp_path: Path) -> None:
    folder = copied(sent / "out", tmp_path / "s")
    document = folder / "manifest.json"
    subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-n", "file", "-f", keys / "mine", document], check=True, capture_output=True
    )
    with pytest.raises(PolicyError, match="does not fit"):
        import_snapshot(Store.create(tmp_path / "b"), folder)
    with pytest.raises(PolicyError, match="not signed by a key"):
        import_snapshot(Store.create(tmp_path / "b"), folder, ImportRequest(signer_key=keys / "mine.pub"))


def test_an_older_snapshot_needs_a_flag(tmp_path: Path) -> None:
    own = hospital_store(tmp_path / "a")
    export_of(own, tmp_path / "v1")
    add_set(own, {clip_id_of(n): 2 for n in range(N_CLIPS)}, failed=())
    export_of(own, tmp_path / "v2")
    store = Store.create(tmp_path / "b")
    for name in ("v1", "v2"):
        import_snapshot(store, tmp_path / name)
    head = store.snapshot().id
    with pytest.raises(PolicyError, match="older than"):
        import_snapshot(store, tmp_path / "v1")
    assert store.snapshot().id == head
    import_snapshot(store, tmp_path / "v1", ImportRequest(allow_rollback=True))
    assert store.snapshot().id != head


def test_going_back_takes_the_older_manifest_too(tmp_path: Path) -> None:
    own = hospital_store(tmp_path / "a")
    store = Store.create(tmp_path / "b")
    splits = []
    for name in ("v1", "v2"):
        export_of(own, tmp_path / name)
        import_snapshot(store, tmp_path / name)
        splits.append(store.manifest("mine").column("split"))
        changed = own.manifest("mine")
        table = changed.table.set_column(
            changed.table.column_names.index("split"), "split", pa.array(["train"] * N_CLIPS, pa.string())
        )
        own.add_manifest(replace(changed, table=table))
    assert splits[0] != splits[1]
    back = import_snapshot(store, tmp_path / "v1", ImportRequest(allow_rollback=True))
    assert store.manifest("mine").column("split") == splits[0] and back.kept_manifests == ()


def test_labels_stay_when_the_sender_sends_more(tmp_path: Path) -> None:
    own = hospital_store(tmp_path / "a", ids="public")
    export_of(own, tmp_path / "v1")
    store = tmp_path / "b"
    labels = labels_csv(tmp_path / "labels.csv")
    assert run_command("snapshot", "import", tmp_path / "v1", "--store", store, "--labels-from", labels).code == 0
    add_set(own, {clip_id_of(n): 2 for n in range(N_CLIPS)})
    export_of(own, tmp_path / "v2")
    assert run_command("snapshot", "import", tmp_path / "v2", "--store", store).code == 0
    assert Store.open(store).manifest("mine").labels() == ["lvef_pct", "diagnosis"]


# -- conflicts, passing on ----------------------------------------------------------------------------------


def test_nothing_is_overwritten(sent: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "b")
    mine = Manifest.from_rows([{"clip_id": "x", "split": "train"}], dataset=DatasetFacts(name="mine", title="Other"))
    store.add_manifest(mine)
    before = store.snapshot().id
    with pytest.raises(ContentError, match="another data set called 'mine'"):
        import_snapshot(store, sent / "out")
    assert store.snapshot().id == before

    theirs = hospital_store(tmp_path / "t", ids="public")
    export_of(theirs, tmp_path / "public")
    ours = Store.create(tmp_path / "o")
    ours.add_manifest(hospital_manifest(ids="public"))
    add_set(ours, {clip_id_of(n): 5 for n in range(N_CLIPS)})
    with pytest.raises(ContentError, match="other vectors of small"):
        import_snapshot(ours, tmp_path / "public")
    third = Store.create(tmp_path / "third")
    third.add_manifest(hospital_manifest(ids="public"))
    outcome = import_snapshot(third, tmp_path / "public")
    assert outcome.kept_manifests == ("mine",) and third.manifest("mine").labels() == ["lvef_pct"]


def test_two_labs_vectors_compare_in_bits_and_in_tolerance(tmp_path: Path) -> None:
    lab_a = hospital_store(tmp_path / "a", ids="public")
    export_of(lab_a, tmp_path / "out")
    import_snapshot(Store.create(tmp_path / "b"), tmp_path / "out")
    lab_c = Store.create(tmp_path / "c")
    lab_c.add_manifest(hospital_manifest(ids="public"))
    clips = [clip_id_of(n) for n in range(N_CLIPS)]
    add_set(lab_c, dict.fromkeys(clips[:-2], 1), failed=clips[-2:], shift=dict.fromkeys(clips[:5], 1.0009))
    ran = run_command(
        "snapshot", "diff", "head", "head", "--store", tmp_path / "b", "--other-store", tmp_path / "c", "--json"
    )
    (small,) = [entry for entry in json.loads(ran.out)["sets"] if entry["encoder"] == "small"]
    assert small["status"] == "equivalent"
    assert (small["n_identical"], small["n_equivalent"]) == (N_CLIPS - 7, 5)


def test_passing_on_inherits_licences_permissions_and_names(tmp_path: Path) -> None:
    own = hospital_store(tmp_path / "a", redistribution="ask")
    first = export_of(own, tmp_path / "out", permission_ref="first")
    store = Store.create(tmp_path / "b")
    import_snapshot(store, tmp_path / "out")
    with pytest.raises(PolicyError, match="--permission-ref"):
        export_of(store, tmp_path / "on")
    loose = hospital_manifest(redistribution="yes")
    assert loose.dataset.redistribution == "yes"
    labelled = store.manifest("mine")
    store.add_manifest(replace(labelled, dataset=labelled.dataset.model_copy(update={"redistribution": "yes"})))
    with pytest.raises(PolicyError, match="redistribution is not free"):
        export_of(store, tmp_path / "on")
    on = export_of(store, tmp_path / "on", permission_ref="second")
    assert on.snapshot.datasets[0].permission_refs == ("first", "second")
    assert on.snapshot.datasets[0].redistribution == "ask"
    assert on.snapshot.parents == (first.snapshot.id,)
    assert {entry.set_id for entry in on.snapshot.sets} == {entry.set_id for entry in first.snapshot.sets}
    assert Manifest.read(tmp_path / "on/manifests/mine.parquet").clip_ids == labelled.clip_ids


def test_own_labels_are_not_passed_on(sent: Path, tmp_path: Path) -> None:
    labels = labels_csv(tmp_path / "labels.csv")
    arguments = ("--store", tmp_path / "b", "--labels-from", labels, "--map", sent / "map.json")
    assert run_command("snapshot", "import", sent / "out", *arguments).code == 0
    export_of(Store.open(tmp_path / "b"), tmp_path / "on")
    assert tree_bytes(tmp_path / "on") == tree_bytes(sent / "out")


def test_banks_of_prompts_travel(tmp_path: Path) -> None:
    import numpy as np

    from embedstore.bank import PROMPT_SCHEMA, BankHeader, write_bank
    from embedstore.tables import rows_to_table

    own = hospital_store(tmp_path / "a")
    header = BankHeader(
        kind="prompts",
        name="v1",
        encoder="small",
        spec={"dim": 6, "bank_digest": "0" * 64, "weights_sha256": None},
    )
    rows = rows_to_table([{"task": "lvef", "prompt": "EF 55 %", "value": 55.0}], PROMPT_SCHEMA)
    vectors = np.eye(1, 6, dtype=np.float32)
    with own.publishing():
        made = write_bank(
            own.layout.prompts, header, vectors, tables={"rows.parquet": rows}, provenance={"host_class": "secret"}
        )
        own.add_bank(made, reason="bank")
    outcome = export_of(own, tmp_path / "out")
    assert [bank.name for bank in outcome.snapshot.prompts] == ["v1"]
    assert b"host_class" not in (tmp_path / "out" / "prompts" / made / "provenance.json").read_bytes()
    store = Store.create(tmp_path / "b")
    import_snapshot(store, tmp_path / "out")
    assert store.bank(kind="prompts", encoder="small").rows.column("prompt").to_pylist() == ["EF 55 %"]
    assert verify_store(store, quick=False).ok
    export_of(store, tmp_path / "on")
    assert tree_bytes(tmp_path / "on") == tree_bytes(tmp_path / "out")


# -- checking where it lies ---------------------------------------------------------------------------------


def test_verify_finds_every_change(sent: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    whole = run_command("snapshot", "verify", sent / "out", "--json")
    assert whole.code == 0 and json.loads(whole.out)["ok"] is True
    for position, file in enumerate(snapshot_at(sent / "out").files):
        folder = copied(sent / "out", tmp_path / f"v{position}")
        path = folder / file.path
        payload = bytearray(path.read_bytes())
        payload[draw.randrange(len(payload))] ^= 1 << draw.randrange(8)
        path.write_bytes(payload)
        found = run_command("snapshot", "verify", folder, "--json")
        assert found.code == 4 and [p["file"] for p in json.loads(found.out)["problems"]] == [file.path]
        shutil.rmtree(folder)
    for name in ("README.md", "croissant.json", "manifest-sha256.txt"):
        folder = copied(sent / "out", tmp_path / name)
        with (folder / name).open("ab") as handle:
            handle.write(b" ")
        assert run_command("snapshot", "verify", folder).code == 4
    folder = copied(sent / "out", tmp_path / "added")
    (folder / "index.faiss").write_bytes(b"x")
    assert json.loads(run_command("snapshot", "verify", folder, "--json").out)["problems"][0]["kind"] == "added"
    with pytest.raises(UnknownNameError):
        import_snapshot(Store.create(tmp_path / "b"), tmp_path / "nowhere")


def test_a_newer_format_says_what_it_needs(sent: Path, tmp_path: Path) -> None:
    folder = copied(sent / "out", tmp_path / "new")
    rewrite_document(folder, lambda d: d.update(format=2, needs="0.9"))
    ran = run_command("snapshot", "import", folder, "--store", tmp_path / "b")
    assert ran.code == 4 and "it needs embedstore >= 0.9" in ran.err


def test_rsync_of_a_store_is_a_store(sent: Path, tmp_path: Path) -> None:
    if shutil.which("rsync"):
        subprocess.run(["rsync", "-a", f"{sent / 'a'}/", tmp_path / "copy"], check=True)
    else:
        shutil.copytree(sent / "a", tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    assert copy.snapshot().id == Store.open(sent / "a").snapshot().id
    assert verify_store(copy, quick=False).ok
    assert export_of(copy, tmp_path / "out").snapshot.id == snapshot_at(sent / "out").id


def test_croissant_is_valid_and_its_records_can_be_read(sent: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the standard's own library, where it is installed (``pip install mlcroissant``)."""
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=sent / "out" / "croissant.json")
    assert dataset.metadata.issues.errors == set()
    assert "not standard" not in caplog.text  # the context is the one of the standard
    snapshot = snapshot_at(sent / "out")
    assert [record_set.uuid for record_set in dataset.metadata.record_sets] == [e.folder for e in snapshot.sets]
    for entry in snapshot.sets:
        index = EmbeddingSet.open(sent / "out" / entry.folder, set_id=entry.set_id).index
        read = [record[f"{entry.folder}/clip_id"].decode() for record in dataset.records(entry.folder)]
        assert read == index.column("clip_id").to_pylist()


def test_croissant_lists_every_file(sent: Path) -> None:
    document = json.loads((sent / "out/croissant.json").read_bytes())
    listed = {entry["contentUrl"]: entry["sha256"] for entry in document["distribution"]}
    assert listed == {path: sha256_hex((sent / "out" / path).read_bytes()) for path in listed}
    assert set(listed) == {file.path for file in snapshot_at(sent / "out").files}
    assert document["conformsTo"] == "http://mlcommons.org/croissant/1.1"


# -- kills --------------------------------------------------------------------------------------------------


@MODE
def test_a_killed_export_leaves_nothing_and_the_same_command_completes(
    many: bool, sent: Path, tmp_path: Path
) -> None:
    shutil.copytree(sent / "a", tmp_path / "a")
    own = Store.open(tmp_path / "a")

    def act(target: Path, archive: bool) -> None:
        export_of(own, target, archive=archive)

    for archive in (False, True):
        total = count_operations(lambda archive=archive: act(tmp_path / f"timed{archive}.zip", archive))
        points = random.Random(5).sample(range(1, total + 1), min(total, 50 if many else 5))
        for number in points:
            target = tmp_path / f"kill-{archive}-{number}.zip"
            died = kill_at(number, lambda target=target, archive=archive: act(target, archive))
            # What can be seen is whole.
            if target.exists():
                assert run_command("snapshot", "verify", target).code == 0
                continue
            assert died
            assert [p.name for p in tmp_path.glob(f"{target.stem}.*")] == []
            act(target, archive)
            assert run_command("snapshot", "verify", target).code == 0
            assert list(tmp_path.glob(f".staging-{target.name}-*")) == []


@MODE
def test_a_killed_import_leaves_nothing_and_the_same_command_completes(
    many: bool, sent: Path, tmp_path: Path
) -> None:
    def act(root: Path) -> None:
        import_snapshot(Store.open(root), sent / "out")

    Store.create(tmp_path / "timed")
    total = count_operations(lambda: act(tmp_path / "timed"))
    expected = Store.open(tmp_path / "timed").snapshot().id
    points = random.Random(4).sample(range(1, total + 1), min(total, 50 if many else 3))
    for number in points:
        store = Store.create(tmp_path / f"kill-{number}")
        assert kill_at(number, lambda store=store: act(store.layout.root))
        seen = store.snapshot().id
        assert seen == expected or not store.entries()
        assert verify_store(store, quick=False).ok
        act(store.layout.root)
        assert store.snapshot().id == expected and verify_store(store, quick=False).ok
        assert [p.name for p in store.layout.sets.iterdir() if p.name.startswith(".")] == []


def test_a_refused_import_changes_nothing(sent: Path, tmp_path: Path) -> None:
    store = hospital_store(tmp_path / "b", name="other")
    bad = copied(sent / "out", tmp_path / "bad")
    next(bad.rglob("clips/c/0/0")).write_bytes(b"x")
    before = tree_of(store.layout.root)
    with pytest.raises(ContentError):
        import_snapshot(store, bad)
    after = tree_of(store.layout.root)
    assert {k: v for k, v in after.items() if k not in ("sets", "builds/publish.lock", "builds")} == {
        k: v for k, v in before.items() if k not in ("sets", "builds/publish.lock", "builds")
    }
