"""What a decode worker does for one clip: read, hash, decode once, pick each encoder's frames, preprocess.

Runs in worker processes; imports neither torch nor the store.
"""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.encoder import Preprocess
from embedstore.errors import MediaError
from embedstore.media.clip import Clip, DecodeLimits
from embedstore.media.readers import probe_media, read_clip
from embedstore.spec import FrameSampling, ResolvedFrames

__all__ = ["DecodeJob", "DecodeRequest", "DecodedClip", "Prepared", "Refusal", "decode_clip"]


@dataclass(frozen=True)
class DecodeRequest:
    """What one encoder wants of a clip."""

    sampling: FrameSampling
    preprocess: Preprocess
    unit: str


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """One clip to decode, for the encoders whose request is not None.

    Attributes
    ----------
    path : Path
    sha256 : str or None
        Content digest that the manifest states; other content is refused as ``source-changed``.
    n_frames, fps : from the manifest, None where it does not say.
    key_frames : mapping of role to frame numbers.
    """

    path: Path
    sha256: str | None
    n_frames: int | None
    fps: float | None
    key_frames: Mapping[str, Sequence[int]] = field(default_factory=dict)
    requests: tuple[DecodeRequest | None, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Inputs of one encoder: ``(K, *input_shape)`` for K frames or windows, and where they stand in the clip."""

    inputs: npt.NDArray[Any]
    resolved: ResolvedFrames


@dataclass(frozen=True)
class Refusal:
    """Why one encoder gets no inputs from a clip that decodes."""

    reason: str
    detail: str


@dataclass(frozen=True)
class DecodedClip:
    """A decoded clip: its content digest, decode record, and inputs or a refusal for each request."""

    content_sha256: str
    record: Mapping[str, Any]
    fps: float | None
    prepared: tuple[Prepared | Refusal | None, ...]
    seconds: float


def _read_source(path: Path, limits: DecodeLimits) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe or a device could wait for ever
            raise MediaError("the path is no regular file", reason="unreadable")
        with path.open("rb") as handle:
            payload = handle.read(limits.max_file_bytes + 1)
    except FileNotFoundError as error:
        raise MediaError("the file is not there", reason="missing") from error
    except OSError as error:
        raise MediaError(f"the file cannot be read ({error.strerror})", reason="unreadable") from error
    if len(payload) > limits.max_file_bytes:
        raise MediaError("the file is larger than the limit", reason="too-large")
    return payload


def _inputs_of(clip: Clip, request: DecodeRequest, resolved: ResolvedFrames) -> npt.NDArray[Any]:
    position = {int(number): at for at, number in enumerate(clip.frame_numbers)}
    windows = []
    for window in resolved.windows:
        real = [index for index in window if index >= 0]
        frames = clip.frames[[position[index] for index in real]]
        windows.append(request.preprocess(frames, n_missing=len(window) - len(real)))
    if request.unit == "frame":
        return np.concatenate(windows)
    return np.stack(windows)


def decode_clip(job: DecodeJob) -> DecodedClip:
    """Decode one clip for all its requests; the bytes that are decoded are the bytes that were hashed.

    Raises
    ------
    MediaError
        The file is missing, changed, or cannot be decoded.
    """
    began = time.perf_counter()
    limits = DecodeLimits()
    payload = _read_source(job.path, limits)
    content_sha256 = hashlib.sha256(payload).hexdigest()
    if job.sha256 is not None and content_sha256 != job.sha256:
        raise MediaError("the file is not the one that the manifest was made from", reason="source-changed")
    fps = job.fps if job.fps is not None else probe_media(payload, limits=limits).fps
    resolved: list[ResolvedFrames | Refusal | None] = []

    def select(n_frames: int) -> list[int]:
        resolved.clear()
        for request in job.requests:
            if request is None:
                resolved.append(None)
                continue
            try:
                frames = request.sampling.resolve(n_frames=n_frames, fps=fps, key_frames=job.key_frames)
            except MediaError as error:
                resolved.append(Refusal(error.reason, str(error)))
            else:
                resolved.append(frames)
        wanted = {index for entry in resolved if isinstance(entry, ResolvedFrames) for index in entry.frames}
        return sorted(wanted)

    clip = read_clip(payload, select=select, n_expected=job.n_frames, limits=limits)
    prepared: list[Prepared | Refusal | None] = []
    for request, entry in zip(job.requests, resolved, strict=True):
        if request is None or not isinstance(entry, ResolvedFrames):
            prepared.append(entry if isinstance(entry, Refusal) else None)
            continue
        prepared.append(Prepared(_inputs_of(clip, request, entry), entry))
    return DecodedClip(
        content_sha256=content_sha256,
        record=clip.record.to_dict(),
        fps=fps,
        prepared=tuple(prepared),
        seconds=time.perf_counter() - began,
    )
