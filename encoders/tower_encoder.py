"""What the encoders round frame towers and round clip towers share: device, precision, scaling of the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError
from embedstore.spec import EncoderSpec
from encoders.preprocess import Pipeline

if TYPE_CHECKING:
    import torch

__all__ = ["TowerEncoder"]


class TowerEncoder:
    """A tower on its device, in evaluation mode and float32, and the numbers that scale its pixels.

    Parameters
    ----------
    network : torch.nn.Module
    spec : EncoderSpec
        Its ``preprocessing`` is what `encoders.published_card.pixel_record` returns.
    device : torch.device
    channels_last : bool
        Whether the weights and images lie with the channels last, which some towers run faster on.

    Attributes
    ----------
    spec : EncoderSpec
    input_dtype : str
        ``uint8``, or ``float32`` where the published pipeline does not round.
    device : str

    Raises
    ------
    EnvironmentFailure
        The device's memory does not hold the weights.
    """

    input_shape: tuple[int, ...]
    unit: str

    def __init__(
        self, network: torch.nn.Module, *, spec: EncoderSpec, device: torch.device, channels_last: bool = False
    ) -> None:
        import torch

        from encoders.device import check_memory

        self.spec = spec
        self.device = str(device)
        self._device = device
        if device.type != "cpu":
            needed = sum(part.numel() * 4 for part in network.parameters())
            check_memory(device, needed=needed, name=spec.title)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._network: Any = network.eval().requires_grad_(False).float().to(device).to(memory_format=self._layout)
        self._pipeline = Pipeline.from_records(spec.preprocessing["steps"])
        self.input_dtype = self._pipeline.dtype
        self._scale = float(spec.preprocessing["scale"])
        self._mean = _per_channel(spec.preprocessing["mean"], device=device)
        self._std = _per_channel(spec.preprocessing["std"], device=device)
        self._normalise = spec.preprocessing["vectors"] == "l2"

    def _check(self, batch: npt.NDArray[Any]) -> None:
        """Refuse a batch of another shape or dtype."""
        if batch.shape[1:] != self.input_shape or batch.dtype != np.dtype(self.input_dtype):
            raise ContentError(
                f"{self.spec.title} takes (B, {', '.join(map(str, self.input_shape))}) {self.input_dtype} "
                f"{self.unit}, got {batch.shape} {batch.dtype}"
            )

    def _on_device(self, batch: npt.NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self._device)

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``(B, 3, ...)`` float32 images of ``(B, ..., 3)`` grey levels, scaled by mean and deviation."""
        import torch

        levels = pixels.movedim(-1, 1).to(torch.float32, memory_format=self._layout, copy=True)
        shape = (1, 3, *(1,) * (levels.ndim - 2))
        return levels.div_(self._scale).sub_(self._mean.reshape(shape)).div_(self._std.reshape(shape))

    def _finished(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors in float32, of length one where the authors normalise."""
        import torch

        vectors = vectors.float()
        return torch.nn.functional.normalize(vectors, dim=-1) if self._normalise else vectors


def _per_channel(numbers: Sequence[float], *, device: torch.device) -> torch.Tensor:
    import torch

    return torch.tensor(list(numbers), dtype=torch.float32, device=device)
