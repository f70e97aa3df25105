"""How long do 20,000 clips take to a manifest, against `sha256sum` over the same files?

A folder in the layout of EchoNet-Dynamic with small videos, in the page cache. Made: tables read, every file hashed
and looked into, the manifest written; checked: read back, rules and published counts. `sha256sum` only hashes, in one
process; hashing apart is this program's own in one process. Ratios; seconds are of this machine at this moment.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import Case, machine, time_rounds

from embedstore.files import hash_file
from embedstore.manifest import Manifest, RecipeRequest, find_notes, get_recipe
from embedstore.media.survey import survey_files

RECIPE = "echonet-dynamic"
N_DISTINCT = 16  # encoded videos; each file gets a chunk of its own, so that all contents differ


def encode_video(seed: int, path: Path) -> bytes:
    """Return a small MJPEG AVI: 8 frames of 64 x 64."""
    import av

    rng = np.random.default_rng(seed)
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=50)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        for _ in range(8):
            picture = np.repeat(rng.integers(0, 255, (64, 64, 1), dtype=np.uint8), 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def write_layout(root: Path, n_clips: int) -> int:
    """Write the data set; return the bytes of its videos."""
    (root / "Videos").mkdir(parents=True)
    videos = [encode_video(seed, root / "seed.avi") for seed in range(N_DISTINCT)]
    (root / "seed.avi").unlink()
    lines, n_bytes = ["FileName,EF,FPS,NumberOfFrames,Split\n"], 0
    for number in range(n_clips):
        payload = videos[number % N_DISTINCT] + b"JUNK" + struct.pack("<IQ", 8, number)
        (root / "Videos" / f"0X{number:08X}.avi").write_bytes(payload)
        lines.append(f"0X{number:08X},{30 + number % 40},50,8,{('TRAIN', 'VAL', 'TEST')[number % 3]}\n")
        n_bytes += len(payload)
    (root / "FileList.csv").write_text("".join(lines))
    return n_bytes


def check(file: Path) -> None:
    """Read a manifest and ask its rules and counts, as `embedstore manifest check` does."""
    made = Manifest.read(file)
    assert not made.problems()
    find_notes(made)


def measure(n_clips: int, *, rounds: int) -> dict[str, Any]:
    """Time each part in turns."""
    work = Path(tempfile.mkdtemp(prefix="embedstore-bench-"))
    n_workers = len(os.sched_getaffinity(0))
    try:
        n_bytes = write_layout(work / "full", n_clips)
        (work / "tables").mkdir()
        shutil.copy(work / "full" / "FileList.csv", work / "tables")
        paths = sorted((work / "full" / "Videos").iterdir())
        file = work / "manifest.parquet"

        def make(root: str) -> None:
            get_recipe(RECIPE).make(RecipeRequest(root=work / root, n_workers=n_workers)).manifest.write(file)

        def sha256sum() -> None:
            names = "\0".join(map(str, paths)).encode()
            subprocess.run(["xargs", "-0", "sha256sum"], input=names, stdout=subprocess.DEVNULL, check=True)

        cases = {
            "sha256sum": Case(sha256sum),
            "made": Case(lambda: make("full")),
            "files_hashed_and_looked_into": Case(lambda: survey_files(paths, n_workers=n_workers)),
            "files_hashed_only": Case(lambda: [hash_file(path) for path in paths]),
            "tables_only": Case(lambda: make("tables")),
            "checked": Case(lambda: check(file), before=lambda: None if file.exists() else make("full")),
        }
        seconds = time_rounds(cases, rounds=rounds)
        return {
            "clips": n_clips,
            "mib": round(n_bytes / 2**20, 1),
            "workers": n_workers,
            **{f"{name}_s": round(taken, 2) for name, taken in seconds.items()},
            "made_over_sha256sum": round(seconds["made"] / seconds["sha256sum"], 2),
            "made_and_checked_over_sha256sum": round(
                (seconds["made"] + seconds["checked"]) / seconds["sha256sum"], 2
            ),
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "manifest_speed.json")
    options = parser.parse_args()
    result = measure(options.clips, rounds=options.rounds)
    for name, value in result.items():
        print(f"{name:<34} {value}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "results": [result]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
