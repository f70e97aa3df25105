"""Part of `store.py`: a build without its decoding, and how it ends: finished units packed into a set.

16 frames a clip, 256 clips a unit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from timing import Case, time_rounds, watched_memory

from embedstore.build import pipeline
from embedstore.build.commit import commit_build, drop_build
from embedstore.build.decode import DecodedClip, DecodeJob, Prepared
from embedstore.build.plan import BuildPlan
from embedstore.build.plan import make_plan as plan_of
from embedstore.build.planned import PlannedClip, PlannedClips
from embedstore.build.units import ClipVectors, UnitResult, write_unit
from embedstore.dataset import DatasetFacts
from embedstore.encoder import Encoded, Encoder
from embedstore.manifest import Manifest
from embedstore.shards import cast_for_storage
from embedstore.spec import EncoderSpec, FrameSampling
from embedstore.store import Store

DIM = 768
FRAMES_EACH = 16
UNIT_CLIPS = 256
SPEC = EncoderSpec(
    name="bench", sampling=FrameSampling(f"uniform:{FRAMES_EACH}"), clip_dim=DIM, frame_dim=DIM, dtype="float16"
)
KINDS = {"clips": DIM, "frames": DIM}


def make_plan(n_clips: int) -> BuildPlan:
    clips = PlannedClips.of(
        PlannedClip(
            clip_id=f"c{clip:08d}",
            content_sha256=f"{clip:064x}",
            vector_key=f"{clip:064x}",
            action="encode",
            unit=clip // UNIT_CLIPS,
        )
        for clip in range(n_clips)
    )
    return BuildPlan(
        key="0" * 64,
        dataset="bench",
        spec=SPEC,
        with_frames=True,
        parent=None,
        clips=clips,
        n_expected=n_clips,
        batch_size=1,
    )


def unit_result(unit: int, clips: list[PlannedClip], frames: Any) -> UnitResult:
    """What an encoder gives for one unit; its vectors are the same float32 block for every unit."""
    result = UnitResult(unit=unit)
    for at, clip in enumerate(clips):
        rows = [
            {
                "clip_id": clip.clip_id,
                "frame": frame,
                "time_s": frame / 30,
                "frame_start": frame,
                "frame_stop": frame + 1,
                "frame_kind": "frame",
            }
            for frame in range(FRAMES_EACH)
        ]
        index = {
            "clip_id": clip.clip_id,
            "content_sha256": clip.content_sha256,
            "vector_key": clip.vector_key,
            "n_frames": 16,
            "n_frame_rows": FRAMES_EACH,
            "n_window_rows": 0,
        }
        vectors = frames[at * FRAMES_EACH : (at + 1) * FRAMES_EACH]
        result.vectors.append(ClipVectors(index=index, clip=vectors[0], frames=vectors, frame_rows=rows))
    return result


def write_units(folder: Path, plan: BuildPlan) -> None:
    """Write every unit and its receipt."""
    (folder / "units").mkdir(parents=True)
    (folder / "receipts").mkdir()
    frames = np.random.default_rng(0).standard_normal((UNIT_CLIPS * FRAMES_EACH, DIM), dtype=np.float32)
    cast = {kind: partial(cast_for_storage, dtype="float16", what=kind) for kind in KINDS}
    for unit, clips in plan.units.items():
        frames[0, 0] = unit
        write_unit(folder, unit_result(unit, clips, frames), kinds=KINDS, cast=cast)


def save_frames(path: Path, n_frames: int) -> None:
    """The baseline: the same blocks, cast, gathered in one matrix and saved."""
    block = np.random.default_rng(0).standard_normal((UNIT_CLIPS * FRAMES_EACH, DIM), dtype=np.float32)
    matrix = np.empty((n_frames, DIM), np.float16)
    for start in range(0, n_frames, len(block)):
        part = matrix[start : start + len(block)]
        part[...] = block[: len(part)]
    with path.open("wb") as handle:
        np.save(handle, matrix)
        handle.flush()
        os.fsync(handle.fileno())


def build_figures(folder: Path, *, n_rows: int, rounds: int) -> list[tuple[Any, ...]]:
    """Seconds of writing units and of packing them, against saving the same frames as one file."""
    plan = make_plan(n_rows // FRAMES_EACH)
    n_frames = len(plan.clips) * FRAMES_EACH
    build, root, raw = folder / "build", folder / "packed", folder / "frames.npy"

    def clear_units() -> None:
        shutil.rmtree(build, ignore_errors=True)

    def clear_store() -> None:
        shutil.rmtree(root, ignore_errors=True)
        if not build.exists():
            write_units(build, plan)

    def pack() -> None:
        drop_build(build, commit_build(Store.create(root), plan, build, provenance={}, reason="benchmark"))

    cases = {
        "raw": Case(lambda: save_frames(raw, n_frames), lambda: raw.unlink(missing_ok=True)),
        "units": Case(lambda: write_units(build, plan), clear_units),
        "pack": Case(pack, clear_store),
    }
    times = time_rounds(cases, rounds=rounds, warm_up=True)
    for path in (build, root):
        shutil.rmtree(path, ignore_errors=True)
    raw.unlink()
    what = f"{n_frames:,} frames x {DIM} float16"
    against = "cast + np.save + fsync"
    return [
        (f"unit files of {what}", times["units"], against, times["raw"]),
        (f"packing of {what}", times["pack"], against, times["raw"]),
        (f"unit files and packing of {what}", times["units"] + times["pack"], against, times["raw"], 3.5),
    ]


def in_child(act: Callable[[], object]) -> None:
    """Act in a copy of this process, whose memory is its own."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("the child that prepares a measurement failed")


