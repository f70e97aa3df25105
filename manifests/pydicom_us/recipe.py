"""`pydicom-us`: the real ultrasound files that the packages pydicom and pydicom-data bring along."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from embedstore.errors import EnvironmentFailure, MissingExtraError, UnknownNameError
from embedstore.manifest import ManifestField, RecipeOutcome, RecipeRequest, read_dataset_facts
from embedstore.media.survey import survey_files
from manifests.draft import Draft

__all__ = ["RECIPE", "PydicomUsRecipe"]

REVISION = 1

# Folder of each package's files below its site-packages folder, and the extra that installs it.
_PYDICOM = ("pydicom", "pydicom/data/test_files", "media")
_PYDICOM_DATA = ("pydicom-data", "data_store/data", "dev")


@dataclass(frozen=True)
class _Known:
    """What is known about a file beyond its tags; the patient is the PatientID's, or the study's without one."""

    name: str
    package: tuple[str, str, str]
    patient: str
    anatomy: str
    view: str | None = None
    modality: str | None = None


_KNOWN = (
    _Known("examples_ybr_color", _PYDICOM, "sonosite-204", "heart", view="A4C", modality="2d"),
    _Known("color3d_jpeg_baseline", _PYDICOM_DATA, "sonosite-204", "heart", view="A4C", modality="2d"),
    _Known("JPGLosslessP14SV1_1s_1f_8b", _PYDICOM_DATA, "epiq-citizen", "heart", view="PLAX", modality="2d"),
    _Known("color-pl", _PYDICOM_DATA, "acme-tee", "heart", modality="colour"),
    _Known("color-px", _PYDICOM_DATA, "acme-tee", "heart", modality="colour"),
    _Known("US1_UNCR", _PYDICOM_DATA, "logiq-13us1", "lymph node"),
    _Known("US1_UNCI", _PYDICOM_DATA, "logiq-13us1", "lymph node"),
    _Known("US1_J2KR", _PYDICOM_DATA, "logiq-13us1", "lymph node"),
    _Known("US1_J2KI", _PYDICOM_DATA, "logiq-13us1", "lymph node"),
    _Known("examples_rgb_color", _PYDICOM, "logiq-13us1", "lymph node"),
    _Known("examples_jpeg2k", _PYDICOM, "logiq-13us1", "lymph node"),
    _Known("OBXXXX1A", _PYDICOM_DATA, "cx50-ob", "obstetric"),
    _Known("OBXXXX1A_2frame", _PYDICOM_DATA, "cx50-ob", "obstetric"),
    _Known("OBXXXX1A_rle", _PYDICOM_DATA, "cx50-ob", "obstetric"),
    _Known("OBXXXX1A_rle_2frame", _PYDICOM_DATA, "cx50-ob", "obstetric"),
    _Known("OBXXXX1A_expb", _PYDICOM_DATA, "cx50-ob", "obstetric"),
    _Known("OBXXXX1A_expb_2frame", _PYDICOM_DATA, "cx50-ob", "obstetric"),
    _Known("examples_palette", _PYDICOM, "cx50-ob", "obstetric"),
    _Known("gdcm-US-ALOKA-16", _PYDICOM_DATA, "aloka-98279", "abdomen"),
    _Known("gdcm-US-ALOKA-16_big", _PYDICOM_DATA, "aloka-98279", "abdomen"),
)


class PydicomUsRecipe:
    """Real ultrasound clips and stills that install from the package index; it finds their folder by itself."""

    name = "pydicom-us"
    summary = "the real ultrasound clips and stills that come with the pydicom packages"

    def make(self, request: RecipeRequest, *, progress: Callable[[int, int], None] | None = None) -> RecipeOutcome:
        """Make the manifest; the outcome's root is the folder that holds both packages.

        Raises
        ------
        UnknownNameError
            A root, a table, a splits file or a name is given: the recipe has its own.
        MissingExtraError
            A package is not installed.
        EnvironmentFailure
            The packages bring none of the files.
        """
        given = {
            "--root": request.root,
            "--table": request.table,
            "--splits": request.splits,
            "--name": request.name,
            "--column": request.columns,
            "--label-column": request.label_columns,
        }
        for option, value in given.items():
            if value:
                raise UnknownNameError(
                    f"the data set recipe {self.name!r} finds its files by itself: leave out {option}"
                )
        path_of = {known.name: _locate(known) for known in _KNOWN}
        present = [known for known in _KNOWN if path_of[known.name].is_file()]
        if not present:
            raise EnvironmentFailure("the installed pydicom and pydicom-data bring none of the ultrasound files")
        root = Path(os.path.commonpath(path_of.values()))

        draft = Draft(
            fields=[ManifestField(name="anatomy", role="subgroup", kind="category")],
            patient_ids="derived(PatientID, or the study where there is none)",
            split_rule="all test: real input for a pipeline, no basis for a metric",
        )
        draft.report(
            "file-absent",
            "files are not in the installed versions of the packages",
            [known.name for known in _KNOWN if known not in present],
        )
        surveyed = survey_files(
            [path_of[known.name] for known in present], n_workers=request.n_workers, progress=progress
        )
        for known, file in zip(present, surveyed, strict=True):
            row = {
                "clip_id": known.name,
                "patient_id": known.patient,
                "path": path_of[known.name].relative_to(root).as_posix(),
                "anatomy": known.anatomy,
                "split": "test",
                "modality": known.modality,
                "view": known.view,
                "view_source": "given" if known.view else None,
            }
            draft.add_row(row, file)
        draft.take_media_values(has_fps_column=False)
        draft.report(
            "unreadable", "files cannot be read", draft.ids_where(lambda _, file: bool(file and file.problem))
        )
        manifest = draft.to_manifest(
            read_dataset_facts(Path(__file__).with_name("dataset.yaml")), recipe=f"{self.name} {REVISION}"
        )
        return RecipeOutcome(manifest, tuple(draft.findings), root=root)


RECIPE = PydicomUsRecipe()


def _locate(known: _Known) -> Path:
    package, folder, extra = known.package
    try:
        site_packages = Path(str(distribution(package).locate_file("")))
    except PackageNotFoundError as error:
        raise MissingExtraError(
            f"the data set recipe 'pydicom-us' needs the package {package}, which is not installed; "
            f"install the extra with: pip install 'embedstore[{extra}]'"
        ) from error
    return site_packages.resolve() / folder / f"{known.name}.dcm"
