"""How fast is each encoder on this device, how much memory does it take, and what does bf16 change?

Random weights in the published form, the published input size, the card's batch size. For each precision: inputs
(frames or windows) a second of the bare model on tensors that lie ready on the device, and of `Encoder.encode`, which
takes pixels from the decode workers' memory and gives vectors back; their ratio is the share of the bare model that
is kept. With --build the share that a whole build keeps, decoding MJPEG clips in worker processes and writing a set.

Windows a second of a clip encoder, frames a second of a frame encoder. Rates are of this machine at this moment;
ratios and differences carry over. Needs numpy, torch and what each model is made of; --build needs the whole package.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from random_weights import FORMS, cards, in_memory, load_random

COLUMNS = ("encoder", "unit", "precision", "batch", "bare_per_s", "encode_per_s", "kept", "peak_mib", "build_kept")
CLIP_FRAMES, CLIP_SIDE = 64, 256
PAIRS = 32  # inputs whose cosines are compared between precisions
MIB = 1 << 20


def settle(device: str) -> None:
    """Wait until the device has done what it was asked."""
    if device != "cpu":
        torch.cuda.synchronize()


def rates(steps: dict[str, Callable[[], Any]], *, n_inputs: int, seconds: float, device: str) -> dict[str, float]:
    """Inputs a second of each step, by the median of its rounds.

    The steps take turns, so that a busy machine is busy for all of them; at least two rounds (three on a GPU),
    and ``seconds`` a step. On a GPU a round is four calls, which overlap with what the host does as in a build.
    """
    calls, rounds = (1, 2) if device == "cpu" else (4, 3)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    settle(device)
    began = time.perf_counter()
    while len(taken["encode"]) < rounds or time.perf_counter() - began < seconds * len(steps):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(calls):
                step()
            settle(device)
            taken[name].append(time.perf_counter() - start)
    return {name: n_inputs * calls / median(times) for name, times in taken.items()}


def pixels(encoder: Any, count: int, *, seed: int = 0) -> np.ndarray:
    """Smooth grey inputs, each another one, with the lines that mark missing frames empty."""
    rng = np.random.default_rng(seed)
    shape = encoder.input_shape
    coarse = rng.integers(0, 256, (count, *(min(9, side) for side in shape[:-1]), 1))
    for axis, side in enumerate(shape[:-1], start=1):
        coarse = np.take(coarse, np.arange(side) * coarse.shape[axis] // side, axis=axis)
    made = np.repeat(coarse, shape[-1], axis=-1).astype(encoder.input_dtype)
    if getattr(encoder, "_marks", False):
        made[..., -1, :, :] = 0
    return np.ascontiguousarray(made)


def bare_step(encoder: Any, batch: np.ndarray) -> Callable[[], Any] | None:
    """A call of the network alone on a ready tensor; None for an encoder that is no torch tower."""
    from encoders.device import inference

    if not hasattr(encoder, "_network"):
        return None
    device, precision = encoder._device, encoder.spec.precision
    if hasattr(encoder._network, "extract_features"):  # the EfficientNet-Lites
        with inference(device, precision=precision):
            images = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float().sub_(127).div_(128)

        def features() -> None:
            with inference(device, precision=precision):
                encoder._network.extract_features(images).mean(dim=(2, 3))

        return features
    is_clip = encoder.spec.unit == "clip"
    with inference(device, precision=precision):
        ready = encoder._on_device(batch)
        images = encoder._windows(ready) if is_clip else encoder._scaled(ready)

    def step() -> None:
        with inference(device, precision=precision):
            if is_clip:
                encoder._network(images, with_steps=False)
            else:
                encoder._network(images)

    return step


def peak_mib(device: str) -> float:
    """Peak memory in MiB: allocated on a GPU, resident of this process on the CPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / MIB
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one encoder in both precisions and compare its vectors between them."""
    card = cards()[name]
    kind = "cpu" if options.device == "cpu" else "cuda"
    batch_size = options.batch_size or card.batch_size.get(kind, card.batch_size["cpu"])
    results, vectors = [], {}
    with in_memory(name) as file:
        for precision in ("float32", "bf16"):
            if precision not in card.precisions or not (card.takes_weights or precision == "float32"):
                continue
            if kind == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            encoder = load_random(name, device=options.device, precision=precision, file=file)
            load_s = time.perf_counter() - began
            if hasattr(encoder, "with_steps"):
                encoder.with_steps = False
            batch = pixels(encoder, batch_size)
            steps: dict[str, Callable[[], Any]] = {"encode": partial(encoder.encode, batch)}
            step = bare_step(encoder, batch)
            if step is not None:
                steps["bare"] = step
            measured = rates(steps, n_inputs=batch_size, seconds=options.seconds, device=options.device)
            encode, bare = measured["encode"], measured.get("bare")
            few = min(PAIRS, batch_size) if kind == "cpu" else PAIRS
            inputs = pixels(encoder, few, seed=1)
            vectors[precision] = np.concatenate(
                [encoder.encode(inputs[at : at + batch_size]).vectors for at in range(0, few, batch_size)]
            )
            results.append(
                {
                    "encoder": name,
                    "unit": {"frame": "frames", "clip": "windows"}[card.unit],
                    "precision": precision,
                    "batch": batch_size,
                    "bare_per_s": bare,
                    "encode_per_s": encode,
                    "kept": None if bare is None else encode / bare,
                    "peak_mib": peak_mib(options.device),
                    "load_s": load_s,
                    "build_kept": None,
                }
            )
            if options.build and bare is not None:
                results[-1] |= build_share(name, file, precision, bare, options)
            del encoder, step, steps
            gc.collect()
            if kind == "cuda":
                torch.cuda.empty_cache()
    if len(vectors) == 2:
        results[-1] |= difference(vectors["float32"], vectors["bf16"])
    return results


def difference(wide: np.ndarray, narrow: np.ndarray) -> dict[str, float]:
    """What bf16 changes: the largest number that moved, over the largest there is, and what it does to cosines."""
    a, b = (rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (wide, narrow))
    return {
        "bf16_max_difference": float(np.abs(wide - narrow).max()),
        "bf16_max_difference_over_largest": float(np.abs(wide - narrow).max() / np.abs(wide).max()),
        "bf16_min_cosine_to_float32": float((a * b).sum(axis=1).min()),
        "bf16_max_change_of_a_cosine": float(np.abs(a @ a.T - b @ b.T).max()),
    }


def write_clips(root: Path, count: int) -> None:
    """MJPEG clips in AVI, each another one: a disc that beats over noise."""
    import av

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:CLIP_SIDE, :CLIP_SIDE] - CLIP_SIDE / 2
    for number in range(count):
        noise = rng.integers(0, 60, (CLIP_SIDE, CLIP_SIDE), dtype=np.uint8)
        with av.open(str(root / f"clip{number:04d}.avi"), "w") as container:
            stream = container.add_stream("mjpeg", rate=30)
            stream.width = stream.height = CLIP_SIDE
            stream.pix_fmt = "yuvj420p"
            for step in range(CLIP_FRAMES):
                radius = CLIP_SIDE / 4 * (1 + 0.2 * np.sin(step / 5 + number))
                grey = np.where(x * x + y * y < radius * radius, 180, noise).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, axis=2), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def clip_folder(options: argparse.Namespace) -> tuple[Path, Any]:
    """The clips of all builds of this run and their manifest, made once."""
    from embedstore.manifest import RecipeRequest
    from manifests.folder.recipe import RECIPE

    if not hasattr(options, "clips"):
        root = Path(tempfile.mkdtemp(prefix="embedstore-clips-", dir=options.scratch))
        write_clips(root, options.build)
        options.clips = root, RECIPE.make(RecipeRequest(root=root, name="clips", n_workers=4)).manifest
    made: tuple[Path, Any] = options.clips
    return made


def build_share(
    name: str, file: Path | None, precision: str, bare: float, options: argparse.Namespace
) -> dict[str, Any]:
    """The share of the bare model's rate that a build keeps, from its first to its last clip."""
    from embedstore.build.run import BuildRequest, Progress, build_sets
    from embedstore.store import Store

    root, manifest = clip_folder(options)
    marks: dict[str, float] = {}
    progress = Progress(
        begin=lambda label, total: marks.update(began=time.perf_counter()),
        clip=lambda clip_id, reason: marks.update(ended=time.perf_counter()),
    )
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        store = Store.create(Path(folder) / "store")
        store.add_manifest(manifest, root=root)
        request = BuildRequest(
            encoders=(name,),
            weights={} if file is None else {name: file},
            device=options.device,
            precision=precision,
            batch_size=options.batch_size,
            n_workers=options.workers,
        )
        began = time.perf_counter()
        (outcome,) = build_sets(store, request, progress=progress)
        whole_s = time.perf_counter() - began
        built = store.open_set(outcome.set_id or "")
        windows = built.array("windows") if built.spec.unit == "clip" else None
        n_inputs = outcome.n_frames if windows is None else windows.shape[0]
        clips = outcome.n_ok
    seconds = marks["ended"] - marks["began"]
    return {
        "build_kept": n_inputs / seconds / bare,
        "build_clips": clips,
        "build_inputs_per_s": n_inputs / seconds,
        "build_clips_per_s": clips / seconds,
        "build_with_load_and_commit_s": whole_s,
    }


