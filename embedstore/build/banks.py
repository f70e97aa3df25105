"""Embedding prompt banks and storing published heads: what a build does after its sets, once for each encoder.

A bank is kept where the store has it already: the same texts, weights and files beside the weights that decide how a
text is cut. Text vectors are always made in float32, and are the same for every variant of an encoder. A tower that
cannot be loaded loses no set: it is said, and `prompts add` embeds the bank later.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embedstore.bank import HEAD_SCHEMA, PROMPT_SCHEMA, BankHeader, VectorBank, write_bank
from embedstore.build.weights import find_weights
from embedstore.embedding_set import rows_to_table
from embedstore.encoder import (
    EncoderCard,
    LoadRequest,
    TaskHead,
    get_card,
    load_heads,
    resolve_string,
    split_title,
)
from embedstore.errors import EmbedstoreError, EnvironmentFailure, UnknownNameError
from embedstore.files import hash_file
from embedstore.identity import digest_json
from embedstore.layout import BANK_ROWS_FILE
from embedstore.prompts import Prompt, PromptBank, prompt_banks
from embedstore.store import Store

__all__ = [
    "HEADS_NAME",
    "BankOutcome",
    "BankOwner",
    "TextTower",
    "embed_banks",
    "embed_prompts",
    "find_owner",
    "load_tower",
    "store_heads",
]

HEADS_NAME = "published"
_VERSIONED = ("embedstore", "numpy", "torch", "open-clip-torch", "transformers", "tokenizers", "ftfy")


def find_owner(
    title: str,
    *,
    weights: Mapping[str, Path],
    trusted: Mapping[str, str],
    device: str = "auto",
    note: Callable[[str], None] = lambda sentence: None,
) -> BankOwner:
    """Return an encoder with its weights: those given, else those on this machine, else downloaded.

    Parameters
    ----------
    title : str
        ``NAME[@VARIANT]``.
    weights, trusted : mapping by encoder name
        As of a `BuildRequest`.

    Raises
    ------
    UnknownNameError
        The encoder, its variant or the weights are not known.
    EnvironmentFailure
        There are no weights.
    """
    name, variant = split_title(title)
    card = get_card(name)
    found = find_weights(card, weights.get(name), download=True, tell=note)
    card = card.fitted(variant=variant or "published", weights=found.path)
    spec = card.spec(variant=variant or "published", weights_sha256=found.sha256)
    if card.licence_forbids:
        note(f"{card.name}: licence {card.licence}, which forbids {card.licence_forbids}")
    request = LoadRequest(spec=spec, weights=found.path, device=device, trusted_sha256=trusted.get(name))
    return BankOwner(card, request)


class TextTower(Protocol):
    """What a card's ``text_loader`` returns; `encoders.text` says more."""

    tokenizer: Any
    dim: int
    logit_scale: float
    logit_bias: float | None

    def embed(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return ``(P, dim)`` float32 vectors of length one."""


@dataclass(frozen=True)
class BankOwner:
    """An encoder with weights: whose text tower and heads are asked for."""

    card: EncoderCard
    request: LoadRequest

    @property
    def name(self) -> str:
        """Registry name."""
        return self.card.name

    @property
    def text_request(self) -> LoadRequest:
        """The request for the text tower: in float32, whatever frames are encoded in."""
        return replace(self.request, spec=replace(self.request.spec, precision="float32"))

    def text_files(self) -> dict[str, str]:
        """Return the digests of the files beside the weights that decide how a text is cut."""
        path = self.request.weights
        if path is None:
            return {}
        folder = path if path.is_dir() else path.parent
        return {name: hash_file(folder / name).sha256 for name in self.card.text_files if (folder / name).is_file()}

    def fields(self) -> dict[str, Any]:
        """Return what every spec of its banks holds."""
        spec = self.request.spec
        return {"weights_sha256": spec.weights_sha256, "dim": spec.clip_dim}


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


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _publish(
    store: Store, header: BankHeader, vectors: npt.NDArray[np.float32], rows: Sequence[Mapping[str, Any]], **told: Any
) -> VectorBank:
    schema = PROMPT_SCHEMA if header.kind == "prompts" else HEAD_SCHEMA
    provenance = {"versions": _versions(), "finished": datetime.now(UTC).isoformat(timespec="seconds"), **told}
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


def load_tower(owner: BankOwner) -> TextTower:
    """Load the text tower of an encoder.

    Raises
    ------
    UnknownNameError
        It has none.
    EnvironmentFailure, ContentError
        As its loader says: a file is not there, or is another model's.
    """
    if owner.card.text_loader is None:
        raise UnknownNameError(f"encoder {owner.name!r} has no text tower: it embeds no prompts")
    tower: TextTower = resolve_string(owner.card.text_loader)(owner.text_request)
    return tower


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


def store_heads(store: Store, owner: BankOwner) -> BankOutcome:
    """Store the heads that an encoder was published with, or keep those that are there.

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
    heads = load_heads(owner.card, owner.request)
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


def _failed(owner: BankOwner, kind: str, name: str, error: EmbedstoreError) -> BankOutcome:
    is_absent = isinstance(error, EnvironmentFailure)
    return BankOutcome(
        encoder=owner.name,
        kind=kind,
        name=name,
        status="skipped" if is_absent else "refused",
        detail=str(error),
        exit_code=0 if is_absent else error.exit_code,
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
        if owner.card.text_loader is not None:
            for outcome in _embed_all(store, owner, list(banks.values()), note):
                told(outcome)
        if owner.card.heads_loader is not None:
            try:
                told(store_heads(store, owner))
            except EmbedstoreError as error:
                told(_failed(owner, "heads", HEADS_NAME, error))
    return outcomes


def _embed_all(
    store: Store, owner: BankOwner, banks: Sequence[PromptBank], note: Callable[[str], None]
) -> list[BankOutcome]:
    """Embed banks with one tower, loaded once and only where a bank needs it."""
    loaded: list[TextTower] = []
    found: list[BankOutcome] = []
    for place, bank in enumerate(banks):

        def tower(size: int = len(bank), name: str = bank.name) -> TextTower:
            if not loaded:
                gc.collect()  # the image towers of the build, which hold cycles
                loaded.append(load_tower(owner))
            note(f"{owner.name}: embedding the {size} prompts of {name}")
            return loaded[0]

        try:
            found.append(embed_prompts(store, owner, bank, tower=tower))
        except EmbedstoreError as error:
            if loaded:
                raise
            # What keeps the tower from loading keeps it from all banks that are not there yet.
            found += [_failed(owner, "prompts", other.name, error) for other in banks[place:]]
            break
    return found
