"""Banks from models in the published form: a build embeds them, a changed prompt or tokenizer is another bank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from small_sets import run_program

import embedstore
from embedstore.build import banks as banks_module
from embedstore.build.bank_owner import BankOwner, find_owner
from embedstore.build.banks import embed_banks
from embedstore.cli.main import program
from embedstore.encoder import LoadRequest
from embedstore.errors import FormatError, StorageError, StoreNotFoundError, UnknownNameError
from embedstore.prompts import Prompt, PromptBank, prompt_banks
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store
from encoders.clip_family import BIOMEDCLIP_CARD, CLIP_CARD
from encoders.text import load_text_tower

SMALL = PromptBank(
    "small",
    (
        Prompt(task="as", prompt="Severe. ", label="true"),
        Prompt(task="as", prompt="None", label="false"),
        Prompt(task="lvef", prompt="EF 55 %", value=55.0, template=0),
    ),
)


@pytest.fixture
def one_small_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install one bank of three prompts in place of the published one."""
    monkeypatch.setattr(banks_module, "prompt_banks", lambda: {"small": SMALL})


def run(*arguments: object) -> tuple[int, Any, str]:
    done = CliRunner().invoke(program, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout, done.stderr


def owner_of(title: str, weights: Path) -> BankOwner:
    return find_owner(title, weights={title.partition("@")[0]: weights}, trusted={}, device="cpu")


def test_a_build_embeds_the_installed_bank_once_for_all_variants(small, embed_folder, tmp_path: Path) -> None:
    folder, _ = small("clip")
    built = embed_folder("clip", folder, {"a": 6, "still": 1}, "--root", tmp_path / "clips")
    store = embedstore.open(tmp_path / "store")
    (bank,) = store.banks()
    expected = prompt_banks()["embedstore-v1"]
    assert (bank.kind, bank.name, bank.encoder) == ("prompts", "embedstore-v1", "clip")
    assert bank.weights_sha256 == built.spec.weights_sha256 is not None
    assert bank.rows.to_pylist() == [vars(prompt) for prompt in expected.prompts]
    tower = load_text_tower(CLIP_CARD, LoadRequest(spec=CLIP_CARD.spec(), weights=folder, device="cpu"))
    some = [0, 7, 30, len(expected) - 1]
    again = tower.embed([expected.prompts[row].prompt for row in some])
    np.testing.assert_allclose(bank.vectors[some], again, atol=1e-6)
    assert bank.spec["bank_digest"] == expected.digest and bank.spec["logit_scale"] == tower.logit_scale
    assert bank.spec["tokenizer"] == tower.tokenizer.to_dict() and bank.spec["logit_bias"] is None
    # Zero-shot from here on needs neither torch nor the model: unit vectors on both sides, in one space.
    np.testing.assert_allclose(np.linalg.norm(bank.vectors[:], axis=1), 1, atol=1e-5)
    assert bank.vectors.shape[1] == built.clips.shape[1]
    n_commits = len(store.log())
    embed_folder("clip@cardiobench", folder, {}, "--root", tmp_path / "clips")
    assert [one.bank_id for one in store.banks()] == [bank.bank_id]
    assert len(store.log()) == n_commits + 1, "one commit, the set's"
    assert verify_store(store, quick=False).ok


@pytest.mark.usefixtures("one_small_bank")
def test_a_missing_tokenizer_is_said_and_loses_nothing(small, embed_folder, tmp_path: Path) -> None:
    folder = tmp_path / "biomedclip"
    shutil.copytree(small("biomedclip")[0], folder)
    words = (folder / "vocab.txt").read_text()
    (folder / "vocab.txt").unlink()
    built = embed_folder("biomedclip", folder, {"a": 4}, "--root", tmp_path / "clips")
    again = ["build", "--encoder", "biomedclip", "--weights", f"biomedclip={folder}", "--store", tmp_path / "store"]
    again += ["--root", tmp_path / "clips"]
    code, document, stderr = run(*again, "--device", "cpu", "--json")
    assert code == 0 and document["sets"][0]["set"] == built.set_id
    (bank,) = document["banks"]
    assert (bank["status"], bank["bank"]) == ("skipped", None) and "has no tokenizer.json" in bank["detail"]
    assert stderr.count("was skipped: ") == 1 and "Traceback" not in stderr
    with pytest.raises(StorageError, match="put it beside them"):
        run("prompts", "add", "embedstore-v1", *again[1:-2], "--device", "cpu")
    # Another model's tokenizer is an error, and the sets stand all the same.
    (folder / "vocab.txt").write_text(words + "".join(f"word{n}\n" for n in range(50)))
    code, document, stderr = run(*again, "--device", "cpu", "--json")
    assert code == 4 and document["sets"][0]["set"] == built.set_id
    assert document["banks"][0]["status"] == "refused" and "is it another model's" in stderr
    (folder / "vocab.txt").write_text(words)
    code, document, _ = run(*again, "--device", "cpu", "--json")
    assert code == 0 and [bank["status"] for bank in document["banks"]] == ["made"]
    assert embedstore.open(tmp_path / "store").bank(kind="prompts", encoder="biomedclip").name == "small"


@pytest.mark.usefixtures("one_small_bank")
def test_the_key_holds_texts_tokenizer_and_weights(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "store")
    folder = tmp_path / "biomedclip"
    shutil.copytree(small("biomedclip")[0], folder)

    def embed() -> tuple[str, str]:
        (outcome,) = embed_banks(store, [owner_of("biomedclip", folder), owner_of("biomedclip", folder)])
        assert outcome.bank_id is not None
        return outcome.status, outcome.bank_id

    status, first = embed()
    assert status == "made" and embed() == ("kept", first)
    # One word of one prompt.
    edited = PromptBank("small", (Prompt(task="as", prompt="Mild. ", label="true"), *SMALL.prompts[1:]))
    monkeypatch.setattr(banks_module, "prompt_banks", lambda: {"small": edited})
    status, second = embed()
    assert status == "made" and second != first
    # Another vocabulary beside the same weights.
    words = (folder / "vocab.txt").read_text().split("\n")
    (folder / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:-1])]) + "\n")
    status, third = embed()
    assert status == "made" and third not in (first, second)
    assert store.snapshot().prompts == (third,), "each is put in place of the one before"
    assert store.open_bank(second).spec["tokenizer"]["sha256"] != store.open_bank(third).spec["tokenizer"]["sha256"]
    assert not np.allclose(store.open_bank(second).vectors[:], store.open_bank(third).vectors[:])


