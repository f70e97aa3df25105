"""Reading a SentencePiece unigram model (``spiece.model``) into the library tokenizers, without SentencePiece itself.

The file is one protocol-buffer message, ``ModelProto`` of google/sentencepiece, src/sentencepiece_model.proto. Needed
are the pieces with their scores, the kind of model, and the table of the normaliser; the rest is passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.errors import FormatError, HostileInputError, StorageError
from encoders.checkpoint import sha256_of_file
from encoders.text import TokenizerIdentity
from encoders.tokens import FileTokenizer, _library

__all__ = ["UnigramFile", "open_sentencepiece", "read_unigram"]

_MAX_BYTES = 1 << 28
# Fields of the messages, and values of ModelProto.SentencePiece.Type and TrainerSpec.ModelType.
_PIECES, _TRAINER, _NORMALISER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TYPE_UNKNOWN = 2
_MODEL_TYPE, _UNIGRAM, _BYTE_FALLBACK = 3, 1, 35
_CHARSMAP = 2
_SPACE = "\u2581"
_END = "</s>"


@dataclass(frozen=True)
class UnigramFile:
    """Pieces and their log probabilities in order, the unknown piece's place, and the normaliser's table."""

    pieces: tuple[tuple[str, float], ...]
    unknown: int
    byte_fallback: bool
    charsmap: bytes


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(buffer) or shift > 63:
            raise ValueError("a number is cut off")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _fields(buffer: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a message: int, four or eight bytes, or bytes."""
    at = 0
    while at < len(buffer):
        key, at = _varint(buffer, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(buffer, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(buffer, at)
        else:
            length = {1: 8, 5: 4}.get(kind, -1)
        if length < 0 or at + length > len(buffer):
            raise ValueError("a field is cut off or of an unknown kind")
        yield number, buffer[at : at + length]
        at += length


def _piece(message: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(message):
        if number == _PIECE_TEXT:
            text = value.decode("utf-8")
        elif number == _PIECE_SCORE:
            score = struct.unpack("<f", value)[0]
        elif number == _PIECE_TYPE:
            kind = value
    return text, score, kind


def read_unigram(file: Path) -> UnigramFile:
    """Read a model file.

    Raises
    ------
    StorageError
        The file cannot be read.
    HostileInputError
        It is larger than any vocabulary.
    FormatError
        It is no unigram model of SentencePiece.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise HostileInputError(f"vocabulary {file} is larger than {_MAX_BYTES >> 20} MiB; it is no vocabulary")
        content = file.read_bytes()
    except OSError as error:
        raise StorageError(f"vocabulary {file} cannot be read: {error.strerror or error}") from error
    pieces: list[tuple[str, float]] = []
    unknown, model_type, byte_fallback, charsmap = -1, _UNIGRAM, False, b""
    try:
        for number, value in _fields(content):
            if number == _PIECES:
                text, score, kind = _piece(value)
                unknown = len(pieces) if kind == _TYPE_UNKNOWN else unknown
                pieces.append((text, score))
            elif number == _TRAINER:
                stated = dict(_fields(value))
                model_type = stated.get(_MODEL_TYPE, _UNIGRAM)
                byte_fallback = bool(stated.get(_BYTE_FALLBACK, 0))
            elif number == _NORMALISER:
                charsmap = dict(_fields(value)).get(_CHARSMAP, b"")
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise FormatError(f"vocabulary {file} is no SentencePiece model ({error}); fetch it again") from error
    if model_type != _UNIGRAM or unknown < 0 or not isinstance(charsmap, bytes):
        raise FormatError(f"vocabulary {file} is no unigram model of SentencePiece with an unknown piece")
    return UnigramFile(pieces=tuple(pieces), unknown=unknown, byte_fallback=byte_fallback, charsmap=charsmap)


def open_sentencepiece(file: Path, *, context: int, cleaning: str) -> FileTokenizer:
    """Open a vocabulary as SigLIP uses it: words with a leading space mark, ``</s>`` at the end and as padding.

    Raises
    ------
    StorageError, HostileInputError, FormatError
        As `read_unigram`, or the vocabulary has no ``</s>``.
    """
    library = _library()
    model = read_unigram(file)
    tokenizer = library.Tokenizer(
        library.models.Unigram(list(model.pieces), unk_id=model.unknown, byte_fallback=model.byte_fallback)
    )
    steps = [library.normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    # Only runs of spaces are left to squeeze after cleaning: those that the table above makes.
    steps.append(library.normalizers.Replace(library.Regex(" {2,}"), " "))
    tokenizer.normalizer = library.normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme="always", split=False
    )
    end = tokenizer.token_to_id(_END)
    if end is None:
        raise FormatError(f"vocabulary {file} has no end token {_END}")
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=f"$A:0 {_END}:0", special_tokens=[(_END, end)]
    )
    identity = TokenizerIdentity(
        kind=f"sentencepiece unigram after {cleaning}", sha256=sha256_of_file(file), context=context
    )
    return FileTokenizer(tokenizer, identity=identity, cleaning=cleaning, padding=_END)
