"""Encoders as the store sees them: the `Encoder` protocol, the `EncoderCard` and the registry. Imports no torch."""

from embedstore.encoder.card import EncoderCard, Variant
from embedstore.encoder.lazy_string import resolve_string
from embedstore.encoder.model import Encoded, Encoder, EncoderLoader, LoadRequest, Preprocess
from embedstore.encoder.registry import encoder_cards, get_card, load_encoder, load_heads, split_title
from embedstore.encoder.task_head import ACTIVATIONS, TaskHead

__all__ = [
    "ACTIVATIONS",
    "Encoded",
    "Encoder",
    "EncoderCard",
    "EncoderLoader",
    "LoadRequest",
    "Preprocess",
    "TaskHead",
    "Variant",
    "encoder_cards",
    "get_card",
    "load_encoder",
    "load_heads",
    "resolve_string",
    "split_title",
]
