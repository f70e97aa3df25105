from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.errors import UnknownNameError
from embedstore.where import parse_where

TABLE = pa.table(
    {
        "clip_id": ["a", "b", "c", "d"],
        "view": pa.array(["A4C", "A2C", None, "PLAX"]),
        "fps": pa.array([25.0, 50.0, None, 30.0]),
        "n_frames": pa.array([10, 20, 30, 40], pa.int32()),
        "rwma": pa.array([True, False, None, True]),
        "My Site": pa.array(["St. Anna", "and", "x", "x"]).dictionary_encode(),
        "nothing": pa.nulls(4),
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("view == A4C", "a"),
        ("view != A4C", "bcd"),
        ("view in (A4C, 'A2C')", "ab"),
        ("view in A4C,PLAX and fps < 30", "a"),
        ("view in [A4C]", "a"),
        ("fps >= 30", "bd"),
        ("fps != 30", "abc"),
        ("fps in (25, 3e1)", "ad"),
        ("n_frames<=20 AND n_frames>10", "b"),
        ("rwma == true", "ad"),
        ("rwma != TRUE", "bc"),
        ("\"My Site\" == 'St. Anna'", "a"),
        ("'My Site' == 'and'", "b"),
        ("nothing == x", ""),
        ("nothing != x", "abcd"),
    ],
)
def test_selects(text: str, rows: str) -> None:
    kept = parse_where(text).mask(TABLE)
    assert kept.dtype == np.bool_
    assert "".join(np.array(TABLE["clip_id"].to_pylist())[kept]) == rows


@pytest.mark.parametrize(
    "text",
    [
        *("", "   ", "view", "view ==", "== A4C", "view = A4C", "view == A4C or fps > 3", "view == A4C and"),
        *("view in", "view in (A4C", "view in (A4C,)", "view in ()", "view == 'A4C", "view == A4C fps > 3"),
        *("view ! A4C", "f(x) == 3"),
    ],
)
def test_refuses_what_is_no_expression(text: str) -> None:
    with pytest.raises(UnknownNameError, match="joined by 'and'"):
        parse_where(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("veiw == A4C", "did you mean 'view'"),
        ("fps > fast", "holds numbers, got 'fast'"),
        ("fps > nan", "holds numbers"),
        ("view < A4C", "holds no numbers"),
        ("rwma == maybe", "true or false"),
    ],
)
def test_refuses_what_does_not_fit_the_table(text: str, says: str) -> None:
    with pytest.raises(UnknownNameError, match=says):
        parse_where(text).mask(TABLE)


def test_a_nested_column_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="cannot be selected by"):
        parse_where("x == 1").mask(pa.table({"x": [[1], [2]]}))


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        where = parse_where(text)
    except UnknownNameError:
        return
    assert where.conditions


@given(st.lists(st.floats(-1e6, 1e6) | st.none(), max_size=20), st.floats(-1e6, 1e6))
def test_orderings_split_the_known_values(cells: list[float | None], limit: float) -> None:
    table = pa.table({"x": pa.array(cells, pa.float64())})
    below, above = (parse_where(f"x {op} '{limit!r}'").mask(table) for op in ("<", ">="))
    assert np.array_equal(below | above, np.array([cell is not None for cell in cells], dtype=bool))
    assert not (below & above).any()