@pytest.mark.usefixtures("one_small_bank")
def test_banks_of_other_weights_stand_side_by_side(small, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    copied = tmp_path / "clip"
    shutil.copytree(small("clip")[0], copied)
    embed_banks(store, [owner_of("clip", copied)])
    state = load_file(copied / "open_clip_model.safetensors")
    state["token_embedding.weight"] = state["token_embedding.weight"] * 2
    (copied / "open_clip_model.safetensors").unlink()
    save_file(state, copied / "open_clip_model.safetensors")
    embed_banks(store, [owner_of("clip", copied)])
    first, second = store.banks(encoder="clip")
    assert first.name == second.name and first.weights_sha256 != second.weights_sha256
    assert not np.allclose(first.vectors[:], second.vectors[:])
    assert store.bank(kind="prompts", encoder="clip", weights_sha256=second.weights_sha256) == second


def test_every_published_text_tower_embeds_a_bank(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banks_module, "prompt_banks", lambda: {"small": SMALL})
    store = Store.create(tmp_path / "store")
    for name in ("echo-clip", "biomedclip", "clip"):
        (outcome,) = embed_banks(store, [owner_of(name, small(name)[0])])
        assert outcome.status == "made", outcome
        bank = store.bank(kind="prompts", encoder=name)
        assert bank.vectors.shape == (3, 512) and bank.rows.column("prompt").to_pylist()[0] == "Severe. "
    assert len({bank.spec["tokenizer"]["kind"] for bank in store.banks()}) == 2


def test_what_a_tokenizer_of_phrases_cannot_say_is_left_out_and_counted(small, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    owner = owner_of("echo-clip-r", small("echo-clip-r")[0])
    outcome = banks_module.embed_prompts(store, owner, SMALL)
    assert (outcome.status, outcome.bank_id) == ("skipped", None) and store.banks() == []
    said = "LV EJECTION FRACTION IS 55%. ", "MILD DILATED LEFT ATRIUM. "
    bank = PromptBank(
        "mixed",
        (
            Prompt(task="lvef", prompt=said[0], value=55.0, template=0),
            Prompt(task="lvef", prompt="EF AROUND 55. ", value=55.0, template=1),
            Prompt(task="la", prompt=said[1], label="true"),
            Prompt(task="la", prompt="A WIDE ATRIUM", label="true"),
            Prompt(task="rv", prompt="SEVERE DILATED LEFT ATRIUM. ", label="true"),
            Prompt(task="rv", prompt="A NORMAL RIGHT VENTRICLE", label="false"),
        ),
    )
    outcome = banks_module.embed_prompts(store, owner, bank)
    assert outcome.status == "made" and outcome.detail.startswith("4 of 6 prompts cannot be said")
    # Of the task rv one class is left only, which would always win.
    assert store.bank(kind="prompts", encoder="echo-clip-r").rows.column("prompt").to_pylist() == [*said]
    assert banks_module.embed_prompts(store, owner, bank).status == "kept"


def test_prompts_add_takes_a_file_and_the_benchmarks_clone(small, tmp_path: Path) -> None:
    store = tmp_path / "store"
    weights = ["--encoder", "clip", "--weights", f"clip={small('clip')[0]}", "--device", "cpu", "--store", store]
    mine = tmp_path / "mine.yaml"
    mine.write_text('name: mine\ntasks:\n  rwma:\n    classes: {"true": ["A wall stands still. "]}\n')
    with pytest.raises(StoreNotFoundError):
        run("prompts", "add", mine, *weights)
    Store.create(store)
    code, document, _ = run("prompts", "add", mine, *weights, "--json")
    assert code == 0 and [(b["name"], b["rows"], b["status"]) for b in document["banks"]] == [("mine", 1, "made")]
    code, document, _ = run("prompts", "add", mine, *weights, "--json")
    assert code == 0 and document["banks"][0]["status"] == "kept"
    theirs = tmp_path / "prompts.py"
    theirs.write_text('zero_shot_prompts = {"ejection_fraction": ["EF <#>% "], "stemi": ["INFARCTION. "]}\n')
    code, _, stderr = run("prompts", "add", theirs, "--format", "cardiobench", *weights)
    assert code == 0 and "embedding the 102 prompts of cardiobench" in stderr
    rows = embedstore.open(store).bank(kind="prompts", encoder="clip", name="cardiobench").rows.to_pylist()
    assert rows[55] == {"task": "lvef", "prompt": "EF 55% ", "label": None, "value": 55.0, "template": 0}
    assert rows[-1]["prompt"] == "INFARCTION."
    code, document, _ = run("prompts", "ls", "--store", store, "--json")
    assert [bank["name"] for bank in document["banks"]] == ["cardiobench", "mine"]
    assert document["banks"][1]["tasks"] == ["rwma"] and document["installed"][0]["name"] == "embedstore-v1"
    code, text, _ = run("prompts", "ls", "--store", store)
    assert code == 0 and "clip  prompts bank mine: 1 rows, 512-d" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml", "--encoder", "clip"], "no file nothing.yaml, and no installed prompt bank"),
        (["embedstore-v1", "--encoder", "clop"], "did you mean 'clip'"),
        (["embedstore-v1", "--encoder", "clip", "--format", "cardiobanch"], "did you mean 'cardiobench'"),
        (["embedstore-v1", "--encoder", "clip", "--trust-pickle", f"a.pkl={'0' * 64}"], "goes with folders"),
        (["embedstore-v1", "--encoder", "pixel-stats"], "has no text tower"),
    ],
)
def test_wrong_words_are_named(small, tmp_path: Path, capsys, arguments: list[str], message: str) -> None:
    Store.create(tmp_path / "store")
    weights = [] if "pixel-stats" in arguments else ["--weights", f"{arguments[2]}={small('clip')[0]}"]
    assert run_program("prompts", "add", *arguments, *weights, "--store", tmp_path / "store", "--json") == 2
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_tower_that_cannot_be_loaded_raises_where_it_was_asked_for(small, tmp_path: Path) -> None:
    folder = tmp_path / "biomedclip"
    shutil.copytree(small("biomedclip")[0], folder)
    (folder / "vocab.txt").unlink()
    store = Store.create(tmp_path / "store")
    with pytest.raises(StorageError, match="has no tokenizer.json"):
        banks_module.embed_prompts(store, owner_of("biomedclip", folder), SMALL)
    with pytest.raises(UnknownNameError, match="published without task heads"):
        banks_module.store_heads(store, owner_of("biomedclip", folder))
    (folder / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(FormatError):
        banks_module.embed_prompts(store, owner_of("biomedclip", folder), SMALL)
    assert store.banks() == [] and BIOMEDCLIP_CARD.text_files[-1] == "vocab.txt"
