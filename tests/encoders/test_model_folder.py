"""Files and folders of weights: what is taken, what is followed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from embedstore.errors import CorruptionError, FormatError, HostileInputError, StorageError
from encoders.model_folder import (
    count_layers,
    find_file,
    open_state,
    part_files,
    read_settings,
    shape_of,
    tensor_shapes,
    weights_file,
)

NAMES = ("model.safetensors", "model.safetensors.index.json", "model.bin")


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {"first.weight": torch.arange(6.0).reshape(2, 3), "second.weight": torch.ones(4)}


def test_the_first_name_is_taken_and_a_file_stands_for_itself(state, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "model.bin")
    assert weights_file(tmp_path, NAMES) == tmp_path / "model.bin"
    save_file(state, tmp_path / "model.safetensors")
    assert weights_file(tmp_path, NAMES) == tmp_path / "model.safetensors"
    assert weights_file(tmp_path / "model.bin", NAMES) == tmp_path / "model.bin"
    assert find_file(tmp_path / "model.bin", ["absent", "model.bin"]) == tmp_path / "model.bin"
    assert find_file(tmp_path, ["absent"]) is None


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shapes_are_those_of_the_tensors(suffix: str, state, tmp_path: Path) -> None:
    if suffix == "bin":
        torch.save(state, tmp_path / "model.bin")
    else:
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert tensor_shapes(tmp_path, names=NAMES) == {"first.weight": (2, 3), "second.weight": (4,)}


def test_files_in_parts_are_put_together(state, tmp_path: Path) -> None:
    save_file({"first.weight": state["first.weight"]}, tmp_path / "part-1.safetensors")
    save_file({"second.weight": state["second.weight"]}, tmp_path / "part-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    listed = {"first.weight": "part-1.safetensors", "second.weight": "part-2.safetensors"}
    index.write_text(json.dumps({"weight_map": listed}))
    opened, file = open_state(tmp_path, names=NAMES)
    assert file == index and all(torch.equal(opened[key], state[key]) for key in state)
    assert tensor_shapes(tmp_path, names=NAMES)["first.weight"] == (2, 3)
    parts = (index, tmp_path / "part-1.safetensors", tmp_path / "part-2.safetensors")
    assert part_files(index) == parts and part_files(parts[1]) == parts[1:2]

    index.write_text(json.dumps({"weight_map": {**listed, "third.weight": "part-2.safetensors"}}))
    with pytest.raises(CorruptionError, match="names 1 tensors that no file holds, first third.weight"):
        open_state(tmp_path, names=NAMES)
    index.write_text(json.dumps({"weight_map": {**listed, "third.weight": "part-3.safetensors"}}))
    with pytest.raises(StorageError, match=r"names part-3.safetensors, which is not beside it"):
        open_state(tmp_path, names=NAMES)
    for name in ("../part-1.safetensors", "/etc/passwd", "..\\part-1.safetensors"):
        index.write_text(json.dumps({"weight_map": {**listed, "third.weight": name}}))
        with pytest.raises(HostileInputError, match="outside its folder"):
            open_state(tmp_path, names=NAMES)
    index.write_text(json.dumps({"weights": []}))
    with pytest.raises(FormatError, match="has no weight_map"):
        open_state(tmp_path, names=NAMES)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_training_checkpoints_are_unwrapped(wrapper: str, state, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    torch.save({"epoch": 7, wrapper: {f"module.{key}": value for key, value in state.items()}}, file)
    opened, _ = open_state(file, names=NAMES)
    assert opened.keys() == state.keys()


def test_a_digest_is_that_of_a_single_file(state, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    assert open_state(tmp_path, names=NAMES, sha256="0" * 64)[0].keys() == state.keys()
    with pytest.raises(CorruptionError, match="has SHA-256"):
        open_state(tmp_path / "model.safetensors", names=NAMES, sha256="0" * 64)


def test_settings_are_objects_of_a_reasonable_size(tmp_path: Path) -> None:
    assert read_settings(tmp_path, "config.json") is None
    file = tmp_path / "config.json"
    file.write_text('{"a": 1}')
    assert read_settings(tmp_path, "config.json") == {"a": 1}
    assert read_settings(file, "config.json") is None, "a file has no settings beside it unless its folder is given"
    file.write_text("[" * 100_000)
    with pytest.raises(FormatError, match="is no JSON"):
        read_settings(tmp_path, "config.json")
    file.write_text(" " * (5 << 20))
    with pytest.raises(HostileInputError, match="larger than 4 MiB"):
        read_settings(tmp_path, "config.json")


def test_shapes_that_a_model_cannot_be_without() -> None:
    assert shape_of({"a": (2, 3)}, "a", n_sides=2, source="f") == (2, 3)
    with pytest.raises(FormatError, match=r"checkpoint f does not fit: the key b is missing, its first keys are a;"):
        shape_of({"a": (2, 3)}, "b", n_sides=2, source="f")
    with pytest.raises(FormatError, match=r"a has shape \(2, 3\), not 1 sides"):
        shape_of({"a": (2, 3)}, "a", n_sides=1, source="f")
    assert count_layers({"layer.x": (1,), "layer.3.w": (1,), "other.9.w": (1,)}, "layer.") == 4


def test_readmes_and_tokenizers_decide_no_vector(state, tmp_path: Path) -> None:
    from encoders.siglip import SIGLIP2_CARD

    save_file(state, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "README.md", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    weights, settings = tmp_path / "model.safetensors", tmp_path / "config.json"
    assert SIGLIP2_CARD.deciding_files(tmp_path) == (weights, settings)
    assert SIGLIP2_CARD.deciding_files(weights) == (weights,)
    with pytest.raises(StorageError, match="is not there"):
        SIGLIP2_CARD.deciding_files(tmp_path / "absent")
