"""What may leave: columns by role and name, licences, and groups that are too small to hide in.

It is an allow-list. A column is kept, changed or emptied by a rule of this module; a column without a rule stops the
export, since a tool that does not know what a column holds must not send it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedstore.embedding_set import TABLE_SCHEMAS
from embedstore.errors import PolicyError, UnknownNameError, did_you_mean
from embedstore.manifest import Manifest, ManifestField

__all__ = [
    "MIN_GROUP",
    "REDISTRIBUTION",
    "ColumnRule",
    "coarsen",
    "manifest_rules",
    "require_licence",
    "require_table_rules",
    "smallest_group",
    "strictest",
    "table_rules",
]

# Patients that must share a combination of quasi-identifiers: the least group that the statistical offices' rule of
# thumb lets be published.
MIN_GROUP = 5
REDISTRIBUTION = ("no", "ask", "yes")  # strictest first
_AGE_LIMIT = 90  # ages above 89 stand together: 45 CFR 164.514(b)(2)(i)(C)
_DATE = re.compile(r"(\d{4})[-/.]?\d{2}[-/.]?\d{2}(?:[T ].*)?")
_AGE = re.compile(r"(?:^|_)age(?:_|$)", re.IGNORECASE)

_ID_COLUMNS = ("clip_id", "patient_id", "study_id")
_KEPT = {
    "split": "split",
    "n_frames": "sampling",
    "fps": "sampling",
    "spacing_x_mm": "sampling",
    "spacing_y_mm": "sampling",
    "height": "media",
    "width": "media",
    "modality": "extra",
}
_EMPTIED_ROLES = ("label", "subgroup", "extra")
_ROLES = ("id", "media", "sampling", "split", "label", "subgroup", "extra")
_TABLE_ACTIONS = {
    "clip_id": "id",
    "content_sha256": "digest",
    "vector_key": "key",
    "row": "renumbered",
    "frame_row": "renumbered",
    "window_row": "renumbered",
    "detail": "emptied",
}


@dataclass(frozen=True)
class ColumnRule:
    """What happens to a column: ``kept``, ``pseudonym``, ``keyed``, ``emptied``, ``left out``, ``named`` or others.

    Attributes
    ----------
    column, role, action, why : str
    """

    column: str
    role: str
    action: str
    why: str

    def to_dict(self) -> dict[str, str]:
        """Return JSON values only."""
        return dict(vars(self))


def manifest_rules(
    manifest: Manifest, *, ids: str, digests: str, named: Collection[str] = (), dropped: Collection[str] = ()
) -> list[ColumnRule]:
    """Return a rule for each column of a manifest.

    Parameters
    ----------
    ids : {"public", "pseudonyms", "kept"}
        What becomes of clips, patients and studies.
    digests : {"keyed", "join-key", "kept", "none"}
        What becomes of the digests of media files.
    named : collection of str
        Columns that the user wants to send.
    dropped : collection of str
        Columns that the user wants left out, for those that have no rule.

    Raises
    ------
    PolicyError
        A column has no rule.
    """
    return [
        _rule_of(name, str(declared.role), ids=ids, digests=digests, named=named, dropped=dropped)
        for name, declared in manifest.fields.items()
    ] + [_key_frame_rule(dropped)]


def _key_frame_rule(dropped: Collection[str]) -> ColumnRule:
    if "key_frames" in dropped:
        return ColumnRule("key_frames", "sampling", "emptied", "you dropped it")
    return ColumnRule("key_frames", "sampling", "kept", "frame numbers that sampling needs")


def _rule_of(
    name: str, role: str, *, ids: str, digests: str, named: Collection[str], dropped: Collection[str]
) -> ColumnRule:
    if name in dropped:
        is_standard = name in (*_ID_COLUMNS, *_KEPT, "path", "sha256")
        return ColumnRule(name, role, "emptied" if is_standard else "left out", "you dropped it")
    if role == "id" and name in _ID_COLUMNS:
        action, why = {
            "public": ("kept", "published ids"),
            "kept": ("kept", "pseudonyms of whoever sent them"),
            "pseudonyms": ("pseudonym", "a random name for this recipient"),
        }[ids]
        return ColumnRule(name, role, action, why)
    if name == "sha256" and role == "media":
        return {
            "keyed": ColumnRule(name, role, "keyed", "tells copies apart, and nothing to who has no key"),
            "join-key": ColumnRule(name, role, "keyed", "HMAC under the key that both labs hold"),
            "kept": ColumnRule(name, role, "kept", "keyed by whoever sent them"),
            "none": ColumnRule(name, role, "emptied", "a digest proves that somebody has the file"),
        }[digests]
    if name == "path" and role == "media":
        return ColumnRule(name, role, "emptied", "paths and file names stay here")
    if _KEPT.get(name) == role:
        return ColumnRule(name, role, "kept", "needed to sample, split or read the vectors")
    if name in named:
        return ColumnRule(name, role, "named", "you named it")
    if role in _EMPTIED_ROLES:
        return ColumnRule(name, role, "left out", "sent only where it is named (--with-labels)")
    raise PolicyError(
        f"the column {name!r} with the role {role!r} has no rule, so nothing is sent; name it with --with-labels "
        f"{name} to send it, or with --drop {name} to leave it out"
    )


def table_rules(*, ids: str, digests: str) -> list[ColumnRule]:
    """Return a rule for each column of the tables of a set."""
    return [
        ColumnRule(f"{table}:{column.name}", "table", _table_action(column.name, ids=ids, digests=digests), "")
        for table, schema in TABLE_SCHEMAS.items()
        for column in schema
    ]


def _table_action(column: str, *, ids: str, digests: str) -> str:
    action = _TABLE_ACTIONS.get(column, "kept")
    if action == "id":
        return "pseudonym" if ids == "pseudonyms" else "kept"
    if action in ("digest", "key"):
        is_kept = ids == "kept" or (action == "key" and ids == "public")
        return "kept" if is_kept or digests == "kept" else "keyed"
    return action


def require_table_rules(table: str, columns: Sequence[str]) -> None:
    """Refuse a table of a set with a column that no rule knows.

    Raises
    ------
    PolicyError
        It has one.
    """
    unknown = [name for name in columns if name not in TABLE_SCHEMAS[table].names]
    if unknown:
        raise PolicyError(f"{table} has the column {unknown[0]!r}, which has no rule, so nothing is sent")


def require_named_columns(named: Collection[str], manifests: Iterable[Manifest]) -> None:
    """Refuse a column that the user names and that stands in no manifest.

    Raises
    ------
    UnknownNameError
        There is one; the nearest name is said.
    """
    known = sorted({name for manifest in manifests for name in [*manifest.fields, "key_frames"]})
    for name in named:
        if name not in known:
            raise UnknownNameError(f"no data set of the snapshot has the column {name!r}{did_you_mean(name, known)}")


# -- values of named columns --------------------------------------------------------------------------------


def coarsen(declared: ManifestField, cells: Sequence[Any]) -> tuple[list[Any], str]:
    """Return the cells of a named column as they may be sent, and what was done: years for dates, 90 for older.

    Examples
    --------
    >>> coarsen(ManifestField(name="seen", role="extra"), ["2019-03-04", None])
    (['2019', None], 'dates became years')
    >>> coarsen(ManifestField(name="age", role="subgroup", kind="number"), [41.0, 93.0])
    ([41.0, 90.0], 'ages above 89 became 90')
    """
    present = [cell for cell in cells if cell is not None]
    if present and all(isinstance(cell, str) and _DATE.fullmatch(cell.strip()) for cell in present):
        years = [cell if cell is None else cell.strip()[:4] for cell in cells]
        return years, "dates became years"
    if declared.kind in ("number", "integer") and _AGE.search(declared.name):
        limit = float(_AGE_LIMIT) if declared.kind == "number" else _AGE_LIMIT
        return [cell if cell is None else min(cell, limit) for cell in cells], "ages above 89 became 90"
    return list(cells), ""


def smallest_group(manifest: Manifest, named: Collection[str]) -> tuple[int | None, tuple[str, ...]]:
    """Return the fewest patients that share their values in the named quasi-identifiers, and which these are.

    Quasi-identifiers are the named columns but for continuous labels: what somebody may know of a patient.

    Returns
    -------
    (k, columns)
        ``k`` is None where no quasi-identifier is named.
    """
    columns = tuple(
        name
        for name in manifest.fields
        if name in named and not (manifest.fields[name].role == "label" and manifest.fields[name].kind == "number")
    )
    if not columns or not len(manifest):
        return None, columns
    cells = [coarsen(manifest.fields[name], manifest.column(name))[0] for name in columns]
    patients: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for values, patient in zip(zip(*cells, strict=True), manifest.patients, strict=True):
        patients[values].add(patient)
    return min(len(found) for found in patients.values()), columns


# -- licences -----------------------------------------------------------------------------------------------


def strictest(words: Iterable[str]) -> str:
    """Return the strictest of ``no``, ``ask``, ``yes``.

    Examples
    --------
    >>> strictest(["yes", "ask"])
    'ask'
    """
    return min(words, key=REDISTRIBUTION.index)


def require_licence(redistribution: Mapping[str, str], *, permission_ref: str | None) -> None:
    """Refuse data sets that may not be passed on without a permission where none is recorded.

    Parameters
    ----------
    redistribution : mapping of str to str
        Data set to ``no``, ``ask`` or ``yes``.
    permission_ref : str or None
        Where the permission is recorded.

    Raises
    ------
    PolicyError
        There is one, and no permission.
    """
    closed = sorted(name for name, word in redistribution.items() if word != "yes")
    if closed and not (permission_ref or "").strip():
        listed = ", ".join(f"{name} ({redistribution[name]})" for name in closed)
        raise PolicyError(
            f"redistribution is not free for {listed}: vectors made from it may not be passed on without its owner's "
            "permission; record where you have it with --permission-ref TEXT"
        )
