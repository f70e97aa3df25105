"""Fixtures round the small video transformers of `small_videos`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_videos
from torch import nn

from embedstore.encoder import EncoderCard, LoadRequest, load_encoder


@pytest.fixture(scope="session")
def load() -> Callable[..., Any]:
    """Return a function that loads a card's variant on the CPU."""

    def loaded(card: EncoderCard, weights: Path | None, *, variant: str = "published", **spec: Any) -> Any:
        return load_encoder(card, LoadRequest(spec=card.spec(variant=variant, **spec), weights=weights, device="cpu"))

    return loaded


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory, filled: Any) -> Callable[..., tuple[Path, nn.Module]]:
    """Return a function of an encoder's name that gives a folder as published, and the reference model in it."""
    made: dict[tuple[str, int], tuple[Path, nn.Module]] = {}

    def build(name: str, *, depth: int = 2) -> tuple[Path, nn.Module]:
        if (name, depth) not in made:
            folder = tmp_path_factory.mktemp(name)
            if name in ("videomae", "echo-vision-fm"):
                is_plain = name == "videomae"
                network = small_videos.videomae(folder, filled, depth, seed=14 if is_plain else 15, norm=is_plain)
            else:
                maker = getattr(small_videos, name)
                network = maker(folder, filled, depth)
            made[name, depth] = folder, network.eval()
        return made[name, depth]

    return build
