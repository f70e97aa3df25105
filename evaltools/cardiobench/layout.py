"""Where CardioBench's scripts look for predictions, under which columns and ids.

From the facts of BioMedIA-MBZUAI/CardioBench, evaluation/config.py and evaluation/example_predictions, at commit
e0bc185: folders, columns and ids are theirs, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedstore.errors import UnknownNameError

__all__ = ["PredictionFile", "file_of", "files_of"]


@dataclass(frozen=True, kw_only=True)
class PredictionFile:
    """One kind of prediction file.

    Attributes
    ----------
    task, dataset : str
    row : str
        Row of the task whose predictions it holds.
    folder : str
        Below the folder of predictions.
    id_header : str
        Its column of ids.
    id_column : str
        Column of the manifest that holds them.
    value : str
        Its column of predictions; ``view_pred`` for views.
    probability : str or None
        Its column of the positive class's share.
    header : tuple of str
        All columns in order; ``""`` is a row number.
    truth : str
        The table of ground truth that it is joined with, below its ``data/splits``.
    suffix : str
        Behind the model's name.
    where_view : str or None
        The file holds this view only.
    """

    task: str
    dataset: str
    row: str = "all"
    folder: str
    id_header: str
    id_column: str
    value: str
    header: tuple[str, ...]
    truth: str
    probability: str | None = None
    suffix: str = ""
    where_view: str | None = None


_FIVE = tuple(f"prob_{view}" for view in ("A2C", "A3C", "A4C", "PSAX", "PLAX"))


_TRUTH: Mapping[str, str] = {
    "camus": "camus_split.csv",
    "cardiacnet-asd": "cardiacnet/cardiacnet_asd_split.csv",
    "cardiacnet-pah": "cardiacnet/cardiacnet_pah_split.csv",
    "echonet-dynamic": "EchoNet-Dynamic/FileList.csv",
    "echonet-lvh": "echonet_lvh/LVPWd_split.csv",  # of views; a measurement has its own
    "echonet-pediatric": "echonet_pediatric_filelist.csv",
    "hmc-qu": "hmcqu_split.csv",
    "segrwma": "segrwma_split.csv",
    "tmed2": "tmed2/per_image.csv",
}


def _lvef(dataset: str, folder: str, id_header: str, id_column: str, *more: str, row: str = "all") -> PredictionFile:
    return PredictionFile(
        task="lvef",
        dataset=dataset,
        row=row,
        folder=f"{folder}/EF",
        id_header=id_header,
        id_column=id_column,
        value="EF_pred",
        header=(id_header, "EF_pred", *more),
        truth=_TRUTH[dataset],
    )


def _lvh(task: str, name: str) -> PredictionFile:
    value = f"{name}_pred"
    return PredictionFile(
        task=task,
        dataset="echonet-lvh",
        folder=f"EchoNet-LVH/{name}",
        id_header="HashedFileName",
        id_column="clip_id",
        value=value,
        header=("HashedFileName", value),
        truth=f"echonet_lvh/{name}_split.csv",
    )


def _cardiacnet(task: str) -> PredictionFile:
    value, probability = f"{task}_pred", f"prob_{task}"
    return PredictionFile(
        task=task,
        dataset=f"cardiacnet-{task}",
        folder=f"CardiacNet/{task.upper()}",
        id_header="unique_id",
        id_column="unique_id",
        value=value,
        probability=probability,
        header=("unique_id", value, probability),
        truth=_TRUTH[f"cardiacnet-{task}"],
    )


def _rwma(view: str) -> PredictionFile:
    return PredictionFile(
        task="rwma",
        dataset="segrwma",
        row=view,
        folder="segRWMA/rwma",
        id_header="patient_id",
        id_column="patient_id",
        value="rwma_pred",
        probability="prob_rwma",
        header=("patient_id", "prob_rwma", "rwma_pred"),
        truth=_TRUTH["segrwma"],
        suffix=f"_{view.lower()}",
        where_view=view,
    )


def _stenosis(row: str, id_header: str, id_column: str, suffix: str = "") -> PredictionFile:
    return PredictionFile(
        task="as",
        dataset="tmed2",
        row=row,
        folder="TMED2/AS",
        id_header=id_header,
        id_column=id_column,
        value="as_pred",
        probability="prob_as",
        header=(id_header, "as_pred", "prob_as"),
        truth="tmed2/per_study.csv" if row == "study" else "tmed2/per_image.csv",
        suffix=suffix,
    )


def _view(dataset: str, folder: str, id_header: str, id_column: str, suffix: str = "") -> PredictionFile:
    other = ("prob_Other",) if dataset == "tmed2" else ()
    return PredictionFile(
        task="view",
        dataset=dataset,
        folder=f"{folder}/view",
        id_header=id_header,
        id_column=id_column,
        value="view_pred",
        header=(id_header, "view_pred", *_FIVE, *other),
        truth=_TRUTH[dataset],
        suffix=suffix,
    )


_FILES: Sequence[PredictionFile] = (
    _lvef("camus", "CAMUS", "patient_id", "patient_id", row="patient"),
    _lvef("camus", "CAMUS", "unique_id", "clip_id", row="read only: a prediction a view"),
    _lvef("echonet-dynamic", "EchoNet-Dynamic", "FileName", "clip_id"),
    _lvef("echonet-pediatric", "EchoNet-Pediatric", "FileName", "file_name", "view", row="pooled"),
    _lvh("ivsd", "IVSd"),
    _lvh("lvidd", "LVIDd"),
    _lvh("lvpwd", "LVPWd"),
    _cardiacnet("asd"),
    _cardiacnet("pah"),
    PredictionFile(
        task="stemi",
        dataset="hmc-qu",
        row="view",
        folder="HMCQU/stemi",
        id_header="unique_id",
        id_column="unique_id",
        value="stemi_pred",
        header=("", "stemi_pred", "unique_id", "view"),
        truth=_TRUTH["hmc-qu"],
    ),
    *(_rwma(view) for view in ("A2C", "A3C", "A4C")),
    _stenosis("study", "study_id", "study_id"),
    _stenosis("image", "query_key", "query_key", suffix="_image"),
    _view("camus", "CAMUS", "unique_id", "clip_id"),
    _view("echonet-dynamic", "EchoNet-Dynamic", "FileName", "clip_id"),
    _view("echonet-pediatric", "EchoNet-Pediatric", "FileName", "file_name"),
    _view("echonet-lvh", "EchoNet-LVH", "HashedFileName", "clip_id"),
    _view("cardiacnet-asd", "CardiacNet", "unique_id", "unique_id", suffix="_asd"),
    _view("cardiacnet-pah", "CardiacNet", "unique_id", "unique_id", suffix="_pah"),
    _view("hmc-qu", "HMCQU", "unique_id", "unique_id"),
    _view("segrwma", "segRWMA", "patient_view_id", "patient_view_id"),
    _view("tmed2", "TMED2", "query_key", "query_key"),
)
_BY_TASK: Mapping[tuple[str, str], tuple[PredictionFile, ...]] = {
    (one.task, one.dataset): tuple(of for of in _FILES if (of.task, of.dataset) == (one.task, one.dataset))
    for one in _FILES
}


def files_of(task: str, dataset: str) -> tuple[PredictionFile, ...]:
    """Return the kinds of prediction file of a task on a data set; none where CardioBench has no such task."""
    return _BY_TASK.get((task, dataset), ())


def file_of(task: str, dataset: str, *, header: Sequence[str], name: str) -> PredictionFile:
    """Return which kind a file of predictions is, by its columns and name.

    Raises
    ------
    UnknownNameError
        CardioBench has no such task there, or the columns are of none of its files.
    """
    kinds = files_of(task, dataset)
    if not kinds:
        known = sorted({f"{one.task} on {one.dataset}" for one in _FILES})
        raise UnknownNameError(f"CardioBench has no task {task!r} on {dataset!r}; it has {', '.join(known)}")
    fitting = [kind for kind in kinds if {kind.id_header, kind.value} <= set(header)]
    by_view = [kind for kind in fitting if kind.where_view is None or kind.where_view.lower() in name.lower()]
    if not by_view:
        wanted = " or ".join(dict.fromkeys(f"{kind.id_header} and {kind.value}" for kind in kinds))
        views = ", and a view (a2c, a3c, a4c) in its name" if kinds[0].where_view else ""
        raise UnknownNameError(
            f"{name} holds the columns {', '.join(header)}; "
            f"predictions of {task!r} on {dataset!r} need {wanted}{views}"
        )
    return by_view[0]
