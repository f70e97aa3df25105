"""For each encoder: whether its weights are here and are what they should be, and whether memory holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embedstore.build.weights import find_weights
from embedstore.doctor.finding import Finding, gib
from embedstore.doctor.packages import TorchProbe, host_free_bytes
from embedstore.encoder import EncoderCard, encoder_cards
from embedstore.errors import EmbedstoreError

__all__ = ["check_encoders"]

_BYTES_A_PARAMETER = 4  # models run in float32 or are cast from it


def check_encoders(probe: TorchProbe) -> Iterator[Finding]:
    """Look at the weights of every encoder that is registered.

    Raises
    ------
    EmbedstoreError
        An entry point of an installed package is no card.
    """
    free = {"cpu": host_free_bytes()}
    for at, device in enumerate(probe.get("devices", ())):
        free[f"cuda:{at}"] = device["free"]
    for card in encoder_cards().values():
        yield _check(card, free)


def _check(card: EncoderCard, free: dict[str, int | None]) -> Finding:
    facts: dict[str, Any] = {"needs": _needs(card), "licence": card.licence}
    if not card.takes_weights:
        return _finding(card, "ok", "has no weights", facts)
    try:
        path = card.locate_weights()
        if path is None:
            return _finding(card, "note", _how_to_get(card), facts)
        facts["weights"] = str(path)
        card.inspect_weights(path)
        facts["verified"] = card.published_sha256(path) is not None
        found = find_weights(card)
    except EmbedstoreError as error:
        return _finding(card, "problem", str(error), facts)
    facts["sha256"] = found.sha256
    how = "as published" if facts["verified"] else "whole; no digest is published to compare with"
    tight = _tight(card, free)
    if tight:
        return _finding(card, "problem", f"weights at {path} are {how}, but {tight}", facts)
    return _finding(card, "ok", f"weights at {path} are {how}", facts)


def _finding(card: EncoderCard, status: str, message: str, facts: dict[str, Any]) -> Finding:
    return Finding(area="encoders", name=card.name, status=status, message=message, facts=facts)


def _needs(card: EncoderCard) -> int | None:
    if card.n_parameters is not None:
        return card.n_parameters * _BYTES_A_PARAMETER
    return card.weights_bytes


def _tight(card: EncoderCard, free: dict[str, int | None]) -> str:
    """Say where memory does not hold the model: on the CPU twice its weights, while they are copied into it."""
    needs = _needs(card)
    if needs is None:
        return ""
    short = [
        f"{device} has {gib(left)} of {gib(needs * (2 if device == 'cpu' else 1))} that it needs"
        for device, left in free.items()
        if left is not None and left < needs * (2 if device == "cpu" else 1)
    ]
    return f"{'; '.join(short)}: end other programs or take another machine" if short else ""


def _how_to_get(card: EncoderCard) -> str:
    fetched = card.weights_fetcher is not None or card.weights_url is not None
    needs = _needs(card)
    size = f" (about {gib(needs)})" if needs is not None and needs > 1 << 28 else ""
    if fetched:
        return (
            f"no weights here{size}: embedstore build --encoder {card.name} fetches them from {card.weights_source}, "
            f"or give them with --weights {card.name}=FILE_OR_FOLDER"
        )
    source = card.weights_source or "its authors"
    return f"no weights here{size}: get them from {source} and give them with --weights {card.name}=FILE_OR_FOLDER"
