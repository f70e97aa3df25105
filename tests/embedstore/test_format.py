"""The format as `docs/format.md` says it: the golden store, read by this version and by a second reader."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import embedstore
from embedstore.build.plan import make_plan
from embedstore.embedding_set import TABLE_SCHEMAS
from embedstore.errors import CorruptionError, FormatError, MediaError, StorageError
from embedstore.identity import canonical_json
from embedstore.json_files import seal_json
from embedstore.layout import FORMAT_VERSION
from embedstore.manifest.fields import STANDARD
from embedstore.snapshot.tags import list_tags
from embedstore.snapshot.verify import verify_store
from embedstore.spec import EncoderSpec, FrameSampling
from embedstore.store import Store

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/data/stores/v1"
DOCUMENT = (ROOT / "docs/format.md").read_text(encoding="utf-8")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


second = load(Path(__file__).with_name("second_reader.py"))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def store() -> Store:
    return embedstore.open(GOLDEN / "store")


@pytest.fixture(scope="module")
def whole() -> Any:
    return second.read_store(GOLDEN / "store")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


# -- the golden store, read by this version -------------------------------------------------------------------------


def test_history_is_what_was_committed(store: Store, expected: dict[str, Any]) -> None:
    log = [
        {"number": entry.number, "snapshot": entry.snapshot_id, "parent": entry.parent_id, "time": entry.time}
        for entry in reversed(store.log())
    ]
    assert log == expected["log"]
    assert {tag.name: tag.snapshot_id for tag in list_tags(store)} == expected["tags"]
    for entry in store.log():
        assert store.snapshot(entry.snapshot_id).id == entry.snapshot_id
    names = {(entry.dataset, entry.title) for entry in store.entries()}
    assert names == {(golden["dataset"], golden["encoder"]) for golden in expected["sets"].values()}


def test_vectors_and_tables_are_those_that_were_written(store: Store, expected: dict[str, Any]) -> None:
    for set_id, golden in expected["sets"].items():
        opened = store.open_set(set_id)
        assert (opened.dataset, opened.spec.title) == (golden["dataset"], golden["encoder"])
        assert opened.fingerprint == opened.spec.fingerprint == expected["fingerprints"][golden["encoder"]]
        assert opened.provenance.items() >= expected["provenance"].items()
        assert set(opened.described["arrays"]) == set(golden["arrays"])
        for kind, array in golden["arrays"].items():
            found = opened.array(kind)
            assert found is not None and list(found.shape) == array["shape"]
            rows = found.raw[:]
            assert rows.dtype.name == array["dtype"]
            assert [row.tobytes().hex() for row in rows[: len(array["rows"])]] == array["rows"]
            assert hashlib.sha256(rows.tobytes()).hexdigest() == array["bytes_sha256"]
            np.testing.assert_array_equal(found[::-1], rows[::-1].astype(np.float32))
        for name, table in golden["tables"].items():
            found_table = opened.table(name)
            assert found_table.column_names == table["columns"]
            cells = [list(row.values()) for row in found_table.to_pylist()]
            assert cells[: len(table["rows"])] == table["rows"] and len(cells) == table["n_rows"]
            assert hashlib.sha256(compact(cells)).hexdigest() == table["json_sha256"]


def test_manifests_are_those_that_were_added(store: Store, expected: dict[str, Any]) -> None:
    entries = {
        entry.manifest_id: entry for logged in store.log() for entry in store.snapshot(logged.snapshot_id).manifests
    }
    assert set(entries) == set(expected["manifests"])
    for manifest_id, golden in expected["manifests"].items():
        manifest = store.open_manifest(entries[manifest_id])
        assert (manifest.name, manifest.media_digest) == (golden["name"], golden["media_digest"])
        assert manifest.annotations_digest == golden["annotations_digest"]
        rows = [
            {key: value for key, value in row.items() if value is not None and key != "key_frames"}
            for row in manifest.table.to_pylist()
        ]
        assert rows == [{key: v for key, v in row.items() if v is not None} for row in golden["rows"]]
        key_frames = sorted(list(row.values()) for row in manifest.key_frames.to_pylist())
        assert key_frames == golden["key_frames"]


def test_the_golden_store_verifies_and_reading_leaves_no_trace(store: Store) -> None:
    """As git keeps it, without its empty folders."""
    before = tree(GOLDEN)
    for quick in (True, False):
        outcome = verify_store(store, quick=quick)
        assert outcome.problems == []
    assert tree(GOLDEN) == before and not (GOLDEN / "store/prompts").exists()


def test_what_was_forgotten_is_missed_by_nobody(store: Store, whole: Any) -> None:
    listed = {entry["set_id"] for snapshot in whole.snapshots.values() for entry in snapshot["sets"]}
    (gone,) = listed - set(whole.sets)
    assert second.read_forgotten(GOLDEN / "store") == {"sent": {gone}}
    with pytest.raises(StorageError, match=gone):
        store.open_set(gone)


def test_a_grown_set_keeps_its_rows(store: Store, expected: dict[str, Any]) -> None:
    few, many = (store.open_set(set_id) for set_id in list(dict.fromkeys(expected["growth"])))
    assert len(few) < len(many)
    np.testing.assert_array_equal(many.clips.raw[: len(few)], few.clips.raw[:])
    np.testing.assert_array_equal(many.frames.raw[: len(few.frames)], few.frames.raw[:])
    shard = "c/0/0"
    assert few.frames.description.files[shard] == many.frames.description.files[shard]


def test_plain_zarr_reads_every_array(store: Store, expected: dict[str, Any]) -> None:
    for set_id in expected["sets"]:
        group = zarr.open_group(str(store.layout.set_folder(set_id)), mode="r", zarr_format=3)
        for kind in expected["sets"][set_id]["arrays"]:
            found = store.open_set(set_id).array(kind)
            assert found is not None
            np.testing.assert_array_equal(np.asarray(group[kind][:]), found.raw[:])


def test_made_again_it_is_the_same(tmp_path: Path, expected: dict[str, Any]) -> None:
    if FORMAT_VERSION != 1:
        pytest.skip("this version writes another format; it only reads this one")
    maker = load(ROOT / "tests/data/make_golden_store.py")
    maker.make(tmp_path / "v1")
    again = json.loads((tmp_path / "v1/expected.json").read_text(encoding="utf-8"))
    if pa.__version__ == expected["made_with"]["pyarrow"]:
        assert tree(tmp_path / "v1") == tree(GOLDEN)
        return
    # Another pyarrow may write equal tables in other bytes: ids of sets and snapshots differ, nothing else.
    by_content = [sorted(found["sets"].values(), key=compact) for found in (again, expected)]
    assert by_content[0] == by_content[1]
    assert [again[key] for key in ("manifests", "fingerprints")] == [
        expected[key] for key in ("manifests", "fingerprints")
    ]


# -- the second reader ----------------------------------------------------------------------------------------------


def test_the_second_reader_stands_alone() -> None:
    text = Path(str(second.__file__)).read_text(encoding="utf-8")
    tops = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            tops |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            tops.add(str(node.module).partition(".")[0])
    assert tops <= {"numpy", "pyarrow", *sys.stdlib_module_names}


def test_both_readers_see_the_same(store: Store, whole: Any, expected: dict[str, Any]) -> None:
    assert [entry["snapshot"] for entry in whole.log] == [entry.snapshot_id for entry in reversed(store.log())]
    assert whole.tags == {tag.name: tag.snapshot_id for tag in list_tags(store)}
    for snapshot_id, described in whole.snapshots.items():
        assert second.canonical(described) == store.snapshot(snapshot_id).to_bytes()
    assert set(whole.sets) == set(expected["sets"]) and set(whole.manifests) == set(expected["manifests"])
    for set_id, vectors in whole.sets.items():
        opened = store.open_set(set_id)
        assert vectors.described == opened.described and vectors.provenance == opened.provenance
        assert second.digest(vectors.described["spec"]) == opened.spec.fingerprint
        for kind, rows in vectors.arrays.items():
            found = opened.array(kind)
            assert found is not None and found.raw[:].tobytes() == rows.tobytes()
            metadata = json.loads((opened.folder / kind / "zarr.json").read_bytes())
            assert metadata == second.array_metadata(vectors.described["arrays"][kind])
        for name, table in vectors.tables.items():
            assert table == opened.table(name).to_pylist()
            assert pa.schema(second.COLUMNS[name].items()).equals(
                pa.schema(sorted(TABLE_SCHEMAS[name], key=lambda f: list(second.COLUMNS[name]).index(f.name)))
            )
    for manifest_id, clips in whole.manifests.items():
        opened_manifest = embedstore.Manifest.read(store.layout.manifest_file(manifest_id))
        assert (clips.id, clips.media_digest, clips.annotations_digest) == (
            opened_manifest.id,
            opened_manifest.media_digest,
            opened_manifest.annotations_digest,
        )
        assert clips.header == opened_manifest.header() and clips.rows == opened_manifest.table.to_pylist()


def test_vector_keys_follow_from_the_manifests(whole: Any) -> None:
    rows_of = {}
    for clips in whole.manifests.values():
        for row in clips.rows:
            rows_of[clips.header["dataset"]["name"], row["clip_id"]] = row
    seen = set()
    for vectors in whole.sets.values():
        spec, dataset = vectors.described["spec"], vectors.described["dataset"]
        frames: dict[str, list[int]] = {}
        for row in vectors.tables.get("frame_index.parquet", ()):
            frames.setdefault(row["clip_id"], []).append(row["frame"])
        for row in [*vectors.tables["index.parquet"], *vectors.tables["failures.parquet"]]:
            clip = rows_of[dataset, row["clip_id"]]
            assert second.vector_key(spec, clip, frames=frames.get(row["clip_id"], ())) == row["vector_key"]
            assert row["content_sha256"] == clip["sha256"]
            seen.add(row.get("reason"))
    assert seen == {None, "corrupt", "no-key-frame", "no-vector"}


@pytest.mark.parametrize("rule", ["all", "uniform:3", "rate:7.5x4", "keyframe:es", "stride:2x4"])
def test_a_plan_has_the_keys_of_the_document(store: Store, whole: Any, rule: str) -> None:
    """With what the manifests do not state: frames, fps, digests, key frames."""
    spec = EncoderSpec(name="other", clip_dim=3, sampling=FrameSampling(rule, n_windows=2, padding="loop"))
    for entry in store.manifests():
        rows = {row["clip_id"]: row for row in whole.manifests[entry.manifest_id].rows}
        plan = make_plan(store, store.open_manifest(entry), spec, with_frames=False)
        assert {clip.clip_id for clip in plan.clips} == set(rows)
        for clip in plan.clips:
            assert clip.vector_key == second.vector_key(spec.to_dict(), rows[clip.clip_id]), clip.clip_id


def test_every_file_is_covered(tmp_path: Path) -> None:
    """A flipped bit in each file, and a cut, an addition or a removal: the second reader refuses all of them."""
    copy = tmp_path / "store"
    shutil.copytree(GOLDEN / "store", copy)
    rng = np.random.default_rng(0)
    for number, (name, payload) in enumerate(sorted(tree(copy).items())):
        flipped = bytearray(payload)
        flipped[int(rng.integers(len(payload)))] ^= 1 << int(rng.integers(8))
        others = [payload[: int(rng.integers(len(payload)))], payload + b"\n"]
        if not name.startswith("tags/"):  # as the document says, nothing inside a store shows that a tag was removed
            others.append(None)
        for damage in (bytes(flipped), others[number % len(others)]):
            (copy / name).unlink()
            if damage is not None:
                (copy / name).write_bytes(damage)
            with pytest.raises((second.Refused, OSError, KeyError, pa.ArrowException)):
                second.read_store(copy)
            (copy / name).write_bytes(payload)
    second.read_store(copy)


# -- the document ---------------------------------------------------------------------------------------------------


def test_the_document_names_every_column() -> None:
    for name in [*(column for schema in TABLE_SCHEMAS.values() for column in schema.names), *STANDARD]:
        assert f"`{name}`" in DOCUMENT, name
    assert f"version {FORMAT_VERSION}" in DOCUMENT.splitlines()[0]


def test_the_examples_of_the_document() -> None:
    shown = re.findall(r"\| `([\[{].*)` \| `([0-9a-f]{64})` \|", DOCUMENT)
    assert len(shown) == 2
    for text, digest in shown:
        value = json.loads(text)
        assert canonical_json(value) == second.canonical(value) == text.encode()
        assert hashlib.sha256(text.encode()).hexdigest() == digest
    (sealed,) = re.findall(r'^(\{"seal".*)$', DOCUMENT, flags=re.MULTILINE)
    document = json.loads(sealed)
    del document["seal"]
    assert seal_json(document) == sealed.encode()


TEXTS = st.text(max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def has_twins(value: Any) -> bool:
    """Whether two keys of an object are one in NFC: a value that has no canonical form."""
    import unicodedata

    if isinstance(value, dict):
        composed = {unicodedata.normalize("NFC", key) for key in value}
        return len(composed) < len(value) or any(has_twins(entry) for entry in value.values())
    return isinstance(value, list) and any(has_twins(entry) for entry in value)


@settings(max_examples=300)
@given(VALUES.filter(lambda value: not has_twins(value)))
def test_canonical_json_as_the_document_has_it(value: Any) -> None:
    written = canonical_json(value)
    assert second.canonical(value) == written
    assert second.canonical(second.parse_json(written)) == written


RULES = st.one_of(
    st.sampled_from(["all", "keyframe:ed", "keyframe:es"]),
    st.builds("uniform:{}".format, st.integers(1, 40)),
    st.builds("linspace:{}".format, st.integers(1, 40)),
    st.builds("consecutive:{}".format, st.integers(1, 40)),
    st.builds("stride:{}x{}".format, st.integers(1, 9), st.integers(1, 40)),
    st.builds("rate:{}x{}".format, st.sampled_from(["10", "12.5", "30", "7.3"]), st.integers(1, 40)),
)


@settings(max_examples=300)
@given(
    rule=RULES,
    padding=st.sampled_from(["none", "repeat-last", "zero", "loop", "palindrome"]),
    n_windows=st.integers(1, 5),
    n_frames=st.integers(1, 50),
    fps=st.none() | st.floats(1, 120),
)
def test_sampling_as_the_document_has_it(
    rule: str, padding: str, n_windows: int, n_frames: int, fps: float | None
) -> None:
    sampling = FrameSampling(rule, n_windows=n_windows, padding=padding)  # type: ignore[arg-type]
    key_frames = {"ed": [3, 1, 3]}
    windows = second.windows_of(sampling.to_dict(), n=n_frames, fps=fps, key_frames=key_frames)
    try:
        resolved = sampling.resolve(n_frames=n_frames, fps=fps, key_frames=key_frames)
    except MediaError:
        assert windows is None
    else:
        assert windows == [list(window) for window in resolved.windows]
        assert second.digest(windows) == resolved.digest


# -- what must be refused -------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "store", tmp_path / "store")
    return tmp_path / "store"


def newer(path: Path) -> bytes:
    described = json.loads(path.read_bytes())
    described.pop("seal", None)
    return canonical_json({**described, "format": 2, "needs": "0.9"})


def test_a_newer_store_is_refused_before_its_seal(copy: Path) -> None:
    (copy / "embedstore.json").write_bytes(newer(copy / "embedstore.json"))
    before = tree(copy)
    for opened in (Store.open, Store.create):
        with pytest.raises(FormatError, match=r"needs embedstore >= 0\.9"):
            opened(copy)
    with pytest.raises(second.Refused, match=r"needs embedstore >= 0\.9"):
        second.read_store(copy)
    assert tree(copy) == before


def test_a_newer_set_and_snapshot_are_refused(copy: Path) -> None:
    store = Store.open(copy)
    payload = newer(store.layout.set_folder(store.entries()[0].set_id) / "description.json")
    set_id = hashlib.sha256(payload).hexdigest()
    store.layout.set_folder(set_id).mkdir()
    (store.layout.set_folder(set_id) / "description.json").write_bytes(payload)
    payload = newer(store.layout.snapshot_file(store.log()[0].snapshot_id))
    snapshot_id = hashlib.sha256(payload).hexdigest()
    store.layout.snapshot_file(snapshot_id).write_bytes(payload)
    for read, refuse in (
        (lambda: store.open_set(set_id), FormatError),
        (lambda: store.snapshot(snapshot_id), FormatError),
    ):
        with pytest.raises(refuse, match="format 2"):
            read()
    for read in (lambda: second.read_set(copy, set_id), lambda: second.read_snapshot(copy, snapshot_id)):
        with pytest.raises(second.Refused, match="newer"):
            read()


def test_leftovers_and_private_files_are_ignored(copy: Path, whole: Any) -> None:
    """Interrupted writers, builds under way and settings of the machine change nothing for a reader."""
    for name in ("log/.partial-00", "sets/.staging-00/description.json", "builds/x/plan.json", "local.json"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"{}")
    again = second.read_store(copy)
    assert again.log == whole.log and set(again.sets) == set(whole.sets)
    store = Store.open(copy)
    assert [entry.snapshot_id for entry in reversed(store.log())] == [entry["snapshot"] for entry in whole.log]
    assert len(store.entries()) == 4


def test_another_manifest_under_an_id_is_refused(copy: Path) -> None:
    store = Store.open(copy)
    first, other = store.manifests()
    store.layout.manifest_file(first.manifest_id).write_bytes(
        store.layout.manifest_file(other.manifest_id).read_bytes()
    )
    with pytest.raises(CorruptionError):
        store.open_manifest(first)
