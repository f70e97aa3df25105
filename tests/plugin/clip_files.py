"""Small folders of clips, written by the tests themselves."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_avi(path: Path, frames: np.ndarray, *, fps: int = 30) -> None:
    """Write (T, H, W, 3) uint8 frames as MJPEG in AVI."""
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


def write_clip_folder(
    parent: Path, n_patients: int = 4, *, clips_each: int = 2, n_frames: int = 12, name: str = "clips"
) -> Path:
    """Write a folder of clips and, beside it, its table; return the folder."""
    root = parent / name
    lines = ["clip_id,patient_id,split,lvef_pct"]
    for patient in range(n_patients):
        for clip in range(clips_each):
            clip_id = f"p{patient:02d}-c{clip}"
            write_avi(root / f"{clip_id}.avi", moving_frames(patient * 10 + clip, n_frames=n_frames + patient % 3))
            split = ("train", "val", "test")[patient % 3]
            lines.append(f"{clip_id},p{patient:02d},{split},{30 + 3 * patient}")
    (parent / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return root
