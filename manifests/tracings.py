"""Key frames from expert outlines: of the traced frames, the larger area is end diastole, the smaller end systole."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from manifests.clips import ReleaseClip, named_stem
from manifests.draft import Draft
from manifests.measures import as_frame_number
from manifests.tables import Table, is_kind

__all__ = ["Tracings", "chord_area", "hull_area", "read_tracings", "set_traced_frames"]

Point = tuple[float, float]
_TRACED = 2  # frames of a clip: one end-diastolic, one end-systolic


@dataclass
class Tracings:
    """Traced frames by clip.

    Attributes
    ----------
    frames : dict of str to (int, int)
        End-diastolic and end-systolic frame, counted from 0 as in the table, by file name without suffix.
    unusable : list of str
        Clips that have no such pair, with the reason.
    """

    frames: dict[str, tuple[int, int]] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)


def read_tracings(table: Table) -> Tracings:
    """Read a `VolumeTracings.csv`: chords (X1, Y1, X2, Y2) or outline points (X, Y), a frame number each.

    Raises
    ------
    ManifestError
        Two columns bear one of the names.
    """
    clip, frame = table.find_column(["FileName"]), table.find_column(["Frame"])
    chord = [table.find_column([name]) for name in ("X1", "Y1", "X2", "Y2")]
    point = [table.find_column([name]) for name in ("X", "Y")]
    columns = chord if None not in chord else point
    if clip is None or frame is None or None in columns:
        return Tracings(
            unusable=[f"{table.path.name} (it has no columns FileName, Frame and X1, Y1, X2, Y2 or X, Y)"]
        )
    shapes: dict[str, dict[str, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    cells = [table.decimal_cells(name) for name in columns if name is not None]
    for name, number, *values in zip(table.cells(clip), table.cells(frame), *cells, strict=True):
        if name:
            usable = all(is_kind(value, "number") for value in values)
            shapes[named_stem(name)][number] += [tuple(map(float, values))] if usable else []
    traced = Tracings()
    for name, by_frame in shapes.items():
        pair, reason = _pair_of(by_frame)
        if pair is None:
            traced.unusable.append(f"{name} ({reason})")
        else:
            traced.frames[name] = pair
    return traced


def set_traced_frames(clips: Iterable[ReleaseClip], tables: Sequence[Table], draft: Draft) -> None:
    """Give clips their traced end-diastolic and end-systolic frames, and report those that have none.

    Parameters
    ----------
    tables : sequence of Table
        `VolumeTracings.csv`, one or more.
    """
    if not tables:
        draft.report("tracings-absent", "table is not there, so clips have no traced frames", ["VolumeTracings.csv"])
        return
    frames: dict[str, tuple[int, int]] = {}
    unusable: list[str] = []
    for table in tables:
        traced = read_tracings(table)
        frames |= traced.frames
        unusable += traced.unusable
    without = []
    for clip in clips:
        pair = frames.pop(named_stem(clip.clip_id), None)
        if pair is None:
            without.append(clip.clip_id)
        else:
            clip.key_frames = [("ed", pair[0]), ("es", pair[1])]
    draft.report("tracing-unusable", "tracings give no pair of end diastole and end systole", unusable)
    draft.report("key-frames-missing", "clips have no traced frames", without)
    draft.report("tracing-without-row", "tracings are of no clip", list(frames))


def _pair_of(by_frame: Mapping[str, Sequence[tuple[float, ...]]]) -> tuple[tuple[int, int] | None, str]:
    numbers = {text: as_frame_number(text) for text in by_frame}
    worded = [text for text, number in numbers.items() if number is None]  # EchoNet-Pediatric: "No Systolic"
    areas = {
        number: chord_area(shape) if len(shape[0]) == 4 else hull_area([(x, y) for x, y in shape])
        for text, shape in by_frame.items()
        if (number := numbers[text]) is not None and shape
    }
    if len(areas) != _TRACED:
        words = f", and {', '.join(repr(text) for text in worded)}" if worded else ""
        return None, f"{len(areas)} traced frames{words}"
    large, small = sorted(areas, key=lambda number: (-areas[number], number))
    if not areas[small] < areas[large]:
        return None, "both traced areas are equal"
    return (large, small), ""


def chord_area(chords: Sequence[Sequence[float]]) -> float:
    """Return the area between successive chords (x1, y1, x2, y2), in square pixels.

    The first chord is the long axis, which the others cross (EchoNet-Dynamic); it bounds no area.

    Examples
    --------
    >>> chord_area([(5, 0, 5, 9), (0, 0, 4, 0), (0, 2, 4, 2)])
    8.0
    """
    across = chords[1:]
    outline = [(x1, y1) for x1, y1, _, _ in across] + [(x2, y2) for _, _, x2, y2 in reversed(across)]
    return _shoelace(outline)


def hull_area(points: Sequence[Point]) -> float:
    """Return the area of the convex hull of points, in square pixels: the order of outline points is not documented.

    Examples
    --------
    >>> hull_area([(0, 0), (2, 2), (2, 0), (0, 2), (1, 1)])
    4.0
    """
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return 0.0
    return _shoelace(_half_hull(ordered)[:-1] + _half_hull(ordered[::-1])[:-1])


def _half_hull(points: Sequence[Point]) -> list[Point]:
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and _turn(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        hull.append(point)
    return hull


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _shoelace(outline: Sequence[Point]) -> float:
    following = [*outline[1:], *outline[:1]]
    return abs(math.fsum(x * y2 - x2 * y for (x, y), (x2, y2) in zip(outline, following, strict=True))) / 2
