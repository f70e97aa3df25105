"""Planned clips in columns: the same clips in memory and in a plan's file, by unit, and under the same key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_sets import manifest_of, spec_of

from embedstore.build.plan import BuildPlan, _plan_key, make_plan
from embedstore.build.planned import PlannedClip, PlannedClips
from embedstore.errors import CorruptionError
from embedstore.identity import digest_json
from embedstore.store import Store
from embedstore.tables import table_bytes

ACTIONS = ("encode", "twin", "fail", "encode", "encode", "copy")


def some_clips(n_clips: int, *, each: int = 300) -> list[PlannedClip]:
    """Clips of every kind, the units of those to encode in order, one of them without any."""
    clips = []
    for number in range(n_clips):
        action, unit = ACTIONS[number % len(ACTIONS)], number // each
        is_encoded = action == "encode" and unit != 2
        clips.append(
            PlannedClip(
                clip_id=f"clip-{number}",
                content_sha256=None if number % 7 == 0 else f"{number:064x}",
                vector_key=f"{number:064x}",
                action="encode" if is_encoded else "fail" if action == "encode" else action,
                unit=unit if is_encoded else None,
                source_set="one" if action == "copy" else None,
                source_row=number if action == "copy" else None,
                reason="missing" if action == "fail" else None,
                detail="clip-0" if action == "twin" else None,
            )
        )
    return clips


@pytest.mark.parametrize("n_clips", [0, 1, 5000])
@pytest.mark.parametrize("is_stored", [False, True])
def test_clips_and_units_are_those_that_were_planned(tmp_path: Path, n_clips: int, is_stored: bool) -> None:
    expected = some_clips(n_clips)
    clips = PlannedClips.of(expected)
    if is_stored:
        (tmp_path / "plan.parquet").write_bytes(table_bytes(clips.table))
        clips = PlannedClips(tmp_path / "plan.parquet")
    assert list(clips) == expected == list(clips) and len(clips) == n_clips
    assert clips.distinct("source_set") == {clip.source_set for clip in expected} - {None}
    by_unit: dict[int, list[PlannedClip]] = {}
    for clip in expected:
        if clip.unit is not None:
            by_unit.setdefault(clip.unit, []).append(clip)
    assert dict(clips.units) == by_unit and list(clips.units) == sorted(by_unit)
    assert {unit: clips.units.n_clips(unit) for unit in clips.units} == {
        u: len(found) for u, found in by_unit.items()
    }
    units = clips.units
    for unit in reversed(by_unit):  # in any order, too
        assert units[unit] == by_unit[unit]
    assert (
        2 not in units
        and 10**6 not in units
        and dict(units.only([3, 0])) == {unit: by_unit[unit] for unit in (0, 3) if unit in by_unit}
    )


def test_kept_clips_stand_first_in_the_order_of_their_rows() -> None:
    clips = [replace(clip, action="keep", source_row=9 - number) for number, clip in enumerate(some_clips(3))]
    others = some_clips(10)[3:]
    mixed = [others[0], clips[0], *others[1:4], clips[1], clips[2], *others[4:]]
    assert list(PlannedClips.of(mixed).kept_first()) == [clips[2], clips[1], clips[0], *others]


def test_a_plan_that_is_read_again_is_the_same(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    manifest = manifest_of({f"clip{number}": "p" for number in range(20)})
    plan = replace(make_plan(store, manifest, spec_of("small")), batch_size=2)
    assert plan.write(tmp_path / "build") and not plan.write(tmp_path / "build")
    read = BuildPlan.read(tmp_path / "build")
    assert read is not None
    assert list(read.clips) == list(plan.clips) and replace(read, clips=plan.clips) == plan
    assert dict(read.units) == dict(plan.units)
    (path,) = (tmp_path / "build").glob("plan-*.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptionError, match="no readable plan"):
        BuildPlan.read(tmp_path / "build")


def test_the_key_of_a_plan_is_the_digest_of_its_canonical_json() -> None:
    """Computed a clip at a time, so that no list of all of them is made."""
    spec = spec_of("small")
    for clips in ([], some_clips(1), [replace(clip, clip_id=f'é"{clip.clip_id}') for clip in some_clips(40)]):
        wanted = [[clip.clip_id, clip.vector_key] for clip in clips if clip.action in ("encode", "twin", "copy")]
        settled = [[clip.clip_id, clip.reason] for clip in clips if clip.action == "fail"]
        expected = digest_json(["set", spec.fingerprint, None, True, wanted, settled])
        assert _plan_key("set", spec, None, PlannedClips.of(clips), True) == expected
