"""From a unit's decoded clips to its vectors: constant batches, pooling, rows of the tables.

Every forward has one constant shape, the short last batch padded, so that a row never depends on its neighbours,
on reuse or on failures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.build.decode import DecodedClip, Prepared
from embedstore.build.planned import PlannedClip
from embedstore.build.units import ClipVectors, FailedClip, UnitResult
from embedstore.encoder import Encoded, Encoder
from embedstore.errors import EnvironmentFailure, TooLittleMemoryError
from embedstore.spec import ResolvedFrames

__all__ = ["UnitEncoder", "pool_frames"]


def pool_frames(frames: npt.NDArray[np.float32], pooling: str) -> npt.NDArray[np.float32]:
    """Return the clip vector of ``(K, D)`` frame or window vectors, summed in float64.

    Parameters
    ----------
    pooling : {"mean-l2", "mean"}
        Mean of the L2-normalised rows, or of the rows as they are.

    Raises
    ------
    ValueError
        The pooling is neither.

    Examples
    --------
    >>> pool_frames(np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float32), "mean-l2").tolist()
    [0.30000001192092896, 0.8999999761581421]
    """
    wide = frames.astype(np.float64)
    if pooling == "mean-l2":
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        wide = wide / np.where(norms > 0, norms, 1.0)
    elif pooling != "mean":
        raise ValueError(f"unknown pooling {pooling!r}")
    return np.asarray(wide.mean(axis=0), dtype=np.float32)


@dataclass
class _Pending:
    """A clip whose inputs are being encoded."""

    clip: PlannedClip
    decoded: DecodedClip
    resolved: ResolvedFrames
    n_inputs: int
    parts: list[npt.NDArray[np.float32]]
    steps: list[npt.NDArray[np.float32]]
    n_done: int = 0


class UnitEncoder:
    """Encodes one unit after another with one model at one batch size.

    Parameters
    ----------
    encoder : Encoder
    batch_size : int
        Rows of every forward.
    with_frames : bool
        Whether frame vectors are kept. An encoder with an attribute ``with_steps`` is told, so that it spares what
        its steps cost.
    """

    def __init__(self, encoder: Encoder, *, batch_size: int, with_frames: bool) -> None:
        self._encoder, self._batch_size, self._with_frames = encoder, batch_size, with_frames
        if hasattr(encoder, "with_steps"):
            encoder.with_steps = with_frames and encoder.spec.frame_dim is not None
        self._buffer = np.zeros((batch_size, *encoder.input_shape), dtype=encoder.input_dtype)
        self._filled = 0
        self._waiting: list[_Pending] = []
        self._result: UnitResult | None = None

    def begin(self, unit: int) -> None:
        """Start a unit."""
        self._result = UnitResult(unit=unit)
        self._filled = 0
        self._waiting = []

    def _current(self) -> UnitResult:
        if self._result is None:
            raise RuntimeError("no unit was begun")
        return self._result

    def fail(self, clip: PlannedClip, *, reason: str, detail: str) -> None:
        """Record a clip without vectors."""
        failed = FailedClip(
            clip_id=clip.clip_id,
            content_sha256=clip.content_sha256,
            vector_key=clip.vector_key,
            reason=reason,
            detail=detail,
        )
        self._current().failed.append(failed)

    def add(self, clip: PlannedClip, decoded: DecodedClip, prepared: Prepared) -> None:
        """Add a clip's inputs; full batches are encoded at once."""
        result = self._current()
        result.decode_seconds += decoded.seconds
        pending = _Pending(clip, decoded, prepared.resolved, len(prepared.inputs), [], [])
        self._waiting.append(pending)
        done = 0
        while done < len(prepared.inputs):
            count = min(self._batch_size - self._filled, len(prepared.inputs) - done)
            self._buffer[self._filled : self._filled + count] = prepared.inputs[done : done + count]
            self._filled += count
            done += count
            if self._filled == self._batch_size:
                self._forward()

    def finish(self) -> UnitResult:
        """Encode what is left, padded to the constant shape, and return the unit."""
        if self._filled:
            self._buffer[self._filled :] = 0
            self._forward()
        result = self._current()
        self._result = None
        return result

    def _forward(self) -> None:
        began = time.perf_counter()
        try:
            encoded = self._encoder.encode(self._buffer)
        except TooLittleMemoryError:
            raise  # the model itself does not fit, whatever the batch
        except MemoryError as error:
            smaller = max(1, self._batch_size // 2)
            raise EnvironmentFailure(
                f"out of memory at batch size {self._batch_size}; try --batch-size {smaller}"
            ) from error
        vectors = np.asarray(encoded.vectors, dtype=np.float32)
        if vectors.shape[0] != self._batch_size:
            raise EnvironmentFailure(f"the encoder gave {vectors.shape[0]} rows for a batch of {self._batch_size}")
        self._distribute(vectors, encoded)
        self._filled = 0
        self._current().encode_seconds += time.perf_counter() - began

    def _distribute(self, vectors: npt.NDArray[np.float32], encoded: Encoded) -> None:
        at = 0
        while at < self._filled and self._waiting:
            pending = self._waiting[0]
            count = min(pending.n_inputs - pending.n_done, self._filled - at)
            pending.parts.append(vectors[at : at + count].copy())
            if encoded.steps is not None and self._with_frames:
                pending.steps.append(np.asarray(encoded.steps[at : at + count], dtype=np.float32).copy())
            pending.n_done += count
            at += count
            if pending.n_done == pending.n_inputs:
                self._waiting.pop(0)
                self._current().vectors.append(self._collect(pending))

    def _collect(self, pending: _Pending) -> ClipVectors:
        rows = np.concatenate(pending.parts)
        spec = self._encoder.spec
        clip_vector = pool_frames(rows, spec.pooling)
        if spec.unit == "frame":
            frames = rows if self._with_frames else None
            frame_rows = _frame_rows(pending) if self._with_frames else []
            return self._clip_vectors(pending, clip_vector, frames=frames, frame_rows=frame_rows)
        frames, frame_rows = None, []
        if pending.steps:
            steps = np.concatenate(pending.steps)
            frames = steps.reshape(-1, steps.shape[-1])
            kind = getattr(self._encoder, "frame_kind", "tubelet")
            frame_rows = _step_rows(pending, n_steps=steps.shape[1], kind=kind)
            if kind == "frame":
                # A frame alone has one vector, however many windows it lies in and however often padding repeats it.
                first = {row["frame"]: at for at, row in reversed(list(enumerate(frame_rows)))}
                kept = [first[frame] for frame in sorted(first)]
                frames, frame_rows = frames[kept], [frame_rows[at] for at in kept]
        return self._clip_vectors(pending, clip_vector, frames=frames, frame_rows=frame_rows, windows=rows)

    @staticmethod
    def _clip_vectors(
        pending: _Pending,
        clip_vector: npt.NDArray[np.float32],
        *,
        frames: npt.NDArray[np.float32] | None,
        frame_rows: list[dict[str, Any]],
        windows: npt.NDArray[np.float32] | None = None,
    ) -> ClipVectors:
        clip, record, resolved = pending.clip, pending.decoded.record, pending.resolved
        window_rows = [] if windows is None else _window_rows(pending)
        index = {
            "clip_id": clip.clip_id,
            "content_sha256": pending.decoded.content_sha256,
            "vector_key": clip.vector_key,
            "n_frames": record["n_decoded"],
            "n_header_frames": record["n_header_frames"],
            "n_decode_errors": record["n_errors"],
            "n_pts_gaps": record["n_pts_gaps"],
            "fps": pending.decoded.fps,
            "fps_header": record["fps_header"],
            "height": record["height"],
            "width": record["width"],
            "covered_s": resolved.covered_s,
            "effective_hz": resolved.effective_hz,
            "n_padded": resolved.n_padded,
            "n_frame_rows": len(frame_rows),
            "n_window_rows": len(window_rows),
        }
        return ClipVectors(
            index=index,
            clip=clip_vector,
            frames=frames,
            windows=windows,
            frame_rows=frame_rows,
            window_rows=window_rows,
        )


def _clock(pending: _Pending) -> Callable[[int], float | None]:
    fps = pending.decoded.fps
    return lambda frame: frame / fps if fps else None


def _frame_rows(pending: _Pending) -> list[dict[str, Any]]:
    time_of = _clock(pending)
    return [
        {
            "clip_id": pending.clip.clip_id,
            "frame": frame,
            "time_s": time_of(frame),
            "frame_start": frame,
            "frame_stop": frame + 1,
            "frame_kind": "frame",
        }
        for window in pending.resolved.windows
        for frame in window
    ]


def _step_rows(pending: _Pending, *, n_steps: int, kind: str) -> list[dict[str, Any]]:
    time_of = _clock(pending)
    rows = []
    for window in pending.resolved.windows:
        per_step = max(1, len(window) // n_steps)
        for step in range(n_steps):
            # A step of padding only stands on the window's last real frame.
            real = [f for f in window[step * per_step : (step + 1) * per_step] if f >= 0] or [max(window)]
            rows.append(
                {
                    "clip_id": pending.clip.clip_id,
                    "frame": real[0],
                    "time_s": time_of(real[0]),
                    "frame_start": min(real),
                    "frame_stop": max(real) + 1,
                    "frame_kind": kind,
                }
            )
    return rows


def _window_rows(pending: _Pending) -> list[dict[str, Any]]:
    rows = []
    for window in pending.resolved.windows:
        real = [frame for frame in window if frame >= 0]
        n_padded = len(window) - len(set(real))
        rows.append(
            {
                "clip_id": pending.clip.clip_id,
                "frame_start": min(real),
                "frame_stop": max(real) + 1,
                "n_padded": n_padded,
            }
        )
    return rows
