"""Fixtures that several folders share: a separate encoder package, and small folders of clips."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))
os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])])
# Before torch is imported: waiting threads must not spin while two test processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def _no_store_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDSTORE", raising=False)


def write_avi(path: Path, frames: np.ndarray, *, fps: int = 30) -> None:
    """Write (T, H, W, 3) uint8 frames as MJPEG in AVI."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuvj420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def moving_frames(seed: int, *, n_frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A bright disc that moves over noise: (T, H, W, 3) uint8, another one for each seed."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 60, (height, width))
    y, x = np.mgrid[:height, :width]
    frames = []
    for step in range(n_frames):
        phase = 2 * np.pi * (step / n_frames + rng.random() * 0.01)
        disc = (y - height / 2 - 8 * np.sin(phase)) ** 2 + (x - width / 2 - seed % 7) ** 2 < (8 + seed % 5) ** 2
        grey = np.clip(noise + 150 * disc, 0, 255).astype(np.uint8)
        frames.append(np.repeat(grey[..., None], 3, axis=2))
    return np.stack(frames)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a folder of clips and its table, and returns the folder."""

    def write(n_patients: int = 4, *, clips_each: int = 2, n_frames: int = 12, name: str = "clips") -> Path:
        root = tmp_path / name
        lines = ["clip_id,patient_id,split,lvef_pct"]
        for patient in range(n_patients):
            for clip in range(clips_each):
                clip_id = f"p{patient:02d}-c{clip}"
                seed = patient * 10 + clip
                write_avi(root / f"{clip_id}.avi", moving_frames(seed, n_frames=n_frames + patient % 3))
                split = ("train", "val", "test")[patient % 3]
                lines.append(f"{clip_id},p{patient:02d},{split},{30 + 3 * patient}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        return root

    return write
