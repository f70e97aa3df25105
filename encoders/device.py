"""Where a model runs and in which precision, without touching torch's global settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from embedstore.errors import EnvironmentFailure, MissingExtraError, UnknownNameError

if TYPE_CHECKING:
    import torch

__all__ = ["check_memory", "free_bytes", "inference", "pick_device"]

_MEMINFO = Path("/proc/meminfo")
_GIB = 2**30


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

    Raises
    ------
    MemoryError
        The device's memory does not hold the batch.
    """
    import torch

    try:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
        ):
            yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"device {device} is out of memory") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # c10/core/impl/alloc_cpu.cpp
            raise
        raise MemoryError("the machine is out of memory") from error


def free_bytes(device: torch.device) -> int | None:
    """Return how many bytes a device has free, or None where it does not say."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and _MEMINFO.exists():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def check_memory(device: torch.device, *, needed: int, name: str) -> None:
    """Refuse to load a model that a device cannot hold.

    Parameters
    ----------
    device : torch.device
    needed : int
        Bytes of the model's weights there.
    name : str
        What to call the model in the error.

    Raises
    ------
    EnvironmentFailure
        Less is free.
    """
    free = free_bytes(device)
    if free is not None and free < needed:
        raise EnvironmentFailure(
            f"{name} needs {needed / _GIB:.1f} GiB of memory on {device} for its weights alone, and "
            f"{free / _GIB:.1f} GiB are free; use another device or free some"
        )
