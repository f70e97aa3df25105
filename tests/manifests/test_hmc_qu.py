from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.model_selection import train_test_split

from embedstore.errors import UnknownNameError

Writer = Callable[..., Path]
Make = Callable[..., Any]

N_PATIENTS = 20
HEADING = "ECHO,SEG1,SEG2,SEG3\n"


def echo(patient: int, view: str) -> str:
    """File stems as distributed: CH2 or 2CH, and a space before the A4C view."""
    return f"ES000{patient}_CH2_1" if view == "A2C" else f"ES000{patient} N_4CH_2"


def is_infarcted(patient: int, view: str) -> bool:
    return patient % 2 == 0 or (patient == 7 and view == "A4C")


@pytest.fixture
def root(tmp_path: Path, write_avi: Writer) -> Path:
    folder = tmp_path / "HMC_QU"
    for view in ("A2C", "A4C"):
        lines = HEADING
        for patient in range(1, N_PATIENTS + 1):
            write_avi(folder / "videos" / view / f"{echo(patient, view)}.avi", seed=2 * patient + (view == "A4C"))
            lines += f"{echo(patient, view)},non-MI,{'MI' if is_infarcted(patient, view) else 'non-MI'},non-MI\n"
        (folder / f"{view}.csv").write_text(lines)
    return folder


def published_split(n_patients: int = N_PATIENTS) -> dict[str, str]:
    """The published definition in straight scikit-learn: patients in the order of a group-by, stratified twice."""
    patients = sorted(f"ES000{number}" for number in range(1, n_patients + 1))
    labels = {f"ES000{n}": max(is_infarcted(n, view) for view in ("A2C", "A4C")) for n in range(1, n_patients + 1)}
    rest, test = train_test_split(
        patients, test_size=0.15, stratify=[labels[name] for name in patients], random_state=42
    )
    train, val = train_test_split(
        rest, test_size=0.15 / 0.90, stratify=[labels[name] for name in rest], random_state=42
    )
    return {
        **dict.fromkeys(train, "train"),
        **dict.fromkeys(val, "val"),
        **dict.fromkeys(test, "test"),
    }


def test_two_tables_with_a_label_by_view(make: Make, root: Path) -> None:
    made = make("hmc-qu", root)
    assert made.manifest.problems() == []
    assert len(made.rows) == 2 * N_PATIENTS
    row = made.rows["ES00010_A4C"]
    assert row["path"] == "videos/A4C/ES00010 N_4CH_2.avi"
    assert (row["patient_id"], row["view"], row["stemi"], row["n_mi_segments"]) == ("ES00010", "A4C", True, 1)
    assert row["unique_id"] == "ES00010_A4C"
    assert made.rows["ES0007_A2C"]["stemi"] is False
    assert made.rows["ES0007_A4C"]["stemi"] is True
    assert made.rows["ES0001_A4C"]["source_row"] == N_PATIENTS
    assert made.manifest.patient_ids == "derived(file name, ES and digits)"
    assert "file-without-row" not in made.found


def test_the_split_is_the_published_rule(make: Make, root: Path) -> None:
    made = make("hmc-qu", root)
    expected = published_split()
    assert {row["patient_id"]: row["split"] for row in made.rows.values()} == expected
    assert set(expected.values()) == {"train", "val", "test"}
    assert made.manifest.split_rule.startswith("published rule, recomputed: stratified by patient, seed 42")
    assert "patient-crossing" not in made.found
    assert made.message("split-recomputed").startswith(
        "the split was drawn from 40 clips, the published one from 322"
    )


def test_a_missing_video_does_not_change_the_split(make: Make, root: Path) -> None:
    (root / "videos" / "A2C" / f"{echo(3, 'A2C')}.avi").unlink()
    made = make("hmc-qu", root)
    assert made.found["row-without-file"] == ["ES0003_A2C"]
    assert {row["patient_id"]: row["split"] for row in made.rows.values()} == published_split()


