"""Builds, from files on disk to committed sets, with the stub encoders of a separate package."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import stub_encoder
from clip_files import write_avi

import embedstore.build.pipeline
import embedstore.build.plan
from embedstore.build.lock import build_lock
from embedstore.build.pipeline import PipelineOptions
from embedstore.build.plan import make_plan
from embedstore.build.recompute import recompute_set
from embedstore.build.run import BuildOutcome, BuildRequest, Progress, build_sets
from embedstore.embedding_set import SetWriter
from embedstore.encoder import LoadRequest, get_card
from embedstore.errors import (
    BusyError,
    CorruptionError,
    MediaError,
    NothingDecodedError,
    StorageError,
    UnknownNameError,
)
from embedstore.manifest import DatasetFacts, Manifest, ManifestField
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store
from embedstore.upkeep.complete import complete_builds

LABEL = ManifestField(name="lvef_pct", role="label", kind="number", unit="%")


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedstore.build.plan, "UNIT_CLIPS", 3)


def manifest_of(root: Path, *, label: float = 50.0, n_frames: bool = True, key_frame: int = 2) -> Manifest:
    """A manifest of the AVI files below a folder, made without the recipes."""
    rows, key_frames = [], []
    for path in sorted(root.glob("*.avi")):
        count = None
        if n_frames and path.stat().st_size > 1000:
            with av.open(str(path)) as container:
                count = sum(1 for _ in container.decode(video=0))
        rows.append(
            {
                "clip_id": path.stem,
                "patient_id": path.stem[:3],
                "path": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "n_frames": count,
                "fps": 30.0,
                "split": "train",
                "lvef_pct": label,
            }
        )
        key_frames.append((path.stem, "ed", key_frame))
    dataset = DatasetFacts(name="clips", title="Clips of a test")
    return Manifest.from_rows(rows, dataset=dataset, fields=[LABEL], key_frames=key_frames)


def build(store: Store, *encoders: str, **options: object) -> list[BuildOutcome]:
    request = BuildRequest(encoders=encoders or ("stub",), n_workers=0, **options)  # type: ignore[arg-type]
    return build_sets(store, request)


@pytest.fixture
def ready(tmp_path: Path, clip_folder: Callable[..., Path]) -> tuple[Store, Path]:
    """A store with a manifest of eight clips of four patients, and the clips' folder."""
    root = clip_folder()
    store = Store.create(tmp_path / "store")
    store.add_manifest(manifest_of(root), root=root)
    return store, root


def expected_rows(path: Path, frames: list[int]) -> np.ndarray:
    """The stub's vectors, computed here from the file with PyAV alone."""
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((64, 12)).astype(np.float32)
    rows = []
    for number in frames:
        grey = decoded[number].astype(np.float32).mean(axis=2)
        means = grey.reshape(8, 6, 8, 8).mean(axis=(1, 3))
        rows.append(means.reshape(-1) / 255.0 @ weights)
    return np.stack(rows)


