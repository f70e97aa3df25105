"""`TaskPrompts`: the stored text vectors of one task, with the class or the number that each prompt says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError, MissingVectorsError, VectorError, did_you_mean
from evaltools.features import VectorRows, VectorSource
from evaltools.fitting import class_order
from evaltools.metrics import Codes, Floats
from evaltools.task import Task
from evaltools.zeroshot_rules import unit_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from embedstore import Store

__all__ = ["BankSource", "TaskPrompts", "banked_sets", "match_classes", "read_prompts", "require_dims"]

# Spellings of a finding that is there and of one that is not, in labels and in prompts.
_THERE = frozenset({"1", "true", "yes", "present", "positive"})
_ABSENT = frozenset({"0", "false", "no", "absent", "negative", "none", "normal"})


class BankSource(Protocol):
    """What is read of an `embedstore.VectorBank`; tests hand in arrays."""

    @property
    def name(self) -> str: ...

    @property
    def encoder(self) -> str: ...

    @property
    def vectors(self) -> VectorRows: ...

    @property
    def rows(self) -> pa.Table: ...

    @property
    def spec(self) -> Any: ...


def banked_sets(
    store: Store, sets: Sequence[VectorSource], *, name: str | None, tell: Callable[[str], None]
) -> list[tuple[VectorSource, BankSource]]:
    """Return the sets whose encoder has a prompt bank in the store, each with it.

    Parameters
    ----------
    name : str or None
        Of the bank, where the store has several of an encoder.
    tell : callable
        Told of each set without one.

    Raises
    ------
    UnknownNameError, AmbiguousNameError
        An encoder has no bank of that name, or several and none is named.
    MissingVectorsError
        No set has a bank.
    """
    banked: list[tuple[VectorSource, BankSource]] = []
    lacking: list[VectorSource] = []
    for source in sets:
        encoder = source.spec.name
        if store.banks(kind="prompts", encoder=encoder):
            weights = source.spec.weights_sha256
            bank = store.bank(kind="prompts", encoder=encoder, name=name, weights_sha256=weights)
            banked.append((source, bank))
        else:
            lacking.append(source)
    if not banked:
        raise MissingVectorsError(_without_text(lacking))
    for source in lacking:
        tell(_without_text([source]))
    return banked


def _without_text(sources: Sequence[VectorSource]) -> str:
    titles = list(dict.fromkeys(source.spec.title for source in sources))
    have = "has" if len(titles) == 1 else "have"
    return (
        f"{', '.join(titles)} {have} no text vectors in the store and cannot be asked in words: where there is a "
        "text tower, add a prompt bank with embedstore prompts add"
    )


@dataclass(frozen=True)
class TaskPrompts:
    """Prompts of one task.

    Attributes
    ----------
    texts : tuple of str
    vectors : (P, D) float64
        At unit length.
    classes : (P,) object
        Class that each prompt speaks of, None where it speaks of a number.
    values : (P,) float64
        The number, NaN where it speaks of a class.
    templates : (P,) int
        Which wording each is of; -1 where that is not stated.
    """

    texts: tuple[str, ...]
    vectors: Floats
    classes: npt.NDArray[Any]
    values: Floats
    templates: Codes

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, kept: npt.NDArray[np.bool_]) -> TaskPrompts:
        """Return the prompts where ``kept`` (P,) is true."""
        texts = tuple(text for text, keep in zip(self.texts, kept, strict=True) if keep)
        return TaskPrompts(texts, self.vectors[kept], self.classes[kept], self.values[kept], self.templates[kept])


def read_prompts(bank: BankSource, task: Task) -> TaskPrompts:
    """Read the prompts of a task: those of its classes, or those with numbers.

    Raises
    ------
    MissingVectorsError
        The bank has none of the task, or none of its kind.
    VectorError
        A vector is not finite.
    """
    rows = bank.rows
    tasks = rows.column("task").to_pylist()
    field = "value" if task.kind == "regression" else "label"
    stated = rows.column(field).to_pylist()
    at = [row for row, name in enumerate(tasks) if name == task.name and stated[row] is not None]
    if not at:
        known = sorted(set(tasks))
        what = "numbers" if task.kind == "regression" else "classes"
        raise MissingVectorsError(
            f"the prompt bank {bank.name!r} of {bank.encoder} has no prompts with {what} for the task {task.name!r}"
            f"{did_you_mean(task.name, known)}; add them with embedstore prompts add"
        )
    vectors = unit_rows(np.asarray(bank.vectors[np.array(at)], dtype=np.float64))
    if not np.isfinite(vectors).all():
        raise VectorError(
            f"the prompt bank {bank.name!r} of {bank.encoder} holds values that are not finite; add it again"
        )
    templates = rows.column("template").to_pylist()
    values = rows.column("value").to_pylist()
    texts, labels = rows.column("prompt").to_pylist(), rows.column("label").to_pylist()
    return TaskPrompts(
        tuple(str(texts[row]) for row in at),
        vectors,
        np.array([None if task.kind == "regression" else str(labels[row]) for row in at], dtype=object),
        np.array([np.nan if values[row] is None else values[row] for row in at], dtype=np.float64),
        np.array([-1 if templates[row] is None else templates[row] for row in at], dtype=np.intp),
    )


def match_classes(spoken: Sequence[str], labels: Sequence[str], *, where: str) -> dict[str, str]:
    """Say which class of the labels each class of a text or head is.

    Equal names match, then names that are equal but for case, then spellings of present and absent. A class that no
    label has keeps its name: predicting it is wrong.

    Parameters
    ----------
    spoken, labels : sequence of str
        Classes of the text or head; classes of the data set.
    where : str
        For the message.

    Raises
    ------
    ContentError
        None of them is a class of the labels, or two are the same class.

    Examples
    --------
    >>> match_classes(["present", "absent"], ["0", "1"], where="the bank")
    {'present': '1', 'absent': '0'}
    >>> match_classes(["a2c", "PLAX"], ["A2C", "A4C"], where="the bank")
    {'a2c': 'A2C', 'PLAX': 'PLAX'}
    """
    matched: dict[str, str] = {}
    for name in dict.fromkeys(spoken):
        found = [label for label in labels if _same(name, label)]
        exact = [label for label in found if label == name]
        matched[name] = (exact or found or [name])[0]
    if not set(matched.values()) & set(labels):
        raise ContentError(
            f"{where} speaks of the classes {', '.join(matched)}, and the labels are "
            f"{', '.join(sorted(labels, key=class_order))}; name them alike"
        )
    if len(set(matched.values())) < len(matched):
        raise ContentError(f"{where} has two names for one class among {', '.join(matched)}; name each class once")
    return matched


def _same(name: str, label: str) -> bool:
    a, b = name.casefold(), label.casefold()
    return a == b or {a, b} <= _THERE or {a, b} <= _ABSENT


def require_dims(bank: BankSource, dims: int, *, title: str, dataset: str) -> None:
    """Check that text and image vectors have equal dimensions.

    Raises
    ------
    VectorError
        They do not.
    """
    if bank.vectors.shape[1] != dims:
        raise VectorError(
            f"the vectors of {title} on {dataset} have {dims} dimensions, and those of the bank {bank.name!r} "
            f"{bank.vectors.shape[1]}; embed both with one encoder"
        )
