"""`PlannedClips`: what happens to each clip of a build, in columns: an object a clip is made when it is looked at.

A plan in memory is an Arrow table, that of a build's folder stays in its file and is read from front to back as often
as it is asked for, so that the memory of a build does not follow its clips.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedstore.tables import TableReader, rows_to_table

__all__ = ["PlannedClip", "PlannedClips", "UnitClips"]

_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("content_sha256", pa.string()),
        ("vector_key", pa.string()),
        ("action", pa.string()),
        ("unit", pa.int64()),
        ("source_set", pa.string()),
        ("source_row", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
_BATCH_CLIPS = 1024


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """What happens to one clip.

    Attributes
    ----------
    action : {"keep", "copy", "twin", "encode", "fail"}
        ``keep`` its row of the parent set, ``copy`` a row of another set with the same key, ``twin`` the row of an
        earlier clip with the same content, ``encode`` it, or ``fail`` for a reason that is known beforehand.
    unit : int or None
        Work unit of a clip to encode.
    """

    clip_id: str
    content_sha256: str | None
    vector_key: str | None
    action: str
    unit: int | None = None
    source_set: str | None = None
    source_row: int | None = None
    reason: str | None = None
    detail: str | None = None


class PlannedClips(Collection[PlannedClip]):
    """The clips of a plan, in its order.

    Parameters
    ----------
    table : pyarrow.Table or Path
        The columns, or the Parquet file that holds them.

    Examples
    --------
    >>> clip = PlannedClip(clip_id="a", content_sha256=None, vector_key="k", action="encode", unit=0)
    >>> clips = PlannedClips.of([clip])
    >>> len(clips), list(clips) == [clip], dict(clips.units) == {0: [clip]}
    (1, True, True)
    """

    def __init__(self, table: pa.Table | Path) -> None:
        self._table = table
        actions: list[npt.NDArray[np.bool_]] = []
        units: list[npt.NDArray[np.int64]] = []
        self.counts: Counter[str] = Counter()
        for part in self._parts(["action", "unit"]):
            counted = pc.value_counts(part["action"])
            self.counts.update({entry["values"]: entry["counts"] for entry in counted.to_pylist()})
            actions.append(pc.equal(part["action"], "encode").to_numpy())
            units.append(part["unit"].fill_null(-1).to_numpy())
        self._spans = _spans(np.concatenate(actions), np.concatenate(units)) if units else {}

    @classmethod
    def of(cls, clips: Iterable[PlannedClip]) -> PlannedClips:
        """Hold clips in memory."""
        rest = iter(clips)
        parts = [_SCHEMA.empty_table()]
        while block := list(itertools.islice(rest, _BATCH_CLIPS)):
            parts.append(rows_to_table([vars(clip) for clip in block], _SCHEMA))
        return cls(pa.concat_tables(parts))

    def kept_first(self) -> PlannedClips:
        """Return the clips that keep their row in the order of their rows, then the others as they are."""
        if not self.counts["keep"]:
            return self
        table = self.table
        is_kept = pc.equal(table["action"], "keep")
        kept = table.filter(is_kept).sort_by("source_row")
        return PlannedClips(pa.concat_tables([kept, table.filter(pc.invert(is_kept))]))

    def _parts(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        if isinstance(self._table, Path):
            yield from TableReader(self._table).parts(columns, n_rows=_BATCH_CLIPS)
            return
        table = self._table if columns is None else self._table.select(columns)
        for batch in table.to_batches(max_chunksize=_BATCH_CLIPS):
            yield pa.Table.from_batches([batch])

    def __len__(self) -> int:
        return self.counts.total()

    def __iter__(self) -> Iterator[PlannedClip]:
        for part in self._parts():
            yield from _clips_of(part)

    def __contains__(self, clip: object) -> bool:
        return any(clip == one for one in self)

    @property
    def table(self) -> pa.Table:
        """The columns, each in one piece, so that equal plans are equal bytes."""
        table = pa.concat_tables(self._parts()) if isinstance(self._table, Path) else self._table
        return table.combine_chunks()

    @property
    def units(self) -> UnitClips:
        """Clips to encode by unit, in order."""
        return UnitClips(self._table, self._spans)

    def distinct(self, column: str) -> frozenset[str]:
        """Return the strings that a column holds."""
        found: set[str | None] = set()
        for part in self._parts([column]):
            found.update(pc.unique(part[column]).to_pylist())
        return frozenset(value for value in found if value is not None)


def _clips_of(part: pa.Table) -> Iterator[PlannedClip]:
    return (PlannedClip(**row) for row in part.to_pylist())


class _Span(NamedTuple):
    """Rows ``[start, stop)`` of a plan that hold the clips of a unit, and how many these are."""

    start: int
    stop: int
    n_clips: int


def _spans(is_encoded: npt.NDArray[np.bool_], units: npt.NDArray[np.int64]) -> dict[int, _Span]:
    """Return the span of each unit, in order."""
    rows = np.flatnonzero(is_encoded & (units >= 0))
    units = units[rows]
    numbers, first, counts = np.unique(units, return_index=True, return_counts=True)
    last = len(units) - 1 - np.unique(units[::-1], return_index=True)[1]
    spans = zip(rows[first].tolist(), (rows[last] + 1).tolist(), counts.tolist(), strict=True)
    return {unit: _Span(*span) for unit, span in zip(numbers.tolist(), spans, strict=True)}


class UnitClips(Mapping[int, list[PlannedClip]]):
    """Clips to encode by unit; reading units in their order reads the plan once."""

    def __init__(self, table: pa.Table | Path, spans: Mapping[int, _Span]) -> None:
        self._table, self._spans = table, spans
        self._reader: TableReader | None = None
        self._at = 0

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[int]:
        return iter(self._spans)

    def __contains__(self, unit: object) -> bool:
        return unit in self._spans

    def __getitem__(self, unit: int) -> list[PlannedClip]:
        start, stop, _ = self._spans[unit]
        if isinstance(self._table, Path):
            if self._reader is None or start < self._at:
                self._reader = TableReader(self._table)
            self._at = start
            rows = self._reader.rows(start, stop)
        else:
            rows = self._table.slice(start, stop - start)
        return [clip for clip in _clips_of(rows) if clip.action == "encode" and clip.unit == unit]

    def n_clips(self, unit: int) -> int:
        """Return how many clips a unit has."""
        return self._spans[unit].n_clips

    def only(self, units: Collection[int]) -> UnitClips:
        """Return some of the units."""
        wanted = set(units)
        return UnitClips(self._table, {unit: span for unit, span in self._spans.items() if unit in wanted})
