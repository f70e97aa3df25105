"""The text towers of SigLIP 2 and MedSigLIP."""

from __future__ import annotations

import math
from pathlib import Path

from embedstore.encoder import LoadRequest
from embedstore.errors import StorageError
from encoders.model_folder import find_file
from encoders.sentencepiece_file import open_sentencepiece
from encoders.siglip import load_towers
from encoders.text import TokenTower, check_vocabulary
from encoders.tokens import FileTokenizer, open_json

__all__ = ["load"]


def load(request: LoadRequest) -> TokenTower:
    """Load the text tower; the image tower's tensors are checked too and then left aside.

    SigLIP 2 takes ``tokenizer.json`` after lower-casing, which its training did and Gemma's tokenizer does not.
    MedSigLIP takes ``spiece.model`` or else ``tokenizer.json``, after lower-casing and removing punctuation.

    Raises
    ------
    StorageError
        The tokenizer's file is not beside the weights.
    FormatError
        The tokenizer is another model's.
    """
    from encoders.device import pick_device

    loaded = load_towers(request, tower=("text_model.", "logit_"))
    tokenizer = _tokenizer(loaded.path, name=request.spec.name, context=loaded.sizes.context)
    check_vocabulary(tokenizer, n_known=loaded.sizes.vocabulary, source=loaded.file)
    towers = loaded.towers
    return TokenTower(
        towers.text_model,
        forward=towers.text_model,
        tokenizer=tokenizer,
        spec=request.spec,
        device=pick_device(request.device),
        logit=(math.exp(float(towers.logit_scale.detach())), float(towers.logit_bias.detach())),
    )


def _tokenizer(path: Path, *, name: str, context: int) -> FileTokenizer:
    if name != "medsiglip":
        return open_json(path, context=context, cleaning="lower", padding="<pad>")
    pieces = find_file(path, ["spiece.model"])
    if pieces is not None:
        return open_sentencepiece(pieces, context=context, cleaning="canonical")
    if find_file(path, ["tokenizer.json"]) is None:
        folder = path if path.is_dir() else path.parent
        raise StorageError(
            f"prompts need the model's own tokenizer, and {folder} has neither spiece.model nor tokenizer.json; "
            "fetch one from where the weights come from and put it beside them"
        )
    return open_json(path, context=context, cleaning="canonical", padding="</s>")
