"""`DatasetFacts`: what a data set is, who may pass on what, and its known traps. Read from a `dataset.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedstore.errors import FormatError
from embedstore.safe_yaml import read_yaml

__all__ = ["DatasetFacts", "FieldFacts", "read_dataset_facts"]


class FieldFacts(BaseModel):
    """One column of a data set: its role in a manifest, its unit, its plausible range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["id", "media", "sampling", "split", "label", "subgroup", "extra"]
    kind: Literal["text", "number", "integer", "boolean", "category"] = "text"
    unit: str | None = None
    plausible: tuple[float, float] | None = None
    source: str | None = None


class DatasetFacts(BaseModel):
    """Facts about a data set that travel with its manifest.

    Attributes
    ----------
    name : str
        Registry name, e.g. ``echonet-dynamic``.
    redistribution : {"no", "ask", "yes"}
        Whether vectors made from it may be passed on.
    ids : {"public", "private"}
        Whether its clip and patient ids are published, or stand in a hospital's records.
    synthetic : bool
        Marked on every figure and result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    summary: str = ""
    source: str = ""
    citation: str = ""
    licence: str = "unknown"
    redistribution: Literal["no", "ask", "yes"] = "ask"
    ids: Literal["public", "private"] = "private"
    unit: Literal["image", "clip", "study"] = "clip"
    synthetic: bool = False
    fields: dict[str, FieldFacts] = Field(default_factory=dict)
    official_split: str = ""
    traps: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return self.model_dump(mode="json")


def read_dataset_facts(path: Path) -> DatasetFacts:
    """Read and validate a ``dataset.yaml``.

    Raises
    ------
    FormatError
        A field is missing, unknown or of another type; the message names it.
    """
    try:
        return DatasetFacts.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{path}: {where}: {first['msg']}") from error
