"""What a real pretrained encoder says of a real A4C clip: neighbouring frames near, a photograph far.

One patient's clip, from the pydicom package: a real input for the pipeline, and no basis for any echo metric.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import numpy as np
from pydicom.examples import get_path
from sklearn.datasets import load_sample_image

from embedstore.build.run import BuildRequest, build_sets
from embedstore.manifest import RecipeRequest, get_recipe
from embedstore.store import Store


def main() -> None:
    """Build both files through the ordinary way, print cosines."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "media"
        root.mkdir()
        (root / "a4c.dcm").write_bytes(Path(get_path("ybr_color")).read_bytes())
        for photo in ("china", "flower"):
            cv2.imwrite(str(root / f"{photo}.png"), load_sample_image(f"{photo}.jpg")[:, :, ::-1])
        manifest = get_recipe("folder").make(RecipeRequest(root=root, name="real")).manifest
        store = Store.create(Path(name) / "store")
        store.add_manifest(manifest, root=root)
        results = []
        for encoder in ("efficientnet-lite0", "pixel-stats"):
            (outcome,) = build_sets(store, BuildRequest(encoders=(encoder,)))
            built = store.get(dataset="real", encoder=encoder)
            rows = built.frames[:].astype(np.float64)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            clip = np.array([clip_id == "a4c" for clip_id in built.frame_index.column("clip_id").to_pylist()])
            frames, photos = rows[clip], rows[~clip]
            neighbours = (frames[1:] * frames[:-1]).sum(axis=1)
            result = {
                "encoder": encoder,
                "frames_sampled": int(clip.sum()),
                "neighbouring_frames_min": round(float(neighbours.min()), 3),
                "neighbouring_frames_max": round(float(neighbours.max()), 3),
                "photograph_max": round(float((frames @ photos.T).max()), 3),
                "failed": outcome.n_failed,
            }
            results.append(result)
            print("  ".join(f"{key} {value}" for key, value in result.items()))
    out = Path(__file__).parent / "results" / "real_clip.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
