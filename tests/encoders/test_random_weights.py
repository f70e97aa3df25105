"""The random checkpoints of the encoder benchmark: one for every encoder, with the published keys and counts."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from embedstore.encoder import encoder_cards

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "random_weights.py"
OURS = {name for name, card in encoder_cards().items() if card.loader.startswith("encoders.")}
# Its card counts the fixed positions, which its file has no key for.
PANECHO_POSITIONS = 16 * 768


@pytest.fixture(scope="module")
def forms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("random_weights", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors_of(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        found |= tensors_of(value) if isinstance(value, Mapping) else {key: value}
    return found


def test_every_encoder_with_weights_has_a_form(forms: ModuleType) -> None:
    assert set(forms.FORMS) == {name for name in OURS if encoder_cards()[name].takes_weights}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OURS - {"pixel-stats"}))
def test_parameters_are_as_many_as_the_card_says(name: str, forms: ModuleType) -> None:
    with torch.device("meta"):
        state = tensors_of(forms.FORMS[name](name))
    counted = sum(
        tensor.numel()
        for key, tensor in state.items()
        if tensor.is_floating_point() and not key.endswith(("running_mean", "running_var"))
    )
    expected = encoder_cards()[name].n_parameters
    assert counted == (expected - PANECHO_POSITIONS if name == "panecho" and expected else expected)


def test_a_random_model_is_loaded_from_memory_and_its_vectors_are_sane(forms: ModuleType) -> None:
    with forms.in_memory("dinov2-small") as file:
        encoder = forms.load_random("dinov2-small", device="cpu", file=file)
        assert file.stat().st_size < 100
    batch = np.random.default_rng(0).integers(0, 256, (2, *encoder.input_shape), dtype=np.uint8)
    vectors = encoder.encode(batch).vectors
    assert vectors.shape == (2, 384) and np.isfinite(vectors).all()
    assert 0.01 < np.abs(vectors).max() < 100 and not np.array_equal(vectors[0], vectors[1])
