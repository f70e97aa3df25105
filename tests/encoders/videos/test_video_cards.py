"""What the cards of the video transformers say, and where their weights are looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from embedstore.cli.main import program
from embedstore.encoder import get_card
from embedstore.errors import EnvironmentFailure
from encoders.hub import fetch

NAMES = ["echo-vision-fm", "echofm", "echojepa", "videomae", "vjepa2"]
ON_THE_HUB = ["echofm", "videomae", "vjepa2"]


@pytest.fixture(autouse=True)
def _empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "EMBEDSTORE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", NAMES)
def test_cards_are_whole_and_shown(name: str) -> None:
    card = get_card(name)
    assert card.unit == "clip" and card.pooling == "mean" and card.frame_dim == card.clip_dim
    assert card.variants["published"].note and {"published", "palindrome"} <= card.variants.keys()
    done = CliRunner().invoke(program, ["encoders", name, "--json"])
    shown = json.loads(done.output)
    for key in ("licence", "paper", "weights_source", "n_parameters", "layout", "left_open"):
        assert shown[key], key
    assert shown["weights_on_this_machine"] is False
    lines = CliRunner().invoke(program, ["encoders", name]).output.splitlines()
    texts = {line[:24].strip(): line[25:] for line in lines}
    assert texts["n parameters"] == f"{card.n_parameters:,}" and texts["left open"] == card.left_open
    assert ("keys may ignore" in texts) == bool(card.keys_may_ignore)
    for variant, fields in shown["variants"].items():
        assert texts[f"variant {variant}"].startswith(fields["rule"])
    assert "steps " in texts["preprocessing"] and "{" not in texts["preprocessing"]


def test_windows_and_padding_are_shown() -> None:
    output = CliRunner().invoke(program, ["encoders", "echojepa"]).output
    assert "stride:2x16, 2 windows, short clips repeat-last" in output
    assert "consecutive:32, short clips loop" in CliRunner().invoke(program, ["encoders", "echofm"]).output


@pytest.mark.parametrize("name", NAMES)
def test_without_weights_their_source_is_named(name: str, load) -> None:
    card = get_card(name)
    assert card.locate_weights() is None
    with pytest.raises(EnvironmentFailure) as refused:
        load(card, None)
    assert card.weights_source in str(refused.value) and f"--weights {name}=" in str(refused.value)


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_offline_the_missing_files_are_named(name: str) -> None:
    card = get_card(name)
    with pytest.raises(
        EnvironmentFailure, match=f"HF_HUB_OFFLINE is set .*{card.weights_names[0]}.*--weights {name}="
    ):
        fetch(card)


def test_a_cached_file_is_found(tmp_path: Path) -> None:
    repository = tmp_path / "HF_HUB_CACHE" / "models--sekeun--EchoFM"
    for folder in ("refs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    card = get_card("echofm")
    assert card.locate_weights() is None
    file = repository / "snapshots" / "abc" / "echofm_vitl.pth"
    file.write_bytes(b"weights")
    assert card.locate_weights() == file.parent and card.deciding_files(file.parent) == (file,)
