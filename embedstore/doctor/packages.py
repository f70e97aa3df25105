"""Python, the packages, and what torch says of itself and its devices: asked in a process of its own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedstore.doctor.finding import Finding, gib

__all__ = ["TorchProbe", "check_packages", "check_python", "check_torch", "host_free_bytes", "probe_torch"]

TorchProbe = Mapping[str, Any]

_OLDEST_PYTHON = (3, 11)
# Below it torch.load can be made to run code or to damage memory: CVE-2025-32434, CVE-2026-24747.
_OLDEST_TORCH = (2, 10)
_PROBE_TIMEOUT_S = 120.0
_INSTALL = "pip install -c constraints.txt 'embedstore[build]'"
_CORE = ("numpy", "zarr", "pyarrow", "pydantic", "scikit-learn", "faiss-cpu")
_BUILD = {
    "open_clip_torch": "echo-clip, echo-clip-r, biomedclip and clip",
    "timm": "echo-clip, echo-clip-r and biomedclip",
    "transformers": "no encoder by itself, but open_clip's text towers",
    "tokenizers": "the text towers of biomedclip, siglip2 and medsiglip",
    "safetensors": "every checkpoint in .safetensors",
    "huggingface_hub": "fetching weights from the hub",
    "efficientnet_lite_pytorch": "efficientnet-lite0 to -lite2",
}
_MEMINFO = Path("/proc/meminfo")
_DRIVER = Path("/proc/driver/nvidia/version")

_PROBE = """
import json
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["cuda_build"] = torch.version.cuda
    found["devices"] = []
    for at in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(at)
        found["devices"].append({"name": torch.cuda.get_device_name(at), "free": free, "total": total})
        (torch.ones(8, device=f"cuda:{at}") * 2).sum().item()
except Exception as error:
    found["torch_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
if "torch" in found:
    try:
        import torchvision
        found["torchvision"] = torchvision.__version__
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1], [8.0, 8.0, 9.0, 9.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
        if kept != [0, 2]:
            found["torchvision_error"] = f"nms keeps {kept} instead of [0, 2]"
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            found["torchvision_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    except Exception as error:
        found["torchvision_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(found))
"""


def check_python() -> Finding:
    """Look at the interpreter."""
    found = platform.python_version()
    facts = {"version": found, "platform": f"{platform.system()} {platform.machine()}"}
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return Finding(
            area="python",
            name="python",
            status="problem",
            message=f"Python {found} is too old; install 3.11 or newer",
            facts=facts,
        )
    return Finding(area="python", name="python", status="ok", message=f"{found} on {facts['platform']}", facts=facts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_packages() -> Iterator[Finding]:
    """Look for the packages of the core and of the extra [build]."""
    core = {package: _version(package) for package in _CORE}
    absent = [package for package, found in core.items() if found is None]
    yield Finding(
        area="packages",
        name="core",
        status="problem" if absent else "ok",
        message=f"{', '.join(absent)} not installed; run: pip install embedstore"
        if absent
        else ", ".join(f"{package} {found}" for package, found in core.items()),
        facts=core,
    )
    for package, needed_for in _BUILD.items():
        found = _version(package)
        yield Finding(
            area="packages",
            name=package,
            status="note" if found is None else "ok",
            message=f"not installed, needed for {needed_for}; run: {_INSTALL}" if found is None else found,
            facts={"version": found},
        )


def probe_torch(timeout_s: float = _PROBE_TIMEOUT_S) -> TorchProbe:
    """Import torch and torchvision in another process, and return what they say, or how it ended.

    Returns
    -------
    mapping
        ``torch``, ``torchvision``, ``cuda_build``, ``devices`` (name, free and total bytes), ``torch_error``,
        ``torchvision_error``; empty where torch is not installed.
    """
    if find_spec("torch") is None:
        return {}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"torch_error": f"importing it takes more than {timeout_s:.0f} s"}
    lines = done.stdout.strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"torch_error": f"importing it ends the process with code {done.returncode} ({last})"}
    return found


def check_torch(probe: TorchProbe) -> Iterator[Finding]:
    """Judge torch, its pairing with torchvision, and the device that ``--device auto`` would take."""
    if not probe:
        yield Finding(
            area="packages",
            name="torch",
            status="note",
            message=f"not installed: evaluation works, builds do not; run: {_INSTALL}",
        )
        yield _host_memory()
        return
    if "torch_error" in probe:
        yield Finding(
            area="packages",
            name="torch",
            status="problem",
            message=f"cannot be used ({probe['torch_error']}); reinstall the pair with: {_INSTALL}",
            facts=dict(probe),
        )
        yield _host_memory()
        return
    yield _torch(str(probe["torch"]))
    yield _torchvision(probe)
    yield from _devices(probe)
    yield _host_memory()


def _torch(found: str) -> Finding:
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdecimal())
    if numbers < _OLDEST_TORCH:
        message = (
            f"{found} has known holes in how it opens checkpoints (CVE-2025-32434, CVE-2026-24747); install 2.10 or "
            f"newer: {_INSTALL}"
        )
        return Finding(area="packages", name="torch", status="problem", message=message, facts={"version": found})
    return Finding(area="packages", name="torch", status="ok", message=found, facts={"version": found})


def _torchvision(probe: TorchProbe) -> Finding:
    found, error = probe.get("torchvision"), probe.get("torchvision_error")
    facts = {"version": found, "torch": probe["torch"], "error": error}
    if error is not None:
        return Finding(
            area="packages",
            name="torchvision",
            status="problem",
            message=f"{_version('torchvision')} does not work with torch {probe['torch']} ({error}): they are not of "
            f"one pair; install both in one command: {_INSTALL}",
            facts=facts,
        )
    if found is None:
        return Finding(
            area="packages",
            name="torchvision",
            status="note",
            message=f"not installed, needed for panecho, echoprime and mobilenet-v2; run: {_INSTALL}",
            facts=facts,
        )
    return Finding(
        area="packages",
        name="torchvision",
        status="ok",
        message=f"{found}, of one pair with torch {probe['torch']} (its operator nms works)",
        facts=facts,
    )


def _devices(probe: TorchProbe) -> Iterator[Finding]:
    devices = probe.get("devices", [])
    for at, device in enumerate(devices):
        yield Finding(
            area="device",
            name=f"cuda:{at}",
            status="ok",
            message=f"{device['name']}, {gib(device['free'])} of {gib(device['total'])} free",
            facts=device,
        )
    if devices:
        return
    if _DRIVER.exists():
        built = f"for CUDA {probe['cuda_build']}" if probe.get("cuda_build") else "without CUDA"
        yield Finding(
            area="device",
            name="cuda",
            status="problem",
            message=f"an NVIDIA driver is here, but torch (built {built}) sees no device; install the pair of torch "
            "and torchvision built for this driver's CUDA version, or build with --device cpu",
            facts={"cuda_build": probe.get("cuda_build")},
        )
    else:
        yield Finding(
            area="device",
            name="cuda",
            status="note",
            message="no CUDA device: builds run on the CPU, which takes seconds a clip for the large models",
        )


def host_free_bytes() -> int | None:
    """Return the memory that programs can still take on this machine, None where it does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _host_memory() -> Finding:
    free = host_free_bytes()
    message = "this system does not say how much memory is free" if free is None else f"{gib(free)} of memory free"
    return Finding(
        area="device", name="cpu", status="note" if free is None else "ok", message=message, facts={"free": free}
    )
