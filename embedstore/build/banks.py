"""Embedding prompt banks and storing published heads: what a build does after its sets, once for each encoder.

A bank is kept where the store has it already: the same texts, weights and files beside the weights that decide how a
text is cut. Text vectors are always made in float32, and are the same for every variant of an encoder. A tower that
cannot be loaded loses no set: it is said, and `prompts add` embeds the bank later.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from embedstore.bank import HEAD_SCHEMA, PROMPT_SCHEMA, BankHeader, VectorBank, write_bank
from embedstore.build.bank_owner import BankOwner, TextTower, load_tower
from embedstore.build.provenance import package_versions
from embedstore.encoder import TaskHead, load_heads
from embedstore.errors import ContentError, EmbedstoreError, EnvironmentFailure
from embedstore.identity import digest_json
from embedstore.layout import BANK_ROWS_FILE
from embedstore.prompts import Prompt, PromptBank, prompt_banks
from embedstore.store import Store
from embedstore.tables import rows_to_table

__all__ = ["HEADS_NAME", "BankOutcome", "embed_banks", "embed_prompts", "store_heads"]

HEADS_NAME = "published"
T = TypeVar("T")
_VERSIONED = ("embedstore", "numpy", "torch", "open-clip-torch", "transformers", "tokenizers", "ftfy")


@dataclass(frozen=True, kw_only=True)
class BankOutcome:
    """What became of one bank of one encoder.

    Attributes
    ----------
    status : {"made", "kept", "skipped", "refused"}
        Skipped: the machine lacks something, such as the tokenizer's file. Refused: what is there is wrong.
    detail : str
        Why, in one sentence.
    exit_code : int
        Of the error, where it was refused.
    """

    encoder: str
    kind: str
    name: str
    status: str
    bank_id: str | None = None
    n_rows: int = 0
    detail: str = ""
    exit_code: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of a command's JSON."""
        return {
            "encoder": self.encoder,
            "kind": self.kind,
            "name": self.name,
            "bank": self.bank_id,
            "rows": self.n_rows,
            "status": self.status,
            "detail": self.detail,
            "seconds": round(self.seconds, 3),
        }


def _publish(
    store: Store, header: BankHeader, vectors: npt.NDArray[np.float32], rows: Sequence[Mapping[str, Any]], **told: Any
) -> VectorBank:
    schema = PROMPT_SCHEMA if header.kind == "prompts" else HEAD_SCHEMA
    provenance = {
        "versions": dict(package_versions(_VERSIONED)),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **told,
    }
    with store.publishing():
        bank_id = write_bank(
            store.layout.prompts,
            header,
            vectors,
            tables={BANK_ROWS_FILE: rows_to_table(rows, schema)},
            provenance=provenance,
        )
        store.add_bank(bank_id, reason=f"{header.kind} bank {header.name} of {header.encoder}")
    return store.open_bank(bank_id)


def _kept(store: Store, kind: str, owner: BankOwner, name: str, **spec: Any) -> VectorBank | None:
    """Return the head's bank of this key whose spec has these values too."""
    wanted = {**owner.fields(), **spec}
    for bank in store.banks(kind=kind, encoder=owner.name):
        if bank.name == name and all(bank.spec.get(key) == value for key, value in wanted.items()):
            return bank
    return None


def embed_prompts(
    store: Store, owner: BankOwner, bank: PromptBank, *, tower: Callable[[], TextTower] | None = None
) -> BankOutcome:
    """Embed one prompt bank with one encoder and publish it, or keep the one that is there.

    Prompts that the tower's tokenizer has no phrase for are left out, and counted.

    Parameters
    ----------
    tower : callable, optional
        Loads the text tower, or returns it loaded; called only where there is something to embed.

    Raises
    ------
    UnknownNameError
        The encoder has no text tower.
    EnvironmentFailure, ContentError
        The tower cannot be loaded, a file is not there or is another model's, or a vector is not finite.
    """
    began = time.perf_counter()
    files = owner.text_files()
    kept = _kept(store, "prompts", owner, bank.name, bank_digest=bank.digest, text_files=files)
    if kept is not None:
        return _outcome(owner, kept, "kept", began)
    loaded = (tower or (lambda: load_tower(owner)))()
    prompts = _sayable(bank, getattr(loaded, "covers", lambda prompt: True))
    n_left = len(bank) - len(prompts)
    detail = f"{n_left} of {len(bank)} prompts cannot be said with its tokenizer's phrases" if n_left else ""
    if not prompts:
        return BankOutcome(encoder=owner.name, kind="prompts", name=bank.name, status="skipped", detail=detail)
    vectors = loaded.embed([prompt.prompt for prompt in prompts])
    spec = {
        **owner.fields(),
        "bank_digest": bank.digest,
        "tokenizer": loaded.tokenizer.to_dict(),
        "text_files": files,
        "logit_scale": float(loaded.logit_scale),
        "logit_bias": None if loaded.logit_bias is None else float(loaded.logit_bias),
    }
    header = BankHeader(kind="prompts", name=bank.name, encoder=owner.name, spec=spec)
    rows = [vars(prompt) for prompt in prompts]
    device = str(getattr(loaded, "device", "cpu"))
    made = _outcome(owner, _publish(store, header, vectors, rows, device=device), "made", began)
    return replace(made, detail=detail)


