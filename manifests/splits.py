"""Splits files: CSVs that say which split a clip, a study or a patient is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embedstore.errors import ManifestError, UnknownNameError, did_you_mean
from embedstore.manifest import Finding, normalise_split
from manifests.tables import (
    CLIP_ID_NAMES,
    PATH_NAMES,
    PATIENT_ID_NAMES,
    STUDY_ID_NAMES,
    NameIndex,
    found,
    match_names,
    read_table,
)

__all__ = ["SplitsFile", "read_splits"]

_NAMED = 5


@dataclass(frozen=True)
class SplitsFile:
    """A CSV that says which split each clip, study or patient is in.

    Attributes
    ----------
    level : {"clip", "study", "patient"}
        What its ids name.
    split_of : mapping of str to str or None
        Normalised split by id.
    """

    path: Path
    level: Literal["clip", "study", "patient"]
    split_of: Mapping[str, str | None]

    def assign(
        self,
        names: Sequence[Sequence[str]],
        *,
        studies: Sequence[str | None],
        patients: Sequence[str | None],
    ) -> tuple[list[str | None], list[Finding]]:
        """Return the split of each clip, null where the file does not cover it, and what did not match.

        Parameters
        ----------
        names : sequence of sequence of str
            For each clip, everything that names it; see `NameIndex`.
        studies, patients : sequence of str or None
            Study and patient of each clip.

        Raises
        ------
        UnknownNameError
            The file covers no clip at all.
        """
        ids = list(self.split_of)
        splits: list[str | None] = [None] * len(names)
        covered: set[int] = set()
        unknown, ambiguous = [], []
        if self.level == "clip":
            rows, ambiguous = match_names(ids, NameIndex(names))
            for text, row in zip(ids, rows, strict=True):
                if row is not None:
                    splits[row] = self.split_of[text]
                    covered.add(row)
                elif text not in ambiguous:
                    unknown.append(text)
        else:
            groups = studies if self.level == "study" else patients
            for row, group in enumerate(groups):
                if group in self.split_of:
                    splits[row] = self.split_of[str(group)]
                    covered.add(row)
            unknown = sorted(set(ids) - set(groups))
        if names and not covered:
            raise UnknownNameError(
                f"--splits: no {self.level} of {self.path} is one of this data set's (it names "
                f"{', '.join(ids[:_NAMED])}; a clip here is {names[0][0]}); is it the file of another data set?"
            )
        bare = [spellings[0] for row, spellings in enumerate(names) if row not in covered]
        where = f"of the splits file {self.path.name}"
        return splits, [
            *found("splits-unknown", f"ids {where} name no clip", unknown),
            *found("splits-ambiguous", f"ids {where} could mean several clips and were left out", ambiguous),
            *found("splits-missing", f"of {len(names)} clips are not in the splits file and have no split", bare),
        ]


def read_splits(
    path: Path,
    *,
    clip_names: Sequence[str] = (*CLIP_ID_NAMES, *PATH_NAMES),
    split_names: Sequence[str] = ("split",),
) -> SplitsFile:
    """Read a CSV with a column of ids and a column ``split``.

    Parameters
    ----------
    clip_names : sequence of str
        Columns that name a clip, the first that is there counts; without one, studies, then patients.

    Raises
    ------
    UnknownNameError
        There is no such file, or no column of ids or splits in it.
    StorageError
        The file cannot be read, or is no CSV.
    ManifestError
        An id stands in two splits.
    """
    table = read_table(path, option="--splits")
    split_column = table.find_column(split_names)
    if split_column is None:
        raise UnknownNameError(f"--splits: {path} has no column 'split'{did_you_mean('split', list(table.columns))}")
    levels: tuple[tuple[Literal["clip", "study", "patient"], Sequence[str]], ...] = (
        ("clip", clip_names),
        ("study", STUDY_ID_NAMES),
        ("patient", PATIENT_ID_NAMES),
    )
    columns = [(level, column) for level, names in levels if (column := table.find_column(names)) is not None]
    if not columns:
        raise UnknownNameError(
            f"--splits: {path} has no column of ids ({', '.join((*clip_names, 'study_id', 'patient_id'))}), "
            f"got {', '.join(table.columns)}"
        )
    level, id_column = columns[0]
    split_of: dict[str, str | None] = {}
    crossing = []
    for text, split in zip(table.cells(id_column), table.cells(split_column), strict=True):
        normal = normalise_split(split)
        if text and split_of.setdefault(text, normal) != normal:
            crossing.append(text)
    if crossing:
        listed = ", ".join(sorted(set(crossing))[:_NAMED])
        raise ManifestError(f"--splits: {path} has ids in two splits: {listed}")
    return SplitsFile(path, level, split_of)
