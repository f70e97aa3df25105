"""``embedstore encoders``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say

if TYPE_CHECKING:
    from embedstore.encoder import EncoderCard


def _described(card: EncoderCard) -> dict[str, Any]:
    from embedstore.build.weights import has_weights

    keys = (
        "name",
        "summary",
        "unit",
        "clip_dim",
        "frame_dim",
        "pooling",
        "licence",
        "licence_forbids",
        "paper",
        "weights_source",
        "weights_sha256",
        "weights_bytes",
        "n_parameters",
        "text_tower",
    )
    described = {key: getattr(card, key) for key in keys}
    for key in ("layout", "left_open"):
        described[key] = getattr(card, key, "")
    for key in ("keys_may_miss", "keys_may_ignore"):
        described[key] = list(getattr(card, key, ()))
    described["input_size"] = list(card.input_size)
    described["pretraining_data"] = list(card.pretraining_data)
    described["preprocessing"] = dict(card.preprocessing)
    described["variants"] = {
        name: {**variant.sampling.to_dict(), "preprocessing": dict(variant.preprocessing), "note": variant.note}
        for name, variant in card.variants.items()
    }
    described["weights_on_this_machine"] = has_weights(card)
    return described


def _spoken(value: Any) -> str:
    """Return a JSON value as people read it: lists with commas, objects as ``name value``, steps as calls."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(_spoken(part) for part in value)
    if isinstance(value, dict) and "step" in value:
        fields = ", ".join(f"{key}={part}" for key, part in value.items() if key != "step")
        return f"{value['step']}({fields})"
    if isinstance(value, dict):
        return "; ".join(f"{key} {_spoken(part)}" for key, part in value.items())
    return str(value)


@click.command()
@click.argument("name", required=False)
@json_option
@debug_option
def encoders(name: str | None, as_json: bool) -> None:
    """List the encoders, or show one encoder's card; loads no model.

    Example: embedstore encoders efficientnet-lite0
    """
    from embedstore.encoder import encoder_cards, get_card

    cards = [get_card(name)] if name else list(encoder_cards().values())
    described = [_described(card) for card in cards]
    if as_json:
        emit_json(described[0] if name else {"encoders": described})
    elif name:
        for key, value in described[0].items():
            if key != "variants" and value not in (None, "", [], {}):
                say(f"{key.replace('_', ' '):<24} {_spoken(value)}")
        for variant, fields in described[0]["variants"].items():
            windows = "" if fields["n_windows"] == 1 else f", {fields['n_windows']} windows"
            padding = "" if fields["padding"] == "none" else f", short clips {fields['padding']}"
            note = f"  {fields['note']}" if fields["note"] else ""
            say(f"{'variant ' + variant:<24} {fields['rule']}{windows}{padding}{note}")
    else:
        for card in described:
            dim = f"{card['clip_dim']}-d"
            ready = "ready" if card["weights_on_this_machine"] else "no weights here"
            say(f"{card['name']:<22} {card['unit']:<6} {dim:<7} {ready:<16} {card['summary']}")
