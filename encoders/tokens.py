"""Tokenizers of published text towers: CLIP's byte pairs, and those that lie as files beside the weights."""

from __future__ import annotations

import hashlib
import html
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.errors import FormatError, MissingExtraError, StorageError
from encoders.checkpoint import sha256_of_file
from encoders.model_folder import find_file, read_settings
from encoders.text import TokenizerIdentity, Tokens

__all__ = ["CLEANING", "ClipBytePairs", "FileTokenizer", "open_json", "open_word_piece"]


def _unmangled(text: str) -> str:
    """Undo what wrong decoding and HTML do to a text, as open_clip does before it cuts any."""
    try:
        import ftfy
    except ImportError as error:
        raise MissingExtraError(
            "prompts of CLIP models need the package ftfy, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        ) from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _canonical(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces.

    google-research/big_vision, evaluators/proj/image_text/prompt_engineering.py, canonicalize_text.
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


#: What is done to a prompt before it is cut, by name; the name is part of a tokenizer's identity.
CLEANING: Mapping[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": str.lower,  # SigLIP 2
    "whitespace": _unmangled,  # open_clip's default for tokenizers of the hub
    "canonicalize": lambda text: _canonical(_unmangled(text).replace("_", " ")),  # open_clip's for SigLIP
    "canonical": _canonical,  # SigLIP in transformers
}


class ClipBytePairs:
    """CLIP's own tokenizer, whose vocabulary is a file of open_clip: start, lower-cased byte pairs, end, zeros.

    Parameters
    ----------
    context : int
        Tokens of a text.
    """

    def __init__(self, *, context: int) -> None:
        from open_clip.tokenizer import SimpleTokenizer, default_bpe

        self._tokenizer = SimpleTokenizer(context_length=context)
        self.n_tokens: int = self._tokenizer.vocab_size
        self.identity = TokenizerIdentity(
            kind="clip-byte-pairs", sha256=sha256_of_file(Path(default_bpe())), context=context
        )

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Return ``(P, context)`` int64; what is too long is cut and ends with the end token."""
        return np.asarray(self._tokenizer(list(prompts)).numpy(), dtype=np.int64)


class FileTokenizer:
    """A tokenizer of the library tokenizers, padded and cut to one length.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    identity : TokenizerIdentity
    cleaning : str
        A name in `CLEANING`.
    padding : str
        The token that fills.
    side : {"right", "left"}
        Where it fills.
    """

    def __init__(
        self, tokenizer: Any, *, identity: TokenizerIdentity, cleaning: str, padding: str, side: str = "right"
    ) -> None:
        number = tokenizer.token_to_id(padding)
        if number is None:
            raise FormatError(f"the tokenizer {identity.kind} has no padding token {padding!r}")
        tokenizer.enable_truncation(identity.context)
        tokenizer.enable_padding(direction=side, pad_id=number, pad_token=padding, length=identity.context)
        self._tokenizer = tokenizer
        self._clean = CLEANING[cleaning]
        self.identity = identity
        self.n_tokens: int = tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Return ``(P, context)`` int64."""
        cut = self._tokenizer.encode_batch([self._clean(prompt) for prompt in prompts])
        return np.array([encoding.ids for encoding in cut], dtype=np.int64).reshape(
            len(prompts), self.identity.context
        )


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError(
            "prompts need the package tokenizers, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        ) from error
    return tokenizers


def _token(stated: Any) -> str | None:
    """The text of a special token in tokenizer_config.json, which states it plainly or as an object."""
    if isinstance(stated, Mapping):
        stated = stated.get("content")
    return stated if isinstance(stated, str) else None


def open_json(path: Path, *, context: int, cleaning: str, padding: str) -> FileTokenizer:
    """Open ``tokenizer.json`` beside weights, with what ``tokenizer_config.json`` says of padding and special tokens.

    Parameters
    ----------
    path : Path
        The folder of the weights, or their file.
    context : int
        Tokens of a text.
    cleaning : str
        A name in `CLEANING`.
    padding : str
        The token that fills, where the settings do not name one.

    Raises
    ------
    StorageError
        There is no such file.
    FormatError
        It is no tokenizer.
    """
    library = _library()
    file = find_file(path, ["tokenizer.json"])
    if file is None:
        folder = path if path.is_dir() else path.parent
        raise StorageError(
            f"prompts need the model's own tokenizer, and {folder} has no tokenizer.json; fetch it from where the "
            "weights come from and put it beside them"
        )
    try:
        tokenizer = library.Tokenizer.from_file(str(file))
    except Exception as error:
        raise FormatError(f"tokenizer {file} cannot be read: {error}") from error
    settings = read_settings(file.parent, "tokenizer_config.json") or {}
    _set_special_tokens(library, tokenizer, settings)
    side = settings.get("padding_side", "right")
    if side not in ("right", "left"):
        raise FormatError(f"tokenizer_config.json beside {file} pads on the side {side!r}")
    digest = hashlib.sha256(sha256_of_file(file).encode("ascii"))
    digest.update(repr(sorted((key, repr(settings.get(key))) for key in _SETTINGS)).encode("utf-8"))
    identity = TokenizerIdentity(kind=f"tokenizer.json after {cleaning}", sha256=digest.hexdigest(), context=context)
    return FileTokenizer(
        tokenizer,
        identity=identity,
        cleaning=cleaning,
        padding=_token(settings.get("pad_token")) or padding,
        side=side,
    )


# Settings of tokenizer_config.json that change tokens here.
_SETTINGS = ("add_bos_token", "add_eos_token", "bos_token", "eos_token", "pad_token", "padding_side")


def _set_special_tokens(library: Any, tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Put start and end tokens as the settings of a Gemma or Llama tokenizer say, where they say both."""
    flags = {name: settings.get(f"add_{name}_token") for name in ("bos", "eos")}
    if None in flags.values():
        return
    tokens = {name: _token(settings.get(f"{name}_token")) for name, flag in flags.items() if flag}
    numbers = {name: tokenizer.token_to_id(token) if token else None for name, token in tokens.items()}
    absent = [name for name, number in numbers.items() if number is None]
    if absent:
        raise FormatError(f"tokenizer_config.json asks for {absent[0]} tokens, which the tokenizer does not have")
    template = ["$A:0"]
    if "bos" in tokens:
        template.insert(0, f"{tokens['bos']}:0")
    if "eos" in tokens:
        template.append(f"{tokens['eos']}:0")
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=" ".join(template), special_tokens=[(tokens[name], numbers[name]) for name in tokens]
    )


_LINE = re.compile(r"\S+")


def open_word_piece(file: Path, *, context: int, cleaning: str) -> FileTokenizer:
    """Open the ``vocab.txt`` of an uncased BERT: one piece a line, its number the line's.

    Raises
    ------
    StorageError
        The file cannot be read.
    FormatError
        It is no such vocabulary.
    """
    library = _library()
    try:
        pieces = [line.rstrip("\r\n") for line in file.read_text(encoding="utf-8").splitlines(keepends=True)]
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"vocabulary {file} cannot be read: {error}") from error
    numbers = {piece: number for number, piece in enumerate(pieces)}
    absent = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if token not in numbers]
    if absent or not all(_LINE.fullmatch(piece) for piece in pieces):
        raise FormatError(f"vocabulary {file} is not BERT's: it lacks {', '.join(absent) or 'one piece a line'}")
    tokenizer = library.Tokenizer(library.models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", special_tokens=special
    )
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *(["[MASK]"] if "[MASK]" in numbers else [])])
    identity = TokenizerIdentity(
        kind=f"uncased word pieces after {cleaning}", sha256=sha256_of_file(file), context=context
    )
    return FileTokenizer(tokenizer, identity=identity, cleaning=cleaning, padding="[PAD]")
