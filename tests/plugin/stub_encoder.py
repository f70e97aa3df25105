"""An encoder package as a lab would write one: two small encoders without torch, found by entry point."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

import numpy as np

from embedstore.encoder import Encoded, EncoderCard, LoadRequest, Preprocess, Variant
from embedstore.spec import EncoderSpec, FrameSampling


def shrink(frames: np.ndarray, *, n_missing: int = 0) -> np.ndarray:
    """Eight by eight means of the grey images."""
    grey = frames.astype(np.float32).mean(axis=3)
    height, width = grey.shape[1] // 8 * 8, grey.shape[2] // 8 * 8
    return grey[:, :height, :width].reshape(len(grey), 8, height // 8, 8, width // 8).mean(axis=(2, 4))


def shrink_or_break(frames: np.ndarray, *, n_missing: int = 0) -> np.ndarray:
    """`shrink`, but for clips of one grey: a worker dies of 40, hangs on 80, and asks for all memory on 120."""
    grey = int(round(float(frames.mean())))
    if frames.std() < 3:
        if abs(grey - 40) < 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif abs(grey - 80) < 5:
            time.sleep(1000)
        elif abs(grey - 120) < 5:
            np.ones(1 << 40)
    return shrink(frames, n_missing=n_missing)


def shrink_window(frames: np.ndarray, *, n_missing: int = 0) -> np.ndarray:
    """A window of such images; missing frames are zero."""
    return np.concatenate([shrink(frames), np.zeros((n_missing, 8, 8), np.float32)])


@dataclass
class StubEncoder:
    """A fixed random projection; remembers the batch sizes it was called with."""

    spec: EncoderSpec
    input_shape: tuple[int, ...] = (8, 8)
    input_dtype: str = "float32"
    preprocess: Preprocess = shrink
    batches: list[int] = field(default_factory=list)

    def encode(self, batch: np.ndarray) -> Encoded:
        self.batches.append(len(batch))
        weights = np.random.default_rng(7).standard_normal((64, self.spec.clip_dim)).astype(np.float32)
        rows = (batch.reshape(len(batch), -1, 64) / 255.0) @ weights
        if self.spec.unit == "frame":
            return Encoded(rows[:, 0])
        return Encoded(rows.mean(axis=1), rows.reshape(len(batch), 2, -1, rows.shape[-1]).mean(axis=2))


def load(request: LoadRequest) -> StubEncoder:
    """Loader named by both cards."""
    if request.spec.unit == "clip":
        return StubEncoder(request.spec, input_shape=(4, 8, 8), preprocess=shrink_window)
    return StubEncoder(request.spec)


STUB = EncoderCard(
    name="stub",
    summary="A fixed random projection of frames, for tests.",
    unit="frame",
    clip_dim=12,
    frame_dim=12,
    loader="stub_encoder:load",
    preprocessing={"shrink": 8},
    input_size=(8, 8),
    variants={
        "published": Variant(FrameSampling("uniform:4")),
        "every": Variant(FrameSampling("all")),
        "ed": Variant(FrameSampling("keyframe:ed")),
    },
    batch_size={"cpu": 5},
)
STUB_CLIP = EncoderCard(
    name="stub-clip",
    summary="A fixed random projection of windows, for tests.",
    unit="clip",
    clip_dim=12,
    frame_dim=12,
    loader="stub_encoder:load",
    preprocessing={"shrink": 8},
    input_size=(4, 8, 8),
    variants={"published": Variant(FrameSampling("consecutive:4", n_windows=3, padding="zero"))},
    pooling="mean",
    batch_size={"cpu": 3},
)
