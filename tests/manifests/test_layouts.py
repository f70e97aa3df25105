"""Wrong roots, and the options that all recipes of published data sets share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import StorageError, UnknownNameError
from manifests.layouts import LAYOUTS, look_for

Make = Callable[..., Any]

# One telling file of each data set.
TELLING = {
    "echonet-dynamic": ["FileList.csv", "Videos/0X1.avi"],
    "echonet-pediatric": ["A4C/FileList.csv", "A4C/Videos/CR1-CR2-1.avi"],
    "echonet-lvh": ["MeasurementsList.csv", "Batch1/0X1.avi"],
    "camus": ["database_nifti/patient0001/Info_2CH.cfg"],
    "tmed2": ["labels_per_image.csv"],
    "hmc-qu": ["A2C.csv"],
    "segrwma": ["wallMotion/patient1-2D-A2C_image.nii.gz"],
    "cardiacnet-asd": ["ASD/001_image.nii/patient-1-4_image.nii"],
    "cardiacnet-pah": ["Non-PAH/001_image.nii/patient-1-4_image.nii"],
}
VARIANTS = [
    ("echonet-dynamic", "filelist.CSV"),
    ("echonet-pediatric", "pediatric_echo_avi/pediatric_echo_avi/PSAX/FileList.csv"),
    ("camus", "patient0500_4CH_half_sequence.nii.gz"),
    ("tmed2", "approved_users_only/DEV479/TMED2_fold0_labeledpart.csv"),
    ("tmed2", "view_and_diagnosis_labeled_set/labeled/1s1_0.png"),
    ("hmc-qu", "HMC-QU Echos/HMC-QU Echos/ES00091 N_4CH_2.avi"),
    ("hmc-qu", "HMC_QU.xlsx"),
    ("segrwma", "patient12-LVO-A4C_image.nii"),
    ("cardiacnet-pah", "CardiacNet/CardiacNet-PAH/PAH/007_image.nii"),
]


def fill(root: Path, paths: list[str]) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def test_every_published_data_set_has_a_layout() -> None:
    assert {layout.name for layout in LAYOUTS} == set(TELLING)


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, paths in TELLING.items() for path in paths[:1]] + VARIANTS
)
def test_a_telling_file_tells(name: str, path: str) -> None:
    assert look_for(Path("root"), [Path(path)]) == [name]


@pytest.mark.parametrize("name", TELLING)
def test_a_root_of_another_data_set_says_which_it_looks_like(make: Make, tmp_path: Path, name: str) -> None:
    for other, paths in TELLING.items():
        if other == name:
            continue
        root = fill(tmp_path / other, paths)
        with pytest.raises(UnknownNameError) as caught:
            make(name, root)
        message = str(caught.value)
        assert message.startswith(f"--root: {root} is no folder of {name!r}, which holds ")
        assert f"it looks like {other}: make that manifest with embedstore manifest make {other}" in message
        assert "\n" not in message
        assert caught.value.exit_code == 2


def test_a_root_of_several_names_them(make: Make, tmp_path: Path) -> None:
    root = fill(tmp_path / "raw", [f"{name}/{paths[0]}" for name, paths in TELLING.items() if name != "tmed2"])
    with pytest.raises(
        UnknownNameError, match="it looks like echonet-lvh or echonet-pediatric or echonet-dynamic or"
    ):
        make("tmed2", root)


@pytest.mark.parametrize(
    ("paths", "message"),
    [([], "the folder is empty"), (["Videos/0X1.avi", "x.txt"], r"none of its 2 files is known \(the first is Vid")],
)
def test_a_root_of_nothing_known(make: Make, tmp_path: Path, paths: list[str], message: str) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(UnknownNameError, match=message):
        make("echonet-dynamic", fill(tmp_path / "root", paths))


def test_a_root_of_links_only(make: Make, tmp_path: Path) -> None:
    fill(tmp_path / "real", TELLING["camus"])
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "camus").symlink_to(tmp_path / "real")
    with pytest.raises(UnknownNameError, match=r"holds only links that lead elsewhere \(camus\)"):
        make("camus", tmp_path / "links")


def test_roots_that_are_not_there(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="there is no folder"):
        make("camus", tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnknownNameError, match="is a file, not a folder"):
        make("camus", tmp_path / "file")


@pytest.mark.parametrize("name", ["echonet-dynamic", "echonet-lvh", "echonet-pediatric", "tmed2", "hmc-qu"])
def test_tables_that_are_empty_are_one_sentence(make: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="has no heading line"):
        make(name, fill(tmp_path / "root", TELLING[name]))


@pytest.mark.parametrize("name", TELLING)
def test_labels_and_other_columns_are_the_data_set_s_own(make: Make, tmp_path: Path, name: str) -> None:
    root = fill(tmp_path / "root", TELLING[name])
    with pytest.raises(UnknownNameError, match="knows its own columns: leave out --label-column"):
        make(name, root, label_columns=("EF",))
    with pytest.raises(UnknownNameError, match="leave out --column clip_id"):
        make(name, root, columns={"clip_id": "x"})
    with pytest.raises(UnknownNameError, match="needs --root DIR"):
        make(name, None)


def test_a_patient_column_without_a_table(make: Make, tmp_path: Path) -> None:
    root = fill(tmp_path / "root", TELLING["segrwma"])
    with pytest.raises(UnknownNameError, match="give --table FILE too"):
        make("segrwma", root, columns={"patient_id": "MRN"})
