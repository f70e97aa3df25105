"""How much of the encoder's time does a build keep, and what does it cost against a plain loop?

The same clips, the same model, one run: (1) `build`, (2) a loop that decodes a clip, prepares it, encodes it and goes
on to the next, (3) the bare model on ready batches. Ratios; seconds are of this machine at this moment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from embedstore.build.decode import DecodeJob, DecodeRequest, Prepared, decode_clip
from embedstore.build.encode import pool_frames
from embedstore.build.run import BuildRequest, build_sets
from embedstore.build.weights import find_weights
from embedstore.encoder import Encoder, LoadRequest, get_card, load_encoder
from embedstore.manifest import Manifest, RecipeRequest, get_recipe
from embedstore.phantom import write_phantom
from embedstore.store import Store


def plain_loop(manifest: Manifest, root: Path, encoder: Encoder) -> np.ndarray:
    """Decode, prepare and encode one clip after the other, in this process."""
    assert encoder.spec.sampling is not None
    request = DecodeRequest(encoder.spec.sampling, encoder.preprocess, encoder.spec.unit)
    rows = []
    for row in manifest.table.select(["path", "sha256", "n_frames", "fps"]).to_pylist():
        job = DecodeJob(
            path=root / row["path"],
            sha256=row["sha256"],
            n_frames=row["n_frames"],
            fps=row["fps"],
            requests=(request,),
        )
        prepared = decode_clip(job).prepared[0]
        assert isinstance(prepared, Prepared)
        rows.append(pool_frames(encoder.encode(prepared.inputs).vectors, encoder.spec.pooling))
    return np.stack(rows)


def bare_model(encoder: Encoder, n_frames: int, batch_size: int) -> float:
    """Seconds of the model alone on ready batches of the same number of frames."""
    batch = np.random.default_rng(0).integers(0, 255, (batch_size, *encoder.input_shape)).astype(encoder.input_dtype)
    encoder.encode(batch)
    began = time.perf_counter()
    for _ in range(-(-n_frames // batch_size)):
        encoder.encode(batch)
    return time.perf_counter() - began


def measure(name: str, n_patients: int) -> dict[str, object]:
    """Run the three ways on one phantom."""
    work = Path(tempfile.mkdtemp(prefix="embedstore-bench-"))
    try:
        write_phantom(work / "phantom", n_patients=n_patients, seed=0)
        manifest = get_recipe("phantom").make(RecipeRequest(root=work / "phantom", n_workers=2)).manifest
        store = Store.create(work / "store")
        store.add_manifest(manifest, root=work / "phantom")
        card = get_card(name)
        weights = find_weights(card)
        request = LoadRequest(spec=card.spec(weights_sha256=weights.sha256), weights=weights.path)
        encoder = load_encoder(card, request)
        batch_size = card.batch_size["cpu"]
        bare_model(encoder, batch_size * 4, batch_size)  # warm up
        began = time.perf_counter()
        rows = plain_loop(manifest, work / "phantom", encoder)
        loop_s = time.perf_counter() - began
        began = time.perf_counter()
        (outcome,) = build_sets(store, BuildRequest(encoders=(name,)))
        build_s = time.perf_counter() - began
        bare_s = bare_model(encoder, outcome.n_frames, batch_size)
        began = time.perf_counter()
        build_sets(store, BuildRequest(encoders=(name,)))
        again_s = time.perf_counter() - began
        built = store.get(dataset=manifest.name, encoder=name)
        provenance = built.provenance
        return {
            "encoder": name,
            "clips": len(built),
            "frames": outcome.n_frames,
            "build_s": round(build_s, 2),
            "plain_loop_s": round(loop_s, 2),
            "build_over_loop": round(build_s / loop_s, 3),
            "bare_model_s": round(bare_s, 2),
            "model_share_kept": round(bare_s / build_s, 3),
            "encode_share_of_wall": round(provenance["encode_seconds"] / build_s, 3),
            "decode_worker_s": provenance["decode_seconds"],
            "nothing_to_do_s": round(again_s, 3),
            "max_difference_from_loop": float(np.abs(built.clips[:] - rows).max()),
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "build.json")
    options = parser.parse_args()
    results = [measure(name, options.patients) for name in ("efficientnet-lite0", "pixel-stats")]
    for result in results:
        for key, value in result.items():
            print(f"{key:<26} {value}")
        print()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine()}
    options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
