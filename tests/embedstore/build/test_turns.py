"""Several encoders on one decode: all models loaded while they fit, else in turns at blocks of bounded size."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_encoder
from clip_files import write_clip_folder

import embedstore.build.pipeline as pipeline
import embedstore.build.plan
from embedstore.build.encode import UnitEncoder
from embedstore.build.resident import Model, ResidentModels
from embedstore.build.run import BuildOutcome, BuildRequest, Progress, build_sets
from embedstore.encoder import Encoded, LoadRequest
from embedstore.errors import EnvironmentFailure, MediaError, TooLittleMemoryError
from embedstore.manifest import Manifest, RecipeRequest, get_recipe
from embedstore.store import Store

THREE = ("stub", "stub-clip", "stub@every")


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedstore.build.plan, "UNIT_CLIPS", 3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Eight clips of four patients, and their manifest."""
    root = write_clip_folder(tmp_path_factory.mktemp("turns"))
    return root, get_recipe("folder").make(RecipeRequest(root=root)).manifest


@pytest.fixture(scope="module")
def built_apart(tmp_path_factory: pytest.TempPathFactory, clips: tuple[Path, Manifest]) -> str:
    """The snapshot that three builds of an encoder each give."""
    store = Store.create(tmp_path_factory.mktemp("apart") / "store")
    store.add_manifest(clips[1], root=clips[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedstore.build.plan, "UNIT_CLIPS", 3)
        for encoder in THREE:
            build(store, encoder)
    return store.snapshot().id


@pytest.fixture
def new_store(tmp_path: Path, clips: tuple[Path, Manifest]) -> Callable[[str], Store]:
    """Return a function that makes a store with the manifest."""

    def make(name: str) -> Store:
        store = Store.create(tmp_path / name)
        store.add_manifest(clips[1], root=clips[0])
        return store

    return make


class Device:
    """Loads stub encoders while fewer than ``room`` are alive."""

    def __init__(self, room: int) -> None:
        self.room, self.alive, self.loads = room, weakref.WeakSet[Any](), list[str]()
        self.fails_beside: set[str] = set()

    def load(self, _: object, request: LoadRequest) -> Any:
        if len(self.alive) >= self.room:
            raise TooLittleMemoryError(f"{request.spec.title} needs 2 GiB", needed=2 << 30)
        device = self

        class Counted(stub_encoder.StubEncoder):
            __hash__ = object.__hash__

            def encode(self, batch: np.ndarray) -> Encoded:
                assert len(device.alive) <= device.room
                if self.spec.title in device.fails_beside and len(device.alive) > 1:
                    raise MemoryError("activations")
                return super().encode(batch)

        plain = stub_encoder.load(request)
        encoder = Counted(plain.spec, input_shape=plain.input_shape, preprocess=plain.preprocess)
        self.alive.add(encoder)
        self.loads.append(request.spec.title)
        return encoder


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Device]:
    def make(room: int) -> Device:
        made = Device(room)
        monkeypatch.setattr("embedstore.build.run.load_encoder", made.load)
        return made

    return make


