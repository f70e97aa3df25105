"""Manifests: the table of clips, its rules, splits, and the recipes that make one from a raw layout."""

from embedstore.dataset import DatasetFacts, FieldFacts, read_dataset_facts
from embedstore.manifest.fields import KEY_FRAME_ROLES, ManifestField
from embedstore.manifest.notes import count_clips, find_notes
from embedstore.manifest.recipe import Finding, Recipe, RecipeOutcome, RecipeRequest, get_recipe, recipes
from embedstore.manifest.split import SPLITS, draw_patient_split, normalise_split
from embedstore.manifest.table import Manifest, Problem

__all__ = [
    "KEY_FRAME_ROLES",
    "SPLITS",
    "DatasetFacts",
    "FieldFacts",
    "Finding",
    "Manifest",
    "ManifestField",
    "Problem",
    "Recipe",
    "RecipeOutcome",
    "RecipeRequest",
    "count_clips",
    "draw_patient_split",
    "find_notes",
    "get_recipe",
    "normalise_split",
    "read_dataset_facts",
    "recipes",
]
