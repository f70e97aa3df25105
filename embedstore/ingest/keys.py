"""The ids of rows, as numbers: distinct, sorted, checked for doubles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError
from embedstore.manifest.cells import composed

__all__ = ["RowKeys", "named"]

_NAMED = 10


def named(ids: Sequence[str]) -> str:
    """Return the first ten ids, and how many there are in all.

    Examples
    --------
    >>> named(["a", "b"])
    'a, b'
    """
    shown = ", ".join(ids[:_NAMED])
    return shown if len(ids) <= _NAMED else f"{shown}, ... ({len(ids)} in all)"


@dataclass(frozen=True)
class RowKeys:
    """The ids of all rows of one kind, as numbers.

    Attributes
    ----------
    names : list of str
        The distinct ids in ascending order.
    codes : (n_rows,) int64
        Place in ``names`` of each row's id.
    frames : (n_rows,) int64 or None
        Frame number of each row; None for clip vectors.
    """

    names: list[str]
    codes: npt.NDArray[np.int64]
    frames: npt.NDArray[np.int64] | None = None

    @classmethod
    def read(
        cls,
        blocks: Iterable[Sequence[str]],
        *,
        n_rows: int,
        frame_numbers: Callable[[], npt.NDArray[np.int64]] | None = None,
    ) -> RowKeys:
        """Read the ids of a source.

        Ids are compared in Unicode's composed form, as in a manifest.

        Raises
        ------
        ContentError
            An id is empty, a clip has two vectors, a frame of a clip has two, or a frame number is negative.
        """
        places: dict[str, int] = {}
        parts = [
            np.fromiter((places.setdefault(text, len(places)) for text in block), dtype=np.int64, count=len(block))
            for block in blocks
        ]
        found = np.concatenate(parts) if parts else np.empty(0, np.int64)
        if len(found) != n_rows:
            raise ContentError(f"the source gives {len(found)} ids for {n_rows} vectors")
        if "" in places:
            raise ContentError(f"row {int(np.flatnonzero(found == places[''])[0])} has an empty id")
        spelled = [composed(text) for text in places]
        names = sorted(set(spelled))
        rank = {name: at for at, name in enumerate(names)}
        codes = np.array([rank[name] for name in spelled], dtype=np.int64)[found]
        keys = cls(names, codes, None if frame_numbers is None else frame_numbers())
        keys._require_single()
        return keys

    def _require_single(self) -> None:
        if self.frames is None:
            counts = np.bincount(self.codes, minlength=len(self.names))
            doubled = [self.names[at] for at in np.flatnonzero(counts > 1)]
            if doubled:
                raise ContentError(f"clips with more than one vector: {named(doubled)}; keep one row a clip")
            return
        if len(self.frames) != len(self.codes):
            raise ContentError(f"the source gives {len(self.frames)} frame numbers for {len(self.codes)} vectors")
        if self.frames.size and self.frames.min() < 0:
            wrong = self.names[self.codes[int(np.argmin(self.frames))]]
            raise ContentError(f"clip {wrong} has the frame number {int(self.frames.min())}; frames count from 0")
        order = self.order
        same = (np.diff(self.codes[order]) == 0) & (np.diff(self.frames[order]) == 0)
        if same.any():
            at = order[np.flatnonzero(same)]
            twice = [f"{self.names[self.codes[row]]} frame {int(self.frames[row])}" for row in at]
            raise ContentError(f"frames with more than one vector: {named(twice)}; keep one row a frame")

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """Row numbers sorted by id, then by frame: the order in which rows are digested, whatever the file's is."""
        if self.frames is None:
            return np.argsort(self.codes, kind="stable")
        return np.lexsort((self.frames, self.codes))

    def positions(self, clip_positions: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """Return the manifest's row of each of ``names``, -1 where it has no such clip."""
        return np.array([clip_positions.get(name, -1) for name in self.names], dtype=np.int64)
