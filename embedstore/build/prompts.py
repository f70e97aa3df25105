"""`add_banks`: the library function behind ``embedstore prompts add``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from embedstore.build.banks import BankOutcome, BankOwner, TextTower, embed_prompts, load_tower
from embedstore.build.candidates import FORMATS_GROUP, add_candidates
from embedstore.errors import UnknownNameError, did_you_mean
from embedstore.prompts.cardiobench import read_cardiobench
from embedstore.prompts.prompt_bank import find_prompt_bank
from embedstore.store import Store

__all__ = ["add_banks", "bank_formats"]


def bank_formats() -> list[str]:
    """Return the names of the formats that can be added, those of installed packages too."""
    return ["bank", "cardiobench", *sorted(point.name for point in entry_points(group=FORMATS_GROUP))]


def add_banks(
    store: Store,
    file: str,
    owners: Sequence[BankOwner],
    *,
    file_format: str = "bank",
    pickles: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> list[BankOutcome]:
    """Add one bank for each of some encoders.

    Parameters
    ----------
    file : str
        A YAML bank or an installed bank's name; for other formats their file or folder.
    file_format : str
        ``bank``, ``cardiobench``, or a format of an installed package.
    pickles : mapping of str to str
        By file name, the SHA-256 of the pickles of a folder that may be converted.

    Raises
    ------
    UnknownNameError
        The format, the file or an encoder's text tower is not there.
    ContentError, EnvironmentFailure
        The bank breaks a rule, or the text tower cannot be loaded.
    """
    known = bank_formats()
    if file_format not in known:
        raise UnknownNameError(f"unknown format {file_format!r} of a bank{did_you_mean(file_format, known)}")
    if file_format not in ("bank", "cardiobench"):
        return [add_candidates(store, Path(file), owner, file_format, pickles or {}) for owner in owners]
    if pickles:
        raise UnknownNameError(f"--trust-pickle goes with folders that hold pickles; format {file_format!r} has none")
    bank = find_prompt_bank(file) if file_format == "bank" else read_cardiobench(Path(file))
    outcomes = []
    for owner in owners:

        def tower(owner: BankOwner = owner) -> TextTower:
            loaded = load_tower(owner)
            note(f"{owner.name}: embedding the {len(bank)} prompts of {bank.name}")
            return loaded

        outcomes.append(embed_prompts(store, owner, bank, tower=tower))
    return outcomes
