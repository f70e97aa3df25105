"""One `Encoder` round any clip tower: windows of frames in, a vector a window out, and steps inside it when asked.

A window travels from the decode worker as uint8, a quarter of the bytes of float32. Where a model pads short clips
with zeros *after* scaling by mean and deviation, a black frame would be something else, so a line below each frame
says whether the frame is missing, and the encoder puts the zeros in.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from embedstore.encoder import Encoded
from embedstore.errors import ContentError, MediaError, UnknownNameError
from embedstore.spec import EncoderSpec, FrameSampling
from encoders.preprocess import Frames, Pipeline
from encoders.tower_encoder import TowerEncoder

if TYPE_CHECKING:
    import torch

__all__ = ["ClipEncoder", "ClipTower", "WindowPipeline", "check_window"]

_LONG_CLIP = 100_000  # frames: more than any rule asks for
_MISSING = 255


class ClipTower(Protocol):
    """A `torch.nn.Module` that encodes windows."""

    def __call__(self, windows: torch.Tensor, *, with_steps: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode windows.

        Parameters
        ----------
        windows : (B, 3, T, H, W) float32
            Scaled by mean and deviation; a tower whose library wants another order permutes.
        with_steps : bool
            Whether steps are wanted; where they cost a second pass, it is made only then.

        Returns
        -------
        (B, D), (B, S, D') or None
            A vector a window, and its time-resolved vectors; S divides T.
        """


@dataclass(frozen=True)
class WindowPipeline:
    """The geometry of one window, and the mark of its missing frames: the `Preprocess` of clip encoders.

    Parameters
    ----------
    pipeline : Pipeline
    marks_missing : bool
        Whether frames may be missing: then each frame has one line more below it, 255 for a missing frame, else 0.

    Examples
    --------
    >>> whole = WindowPipeline(Pipeline(()), marks_missing=True)
    >>> window = whole(np.ones((2, 4, 6, 3), dtype=np.uint8), n_missing=1)
    >>> window.shape, window[:, -1, 0, 0].tolist()
    ((3, 5, 6, 3), [0, 0, 255])
    """

    pipeline: Pipeline
    marks_missing: bool

    def __call__(self, frames: Frames, *, n_missing: int = 0) -> npt.NDArray[Any]:
        """Prepare one window.

        Parameters
        ----------
        frames : (T - n_missing, H, W, 3) uint8
            RGB frames in the order of the window.
        n_missing : int
            Frames that the clip lacks at the window's end.

        Returns
        -------
        (T, side, side, 3) or, with marks, (T, side + 1, side, 3), uint8 or float32

        Raises
        ------
        MediaError
            The frames are no RGB frames (``bad-frames``), or too small for a crop (``too-small``).
        ContentError
            Frames are missing where the model pads with none.
        """
        made = self.pipeline(frames)
        if not self.marks_missing:
            if n_missing:
                raise ContentError(
                    f"{n_missing} frames of a window are missing, and this encoder fills none with zeros"
                )
            return made
        n_real, height = made.shape[:2]
        window = np.zeros((n_real + n_missing, height + 1, *made.shape[2:]), dtype=made.dtype)
        window[:n_real, :height] = made
        window[n_real:, height] = _MISSING
        return window


def check_window(spec: EncoderSpec, *, n_frames: int) -> FrameSampling:
    """Refuse a sampling rule whose windows are not what the model takes; return it.

    Parameters
    ----------
    spec : EncoderSpec
    n_frames : int
        Frames of a window of the model.

    Raises
    ------
    UnknownNameError
        The rule gives windows of another length, or short clips are not filled.
    """
    sampling = spec.sampling
    if sampling is None:
        raise UnknownNameError(f"{spec.title} has no sampling rule; it takes windows of {n_frames} frames")
    found: int | None = None
    with suppress(MediaError):  # key frames: as many as a clip happens to have
        found = len(sampling.resolve(n_frames=_LONG_CLIP, fps=1.0).windows[0])
    if found != n_frames:
        raise UnknownNameError(
            f"sampling {sampling.rule!r} does not fit {spec.title}, which takes windows of {n_frames} frames; "
            f"use e.g. consecutive:{n_frames}, stride:2x{n_frames} or uniform:{n_frames}"
        )
    if sampling.padding == "none":
        raise UnknownNameError(f"sampling {sampling.rule!r} of {spec.title} does not say how short clips are filled")
    return sampling


class ClipEncoder(TowerEncoder):
    """A loaded clip tower; `encode` scales the pixels, fills missing frames with zeros and runs it.

    Parameters
    ----------
    tower : ClipTower
        A torch module.
    spec : EncoderSpec
        Its ``preprocessing`` is what `encoders.published_card.pixel_record` returns.
    device : torch.device
    n_frames, side : int
        Frames of a window, and their height and width.
    frame_kind : {"tubelet", "frame"}
        What a step stands for: tokens of a window, which have seen its other frames, or one frame alone. Steps of
        frames alone are stored once a frame, though windows overlap.

    Attributes
    ----------
    input_shape : tuple of int
        ``(n_frames, side, side, 3)``, with a line more a frame where the model pads with zeros.
    with_steps : bool
        Whether `encode` gives steps. The build switches it off for ``--no-frames``, which spares a second pass where
        steps need one.

    Raises
    ------
    UnknownNameError
        The spec's sampling gives other windows than the model takes.
    EnvironmentFailure
        The device's memory does not hold the weights.
    """

    unit = "windows"

    def __init__(
        self,
        tower: torch.nn.Module,
        *,
        spec: EncoderSpec,
        device: torch.device,
        n_frames: int,
        side: int,
        frame_kind: str = "tubelet",
    ) -> None:
        sampling = check_window(spec, n_frames=n_frames)
        super().__init__(tower, spec=spec, device=device)
        self._marks = sampling.padding == "zero"
        self.input_shape = (n_frames, side + self._marks, side, 3)
        self.preprocess = WindowPipeline(self._pipeline, self._marks)
        self.frame_kind = frame_kind
        self.with_steps = spec.frame_dim is not None

    def encode(self, batch: npt.NDArray[Any]) -> Encoded:
        """Encode windows.

        On a CPU they run one after another: a window keeps all cores busy by itself, and its bits then cannot
        depend on the batch.

        Parameters
        ----------
        batch : (B, *input_shape) uint8 or float32
            Windows as `preprocess` gives them, grey levels 0 to 255.

        Returns
        -------
        Encoded
            ``vectors`` of shape (B, D), and ``steps`` of shape (B, S, D') where `with_steps` is set.

        Raises
        ------
        ContentError
            The batch has another shape or dtype.
        MemoryError
            The device's memory does not hold the batch.
        """
        from encoders.device import inference

        self._check(batch)
        size = 1 if self._device.type == "cpu" else len(batch)
        vectors, steps = [], []
        for start in range(0, len(batch), size):
            with inference(self._device, precision=self.spec.precision):
                made, inside = self._network(
                    self._windows(self._on_device(batch[start : start + size])), with_steps=self.with_steps
                )
                vectors.append(self._finished(made).cpu().numpy())
                if inside is not None and self.with_steps:
                    steps.append(inside.float().cpu().numpy())
        return Encoded(vectors=np.concatenate(vectors), steps=np.concatenate(steps) if steps else None)

    def _windows(self, pixels: torch.Tensor) -> torch.Tensor:
        if not self._marks:
            return self._scaled(pixels)
        missing = pixels[:, :, -1, 0, 0] > 0
        return self._scaled(pixels[:, :, :-1]).masked_fill_(missing[:, None, :, None, None], 0.0)
