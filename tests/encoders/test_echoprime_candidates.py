"""EchoPrime's model_data: converted into a bank, once; whatever else a pickle wants, it does not get."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_sets import run_program, spec_of, write_set

import embedstore
from embedstore.errors import (
    ContentError,
    CorruptionError,
    EmbedstoreError,
    FormatError,
    HostileInputError,
    StorageError,
)
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store
from encoders.echoprime import VIEWS
from encoders.echoprime_candidates import read_folder
from encoders.limited_pickle import convert_labels, convert_sections

IDS = [f"study{n}" for n in range(7)]
SECTIONS = {"Left Ventricle": ["ejection_fraction", "lv_dilated"], "Aortic Valve": ["aortic_stenosis"]}
LABELS: dict[str, dict[str, float]] = {
    "ejection_fraction": {"study0": 60.0, "study3": 35.5, "elsewhere": 1.0},
    "lv_dilated": {"study1": 1, "study2": 0},
    "aortic_stenosis": {"study6": np.float64(1.0), "study5": np.nan},
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_data(tmp_path: Path, *, labels: Any = LABELS, sections: Any = SECTIONS, protocol: int = 4) -> Path:
    """The clone of the authors' repository with the release in it."""
    folder = tmp_path / "EchoPrime" / "model_data"
    candidates, assets = folder / "candidates_data", folder.parent / "assets"
    candidates.mkdir(parents=True)
    assets.mkdir()
    vectors = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 512)).astype(np.float32))
    torch.save(vectors[:4].clone(), candidates / "candidate_embeddings_p1.pt")
    torch.save(vectors[4:].clone(), candidates / "candidate_embeddings_p2.pt")
    (candidates / "candidate_studies.csv").write_text("\n".join([",Study", *(f"{n},{s}" for n, s in enumerate(IDS))]))
    rows = [f"{section},{','.join(str(0.125 * n) for n in range(11))}" for section in ("Left Ventricle", "IVC")]
    (assets / "MIL_weights.csv").write_text("\n".join([f"Section,{','.join(VIEWS)}", *rows]))
    (candidates / "candidate_labels.pkl").write_bytes(pickle.dumps(labels, protocol=protocol))
    (assets / "section_to_phenotypes.pkl").write_bytes(pickle.dumps(sections, protocol=protocol))
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = (folder / "candidates_data/candidate_labels.pkl", folder.parent / "assets/section_to_phenotypes.pkl")
    return {file.name: sha256(file) for file in files}


def test_the_folder_becomes_a_bank_that_needs_no_torch(tmp_path: Path, capsys) -> None:
    folder = model_data(tmp_path)
    (folder / "weights").mkdir()
    weights = folder / "weights" / "echo_prime_encoder.pt"
    torch.save({"any": torch.zeros(3)}, weights)
    store = Store.create(tmp_path / "store")
    trusted = [part for name, digest in digests(folder).items() for part in ("--trust-pickle", f"{name}={digest}")]
    add = ["prompts", "add", folder, "--format", "echoprime", "--encoder", "echoprime", "--store", tmp_path / "store"]
    assert run_program(*add, *trusted, "--json") == 0
    (made,) = json.loads(capsys.readouterr().out)["banks"]
    assert (made["kind"], made["rows"], made["status"]) == ("candidates", 7, "made")
    bank = embedstore.open(tmp_path / "store").bank(
        kind="candidates", encoder="echoprime", weights_sha256=sha256(weights)
    )
    parts = [torch.load(folder / "candidates_data" / f"candidate_embeddings_p{n}.pt") for n in (1, 2)]
    np.testing.assert_array_equal(bank.vectors[:], torch.cat(parts).numpy())
    assert bank.rows.column_names == ["candidate_id", *LABELS]
    assert bank.rows.column("candidate_id").to_pylist() == IDS
    assert bank.rows.column("ejection_fraction").to_pylist() == [60.0, None, None, 35.5, None, None, None]
    assert bank.rows.column("aortic_stenosis").to_pylist() == [None] * 6 + [1.0]
    assert bank.section_weights.column_names == ["section", *VIEWS]
    assert bank.section_weights.to_pylist()[1] == {
        "section": "IVC",
        **dict(zip(VIEWS, np.arange(11) / 8, strict=True)),
    }
    assert [tuple(row.values()) for row in bank.section_phenotypes.to_pylist()] == [
        (0, "Left Ventricle", "ejection_fraction"),
        (0, "Left Ventricle", "lv_dilated"),
        (1, "Aortic Valve", "aortic_stenosis"),
    ]
    assert set(bank.provenance["files"]) >= {"candidate_labels.pkl", "MIL_weights.csv"}
    assert str(tmp_path) not in (bank.folder / "provenance.json").read_text()
    assert verify_store(store, quick=False).ok
    # Neither digest is taken on faith.
    assert run_program(*add) == 4
    error = capsys.readouterr().err
    assert f"--trust-pickle section_to_phenotypes.pkl={digests(folder)['section_to_phenotypes.pkl']}" in error


