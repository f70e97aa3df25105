"""Numbers of official tables, traced areas, and the published split: the small parts by themselves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.errors import ManifestError
from embedstore.manifest import ManifestField
from manifests.cross_check import disagreements
from manifests.measures import read_measures
from manifests.published_split import PublishedShares, split_patients
from manifests.tracings import chord_area, hull_area

EF = ManifestField(name="lvef_pct", role="label", kind="number", unit="%", plausible=(1, 100))
WALL = ManifestField(name="ivsd_cm", role="label", kind="number", unit="cm", plausible=(0.1, 6))
points = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), max_size=12)


def test_words_for_nothing_are_listed_and_empty_cells_are_not() -> None:
    measured = read_measures(["55", "", "n/a", "inf", "1_0"], list("abcde"), EF, source="t")
    assert measured.values == (55, None, None, None, None)
    (finding,) = measured.findings
    assert finding.names == ("c (n/a)", "d (inf)", "e (1_0)")


@pytest.mark.parametrize(
    ("cells", "field", "message"),
    [
        (["0.5", "0.6"], EF, r"t is in another unit: 2 of 2 .* fractions of 1: a \(0\.5\), b \(0\.6\); .* by 100"),
        (["0.5", "60"], EF, "t mixes units: 1 of 2"),
        (["12", "9", "1.1"], WALL, r"mixes units: 2 of 3 .* millimetres: a \(12\), b \(9\); .* by 0\.1"),
        (["0.012", "0.009"], WALL, r"in another unit: 2 of 2 .* metres: .* by 100"),
    ],
)
def test_other_units_are_refused(cells: list[str], field: ManifestField, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_measures(cells, list("abc")[: len(cells)], field, source="t")


def test_what_no_unit_explains_stays_for_the_manifest_s_rule() -> None:
    assert read_measures(["150", "55"], ["a", "b"], EF, source="t").values == (150, 55)


@given(points)
def test_a_hull_is_as_large_in_any_order(listed: list[tuple[float, float]]) -> None:
    area = hull_area(listed)
    assert area == hull_area(listed[::-1]) >= 0
    assert hull_area([*listed, *listed]) == area
    if listed:
        moved = [(x + 7, y - 3) for x, y in listed]
        assert math.isclose(hull_area(moved), area, abs_tol=1e-9)


def test_areas_of_known_shapes() -> None:
    assert hull_area([(0, 0), (4, 0), (4, 3)]) == 6
    assert hull_area([(0, 0), (1, 1), (2, 2)]) == 0
    # The long axis comes first and bounds nothing; a trapezium of widths 4 and 2 and height 3 does.
    assert chord_area([(9, 9, -9, -9), (0, 0, 4, 0), (1, 3, 3, 3)]) == 9
    assert chord_area([(0, 0, 1, 1)]) == 0


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_a_partition_agrees_with_itself_under_other_names(own: list[str]) -> None:
    assert disagreements(own, [f"x{name}" for name in own]) == []


def test_the_published_shares() -> None:
    """Sizes that the facts state: 162 patients give 114/23/25 (HMC-QU), 146 give 101/15/30 (CardiacNet-ASD)."""
    for n_patients, shares, sizes in (
        (162, PublishedShares(test=0.15, val_of_rest=0.15 / 0.90), {"train": 114, "val": 23, "test": 25}),
        (146, PublishedShares(test=0.20, val_of_rest=0.10 / 0.80), {"train": 101, "val": 15, "test": 30}),
    ):
        splits = split_patients({f"p{n:03d}": n % 2 == 0 for n in range(n_patients)}, shares)
        assert splits is not None
        assert {split: list(splits.values()).count(split) for split in sizes} == sizes


def test_the_draw_does_not_depend_on_the_order_of_rows() -> None:
    labels = {f"p{n}": n % 3 == 0 for n in range(30)}
    shares = PublishedShares(test=0.2, val_of_rest=0.125)
    assert split_patients(labels, shares) == split_patients(dict(reversed(labels.items())), shares)
    assert split_patients({"a": True, "b": False}, shares) is None
    assert split_patients(dict.fromkeys("abcdefgh", False), shares) is not None


def test_scikit_learn_is_imported_late() -> None:
    import manifests

    folder = Path(manifests.__path__[0])
    for path in [*folder.glob("*.py"), *folder.glob("*/*.py")]:
        top = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not any("sklearn" in line for line in top), path