def _sayable(bank: PromptBank, covers: Callable[[str], bool]) -> list[Prompt]:
    """Return the prompts that a tower can say; a task of which one class is left without any is left out whole."""
    prompts = [prompt for prompt in bank.prompts if covers(prompt.prompt)]
    lost = {(prompt.task, prompt.label) for prompt in bank.prompts} - {(p.task, p.label) for p in prompts}
    return [prompt for prompt in prompts if prompt.task not in {task for task, _ in lost}]


def store_heads(
    store: Store, owner: BankOwner, *, load: Callable[[], Sequence[TaskHead]] | None = None
) -> BankOutcome:
    """Store the heads that an encoder was published with, or keep those that are there.

    Parameters
    ----------
    load : callable, optional
        Loads the heads; called only where they are not there.

    Raises
    ------
    UnknownNameError
        It was published without heads.
    EnvironmentFailure, ContentError
        The checkpoint cannot be opened, or is another model's.
    """
    began = time.perf_counter()
    # What a head is called and does is this version's word, so another version asks its loader again.
    made_by = f"{owner.card.heads_loader} of embedstore {version('embedstore')}"
    kept = _kept(store, "heads", owner, HEADS_NAME, made_by=made_by)
    if kept is not None:
        return _outcome(owner, kept, "kept", began)
    heads = (load or partial(load_heads, owner.card, owner.request))()
    widths = {head.weight.shape[1] for head in heads}
    if widths != {owner.request.spec.clip_dim}:
        raise ContentError(
            f"the heads of {owner.name} take vectors of {sorted(widths)} numbers, and it gives vectors of "
            f"{owner.request.spec.clip_dim}"
        )
    rows = [row for head in heads for row in _head_rows(head)]
    spec = {**owner.fields(), "bank_digest": digest_json(rows), "made_by": made_by}
    header = BankHeader(kind="heads", name=HEADS_NAME, encoder=owner.name, spec=spec)
    vectors = np.concatenate([head.weight for head in heads]).astype(np.float32)
    return _outcome(owner, _publish(store, header, vectors, rows), "made", began)


def _head_rows(head: TaskHead) -> list[dict[str, Any]]:
    # One output without a class of its own is the task's number or probability.
    is_class = len(head.outputs) > 1 or head.outputs != (head.task,)
    return [
        {
            "task": head.task,
            "output": place,
            "label": label if is_class else None,
            "bias": float(head.bias[place]),
            "activation": head.activation,
            "unit": head.unit,
        }
        for place, label in enumerate(head.outputs)
    ]


def _outcome(owner: BankOwner, bank: VectorBank, status: str, began: float) -> BankOutcome:
    return BankOutcome(
        encoder=owner.name,
        kind=bank.kind,
        name=bank.name,
        status=status,
        bank_id=bank.bank_id,
        n_rows=len(bank),
        seconds=time.perf_counter() - began,
    )


def embed_banks(
    store: Store,
    owners: Sequence[BankOwner],
    *,
    note: Callable[[str], None] = lambda sentence: None,
    done: Callable[[BankOutcome], None] = lambda outcome: None,
) -> list[BankOutcome]:
    """Embed every installed prompt bank with every encoder that has a text tower, and store every published head.

    Parameters
    ----------
    owners : sequence of BankOwner
        Variants of one encoder with the same weights are one.
    note : callable
        Told one sentence at a time.
    done : callable
        Told each outcome.
    """
    outcomes: list[BankOutcome] = []
    banks = prompt_banks()

    def told(outcome: BankOutcome) -> None:
        outcomes.append(outcome)
        done(outcome)

    first = {(owner.name, owner.request.spec.weights_sha256): owner for owner in reversed(owners)}
    for owner in reversed(first.values()):
        tower, heads = _Once(partial(load_tower, owner)), _Once(partial(load_heads, owner.card, owner.request))
        for bank in banks.values() if owner.card.text_loader is not None else ():

            def loaded(tower: _Once[TextTower] = tower, name: str = owner.name, bank: PromptBank = bank) -> TextTower:
                found = tower()
                note(f"{name}: embedding the {len(bank)} prompts of {bank.name}")
                return found

            make = partial(embed_prompts, store, owner, bank, tower=loaded)
            told(_tried(owner, "prompts", bank.name, make, tower))
        if owner.card.heads_loader is not None:
            told(_tried(owner, "heads", HEADS_NAME, partial(store_heads, store, owner, load=heads), heads))
    return outcomes


class _Once(Generic[T]):
    """A loader that is called once, with what became of it: the error too is raised again."""

    def __init__(self, load: Callable[[], T]) -> None:
        self._load = load
        self._found: list[T] = []
        self.error: EmbedstoreError | None = None

    def __call__(self) -> T:
        if self.error is not None:
            raise self.error
        if not self._found:
            gc.collect()  # the image towers of the build, which hold cycles
            try:
                self._found.append(self._load())
            except EmbedstoreError as error:
                self.error = error
                raise
        return self._found[0]


def _tried(
    owner: BankOwner, kind: str, name: str, make: Callable[[], BankOutcome], loader: _Once[Any]
) -> BankOutcome:
    """Make a bank; what is wrong with a model's files is an outcome, a store that cannot be written is none."""
    try:
        return make()
    except EmbedstoreError as error:
        if error is not loader.error and not isinstance(error, ContentError):
            raise
        is_absent = isinstance(error, EnvironmentFailure)
        return BankOutcome(
            encoder=owner.name,
            kind=kind,
            name=name,
            status="skipped" if is_absent else "refused",
            detail=str(error),
            exit_code=0 if is_absent else error.exit_code,
        )
