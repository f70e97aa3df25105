from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.manifest import SPLITS, draw_patient_split, normalise_split

patients = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=60)
seeds = st.integers(0, 2**32)


@given(patients, seeds, st.randoms(use_true_random=False))
def test_all_clips_of_a_patient_fall_together_in_any_row_order(
    listed: list[str], seed: int, shuffler: random.Random
) -> None:
    splits = draw_patient_split(listed, seed=seed)
    split_of = dict(zip(listed, splits, strict=True))
    assert splits == [split_of[patient] for patient in listed]
    assert set(splits) <= set(SPLITS)
    shuffled = shuffler.sample(listed, len(listed))
    assert draw_patient_split(shuffled, seed=seed) == [split_of[patient] for patient in shuffled]


@given(st.integers(1, 400), seeds)
def test_the_shares_hold_and_no_split_is_empty_from_three_patients_on(count: int, seed: int) -> None:
    found = Counter(draw_patient_split([f"p{number}" for number in range(count)], seed=seed))
    for split, share in zip(SPLITS, (0.5, 0.2, 0.3), strict=True):
        assert abs(found[split] - share * count) <= 1
        assert found[split] > 0 or count < 3


def test_a_share_of_nothing_stays_empty() -> None:
    listed = [f"p{number}" for number in range(4)]
    assert set(draw_patient_split(listed, seed=0, fractions=(0.0, 0.0, 1.0))) == {"test"}
    assert set(draw_patient_split(listed, seed=0, fractions=(1.0, 0.0, 0.0))) == {"train"}


def test_another_seed_draws_another_split() -> None:
    listed = [f"p{number}" for number in range(50)]
    assert draw_patient_split(listed, seed=0) != draw_patient_split(listed, seed=1)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("TRAIN", "train"),
        (" Validation ", "val"),
        ("valid", "val"),
        ("Testing", "test"),
        ("", None),
        ("  ", None),
        (None, None),
        ("fold3", "fold3"),
        ("TRAIN2", "TRAIN2"),
    ],
)
def test_spellings_of_splits(text: str | None, split: str | None) -> None:
    assert normalise_split(text) == split
