"""The pipeline of a build: decode in worker processes, encode here, write in a thread; all queues bounded.

Several encoders share one decode: a clip is read once and prepared for each of them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from embedstore.build.commit import array_kinds
from embedstore.build.decode import DecodedClip, DecodeJob, DecodeRequest, Prepared, Refusal, decode_clip
from embedstore.build.encode import UnitEncoder
from embedstore.build.plan import BuildPlan, PlannedClip
from embedstore.build.units import UnitResult, write_unit
from embedstore.encoder import Encoder
from embedstore.errors import MediaError
from embedstore.manifest import Manifest
from embedstore.media.pool import JobFailure, WorkerPool
from embedstore.shards import cast_for_storage

__all__ = ["EncoderRun", "PipelineOptions", "run_units"]

_DECODE_TIMEOUT_S = 300.0
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
    """

    n_workers: int = 1
    stop_on_error: bool = False
    decode_timeout_s: float = _DECODE_TIMEOUT_S
    on_clip: Callable[[str, str | None], None] | None = None


@dataclass(kw_only=True)
class EncoderRun:
    """One encoder's share of a pipeline: its plan, its open units, its folder."""

    plan: BuildPlan
    encoder: Encoder
    folder: Path
    units: Sequence[int]
    clips_of: Mapping[int, Sequence[PlannedClip]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = self.plan.units
        self.clips_of = {unit: every[unit] for unit in self.units}


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
    """One clip of one unit number, with each encoder's planned clip or None."""

    unit: int
    clips: tuple[PlannedClip | None, ...]
    job: DecodeJob


def _steps(manifest: Manifest, root: Path | None, runs: Sequence[EncoderRun]) -> Iterator[_Step]:
    requests = [
        DecodeRequest(sampling=run.plan.spec.sampling, preprocess=run.encoder.preprocess, unit=run.plan.spec.unit)
        if run.plan.spec.sampling is not None
        else None
        for run in runs
    ]
    columns = manifest.table.select(["clip_id", "sha256", "path", "n_frames", "fps"]).to_pylist()
    position = {row["clip_id"]: at for at, row in enumerate(columns)}
    for unit in sorted({unit for run in runs for unit in run.units}):
        planned = [{clip.clip_id: clip for clip in run.clips_of.get(unit, ())} for run in runs]
        for clip_id in sorted({clip_id for by_id in planned for clip_id in by_id}, key=position.__getitem__):
            row = columns[position[clip_id]]
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
            yield _Step(unit, wanted, job)


def _write(run: EncoderRun, result: UnitResult) -> None:
    kinds = array_kinds(run.plan)
    cast = {
        kind: partial(cast_for_storage, dtype=run.plan.spec.dtype, what=f"{kind} of {run.plan.spec.title}")
        for kind in kinds
    }
    write_unit(run.folder, result, kinds=kinds, cast=cast)


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
    steps = list(_steps(manifest, root, runs))
    in_flight = 2 * max(options.n_workers, 1) + 2
    pool = WorkerPool(
        decode_clip,
        n_workers=options.n_workers,
        timeout_s=options.decode_timeout_s,
        memory_limit_bytes=_WORKER_MEMORY_BYTES,
    )
    with _Writer() as writer, pool:
        outcomes = pool.imap((step.job for step in steps), max_in_flight=in_flight)
        unit: int | None = None
        for step, outcome in zip(steps, outcomes, strict=True):
            if step.unit != unit:
                _finish_unit(unit, runs, unit_encoders, writer)
                unit = step.unit
                for run, unit_encoder in zip(runs, unit_encoders, strict=True):
                    if unit in run.clips_of:
                        unit_encoder.begin(unit)
            _consume(step, outcome, unit_encoders, options)
        _finish_unit(unit, runs, unit_encoders, writer)


def _finish_unit(
    unit: int | None, runs: Sequence[EncoderRun], unit_encoders: Sequence[UnitEncoder], writer: _Writer
) -> None:
    if unit is None:
        return
    for run, unit_encoder in zip(runs, unit_encoders, strict=True):
        if unit in run.clips_of:
            writer.put(partial(_write, run, unit_encoder.finish()))


def _consume(step: _Step, outcome: Any, unit_encoders: Sequence[UnitEncoder], options: PipelineOptions) -> None:
    first_reason: str | None = None
    for at, (clip, unit_encoder) in enumerate(zip(step.clips, unit_encoders, strict=True)):
        if clip is None:
            continue
        refused: tuple[str, str] | None = None
        if isinstance(outcome, JobFailure):
            refused = outcome.reason, outcome.message
        elif isinstance(outcome, DecodedClip):
            prepared = outcome.prepared[at]
            if isinstance(prepared, Prepared):
                unit_encoder.add(clip, outcome, prepared)
            elif isinstance(prepared, Refusal):
                refused = prepared.reason, prepared.detail
        if refused is not None:
            if options.stop_on_error:
                raise MediaError(f"clip {clip.clip_id}: {refused[1]} ({refused[0]})", reason=refused[0])
            unit_encoder.fail(clip, reason=refused[0], detail=refused[1])
            first_reason = first_reason or refused[0]
    if options.on_clip is not None:
        clip_id = next(clip.clip_id for clip in step.clips if clip is not None)
        options.on_clip(clip_id, first_reason)
