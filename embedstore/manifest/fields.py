"""Columns of a manifest: names, roles, kinds, units. The only place that spells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from embedstore.errors import ManifestError
from embedstore.manifest.cells import composed

__all__ = [
    "ARROW_TYPES",
    "KEY_FRAMES_COLUMN",
    "KEY_FRAMES_TYPE",
    "KEY_FRAME_ROLES",
    "STANDARD",
    "ManifestField",
    "schema_of",
]

KEY_FRAMES_COLUMN = "key_frames"
KEY_FRAME_ROLES = ("ed", "es", "lvidd", "ivsd", "lvpwd", "annotated")
_ROLES = ("id", "media", "sampling", "split", "label", "subgroup", "extra")

ARROW_TYPES = {
    "text": pa.string(),
    "category": pa.string(),
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
}
KEY_FRAMES_TYPE = pa.list_(pa.struct([("role", pa.string()), ("frame", pa.int64())]))


def _is_range(plausible: Any, *, kind: str) -> bool:
    return (
        kind in ("number", "integer")
        and isinstance(plausible, tuple)
        and len(plausible) == 2
        and all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in plausible)
        and plausible[0] <= plausible[1]
    )


@dataclass(frozen=True, kw_only=True)
class ManifestField:
    """One column: its role, kind, unit and where its values come from.

    Attributes
    ----------
    role : {"id", "media", "sampling", "split", "label", "subgroup", "extra"}
    kind : {"text", "number", "integer", "boolean", "category"}
    plausible : (float, float) or None
        Range outside of which a value is a mistake, e.g. (1, 100) for LVEF in per cent.

    Raises
    ------
    ManifestError
        A name, role, kind or range that cannot be.
    """

    name: str
    role: str
    kind: str = "text"
    unit: str | None = None
    plausible: tuple[float, float] | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.strip() and self.name.isprintable()):
            raise ManifestError(f"a column needs a name of printable characters, got {self.name!r}")
        if self.name != composed(self.name):
            raise ManifestError(f"the column name {self.name!r} has letters in parts; compose them (Unicode NFC)")
        if self.name == KEY_FRAMES_COLUMN:
            raise ManifestError(f"the column name {KEY_FRAMES_COLUMN!r} is kept for the key-frame table")
        if self.role not in _ROLES or self.kind not in ARROW_TYPES:
            raise ManifestError(f"column {self.name!r} got role {self.role!r} and kind {self.kind!r}")
        if not all(text is None or isinstance(text, str) for text in (self.unit, self.source)):
            raise ManifestError(f"column {self.name!r} got a unit or a source that is no text")
        if self.plausible is not None and not _is_range(self.plausible, kind=self.kind):
            raise ManifestError(
                f"column {self.name!r} got the plausible range {self.plausible!r}, needs (low, high) and numbers"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        plausible = None if self.plausible is None else list(self.plausible)
        return {
            "name": self.name,
            "role": self.role,
            "kind": self.kind,
            "unit": self.unit,
            "plausible": plausible,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ManifestField:
        """Read the form of `to_dict`."""
        values = dict(fields)
        if values.get("plausible") is not None:
            values["plausible"] = tuple(values["plausible"])
        return cls(**values)


_STANDARD_FIELDS = (
    ManifestField(name="clip_id", role="id"),
    ManifestField(name="patient_id", role="id"),
    ManifestField(name="study_id", role="id"),
    ManifestField(name="path", role="media"),
    ManifestField(name="sha256", role="media"),
    ManifestField(name="n_frames", role="sampling", kind="integer"),
    ManifestField(name="fps", role="sampling", kind="number", unit="1/s"),
    ManifestField(name="height", role="media", kind="integer", unit="px"),
    ManifestField(name="width", role="media", kind="integer", unit="px"),
    ManifestField(name="view", role="label", kind="category"),
    ManifestField(name="split", role="split", kind="category"),
    ManifestField(name="modality", role="extra", kind="category"),
    ManifestField(name="manufacturer", role="extra", kind="category"),
    ManifestField(name="model", role="extra", kind="category"),
    ManifestField(name="site", role="extra", kind="category"),
    ManifestField(name="heart_rate_bpm", role="extra", kind="number", unit="1/min"),
    ManifestField(name="spacing_x_mm", role="sampling", kind="number", unit="mm"),
    ManifestField(name="spacing_y_mm", role="sampling", kind="number", unit="mm"),
    ManifestField(name="view_source", role="extra", kind="category"),
)
STANDARD = {standard.name: standard for standard in _STANDARD_FIELDS}


def schema_of(fields: Mapping[str, ManifestField]) -> pa.Schema:
    """Return the Arrow schema of a manifest with these columns: they in their order, then the key frames."""
    columns = [(name, ARROW_TYPES[declared.kind]) for name, declared in fields.items()]
    return pa.schema([*columns, (KEY_FRAMES_COLUMN, KEY_FRAMES_TYPE)])
