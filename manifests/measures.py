"""Cells of official tables as numbers: what is unusable is listed, what is in another unit is refused with a hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedstore.errors import ManifestError
from embedstore.manifest import Finding, ManifestField
from embedstore.manifest.cells import read_cell
from manifests.tables import found

__all__ = ["Measured", "as_frame_number", "as_sex", "as_whole_number", "read_measures"]

_NAMED = 5
# What a value outside its range may be instead: factor to the right unit, and its name.
_OTHER_UNITS: Mapping[str, tuple[tuple[float, str], ...]] = {
    "%": ((100.0, "fractions of 1"),),
    "cm": ((0.1, "millimetres"), (100.0, "metres")),
    "kg": ((0.001, "grams"),),
}
_SEXES = {"f": "F", "female": "F", "w": "F", "m": "M", "male": "M"}


@dataclass(frozen=True)
class Measured:
    """One column as numbers.

    Attributes
    ----------
    values : tuple of float or None
    findings : tuple of Finding
        Cells that were there and are no usable value.
    """

    values: tuple[float | None, ...]
    findings: tuple[Finding, ...]


def read_measures(
    cells: Sequence[str], names: Sequence[str], declared: ManifestField, *, source: str, tolerated: float = 0.0
) -> Measured:
    """Read the cells of one column.

    Parameters
    ----------
    cells, names : sequence of str
        Text and clip of each row; an empty cell is no value and is not reported here.
    declared : ManifestField
        With the unit and the plausible range.
    source : str
        Table and column, for messages.
    tolerated : float
        Share of values that may lie outside the range: so many are left out and listed. 1 lists any number.

    Raises
    ------
    ManifestError
        More values lie outside the range than are tolerated and fit it in another unit: the unit is wrong or mixed.
    """
    values: list[float | None] = []
    unusable: list[str] = []
    for cell, name in zip(cells, names, strict=True):
        value, text = read_cell(cell, "number")
        values.append(value)
        if text is not None:
            unusable.append(f"{name} ({text})")
    implausible = _outside(values, declared)
    n_values = sum(value is not None for value in values)
    if len(implausible) > tolerated * n_values:
        _refuse_other_unit([(names[at], values[at]) for at in implausible], n_values, declared, source=source)
    else:
        unusable += [f"{names[at]} ({values[at]:g})" for at in implausible]
        for at in implausible:
            values[at] = None
    return Measured(tuple(values), tuple(found("value-unusable", f"values of {source} cannot be used", unusable)))


def _outside(values: Sequence[float | None], declared: ManifestField) -> list[int]:
    if declared.plausible is None:
        return []
    low, high = declared.plausible
    return [at for at, value in enumerate(values) if value is not None and not low <= value <= high]


def _refuse_other_unit(
    outside: Sequence[tuple[str, float | None]], n_values: int, declared: ManifestField, *, source: str
) -> None:
    """Raise where another unit explains values; the others stay, and the manifest's own rule refuses them."""
    assert declared.plausible is not None
    low, high = declared.plausible
    for factor, unit in _OTHER_UNITS.get(declared.unit or "", ()):
        explained = [f"{name} ({value:g})" for name, value in outside if value and low <= value * factor <= high]
        if not explained:
            continue
        listed = ", ".join(explained[:_NAMED]) + (", ..." if len(explained) > _NAMED else "")
        mixed = "mixes units" if len(explained) < n_values else "is in another unit"
        raise ManifestError(
            f"{source} {mixed}: {len(explained)} of {n_values} values are outside {low:g} to {high:g} "
            f"{declared.unit} and look like {unit}: {listed}; multiply them by {factor:g}"
        )


def as_whole_number(cell: str) -> int | None:
    """Return a cell as an integer, ``46.0`` included; None where it is none.

    Examples
    --------
    >>> as_whole_number("46.0"), as_whole_number("46.5"), as_whole_number("No Systolic")
    (46, None, None)
    """
    value, _ = read_cell(cell, "integer")
    return value if isinstance(value, int) else None


def as_frame_number(cell: str) -> int | None:
    """Return a frame number, None where the cell is none or below 0."""
    number = as_whole_number(cell)
    return None if number is None or number < 0 else number


def as_sex(cell: str) -> str | None:
    """Return ``F`` or ``M`` for the spellings in use; other words stay, an empty cell is None.

    Examples
    --------
    >>> as_sex("female"), as_sex(" M "), as_sex("O"), as_sex("")
    ('F', 'M', 'O', None)
    """
    text = cell.strip()
    return _SEXES.get(text.lower(), text) or None