def test_too_few_patients_draw_no_split(make: Make, root: Path) -> None:
    for view in ("A2C", "A4C"):
        table = root / f"{view}.csv"
        table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    made = make("hmc-qu", root)
    assert "split-impossible" in made.found
    assert set(made.column("split").values()) == {None}
    assert len(made.found["file-without-row"]) == 2 * (N_PATIENTS - 2)


def test_the_benchmark_s_split_and_what_it_says_besides(make: Make, root: Path, write_csv: Writer) -> None:
    lines = "path,view,patient_id,STEMI,split,unique_id\n"
    for view in ("A4C", "A2C"):
        for patient in range(1, N_PATIENTS):
            split = ("train", "val", "test")[patient % 3]
            label = int(is_infarcted(patient, view)) if patient != 5 else 1
            name = f"ES000{patient}"
            lines += f"data/raw/HMC_QU/videos/{view}/{echo(patient, view)}.avi,{view},{name},{label},{split},"
            lines += f"{name}_{view}\n"
    made = make("hmc-qu", root, splits=write_csv(lines, name="hmcqu_split.csv"))
    assert made.rows["ES0004_A2C"]["split"] == "val"
    assert made.found["splits-missing"] == ["ES00020_A2C", "ES00020_A4C"]
    assert made.found["label-differs"] == ["ES0005_A4C (False, there 1)", "ES0005_A2C (False, there 1)"]
    assert made.rows["ES0005_A2C"]["stemi"] is False
    assert "patient-differs" not in made.found
    assert (made.rows["ES0001_A4C"]["source_row"], made.rows["ES0001_A2C"]["source_row"]) == (0, N_PATIENTS - 1)
    wrong = write_csv(lines.replace(",ES0004,0", ",ES0002,0").replace(",ES0004,1", ",ES0002,1"), name="wrong.csv")
    assert make("hmc-qu", root, splits=wrong).found["patient-differs"] == ["ES0002 of the table (ES0002, ES0004)"]


def test_rows_that_are_odd(make: Make, root: Path, write_avi: Writer) -> None:
    table = root / "A2C.csv"
    more = "ES0001_CH2_1,non-MI,MI,non-MI\nES0002_CH2_9.avi,non-MI,non-MI,non-MI\nnobody_1,MI ,?,\n"
    table.write_text(table.read_text().replace("ES0009_CH2_1,non-MI,non-MI,non-MI", "ES0009_CH2_1,,,") + more)
    write_avi(root / "videos" / "A2C" / "ES0002_CH2_9.avi", seed=300)
    (root / "LV Ground-truth Segmentation Masks").mkdir()
    (root / "LV Ground-truth Segmentation Masks" / "Mask_ES0001.mat").write_bytes(b"x")
    made = make("hmc-qu", root)
    assert made.found["row-repeated"] == ["ES0001_A2C (A2C.csv row 21, with other values)"]
    assert made.found["several-clips"] == ["ES0002 A2C"]
    assert made.rows["ES0002_A2C_ES0002_CH2_9"]["path"] == "videos/A2C/ES0002_CH2_9.avi"
    assert made.rows["ES0002_A2C_ES0002_CH2_1"]["stemi"] is True
    assert made.found["unlabelled"] == ["ES0009_A2C"]
    assert made.found["patient-unnamed"] == ["nobody_1"]
    assert made.rows["nobody_1_A2C"]["stemi"] is True
    assert made.found["segment-unknown"] == ["nobody_1 (SEG2 ?)"]
    assert made.found["left-out"] == ["LV Ground-truth Segmentation Masks (1)"]
    assert made.manifest.problems() == []


def test_the_tables_must_be_csv(make: Make, root: Path) -> None:
    (root / "A4C.csv").unlink()
    assert make("hmc-qu", root).found["view-absent"] == ["A4C.csv"]
    (root / "A2C.csv").rename(root / "A2C.xlsx")
    with pytest.raises(UnknownNameError, match=r"neither A2C\.csv nor A4C\.csv; save A2C\.xlsx and A4C\.xlsx there"):
        make("hmc-qu", root)
    (root / "A2C.csv").write_text("ECHO,MI\nES0001_CH2_1,1\n")
    with pytest.raises(UnknownNameError, match="no columns SEG1"):
        make("hmc-qu", root)
