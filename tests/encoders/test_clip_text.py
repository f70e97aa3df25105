"""Text towers of the CLIP family, against towers from plain layers and transformers' BERT; tokenizers that lack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from embedstore.encoder import LoadRequest
from embedstore.errors import FormatError, StorageError, UnknownNameError
from encoders.clip_family import BIOMEDCLIP_CARD, CLIP_CARD, ECHO_CLIP_CARD, ECHO_CLIP_R_CARD, fit
from encoders.pixel_stats import CARD as PIXEL_STATS
from encoders.text import TextTower, load_text_tower
from encoders.tokens import ClipBytePairs

PROMPTS = ["LV EJECTION FRACTION IS 55%. ", "SEVERE DILATED LEFT ATRIUM. "]


def tower_of(card, weights: Path) -> TextTower:
    return load_text_tower(card, LoadRequest(spec=card.spec(), weights=weights, device="cpu"))


def clip_text(state: dict[str, torch.Tensor], tokens: np.ndarray, *, quick: bool) -> np.ndarray:
    """CLIP's text tower (arXiv:2103.00020) from torch's own layer, read out where the highest token stands."""
    width = state["ln_final.weight"].shape[0]
    numbers = torch.from_numpy(tokens)
    states = state["token_embedding.weight"][numbers] + state["positional_embedding"]
    n_tokens = states.shape[1]
    mask = torch.triu(torch.full((n_tokens, n_tokens), -torch.inf), diagonal=1)
    block = 0
    while f"transformer.resblocks.{block}.ln_1.weight" in state:
        part = {
            key.removeprefix(f"transformer.resblocks.{block}."): value
            for key, value in state.items()
            if key.startswith(f"transformer.resblocks.{block}.")
        }
        attention = torch.nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)
        attention.load_state_dict({k.removeprefix("attn."): v for k, v in part.items() if k.startswith("attn.")})
        normed = functional.layer_norm(states, (width,), part["ln_1.weight"], part["ln_1.bias"])
        states = states + attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        normed = functional.layer_norm(states, (width,), part["ln_2.weight"], part["ln_2.bias"])
        inner = functional.linear(normed, part["mlp.c_fc.weight"], part["mlp.c_fc.bias"])
        inner = inner * torch.sigmoid(1.702 * inner) if quick else functional.gelu(inner)
        states = states + functional.linear(inner, part["mlp.c_proj.weight"], part["mlp.c_proj.bias"])
        block += 1
    states = functional.layer_norm(states, (width,), state["ln_final.weight"], state["ln_final.bias"])
    pooled = states[torch.arange(len(states)), numbers.argmax(dim=1)] @ state["text_projection"]
    return functional.normalize(pooled, dim=-1).detach().numpy()


@pytest.mark.parametrize(("card", "quick"), [(ECHO_CLIP_CARD, False), (CLIP_CARD, True)])
def test_clip_texts_equal_a_tower_from_plain_layers(card, quick: bool, small) -> None:
    folder, theirs = small(card.name)
    state = theirs.state_dict()
    tower = tower_of(card, folder)
    vectors = tower.embed(PROMPTS)
    expected = clip_text(state, ClipBytePairs(context=77)(PROMPTS), quick=quick)
    assert vectors.shape == (2, 512) and vectors.dtype == np.float32 and tower.dim == 512
    assert np.abs(vectors - expected).max() <= 1e-5
    assert np.abs(vectors - clip_text(state, ClipBytePairs(context=77)(PROMPTS), quick=not quick)).max() > 1e-5
    assert tower.logit_scale == pytest.approx(float(theirs.logit_scale.detach().exp())) and tower.logit_bias is None
    assert tower.tokenizer.kind == "clip-byte-pairs"


def test_echo_clip_r_texts_are_phrases(small) -> None:
    folder, theirs = small("echo-clip-r")
    tower = tower_of(ECHO_CLIP_R_CARD, folder)
    vectors = tower.embed(PROMPTS)
    # Five special tokens and three phrases; 132 values, 5 special ones first, then 0 to 100 and the grades.
    start, end, first_value = 140, 141, 8 + 5
    tokens = np.zeros((2, 77), dtype=np.int64)
    tokens[0, :4] = [start, 5, first_value + 55, end]
    tokens[1, :4] = [start, 6, first_value + 101 + 3, end]
    assert np.abs(vectors - clip_text(theirs.state_dict(), tokens, quick=False)).max() <= 1e-5
    assert tower.tokenizer.kind == "echo-clip-r template"


def test_biomedclip_texts_equal_transformers_bert(small) -> None:
    folder, theirs = small("biomedclip")
    tower = tower_of(BIOMEDCLIP_CARD, folder)
    vectors = tower.embed(["this is a photo of a normal left ventricle", "EF 55 %"])
    words = (folder / "vocab.txt").read_text().split("\n")
    cut = ["[CLS] this is a photo of a normal left ventric ##le [SEP]", "[CLS] e ##f 55 % [SEP]"]
    tokens = torch.zeros(2, 32, dtype=torch.long)
    for row, pieces in zip(tokens, cut, strict=True):
        numbers = [words.index(piece) for piece in pieces.split()]
        row[: len(numbers)] = torch.tensor(numbers)
    with torch.inference_mode():
        states = theirs.text.transformer(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state
        expected = functional.normalize(theirs.text.proj(states[:, 0]), dim=-1).numpy()
    assert np.abs(vectors - expected).max() <= 1e-5
    assert tower.tokenizer.context == 32
    assert tower.logit_scale == pytest.approx(float(theirs.logit_scale.detach().exp()))


def test_image_and_text_of_one_file_stand_in_one_space(small, a4c_frames: np.ndarray) -> None:
    from embedstore.encoder import load_encoder

    folder, theirs = small("clip")
    encoder = load_encoder(CLIP_CARD, LoadRequest(spec=CLIP_CARD.spec(), weights=folder, device="cpu"))
    frames = encoder.preprocess(a4c_frames[:1])
    ours = encoder.encode(frames).vectors @ tower_of(CLIP_CARD, folder).embed(["a heart"]).T
    images = (
        torch.from_numpy(frames).movedim(3, 1) / 255 - torch.tensor(CLIP_CARD.preprocessing["mean"])[:, None, None]
    )
    images = images / torch.tensor(CLIP_CARD.preprocessing["std"])[:, None, None]
    with torch.inference_mode():
        image, text, _ = theirs(images, torch.from_numpy(ClipBytePairs(context=77)(["a heart"])))
    assert np.abs(ours - (image @ text.T).numpy()).max() <= 1e-5


def test_a_vocabulary_that_is_not_the_towers_is_refused(small, tmp_path: Path) -> None:
    folder, _ = small("echo-clip-r")
    with pytest.raises(FormatError, match=r"knows 1000 tokens, CLIP's byte pairs are 49408; is it another model's"):
        tower_of(ECHO_CLIP_CARD, folder)
    copied = tmp_path / "echo-clip-r"
    shutil.copytree(folder, copied)
    (copied / "template_vocab.txt").write_text("\n".join(f"PHRASE {chr(65 + n % 26)}{n}. " for n in range(900)))
    with pytest.raises(FormatError, match=r"makes 1039 tokens, the text tower knows 1000"):
        tower_of(ECHO_CLIP_R_CARD, copied)
    biomed = tmp_path / "biomedclip"
    shutil.copytree(small("biomedclip")[0], biomed)
    words = (biomed / "vocab.txt").read_text()
    (biomed / "vocab.txt").write_text(words + "".join(f"word{n}\n" for n in range(50)))
    with pytest.raises(FormatError, match=r"has \d+ tokens, the text tower of .* knows \d+; is it another model's"):
        tower_of(BIOMEDCLIP_CARD, biomed)


def test_nothing_falls_back_on_another_tokenizer(small, tmp_path: Path) -> None:
    for name, card, file, complaint in [
        ("echo-clip-r", ECHO_CLIP_R_CARD, "template_vocab.txt", r"need the authors' template_vocab.txt.*github.com"),
        ("biomedclip", BIOMEDCLIP_CARD, "vocab.txt", r"need the model's own tokenizer, and .* has no tokenizer.json"),
    ]:
        copied = tmp_path / name
        shutil.copytree(small(name)[0], copied)
        (copied / file).unlink()
        with pytest.raises(StorageError, match=complaint):
            tower_of(card, copied)


def test_tokenizer_settings_that_are_not_offered(small, tmp_path: Path) -> None:
    copied = tmp_path / "clip"
    shutil.copytree(small("clip")[0], copied)
    stored = json.loads((copied / "open_clip_config.json").read_text())
    stored["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "someone/theirs",
        "tokenizer_kwargs": {"strip_sep_token": True},
    }
    (copied / "open_clip_config.json").write_text(json.dumps(stored))
    with pytest.raises(FormatError, match=r"ask for a tokenizer that is not offered: {'strip_sep_token': True}"):
        tower_of(CLIP_CARD, copied)
    assert load_file(copied / "open_clip_model.safetensors").keys()
    assert fit(CLIP_CARD, variant="published", weights=copied).clip_dim == 512


def test_an_encoder_without_text_says_so() -> None:
    with pytest.raises(UnknownNameError, match="'pixel-stats' has no text tower"):
        load_text_tower(PIXEL_STATS, LoadRequest(spec=PIXEL_STATS.spec(), weights=None))