def test_candidates_belong_to_the_weights_that_the_sets_have(tmp_path: Path) -> None:
    folder = model_data(tmp_path)
    store = Store.create(tmp_path / "store")
    trusted = [part for name, digest in digests(folder).items() for part in ("--trust-pickle", f"{name}={digest}")]
    add = ["prompts", "add", folder, "--format", "echoprime", "--encoder", "echoprime", "--store", tmp_path / "store"]
    assert run_program(*add, *trusted) == 2, "no weights are known"
    entry = write_set(store, {"a": 1}, spec=spec_of("echoprime", weights_sha256="a" * 64))
    store.commit(lambda head: head.with_set(entry), reason="test")
    assert run_program(*add, *trusted) == 0
    assert store.bank(kind="candidates", encoder="echoprime").weights_sha256 == "a" * 64


def as_frame(labels: dict[str, dict[str, float]]) -> pd.DataFrame:
    index = pd.Index([*IDS, "elsewhere"], dtype=object)
    table = pd.DataFrame(index=index, columns=pd.Index(list(labels), dtype=object), dtype=float)
    for name, found in labels.items():
        table.loc[list(found), name] = list(found.values())
    return table


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    "form",
    [
        lambda labels: labels,
        lambda labels: collections.OrderedDict(labels),
        lambda labels: {
            name: pd.Series(found, index=pd.Index(list(found), dtype=object)) for name, found in labels.items()
        },
        as_frame,
    ],
    ids=["mappings", "ordered", "columns", "table"],
)
def test_every_form_of_labels_gives_the_same_numbers(tmp_path: Path, form: Any, protocol: int) -> None:
    path = tmp_path / "candidate_labels.pkl"
    path.write_bytes(pickle.dumps(form(LABELS), protocol=protocol))
    found = convert_labels(path, IDS, sha256=sha256(path))
    assert list(found) == list(LABELS)
    for name, labels in LABELS.items():
        np.testing.assert_array_equal(found[name], [labels.get(study, np.nan) for study in IDS])


def test_whole_numbers_are_the_ids_that_a_table_spells(tmp_path: Path) -> None:
    path = tmp_path / "candidate_labels.pkl"
    path.write_bytes(pickle.dumps({"x": {12: 1, np.int64(13): True, 14.0: 0.5}, "y": pd.Series([3.0], index=[12])}))
    found = convert_labels(path, ["12", "13", "14", "15"], sha256=sha256(path))
    np.testing.assert_array_equal(found["x"], [1, 1, 0.5, np.nan])
    np.testing.assert_array_equal(found["y"], [3, np.nan, np.nan, np.nan])


class Runs:
    """Calls a function when it is unpickled the usual way."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def payloads(canary: Path) -> dict[str, bytes]:
    """Pickles that would make a file when they are loaded, each by another way; and some that would exhaust."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    made = {
        "os.system": Runs(os.system, touch),
        "eval": Runs(eval, code),
        "subprocess": Runs(subprocess.Popen, ["touch", str(canary)]),
        "getattr": Runs(getattr, "", "upper"),
        "inside a label": {"x": {"study0": Runs(os.system, touch)}},
        "numpy file": Runs(np.save, str(canary), [1]),
        "numpy load": Runs(np.load, str(canary)),
        "pandas pickle": Runs(pd.read_pickle, str(canary)),
        "pandas eval": Runs(pd.eval, "1"),
        "a class of torch": torch.zeros(2),
        "a path": Path("x"),
    }
    found = {name: pickle.dumps(value) for name, value in made.items()}
    # By hand: dotted names, old opcodes, extension codes, persistent ids.
    found["dotted"] = b"\x80\x04\x8c\x05numpy\x8c\x0eos.path.exists\x93\x8c\x01x\x85R."
    found["old global"] = f"cos\nsystem\n(S'{touch}'\ntR.".encode()
    found["old instance"] = f"(S'{touch}'\nios\nsystem\n.".encode()
    found["old object"] = f"(cos\nsystem\nS'{touch}'\no.".encode()
    found["persistent"] = b"Pabc\n."
    found["extension"] = b"\x80\x02\x82\x01."
    found["scalar of objects"] = pickle.dumps(Runs(np.float64(1).__reduce__()[0], np.dtype("O"), b"x"))
    found["another encoding"] = b"c_codecs\nencode\n(Vx\nVrot13\ntR."
    return found


