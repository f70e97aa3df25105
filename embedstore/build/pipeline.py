"""The pipeline of a build: decode in worker processes, encode here, write in a thread; all queues bounded.

Several encoders share one decode: a clip is read once and prepared for each of them. While all models fit on the
device, each clip goes through all of them as it comes. Models that do not fit together take turns a block: the inputs
of as many clips as memory allows are held, and each model in its turn encodes them all. Batches are the same either
way, since what is left of one block stays in its encoder's buffer for the next.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedstore.build.commit import array_kinds
from embedstore.build.decode import DecodedClip, DecodeJob, DecodeRequest, Prepared, Refusal, decode_clip
from embedstore.build.encode import UnitEncoder
from embedstore.build.plan import BuildPlan
from embedstore.build.planned import PlannedClip
from embedstore.build.provenance import worker_facts
from embedstore.build.units import UnitResult, write_unit
from embedstore.encoder import Encoder
from embedstore.errors import MediaError
from embedstore.manifest import Manifest
from embedstore.media.pool import JobFailure, WorkerPool
from embedstore.shards import cast_for_storage

__all__ = ["EncoderRun", "PipelineOptions", "run_units"]

_DECODE_TIMEOUT_S = 300.0
_BLOCK_BYTES = 1 << 30
# Where a manifest does not say: what a clip's inputs are reckoned by.
_LONG_CLIP = 256  # frames
_USUAL_FPS = 30.0
_WORKER_MEMORY_BYTES = 16 << 30


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """How a pipeline runs; nothing here changes a vector.

    Attributes
    ----------
    n_workers : int
        Decode processes; 0 decodes in this process.
    stop_on_error : bool
        Whether the first clip that fails ends the build.
    decode_timeout_s : float
        Seconds a clip may take to decode.
    on_clip : callable or None
        Told (clip id, reason or None) for each clip that is done.
    block_bytes : int
        Bytes of prepared inputs that are held at once: half in the block that models take turns at, half decoded
        ahead of it. One clip is always held, however large it is.
    """

    n_workers: int = 1
    stop_on_error: bool = False
    decode_timeout_s: float = _DECODE_TIMEOUT_S
    on_clip: Callable[[str, str | None], None] | None = None
    block_bytes: int = _BLOCK_BYTES


@dataclass(kw_only=True)
class EncoderRun:
    """One encoder's share of a pipeline: its plan, its open units, its folder."""

    plan: BuildPlan
    encoder: Encoder
    folder: Path
    units: Sequence[int]
    clips_of: Mapping[int, Sequence[PlannedClip]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clips_of = self.plan.units.only(self.units)


class _Writer:
    """Writes finished units in a thread, at most two waiting; the first error is raised where units are put."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(maxsize=2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="unit-writer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if self._error is None:
                try:
                    task()
                except BaseException as error:  # noqa: BLE001 - carried to the thread that waits for it
                    self._error = error

    def put(self, task: Callable[[], object]) -> None:
        """Queue a task; blocks while two are waiting."""
        self._raise()
        self._queue.put(task)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()


@dataclass(frozen=True)
class _Step:
    """One clip of one unit number, with each encoder's planned clip or None; whether it is the unit's last."""

    unit: int
    clips: tuple[PlannedClip | None, ...]
    job: DecodeJob
    is_last: bool

    @property
    def clip_id(self) -> str:
        """The clip's id."""
        return next(clip.clip_id for clip in self.clips if clip is not None)


def _steps(manifest: Manifest, root: Path | None, runs: Sequence[EncoderRun]) -> Iterator[_Step]:
    requests = [
        DecodeRequest(sampling=run.plan.spec.sampling, preprocess=run.encoder.preprocess, unit=run.plan.spec.unit)
        if run.plan.spec.sampling is not None
        else None
        for run in runs
    ]
    table = manifest.table.select(["clip_id", "sha256", "path", "n_frames", "fps"])
    for unit in sorted({unit for run in runs for unit in run.units}):
        planned = [{clip.clip_id: clip for clip in run.clips_of.get(unit, ())} for run in runs]
        wanted_ids = pa.array({clip_id for by_id in planned for clip_id in by_id}, pa.string())
        rows = table.filter(pc.is_in(table["clip_id"], wanted_ids)).to_pylist()
        for row in rows:
            clip_id = row["clip_id"]
            wanted = tuple(by_id.get(clip_id) for by_id in planned)
            roles: dict[str, list[int]] = {}
            for role, frame in manifest.key_frames_of.get(clip_id, ()):
                roles.setdefault(role, []).append(frame)
            job = DecodeJob(
                path=Path("/nonexistent") if root is None or row["path"] is None else root / row["path"],
                sha256=row["sha256"] or next(clip.content_sha256 for clip in wanted if clip is not None),
                n_frames=row["n_frames"],
                fps=row["fps"],
                key_frames=roles,
                requests=tuple(
                    None if clip is None else request for clip, request in zip(wanted, requests, strict=True)
                ),
            )
            yield _Step(unit, wanted, job, row is rows[-1])


def _write(run: EncoderRun, result: UnitResult) -> None:
    kinds = array_kinds(run.plan)
    cast = {
        kind: partial(cast_for_storage, dtype=run.plan.spec.dtype, what=f"{kind} of {run.plan.spec.title}")
        for kind in kinds
    }
    write_unit(run.folder, result, kinds=kinds, cast=cast, made=worker_facts(run.encoder))


def run_units(manifest: Manifest, runs: Sequence[EncoderRun], *, root: Path | None, options: PipelineOptions) -> None:
    """Decode each clip once, encode it with every run that wants it, leave a receipt a unit and encoder.

    Raises
    ------
    MediaError
        With ``stop_on_error``, the first clip that fails.
    """
    unit_encoders = [
        UnitEncoder(run.encoder, batch_size=run.plan.batch_size or 1, with_frames=run.plan.with_frames)
        for run in runs
    ]
    steps, sent = itertools.tee(_steps(manifest, root, runs))
    pool = WorkerPool(
        decode_clip,
        n_workers=options.n_workers,
        timeout_s=options.decode_timeout_s,
        memory_limit_bytes=_WORKER_MEMORY_BYTES,
    )
    with _Writer() as writer, pool:
        outcomes = pool.imap((step.job for step in sent), max_in_flight=_max_in_flight(manifest, runs, options))
        unit: int | None = None
        for block in _blocks(zip(steps, outcomes, strict=True), lambda: _block_limit(runs, options)):
            if block.unit != unit:
                unit = block.unit
                for run, unit_encoder in zip(runs, unit_encoders, strict=True):
                    if unit in run.clips_of:
                        unit_encoder.begin(unit)
            _encode_block(block, runs, unit_encoders, writer=writer, options=options)


@dataclass
class _Block:
    """Clips of one unit with what became of their decoding."""

    unit: int
    clips: list[tuple[_Step, Any]] = field(default_factory=list)
    n_bytes: int = 0

    @property
    def ends_unit(self) -> bool:
        return self.clips[-1][0].is_last


def _blocks(decoded: Iterable[tuple[_Step, Any]], limit: Callable[[], int]) -> Iterator[_Block]:
    """Gather clips while they stay within ``limit`` bytes and one unit; a clip larger than that is a block."""
    block: _Block | None = None
    for step, outcome in decoded:
        n_bytes = _bytes_of(outcome)
        if block is not None and block.n_bytes + n_bytes > limit():
            yield block
            block = None
        block = block or _Block(step.unit)
        block.clips.append((step, outcome))
        block.n_bytes += n_bytes
        del outcome  # held by the block alone, which its receiver may empty
        if step.is_last or block.n_bytes >= limit():
            yield block
            block = None


def _bytes_of(outcome: Any) -> int:
    if not isinstance(outcome, DecodedClip):
        return 0
    return sum(prepared.inputs.nbytes for prepared in outcome.prepared if isinstance(prepared, Prepared))


def _block_limit(runs: Sequence[EncoderRun], options: PipelineOptions) -> int:
    """Return how many bytes a block may take: none while all models are loaded, so that each clip goes at once."""
    return 0 if all(_is_resident(run.encoder) for run in runs) else options.block_bytes // 2


def _is_resident(encoder: Encoder) -> bool:
    return bool(getattr(encoder, "is_resident", True))


def _max_in_flight(manifest: Manifest, runs: Sequence[EncoderRun], options: PipelineOptions) -> int:
    """Return how many clips may be decoded ahead: enough for all workers, and within half of the block's bytes."""
    most = max((count for count in manifest.column("n_frames") if count is not None), default=None)
    clip_bytes = sum(_input_bytes(run, n_frames=most) for run in runs)
    enough = 2 * max(options.n_workers, 1) + 2
    return max(1, min(enough, options.block_bytes // 2 // max(clip_bytes, 1)))


def _input_bytes(run: EncoderRun, *, n_frames: int | None) -> int:
    """Return the bytes of the inputs that an encoder takes of a clip of so many frames, as far as is known."""
    sampling, encoder = run.plan.spec.sampling, run.encoder
    n_inputs = 1
    if sampling is not None:
        try:
            resolved = sampling.resolve(n_frames=n_frames or _LONG_CLIP, fps=_USUAL_FPS, key_frames={})
        except MediaError:  # a rule of key frames: a few
            pass
        else:
            windows = resolved.windows
            n_inputs = sum(map(len, windows)) if run.plan.spec.unit == "frame" else len(windows)
    return n_inputs * math.prod(encoder.input_shape) * np.dtype(encoder.input_dtype).itemsize


def _encode_block(
    block: _Block,
    runs: Sequence[EncoderRun],
    unit_encoders: Sequence[UnitEncoder],
    *,
    writer: _Writer,
    options: PipelineOptions,
) -> None:
    """Encode a block with one model after the other, those that are loaded first."""
    reasons: dict[int, str] = {}
    ends_unit = block.ends_unit
    for at in sorted(range(len(runs)), key=lambda at: not _is_resident(runs[at].encoder)):
        run, unit_encoder = runs[at], unit_encoders[at]
        for number, (step, outcome) in enumerate(block.clips):
            reason = _consume(step.clips[at], outcome, at, unit_encoder, options)
            if reason is not None:
                reasons.setdefault(number, reason)
        if ends_unit and block.unit in run.clips_of:
            writer.put(partial(_write, run, unit_encoder.finish()))
    clip_ids = [step.clip_id for step, _ in block.clips]
    block.clips.clear()
    if options.on_clip is not None:
        for number, clip_id in enumerate(clip_ids):
            options.on_clip(clip_id, reasons.get(number))


def _consume(
    clip: PlannedClip | None, outcome: Any, at: int, unit_encoder: UnitEncoder, options: PipelineOptions
) -> str | None:
    """Give one encoder its inputs of one clip; return why there are none."""
    if clip is None:
        return None
    refused: tuple[str, str] | None = None
    if isinstance(outcome, JobFailure):
        refused = outcome.reason, outcome.message
    elif isinstance(outcome, DecodedClip):
        prepared = outcome.prepared[at]
        if isinstance(prepared, Prepared):
            unit_encoder.add(clip, outcome, prepared)
        elif isinstance(prepared, Refusal):
            refused = prepared.reason, prepared.detail
    if refused is None:
        return None
    if options.stop_on_error:
        raise MediaError(f"clip {clip.clip_id}: {refused[1]} ({refused[0]})", reason=refused[0])
    unit_encoder.fail(clip, reason=refused[0], detail=refused[1])
    return refused[0]