def commit_once(folder: Path, n_rows: int) -> None:
    """In a process of its own: pack units that another process planned and wrote; print the peak memory."""

    def prepare() -> None:
        plan = make_plan(n_rows // FRAMES_EACH)
        write_units(folder / "build", plan)
        plan.write(folder / "build")

    in_child(prepare)
    told: dict[str, float] = {}
    with watched_memory(told):
        store, build = Store.create(folder / "store"), folder / "build"
        plan = BuildPlan.read(build)
        assert plan is not None
        drop_build(build, commit_build(store, plan, build, provenance={}, reason="benchmark"))
    print(json.dumps(told))


class Drawn:
    """An encoder that draws its vectors: what a build takes without it is what is measured."""

    input_shape, input_dtype, device = (1,), "float32", "cpu"
    spec = SPEC

    def preprocess(self, frames: Any, *, n_missing: int = 0) -> Any:
        return np.zeros((len(frames) + n_missing, 1), np.float32)

    def encode(self, batch: Any) -> Encoded:
        return Encoded(np.random.default_rng(0).standard_normal((len(batch), DIM), dtype=np.float32))


def decode_nothing(job: DecodeJob) -> DecodedClip:
    """Stands for `decode_clip`: as many empty frames as are asked for."""
    prepared = []
    for request in job.requests:
        assert request is not None
        resolved = request.sampling.resolve(n_frames=job.n_frames or 0, fps=job.fps, key_frames=job.key_frames)
        prepared.append(Prepared(np.zeros((len(resolved.frames), 1), np.float32), resolved))
    facts = ("n_decoded", "n_header_frames", "n_errors", "n_pts_gaps", "fps_header", "height", "width")
    return DecodedClip(job.sha256 or "", dict.fromkeys(facts), job.fps, tuple(prepared), 0.0)


def add_manifest(folder: Path, n_clips: int) -> None:
    rows = [
        {
            "clip_id": f"c{clip:08d}",
            "patient_id": f"p{clip // 4:08d}",
            "sha256": f"{clip:064x}",
            "path": f"videos/{clip:08d}.avi",
            "n_frames": 64,
            "fps": 30.0,
            "split": "train",
        }
        for clip in range(n_clips)
    ]
    facts = DatasetFacts(name="bench", title="bench")
    Store.create(folder / "store").add_manifest(Manifest.from_rows(rows, dataset=facts), root=folder)


def run_model() -> Any:
    """Run MobileNetV2 under torch on the frames of one clip, and return it: what a build's process holds besides."""
    import torch
    import torchvision

    model = torchvision.models.mobilenet_v2(weights=None).eval()
    with torch.inference_mode():
        model(torch.zeros(FRAMES_EACH, 3, 224, 224))
    return model


def build_once(folder: Path, n_rows: int, *, beside_model: bool) -> None:
    """In a process of its own: plan, encode and commit clips that need no decoding; print the peak memory."""
    in_child(lambda: add_manifest(folder, n_rows // FRAMES_EACH))
    vars(pipeline)["decode_clip"] = decode_nothing
    held = run_model() if beside_model else None
    told: dict[str, float] = {}
    with watched_memory(told):
        store = Store.open(folder / "store")
        manifest = store.manifest("bench")
        planned = replace(plan_of(store, manifest, SPEC, root=folder), batch_size=UNIT_CLIPS)
        build = store.layout.build_folder(planned.key)
        planned.write(build)
        plan = BuildPlan.read(build)
        assert plan is not None
        del planned
        run = pipeline.EncoderRun(plan=plan, encoder=cast("Encoder", Drawn()), folder=build, units=list(plan.units))
        pipeline.run_units(manifest, [run], root=folder, options=pipeline.PipelineOptions(n_workers=0))
        drop_build(build, commit_build(store, plan, build, provenance={}, reason="benchmark"))
    del held
    print(json.dumps(told))