NAMES = sorted(payloads(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_hostile_pickle_runs(tmp_path: Path, name: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "candidate_labels.pkl"
    path.write_bytes(payloads(canary)[name])
    with pytest.raises((HostileInputError, CorruptionError)) as caught:
        convert_labels(path, IDS, sha256=sha256(path))
    assert not canary.exists() and str(path) in str(caught.value)


def test_the_canary_would_die_of_a_plain_unpickler(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(payloads(canary)["os.system"])  # noqa: S301
    assert canary.exists()


def test_a_pickle_that_wants_too_much_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "candidate_labels.pkl"
    path.write_bytes(pickle.dumps(Runs(bytearray, 1 << 40)))
    with pytest.raises(HostileInputError, match="more memory"):
        convert_labels(path, IDS, sha256=sha256(path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2], "holds a list"),
        ({"x": [1]}, "a part of it is a list"),
        ({"x": {"study0": "much"}}, "a label is a str"),
        ({"x": {("a",): 1}}, "an id is a tuple"),
    ],
)
def test_labels_of_another_form(tmp_path: Path, labels: Any, message: str) -> None:
    path = tmp_path / "candidate_labels.pkl"
    path.write_bytes(pickle.dumps(labels))
    with pytest.raises(FormatError, match=message):
        convert_labels(path, IDS, sha256=sha256(path))


def test_sections_of_several_forms(tmp_path: Path) -> None:
    path = tmp_path / "section_to_phenotypes.pkl"
    path.write_bytes(pickle.dumps({"b": ("y", "x"), "a": np.array(["z"]), "c": {"q", "p"}}))
    assert convert_sections(path, sha256=sha256(path)) == {"b": ["y", "x"], "a": ["z"], "c": ["p", "q"]}
    for wrong in ({1: ["a"]}, {"a": "text"}, {"a": [1]}, ["a"]):
        path.write_bytes(pickle.dumps(wrong))
        with pytest.raises(FormatError):
            convert_sections(path, sha256=sha256(path))


def test_another_file_than_the_trusted_one_is_not_opened(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "candidate_labels.pkl"
    path.write_bytes(payloads(canary)["os.system"])
    with pytest.raises(CorruptionError, match="trusted by --trust-pickle"):
        convert_labels(path, IDS, sha256="0" * 64)
    with pytest.raises(HostileInputError, match=f"--trust-pickle candidate_labels.pkl={sha256(path)}"):
        convert_labels(path, IDS, sha256=None)
    assert not canary.exists()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises((CorruptionError, HostileInputError)):
        convert_labels(path, IDS, sha256=sha256(path))


def spoil(folder: Path, kind: str) -> type[EmbedstoreError]:
    """Damage one file of the folder; return the error that says so."""
    candidates, assets = folder / "candidates_data", folder.parent / "assets"
    if kind == "absent":
        (assets / "MIL_weights.csv").unlink()
        return StorageError
    if kind == "count":
        (candidates / "candidate_studies.csv").write_text("Study\na\nb\n")
        return ContentError
    if kind == "views":
        text = (assets / "MIL_weights.csv").read_text()
        (assets / "MIL_weights.csv").write_text(text.replace("A2C,A3C", "A3C,A2C"))
        return FormatError
    if kind == "weight":
        (assets / "MIL_weights.csv").write_text((assets / "MIL_weights.csv").read_text().replace("1.25", "nan"))
        return FormatError
    if kind == "tensor":
        torch.save({"a": torch.zeros(4, 512)}, candidates / "candidate_embeddings_p1.pt")
        return FormatError
    if kind == "width":
        torch.save(torch.zeros(4, 511), candidates / "candidate_embeddings_p1.pt")
        return FormatError
    if kind == "code":
        torch.save(Runs(os.system, "true"), candidates / "candidate_embeddings_p1.pt")
        return HostileInputError
    if kind == "phenotype":
        (assets / "section_to_phenotypes.pkl").write_bytes(pickle.dumps({"a": ["never"]}))
        return ContentError
    ids = {"x": {"nobody": 1.0}}
    (candidates / "candidate_labels.pkl").write_bytes(pickle.dumps(ids))
    (assets / "section_to_phenotypes.pkl").write_bytes(pickle.dumps({"a": ["x"]}))
    return ContentError


KINDS = ["absent", "count", "views", "weight", "tensor", "width", "code", "phenotype", "strangers"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_do_not_belong_together(tmp_path: Path, kind: str) -> None:
    folder = model_data(tmp_path)
    expected = spoil(folder, kind)
    with pytest.raises(expected):
        read_folder(folder, digests(folder))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is no folder"):
        read_folder(tmp_path / "nothing", {})
