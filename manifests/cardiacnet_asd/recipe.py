"""`cardiacnet-asd`: CardiacNet-ASD, see `manifests.cardiacnet`."""

from __future__ import annotations

from pathlib import Path

from manifests.cardiacnet import CardiacnetRecipe

__all__ = ["RECIPE"]

RECIPE = CardiacnetRecipe("ASD", facts_file=Path(__file__).with_name("dataset.yaml"))
