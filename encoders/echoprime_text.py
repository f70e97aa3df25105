"""EchoPrime's text tower: a BERT with its language model's head in the file, and one layer to the video's space."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from embedstore.encoder import LoadRequest
from embedstore.errors import EnvironmentFailure, StorageError
from encoders.echoprime import ECHOPRIME_CARD
from encoders.model_folder import find_file
from encoders.text import TokenTower, check_vocabulary
from encoders.tokens import FileTokenizer, open_json, open_word_piece

if TYPE_CHECKING:
    import torch

__all__ = ["CONTEXT", "load"]

CONTEXT = 512  # echonet/EchoPrime: max_length of a report
_FILES = ("weights/echo_prime_text_encoder.pt", "model_data/weights/echo_prime_text_encoder.pt")
_FILES += ("echo_prime_text_encoder.pt",)
_PREFIX = "backbone.bert."
_PADDING, _SHORTEST = 0, 32  # number of [PAD], tokens of the shortest forward
# The language model's head, tied weights included, and a buffer that older releases of transformers stored.
_LEFT_ASIDE = (
    "backbone.cls.predictions.bias",
    "backbone.cls.predictions.transform.dense.weight",
    "backbone.cls.predictions.transform.dense.bias",
    "backbone.cls.predictions.transform.LayerNorm.weight",
    "backbone.cls.predictions.transform.LayerNorm.bias",
    "backbone.cls.predictions.decoder.weight",
    "backbone.cls.predictions.decoder.bias",
    "backbone.bert.embeddings.position_ids",
)


def load(request: LoadRequest) -> TokenTower:
    """Load the text tower from the folder of the video encoder's weights.

    Raises
    ------
    MissingExtraError
        torch or tokenizers is not installed.
    EnvironmentFailure
        There are no weights, or too little memory.
    StorageError
        The text tower or its tokenizer is not in the folder.
    CorruptionError, HostileInputError, FormatError
        The checkpoint is damaged, wants code to run, or is another model's; the tokenizer is another model's.
    """
    from encoders.bert_model import BertSizes
    from encoders.device import check_memory, pick_device
    from encoders.model_folder import open_state, shape_of, shapes_of_state
    from encoders.state_dict import filled

    device = pick_device(request.device)
    given = request.weights or ECHOPRIME_CARD.locate_weights()
    if given is None:
        raise EnvironmentFailure(
            f"the weights of 'echoprime' are not on this machine (source: {ECHOPRIME_CARD.weights_source}); "
            "give them with --weights echoprime=FOLDER"
        )
    file = find_file(given, _FILES)
    if file is None:
        folder = given if given.is_dir() else given.parent
        raise StorageError(
            f"prompts of echoprime need echo_prime_text_encoder.pt, which is not in {folder}; it is in the folder "
            "weights of the authors' model_data since July 2025"
        )
    check_memory(pick_device("cpu"), needed=file.stat().st_size, name="the text tower of echoprime")
    state, _ = open_state(file, names=(), trusted_sha256=request.trusted_sha256)
    shapes = shapes_of_state(state)
    sizes = BertSizes.read(shapes, prefix=_PREFIX, source=file)
    dim = shape_of(shapes, "text_projection.weight", n_sides=2, source=file)[0]
    from encoders.echoprime_model import TextNetwork

    network = filled(partial(TextNetwork, sizes, dim=dim), state, source=file, may_ignore=_LEFT_ASIDE)
    tokenizer = _tokenizer(file, given, context=min(CONTEXT, sizes.n_positions))
    check_vocabulary(tokenizer, n_known=sizes.vocabulary, source=file)
    return TokenTower(
        network,
        forward=partial(_by_length, network),
        tokenizer=tokenizer,
        spec=request.spec,
        device=device,
        logit=(1.0, None),
    )


def _by_length(network: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Run texts of about one length together, without the padding that none of them needs.

    Padding is masked, so it changes nothing but the time: a prompt has some 20 of the 512 tokens. The shape of a
    forward depends on the batch's size and a text's own length, never on the other texts.
    """
    import torch

    context = tokens.shape[1]
    places = torch.arange(1, context + 1, device=tokens.device)
    lengths = ((tokens != _PADDING) * places).amax(dim=1).tolist()
    cuts = [min(context, max(_SHORTEST, 1 << (length - 1).bit_length())) for length in lengths]
    vectors: dict[int, torch.Tensor] = {}
    for cut in sorted(set(cuts)):
        rows = [row for row, own in enumerate(cuts) if own == cut]
        filled = [rows[at % len(rows)] for at in range(len(cuts))]
        vectors.update(zip(rows, network(tokens[filled, :cut]), strict=False))
    return torch.stack([vectors[row] for row in range(len(cuts))])


def _tokenizer(file: Path, given: Path, *, context: int) -> FileTokenizer:
    """Open the tokenizer beside the tower, or in the folder that was given."""
    for place in (file.parent, given):
        pieces = find_file(place, ["vocab.txt"])
        if pieces is not None:
            return open_word_piece(pieces, context=context, cleaning="none")
        if find_file(place, ["tokenizer.json"]) is not None:
            return open_json(place, context=context, cleaning="none", padding="[PAD]")
    raise StorageError(
        f"prompts of echoprime need vocab.txt or tokenizer.json beside {file}; take it from "
        "https://huggingface.co/microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    )
