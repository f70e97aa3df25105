"""EchoCLIP-R's tokenizer: whole phrases of echo reports are tokens, and the numbers in them are tokens of their own.

The phrases are the authors' file ``template_vocab.txt``, which is theirs to give and is read from where the user put
it. A phrase has slots, written ``<#>``, for numbers and grades of severity. A report is cleaned (upper case, present
tense, short forms), its numbers and grades are taken out, the longest known phrases are found from left to right, and
behind each phrase come the tokens of what stood in its slots. Text that no phrase covers leaves no token, as
published; `TemplateTokenizer.uncovered` tells it, and a prompt without any known phrase is an error.

Two rules of the authors for old reports are left out: they add the full stop that some sentences lack, and replace
two wordings. A prompt has to end its sentences itself, in the words of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.errors import ContentError, FormatError, StorageError
from encoders.checkpoint import sha256_of_file
from encoders.text import TokenizerIdentity, Tokens
from encoders.tokens import _library

__all__ = ["TemplateTokenizer"]

_SLOT = "<#>"
_UNKNOWN = "[UNK]"
_SPECIAL = (_UNKNOWN, "[CLS]", "[SEP]", "[PAD]", "[MASK]")
_BETWEEN = "\u2021"  # stands between the values of two slots of one phrase
_GRADES = ("MILD", "MODERATE", "SEVERE", "MILD/MODERATE", "MODERATE/SEVERE")
_VALUES = (
    *(str(number) for number in range(101)),
    _BETWEEN,
    *_GRADES,
    *(f".{digit}" for digit in range(10)),
    *(f"0{digit}" for digit in range(10)),
)
_LONGEST_WORD = 500

# Longer grades before those that they begin with; 'VERY SEVERE' is taken out whole, and is no known value.
_VALUE = re.compile(r"\d+\.?\d*|(?<![A-Za-z])(?:MODERATE/SEVERE|MILD/MODERATE|MILD|MODERATE|SEVERE|VERY SEVERE)")

# Cleaning, in order: what is found, and what it becomes.
_CLEANING: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("`", "'"),
        (rf"\^|CRLF|{_BETWEEN}", ""),
        (r"(?<=\D)\.|\.(?=\D)", ". "),  # a full stop, unlike a decimal point, is followed by a space
        (r"[\[\]]", ""),
        (r"\bWAS\b", "IS"),
        (r"\bWERE\b", "ARE"),
        (r"\bAND/OR\b", "AND"),
        (r"(NORMAL|MILD|MODERATE|SEVERE)LY", r"\1"),
        ("PULMONARY ARTERY", "PA"),
        (r"\d{2}/\d{2}/\d{4}|\d{2}\.\d{2}\.\d{4}", ""),  # dates
        (r"[A-Z]\d+\.\d*\b", ""),  # codes of diagnoses
        (r"\s+(MMHG|MM|CM|%)", r"\1"),
        (r"\s\.", "."),
        (r"\s+", " "),
        (r"\s\+\s", "+"),
        (r"\+CVPMMHG", "MMHG"),
    )
)
_FULL_STOPS = re.compile(r"\.+")


def _cleaned(report: str) -> str:
    text = report.upper().strip()
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    return _FULL_STOPS.sub(".", f"{text.strip()} ")


class TemplateTokenizer:
    """Reports to tokens.

    Parameters
    ----------
    file : Path
        The authors' ``template_vocab.txt``: one phrase a line.
    context : int
        Tokens of a text; a longer one is cut and ends with the end token.

    Raises
    ------
    StorageError
        The file cannot be read.
    FormatError
        It holds no phrases.
    """

    def __init__(self, file: Path, *, context: int) -> None:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"vocabulary {file} cannot be read: {error}") from error
        phrases = [line for line in lines if line.strip()]
        if not phrases or any(len(phrase) > 10_000 for phrase in phrases):
            raise FormatError(f"vocabulary {file} holds no phrases, one a line")
        self._phrases = _added(phrases)
        self._values = _added([_UNKNOWN, *_VALUES])
        self._first_value = self._phrases.get_vocab_size()
        self._start = self._first_value + self._values.get_vocab_size()
        self._end = self._start + 1
        self.n_tokens = self._end + 1
        self.identity = TokenizerIdentity(kind="echo-clip-r template", sha256=sha256_of_file(file), context=context)

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Return ``(P, context)`` int64.

        Raises
        ------
        ContentError
            A prompt holds no known phrase.
        """
        made = np.zeros((len(prompts), self.identity.context), dtype=np.int64)
        for row, prompt in zip(made, prompts, strict=True):
            tokens = [self._start, *self._cut(prompt), self._end][: len(row)]
            tokens[-1] = self._end
            row[: len(tokens)] = tokens
        return made

    def uncovered(self, prompt: str) -> list[str]:
        """Return the parts of a cleaned prompt that no phrase covers and that leave no token."""
        _, text = _taken_out(_cleaned(prompt))
        found = self._phrases.encode(text)
        pieces = (
            text[start:stop].strip()
            for (start, stop), token in zip(found.offsets, found.tokens, strict=True)
            if token == _UNKNOWN
        )
        return [piece for piece in pieces if piece]

    def covers(self, prompt: str) -> bool:
        """Return whether a prompt holds a phrase of the vocabulary, so that there is something to embed."""
        _, text = _taken_out(_cleaned(prompt))
        return any(phrase != _UNKNOWN for phrase in self._phrases.encode(text).tokens)

    def _cut(self, prompt: str) -> list[int]:
        values, text = _taken_out(_cleaned(prompt))
        found = self._phrases.encode(text)
        tokens: list[int] = []
        n_seen = 0
        for (start, stop), phrase, number in zip(found.offsets, found.tokens, found.ids, strict=True):
            n_slots = text[start:stop].count(_SLOT)
            held = values[n_seen : n_seen + n_slots]
            n_seen += n_slots
            if phrase == _UNKNOWN:
                continue
            tokens.append(number)
            if held:
                numbers = self._values.encode(_BETWEEN.join(held)).ids
                tokens += [self._first_value + value for value in numbers]
        if not tokens:
            raise ContentError(
                f"prompt {prompt[:80]!r} holds no phrase of EchoCLIP-R's vocabulary; it would be empty"
            )
        return tokens


def _taken_out(text: str) -> tuple[list[str], str]:
    """Return the numbers and grades of a text in order, and the text with slots in their place."""
    return _VALUE.findall(text), _VALUE.sub(_SLOT, text)


def _added(tokens: Sequence[str]) -> Any:
    """A tokenizer that knows whole strings only; the longest from the left is taken, the rest is unknown."""
    library = _library()
    numbers = {token: number for number, token in enumerate(_SPECIAL)}
    tokenizer = library.Tokenizer(
        library.models.WordPiece(numbers, unk_token=_UNKNOWN, max_input_chars_per_word=_LONGEST_WORD)
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.add_tokens(list(tokens))
    return tokenizer
