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
    described["input_size"] = list(card.input_size)
    described["pretraining_data"] = list(card.pretraining_data)
    described["preprocessing"] = dict(card.preprocessing)
    described["variants"] = {
        name: {**variant.sampling.to_dict(), "preprocessing": dict(variant.preprocessing), "note": variant.note}
        for name, variant in card.variants.items()
    }
    described["weights_on_this_machine"] = has_weights(card)
    return described


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
                say(f"{key.replace('_', ' '):<24} {value}")
        for variant, fields in described[0]["variants"].items():
            note = f"  {fields['note']}" if fields["note"] else ""
            say(f"{'variant ' + variant:<24} {fields['rule']}, {fields['n_windows']} window(s){note}")
    else:
        for card in described:
            dim = f"{card['clip_dim']}-d"
            ready = "ready" if card["weights_on_this_machine"] else "no weights here"
            say(f"{card['name']:<22} {card['unit']:<6} {dim:<7} {ready:<16} {card['summary']}")
