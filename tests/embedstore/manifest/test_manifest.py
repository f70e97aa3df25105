from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import FormatError, ManifestError, StorageError, UnknownNameError
from embedstore.identity import canonical_json
from embedstore.manifest import DatasetFacts, Manifest, ManifestField, Problem
from embedstore.manifest.fields import STANDARD
from embedstore.manifest.stored import HEADER_KEY, parse_manifest

FACTS = DatasetFacts(name="clinic", title="A clinic's clips")
LVEF = ManifestField(name="EF", role="label", kind="number", unit="%", plausible=(1, 100))
AS = ManifestField(name="severe", role="label", kind="boolean")
NOTE = ManifestField(name="note", role="extra")
FIELDS = (LVEF, AS, NOTE)
DIGEST = "ab" * 32


def clip(clip_id: str, **values: Any) -> dict[str, Any]:
    return {"clip_id": clip_id, **values}


def manifest(*rows: dict[str, Any], **arguments: Any) -> Manifest:
    return Manifest.from_rows(rows, **{"dataset": FACTS, "fields": FIELDS, **arguments})


def rules(made: Manifest) -> dict[str, tuple[str, ...]]:
    return {problem.rule: problem.rows for problem in made.problems()}


words = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "), min_size=1, max_size=8
).filter(str.strip)
texts = st.none() | words
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
counts = st.none() | st.integers(min_value=-(2**63), max_value=2**63 - 1)
rows = st.fixed_dictionaries(
    {"clip_id": words},
    optional={
        "patient_id": texts,
        "path": texts,
        "sha256": texts,
        "n_frames": counts,
        "fps": numbers,
        "view": texts,
        "split": st.sampled_from([None, "train", "val", "test", "fold1"]),
        "EF": numbers | st.sampled_from(["n/a", "inf", " 55.5 "]),
        "severe": st.sampled_from([None, True, False, "yes", "no", 1, 0.0, "maybe"]),
        "note": texts,
    },
)
tables = st.lists(rows, max_size=6, unique_by=lambda row: row["clip_id"])
key_frames = st.lists(st.tuples(words, st.sampled_from(["ed", "es", "qrs"]), st.integers(-1, 500)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(tables, key_frames, st.randoms(use_true_random=False))
def test_a_written_manifest_reads_back_equal_whatever_the_order_of_rows(
    listed: list[dict[str, Any]], frames: list[tuple[str, str, int]], shuffler: random.Random
) -> None:
    frames += [(row["clip_id"], "ed", 3) for row in listed[:2]]
    made = manifest(*listed, key_frames=frames)
    shuffler.shuffle(listed)
    shuffler.shuffle(frames)
    other = manifest(*listed, key_frames=frames)
    read = parse_manifest(made.to_bytes(), source="memory")

    for same in (other, read):
        assert same.table.equals(made.table)
        assert same.to_bytes() == made.to_bytes()
        assert (same.media_digest, same.annotations_digest, same.id) == (
            made.media_digest,
            made.annotations_digest,
            made.id,
        )
        assert same.problems() == made.problems()
        assert dataclasses.replace(same, table=made.table) == made
    assert made.clip_ids == sorted(row["clip_id"] for row in listed)
    assert len(made) == len(listed)


def test_write_replaces_and_read_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "clinic.parquet"
    made = manifest(clip("b", EF="61"), clip("a", EF=55, severe="yes"), key_frames=[("b", "ed", 0)])
    manifest(clip("z")).write(path)
    made.write(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["clinic.parquet"]
    read = Manifest.read(path)
    assert read.table.equals(made.table)
    assert read.column("EF") == [55.0, 61.0]
    assert read.column("severe") == [True, None]
    assert read.key_frames.to_pylist() == [{"clip_id": "b", "role": "ed", "frame": 0}]
    assert read.dataset == FACTS
    assert read.fields["EF"] == LVEF
    assert read.labels() == ["EF", "severe"]


BASE = clip("a", patient_id="p", path="a.avi", sha256=DIGEST, n_frames=9, fps=30.0, height=4, width=4, EF=55.0)


@pytest.mark.parametrize(
    ("change", "media_changes"),
    [
        ({"fps": 25.0}, True),
        ({"n_frames": 10}, True),
        ({"sha256": "cd" * 32}, True),
        ({"height": 5}, True),
        ({"spacing_x_mm": 0.3}, True),
        ({"clip_id": "b"}, True),
        ({"path": "moved/a.avi"}, False),
        ({"EF": 56.0}, False),
        ({"EF": "n/a"}, False),
        ({"severe": True}, False),
        ({"split": "test"}, False),
        ({"view": "A4C"}, False),
        ({"patient_id": "q"}, False),
        ({"note": "x"}, False),
        ({"heart_rate_bpm": 61.0}, False),
    ],
)
def test_each_value_changes_the_digest_that_it_belongs_to(change: dict[str, Any], media_changes: bool) -> None:
    before, after = manifest(BASE), manifest({**BASE, **change})
    assert (after.media_digest != before.media_digest) is media_changes
    assert after.id != before.id
    if not media_changes:
        assert after.annotations_digest != before.annotations_digest


def test_key_frames_are_media_and_statements_are_annotations() -> None:
    plain, framed = manifest(BASE), manifest(BASE, key_frames=[("a", "ed", 2)])
    moved = manifest(BASE, key_frames=[("a", "ed", 3)])
    assert len({plain.media_digest, framed.media_digest, moved.media_digest}) == 3
    assert plain.annotations_digest == framed.annotations_digest
    for other in (
        manifest(BASE, patient_ids="provided"),
        manifest(BASE, split_rule="drawn"),
        manifest(BASE, dataset=FACTS.model_copy(update={"licence": "MIT"})),
    ):
        assert other.media_digest == plain.media_digest
        assert other.annotations_digest != plain.annotations_digest


def test_a_sound_manifest_has_no_problems() -> None:
    made = manifest(
        {**BASE, "split": "train", "severe": False},
        clip("b", patient_id="q", split="test", EF=None),
        clip("c"),
        key_frames=[("a", "ed", 0), ("a", "es", 8), ("b", "annotated", 77)],
    )
    assert made.problems() == []
    made.require_valid()


@pytest.mark.parametrize(
    ("broken", "rule", "named"),
    [
        ([clip("")], "clip-id-empty", ("row 0",)),
        ([clip("a"), clip("a"), clip("b")], "clip-id-duplicate", ("a",)),
        ([clip("caf\u00e9"), clip("cafe\u0301")], "clip-id-duplicate", ("caf\u00e9",)),
        ([clip("a\x1b[31m")], "id-characters", ("'a\\x1b[31m'",)),
        ([clip("a", patient_id="p\u202e")], "id-characters", ("'p\\u202e'",)),
        ([clip("a", study_id="s" * 513)], "id-characters", (repr("s" * 513),)),
        ([clip("a", split="fold1"), clip("b", split="val")], "split-unknown", ("a (fold1)",)),
        (
            [
                clip("a", patient_id="p", split="train"),
                clip("b", patient_id="p", split="test"),
                clip("c", patient_id="q", split="test"),
            ],
            "patient-in-two-splits",
            ("p (test, train)",),
        ),
        ([clip("a", EF="n/a"), clip("b", EF=55)], "not-a-number", ("a (n/a)",)),
        ([clip("a", EF="inf")], "not-a-number", ("a (inf)",)),
        ([clip("a", EF=float("nan"))], "not-a-number", ("a (nan)",)),
        ([clip("a", severe="maybe")], "not-a-number", ("a (maybe)",)),
        ([clip("a", n_frames=2.5)], "not-a-number", ("a (2.5)",)),
        ([clip("a", n_frames="1_000")], "not-a-number", ("a (1_000)",)),
        ([clip("a", n_frames=10**30)], "not-a-number", (f"a ({10**30})",)),
        ([clip("a", EF=0.55), clip("b", EF=101), clip("c", EF=100)], "implausible", ("a (0.55)", "b (101)")),
        ([clip("a", fps=0)], "fps", ("a (0.0)",)),
        ([clip("a", fps=-25)], "fps", ("a (-25.0)",)),
        ([clip("a", n_frames=0)], "n-frames", ("a (0)",)),
        ([clip("a", sha256="AB" * 32)], "sha256", (f"a ({'AB' * 32})",)),
        ([clip("a", height=0)], "size", ("a (0)",)),
        ([clip("a", spacing_y_mm=-0.1)], "size", ("a (-0.1)",)),
    ],
)
def test_each_broken_rule_names_its_rows(broken: list[dict[str, Any]], rule: str, named: tuple[str, ...]) -> None:
    made = manifest(*broken)
    assert rules(made) == {rule: named}
    with pytest.raises(ManifestError, match="clinic") as caught:
        made.require_valid()
    assert caught.value.exit_code == 4
    read = parse_manifest(made.to_bytes(), source="memory")
    assert rules(read) == {rule: named}


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/x", "C:\\x", "D:foo", "\\\\h\\s", "a\0b", "..", "a\\..\\..\\x", "a\nb", "~\x1b]52;c"],
)
def test_paths_that_leave_the_root_are_problems(path: str) -> None:
    assert rules(manifest(clip("a", path=path))) == {"path": (f"a ({path})",)}


@pytest.mark.parametrize("path", ["a.avi", "p 1/a b.dcm", "a..b/c", "é.avi", "-rf"])
def test_paths_below_the_root_are_fine(path: str) -> None:
    assert manifest(clip("a", path=path)).problems() == []


@pytest.mark.parametrize(
    ("frames", "rule", "named"),
    [
        ([("a", "systole", 1)], "key-frame", ("a (systole 1)",)),
        ([("a", "ed", 9)], "key-frame", ("a (ed 9)",)),
        ([("a", "ed", -1)], "key-frame", ("a (ed -1)",)),
        ([("zz", "ed", 0)], "key-frame-clip", ("zz (no such clip)",)),
    ],
)
def test_key_frames_outside_their_clip_are_problems(
    frames: list[tuple[str, str, int]], rule: str, named: tuple[str, ...]
) -> None:
    assert rules(manifest(BASE, key_frames=frames)) == {rule: named}


def test_a_clip_without_patient_counts_as_its_own() -> None:
    made = manifest(clip("a", split="train"), clip("b", split="test"))
    assert made.patients == ["clip:a", "clip:b"]
    assert made.problems() == []


def test_every_problem_is_reported_and_the_sentence_counts_them() -> None:
    made = manifest(clip("a", EF="n/a", split="x", patient_id="p"), clip("a", fps=-1))
    assert list(rules(made)) == ["clip-id-duplicate", "split-unknown", "not-a-number", "fps"]
    with pytest.raises(ManifestError, match=r"a \(and 3 more problems; see embedstore manifest check\)"):
        made.require_valid()


def test_letters_in_parts_survive_a_file() -> None:
    made = manifest(clip("cafe\u0301", EF="e\u0301"), clip("b"), key_frames=[("e\u0301", "ed", 0)])
    read = parse_manifest(made.to_bytes(), source="memory")
    assert read.clip_ids == ["b", "cafe\u0301"]
    assert read.unreadable == made.unreadable
    assert read.problems() == made.problems()
    assert made.with_rows([False, True]).problems() == made.problems()[:1]
    with pytest.raises(ManifestError, match="NFC"):
        ManifestField(name="cafe\u0301", role="label")


def test_rows_that_are_left_out_take_their_problems_along() -> None:
    made = manifest(clip("a", EF="n/a"), clip("b", EF=55), clip("c", EF="?"), key_frames=[("b", "ed", 1)])
    assert made.problems() == [
        Problem("not-a-number", "column 'EF' needs a finite number, by clip", ("a (n/a)", "c (?)"))
    ]
    kept = made.with_rows([False, True, False])
    assert kept.clip_ids == ["b"]
    assert kept.problems() == []
    assert kept.key_frames_of == {"b": [("ed", 1)]}
    assert len(manifest().with_rows([])) == 0


def test_unknown_columns_and_fields_are_refused() -> None:
    with pytest.raises(ManifestError, match="'LVEF'"):
        manifest(clip("a", LVEF=55))
    with pytest.raises(UnknownNameError, match="did you mean 'EF'"):
        manifest(clip("a")).column("EFF")
    with pytest.raises(ManifestError, match="no valid Unicode"):
        manifest(clip("a", path="caf\udce9.avi"))
    for wrong in (
        {"name": "x", "role": "target"},
        {"name": "x", "role": "label", "kind": "float"},
        {"name": "", "role": "label"},
        {"name": "a\tb", "role": "label"},
        {"name": "key_frames", "role": "extra"},
        {"name": "x", "role": "label", "kind": "number", "plausible": (2, 1)},
        {"name": "x", "role": "label", "plausible": (1, 2)},
    ):
        with pytest.raises(ManifestError):
            ManifestField(**wrong)
    for wrong_field in (
        ManifestField(name="fps", role="sampling", kind="text"),
        ManifestField(name="fps", role="extra", kind="number"),
        ManifestField(name="split", role="label", kind="category"),
    ):
        with pytest.raises(ManifestError, match=wrong_field.name):
            manifest(clip("a"), fields=[wrong_field])
    relabelled = manifest(clip("a"), fields=[dataclasses.replace(STANDARD["heart_rate_bpm"], role="label")])
    assert relabelled.fields["heart_rate_bpm"].role == "label"


# -- files that are no manifests ------------------------------------------------------------------------------


def forge(made: Manifest, *, table: pa.Table | None = None, **header: Any) -> bytes:
    """Bytes of a manifest with another table or other header entries than it may have."""
    stored = made.table if table is None else table
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, stored.schema) as writer:
        writer.write_table(stored)
        writer.add_key_value_metadata({HEADER_KEY: canonical_json({**made.header(), **header})})
    return bytes(sink.getvalue())


