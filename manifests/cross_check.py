"""Other tables' word on a data set's clips: a column of patients, and labels, compared with what the files say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from embedstore.errors import UnknownNameError
from embedstore.manifest import ManifestField, RecipeRequest
from embedstore.manifest.cells import read_cell
from manifests.clips import SOURCE_ROW
from manifests.draft import Draft
from manifests.tables import (
    CLIP_ID_NAMES,
    PATH_NAMES,
    PATIENT_ID_NAMES,
    NameIndex,
    Table,
    match_names,
    read_table,
)

__all__ = ["PATIENT_IN_TABLE", "check_splits_file", "disagreements", "patient_cells", "settle_patients"]

PATIENT_IN_TABLE = "patient_id_in_table"
# What the published tables and the benchmark call a clip, besides the usual names.
RELEASE_ID_NAMES = (*CLIP_ID_NAMES, "query_key", "HashedFileName", *PATH_NAMES, "ECHO")


def patient_cells(table: Table, request: RecipeRequest) -> list[str] | None:
    """Return the column of patients that a data set's own table has gained, None where it has none.

    Raises
    ------
    UnknownNameError
        ``--column patient_id=COLUMN`` names a column that is not there.
    """
    chosen = request.columns.get("patient_id")
    if chosen is not None and request.table is None:
        column: str | None = table.require_column(chosen, option=f"--column patient_id={chosen}")
    else:
        column = table.find_column(PATIENT_ID_NAMES)
    return None if column is None else table.cells(column)


def match_clips(table: Table, draft: Draft, *, id_names: Sequence[str], option: str) -> list[int | None]:
    """Return the row of the draft that each row of a user's table means, and report those that mean none.

    Raises
    ------
    UnknownNameError
        The table has no column that names clips.
    """
    column = table.find_column(id_names)
    if column is None:
        raise UnknownNameError(
            f"{option}: {table.path} has no column of clips ({', '.join(id_names)}), got {', '.join(table.columns)}"
        )
    cells = table.cells(column)
    names = [[str(row[key]) for key in ("clip_id", "path") if row.get(key)] for row in draft.rows]
    rows, ambiguous = match_names(cells, NameIndex(names))
    strangers = [text for text, row in zip(cells, rows, strict=True) if row is None and text not in ambiguous]
    draft.report("table-unknown", f"ids of {table.path.name} name no clip", strangers)
    draft.report("table-ambiguous", f"ids of {table.path.name} could mean several clips", ambiguous)
    return rows


def settle_patients(draft: Draft, request: RecipeRequest) -> None:
    """Take or compare the patients that a table names beside the data set's own.

    They are taken where the data set has none, or where ``--column patient_id=COLUMN`` asks for them. Elsewhere they
    stay beside, as ``patient_id_in_table``, and what disagrees is listed.

    Raises
    ------
    UnknownNameError
        ``--table`` has no column of clips or of patients.
    """
    if request.table is not None:
        _fill_from_table(draft, request)
    elif "patient_id" in request.columns and not any(PATIENT_IN_TABLE in row for row in draft.rows):
        raise UnknownNameError("--column patient_id=COLUMN names a column of a table: give --table FILE too")
    given = [row.get(PATIENT_IN_TABLE) or None for row in draft.rows]
    if not any(given):
        for row in draft.rows:
            row.pop(PATIENT_IN_TABLE, None)
        return
    own = [row.get("patient_id") for row in draft.rows]
    if draft.patient_ids != "unknown":
        kept = (
            "the table's were taken"
            if "patient_id" in request.columns
            else ("which were kept; --column patient_id=COLUMN takes the table's")
        )
        draft.report(
            "patient-differs",
            f"patients of the table do not agree with those of the data set, {kept}",
            disagreements(own, given),
        )
    if draft.patient_ids == "unknown" or "patient_id" in request.columns:
        draft.patient_ids = "provided"
        for row, patient in zip(draft.rows, given, strict=True):
            row.pop(PATIENT_IN_TABLE, None)
            row["patient_id"] = patient
        without = draft.ids_where(lambda row, _: row["patient_id"] is None)
        draft.report("patient-missing", f"of {len(own)} clips have no patient and count as their own", without)
    else:
        draft.fields.append(ManifestField(name=PATIENT_IN_TABLE, role="extra", kind="text"))


def _fill_from_table(draft: Draft, request: RecipeRequest) -> None:
    assert request.table is not None
    table = read_table(request.table)
    chosen = request.columns.get("patient_id")
    if chosen is not None:
        column: str | None = table.require_column(chosen, option=f"--column patient_id={chosen}")
    else:
        column = table.find_column(PATIENT_ID_NAMES)
    if column is None:
        raise UnknownNameError(
            f"--table: {table.path} has no column of patients; say which it is with --column patient_id=COLUMN "
            "(the labels are taken from the data set's own tables)"
        )
    rows = match_clips(table, draft, id_names=RELEASE_ID_NAMES, option="--table")
    for at, patient in zip(rows, table.cells(column), strict=True):
        if at is not None:
            draft.rows[at][PATIENT_IN_TABLE] = patient


def disagreements(own: Sequence[str | None], other: Sequence[str | None]) -> list[str]:
    """Return where two columns of patients do not group the same clips, whatever they call the groups.

    Examples
    --------
    >>> disagreements(["a", "a", "b"], ["1", "2", "2"])
    ['a (1, 2 in the table)', '2 of the table (a, b)']
    >>> disagreements(["a", "a", None], ["1", "1", "2"])
    []
    """
    pairs = [(mine, theirs) for mine, theirs in zip(own, other, strict=True) if mine and theirs]
    theirs_of: dict[str, set[str]] = defaultdict(set)
    mine_of: dict[str, set[str]] = defaultdict(set)
    for mine, theirs in pairs:
        theirs_of[mine].add(theirs)
        mine_of[theirs].add(mine)
    return [
        *(f"{mine} ({', '.join(sorted(many))} in the table)" for mine, many in theirs_of.items() if len(many) > 1),
        *(f"{theirs} of the table ({', '.join(sorted(many))})" for theirs, many in mine_of.items() if len(many) > 1),
    ]


def check_splits_file(draft: Draft, request: RecipeRequest, *, labels: Mapping[str, str]) -> None:
    """Compare what a splits file says of clips beside their splits: patients, and labels.

    Parameters
    ----------
    labels : mapping of str to str
        Column of the file to column of the draft.
    """
    if request.splits is None:
        return
    table = read_table(request.splits, option="--splits")
    column = table.find_column(RELEASE_ID_NAMES)
    if column is None:  # a file of studies or of patients
        return
    names = [[str(row[key]) for key in ("clip_id", "path") if row.get(key)] for row in draft.rows]
    rows, _ = match_names(table.cells(column), NameIndex(names))
    matched = [(at, line) for line, at in enumerate(rows) if at is not None]
    patients = table.find_column(PATIENT_ID_NAMES)
    if patients is not None:
        cells = table.cells(patients)
        draft.report(
            "patient-differs",
            "patients of the splits file do not agree with those of the data set, which were kept",
            disagreements(
                [draft.rows[at].get("patient_id") for at, _ in matched], [cells[line] for _, line in matched]
            ),
        )
    for theirs, mine in labels.items():
        found_column = table.find_column([theirs])
        if found_column is None:
            continue
        for at, line in matched:  # it is the benchmark's own file: its order is the one of its results
            draft.rows[at][SOURCE_ROW] = line
        cells = table.cells(found_column)
        draft.report(
            "label-differs",
            f"clips have another {theirs} in the splits file; the data set's own was kept",
            [
                f"{draft.rows[at]['clip_id']} ({draft.rows[at].get(mine)}, there {cells[line]})"
                for at, line in matched
                if not _is_same(draft.rows[at].get(mine), cells[line])
            ],
        )


def _is_same(own: object, cell: str) -> bool:
    if isinstance(own, bool):
        return bool(read_cell(cell, "boolean")[0] == own)
    return (own or "") == cell
