"""Tokenizers read from files: against the libraries they stand for, and against the rule written out here."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import ContentError, FormatError, StorageError
from encoders.sentencepiece_file import open_sentencepiece, read_unigram
from encoders.template_tokens import TemplateTokenizer
from encoders.tokens import CLEANING, ClipBytePairs, open_word_piece

# CLIP's byte pairs.


def test_clip_byte_pairs_are_open_clips_own() -> None:
    import open_clip

    prompts = ["THE LV EJECTION FRACTION IS 55%. ", "a photo of a cat", "word " * 200, "caf\u00e9 &amp; \u2019s"]
    tokenizer = ClipBytePairs(context=77)
    tokens = tokenizer(prompts)
    assert np.array_equal(tokens, open_clip.tokenize(prompts).numpy())
    # Start, "a", "photo", "of", "a", "cat", end, as everywhere in the documentation of CLIP.
    assert tokens[1, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert tokens[2, -1] == 49407 and tokenizer.n_tokens == 49408
    assert tokenizer.identity.context == 77 and len(tokenizer.identity.sha256) == 64


# BERT's word pieces.


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "left",
        "ventric",
        "##le",
        "is",
        "55",
        "%",
        ".",
        "e",
        "##f",
    ]
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(words) + "\n", encoding="utf-8")
    return file


def test_word_pieces_as_transformers_cuts_them(vocabulary: Path) -> None:
    from transformers import BertTokenizerFast

    theirs = BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True)
    ours = open_word_piece(vocabulary, context=12, cleaning="none")
    prompts = ["Left VENTRICLE is 55%.", "EF", "\u00c9f [MASK] left", "left " * 30, "unknown word"]
    expected = theirs(prompts, max_length=12, padding="max_length", truncation=True)["input_ids"]
    assert ours(prompts).tolist() == expected
    assert ours(["left ventricle"])[0].tolist() == [2, 5, 6, 7, 3] + [0] * 7


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("a\nb\n", "lacks \\[UNK\\]"), ("[UNK]\n[CLS]\n[SEP]\n[PAD]\ntwo words\n", "one piece a line")],
)
def test_a_file_that_is_no_vocabulary(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(FormatError, match=complaint):
        open_word_piece(tmp_path / "vocab.txt", context=8, cleaning="none")
    with pytest.raises(StorageError, match="cannot be read"):
        open_word_piece(tmp_path / "absent.txt", context=8, cleaning="none")


# SentencePiece.


def field(number: int, kind: int, payload: bytes) -> bytes:
    return varint(number << 3 | kind) + payload


def varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def message(number: int, payload: bytes) -> bytes:
    return field(number, 2, varint(len(payload)) + payload)


def model_file(path: Path, pieces: list[tuple[str, float, int]], *, model_type: int = 1) -> Path:
    """Write a model as google/sentencepiece does: pieces, then settings of the trainer and the normaliser."""
    parts = [
        message(1, message(1, text.encode()) + field(2, 5, struct.pack("<f", score)) + field(3, 0, varint(kind)))
        for text, score, kind in pieces
    ]
    parts.append(message(2, message(1, b"corpus.txt") + field(3, 0, varint(model_type)) + field(4, 0, varint(700))))
    parts.append(message(3, message(1, b"identity")))
    path.write_bytes(b"".join(parts))
    return path


PIECES = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
PIECES += [(text, score, 1) for text, score in [("\u2581", -4.0), ("l", -5.0), ("v", -5.5), ("e", -5.0), ("f", -5.0)]]
PIECES += [
    (text, score, 1) for text, score in [("\u2581lv", -3.5), ("\u2581l", -4.0), ("ef", -3.0), ("\u2581ef", -6.5)]
]


def best_cut(text: str) -> list[int]:
    """The likeliest pieces, by trying every end from left to right."""
    numbers = {piece: (number, score) for number, (piece, score, kind) in enumerate(PIECES) if kind == 1}
    worst = min(score for _, score in numbers.values()) - 10
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(1, len(text) + 1):
        ways = []
        for start in range(end):
            if text[start:end] in numbers:
                number, score = numbers[text[start:end]]
                ways.append((best[start][0] + score, [*best[start][1], number]))
            elif end - start == 1:
                ways.append((best[start][0] + worst, [*best[start][1], 2]))
        best.append(max(ways, key=lambda way: way[0]))
    return best[-1][1]


def test_sentencepiece_finds_the_likeliest_pieces(tmp_path: Path) -> None:
    file = model_file(tmp_path / "spiece.model", PIECES)
    read = read_unigram(file)
    assert [piece for piece, _ in read.pieces] == [piece for piece, _, _ in PIECES] and read.unknown == 2
    tokenizer = open_sentencepiece(file, context=12, cleaning="canonical")
    assert tokenizer.n_tokens == len(PIECES)
    for prompt, spelled in {
        "LV EF.": "\u2581lv\u2581ef",
        "  lve,  f ": "\u2581lve\u2581f",
        "l_v": "\u2581lv",
        "elf": "\u2581elf",
    }.items():
        expected = [*best_cut(spelled), 1]
        assert tokenizer([prompt])[0].tolist() == expected + [1] * (12 - len(expected)), prompt
    unknown = tokenizer(["lv x ef"])[0].tolist()
    assert 2 in unknown and unknown[-1] == 1
    long = tokenizer(["l " * 30])[0]
    assert len(long) == 12 and long[-1] == 1 and long[-2] != 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no unigram model"),
        (b"not a model at all", "no SentencePiece model"),
        (message(1, message(1, b"\xff\xfe")), "no SentencePiece model"),
        (message(1, message(1, b"a"))[:-1], "no SentencePiece model"),
        (field(1, 0, varint(7)), "no SentencePiece model"),
    ],
)
def test_files_that_are_no_sentencepiece_model(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(FormatError, match=complaint):
        read_unigram(tmp_path / "spiece.model")
    with pytest.raises(FormatError, match="no unigram model"):
        read_unigram(model_file(tmp_path / "bpe.model", PIECES, model_type=2))


@given(content=st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_read_or_refused_in_one_sentence(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.model"
    file.write_bytes(content)
    try:
        read_unigram(file)
    except FormatError as error:
        assert str(file) in str(error) and "\n" not in str(error)


# Cleaning.


@given(st.text(max_size=40))
def test_canonical_text_as_open_clip_makes_it(text: str) -> None:
    from open_clip.tokenizer import get_clean_fn

    assert CLEANING["canonicalize"](text) == get_clean_fn("canonicalize")(text)
    assert CLEANING["whitespace"](text) == get_clean_fn("whitespace")(text)


# EchoCLIP-R's phrases.

PHRASES = [
    "LV EJECTION FRACTION IS <#>%. ",
    "THE LEFT ATRIUM IS <#> DILATED. ",
    "<#> DILATED LEFT VENTRICLE",
    "<#> DILATED LEFT VENTRICLE BY VOLUME (<#>CM). ",
    "NO PERICARDIAL EFFUSION. ",
]
# Five special tokens, then the phrases; then the unknown value and, from there, numbers, grades, decimals.
FIRST_VALUE = 5 + len(PHRASES)
N_VALUES = 5 + 101 + 1 + 5 + 10 + 10
START, END = FIRST_VALUE + N_VALUES, FIRST_VALUE + N_VALUES + 1


def phrase(number: int) -> int:
    return 5 + number


def value(text: str) -> int:
    known = [str(number) for number in range(101)]
    known += ["\u2021", "MILD", "MODERATE", "SEVERE", "MILD/MODERATE", "MODERATE/SEVERE"]
    known += [f".{digit}" for digit in range(10)] + [f"0{digit}" for digit in range(10)]
    return FIRST_VALUE + 5 + known.index(text)


@pytest.fixture
def template(tmp_path: Path) -> TemplateTokenizer:
    file = tmp_path / "template_vocab.txt"
    file.write_text("\n".join(PHRASES) + "\n", encoding="utf-8")
    return TemplateTokenizer(file, context=16)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("LV EJECTION FRACTION IS 55%. ", [phrase(0), value("55")]),
        ("lv ejection fraction is 55 %.", [phrase(0), value("55")]),
        ("LV EJECTION FRACTION IS 7.5%.", [phrase(0), value("7"), value(".5")]),
        ("LV EJECTION FRACTION IS 135%.", [phrase(0), value("13"), value("5")]),
        ("The left atrium was mildly dilated. No pericardial effusion.", [phrase(1), value("MILD"), phrase(4)]),
        ("Moderate/severe dilated left ventricle", [phrase(2), value("MODERATE/SEVERE")]),
        (
            "SEVERELY DILATED LEFT VENTRICLE BY VOLUME (6.1 CM).",
            [phrase(3), value("SEVERE"), value("\u2021"), value("6"), value(".1")],
        ),
        # What no phrase covers leaves no token, and its numbers are not given to the next phrase.
        ("HEART RATE 72. LV EJECTION FRACTION IS 60%.", [phrase(0), value("60")]),
        ("05/06/2019 I42.0 NO [PERICARDIAL] EFFUSION.", [phrase(4)]),
    ],
)
def test_phrases_and_their_values(template: TemplateTokenizer, prompt: str, expected: list[int]) -> None:
    row = template([prompt])[0].tolist()
    assert row == [START, *expected, END] + [0] * (14 - len(expected))


def test_numbers_of_tokens_as_published(tmp_path: Path) -> None:
    """770 phrases make 775 tokens; 132 values follow; start and end are 907 and 908."""
    file = tmp_path / "template_vocab.txt"
    file.write_text("\n".join(f"SENTENCE {chr(65 + n // 26)}{chr(65 + n % 26)} ENDS. " for n in range(770)))
    tokens = TemplateTokenizer(file, context=77)
    made = tokens(["SENTENCE AA ENDS. "])[0]
    assert made[0] == 907 and made[1] == 5 and made[2] == 908 and tokens.n_tokens == 909
    assert made.shape == (77,) and int(made.argmax()) == 2


def test_long_reports_are_cut_and_end(template: TemplateTokenizer) -> None:
    row = template(["NO PERICARDIAL EFFUSION. " * 40])[0]
    assert len(row) == 16 and row[0] == START and row[-1] == END and (row[1:-1] == phrase(4)).all()


def test_prompts_without_any_phrase_are_refused(template: TemplateTokenizer) -> None:
    with pytest.raises(ContentError, match="'a photo of a heart' holds no phrase of EchoCLIP-R's vocabulary"):
        template(["LV EJECTION FRACTION IS 55%. ", "a photo of a heart"])
    assert template.uncovered("LV EJECTION FRACTION IS 55%. ") == []
    assert template.uncovered("Heart of oak. LV ejection fraction is 5%.") == ["HEART OF OAK."]


def test_template_files_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "template_vocab.txt").write_text("\n \n")
    with pytest.raises(FormatError, match="holds no phrases"):
        TemplateTokenizer(tmp_path / "template_vocab.txt", context=77)
    with pytest.raises(StorageError, match="cannot be read"):
        TemplateTokenizer(tmp_path / "absent.txt", context=77)