SOUND = manifest(BASE, clip("b", EF=60.0), key_frames=[("a", "ed", 2)])


def with_column(name: str, array: pa.Array) -> pa.Table:
    return SOUND.table.set_column(SOUND.table.column_names.index(name), name, array)


def test_a_forged_copy_without_changes_reads() -> None:
    assert parse_manifest(forge(SOUND), source="memory").id == SOUND.id


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 2}, "version 2: it needs a newer embedstore"),
        ({"version": "1"}, "version"),
        ({"version": True}, "version"),
        ({"version": 0}, "version"),
        ({"fields": []}, "header"),
        ({"fields": "EF"}, "header"),
        ({"fields": [{"name": ["EF"], "role": "label"}]}, "header"),
        ({"fields": [{"name": "EF", "role": "boss"}]}, "header"),
        ({"fields": [*SOUND.header()["fields"], SOUND.header()["fields"][0]]}, "twice"),
        ({"dataset": {"name": "x"}}, "header"),
        ({"dataset": {**FACTS.to_dict(), "redistribution": "sure"}}, "header"),
        ({"patient_ids": 3}, "header"),
        ({"unreadable": {"nothing\ta": "n/a"}}, "header"),
        ({"unreadable": {"EF\ta": 3}}, "header"),
        ({"unreadable": ["EF"]}, "header"),
    ],
)
def test_broken_headers_are_refused(header: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_manifest(forge(SOUND, **header), source="memory")


def fields_with(name: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**entry, **changes} if entry["name"] == name else entry for entry in SOUND.header()["fields"]]


