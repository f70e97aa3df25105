"""`PromptBank`: the texts of a bank, read from YAML; and the banks that installed packages bring.

A bank file::

    name: embedstore-v1
    tasks:
      as:
        classes:
          "true": ["Severe aortic stenosis is present."]
          "false": ["There is no aortic stenosis."]
      lvef:
        templates: ["The left ventricular ejection fraction is <#>%."]
        values: {first: 0, last: 100, step: 1, decimals: 0}

A text stands in the bank exactly as it is written, trailing spaces included. Templates are filled template by
template, each with every value. Packages register their banks under the entry-point group ``embedstore.prompts``: the
bank's name, and ``module:attribute`` of the path of its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from embedstore.encoder import resolve_string
from embedstore.errors import ContentError, EmbedstoreError, UnknownNameError
from embedstore.identity import digest_json
from embedstore.safe_yaml import read_yaml

__all__ = [
    "ENTRY_POINT_GROUP",
    "PLACEHOLDER",
    "Prompt",
    "PromptBank",
    "number_grid",
    "prompt_banks",
    "read_prompt_bank",
]

ENTRY_POINT_GROUP = "embedstore.prompts"
PLACEHOLDER = "<#>"  # EchoCLIP's own sign for the number in a template
_MAX_PROMPTS = 100_000
_MAX_CHARACTERS = 10_000
_MAX_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One text.

    Attributes
    ----------
    task : str
    prompt : str
        Exactly as it is embedded.
    label : str or None
        The class that it speaks of.
    value : float or None
        The number that it speaks of, in the unit of the task.
    template : int or None
        Which sentence the number was put into.
    """

    task: str
    prompt: str
    label: str | None = None
    value: float | None = None
    template: int | None = None


