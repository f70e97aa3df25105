"""Counts and crossings that are noted and refuse nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from embedstore.manifest import DatasetFacts, Manifest, ManifestField, count_clips, find_notes

COUNTS = {"clips": 4, "clips split=test": 2, "patients": 3, "studies split=train asd=true": 1, "clips size_cm=*": 2}
FIELDS = [
    ManifestField(name="asd", role="label", kind="boolean"),
    ManifestField(name="size_cm", role="label", kind="number"),
]
ROWS = [
    {"clip_id": "a", "patient_id": "p", "study_id": "s1", "split": "train", "asd": True, "size_cm": 4.5},
    {"clip_id": "b", "patient_id": "p", "study_id": "s1", "split": "train", "asd": True},
    {"clip_id": "c", "patient_id": "q", "split": "test", "asd": False, "size_cm": 5},
    {"clip_id": "d", "patient_id": "r", "split": "test"},
]


def manifest(rows: list[dict[str, Any]], *, patient_ids: str = "provided", **facts: Any) -> Manifest:
    dataset = DatasetFacts(name="x", title="X", **{"expected_counts": COUNTS, **facts})
    return Manifest.from_rows(rows, dataset=dataset, fields=FIELDS, patient_ids=patient_ids)


def test_counts_that_agree_say_nothing() -> None:
    assert find_notes(manifest(ROWS)) == []
    assert find_notes(manifest(ROWS, expected_counts={})) == []


def test_counts_that_deviate_are_named_and_break_no_rule() -> None:
    rows = [{**row, "split": "test"} for row in ROWS]
    made = manifest(rows, expected_counts={**COUNTS, "clips colour=red": 1})
    (note,) = find_notes(made)
    assert note.kind == "counts-differ"
    assert note.message == "3 of 6 counts differ from the published ones"
    assert note.names == (
        "clips split=test: 4, published 2",
        "studies split=train asd=true: 0, published 1",
        "clips colour=red: 0, published 1",
    )
    assert made.problems() == []
    assert find_notes(Manifest.from_rows([*ROWS, {"clip_id": "e"}], dataset=made.dataset, fields=FIELDS))[0].names


def test_a_part_of_the_clips_is_not_compared() -> None:
    (note,) = find_notes(manifest(ROWS, expected_counts={**COUNTS, "clips": 5}))
    assert (note.kind, note.names) == ("incomplete", ())
    assert note.message.startswith("4 of the 5 published clips")


@pytest.mark.parametrize(
    ("counted", "number"),
    [
        ("clips", 4),
        ("patients split=train", 1),
        ("patients asd=false", 1),
        ("studies", 1),
        ("clips asd=*", 3),
        ("clips size_cm=5.0", 1),
        ("clips split=none", 0),
    ],
)
def test_what_is_counted(counted: str, number: int) -> None:
    assert count_clips(manifest(ROWS), counted) == number


@pytest.mark.parametrize(
    "counts", [{"clip": 1, "clips": 1}, {"clips": -1}, {"clips  split=a": 1, "clips": 1}, {"patients": 3}]
)
def test_counts_that_count_nothing_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="expected_counts"):
        DatasetFacts(name="x", title="X", expected_counts=counts)


def test_facts_without_counts_are_written_as_before() -> None:
    assert "expected_counts" not in DatasetFacts(name="x", title="X").to_dict()
    facts = DatasetFacts(name="x", title="X", expected_counts={"clips": 1})
    assert DatasetFacts.model_validate(facts.to_dict()) == facts
    made = manifest(ROWS)
    assert made.to_bytes()
    assert made.header()["dataset"]["expected_counts"] == COUNTS


def test_patients_guessed_from_names_are_noted_where_they_cross() -> None:
    rows = [{**row, "view": "A4C", "split": split} for row, split in zip(ROWS, ["train", "test"] * 2, strict=True)]
    guessed = manifest(rows, patient_ids="derived(file name, first field)", expected_counts={})
    (note,) = find_notes(guessed)
    assert (note.kind, note.names) == ("patient-crossing", ("p (test: A4C; train: A4C)",))
    assert guessed.problems() == []
    for stated in ("provided", "derived(DICOM PatientID)"):
        known = manifest(rows, patient_ids=stated, expected_counts={})
        assert [problem.rule for problem in known.problems()] == ["patient-in-two-splits"]
        assert find_notes(known) == []