def build(store: Store, *encoders: str, **options: Any) -> list[BuildOutcome]:
    return build_sets(store, BuildRequest(encoders=encoders, **{"n_workers": 0, **options}))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths that were decoded in this process."""
    paths: list[Path] = []
    original = pipeline.decode_clip

    def counting(job: Any) -> Any:
        paths.append(job.path)
        return original(job)

    monkeypatch.setattr(pipeline, "decode_clip", counting)
    return paths


@pytest.mark.parametrize(("room", "block_mib"), [(3, 1024), (2, 1024), (1, 0)])
def test_one_decode_serves_three_encoders_and_the_bits_are_those_of_each_alone(
    room: int,
    block_mib: int,
    built_apart: str,
    new_store: Callable[[str], Store],
    device: Callable[[int], Device],
    decoded: list[Path],
) -> None:
    decoded.clear()
    shared, models = new_store("shared"), device(room)
    outcomes = build(shared, *THREE, block_bytes=block_mib << 20)
    assert [outcome.encoder for outcome in outcomes] == list(THREE)
    assert len(decoded) == len(set(decoded)) == 8
    assert shared.snapshot().id == built_apart
    # A model that has no full batch yet is not fetched for one; blocks of all three units, or of single clips.
    assert len(models.loads) == 3 if room == 3 else 3 < len(models.loads) <= 3 + 3 * 8


def test_a_model_without_room_for_its_batch_gets_it_alone(
    new_store: Callable[[str], Store], device: Callable[[int], Device]
) -> None:
    alone = new_store("alone")
    device(3)
    build(alone, "stub")
    build(alone, "stub-clip")
    models = device(3)
    models.fails_beside = {"stub-clip"}
    shared = new_store("shared")
    build(shared, "stub", "stub-clip")
    assert shared.snapshot().id == alone.snapshot().id
    assert models.loads.count("stub") > 1, "the other model made room and came back"


def test_a_model_that_does_not_fit_alone_says_how_much_it_needs(
    new_store: Callable[[str], Store], device: Callable[[int], Device]
) -> None:
    store = new_store("store")
    device(0)
    with pytest.raises(TooLittleMemoryError, match="needs 2 GiB") as caught:
        build(store, "stub")
    assert caught.value.needed == 2 << 30 and caught.value.exit_code == 1
    assert store.entries() == []


def test_a_batch_that_does_not_fit_alone_says_which_size_to_try(
    new_store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, batch: object) -> Encoded:
        raise MemoryError

    monkeypatch.setattr(stub_encoder.StubEncoder, "encode", full)
    with pytest.raises(EnvironmentFailure, match="out of memory at batch size 5; try --batch-size 2"):
        build(new_store("store"), "stub")


def test_blocks_stay_within_their_bytes(
    new_store: Callable[[str], Store],
    device: Callable[[int], Device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The prepared inputs that are alive, seen at every turn of a model, are half of what is allowed and one clip."""
    limit = 20_000
    alive: dict[int, int] = {}
    largest = [0]
    original = pipeline.decode_clip

    def watched(job: Any) -> Any:
        outcome = original(job)
        for prepared in outcome.prepared:
            alive[id(prepared.inputs)] = prepared.inputs.nbytes
            weakref.finalize(prepared.inputs, alive.pop, id(prepared.inputs))
        clip_bytes.append(sum(prepared.inputs.nbytes for prepared in outcome.prepared))
        return outcome

    clip_bytes: list[int] = []
    sizes: list[int] = []
    add = UnitEncoder.add

    def adding(self: Any, *arguments: Any) -> None:
        largest[0] = max(largest[0], sum(alive.values()))
        add(self, *arguments)

    encode_block = pipeline._encode_block

    def counting(block: Any, *arguments: Any, **options: Any) -> None:
        sizes.append(len(block.clips))
        assert block.n_bytes <= limit // 2 or len(block.clips) == 1
        encode_block(block, *arguments, **options)

    monkeypatch.setattr(pipeline, "decode_clip", watched)
    monkeypatch.setattr(pipeline, "_encode_block", counting)
    monkeypatch.setattr(UnitEncoder, "add", adding)
    store = new_store("store")
    device(1)
    build(store, "stub", "stub-clip", block_bytes=limit)
    assert len(clip_bytes) == 8 and max(sizes) > 1 and sum(sizes) == 8
    assert largest[0] <= limit // 2 + max(clip_bytes)
    sizes.clear()
    device(3)
    build(store, "stub", "stub-clip", dtype="float32", block_bytes=limit)
    assert sizes == [1] * 8, "models that fit together see each clip at once"


