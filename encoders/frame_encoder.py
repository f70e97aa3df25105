"""One `Encoder` round any image tower: frames in, a vector a frame out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from embedstore.encoder import Encoded
from embedstore.spec import EncoderSpec
from encoders.tower_encoder import TowerEncoder

if TYPE_CHECKING:
    import torch

__all__ = ["FrameEncoder"]


class FrameEncoder(TowerEncoder):
    """A loaded image tower; `encode` scales the pixels, runs it and normalises as the spec says.

    Attributes
    ----------
    spec : EncoderSpec
    input_shape : tuple of int
        ``(side, side, 3)``.
    input_dtype : str
        ``uint8``, or ``float32`` where the published pipeline does not round.
    preprocess : Pipeline
    device : str
    """

    unit = "frames"

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        spec: EncoderSpec,
        device: torch.device,
        side: int,
        channels_last: bool = False,
    ) -> None:
        super().__init__(network, spec=spec, device=device, channels_last=channels_last)
        self.input_shape = (side, side, 3)
        self.preprocess = self._pipeline

    def encode(self, batch: npt.NDArray[Any]) -> Encoded:
        """Encode frames.

        Parameters
        ----------
        batch : (B, side, side, 3) uint8 or float32
            Frames as `preprocess` gives them, grey levels 0 to 255.

        Returns
        -------
        Encoded
            ``vectors`` of shape (B, D), of length one where the authors normalise.

        Raises
        ------
        ContentError
            The batch has another shape or dtype.
        MemoryError
            The device's memory does not hold the batch.
        """
        from encoders.device import inference

        self._check(batch)
        with inference(self._device, precision=self.spec.precision):
            vectors = self._finished(self._network(self._scaled(self._on_device(batch))))
        return Encoded(vectors=vectors.cpu().numpy())