@pytest.mark.parametrize(
    "fields",
    [
        fields_with("EF", plausible=["low", "high"]),
        fields_with("EF", plausible=[1]),
        fields_with("fps", kind="text"),
        fields_with("fps", role="extra"),
        fields_with("EF", colour="red"),
        [entry for entry in SOUND.header()["fields"] if entry["name"] != "split"],
    ],
)
def test_headers_that_redefine_columns_are_refused(fields: list[dict[str, Any]]) -> None:
    with pytest.raises(FormatError):
        parse_manifest(forge(SOUND, fields=fields), source="memory")


@pytest.mark.parametrize(
    "table",
    [
        SOUND.table.drop_columns(["EF"]),
        SOUND.table.drop_columns(["clip_id"]),
        SOUND.table.drop_columns(["key_frames"]),
        SOUND.table.append_column("more", pa.array([1, 2])),
        SOUND.table.append_column("EF", pa.array([1.0, 2.0])),
        with_column("clip_id", pa.array([1, 2])),
        with_column("fps", pa.array(["30", "30"])),
        with_column("n_frames", pa.array([1.0, 2.0])),
        with_column("EF", pa.array([1, 2])),
        with_column("severe", pa.array([0, 1])),
        with_column("view", pa.array([b"A4C", b"A2C"])),
        with_column("view", pa.array(["A4C", "A2C"]).dictionary_encode()),
        with_column("key_frames", pa.array(["ed", "es"])),
        with_column("key_frames", pa.array([None, []], type=SOUND.table.schema.field("key_frames").type)),
        with_column("key_frames", pa.array([[None], []], type=SOUND.table.schema.field("key_frames").type)),
        SOUND.table.take([1, 0]),
    ],
)
def test_tables_that_do_not_fit_their_header_are_refused(table: pa.Table) -> None:
    with pytest.raises(FormatError):
        parse_manifest(forge(SOUND, table=table), source="memory")


