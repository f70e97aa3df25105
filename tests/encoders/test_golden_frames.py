"""Vectors kept from one day to the next: no release of a library may move them unnoticed.

The models are the small ones of `conftest.py`, their numbers drawn by numpy; the frame is the first of the A4C clip.
Other tests hold the same models against other implementations. Write the file anew, after a change that is meant,
with ``EMBEDSTORE_WRITE_GOLDEN=1``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from embedstore.encoder import LoadRequest, get_card, load_encoder
from encoders.text import load_text_tower

GOLDEN = Path(__file__).with_name("golden_frames.json")
NAMES = ["biomedclip", "clip", "dinov2", "dinov3", "echo-clip", "echo-clip-r", "medsiglip", "siglip2"]
PROMPTS = {
    "biomedclip": "this is a photo of a normal left ventricle",
    "clip": "a photo of a heart",
    "echo-clip": "LV EJECTION FRACTION IS 55%. ",
    "echo-clip-r": "LV EJECTION FRACTION IS 55%. ",
}
N_KEPT = 6


def made(name: str, folder: Path, frames: np.ndarray) -> dict[str, list[float]]:
    card = get_card(name)
    request = LoadRequest(spec=card.spec(), weights=folder, device="cpu")
    encoder = load_encoder(card, request)
    vectors = {"frame": encoder.encode(encoder.preprocess(frames)).vectors[0]}
    if name in PROMPTS:
        vectors["prompt"] = load_text_tower(card, request).embed([PROMPTS[name]])[0]
    return {kind: [float(number) for number in vector[:N_KEPT]] for kind, vector in vectors.items()}


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_that_were_kept(name: str, small, a4c_frames: np.ndarray) -> None:
    found = made(name, small(name)[0], a4c_frames[:1])
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("EMBEDSTORE_WRITE_GOLDEN"):
        kept[name] = {kind: [round(number, 6) for number in numbers] for kind, numbers in found.items()}
        GOLDEN.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    assert found.keys() == kept[name].keys()
    for kind, numbers in found.items():
        scale = max(abs(number) for number in kept[name][kind])
        assert np.abs(np.array(numbers) - kept[name][kind]).max() <= 1e-4 * scale + 1e-6, f"{name}: {kind}"
