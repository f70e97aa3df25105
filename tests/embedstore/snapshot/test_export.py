"""What leaves a store, and what must not."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sent_snapshots import (
    N_CLIPS,
    clip_id_of,
    export_of,
    hospital_manifest,
    hospital_store,
    run_command,
    secrets_of,
    tree_bytes,
)
from small_sets import add_set, content_of, vectors_of, where_found

from embedstore.embedding_set import EmbeddingSet
from embedstore.errors import PolicyError, UnknownNameError
from embedstore.manifest import Manifest, ManifestField
from embedstore.snapshot.describe import SentSnapshot
from embedstore.snapshot.disclosure import read_disclosures
from embedstore.snapshot.leakscan import LeakScan
from embedstore.snapshot.policy import manifest_rules
from embedstore.snapshot.pseudonyms import Pseudonyms, keyed_digest, read_map
from embedstore.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return hospital_store(tmp_path / "a")


def parquet_texts(path: Path) -> str:
    """All cells, metadata and statistics of a Parquet file."""
    from small_sets import _texts

    return "\n".join(_texts(path))


def manifest_in(folder: Path) -> Manifest:
    return Manifest.read(folder / "manifests" / "mine.parquet")


def test_the_default_export_holds_none_of_the_hospitals_words(store: Store, tmp_path: Path) -> None:
    export_of(store, tmp_path / "out")
    payloads = tree_bytes(tmp_path / "out")
    names = "\n".join(payloads)
    tables = {path: parquet_texts(tmp_path / "out" / path) for path in payloads if path.endswith(".parquet")}
    for word in sorted(secrets_of(store.manifest("mine"))):
        raw = word.encode()
        encodings = {raw, word.lower().encode(), raw.hex().encode(), raw.hex().upper().encode()}
        for shift in range(3):  # what of its base64 does not depend on its neighbours
            text = base64.b64encode(bytes(shift) + raw)
            encodings.add(text[-(-8 * shift // 6) : 8 * (shift + len(raw)) // 6])
        for path, payload in payloads.items():
            assert not any(form in payload for form in encodings if len(form) > 4), (word, path)
        for path, text in tables.items():
            assert word not in text, (word, path)
        assert word not in names, word


def test_plain_sha256sum_and_zarr_read_it(store: Store, tmp_path: Path) -> None:
    import zarr

    outcome = export_of(store, tmp_path / "out")
    done = subprocess.run(
        ["sha256sum", "-c", "manifest-sha256.txt", "--strict"],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count(": OK") == len(outcome.snapshot.files) + 3
    entry = next(e for e in outcome.snapshot.sets if e.encoder == "small")
    array = zarr.open_array(str(tmp_path / "out" / entry.folder / "clips"), mode="r")
    assert array.shape == (N_CLIPS - 2, 6)


def test_vectors_are_the_same_bits_under_other_names(store: Store, tmp_path: Path) -> None:
    outcome = export_of(store, tmp_path / "out", map_file=tmp_path / "map.json")
    names = read_map(tmp_path / "map.json")["mine"]
    for entry in outcome.snapshot.sets:
        sent = EmbeddingSet.open(tmp_path / "out" / entry.folder, set_id=entry.set_id)
        content = content_of(sent)
        spec = sent.spec
        for number in range(N_CLIPS - 2):
            original = clip_id_of(number)
            for kind, found in content[names[original]].items():
                assert found == vectors_of(original, 1, kind, spec).tobytes()
        ids = sent.index.column("clip_id").to_pylist()
        assert ids == sorted(ids)
        assert sent.failures.column("detail").null_count == sent.failures.num_rows
    assert stat.S_IMODE((tmp_path / "map.json").stat().st_mode) == 0o600


def test_pseudonyms_are_random_kept_and_one_set_a_recipient(store: Store, tmp_path: Path) -> None:
    first = export_of(store, tmp_path / "b1")
    again = export_of(store, tmp_path / "b2")
    other = export_of(store, tmp_path / "c", recipient="lab-c")
    assert tree_bytes(tmp_path / "b1") == tree_bytes(tmp_path / "b2")
    assert first.snapshot.id == again.snapshot.id != other.snapshot.id
    ids = [set(manifest_in(tmp_path / name).clip_ids) for name in ("b1", "c")]
    assert not ids[0] & ids[1]
    unnamed = [export_of(store, tmp_path / f"u{n}", recipient=None).plan.recipient for n in range(2)]
    assert unnamed[0] != unnamed[1]
    maps = list((store.layout.private / "pseudonyms").glob("*.json"))
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in maps)
    assert stat.S_IMODE(store.layout.private.stat().st_mode) == 0o700
    patients = manifest_in(tmp_path / "b1").column("patient_id")
    assert len(set(patients)) == N_CLIPS // 2  # two clips a patient stay together


def test_digests_are_keyed_and_a_join_key_is_shared(store: Store, tmp_path: Path) -> None:
    export_of(store, tmp_path / "b")
    export_of(store, tmp_path / "c", recipient="lab-c")
    sent = [set(manifest_in(tmp_path / name).column("sha256")) for name in ("b", "c")]
    assert not sent[0] & sent[1]
    key = tmp_path / "key"
    key.write_text(os.urandom(32).hex())
    export_of(store, tmp_path / "j", join_key=key, recipient="lab-j")
    joined = manifest_in(tmp_path / "j").column("sha256")
    originals = store.manifest("mine").column("sha256")
    assert set(joined) == {keyed_digest(bytes.fromhex(key.read_text()), digest) for digest in originals}
    key.write_text("0" * 64)
    with pytest.raises(PolicyError, match="too alike"):
        export_of(store, tmp_path / "k", join_key=key)


def test_named_columns_are_sent_coarser(store: Store, tmp_path: Path) -> None:
    export_of(store, tmp_path / "out", named=("lvef_pct", "sex", "age_years"))
    manifest = manifest_in(tmp_path / "out")
    assert manifest.labels() == ["lvef_pct"]
    assert set(manifest.column("age_years")) == {60.0, 90.0}
    assert "remark" not in manifest.fields and set(manifest.column("view")) == {None}
    export_of(store, tmp_path / "dated", named=("seen_on",))
    assert set(manifest_in(tmp_path / "dated").column("seen_on")) == {"2019"}


def test_a_small_group_refuses_until_it_is_accepted(tmp_path: Path) -> None:
    store = hospital_store(tmp_path / "a", n_clips=12)  # six patients, three of each sex
    with pytest.raises(PolicyError, match="3 patients who alone share"):
        export_of(store, tmp_path / "out", named=("sex",))
    assert not (tmp_path / "out").exists()
    export_of(store, tmp_path / "out", named=("sex",), accept_group=3)


def test_a_column_without_a_rule_stops_the_export(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a")
    made = hospital_manifest()
    rows = [{**row, "mrn": row["clip_id"][:10]} for row in made.table.to_pylist()]
    fields = [ManifestField(name="mrn", role="id"), ManifestField(name="lvef_pct", role="label", kind="number")]
    names = ("clip_id", "patient_id", "split", "mrn", "lvef_pct")
    keep = [{name: row[name] for name in names} for row in rows]
    store.add_manifest(Manifest.from_rows(keep, dataset=made.dataset, fields=fields, patient_ids="provided"))
    add_set(store, dict.fromkeys(made.clip_ids, 1))
    with pytest.raises(PolicyError, match="'mrn' with the role 'id' has no rule"):
        export_of(store, tmp_path / "out")
    export_of(store, tmp_path / "out", dropped=("mrn",))
    assert "mrn" not in manifest_in(tmp_path / "out").fields
    with pytest.raises(UnknownNameError, match="no data set of the snapshot has the column 'mnr'"):
        export_of(store, tmp_path / "out2", dropped=("mnr",))


def test_public_ids_stay_and_paths_do_not(tmp_path: Path) -> None:
    store = hospital_store(tmp_path / "a", ids="public")
    export_of(store, tmp_path / "out")
    manifest, own = manifest_in(tmp_path / "out"), store.manifest("mine")
    assert manifest.clip_ids == own.clip_ids
    assert manifest.column("split") == own.column("split")
    assert set(manifest.column("path")) == {None} and manifest.labels() == []
    assert not set(manifest.column("sha256")) & set(own.column("sha256"))
    assert where_found(tmp_path / "out", "2019-03-04/") == []


@pytest.mark.parametrize("word", ["no", "ask"])
def test_a_licence_refuses_without_a_permission(word: str, tmp_path: Path) -> None:
    store = hospital_store(tmp_path / "a", redistribution=word)
    refused = run_command("snapshot", "export", tmp_path / "out", "--store", store.layout.root)
    assert refused.code == 4 and "--permission-ref" in refused.err
    assert not (tmp_path / "out").exists() and not store.layout.private.exists()
    outcome = export_of(store, tmp_path / "out", permission_ref="mail of 1 May 2026")
    assert outcome.snapshot.datasets[0].permission_refs == ("mail of 1 May 2026",)
    assert "mail of 1 May 2026" in (tmp_path / "out" / "README.md").read_text()
    (entry,) = read_disclosures(store.layout)
    assert (entry.permission_ref, entry.recipient) == ("mail of 1 May 2026", "lab-b")
    assert entry.snapshot_id == outcome.snapshot.id


def test_the_leak_scan_finds_what_the_rules_let_through(store: Store, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="what must not leave was found"):
        export_of(store, tmp_path / "out", named=("remark",), accept_group=1)
    for field in ("contact", "note"):
        with pytest.raises(PolicyError, match="what must not leave was found"):
            export_of(store, tmp_path / "out", **{field: f"ask about {clip_id_of(3)}"})
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".staging-*")) == []


def spellings(word: str) -> list[str]:
    """A word as it is, without capitals, in hexadecimal, and in base64 behind nothing, a byte, two bytes."""
    raw = word.encode()
    encoded = [base64.b64encode(before + raw + b"yz").decode() for before in (b"", b"a", b"ab")]
    return [word, word.lower(), raw.hex(), raw.hex().upper(), *encoded]


def test_the_leak_scan_reads_arrays_tables_and_encodings(store: Store, tmp_path: Path) -> None:
    export_of(store, tmp_path / "out")
    word = "MUELLER^ANNA^003"
    scan = LeakScan([word], kept=(), vocabulary="")
    assert scan.scan(tmp_path / "out") == []
    shard = next((tmp_path / "out").rglob("clips/c/0/0"))
    original = shard.read_bytes()
    for form in spellings(word):
        for offset in (0, 1, 2, 3, 4093):
            payload = bytearray(original)
            payload[offset : offset + len(form)] = form.encode()
            shard.write_bytes(payload)
            assert [leak.word for leak in scan.scan(tmp_path / "out")] == [word], (form, offset)
    shard.write_bytes(original)
    note = tmp_path / "out" / "README.md"
    for form in spellings(word):
        note.write_text(f"nothing to see: {form} here")
        assert len(scan.scan(tmp_path / "out")) == 1, form
    note.write_text("nothing")
    table = pq.read_table(next((tmp_path / "out").rglob("failures.parquet")))
    column = table.column_names.index("detail")
    for form in spellings(word):
        planted = table.set_column(column, "detail", [[f"about {form}"] * table.num_rows])
        pq.write_table(planted, tmp_path / "out" / "x.parquet")
        assert {leak.file for leak in scan.scan(tmp_path / "out")} == {"x.parquet"}, form


def test_words_are_found_where_blocks_of_an_array_meet(tmp_path: Path) -> None:
    from embedstore.snapshot.leakscan import _BLOCK_BYTES

    words = ["MUELLER^ANNA", "Müller, Änne", "0123456789" * 30]
    scan = LeakScan([*words, "x" * 400], kept=(), vocabulary="")
    draw = np.random.default_rng(0)
    noise = draw.standard_normal(_BLOCK_BYTES, dtype=np.float32).astype(np.float16).tobytes()
    path = tmp_path / "array"
    path.write_bytes(noise)
    assert scan.scan(tmp_path) == []
    for word in words:
        for distance in (-200, -5, -1, 0, 397, 401):
            payload = bytearray(noise)
            begin = _BLOCK_BYTES + distance
            payload[begin : begin + len(word.encode())] = word.encode()
            path.write_bytes(payload)
            assert [leak.word for leak in scan.scan(tmp_path)] == [word], (word, distance)
    path.write_bytes(noise + words[0].encode())
    assert [leak.word for leak in scan.scan(tmp_path)] == [words[0]]


def test_what_chance_spells_in_an_array_is_no_leak(tmp_path: Path) -> None:
    """Of fifty thousand numbers of seven digits some stand in any array of vectors; of longer words none."""
    short = [f"{number:07d}" for number in range(50_000)]
    long = [f"{number:012d}" for number in range(1_000)]
    scan = LeakScan([*short, *long], kept=(), vocabulary="")
    path = tmp_path / "array"
    noise = bytearray(16_000_000)

    def planted(words: list[str]) -> set[str]:
        payload = bytearray(noise)
        for position, word in enumerate(words):
            payload[1001 * position : 1001 * position + len(word)] = word.encode()
        path.write_bytes(payload)
        return {leak.word for leak in scan.scan(tmp_path)}

    assert planted(short[1::12_500]) == set()  # four, where about one is expected
    assert planted(short[1::250]) == set(short[1::250])  # chance does not put two hundred there
    assert planted([long[3], *short[1::12_500]]) == {long[3]}


def test_short_ids_are_looked_for_as_cells_not_as_text(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a")
    rows = [{"clip_id": f"{n}", "patient_id": f"p{n}", "split": "train"} for n in range(8)]
    store.add_manifest(Manifest.from_rows(rows, dataset=hospital_manifest().dataset))
    add_set(store, {f"{n}": 1 for n in range(8)})
    export_of(store, tmp_path / "out")  # "7" stands in every file, and is no leak there
    scan = LeakScan(["7"], kept=(), vocabulary="")
    assert scan.scan(tmp_path / "out") == []
    assert LeakScan(["7"], kept=(), vocabulary="").scan(store.layout.manifests) != []


def test_dry_run_lists_every_column_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    ran = run_command("snapshot", "export", tmp_path / "out", "--store", store.layout.root, "--dry-run", "--json")
    assert ran.code == 0
    (dataset,) = json.loads(ran.out)["datasets"]
    listed = {column["column"]: column["action"] for column in dataset["columns"]}
    assert set(listed) >= {*store.manifest("mine").fields, "key_frames", "index.parquet:vector_key"}
    assert listed["path"] == "emptied" and listed["clip_id"] == "pseudonym" and listed["lvef_pct"] == "left out"
    assert json.loads(ran.out)["refused"] is None
    closed = hospital_store(tmp_path / "closed", redistribution="no").layout.root
    ran = run_command("snapshot", "export", tmp_path / "out", "--store", closed, "--dry-run")
    assert ran.code == 0 and "would be refused: redistribution is not free for mine (no)" in ran.out
    assert not (tmp_path / "out").exists() and not store.layout.private.exists()


def test_every_role_and_column_has_one_rule() -> None:
    rules = manifest_rules(hospital_manifest(), ids="pseudonyms", digests="keyed")
    assert len({rule.column for rule in rules}) == len(rules) == len(hospital_manifest().fields) + 1


def test_clips_without_a_manifest_stay_here(store: Store, tmp_path: Path) -> None:
    left = hospital_manifest(N_CLIPS - 4)
    store.add_manifest(left)
    outcome = export_of(store, tmp_path / "out")
    assert outcome.left_out == 8  # four clips in each of two sets
    assert {entry.n_clips for entry in outcome.snapshot.sets} == {N_CLIPS - 4}


def test_a_target_that_is_taken_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(UnknownNameError, match="already there"):
        export_of(store, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"


def test_an_internal_copy_is_whole(store: Store, tmp_path: Path) -> None:
    outcome = export_of(store, tmp_path / "out", internal=True)
    assert {entry.set_id for entry in outcome.snapshot.sets} == {entry.set_id for entry in store.entries()}
    assert Manifest.read(tmp_path / "out/manifests/mine.parquet").id == store.manifest("mine").id
    assert "must not leave the lab" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    "idle",
    [
        ("--with-labels", "lvef_pct"),
        ("--drop", "view"),
        ("--with-map", "map.json"),
        ("--join-key", "key"),
        ("--accept-k", "9"),
    ],
)
def test_what_an_internal_copy_would_not_do_is_refused(store: Store, tmp_path: Path, idle: tuple[str, str]) -> None:
    ran = run_command("snapshot", "export", tmp_path / "out", "--internal", *idle, "--store", store.layout.root)
    assert ran.code == 2 and f"{idle[0]} has no part in an internal copy" in ran.err
    assert not (tmp_path / "out").exists()


def test_archives_are_deterministic_and_split_by_encoder(store: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_of(store, tmp_path / name / "x.zip", archive=True)
    assert (tmp_path / "one/x.zip").read_bytes() == (tmp_path / "two/x.zip").read_bytes()
    done = subprocess.run(["unzip", "-tqq", tmp_path / "one/x.zip"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    parts = export_of(store, tmp_path / "s.zip", archive=True, split_bytes=60_000)
    assert [path.name for path in parts.paths] == ["s.zip", "s.other.zip", "s.small.zip"]
    with pytest.raises(UnknownNameError, match=r"NAME\.zip"):
        export_of(store, tmp_path / "tar.tgz", archive=True)
    with pytest.raises(UnknownNameError, match="more than 100"):
        export_of(store, tmp_path / "t.zip", archive=True, split_bytes=100)


def test_the_document_is_canonical_and_selects(store: Store, tmp_path: Path) -> None:
    from embedstore.snapshot.selection import Selection

    outcome = export_of(store, tmp_path / "out")
    snapshot = SentSnapshot.read(tmp_path / "out")
    assert snapshot == outcome.snapshot and SentSnapshot.from_bytes(snapshot.to_bytes(), source="x").id == snapshot.id
    chosen = snapshot.select(Selection(encoders=("small",), clips_only=True))
    assert not any("/other/" in file.path or "/frames/" in file.path for file in chosen)
    assert any(file.path.endswith("small/clips/c/0/0") for file in chosen)
    with pytest.raises(UnknownNameError):
        snapshot.select(Selection(encoders=("smal",)))


def test_maps_survive_two_exports_at_once(store: Store) -> None:
    first, second = Pseudonyms(store.layout, "x"), Pseudonyms(store.layout, "x")
    with first.hold():
        name = first.name("mine", "clip", "a")
        first.save()
    with second.hold():
        second.reload()
        assert second.name("mine", "clip", "a") == name
        assert second.source == first.source


def test_float_rows_keep_their_order_when_nothing_is_renamed(tmp_path: Path) -> None:
    store = hospital_store(tmp_path / "a", ids="public")
    outcome = export_of(store, tmp_path / "out")
    for entry in outcome.snapshot.sets:
        sent = EmbeddingSet.open(tmp_path / "out" / entry.folder, set_id=entry.set_id)
        own = store.get(dataset="mine", encoder=entry.encoder)
        order = np.argsort(own.index.column("clip_id").to_pylist())
        assert np.array_equal(sent.clips.raw[:], own.clips.raw[:][order])


def test_create_picks_by_encoder_and_task(store: Store, tmp_path: Path) -> None:
    from embedstore.snapshot.create import create_snapshot

    tag = create_snapshot(store, "one", encoders=["small"], tasks=["lvef"])
    assert [entry.encoder for entry in store.snapshot(tag.snapshot_id).sets] == ["small"]
    outcome = export_of(store, tmp_path / "out", snapshot_id=tag.snapshot_id)
    assert [entry.encoder for entry in outcome.snapshot.sets] == ["small"]
    with pytest.raises(UnknownNameError, match="no data set of the snapshot has labels for the task"):
        create_snapshot(store, "two", tasks=["asd"])
    with pytest.raises(UnknownNameError, match="did you mean 'lvef'"):
        create_snapshot(store, "two", tasks=["lvf"])
    assert replace(tag, time="") == replace(create_snapshot(store, "one", encoders=["small"]), time="")


def test_forget_patient_names_who_must_be_told(store: Store, tmp_path: Path) -> None:
    from embedstore.upkeep.forget import forget_patient

    outcome = export_of(store, tmp_path / "out")
    patient = hospital_manifest().column("patient_id")[0]
    sent_name = Pseudonyms(store.layout, "lab-b").known("mine", "patient", patient)
    assert sent_name in manifest_in(tmp_path / "out").column("patient_id")
    looked = forget_patient(store, patient)
    (copy,) = looked.sent
    assert copy.to_dict()["snapshot"] == outcome.snapshot.id and copy.is_certain
    assert (copy.disclosure.recipient, copy.patient) == ("lab-b", sent_name)
    ran = run_command("forget-patient", patient, "--store", store.layout.root, "--yes")
    assert ran.code == 0 and f"tell lab-b: snapshot {outcome.snapshot.id[:12]}" in ran.out and sent_name in ran.out
    assert where_found(store.layout.private, patient) == []
    assert where_found(store.layout.root, clip_id_of(0)) == []
    other = hospital_manifest().column("patient_id")[4]
    (copy,) = forget_patient(store, other).sent
    assert not copy.is_certain  # the sets that were sent are gone, so nobody can tell; it is said all the same
    again = export_of(store, tmp_path / "again")
    assert again.snapshot.datasets[0].n_clips == N_CLIPS - 2
