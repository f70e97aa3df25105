"""`ReleaseClip` and `ClipRows`: rows of a published data set in the making, each clip once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from embedstore.manifest.cells import composed
from embedstore.media import stem_without_media_suffix
from manifests.draft import Draft

__all__ = ["SOURCE_ROW", "ClipRows", "ReleaseClip", "named_stem"]

# Row of the official table, from 0: the order in which the benchmark's scripts meet the clips.
SOURCE_ROW = "source_row"


def named_stem(path: str) -> str:
    """Return the file name of a path without its media suffix, as tables name clips.

    Examples
    --------
    >>> named_stem("Batch1/0X1A.avi"), named_stem("0X1A")
    ('0X1A', '0X1A')
    """
    return composed(stem_without_media_suffix(PurePosixPath(path).name))


@dataclass
class ReleaseClip:
    """A row in the making.

    Attributes
    ----------
    row : dict
        Values by manifest column, ``clip_id`` among them.
    candidates : sequence of str
        Paths below the root that may be its file; several are one clip where their content is the same.
    key_frames : list of (str, int)
        Role and frame, counted from 0.
    """

    row: dict[str, Any]
    candidates: Sequence[str] = ()
    key_frames: list[tuple[str, int]] = field(default_factory=list)

    @property
    def clip_id(self) -> str:
        """Id of the clip."""
        return str(self.row["clip_id"])


class ClipRows:
    """Clips in the order of their table; what names a clip again, or none, is kept for the report."""

    def __init__(self) -> None:
        self._by_id: dict[str, ReleaseClip] = {}
        self._repeated: list[str] = []
        self._unnamed: list[str] = []

    def __iter__(self) -> Iterator[ReleaseClip]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._by_id

    def __getitem__(self, clip_id: str) -> ReleaseClip:
        return self._by_id[clip_id]

    def add(self, clip: ReleaseClip, *, place: str) -> None:
        """Add a clip, unless there is one of that id.

        Parameters
        ----------
        place : str
            Where its row stands, e.g. ``"FileList.csv row 12"``.
        """
        if not clip.row["clip_id"]:
            self._unnamed.append(place)
            return
        first = self._by_id.setdefault(clip.clip_id, clip)
        if first is not clip:
            differs = any(first.row.get(name) != value for name, value in clip.row.items() if name != SOURCE_ROW)
            self._repeated.append(f"{clip.clip_id} ({place}{', with other values' if differs else ''})")

    def report(self, draft: Draft, *, labels: Sequence[str]) -> None:
        """Report rows without a name, rows that repeat a clip, and clips without a label.

        Parameters
        ----------
        labels : sequence of str
            Columns that every clip should have.
        """
        draft.report("row-unnamed", "rows name no clip and were left out", self._unnamed)
        draft.report("row-repeated", "rows repeat a clip; the first one counts", self._repeated)
        for label in labels:
            without = [clip.clip_id for clip in self if clip.row.get(label) is None]
            draft.report("unlabelled", f"of {len(self):,} clips have no {label}", without)
