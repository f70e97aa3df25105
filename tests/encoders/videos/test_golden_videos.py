"""Vectors kept from one day to the next: no release of a library may move them unnoticed.

The models are the small ones of `small_videos`, their numbers drawn by numpy; the window is the first of the A4C
clip. Other tests hold the same models against other implementations. Write the file anew, after a change that is
meant, with ``EMBEDSTORE_WRITE_GOLDEN=1``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from embedstore.encoder import get_card

GOLDEN = Path(__file__).with_name("golden_videos.json")
VARIANTS = {
    "echo-vision-fm": "published",
    "echofm": "published",
    "echojepa": "published",
    "videomae": "published",
    "vjepa2": "frames16",  # 64 frames take minutes
}
N_KEPT = 6


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_vectors_are_those_that_were_kept(name: str, video, load, a4c_frames: np.ndarray) -> None:
    encoder = load(get_card(name), video(name, depth=1)[0], variant=VARIANTS[name])
    window = encoder.spec.sampling.resolve(n_frames=len(a4c_frames), fps=None).windows[0]
    encoded = encoder.encode(encoder.preprocess(a4c_frames[list(window)])[None])
    vectors = {"window": encoded.vectors[0], "last step": encoded.steps[0, -1]}
    found = {kind: [float(number) for number in vector[:N_KEPT]] for kind, vector in vectors.items()}
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("EMBEDSTORE_WRITE_GOLDEN"):
        kept[name] = {kind: [round(number, 6) for number in numbers] for kind, numbers in found.items()}
        GOLDEN.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    for kind, numbers in kept[name].items():
        scale = max(abs(number) for number in numbers)
        assert np.abs(np.array(found[kind]) - numbers).max() <= 1e-4 * scale + 1e-6, f"{name}: {kind}"
