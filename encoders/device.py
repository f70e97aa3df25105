"""Where a model runs and in which precision, without touching torch's global settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from embedstore.errors import EnvironmentFailure, MissingExtraError, TooLittleMemoryError, UnknownNameError

if TYPE_CHECKING:
    import torch

__all__ = ["check_memory", "free_bytes", "inference", "pick_device"]

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")  # of a container, cgroup v2
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
    """Return how many bytes a device has free, or None where it does not say.

    On CUDA what torch holds in reserve and does not use counts as free; on the CPU the limit of a container counts.
    """
    import torch

    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    if device.type != "cpu":
        return None
    found = [_available(_MEMINFO), _left_in_group(_GROUP)]
    return min((count for count in found if count is not None), default=None)


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_group(group: Path) -> int | None:
    """Return what a container's memory limit leaves: limit less usage, of which cached files can be dropped."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
        return None if limit == "max" else max(0, int(limit) - used + cached)
    except (OSError, ValueError):
        return None


def check_memory(device: torch.device, *, needed: int, name: str) -> None:
    """Refuse to load a model that a device cannot hold.

    Parameters
    ----------
    device : torch.device
    needed : int
        Bytes that loading the model takes there.
    name : str
        What to call the model in the error.

    Raises
    ------
    TooLittleMemoryError
        Less is free.
    """
    free = free_bytes(device)
    if free is not None and free < needed:
        raise TooLittleMemoryError(
            f"{name} needs {needed / _GIB:.1f} GiB of memory on {device} to be loaded, and "
            f"{free / _GIB:.1f} GiB are free; use another device or free some",
            needed=needed,
        )
