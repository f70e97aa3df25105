"""Where a model runs and in which precision, without touching torch's global settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from embedstore.errors import EnvironmentFailure, MissingExtraError, UnknownNameError

if TYPE_CHECKING:
    import torch

__all__ = ["inference", "pick_device"]


def pick_device(name: str) -> torch.device:
    """Return the torch device of that name; ``auto`` picks cuda where there is one, else cpu.

    A loader calls it first, so that a machine without torch is told so in one sentence.

    Raises
    ------
    MissingExtraError
        torch is not installed.
    UnknownNameError
        torch knows no such device.
    EnvironmentFailure
        The device is not on this machine.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "running an encoder needs the package torch, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        ) from error
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnknownNameError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentFailure(
            f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu"
        )
    return device


@contextmanager
def inference(device: torch.device, *, precision: str) -> Iterator[None]:
    """Run a forward without gradients, in ``float32`` or under autocast to ``bf16``.

    On CUDA ``float32`` means float32: torch would let convolutions use TF32, with ten bits of mantissa. The settings
    hold inside the block only.
    """
    import torch

    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield
