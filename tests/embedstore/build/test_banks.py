"""What a build does after its sets, with a text tower and heads of another package and without torch."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_banks
from clip_files import moving_frames, write_avi
from stub_banks import StubTower
from stub_encoder import STUB

import embedstore.build.banks
import embedstore.build.run
from embedstore import disk
from embedstore.build.bank_owner import BankOwner
from embedstore.build.banks import BankOutcome, embed_banks
from embedstore.build.run import BuildRequest, Progress, build_sets
from embedstore.encoder import EncoderCard, LoadRequest, TaskHead
from embedstore.errors import StorageError
from embedstore.manifest import DatasetFacts, Manifest
from embedstore.prompts import Prompt, PromptBank
from embedstore.store import Store

BANK = PromptBank(
    "small", (Prompt(task="as", prompt="A ", label="true"), Prompt(task="as", prompt="B", label="false"))
)
CARD = replace(STUB, text_loader="stub_banks:StubTower", heads_loader="stub_banks:heads")


@pytest.fixture(autouse=True)
def _one_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    StubTower.loaded.clear()
    monkeypatch.setattr(embedstore.build.banks, "prompt_banks", lambda: {"small": BANK})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def owner(card: EncoderCard = CARD, **spec: Any) -> BankOwner:
    return BankOwner(card, LoadRequest(spec=replace(card.spec(), **spec), weights=None))


def statuses(outcomes: list[BankOutcome]) -> list[tuple[str, str, str]]:
    return [(outcome.kind, outcome.name, outcome.status) for outcome in outcomes]


def test_prompts_and_heads_are_made_once(store: Store) -> None:
    told: list[BankOutcome] = []
    made = embed_banks(store, [owner(), owner(precision="bf16")], done=told.append)
    assert statuses(made) == [("prompts", "small", "made"), ("heads", "published", "made")] == statuses(told)
    assert [request.spec.precision for request in StubTower.loaded] == ["float32"]
    assert statuses(embed_banks(store, [owner()])) == [("prompts", "small", "kept"), ("heads", "published", "kept")]
    assert len(StubTower.loaded) == 1, "a bank that is there costs no loading"
    bank = store.bank(kind="prompts", encoder="stub@every")
    np.testing.assert_array_equal(bank.vectors[:], StubTower(owner().request).embed(["A ", "B"]))
    assert (bank.spec["logit_scale"], bank.spec["logit_bias"]) == (10.0, -1.5)


def test_heads_are_weights_with_all_that_applies_them(store: Store) -> None:
    embed_banks(store, [owner()])
    bank = store.bank(kind="heads", encoder="stub")
    published = stub_banks.heads(owner().request)
    np.testing.assert_array_equal(bank.vectors[:], np.concatenate([head.weight for head in published]))
    rows = bank.rows.to_pylist()
    assert [(row["task"], row["output"], row["label"], row["activation"], row["unit"]) for row in rows] == [
        ("EF", 0, None, "identity", "pct"),
        ("effusion", 0, None, "one-minus-sigmoid", None),
        ("size", 0, "normal", "softmax", None),
        ("size", 1, "mild", "softmax", None),
        ("size", 2, "severe", "softmax", None),
    ]
    assert [row["bias"] for row in rows] == [float(b) for head in published for b in head.bias]


def test_heads_are_asked_for_again_by_another_version(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_banks(store, [owner()])
    first = store.bank(kind="heads", encoder="stub").bank_id
    monkeypatch.setattr(embedstore.build.banks, "version", lambda name: "99.0")
    assert statuses(embed_banks(store, [owner()]))[1] == ("heads", "published", "made")
    assert store.bank(kind="heads", encoder="stub").bank_id != first and len(store.banks(kind="heads")) == 1


def test_what_fails_for_one_encoder_is_made_for_the_others(store: Store) -> None:
    broken = replace(CARD, name="broken", text_loader="stub_banks:no_tower", heads_loader="stub_banks:wide_heads")
    found = embed_banks(store, [owner(broken), owner()])
    assert [(outcome.encoder, outcome.kind, outcome.status, outcome.exit_code) for outcome in found] == [
        ("broken", "prompts", "skipped", 0),
        ("broken", "heads", "refused", 4),
        ("stub", "prompts", "made", 0),
        ("stub", "heads", "made", 0),
    ]
    assert "letters.txt" in found[0].detail and "gives vectors of 12" in found[1].detail
    assert {bank.encoder for bank in store.banks()} == {"stub"}


def test_a_disk_that_fails_is_no_missing_tokenizer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(operation: str, path: Path) -> None:
        if operation == "write" and path.name == "rows.parquet":
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, "fault_hook", full)
    with pytest.raises(StorageError, match="disk is full"):
        embed_banks(store, [owner()])
    assert list(store.layout.prompts.iterdir()) == []
    monkeypatch.setattr(disk, "fault_hook", None)
    assert [outcome.status for outcome in embed_banks(store, [owner()])] == ["made", "made"]


def clips(tmp_path: Path) -> Manifest:
    for number in range(2):
        write_avi(tmp_path / "clips" / f"c{number}.avi", moving_frames(number, n_frames=5))
    rows = [{"clip_id": f"c{n}", "patient_id": f"p{n}", "path": f"c{n}.avi", "split": "train"} for n in range(2)]
    return Manifest.from_rows(rows, dataset=DatasetFacts(name="clips", title="Clips"))


def test_a_build_ends_with_the_banks_unless_it_is_dry_or_unfinished(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedstore.build.run, "get_card", lambda name: CARD)
    store.add_manifest(clips(tmp_path), root=tmp_path / "clips")
    told: list[BankOutcome] = []
    progress = Progress(bank=told.append)

    def build(**options: Any) -> None:
        build_sets(store, BuildRequest(encoders=("stub",), n_workers=0, **options), progress=progress)

    build(dry_run=True)
    build(shard=(1, 2))  # there is one unit, which is the other worker's
    assert store.entries() == [] and told == [] and store.banks() == []
    build()
    assert len(store.entries()) == 1
    assert statuses(told) == [("prompts", "small", "made"), ("heads", "published", "made")]
    build()
    assert statuses(told[2:]) == [("prompts", "small", "kept"), ("heads", "published", "kept")]


def test_a_head_that_contradicts_itself_is_refused() -> None:
    weight, bias = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    fields: dict[str, Any] = {
        "task": "x",
        "weight": weight,
        "bias": bias,
        "activation": "softmax",
        "outputs": ("a", "b"),
    }
    TaskHead(**fields)
    wrong = [{"activation": "relu"}, {"outputs": ("a",)}, {"bias": bias[:1]}, {"weight": weight[0]}]
    wrong.append({"weight": np.full((2, 3), np.nan, np.float32)})
    for change in wrong:
        with pytest.raises(ValueError, match="head 'x'"):
            TaskHead(**{**fields, **change})
