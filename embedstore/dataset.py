"""`DatasetFacts`: what a data set is, who may pass on what, and its known traps. Read from a `dataset.yaml`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from embedstore.errors import FormatError
from embedstore.safe_yaml import read_yaml

__all__ = ["DatasetFacts", "FieldFacts", "read_dataset_facts"]

# What is counted, then any number of conditions: "patients split=test asd=true", "clips lvidd_cm=*".
_COUNTED = re.compile(r"(?:clips|patients|studies)(?: [^\s=]+=[^\s=]+)*")


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
    expected_counts : dict of str to int
        Published counts: ``clips``, ``patients`` or ``studies``, then conditions ``column=value`` that all hold;
        ``column=*`` is any value. Deviations are named by `embedstore.manifest.notes.find_notes`.

    Examples
    --------
    >>> facts = DatasetFacts(name="x", title="X", expected_counts={"clips": 3, "patients split=test": 1})
    >>> facts.to_dict()["expected_counts"]["clips"]
    3
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
    expected_counts: dict[str, int] = Field(default_factory=dict)

    @field_validator("expected_counts")
    @classmethod
    def _check_counts(cls, counts: dict[str, int]) -> dict[str, int]:
        for counted, number in counts.items():
            if _COUNTED.fullmatch(counted) is None or number < 0:
                raise ValueError(f"{counted!r}: {number} counts nothing; write e.g. 'clips split=test: 50'")
        if counts and "clips" not in counts:
            raise ValueError("published counts need the number of clips, which tells whether all are there")
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only; without counts, their field is left out, as in manifests that precede it."""
        values = self.model_dump(mode="json")
        return values if self.expected_counts else {k: v for k, v in values.items() if k != "expected_counts"}


def read_dataset_facts(path: str | Path) -> DatasetFacts:
    """Read and validate a ``dataset.yaml``.

    Raises
    ------
    FormatError
        A field is missing, unknown or of another type; the message names it.
    """
    try:
        return DatasetFacts.model_validate(read_yaml(Path(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{path}: {where}: {first['msg']}") from error
