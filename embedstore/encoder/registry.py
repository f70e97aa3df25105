"""The registry: encoders by name, as installed packages register them, and their loading."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from embedstore.encoder.card import EncoderCard
from embedstore.encoder.lazy_string import resolve_string
from embedstore.encoder.model import Encoder, EncoderLoader, LoadRequest
from embedstore.encoder.task_head import TaskHead
from embedstore.errors import EmbedstoreError, UnknownNameError, did_you_mean

__all__ = ["ENTRY_POINT_GROUP", "encoder_cards", "get_card", "load_encoder", "load_heads", "split_title"]

ENTRY_POINT_GROUP = "embedstore.encoders"


def _load_card(point: EntryPoint) -> EncoderCard:
    card = resolve_string(point.value)
    if not isinstance(card, EncoderCard) or card.name != point.name:
        raise EmbedstoreError(f"entry point {point.name!r} = {point.value!r} is no EncoderCard of that name")
    return card


def encoder_cards() -> dict[str, EncoderCard]:
    """Return all cards that installed packages register under ``embedstore.encoders``, by name, sorted.

    Raises
    ------
    EmbedstoreError
        An entry point names something else, or two name the same encoder.
    """
    cards: dict[str, EncoderCard] = {}
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value)):
        card = _load_card(point)
        if card.name in cards and cards[card.name] != card:
            raise EmbedstoreError(f"two installed packages register the encoder {card.name!r}")
        cards[card.name] = card
    return cards


def split_title(title: str) -> tuple[str, str | None]:
    """Split ``NAME[@VARIANT]``.

    Examples
    --------
    >>> split_title("panecho@uniform16")
    ('panecho', 'uniform16')
    >>> split_title("panecho")
    ('panecho', None)
    """
    name, separator, variant = title.partition("@")
    return name, variant if separator else None


def get_card(name: str) -> EncoderCard:
    """Return one card.

    Raises
    ------
    UnknownNameError
        No such encoder, with the nearest name; a name that looks like a path says how to give weights.
    """
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in points:
        return _load_card(points[name])
    if "/" in name or "\\" in name or name.endswith((".pt", ".pth", ".safetensors")):
        raise UnknownNameError(
            f"{name!r} looks like a file; an encoder is named, and its file given by --weights NAME={name}"
        )
    raise UnknownNameError(f"unknown encoder {name!r}{did_you_mean(name, list(points))}")


def load_encoder(card: EncoderCard, request: LoadRequest) -> Encoder:
    """Load a model; this is where torch is first imported."""
    loader: EncoderLoader = resolve_string(card.loader)
    return loader(request)


def load_heads(card: EncoderCard, request: LoadRequest) -> tuple[TaskHead, ...]:
    """Load the task heads that an encoder was published with.

    Raises
    ------
    UnknownNameError
        There are none.
    """
    if card.heads_loader is None:
        raise UnknownNameError(f"encoder {card.name!r} was published without task heads")
    heads: Sequence[TaskHead] = resolve_string(card.heads_loader)(request)
    return tuple(heads)