def test_files_that_are_no_manifests_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for payload in (b"", b"PAR1", b"clip_id,EF\na,55\n", b"PAR1" + bytes(64) + b"PAR1", bytes(range(256)) * 9):
        path.write_bytes(payload)
        with pytest.raises(FormatError, match=r"x\.parquet is no manifest") as caught:
            Manifest.read(path)
        assert caught.value.exit_code == 4
    pq.write_table(SOUND.table, path)
    with pytest.raises(FormatError, match="make one with embedstore manifest make"):
        Manifest.read(path)
    with pytest.raises(StorageError, match="not there"):
        Manifest.read(tmp_path / "none.parquet")
    with pytest.raises(StorageError, match="folder"):
        Manifest.read(tmp_path)


def test_every_truncation_is_refused() -> None:
    payload = SOUND.to_bytes()
    for size in range(0, len(payload), 97):
        with pytest.raises(FormatError):
            parse_manifest(payload[:size], source="memory")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SOUND.to_bytes()) - 1), st.integers(1, 255))
def test_a_damaged_byte_is_refused_or_harmless(at: int, flip: int) -> None:
    payload = bytearray(SOUND.to_bytes())
    payload[at] ^= flip
    try:
        read = parse_manifest(bytes(payload), source="memory")
    except FormatError:
        return
    read.problems()
    assert len(read) == len(SOUND)


def test_an_absurd_number_of_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedstore.manifest.stored._MAX_ROWS", 1)
    with pytest.raises(FormatError, match="2 rows, more than the 1"):
        parse_manifest(SOUND.to_bytes(), source="memory")
