"""`Recipe`: walks a data set's raw layout and returns its manifest. Found by entry point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from embedstore.encoder import resolve_string
from embedstore.errors import EmbedstoreError, UnknownNameError, did_you_mean
from embedstore.given_paths import settle_paths
from embedstore.manifest.table import Manifest

__all__ = ["Finding", "Recipe", "RecipeOutcome", "RecipeRequest", "get_recipe", "recipes"]

RECIPE_GROUP = "embedstore.manifests"


@dataclass(frozen=True)
class Finding:
    """Something a recipe met that a person should know: counted, listed, not fatal."""

    kind: str
    message: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RecipeRequest:
    """What the user asked of a recipe.

    Attributes
    ----------
    root : Path, str or None
        Folder of the media.
    table : Path, str or None
        CSV of ids, patients, splits and labels.
    splits : Path, str or None
        CSV with a split for each id.
    name : str or None
        Name of the data set, for recipes that have none of their own.
    columns : mapping of str to str
        Manifest column to the table's column.
    label_columns : tuple of str
        Table columns that are labels.
    seed : int
        For a split that must be drawn.
    n_workers : int
        Processes that hash and probe files.
    """

    root: Path | None = None
    table: Path | None = None
    splits: Path | None = None
    name: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    label_columns: tuple[str, ...] = ()
    seed: int = 0
    n_workers: int = 0

    def __post_init__(self) -> None:
        settle_paths(self, "root", "table", "splits")


@dataclass(frozen=True)
class RecipeOutcome:
    """The manifest and what a person should know about how it came about.

    Attributes
    ----------
    root : Path or None
        Folder that the manifest's paths start from, to be remembered in the store's local settings and nowhere
        else: the one of the request, or the one that a recipe found by itself. None where there are no media.
    """

    manifest: Manifest
    findings: tuple[Finding, ...] = ()
    root: Path | None = None


class Recipe(Protocol):
    """Walks a data set's raw layout and returns its manifest. One a data set, found by entry point."""

    name: str
    summary: str

    def make(self, request: RecipeRequest, *, progress: Callable[[int, int], None] | None = None) -> RecipeOutcome:
        """Make the manifest; ``progress`` is told (files done, files in all)."""


def _load(point: EntryPoint) -> Recipe:
    recipe: Recipe = resolve_string(point.value)
    if getattr(recipe, "name", None) != point.name or not callable(getattr(recipe, "make", None)):
        raise EmbedstoreError(f"entry point {point.name!r} = {point.value!r} is no recipe of that name")
    return recipe


def recipes() -> dict[str, Recipe]:
    """Return all registered recipes by name, sorted.

    Raises
    ------
    EmbedstoreError
        An entry point names something that is no recipe of that name.
    """
    points = sorted(entry_points(group=RECIPE_GROUP), key=lambda point: (point.name, point.value))
    return {point.name: _load(point) for point in points}


def get_recipe(name: str) -> Recipe:
    """Return one recipe; no other is imported.

    Raises
    ------
    UnknownNameError
        There is none of that name.
    """
    known = {point.name: point for point in entry_points(group=RECIPE_GROUP)}
    if name not in known:
        raise UnknownNameError(f"unknown data set recipe {name!r}{did_you_mean(name, list(known))}")
    return _load(known[name])
