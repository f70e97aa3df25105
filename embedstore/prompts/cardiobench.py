"""Reading the prompts of the CardioBench benchmark from the user's own clone: its ``src/prompts.py``.

The templates of wall thicknesses and diameter stand in ``regression.py`` beside it, and are read where it is there.
Files are parsed, never run: only values that are written out (texts, lists, mappings) are read. Each entry becomes
prompts as that benchmark embeds them: those of classes without white space at their ends, those of numbers with it;
numbers value by value, each in every template.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedstore.errors import ContentError, EmbedstoreError, FormatError, HostileInputError, StorageError
from embedstore.files import read_file
from embedstore.prompts.prompt_bank import PLACEHOLDER, Prompt, PromptBank, number_grid

__all__ = ["NAME", "read_cardiobench"]

NAME = "cardiobench"
_MAX_BYTES = 1 << 20

# Key in prompts.py, the task and the class; CardioBench, src/classification/binary.py.
_BINARY = {
    "as_present": ("as", "true"),
    "as_absent": ("as", "false"),
    "asd_present": ("asd", "true"),
    "asd_absent": ("asd", "false"),
    "pah_present": ("pah", "true"),
    "pah_absent": ("pah", "false"),
    "wall_motion_abnormality": ("rwma", "true"),
    "normal_wall_motion": ("rwma", "false"),
    "stemi": ("stemi", "true"),
    "no_stemi": ("stemi", "false"),
}
_VIEWS = ("A2C", "A3C", "A4C", "PSAX", "PLAX")

# Key in prompts.py, or field in a class of regression.py: the task, then first and last value, step and decimals.
_GRIDS = {
    "ejection_fraction": ("lvef", (0, 100, 1, 0)),
    "lvidd_prompts": ("lvidd", (2.0, 8.0, 0.1, 1)),
    "ivsd_prompts": ("ivsd", (0.5, 2.0, 0.1, 1)),
    "lvpwd_prompts": ("lvpwd", (0.5, 2.0, 0.1, 1)),
}


def read_cardiobench(path: str | Path) -> PromptBank:
    """Read ``prompts.py``, or the clone that it lies in.

    Raises
    ------
    StorageError
        It is not there or cannot be read.
    FormatError
        It is no Python file of plain values with prompts that are known.
    HostileInputError
        It is too large or nested too deeply.
    """
    path = Path(path)
    file = next((found for found in (path / "src" / "prompts.py", path / "prompts.py") if found.is_file()), path)
    if file.is_dir():
        raise StorageError(f"{path} has neither src/prompts.py nor prompts.py; name the file of your clone")
    prompts = list(_prompts(_mappings(file), source=str(file)))
    beside = file.with_name("regression.py")
    if beside.is_file():
        prompts += _prompts(_fields(beside), source=str(beside))
    if not prompts:
        raise FormatError(
            f"{file} holds no prompts with CardioBench's names, such as as_present or ejection_fraction"
        )
    return PromptBank(NAME, tuple(prompts), str(file))


@contextmanager
def _parsed(file: Path) -> Iterator[list[ast.stmt]]:
    """Yield the statements of a file, and turn what goes wrong in parsing and evaluating into one sentence."""
    payload = read_file(file, max_bytes=_MAX_BYTES)
    try:
        yield ast.parse(payload.decode("utf-8"), filename=str(file)).body
    except (RecursionError, MemoryError) as error:
        raise HostileInputError(f"{file} is nested too deeply to be a list of prompts") from error
    except (ValueError, TypeError, SyntaxError) as error:
        if isinstance(error, EmbedstoreError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise FormatError(
            f"{file} is no Python file with its prompts written out as plain values (nothing of it is run): {reason}"
        ) from error


def _mappings(file: Path) -> list[tuple[str, Any]]:
    """Return the entries of the mappings that are assigned at the top of a file, in order."""
    found: list[tuple[str, Any]] = []
    with _parsed(file) as statements:
        for statement in statements:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Dict):
                values = ast.literal_eval(statement.value)
                found += [(key, value) for key, value in values.items() if isinstance(key, str) and _is_known(key)]
        names = [name for name, _ in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise FormatError(f"{file} assigns {twice[0]!r} twice")
    return found


def _fields(file: Path) -> list[tuple[str, Any]]:
    """Return the defaults of the fields of a file's classes whose names are known, in order."""
    found: list[tuple[str, Any]] = []
    with _parsed(file) as statements:
        for owner in statements:
            for field in owner.body if isinstance(owner, ast.ClassDef) else ():
                if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                    continue
                if field.target.id in _GRIDS and field.value is not None:
                    found.append((field.target.id, ast.literal_eval(field.value)))
    return found


def _is_known(name: str) -> bool:
    return name in _BINARY or name in _VIEWS or name in _GRIDS


def _prompts(entries: Sequence[tuple[str, Any]], *, source: str) -> Iterator[Prompt]:
    for name, listed in entries:
        if not isinstance(listed, list | tuple) or not listed or not all(isinstance(text, str) for text in listed):
            raise ContentError(f"{source}: {name} is not a list of texts")
        if name in _BINARY:
            task, label = _BINARY[name]
            yield from (Prompt(task=task, prompt=text.strip(), label=label) for text in listed)
        elif name in _VIEWS:
            yield from (Prompt(task="view", prompt=text.strip(), label=name) for text in listed)
        else:
            yield from _numbers(name, listed, source=source)


def _numbers(name: str, templates: Sequence[str], *, source: str) -> Iterator[Prompt]:
    task, (first, last, step, decimals) = _GRIDS[name]
    for template in templates:
        if template.count(PLACEHOLDER) != 1:
            raise ContentError(f"{source}: a template of {name} has {PLACEHOLDER} not once: {template[:60]!r}")
    for text, value in number_grid(first=first, last=last, step=step, decimals=decimals):
        for place, template in enumerate(templates):
            filled = template.replace(PLACEHOLDER, text)
            yield Prompt(task=task, prompt=filled, value=value, template=place)