@dataclass(frozen=True)
class PromptBank:
    """A named list of prompts.

    Raises
    ------
    ContentError
        There are none or too many, a text is empty or too long, or one stands twice for different things.
    """

    name: str
    prompts: tuple[Prompt, ...]
    source: str = "a bank"

    def __post_init__(self) -> None:
        if not 0 < len(self.prompts) <= _MAX_PROMPTS:
            raise ContentError(f"{self.source} has {len(self.prompts)} prompts; a bank has 1 to {_MAX_PROMPTS}")
        seen: dict[tuple[str, str], Prompt] = {}
        for prompt in self.prompts:
            text = prompt.prompt
            if not text.strip() or len(text) > _MAX_CHARACTERS:
                raise ContentError(
                    f"{self.source}: a prompt of task {prompt.task!r} has {len(text.strip())} characters; "
                    f"it may have 1 to {_MAX_CHARACTERS}"
                )
            if seen.setdefault((prompt.task, text), prompt) is not prompt:
                raise ContentError(f"{self.source}: the prompt {text[:60]!r} stands twice in task {prompt.task!r}")

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all texts with their tasks, classes, values and templates, in order; the name is not in it."""
        return digest_json([vars(prompt) for prompt in self.prompts])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(dict.fromkeys(prompt.task for prompt in self.prompts))


def number_grid(*, first: float, last: float, step: float, decimals: int) -> list[tuple[str, float]]:
    """Return (text, value) of the numbers from ``first`` to ``last`` in steps, each with so many decimals.

    Computed in decimal, so that every value is the number that its text says.

    Raises
    ------
    ValueError
        The steps do not lead from one to the other, or too few decimals tell them apart.

    Examples
    --------
    >>> number_grid(first=0.5, last=0.8, step=0.1, decimals=1)
    [('0.5', 0.5), ('0.6', 0.6), ('0.7', 0.7), ('0.8', 0.8)]
    >>> number_grid(first=0, last=100, step=50, decimals=0)
    [('0', 0.0), ('50', 50.0), ('100', 100.0)]
    """
    start, stop, by = (Decimal(str(number)) for number in (first, last, step))
    if by <= 0 or stop < start or not 0 <= decimals <= _MAX_DECIMALS or (stop - start) / by > _MAX_PROMPTS:
        raise ValueError(f"no numbers lead from {first} to {last} in steps of {step} with {decimals} decimals")
    count = int((stop - start) / by) + 1
    texts = [f"{start + by * place:.{decimals}f}" for place in range(count)]
    if len(set(texts)) < count:
        raise ValueError(f"steps of {step} cannot be told apart with {decimals} decimals")
    return [(text, float(text)) for text in texts]


def _texts(listed: Any, *, what: str, source: str) -> list[str]:
    if not isinstance(listed, list) or not listed or not all(isinstance(text, str) for text in listed):
        raise ContentError(f"{source}: {what} is a list of texts, got {str(listed)[:60]!r}")
    return listed


def _keys(mapping: Any, *, needed: set[str], optional: set[str], what: str, source: str) -> Mapping[str, Any]:
    if not isinstance(mapping, dict) or not needed <= set(mapping) <= needed | optional:
        found = sorted(map(str, mapping)) if isinstance(mapping, dict) else type(mapping).__name__
        raise ContentError(f"{source}: {what} has the keys {', '.join(sorted(needed | optional))}, got {found}")
    return mapping


def _classes(task: str, classes: Any, *, source: str) -> Iterator[Prompt]:
    if not isinstance(classes, dict) or not classes or not all(isinstance(label, str) for label in classes):
        raise ContentError(
            f'{source}: the classes of task {task!r} are texts ("true" in quotes) with lists of prompts'
        )
    for label, listed in classes.items():
        for text in _texts(listed, what=f"class {label!r} of task {task!r}", source=source):
            yield Prompt(task=task, prompt=text, label=label)


def _templates(task: str, fields: Mapping[str, Any], *, source: str) -> Iterator[Prompt]:
    what = f"values of task {task!r}"
    stated = _keys(
        fields["values"], needed={"first", "last", "step", "decimals"}, optional=set(), what=what, source=source
    )
    numbers = [stated[key] for key in ("first", "last", "step", "decimals")]
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise ContentError(f"{source}: the {what} are numbers, got {numbers}")
    if not isinstance(stated["decimals"], int):
        raise ContentError(f"{source}: the decimals of task {task!r} are a whole number, got {stated['decimals']}")
    try:
        grid = number_grid(**stated)
    except ValueError as error:
        raise ContentError(f"{source}: {what}: {error}") from error
    for place, template in enumerate(_texts(fields["templates"], what=f"templates of task {task!r}", source=source)):
        if template.count(PLACEHOLDER) != 1:
            raise ContentError(f"{source}: a template of task {task!r} has {PLACEHOLDER} not once: {template[:60]!r}")
        for text, value in grid:
            yield Prompt(task=task, prompt=template.replace(PLACEHOLDER, text), value=value, template=place)


def _prompts(tasks: Any, *, source: str) -> Iterator[Prompt]:
    if not isinstance(tasks, dict) or not tasks or not all(isinstance(task, str) and task for task in tasks):
        raise ContentError(f"{source}: tasks is a mapping of task names")
    for task, fields in tasks.items():
        if isinstance(fields, dict) and "classes" in fields:
            _keys(fields, needed={"classes"}, optional={"note"}, what=f"task {task!r}", source=source)
            yield from _classes(task, fields["classes"], source=source)
        else:
            needed = {"templates", "values"}
            _keys(fields, needed=needed, optional={"note"}, what=f"task {task!r} without classes", source=source)
            yield from _templates(task, fields, source=source)


def read_prompt_bank(path: str | Path) -> PromptBank:
    """Read a bank from its YAML file.

    Raises
    ------
    HostileInputError
        It is no plain YAML.
    ContentError
        It is no bank; the message names the place.
    StorageError
        It cannot be read.
    """
    source = str(path)
    optional = {"summary", "citation", "licence"}
    described = _keys(
        read_yaml(Path(path)), needed={"name", "tasks"}, optional=optional, what="a bank", source=source
    )
    name = described["name"]
    if not isinstance(name, str) or not name:
        raise ContentError(f"{source}: the name of the bank is {name!r}, not a text")
    return PromptBank(name, tuple(_prompts(described["tasks"], source=source)), source)


def prompt_banks() -> dict[str, PromptBank]:
    """Return the banks that installed packages register under ``embedstore.prompts``, by name, sorted.

    Raises
    ------
    EmbedstoreError
        An entry point names no bank of that name, or two register one.
    ContentError
        A file is no bank.
    """
    banks: dict[str, PromptBank] = {}
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value)):
        path = resolve_string(point.value)
        if not isinstance(path, Path):
            raise EmbedstoreError(f"entry point {point.name!r} = {point.value!r} is no path of a prompt bank")
        bank = read_prompt_bank(path)
        if bank.name != point.name:
            raise EmbedstoreError(f"entry point {point.name!r} = {point.value!r} is a bank called {bank.name!r}")
        if bank.name in banks and banks[bank.name].digest != bank.digest:
            raise EmbedstoreError(f"two installed packages register the prompt bank {bank.name!r}")
        banks[bank.name] = bank
    return banks


def find_prompt_bank(text: str) -> PromptBank:
    """Return a bank by its file, or an installed one by its name.

    Raises
    ------
    UnknownNameError
        There is neither.
    """
    if Path(text).exists():
        return read_prompt_bank(Path(text))
    installed = prompt_banks()
    if text in installed:
        return installed[text]
    known = ", ".join(installed) or "none"
    raise UnknownNameError(f"there is no file {text}, and no installed prompt bank of that name; installed: {known}")
