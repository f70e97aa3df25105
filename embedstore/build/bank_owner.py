"""`BankOwner`: an encoder with weights, whose text tower and heads are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embedstore.build.weights import find_weights
from embedstore.encoder import EncoderCard, LoadRequest, get_card, resolve_string, split_title
from embedstore.errors import UnknownNameError
from embedstore.files import hash_file

__all__ = ["BankOwner", "TextTower", "find_owner", "load_tower"]


class TextTower(Protocol):
    """What a card's ``text_loader`` returns; `encoders.text` says more."""

    tokenizer: Any
    dim: int
    logit_scale: float
    logit_bias: float | None

    def embed(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return ``(P, dim)`` float32 vectors of length one."""


@dataclass(frozen=True)
class BankOwner:
    """An encoder with weights: whose text tower and heads are asked for."""

    card: EncoderCard
    request: LoadRequest

    @property
    def name(self) -> str:
        """Registry name."""
        return self.card.name

    @property
    def text_request(self) -> LoadRequest:
        """The request for the text tower: in float32, whatever frames are encoded in."""
        return replace(self.request, spec=replace(self.request.spec, precision="float32"))

    def text_files(self) -> dict[str, str]:
        """Return the digests of the files beside the weights that decide how a text is cut."""
        path = self.request.weights
        if path is None:
            return {}
        folder = path if path.is_dir() else path.parent
        return {name: hash_file(folder / name).sha256 for name in self.card.text_files if (folder / name).is_file()}

    def fields(self) -> dict[str, Any]:
        """Return what every spec of its banks holds."""
        spec = self.request.spec
        return {"weights_sha256": spec.weights_sha256, "dim": spec.clip_dim}


def find_owner(
    title: str,
    *,
    weights: Mapping[str, Path],
    trusted: Mapping[str, str],
    device: str = "auto",
    note: Callable[[str], None] = lambda sentence: None,
) -> BankOwner:
    """Return an encoder with its weights: those given, else those on this machine, else downloaded.

    Parameters
    ----------
    title : str
        ``NAME[@VARIANT]``.
    weights, trusted : mapping by encoder name
        As of a `BuildRequest`.

    Raises
    ------
    UnknownNameError
        The encoder, its variant or the weights are not known.
    EnvironmentFailure
        There are no weights.
    """
    name, variant = split_title(title)
    card = get_card(name)
    found = find_weights(card, weights.get(name), download=True, tell=note)
    card = card.fitted(variant=variant or "published", weights=found.path)
    spec = card.spec(variant=variant or "published", weights_sha256=found.sha256)
    if card.licence_forbids:
        note(f"{card.name}: licence {card.licence}, which forbids {card.licence_forbids}")
    request = LoadRequest(spec=spec, weights=found.path, device=device, trusted_sha256=trusted.get(name))
    return BankOwner(card, request)


def load_tower(owner: BankOwner) -> TextTower:
    """Load the text tower of an encoder.

    Raises
    ------
    UnknownNameError
        It has none.
    EnvironmentFailure, ContentError
        As its loader says: a file is not there, or is another model's.
    """
    if owner.card.text_loader is None:
        raise UnknownNameError(f"encoder {owner.name!r} has no text tower: it embeds no prompts")
    tower: TextTower = resolve_string(owner.card.text_loader)(owner.text_request)
    return tower
