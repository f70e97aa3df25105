from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.errors import FormatError, HostileInputError
from embedstore.safe_yaml import MAX_YAML_BYTES, parse_yaml, read_yaml

_LEVELS = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))


@pytest.mark.parametrize(
    "document",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "a: !!python/name:os.system",
        "a: !!python/object/new:type {args: ['x', [], {}]}",
        "a: !!binary aGk=",
        "a: !!set {x}",
        "a: !!timestamp 2020-01-01",
        "a: !!omap [x: 1]",
        "a: !!int '3'",
        "!!merge x: {a: 1}",
        "a: !own 3",
        f"l0: &l0 [lol]\n{_LEVELS}",
        "a: &x [1]\nb: *x",
        "a: &x [*x]",
        "a: 1\na: 2",
        "a: 1\n'a': 2",
        "a: {b: 1, b: 2}",
        "? [a]\n: 1",
        "? {a: 1}\n: 1",
        "n: " + "9" * 5000,
        "n: 1.0e999",
        "[" * 100_000,
        "{a: " * 2_000,
        "a: [1",
        "a: 1\n---\nb: 2",
        "a: 1\n\x00",
    ],
)
def test_attacks_are_refused_in_one_sentence(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HostileInputError, match=r"^card\.yaml ") as caught:
        parse_yaml(document.encode(), source="card.yaml")
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(HostileInputError):
        parse_yaml(b"a: \xff\xfe\xfa", source="card.yaml")


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        ("007", "007"),
        ("012", "012"),
        ("1_000", "1_000"),
        ("NO", "NO"),
        ("no", "no"),
        ("on", "on"),
        ("1e3", "1e3"),
        ("0x1f", "0x1f"),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        (".inf", ".inf"),
        ("+1", "+1"),
        ("TRUE", "TRUE"),
        ("true", True),
        ("null", None),
        ("", None),
        ("-3", -3),
        ("0.5", 0.5),
        ("1.5e-3", 0.0015),
        ("'3'", "3"),
    ],
)
def test_ids_stay_text_and_only_json_values_are_resolved(plain: str, value: object) -> None:
    read = parse_yaml(f"id: {plain}".encode(), source="card.yaml")
    assert read == {"id": value}
    assert type(read["id"]) is type(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    try:
        parse_yaml(payload, source="card.yaml")
    except HostileInputError as error:
        assert str(error).startswith("card.yaml ")


def test_large_files_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    with pytest.raises(HostileInputError, match="too large"):
        parse_yaml(b"#" * (MAX_YAML_BYTES + 1), source="card.yaml")
    path = tmp_path / "card.yaml"
    path.write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    with pytest.raises(FormatError, match="larger"):
        read_yaml(path)
