"""Layouts of published data sets: which files tell a folder as one of them, and as which when a root is wrong.

Each recipe of a published data set has its entry here; a recipe asks `require_layout` before it looks further.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedstore.errors import UnknownNameError

__all__ = ["LAYOUTS", "Layout", "look_for", "require_layout"]

_CAMUS = re.compile(r"Info_[24]CH\.cfg|patient\d+_[24]CH_half_sequence\.nii(?:\.gz)?", re.IGNORECASE)
_SEGRWMA = re.compile(r"patient\d+-(?:2D|LVO|MCE)-A[234]C.*\.nii(?:\.gz)?", re.IGNORECASE)
_HMC_QU = re.compile(r"ES\d+.*(?:CH[24]|[24]CH).*\.avi", re.IGNORECASE)
_VIEW_FOLDERS = ("a4c", "psax")


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Attributes
    ----------
    name : str
        Name of the recipe.
    wanted : str
        What a root must hold, for people.
    fits : callable
        Told a file's path below the root, with folders, and answers whether only this data set has such a file.
    """

    name: str
    wanted: str
    fits: Callable[[PurePosixPath], bool]


def _is_named(path: PurePosixPath, *names: str) -> bool:
    return path.name.lower() in names


def _is_file_list(path: PurePosixPath, *, of_views: bool) -> bool:
    return _is_named(path, "filelist.csv") and (path.parent.name.lower() in _VIEW_FOLDERS) == of_views


def _is_cardiacnet(path: PurePosixPath, disease: str) -> bool:
    parts = [part.lower() for part in path.parts[:-1]]
    return _is_nifti(path) and (disease in parts or f"non-{disease}" in parts)


def _is_nifti(path: PurePosixPath) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _is_tmed2(path: PurePosixPath) -> bool:
    name = path.name.lower()
    return (
        name == "labels_per_image.csv"
        or (name.startswith("tmed2_") and name.endswith("labeledpart.csv"))
        or "view_and_diagnosis_labeled_set" in path.parts
    )


def _is_hmc_qu(path: PurePosixPath) -> bool:
    return _HMC_QU.fullmatch(path.name) is not None or _is_named(
        path, "a2c.csv", "a4c.csv", "a2c.xlsx", "a4c.xlsx", "hmc_qu.xlsx"
    )


LAYOUTS = (
    Layout("echonet-lvh", "MeasurementsList.csv", lambda path: _is_named(path, "measurementslist.csv")),
    Layout(
        "echonet-pediatric",
        "A4C/FileList.csv and PSAX/FileList.csv",
        lambda path: _is_file_list(path, of_views=True),
    ),
    Layout("echonet-dynamic", "FileList.csv beside Videos/", lambda path: _is_file_list(path, of_views=False)),
    Layout(
        "camus",
        "database_nifti/patientNNNN/ with half sequences and Info_2CH.cfg",
        lambda path: _CAMUS.fullmatch(path.name) is not None,
    ),
    Layout("tmed2", "labels_per_image.csv and view_and_diagnosis_labeled_set/", _is_tmed2),
    Layout("segrwma", "patientN-2D-A2C_image.nii.gz and its like", lambda p: _SEGRWMA.fullmatch(p.name) is not None),
    Layout("hmc-qu", "A2C.csv, A4C.csv and the videos", _is_hmc_qu),
    Layout(
        "cardiacnet-asd",
        "ASD/ and Non-ASD/ with folders NNN_image.nii",
        lambda path: _is_cardiacnet(path, "asd"),
    ),
    Layout(
        "cardiacnet-pah",
        "PAH/ and Non-PAH/ with folders NNN_image.nii",
        lambda path: _is_cardiacnet(path, "pah"),
    ),
)


def look_for(root: Path, paths: Sequence[Path]) -> list[str]:
    """Return the data sets whose files lie below a root.

    Parameters
    ----------
    root : Path
        Its own name counts as a folder: whoever gives ``.../A4C`` has its `FileList.csv` at the top.
    paths : sequence of Path
        Files below ``root``.

    Examples
    --------
    >>> look_for(Path("x"), [Path("FileList.csv"), Path("Videos/a.avi")])
    ['echonet-dynamic']
    >>> look_for(Path("A4C"), [Path("FileList.csv")])
    ['echonet-pediatric']
    """
    named = [PurePosixPath(root.name, path.as_posix()) for path in paths]
    return [layout.name for layout in LAYOUTS if any(layout.fits(path) for path in named)]


def require_layout(name: str, root: Path, paths: Sequence[Path]) -> None:
    """Check that a root looks like the data set of that name.

    Raises
    ------
    UnknownNameError
        It does not; the message says what it lacks and which data set it looks like.
    """
    found = look_for(root, paths)
    if name in found:
        return
    wanted = next(layout.wanted for layout in LAYOUTS if layout.name == name)
    if found:
        likely = " or ".join(found)
        hint = f"it looks like {likely}: make that manifest with embedstore manifest make {found[0]}"
    elif paths:
        hint = f"none of its {len(paths):,} files is known (the first is {paths[0].as_posix()})"
    else:
        hint = "the folder is empty"
    raise UnknownNameError(f"--root: {root} is no folder of {name!r}, which holds {wanted}; {hint}")
