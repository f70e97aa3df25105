"""Which column of a user's table is what: manifest columns by name or by option, labels, and the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from embedstore.errors import UnknownNameError
from embedstore.manifest import Finding, ManifestField, RecipeRequest
from embedstore.manifest.fields import KEY_FRAMES_COLUMN, STANDARD
from manifests.draft import FPS_HEADER
from manifests.tables import (
    PATH_NAMES,
    PATIENT_ID_NAMES,
    STUDY_ID_NAMES,
    Table,
    found,
    infer_kind,
    is_kind,
    plain_name,
)

__all__ = ["TableColumns", "choose_columns"]

# A column `height` alone is a patient's as often as a picture's: see `_spellings_for`.
_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in STANDARD if name not in ("height", "width")},
    "patient_id": PATIENT_ID_NAMES,
    "study_id": STUDY_ID_NAMES,
    "path": PATH_NAMES,
    "fps": ("fps", "frame_rate"),
    "n_frames": ("n_frames", "number_of_frames", "num_frames", "frames"),
    "height": ("frame_height",),
    "width": ("frame_width",),
    "heart_rate_bpm": ("heart_rate_bpm", "heart_rate"),
}
# Numbers that name somebody are no labels: MRN, accession number, PatientId, scan_id, 007. LVID is a diameter.
_NAMES_SOMEBODY = re.compile(r"(?i:(?:.*[\s_.-])?ids?|mrn|accession.*|unnamed: \d+)|.*[a-z]I[dD]s?")
_CODE = re.compile(r"0[0-9]")
_LVEF = {"ef", "efpct", "lvef", "lvefpct", "ejectionfraction", "lvejectionfraction"}
# An ejection fraction of 0.55 is 55 % in another unit, and 0 or above 100 cannot be.
_LVEF_PLAUSIBLE = (1.0, 100.0)


@dataclass(frozen=True)
class TableColumns:
    """What each column of a table became.

    Attributes
    ----------
    column_of : mapping of str to str
        Manifest column to table column.
    fields : tuple of ManifestField
        Manifest columns that are not standard, and standard ones in another role.
    findings : tuple of Finding
    """

    column_of: Mapping[str, str]
    fields: tuple[ManifestField, ...]
    findings: tuple[Finding, ...]

    def cells(self, table: Table) -> list[dict[str, str]]:
        """Return the filled cells of each row of ``table`` by manifest column."""
        kinds = {name: STANDARD[name].kind for name in self.column_of if name in STANDARD}
        kinds.update({declared.name: declared.kind for declared in self.fields})
        read = {
            name: table.decimal_cells(column) if kinds[name] == "number" else table.cells(column)
            for name, column in self.column_of.items()
        }
        return [{name: cells[row] for name, cells in read.items() if cells[row]} for row in range(len(table))]


def choose_columns(table: Table, request: RecipeRequest) -> TableColumns:
    """Decide what each column of ``table`` is.

    Raises
    ------
    UnknownNameError
        ``--column`` or ``--label-column`` names a column that is not there, or one that can be no label.
    """
    column_of = {
        name: table.require_column(column, option=f"--column {name}={column}")
        for name, column in request.columns.items()
    }
    chosen = set(column_of.values())
    for name, spellings in _spellings_for(table).items():
        column = table.find_column(spellings)
        if name not in column_of and column is not None and column not in chosen:
            column_of[name] = column
    taken = {*STANDARD, KEY_FRAMES_COLUMN, FPS_HEADER, *column_of}
    for column in sorted(set(table.columns) - set(column_of.values()), key=table.columns.index):
        name = column
        while name in taken:
            name += "_in_table"
        taken.add(name)
        column_of[name] = column
    standard = {name: column for name, column in column_of.items() if name in STANDARD}
    wanted = _label_names(table, request, column_of)
    fields = [_field(table, column, name, wanted) for name, column in column_of.items() if name not in STANDARD]
    fields += [
        replace(STANDARD[name], role="label")
        for name in standard
        if wanted and name in wanted and STANDARD[name].role != "label"
    ]
    spelled = [f"{column} -> {name}" for name, column in standard.items() if column != name]
    labels = [f"{declared.name} ({declared.kind})" for declared in fields if declared.role == "label"]
    mixed = [
        declared.name
        for declared in fields
        if declared.kind == "text" and _is_mixed(table.decimal_cells(column_of[declared.name]))
    ]
    return TableColumns(
        column_of,
        tuple(fields),
        (
            *found("columns", "columns of the table were recognised", spelled),
            *found("labels", "columns of the table are labels", labels),
            *found("columns-mixed", "columns hold numbers and text and were kept as text", mixed),
            *(
                [Finding("columns-unnamed", f"{table.n_unnamed} columns without a heading were left out")]
                if table.n_unnamed
                else []
            ),
        ),
    )


def _spellings_for(table: Table) -> Mapping[str, tuple[str, ...]]:
    """Take ``height`` and ``width`` for a picture's where both are there."""
    plain = {plain_name(column) for column in table.columns}
    if not {"height", "width"} <= plain:
        return _SPELLINGS
    return {**_SPELLINGS, "height": (*_SPELLINGS["height"], "height"), "width": (*_SPELLINGS["width"], "width")}


def _is_mixed(cells: list[str]) -> bool:
    filled = [cell for cell in cells if cell]
    n_numbers = sum(is_kind(cell, "number") for cell in filled)
    return len(filled) // 4 < n_numbers < len(filled)


def _label_names(table: Table, request: RecipeRequest, column_of: Mapping[str, str]) -> set[str] | None:
    """Return the manifest columns that the user calls labels, None where none were named."""
    if not request.label_columns:
        return None
    names = set()
    for label in request.label_columns:
        if label in request.columns:
            meant = {label}
        else:
            column = table.require_column(label, option="--label-column")
            meant = {name for name, source in column_of.items() if source == column}
        fixed = [name for name in meant if name in STANDARD and STANDARD[name].role not in ("label", "extra")]
        if fixed:
            raise UnknownNameError(f"--label-column {label}: that column is {fixed[0]!r} here, which is no label")
        names |= meant
    return names


def _field(table: Table, column: str, name: str, wanted: set[str] | None) -> ManifestField:
    cells = table.decimal_cells(column)
    is_lvef = plain_name(name) in _LVEF
    kind: str = "number" if is_lvef else infer_kind(cells)
    names_somebody = _NAMES_SOMEBODY.fullmatch(column) is not None or any(map(_CODE.match, cells))
    if (kind == "text" or names_somebody) if wanted is None else name not in wanted:
        # What is no label breaks no rule: it stays text unless all of it is of one kind.
        pure = not names_somebody and all(is_kind(cell, kind) for cell in cells if cell)
        return ManifestField(name=name, role="extra", kind=kind if pure else "text")
    if is_lvef:
        return ManifestField(name=name, role="label", kind=kind, unit="%", plausible=_LVEF_PLAUSIBLE)
    return ManifestField(name=name, role="label", kind="category" if kind == "text" else kind)