@pytest.mark.parametrize(("block_bytes", "expected"), [(1 << 30, 10), (20_000, 2), (1, 1)])
def test_decoding_ahead_is_bounded_by_bytes(
    block_bytes: int, expected: int, new_store: Callable[[str], Store]
) -> None:
    store = new_store("store")
    build(store, *THREE, dry_run=True)
    runs = []
    for card, unit in ((stub_encoder.STUB, "stub"), (stub_encoder.STUB_CLIP, "stub-clip")):
        plan = embedstore.build.plan.make_plan(store, store.manifest("clips"), card.spec())
        encoder = stub_encoder.load(LoadRequest(spec=card.spec(), weights=None))
        assert plan.spec.name == unit
        runs.append(pipeline.EncoderRun(plan=plan, encoder=encoder, folder=Path(), units=list(plan.units)))
    # A clip's inputs: 4 frames of 8x8 float32, and 3 windows of 4 such.
    options = pipeline.PipelineOptions(n_workers=4, block_bytes=block_bytes)
    assert (4 + 3 * 4) * 8 * 8 * 4 == 4096
    assert pipeline._max_in_flight(store.manifest("clips"), runs, options) == expected


def test_workers_and_turns_together(
    built_apart: str, new_store: Callable[[str], Store], device: Callable[[int], Device]
) -> None:
    shared = new_store("shared")
    device(1)
    build(shared, *THREE, n_workers=1)
    assert shared.snapshot().id == built_apart


def test_failures_and_stops_in_a_block(
    new_store: Callable[[str], Store], device: Callable[[int], Device], clips: tuple[Path, Manifest], tmp_path: Path
) -> None:
    store = new_store("store")
    shutil.copytree(clips[0], tmp_path / "clips")
    (tmp_path / "clips" / "p01-c0.avi").write_bytes(b"changed")
    device(1)
    told: list[tuple[str, str | None]] = []
    request = BuildRequest(encoders=THREE, n_workers=0, roots={"": tmp_path / "clips"})
    outcomes = build_sets(store, request, progress=Progress(clip=lambda *clip: told.append(clip)))
    assert [outcome.n_failed for outcome in outcomes] == [1, 1, 1]
    assert len(told) == 8 and [clip for clip in told if clip[1]] == [("p01-c0", "source-changed")]
    with pytest.raises(MediaError, match="p01-c0"):
        build_sets(store, replace(request, dtype="float32", stop_on_error=True))


def test_what_an_encoder_was_told_is_told_again_when_it_comes_back() -> None:
    class WithSteps(stub_encoder.StubEncoder):
        with_steps = True

    spec = stub_encoder.STUB.spec()
    residents = ResidentModels()
    loaded: list[WithSteps] = []

    def load() -> WithSteps:
        loaded.append(WithSteps(spec))
        return loaded[-1]

    model = Model(load, residents)
    other = Model(load, residents)
    model.with_steps = False  # type: ignore[attr-defined]
    assert model.is_resident and other.is_resident
    assert residents.clear_but(other) and not model.is_resident
    model.encode(np.zeros((1, 8, 8), np.float32))
    assert len(loaded) == 3 and loaded[-1].with_steps is False and loaded[1].with_steps is True
    assert not hasattr(Model(lambda: stub_encoder.StubEncoder(spec), residents), "with_steps")


def test_the_licence_is_said_at_every_build_and_kept_with_the_set(
    new_store: Callable[[str], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = replace(
        stub_encoder.STUB,
        weights_url="https://host/w.pt",
        licence="Academic licence",
        licence_forbids="commercial use",
    )
    for module in ("run", "provenance"):
        monkeypatch.setattr(f"embedstore.build.{module}.get_card", lambda name: card)
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"weights")
    store = new_store("store")
    told: list[str] = []
    request = BuildRequest(encoders=("stub",), weights={"stub": weights}, n_workers=0)
    for _ in range(2):
        build_sets(store, request, progress=Progress(note=told.append))
    assert told.count("stub: licence Academic licence, which forbids commercial use") == 2
    provenance = store.get(dataset="clips", encoder="stub").provenance
    assert provenance["licence"] == "Academic licence" and provenance["licence_forbids"] == "commercial use"
