"""Canonical JSON and seeds."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedstore.identity
from embedstore.identity import canonical_json, derive_seed, digest_json, digest_json_parts

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_canonical_json_is_read_back_equal(value: object) -> None:
    def composed(entry: object) -> object:
        if isinstance(entry, str):
            return unicodedata.normalize("NFC", entry)
        if isinstance(entry, list):
            return [composed(inner) for inner in entry]
        if isinstance(entry, dict):
            return {unicodedata.normalize("NFC", key): composed(inner) for key, inner in entry.items()}
        return entry

    assert json.loads(canonical_json(value)) == composed(value)


@given(values, st.integers(1, 3))
def test_a_digest_of_parts_is_that_of_the_whole(value: object, n_entries: int) -> None:
    def streamed(entry: object) -> object:
        if isinstance(entry, list):
            return iter(entry)
        return {key: streamed(inner) for key, inner in entry.items()} if isinstance(entry, dict) else entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedstore.identity, "_PART_ENTRIES", n_entries)
        assert digest_json_parts(streamed(value)) == digest_json(value)


def test_a_column_is_written_as_any_list() -> None:
    plain, odd = ["a", None, 1, 0.5, True], ["e\u0301", "a"]  # the second holds a text to compose
    assert canonical_json(plain) == canonical_json(tuple(plain)) == b'["a",null,1,0.5,true]'
    assert canonical_json(odd) == '["\u00e9","a"]'.encode()
    assert canonical_json(range(3)) == b"[0,1,2]"


@given(st.dictionaries(st.text(alphabet="abcdef", min_size=1), st.integers(), min_size=2))
def test_key_order_does_not_matter(fields: dict[str, int]) -> None:
    assert digest_json(fields) == digest_json(dict(reversed(list(fields.items()))))


@pytest.mark.parametrize("wrong", [float("nan"), [1.0, float("inf")], {1: 2}, object(), [b"bytes"], {"a": {2, 3}}])
def test_what_is_no_json_is_refused(wrong: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical_json(wrong)


def test_seeds_differ_by_name_and_order() -> None:
    seeds = {derive_seed(*names) for names in [("a", "b"), ("b", "a"), ("ab",), ("a", "b", 0), ("a", "b", 1)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**64 for seed in seeds)