def test_vectors_are_those_of_the_picked_frames(ready: tuple[Store, Path]) -> None:
    store, root = ready
    (outcome,) = build(store)
    assert (outcome.n_expected, outcome.n_ok, outcome.n_failed, outcome.n_frames) == (8, 8, 0, 32)
    opened = store.get(dataset="clips", encoder="stub")
    index = opened.index.to_pylist()
    assert [row["clip_id"] for row in index] == sorted(path.stem for path in root.glob("*.avi"))
    for row in index:
        path = root / f"{row['clip_id']}.avi"
        n_frames = row["n_frames"]
        assert row["content_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        picked = [0, round((n_frames - 1) / 3 + 1e-9), round(2 * (n_frames - 1) / 3 + 1e-9), n_frames - 1]
        span = slice(row["frame_row"], row["frame_row"] + row["n_frame_rows"])
        table = opened.frame_index.slice(span.start, 4).to_pylist()
        assert [entry["frame"] for entry in table] == picked
        assert [entry["time_s"] for entry in table] == pytest.approx([number / 30 for number in picked])
        rows = expected_rows(path, picked)
        np.testing.assert_allclose(opened.frames[span], rows, rtol=2e-3, atol=2e-3)
        pooled = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(opened.clips[row["row"]], pooled, rtol=2e-3, atol=2e-3)
    assert verify_store(store, quick=False).ok


def test_nothing_to_do_the_second_time(ready: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store, root = ready
    (first,) = build(store)
    shutil.rmtree(root)  # media are not needed any more

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded for nothing")

    monkeypatch.setattr("embedstore.build.run.load_encoder", refuse)
    before = store.log()
    (second,) = build(store)
    assert (second.set_id, second.n_reused, second.n_ok) == (first.set_id, 8, 8)
    assert store.log() == before and list(store.layout.builds.glob("*/")) == []


def test_a_label_change_encodes_nothing(ready: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store, root = ready
    (first,) = build(store)
    store.add_manifest(manifest_of(root, label=60.0))
    monkeypatch.setattr("embedstore.build.run.load_encoder", None)
    (second,) = build(store)
    assert second.set_id == first.set_id
    assert store.manifest("clips").column("lvef_pct")[0] == 60.0


def _count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[stub_encoder.StubEncoder]:
    loaded: list[stub_encoder.StubEncoder] = []

    def load(card: object, request: object) -> stub_encoder.StubEncoder:
        loaded.append(stub_encoder.load(request))  # type: ignore[arg-type]
        return loaded[-1]

    monkeypatch.setattr("embedstore.build.run.load_encoder", load)
    return loaded


def test_a_grown_manifest_encodes_only_new_clips(
    ready: tuple[Store, Path], clip_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root = ready
    build(store)
    before = store.get(dataset="clips", encoder="stub")
    rows = before.clips.raw[:]
    extra = clip_folder(6, name="more")
    for path in extra.glob("p0[45]*.avi"):
        shutil.copy(path, root / f"a-{path.name}")
    store.add_manifest(manifest_of(root), root=root)
    loaded = _count_forwards(monkeypatch)
    (outcome,) = build(store)
    assert (outcome.n_ok, outcome.n_reused) == (12, 8)
    assert sum(loaded[0].batches) == 5 * -(-4 * 4 // 5) and set(loaded[0].batches) == {5}
    after = store.get(dataset="clips", encoder="stub")
    np.testing.assert_array_equal(after.clips.raw[:8], rows)
    assert after.index.column("clip_id").to_pylist()[8:] == [
        f"a-p0{patient}-c{clip}" for patient in (4, 5) for clip in (0, 1)
    ]
    assert verify_store(store, quick=False).ok


def test_a_corrected_key_frame_encodes_that_clip_alone(
    ready: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root = ready
    (first,) = build(store, "stub@ed")
    manifest = manifest_of(root)
    corrected = [(c, r, 7 if c == "p01-c0" else f) for c, pairs in manifest.key_frames_of.items() for r, f in pairs]
    rows = [{k: v for k, v in row.items() if k != "key_frames"} for row in manifest.table.to_pylist()]
    changed = Manifest.from_rows(rows, dataset=manifest.dataset, fields=[LABEL], key_frames=corrected)
    assert changed.media_digest != manifest.media_digest
    store.add_manifest(changed)
    loaded = _count_forwards(monkeypatch)
    (second,) = build(store, "stub@ed")
    assert (second.n_ok, second.n_reused) == (8, 7) and loaded[0].batches == [5]
    opened = store.get(dataset="clips", encoder="stub@ed")
    frames = {row["clip_id"]: row["frame"] for row in opened.frame_index.to_pylist()}
    assert frames["p01-c0"] == 7 and {frame for clip, frame in frames.items() if clip != "p01-c0"} == {2}
    assert second.set_id != first.set_id


def test_a_duplicate_is_encoded_once_and_written_twice(
    tmp_path: Path, clip_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = clip_folder(1, clips_each=1)
    shutil.copy(root / "p00-c0.avi", root / "p09-twin.avi")
    store = Store.create(tmp_path / "store")
    store.add_manifest(manifest_of(root), root=root)
    loaded = _count_forwards(monkeypatch)
    (outcome,) = build(store)
    assert (outcome.n_ok, outcome.n_reused) == (2, 1) and loaded[0].batches == [5]
    opened = store.get(dataset="clips", encoder="stub")
    assert opened.index.column("clip_id").to_pylist() == ["p00-c0", "p09-twin"]
    np.testing.assert_array_equal(opened.clips.raw[0], opened.clips.raw[1])
    assert opened.frame_index.column("clip_id").to_pylist() == ["p00-c0"] * 4 + ["p09-twin"] * 4


def test_failures_are_rows_with_reasons_and_pass_later(ready: tuple[Store, Path]) -> None:
    store, root = ready
    (root / "broken.avi").write_bytes(b"RIFF\x00\x00\x00\x00AVI no more")
    (root / "empty.avi").write_bytes(b"")
    store.add_manifest(manifest_of(root), root=root)
    kept = (root / "p00-c0.avi").read_bytes()
    (root / "p00-c0.avi").unlink()
    (root / "p00-c1.avi").write_bytes(kept)  # other content than its digest says
    (root / "p01-c0.avi").unlink()
    os.mkfifo(root / "p01-c0.avi")  # a pipe that nobody writes to must not be waited for
    (outcome,) = build(store)
    assert (outcome.n_ok, outcome.n_failed) == (5, 5)
    reasons = {
        row["clip_id"]: row["reason"] for row in store.get(dataset="clips", encoder="stub").failures.to_pylist()
    }
    assert reasons["p00-c0"] == "missing" and reasons["p00-c1"] == "source-changed"
    assert reasons["empty"] == "empty-file" and reasons["p01-c0"] == "unreadable"
    assert set(reasons) == {"broken", "empty", "p00-c0", "p00-c1", "p01-c0"}
    (root / "p00-c0.avi").write_bytes(kept)
    (outcome,) = build(store)
    assert (outcome.n_ok, outcome.n_failed) == (6, 4)
    assert verify_store(store, quick=False).ok


def test_workers_that_die_hang_or_take_all_memory_cost_their_clip(
    ready: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root = ready
    for grey in (40, 80, 120):
        write_avi(root / f"grey-{grey}.avi", np.full((12, 48, 64, 3), grey, np.uint8))
    store.add_manifest(manifest_of(root), root=root)

    def load(card: object, request: LoadRequest) -> stub_encoder.StubEncoder:
        return stub_encoder.StubEncoder(request.spec, preprocess=stub_encoder.shrink_or_break)

    monkeypatch.setattr("embedstore.build.run.load_encoder", load)
    monkeypatch.setattr("embedstore.build.run.PipelineOptions", partial(PipelineOptions, decode_timeout_s=5.0))
    (outcome,) = build_sets(store, BuildRequest(encoders=("stub",), n_workers=1))
    assert (outcome.n_ok, outcome.n_failed) == (8, 3)
    failed = {clip_id: reason for clip_id, reason, _ in outcome.failed_clips}
    assert failed == {"grey-40": "decoder-died", "grey-80": "timeout", "grey-120": "out-of-memory"}
    assert verify_store(store, quick=False).ok
    # Such reasons may pass: the same command, on a machine that is well, completes the set.
    monkeypatch.undo()
    (outcome,) = build(store)
    assert (outcome.n_ok, outcome.n_failed, outcome.n_reused) == (11, 0, 8)


def test_a_media_mount_that_vanishes_comes_back(ready: tuple[Store, Path]) -> None:
    """Half way through, every file is gone: the clips are failures that the same command makes good."""
    store, root = ready
    away, seen = root.with_name("away"), 0

    def unmount(clip_id: str, reason: str | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            root.rename(away)

    request = BuildRequest(encoders=("stub",), n_workers=0)
    (outcome,) = build_sets(store, request, progress=Progress(clip=unmount))
    assert (outcome.n_ok, outcome.n_failed) == (3, 5) and outcome.reasons == {"missing": 5}
    away.rename(root)
    (outcome,) = build(store)
    assert (outcome.n_ok, outcome.n_failed) == (8, 0)
    assert verify_store(store, quick=False).ok


def test_a_store_that_vanishes_while_it_is_written(ready: tuple[Store, Path], tmp_path: Path) -> None:
    store, root = ready
    whole = Store.create(tmp_path / "whole")
    whole.add_manifest(manifest_of(root), root=root)
    build(whole)
    away, seen = tmp_path / "away", 0

    def unmount(clip_id: str, reason: str | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            store.layout.root.rename(away)

    request = BuildRequest(encoders=("stub",), n_workers=0)
    with pytest.raises((StorageError, UnknownNameError), match=str(store.layout.root)):
        build_sets(store, request, progress=Progress(clip=unmount))
    assert not store.layout.root.exists()
    away.rename(store.layout.root)
    build(store)
    assert store.snapshot().id == whole.snapshot().id


def test_a_file_that_changes_between_hashing_and_decoding(
    ready: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest has no digest, so the plan makes one; then the file is replaced."""
    store, root = ready
    rows = [{"clip_id": path.stem, "path": path.name} for path in sorted(root.glob("*.avi"))]
    store.add_manifest(Manifest.from_rows(rows, dataset=DatasetFacts(name="clips", title="Clips")))
    path = root / "p01-c0.avi"
    kept, planned = path.read_bytes(), make_plan

    def replace_after(*arguments: object, **options: object) -> object:
        plan = planned(*arguments, **options)  # type: ignore[arg-type]
        path.write_bytes((root / "p02-c0.avi").read_bytes())
        return plan

    with monkeypatch.context() as patched:
        patched.setattr(
            "embedstore.build.run.make_plan", lambda *a, **k: path.write_bytes(kept) and replace_after(*a, **k)
        )
        (outcome,) = build(store)
    assert (outcome.n_ok, outcome.reasons) == (7, {"source-changed": 1})
    assert "p01-c0" not in store.get(dataset="clips", encoder="stub").index.column("clip_id").to_pylist()
    path.write_bytes(kept)
    (outcome,) = build(store)
    assert (outcome.n_ok, outcome.n_failed) == (8, 0)


def test_on_error_stop(ready: tuple[Store, Path]) -> None:
    store, root = ready
    (root / "p02-c0.avi").unlink()
    with pytest.raises(MediaError, match="p02-c0"):
        build(store, stop_on_error=True)
    assert store.entries() == []


def test_nothing_decodable(ready: tuple[Store, Path], tmp_path: Path) -> None:
    store, _ = ready
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(NothingDecodedError, match="missing"):
        build(store, roots={"": tmp_path / "elsewhere"})
    assert store.entries() == [] and list(store.layout.builds.glob("*/")) == []


class _Killed(BaseException):
    """Stands for SIGKILL inside one process."""


@pytest.mark.parametrize("after_clips", [1, 3, 4, 7])
def test_a_killed_build_resumes_to_the_same_bytes(
    tmp_path: Path, ready: tuple[Store, Path], after_clips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root = ready
    whole = Store.create(tmp_path / "whole")
    whole.add_manifest(manifest_of(root), root=root)
    (expected,) = build(whole)
    seen = 0

    def kill(clip_id: str, reason: str | None) -> None:
        nonlocal seen
        seen += 1
        if seen == after_clips:
            raise _Killed

    request = BuildRequest(encoders=("stub",), n_workers=0)
    with pytest.raises(_Killed):
        build_sets(store, request, progress=Progress(clip=kill))
    assert store.entries() == []
    loaded = _count_forwards(monkeypatch)
    # Another batch size is asked for: a build that has finished units goes on with its own.
    (resumed,) = build(store, batch_size=7 if after_clips > 3 else None)
    assert resumed.set_id == expected.set_id
    assert set(loaded[0].batches) == {5}
    finished_units = (after_clips - 1) // 3
    encoded_again = 8 - 3 * finished_units
    assert sum(loaded[0].batches) <= 5 * (3 - finished_units) + 4 * encoded_again
    assert store.snapshot().id == whole.snapshot().id


def test_shards_in_any_order_give_the_same_snapshot(tmp_path: Path, ready: tuple[Store, Path]) -> None:
    store, root = ready
    whole = Store.create(tmp_path / "whole")
    whole.add_manifest(manifest_of(root), root=root)
    build(whole)
    (third,) = build(store, shard=(2, 3))
    assert third.set_id is None and third.units_open == 2
    (first,) = build(store, shard=(0, 3))
    assert first.set_id is None and first.units_open == 1
    (second,) = build(store, shard=(1, 3))
    assert second.set_id is not None and second.units_open == 0
    assert store.snapshot().id == whole.snapshot().id


def test_who_commits_tells_who_made_it(
    tmp_path: Path, ready: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provenance is the same whether the last worker commits or somebody else, but for the time that it took."""
    store, root = ready
    whole = Store.create(tmp_path / "whole")
    whole.add_manifest(manifest_of(root), root=root)
    build(whole)

    def cut_off(*_: object, **__: object) -> None:
        raise StorageError("the mount went away")

    real = embedstore.build.pipeline.worker_facts
    with monkeypatch.context() as patched:
        patched.setattr("embedstore.build.run.commit_build", cut_off)
        build(store, shard=(0, 2))
        patched.setattr(
            "embedstore.build.pipeline.worker_facts", lambda encoder: {**real(encoder), "device": "cuda:0"}
        )
        with pytest.raises(StorageError, match="mount"):
            build(store, shard=(1, 2))
    (done,) = complete_builds(store)
    assert done.state == "committed" and store.snapshot().id == whole.snapshot().id
    alone, shared = (dict(each.get(dataset="clips", encoder="stub").provenance) for each in (whole, store))
    assert [worker["device"] for worker in shared.pop("workers")] == ["cpu", "cuda:0"]
    assert alone.pop("wall_seconds") > 0 and alone.keys() == shared.keys()
    assert alone["versions"]["numpy"] == np.__version__ and alone["licence"] and alone["clips_encoded"] == 8
    assert {key: shared[key] for key in ("versions", "host_class", "licence", "batch_size", "clips_encoded")} == {
        key: alone[key] for key in ("versions", "host_class", "licence", "batch_size", "clips_encoded")
    }


def test_several_encoders_share_one_decode(
    tmp_path: Path, ready: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root = ready
    apart = Store.create(tmp_path / "apart")
    apart.add_manifest(manifest_of(root), root=root)
    for encoder in ("stub", "stub-clip", "stub@every"):
        build(apart, encoder)
    decoded: list[Path] = []
    import embedstore.build.pipeline as pipeline

    original = pipeline.decode_clip

    def counting(job: object) -> object:
        decoded.append(job.path)  # type: ignore[attr-defined]
        return original(job)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "decode_clip", counting)
    build(store, "stub", "stub-clip", "stub@every")
    assert len(decoded) == 8
    assert store.snapshot().id == apart.snapshot().id


def test_windows_and_steps_of_a_clip_encoder(ready: tuple[Store, Path]) -> None:
    store, root = ready
    (outcome,) = build(store, "stub-clip")
    opened = store.get(dataset="clips", encoder="stub-clip")
    assert opened.windows is not None and opened.windows.shape == (24, 12)
    row = opened.index.to_pylist()[0]
    windows = opened.window_index.slice(row["window_row"], 3).to_pylist()
    starts = [window["frame_start"] for window in windows]
    assert starts == [0, 4, 8] and [window["frame_stop"] for window in windows] == [4, 8, 12]
    steps = opened.frame_index.slice(row["frame_row"], 6).to_pylist()
    assert [(step["frame_start"], step["frame_stop"]) for step in steps] == [
        (start, start + 2) for start in (0, 2, 4, 6, 8, 10)
    ]
    assert {step["frame_kind"] for step in steps} == {"tubelet"}
    rows = expected_rows(root / f"{row['clip_id']}.avi", list(range(12)))
    means = np.stack([rows[start : start + 4].mean(axis=0) for start in starts])
    np.testing.assert_allclose(opened.windows[:3], means, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(opened.clips[0], means.mean(axis=0), rtol=2e-3, atol=2e-3)
    (again,) = build(store, "stub-clip", with_frames=False)
    assert again.set_id == outcome.set_id


def test_without_frames(ready: tuple[Store, Path]) -> None:
    store, _ = ready
    (outcome,) = build(store, with_frames=False)
    assert outcome.n_frames == 0 and outcome.frame_dim is None
    (outcome,) = build(store)
    assert outcome.n_frames == 32
    assert verify_store(store, quick=False).ok


def test_where_and_limit_encode_a_part_then_the_rest(ready: tuple[Store, Path]) -> None:
    store, _ = ready
    (part,) = build(store, limit=1)
    assert (part.n_expected, part.n_ok) == (2, 2) and part.rest_seconds is not None and part.rest_seconds > 0
    (more,) = build(store, where="patient_id == p02")
    assert (more.n_expected, more.n_ok) == (2, 2)
    assert len(store.get(dataset="clips", encoder="stub")) == 4
    (whole,) = build(store)
    assert (whole.n_ok, whole.n_reused) == (8, 4)
    with pytest.raises(UnknownNameError, match="fulfils"):
        build(store, where="patient_id == nobody")


def test_dry_run_does_nothing(ready: tuple[Store, Path]) -> None:
    store, _ = ready
    before = sorted(store.layout.root.rglob("*"))
    (outcome,) = build(store, dry_run=True)
    assert outcome.set_id is None and outcome.note == "would: 8 encode"
    assert sorted(store.layout.root.rglob("*")) == before


def test_one_live_build_of_a_set(ready: tuple[Store, Path]) -> None:
    store, _ = ready
    plan = make_plan(store, store.manifest("clips"), get_card("stub").spec())
    with build_lock(store.layout.builds, plan.key, shared=False), pytest.raises(BusyError, match="--shard"):
        build(store)
    with build_lock(store.layout.builds, plan.key, shared=True):
        build(store, shard=(0, 1))
    assert len(store.entries()) == 1


def test_damage_to_a_finished_unit_is_found_and_mended(ready: tuple[Store, Path]) -> None:
    store, _ = ready
    build(store, shard=(0, 3))
    (binary,) = store.layout.builds.glob("*/units/*/clips.bin")
    payload = bytearray(binary.read_bytes())
    payload[5] ^= 1
    binary.write_bytes(bytes(payload))
    build(store, shard=(1, 3))
    with pytest.raises(CorruptionError, match="damaged"):
        build(store, shard=(2, 3))
    (outcome,) = build(store)
    assert outcome.n_ok == 8 and verify_store(store, quick=False).ok


def test_another_spec_is_another_set(ready: tuple[Store, Path]) -> None:
    store, _ = ready
    build(store)
    (wide,) = build(store, dtype="float32")
    assert len(store.entries()) == 2
    assert store.open_set(wide.set_id or "").clips.raw.dtype == np.float32
    spec = get_card("stub").spec()
    assert replace(spec, dtype="float32").fingerprint in {entry.fingerprint for entry in store.entries()}


@pytest.mark.parametrize(
    ("encoders", "options", "message"),
    [
        (("stubb",), {}, "did you mean 'stub'"),
        (("stub@evry",), {}, "did you mean 'every'"),
        (("model.pt",), {}, "looks like a file"),
        (("stub",), {"sampling": "often:3"}, "uniform:N"),
        (("stub",), {"manifests": ("clip",)}, "did you mean 'clips'"),
        (("stub",), {"where": "vieww == A4C"}, "did you mean 'view'"),
        (("stub",), {"weights": {"stub": Path("w.pt")}}, "has no weights"),
    ],
)
def test_unknown_names(
    ready: tuple[Store, Path], encoders: tuple[str, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UnknownNameError, match=message):
        build(ready[0], *encoders, **options)


def test_recompute_finds_vectors_of_other_clips(ready: tuple[Store, Path]) -> None:
    """Shuffled rows with right digests: only embedding again shows it."""
    store, root = ready
    build(store)
    opened = store.get(dataset="clips", encoder="stub")
    right = recompute_set(store, opened, n_clips=32, n_workers=0)
    assert right.n_clips == 8 and right.differing == () and right.min_cosine == pytest.approx(1, abs=1e-5)
    assert right.max_delta is not None and right.max_delta < 1e-3
    with SetWriter(store.layout.sets, dataset="clips", spec=opened.spec) as writer:
        for kind in ("clips", "frames"):
            array = opened.array(kind)
            assert array is not None
            rows = array.raw[:]
            writer.array(kind, dim=12).append(rows[[1, 0, *range(2, len(rows))]] if kind == "clips" else rows)
        tables = {name: opened.table(name) for name in ("index.parquet", "frame_index.parquet", "failures.parquet")}
        poisoned = store.open_set(writer.finish(tables, provenance=dict(opened.provenance)))
    wrong = recompute_set(store, poisoned, n_clips=32, n_workers=0)
    assert wrong.differing == (0, 1)
    shutil.rmtree(root)
    assert "media" in recompute_set(store, opened, n_clips=4, n_workers=0).skipped


def test_a_build_that_was_overtaken_replaces_nothing(ready: tuple[Store, Path]) -> None:
    """A build of some clips and one of all begin from the same head; whoever is late must not drop the other's."""
    store, root = ready
    request = BuildRequest(encoders=("stub",), n_workers=0, where="patient_id == p01")
    raced = False

    def race(clip_id: str, reason: str | None) -> None:
        nonlocal raced
        if not raced:
            raced = True
            build(store)

    with pytest.raises(BusyError, match="committed meanwhile"):
        build_sets(store, request, progress=Progress(clip=race))
    assert len(store.get(dataset="clips", encoder="stub")) == 8
    (again,) = build_sets(store, request)
    assert (again.n_ok, again.n_reused) == (2, 2)
