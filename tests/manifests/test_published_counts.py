"""Tables of the published sizes, almost without files: every count of the facts is compared, deviations are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]
SPLITS = ("train", "val", "test")


def write_dynamic(root: Path) -> None:
    numbers = {"TRAIN": 7465, "VAL": 1288, "TEST": 1277}
    lines = [f"0X{split}{n},55,{split}\n" for split, n_clips in numbers.items() for n in range(n_clips)]
    (root / "FileList.csv").write_text("FileName,EF,Split\n" + "".join(lines))


def write_pediatric(root: Path) -> None:
    """7,810 videos: 271 and 387 of them in fold 0."""
    for view, n_clips, n_test in (("A4C", 3284, 271), ("PSAX", 4526, 387)):
        (root / view).mkdir()
        lines = [f"CR{view}{n}-CR1-{n}.avi,60,{0 if n < n_test else 1 + n % 9}\n" for n in range(n_clips)]
        (root / view / "FileList.csv").write_text("FileName,EF,Split\n" + "".join(lines))


def write_lvh(root: Path) -> None:
    """12,000 videos; of 340 test videos one has no IVSd."""
    lines = []
    for n in range(12_000):
        split = "test" if n < 340 else "train"
        lines += [f"0X{n},{calc},1.1,1,{split}\n" for calc in ("LVIDd", "IVSd", "LVPWd") if (n, calc) != (0, "IVSd")]
    (root / "MeasurementsList.csv").write_text("HashedFileName,Calc,CalcValue,Frame,split\n" + "".join(lines))


def write_camus(root: Path) -> None:
    lists: dict[str, list[str]] = {"training": [], "validation": [], "testing": []}
    for n in range(500):
        patient = f"patient{n + 1:04d}"
        lists["testing" if n < 50 else "validation" if n < 100 else "training"].append(patient)
        (root / "database_nifti" / patient).mkdir(parents=True)
        for view in ("2CH", "4CH"):
            (root / "database_nifti" / patient / f"Info_{view}.cfg").write_text("ED: 1\nES: 9\nEF: 60\n")
    (root / "database_split").mkdir()
    for subgroup, patients in lists.items():
        (root / "database_split" / f"subgroup_{subgroup}.txt").write_text("\n".join(patients))


def write_hmc_qu(root: Path) -> Path:
    """162 patients; one of train and one of val have no A2C."""
    positives = {"train": (60, 63), "val": (12, 12), "test": (12, 14)}
    tables: dict[str, list[str]] = {"A2C": [], "A4C": []}
    splits, numbers = ["unique_id,split\n"], count(1)
    for (split, n_positive), n_patients in zip(positives.items(), (114, 23, 25), strict=True):
        for at in range(n_patients):
            name = f"ES000{next(numbers)}"
            for view, limit in zip(tables, n_positive, strict=True):
                if view == "A2C" and at == n_patients - 1 and split != "test":
                    continue
                tables[view].append(f"{name}_1,{'MI' if at < limit else 'non-MI'}\n")
                splits.append(f"{name}_{view},{split}\n")
    for view, lines in tables.items():
        (root / f"{view}.csv").write_text("ECHO,SEG1\n" + "".join(lines))
    (root.parent / "splits.csv").write_text("".join(splits))
    return root.parent / "splits.csv"


def segrwma_clips() -> Iterator[tuple[str, str, int]]:
    """(stem, split, abnormal): 2-D clips as counted by view, then clips with contrast of patients who are there."""
    by_view = {
        "train": ((62, 5), (72, 6), (70, 6)),
        "val": ((44, 3), (47, 3), (51, 4)),
        "test": ((44, 4), (48, 4), (52, 4)),
    }
    first, n_patients = 1, {"train": 85, "val": 56, "test": 57}
    n_abnormal = {"train": 6, "val": 4, "test": 4}
    contrast = {"LVO": 565, "MCE": 566}
    for split, counts in by_view.items():
        patients = [f"patient{first + at}" for at in range(n_patients[split])]
        abnormal, normal = patients[: n_abnormal[split]], patients[n_abnormal[split] :]
        for view, (n_normal, n_positive) in zip(("A2C", "A3C", "A4C"), counts, strict=True):
            yield from ((f"{name}-2D-{view}", split, 1) for name in abnormal[:n_positive])
            yield from ((f"{name}-2D-{view}", split, 0) for name in normal[:n_normal])
        for mode in contrast:
            for view in ("A2C", "A3C", "A4C"):
                for name in patients:
                    if contrast[mode]:
                        contrast[mode] -= 1
                        yield f"{name}-{mode}-{view}", split, int(name in abnormal)
        first += n_patients[split]


def write_segrwma(root: Path) -> Path:
    lines = ["path,split,abnormal\n"]
    for stem, split, abnormal in segrwma_clips():
        lines.append(f"wallMotion/{stem}_image.nii.gz,{split},{abnormal}\n")
    (root / "patient1-2D-A2C_image.nii.gz").touch()
    (root.parent / "splits.csv").write_text("".join(lines))
    return root.parent / "splits.csv"


def write_cardiacnet(root: Path, disease: str) -> Path:
    sizes = {
        "ASD": {"train": (80, 66, 12), "val": (8, 11, 4), "test": (22, 20, 5)},
        "PAH": {"train": (84, 221, 14), "val": (17, 31, 3), "test": (27, 75, 4)},
    }[disease]
    lines, numbers = ["unique_id,split\n"], count(1)
    for split, n_clips in sizes.items():
        groups = (f"Non-{disease}", disease, f"Non-{disease}")
        for folder, n_of_group, is_control in zip(groups, n_clips, (False, False, True), strict=True):
            for _ in range(n_of_group):
                number = next(numbers)
                stem = f"PHI{number}" if is_control else f"patient-{number}-4"
                file = root / folder / f"{number:03d}_image.nii" / f"{stem}{'' if is_control else '_image'}.nii"
                file.parent.mkdir(parents=True)
                file.touch()
                lines.append(f"{number:03d}_image_{stem},{split}\n")
    (root.parent / "splits.csv").write_text("".join(lines))
    return root.parent / "splits.csv"


WRITERS: dict[str, Callable[[Path], Path | None]] = {
    "echonet-dynamic": write_dynamic,
    "echonet-pediatric": write_pediatric,
    "echonet-lvh": write_lvh,
    "camus": write_camus,
    "hmc-qu": write_hmc_qu,
    "segrwma": write_segrwma,
    "cardiacnet-asd": lambda root: write_cardiacnet(root, "ASD"),
    "cardiacnet-pah": lambda root: write_cardiacnet(root, "PAH"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_complete_data_set_has_the_published_counts(make: Make, tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    made = make(name, root, splits=WRITERS[name](root))
    assert made.manifest.problems() == []
    assert "counts-differ" not in made.found, made.found["counts-differ"]
    assert "incomplete" not in made.found
    assert len(made.manifest) == made.manifest.dataset.expected_counts["clips"]


def test_a_clip_too_few_is_named_and_fatal_to_nothing(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    splits = write_cardiacnet(root, "ASD")
    min((root / "ASD").rglob("*.nii/*.nii")).unlink()
    made = make("cardiacnet-asd", root, splits=splits)
    assert made.found["counts-differ"] == [
        "clips: 227, published 228",
        "clips split=train: 157, published 158",
        "clips split=train asd=true: 65, published 66",
    ]
    assert len(made.found["splits-unknown"]) == 1
    assert made.manifest.problems() == []
