"""Models filled from a state dict: exactly, or not at all."""

from __future__ import annotations

import pytest
import torch

from embedstore.errors import ContentError, FormatError
from encoders.state_dict import filled, load_exactly, without_initialisation


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(5, 7, generator=generator), "bias": torch.randn(5, generator=generator)}


def test_an_exact_state_is_loaded(state) -> None:
    model = torch.nn.Linear(7, 5)
    load_exactly(model, state, source="weights.pt")
    assert torch.equal(model.weight, state["weight"]) and torch.equal(model.bias, state["bias"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"bias": None}, "1 keys are missing: bias"),
        ({"head.weight": torch.zeros(1)}, "1 keys are unexpected: head.weight"),
        ({"weight": torch.zeros(7, 5)}, r"weight \(7, 5\) instead of \(5, 7\)"),
        ({"weight": 3}, "1 keys are no tensors: weight"),
        ({f"block.{i}": torch.zeros(1) for i in range(10)}, "10 keys are unexpected: .*block.7 and 2 more"),
    ],
)
def test_every_difference_is_named_and_nothing_is_loaded(change: dict, complaint: str, state) -> None:
    model = torch.nn.Linear(7, 5)
    before = model.weight.clone()
    changed = {key: value for key, value in {**state, **change}.items() if value is not None}
    with pytest.raises(FormatError, match=complaint) as caught:
        load_exactly(model, changed, source="weights.pt")
    assert "weights.pt does not fit Linear" in str(caught.value) and isinstance(caught.value, ContentError)
    assert torch.equal(model.weight, before)


def test_stated_differences_are_allowed(state) -> None:
    model = torch.nn.Linear(7, 5)
    bias = model.bias.clone()
    load_exactly(
        model,
        {"weight": state["weight"], "head.weight": torch.zeros(1)},
        source="weights.pt",
        may_miss={"bias"},
        may_ignore={"head.weight"},
    )
    assert torch.equal(model.weight, state["weight"]) and torch.equal(model.bias, bias)


def test_one_tower_of_a_model_is_filled_and_the_rest_is_checked(state) -> None:
    model = torch.nn.ModuleDict({"image": torch.nn.Linear(7, 5), "text": torch.nn.Linear(7, 5)})
    whole = {f"{tower}.{key}": value for tower in ("image", "text") for key, value in state.items()}
    before = model["text"].weight.clone()
    load_exactly(model, whole, source="weights.pt", only="image.")
    assert torch.equal(model["image"].weight, state["weight"]) and torch.equal(model["text"].weight, before)
    del whole["text.bias"]
    with pytest.raises(FormatError, match=r"1 keys are missing: text.bias"):
        load_exactly(model, whole, source="weights.pt", only="image.")


def test_a_model_is_made_and_filled_without_drawing_weights(state) -> None:
    before = torch.get_rng_state()
    model = filled(lambda: torch.nn.Linear(7, 5), state, source="weights.pt")
    assert torch.equal(model.weight, state["weight"]) and torch.equal(torch.get_rng_state(), before)
    with pytest.raises(FormatError, match=r"weights.pt does not fit Linear: 1 keys are missing: bias"):
        filled(lambda: torch.nn.Linear(7, 5), {"weight": state["weight"]}, source="weights.pt")


def test_models_are_built_without_drawing_weights() -> None:
    before = torch.get_rng_state()
    with without_initialisation():
        model = torch.nn.TransformerEncoderLayer(64, 2)
        table = torch.nn.Embedding(100, 64)
    assert torch.equal(torch.get_rng_state(), before), "random numbers were drawn"
    assert table.weight.shape == (100, 64)
    assert model.linear1.weight.requires_grad
    assert not torch.equal(torch.nn.Linear(2, 2).weight, torch.nn.Linear(2, 2).weight), "the block is not left"


def test_truncated_normals_end_whatever_memory_holds() -> None:
    memory = torch.full((64,), 99.0)
    with without_initialisation():
        torch.nn.init.trunc_normal_(memory, std=0.02)
        torch.nn.init.trunc_normal_(memory, mean=3.0, std=1.0, a=2.0, b=4.0)
        torch.nn.init.normal_(memory, 1.0, 2.0)
        assert torch.nn.init.trunc_normal_(torch.full((4,), float("nan"))) is not None
    assert torch.equal(memory, torch.full((64,), 3.0))
