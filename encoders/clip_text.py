"""The text towers of the CLIP family."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from embedstore.encoder import LoadRequest
from embedstore.errors import FormatError, StorageError
from encoders.clip_family import ECHO_CLIP_R_CARD, LoadedTowers, load_towers
from encoders.model_folder import find_file
from encoders.template_tokens import TemplateTokenizer
from encoders.text import Tokenizer, TokenTower, check_vocabulary
from encoders.tokens import CLEANING, ClipBytePairs, open_json, open_word_piece

__all__ = ["load"]

# A text tower stands at the root of a plain CLIP and below `text` in the others.
_TEXT_KEYS = (
    "text.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_",
)
_TEMPLATE_FILE = "template_vocab.txt"


def load(request: LoadRequest) -> TokenTower:
    """Load the text tower; the image tower's tensors are checked too and then left aside.

    Raises
    ------
    StorageError
        The tokenizer is not CLIP's own, and its file is not beside the weights.
    FormatError
        The tokenizer is another model's.
    """
    from encoders.device import pick_device

    loaded = load_towers(request, tower=_TEXT_KEYS)
    towers = loaded.towers
    tokenizer = _tokenizer(request.spec.name, loaded)
    del towers.visual
    bias = getattr(towers, "logit_bias", None)
    return TokenTower(
        towers,
        forward=towers.encode_text if hasattr(towers, "encode_text") else towers.text,
        tokenizer=tokenizer,
        spec=request.spec,
        device=pick_device(request.device),
        logit=(math.exp(float(towers.logit_scale.detach())), None if bias is None else float(bias.detach())),
    )


def _tokenizer(name: str, loaded: LoadedTowers) -> Tokenizer:
    settings = dict(loaded.config.get("text_cfg") or {})
    n_known, context = _known_tokens(loaded.towers, settings)
    if name == ECHO_CLIP_R_CARD.name:
        return _template(loaded.path, n_known=n_known, context=context)
    if "hf_tokenizer_name" not in settings and "hf_model_name" not in settings:
        pairs = ClipBytePairs(context=context)
        if pairs.n_tokens != n_known:
            raise FormatError(
                f"the text tower of {loaded.file} knows {n_known} tokens, CLIP's byte pairs are {pairs.n_tokens}; "
                "is it another model's?"
            )
        return pairs
    stated = dict(settings.get("tokenizer_kwargs") or {})
    cleaning = stated.pop("clean", "whitespace")
    if stated or cleaning not in CLEANING:
        raise FormatError(
            f"the settings beside {loaded.file} ask for a tokenizer that is not offered: {stated or cleaning}"
        )
    pieces = find_file(loaded.path, ["vocab.txt"])
    found: Tokenizer
    if find_file(loaded.path, ["tokenizer.json"]) is None and pieces is not None:
        found = open_word_piece(pieces, context=context, cleaning=cleaning)
    else:
        found = open_json(loaded.path, context=context, cleaning=cleaning, padding="[PAD]")
    check_vocabulary(found, n_known=n_known, source=loaded.file)
    return found


def _known_tokens(towers: Any, settings: dict[str, Any]) -> tuple[int, int]:
    """Return how many tokens the tower knows, and how many a text has."""
    if hasattr(towers, "text") and hasattr(towers.text, "proj"):  # BERT, whose table of places is longer than a text
        embeddings = towers.text.transformer.embeddings
        n_places = int(embeddings.position_embeddings.num_embeddings)
        return int(embeddings.word_embeddings.num_embeddings), min(int(settings.get("context_length", 77)), n_places)
    return int(towers.vocab_size), int(towers.context_length)


def _template(path: Path, *, n_known: int, context: int) -> TemplateTokenizer:
    file = find_file(path, [_TEMPLATE_FILE])
    if file is None:
        folder = path if path.is_dir() else path.parent
        raise StorageError(
            f"prompts of echo-clip-r need the authors' {_TEMPLATE_FILE}, which is not in {folder}; take it from "
            "https://github.com/echonet/echo_CLIP and put it there"
        )
    tokenizer = TemplateTokenizer(file, context=context)
    if tokenizer.n_tokens > n_known:
        raise FormatError(
            f"{file} makes {tokenizer.n_tokens} tokens, the text tower knows {n_known}; is it another model's?"
        )
    return tokenizer