def row(result: dict[str, Any]) -> str:
    """A line of the table."""

    def shown(key: str) -> str:
        value = result.get(key)
        if value is None:
            return "-"
        if key in ("kept", "build_kept"):
            return f"{100 * value:.0f} %"
        return f"{value:.1f}" if isinstance(value, float) else str(value)

    return "".join(f"{shown(key):<20}" if key == "encoder" else f"{shown(key):>13}" for key in COLUMNS)


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def in_child(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure in a process of its own, whose peak memory is the encoder's."""
    command = [sys.executable, __file__, "--child", "--encoder", name, "--device", "cpu"]
    command += ["--seconds", str(options.seconds), "--build", str(options.build)]
    command += [] if options.batch_size is None else ["--batch-size", str(options.batch_size)]
    command += [] if options.workers is None else ["--workers", str(options.workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    measured: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return measured


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="append", help="a name; repeatable [default: all registered]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement [default: 1]")
    parser.add_argument("--batch-size", type=int, help="[default: the card's for the device]")
    parser.add_argument("--build", type=int, default=0, metavar="CLIPS", help="also build a set of so many clips")
    parser.add_argument("--workers", type=int, help="decode processes of a build [default: cores - 1]")
    parser.add_argument("--budget", type=float, help="seconds after which no further encoder is begun")
    parser.add_argument("--scratch", default=None, help="folder for clips and stores, e.g. /dev/shm")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.encoder or ()) - set(cards())
    if unknown:
        parser.error(f"unknown encoder {sorted(unknown)[0]!r}; known: {', '.join(cards())}")
    return options


def main() -> int:
    """Print a table, write JSON; return 1 where an encoder that is asked for by name could not be measured."""
    options = parse()
    if options.child:
        print(json.dumps(measure(options.encoder[0], options)))
        return 0
    began, results, skipped = time.perf_counter(), [], {}
    print(json.dumps(machine(options.device)), flush=True)
    print("".join(f"{key:<20}" if key == "encoder" else f"{key:>13}" for key in COLUMNS), flush=True)
    for name in options.encoder or [name for name in cards() if name in FORMS or name == "pixel-stats"]:
        if options.budget is not None and time.perf_counter() - began > options.budget:
            skipped[name] = "the budget of time is used up"
            continue
        try:
            measured = in_child(name, options) if options.device == "cpu" else measure(name, options)
        # An encoder whose library is not here, or that does not fit, is a line of the report and not its end.
        except Exception as error:  # noqa: BLE001
            skipped[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{name:<20} skipped: {skipped[name]}", flush=True)
            continue
        results += measured
        for result in measured:
            print(row(result), flush=True)
        if options.json is not None:
            written = {"machine": machine(options.device), "results": results, "skipped": skipped}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(written, indent=2) + "\n")
    print("\nbf16 against float32           max |d| / max |v|   min cosine   max change of a cosine")
    for result in results:
        if "bf16_min_cosine_to_float32" in result:
            print(
                f"{result['encoder']:<30} {result['bf16_max_difference_over_largest']:>17.5f} "
                f"{result['bf16_min_cosine_to_float32']:>12.6f} {result['bf16_max_change_of_a_cosine']:>24.6f}"
            )
    print(f"{time.perf_counter() - began:.0f} s in all; not measured: {', '.join(skipped) or 'none'}")
    return int(bool(options.encoder and skipped))


if __name__ == "__main__":
    sys.exit(main())
