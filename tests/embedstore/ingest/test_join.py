"""Joining by id, held against a plain dictionary; identity; what is listed, refused and replaced."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.build.run import BuildOutcome
from embedstore.embedding_set import FAILURES_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.errors import (
    AmbiguousNameError,
    ContentError,
    ManifestError,
    StorageError,
    UnknownNameError,
    VectorError,
)
from embedstore.ingest import IngestProgress, IngestRequest, IngestSource, SourceRows, ingest_vectors
from embedstore.ingest.join import join_source
from embedstore.ingest.keys import RowKeys
from embedstore.locks import is_locked
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import rows_to_table

IDS = st.text(alphabet="abé\u0301./", min_size=1, max_size=3)


def rows_of(ids: list[str], *, numbers: list[int] | None = None) -> SourceRows:
    return SourceRows(
        n_rows=len(ids),
        dim=1,
        dtype=np.dtype(np.float32),
        ids=lambda: (ids[at : at + 2] for at in range(0, len(ids), 2)),
        blocks=lambda: iter([np.arange(len(ids), dtype=np.float32)[:, None]]),
        frame_numbers=None if numbers is None else lambda: np.array(numbers),
    )


def composed(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(IDS, min_size=1, unique_by=composed), clips=st.lists(IDS, min_size=1, unique_by=composed))
def test_join_is_a_look_up_by_id(rows: list[str], clips: list[str]) -> None:
    manifest = Manifest.from_rows([{"clip_id": c, "split": "train"} for c in clips], dataset=facts())
    row_of = {composed(text): row for row, text in enumerate(rows)}
    expected = {c: row_of[composed(c)] for c in manifest.clip_ids if composed(c) in row_of}
    source = IngestSource(format="test", clips=rows_of(rows))
    if not expected:
        with pytest.raises(ContentError, match="no id is a clip of manifest"):
            join_source(source, manifest)
        return
    joined = join_source(source, manifest)
    assert joined.clips is not None
    ids = [manifest.clip_ids[at] for at in joined.positions]
    assert dict(zip(ids, joined.clips.rows.tolist(), strict=True)) == expected
    assert ids == [c for c in manifest.clip_ids if c in expected]
    assert joined.clips_without_row == tuple(c for c in manifest.clip_ids if c not in expected)
    assert set(joined.rows_without_clip) == set(row_of) - {composed(c) for c in clips}


@settings(max_examples=200, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.sampled_from("abcdx"), st.integers(0, 9)), min_size=1, unique=True),
    clips=st.lists(st.sampled_from("abcde"), min_size=1, unique=True),
)
def test_frames_stand_by_clip_and_frame(pairs: list[tuple[str, int]], clips: list[str]) -> None:
    manifest = Manifest.from_rows([{"clip_id": c, "split": "train"} for c in clips], dataset=facts())
    expected = [(c, n) for c in sorted(clips) for n in sorted(n for owner, n in pairs if owner == c)]
    source = IngestSource(format="test", frames=rows_of([p[0] for p in pairs], numbers=[p[1] for p in pairs]))
    if not expected:
        with pytest.raises(ContentError, match="no id"):
            join_source(source, manifest)
        return
    frames = join_source(source, manifest).frames
    assert frames is not None and [pairs[row] for row in frames.rows] == expected
    assert frames.counts.tolist() == list(Counter(clip for clip, _ in expected).values())


def facts() -> DatasetFacts:
    return DatasetFacts(name="mine", title="Mine")


@pytest.mark.parametrize(
    ("ids", "numbers", "message"),
    [
        (["a", "b", "a", "c", "c"], None, "more than one vector: a, c; keep"),
        (["\u00e9", "e\u0301"], None, "more than one vector: \u00e9"),
        (["a", ""], None, "row 1 has an empty id"),
        (["a", "a", "a"], [1, 2, 1], "more than one vector: a frame 1"),
        (["a", "b"], [0, -3], "clip b has the frame number -3"),
        (["a", "b"], [0], "1 frame numbers for 2 vectors"),
        ([f"c{at // 2:02d}" for at in range(24)], None, r"c08, c09, ... \(12 in all\)"),
    ],
)
def test_doubled_ids_are_named(ids: list[str], numbers: list[int] | None, message: str) -> None:
    rows = rows_of(ids, numbers=numbers)
    with pytest.raises(ContentError, match=message):
        RowKeys.read(rows.ids(), n_rows=rows.n_rows, frame_numbers=rows.frame_numbers)


def test_what_does_not_match_is_listed(lab: Any) -> None:
    source = lab.write("npz", ids=["zz", *lab.ids[:4], "=cmd()", "c05"])
    outcome = lab.ingest(source)
    assert outcome.rows_without_clip == ("=cmd()", "zz") and outcome.clips_without_row == ("c04", "c06")
    opened = lab.opened(outcome)
    assert opened.index.column("clip_id").to_pylist() == ["c00", "c01", "c02", "c03", "c05"]
    failures = opened.failures.to_pylist()
    assert [(row["clip_id"], row["reason"]) for row in failures] == [("c04", "missing"), ("c06", "missing")]
    assert len({row["vector_key"] for row in failures}) == 2
    np.testing.assert_array_equal(opened.clips.raw[:], lab.clips[[1, 2, 3, 4, 6]].astype(np.float16))
    document = outcome.to_dict()
    assert document["sets"][0]["failure_reasons"] == {"missing": 2}
    assert (document["n_rows_without_clip"], document["n_clips_without_row"]) == (2, 2)


def test_the_json_has_the_keys_of_a_build(lab: Any) -> None:
    build = BuildOutcome(
        dataset="d",
        encoder="e",
        set_id=None,
        n_expected=0,
        n_ok=0,
        n_failed=0,
        n_reused=0,
        n_frames=0,
        dim=1,
        frame_dim=None,
        seconds=0.0,
    )
    ours = set(lab.ingest(lab.write("npz")).to_dict()["sets"][0])
    assert ours <= set(build.to_dict()) and set(build.to_dict()) - ours <= {"units_open", "rest_seconds"}


def test_nothing_that_matches_shows_both_sides(lab: Any) -> None:
    source = lab.write("npz", ids=[f"{clip_id}.avi" for clip_id in lab.ids])
    with pytest.raises(ContentError, match=r"the file has c00\.avi, .*; the manifest has c00, ") as caught:
        lab.ingest(source)
    assert caught.value.exit_code == 4 and caught.value.__notes__ == [f"in {source['file']}"]
    assert lab.is_untouched()


def test_a_frame_beyond_its_clip_is_refused(lab: Any) -> None:
    lab.write_manifest(lab.ids, n_frames=[5] * 7)
    np.savez(lab.folder / "f.npz", frames=lab.clips[:2], frame_ids=["c00", "c01"], frame_numbers=[4, 5])
    with pytest.raises(
        ContentError, match="beyond the end of their clip in the manifest: c01 frame 5; frames count from 0"
    ):
        lab.ingest(lab.folder / "f.npz")
    assert lab.is_untouched()


@settings(max_examples=5, deadline=None)
@given(row=st.integers(0, 6), place=st.integers(0, 4), step=st.sampled_from([0.5, -0.25]))
def test_other_vectors_are_another_identity(make_lab: Callable[..., Any], row: int, place: int, step: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab = make_lab(Path(folder))
        one = lab.opened(lab.ingest(lab.write("npz"), encoder="net@one"))
        changed = lab.clips.copy()
        changed[row, place] += step
        other = lab.opened(lab.ingest(lab.write("npz", clips=changed), encoder="net@two"))
        swapped = lab.opened(lab.ingest(lab.write("npz", ids=lab.ids[::-1]), encoder="net@three"))
        digests = {opened.spec.preprocessing["ingested_sha256"] for opened in (one, other, swapped)}
        assert len(digests) == 3


def test_one_name_never_means_two_sets_of_vectors(lab: Any) -> None:
    first = lab.ingest(lab.write("npz"))
    changed = lab.write("npz", clips=lab.clips + 1)
    with pytest.raises(AmbiguousNameError, match="ingested from other vectors.*--replace"):
        lab.ingest(changed)
    assert [entry.set_id for entry in lab.store.entries()] == [first.set_id]
    second = lab.ingest(changed, replaces=True)
    assert [entry.set_id for entry in lab.store.entries()] == [second.set_id]
    history = [lab.store.snapshot(entry.snapshot_id) for entry in lab.store.log()]
    assert any(entry.set_id == first.set_id for snapshot in history for entry in snapshot.sets)
    third = lab.ingest(changed, encoder="lab-net@v2")
    assert {entry.set_id for entry in lab.store.entries()} == {second.set_id, third.set_id}


def test_a_built_set_is_never_replaced(lab: Any) -> None:
    spec = EncoderSpec(name="lab-net", variant="ingested", clip_dim=5)
    with SetWriter(lab.store.layout.sets, dataset="mine", spec=spec) as writer:
        writer.array("clips", dim=5).append(lab.clips[:1].astype(np.float16))
        tables = {
            "index.parquet": rows_to_table([{"row": 0, "clip_id": "c00"}], INDEX_SCHEMA),
            "failures.parquet": rows_to_table([], FAILURES_SCHEMA),
        }
        built = lab.store.entry_of(lab.store.open_set(writer.finish(tables, provenance={})))
    lab.store.commit(lambda head: head.with_set(built), reason="test")
    with pytest.raises(AmbiguousNameError, match="built .*; give another variant, e.g. --encoder lab-net@NAME$"):
        lab.ingest(lab.write("npz"), replaces=True)
    assert lab.store.entries() == [built]


def test_the_same_again_changes_nothing(lab: Any) -> None:
    source = lab.write("npz")
    first = lab.ingest(source)
    before = lab.store.log()
    assert lab.ingest(source).set_id == first.set_id and lab.store.log() == before
    assert [path.name for path in lab.store.layout.sets.iterdir()] == [first.set_id]


def test_a_manifest_that_grows_keeps_the_identity_of_the_vectors(lab: Any) -> None:
    source = lab.write("npz")
    lab.write_manifest(lab.ids[:4])
    small = lab.opened(lab.ingest(source))
    lab.write_manifest(lab.ids)
    whole = lab.opened(lab.ingest(source))
    assert whole.fingerprint == small.fingerprint and (len(small), len(whole)) == (4, 7)
    assert whole.index.column("vector_key").to_pylist()[:4] == small.index.column("vector_key").to_pylist()
    assert [entry.set_id for entry in lab.store.entries()] == [whole.set_id]


def test_a_manifest_by_name(lab: Any) -> None:
    lab.store.add_manifest(Manifest.read(lab.manifest))
    n_commits = len(lab.store.log())
    assert lab.ingest(lab.write("npz"), manifest="mine").n_ok == 7
    assert len(lab.store.log()) == n_commits + 1
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        lab.ingest(lab.write("npz"), manifest="mime")


def test_a_manifest_that_breaks_a_rule_is_not_used(lab: Any) -> None:
    lab.write_manifest(["c00", "c00"])
    with pytest.raises(ManifestError, match="clip ids that stand more than once"):
        lab.ingest(lab.write("npz"))
    assert lab.is_untouched()


@pytest.mark.parametrize("form", ["npz", "parquet-list"])
@pytest.mark.parametrize(
    ("value", "source_dtype", "dtype", "message"),
    [
        (np.nan, "f4", "float16", "not finite: c02, c04; mend"),
        (-np.inf, "f8", "float32", "not finite: c02, c04"),
        (np.nan, "f2", "float32", "not finite: c02, c04"),
        (-np.inf, "f2", "float16", "not finite: c02, c04"),
        (70_000.0, "f4", "float16", "beyond 65504, the most of float16: c02, c04; give --dtype float32"),
        (-1e39, "f8", "float32", r"beyond 3\.40282e\+38, the most of float32: c02, c04\n"),
    ],
)
def test_what_cannot_be_stored_is_named(
    lab: Any, form: str, value: float, source_dtype: str, dtype: str, message: str
) -> None:
    clips = lab.clips.astype(source_dtype)
    clips[[2, 4], 3] = value
    with pytest.raises(VectorError, match=message):
        lab.ingest(lab.write(form, clips=clips), dtype=dtype)
    assert lab.is_untouched()


def test_large_values_that_fit_are_kept(lab: Any) -> None:
    clips = lab.clips.copy()
    clips[0, 0], clips[1, 1] = 65_504.0, -65_504.0
    opened = lab.opened(lab.ingest(lab.write("npz", clips=clips)))
    assert opened.clips[0][0] == 65_504.0 and opened.clips[1][1] == -65_504.0


def test_vectors_that_would_vanish_are_refused_and_zeros_noted(lab: Any) -> None:
    clips = lab.clips.copy()
    clips[3] = -1e-9
    with pytest.raises(
        VectorError, match="so small that they would become zero in float16: c03; give --dtype float32"
    ):
        lab.ingest(lab.write("npz", clips=clips))
    clips[4] = 0
    outcome = lab.ingest(lab.write("npz", clips=clips), dtype="float32")
    assert outcome.notes == ("vectors that are all zero: c04",)


def test_rows_of_other_clips_need_not_be_storable(lab: Any) -> None:
    clips = lab.clips.copy()
    clips[0] = np.nan
    outcome = lab.ingest(lab.write("npz", ids=["elsewhere", *lab.ids[1:]], clips=clips))
    assert outcome.n_ok == 6 and outcome.rows_without_clip == ("elsewhere",)


def test_a_file_that_changes_meanwhile_is_refused(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedstore.ingest.content import Content

    source = lab.write("npz")
    write = Content.write

    def rewrite(self: Content, *arguments: Any, **options: Any) -> None:
        write(self, *arguments, **options)
        lab.write("npz", clips=lab.clips + 1)

    monkeypatch.setattr(Content, "write", rewrite)
    with pytest.raises(ContentError, match="changed while it was read"):
        lab.ingest(source)
    assert lab.is_untouched()


@pytest.mark.parametrize("form", ["npz", "npz-packed", "parquet"])
def test_what_is_done_is_told(lab: Any, form: str) -> None:
    told: list[tuple[str, int, int]] = []

    def begin(label: str, total: int) -> None:
        told.append((label, total, 0))

    def rows(n_rows: int) -> None:
        label, total, done = told.pop()
        told.append((label, total, done + n_rows))

    source = lab.write(form, ids=[*lab.ids[:6], "elsewhere"])
    request = IngestRequest(manifest=str(lab.manifest), encoder="lab-net", **source)
    ingest_vectors(lab.store, request, progress=IngestProgress(begin=begin, rows=rows))
    assert told == [(f"checking {source['file'].name}", 7, 7), ("writing lab-net@ingested", 6, 6)]


def test_gc_is_kept_away_from_the_first_file_to_the_commit(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedstore.ingest.content import Content

    lock, held = lab.store.layout.publish_lock, []

    def watch(real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            held.append(is_locked(lock))
            return real(*arguments, **options)

        return watched

    monkeypatch.setattr(Content, "write", watch(Content.write))
    monkeypatch.setattr(SetWriter, "finish", watch(SetWriter.finish))
    monkeypatch.setattr(Store, "commit", watch(Store.commit))
    monkeypatch.setattr(Store, "publishing", _once(Store.publishing))
    lab.ingest(lab.write("npz-packed"))
    assert held == [True] * 4 and not is_locked(lock)


def _once(real: Callable[[Store], AbstractContextManager[None]]) -> Callable[[Store], AbstractContextManager[None]]:
    """Let the first call alone hold the lock, so that a later one cannot stand in for it."""
    calls = count()
    return lambda store: real(store) if next(calls) == 0 else nullcontext()


def test_a_full_disk_leaves_no_trace_and_the_next_run_completes(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    source, expected = lab.write("npz-packed"), None
    assert lab.is_untouched()  # the store is made before the disk is full
    for failing in range(1, 200):
        count = 0

        def fault(operation: str, path: Path, failing: int = failing) -> None:
            nonlocal count
            count += operation in ("write", "fsync", "link", "rename")
            if count == failing:
                raise OSError(errno.ENOSPC, "full", str(path))

        with monkeypatch.context() as patched:
            patched.setattr("embedstore.disk.fault_hook", fault)
            try:
                expected = lab.ingest(source).set_id
            except StorageError as error:
                assert "disk is full" in str(error)
                assert not [path for path in lab.store.layout.sets.iterdir() if path.name.startswith(".")]
                # The last fsync comes after the link that publishes the set: then it is there, and whole.
                assert all(len(lab.store.open_set(entry.set_id)) == 7 for entry in lab.store.entries())
                continue
        break
    assert expected is not None and failing > 10
    assert lab.store.get(dataset="mine", encoder="lab-net").set_id == expected
