"""`export_cardiobench`: predictions and ground truth as the files that CardioBench's evaluation scripts read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedstore import Manifest, Store
from embedstore.disk import storage_errors
from embedstore.errors import ContentError, FormatError, StorageError, UnknownNameError
from evaltools.cardiobench.csv_files import write_csv
from evaltools.cardiobench.ground_truth import Table, ground_truth_files
from evaltools.cardiobench.layout import PredictionFile, files_of
from evaltools.cardiobench.metrics import VIEWS
from evaltools.cardiobench.numbers import file_order, six_shares
from evaltools.cardiobench.placing import Renames, write_list
from evaltools.result import Predictions, Result, file_name
from evaltools.task import Task, get_task

__all__ = ["Exported", "export_cardiobench", "exported_of", "read_results"]

_POSITIVE = "true"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Predictions of one encoder for one row of a task, wherever they come from.

    Attributes
    ----------
    annotations : str
        Digest of the manifest's annotations that they were scored with.
    """

    task: str
    dataset: str
    row: str
    title: str
    protocol: str
    pool: str
    annotations: str
    predictions: Predictions


def exported_of(result: Result) -> Exported:
    """Return the predictions of a result."""
    return Exported(
        task=result.task.name,
        dataset=result.dataset,
        row=result.row.name,
        title=result.title,
        protocol=result.protocol,
        pool=result.pool,
        annotations=result.provenance.annotations,
        predictions=result.predictions,
    )


def read_results(folder: str | Path) -> list[Exported]:
    """Read the results that a command wrote with ``--out``.

    Raises
    ------
    StorageError
        The folder is not there or cannot be read.
    FormatError
        A document or its predictions are not as evaltools writes them, or there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StorageError(f"there is no folder {folder}")
    found: list[Exported] = []
    for path in sorted(folder.glob("*.json")):
        try:
            with storage_errors(path, "read"):
                documents = json.loads(path.read_text(encoding="utf-8")).get("results", [])
            found += [_read_one(document, folder) for document in documents if document.get("predictions")]
        except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise FormatError(f"{path} is no document of results that evaltools wrote ({error})") from error
    if not found:
        raise FormatError(f"{folder} holds no results with predictions; write them with --out")
    return found


def _read_one(document: Mapping[str, Any], folder: Path) -> Exported:
    path = folder / "predictions" / Path(document["predictions"]).name
    with storage_errors(path, "read"):
        table = pq.read_table(path, use_threads=False)
    if "repeat" in table.column_names:
        raise FormatError(f"{path} holds out-of-fold predictions, and CardioBench's files are of the test split")
    classes = tuple(name.removeprefix("prob_") for name in table.column_names if name.startswith("prob_"))
    columns = {
        name: np.array(table.column(name).to_pylist(), dtype=object) for name in ("patient_id", "y_true", "y_pred")
    }
    is_number = not classes
    id_name = "clip_id" if "clip_id" in table.column_names else "unit_id"
    predictions = Predictions(
        clip_ids=np.array(table.column(id_name).to_pylist(), dtype=object),
        patients=columns["patient_id"],
        y_true=columns["y_true"].astype(np.float64) if is_number else columns["y_true"],
        y_pred=columns["y_pred"].astype(np.float64) if is_number else columns["y_pred"],
        probabilities=None
        if is_number
        else np.column_stack([table.column(f"prob_{name}").to_numpy() for name in classes]),
        classes=classes,
        level=document["level"],
    )
    variant = document["variant"]
    return Exported(
        task=document["task"],
        dataset=document["dataset"],
        row=document["row"],
        title=document["encoder"] if variant == "published" else f"{document['encoder']}@{variant}",
        protocol=document["protocol"],
        pool=document["pool"],
        annotations=document["annotations"],
        predictions=predictions,
    )


def export_cardiobench(
    store: Store, exported: Sequence[Exported], out: str | Path, *, renames: Renames | None = None
) -> list[dict[str, Any]]:
    """Write ``out/predictions/...``, ``out/ground_truth/...`` and a list of what each file is.

    A model bears the encoder's name, with what tells several of its predictions apart behind it; a name holds no
    underscore, by which CardioBench's scripts take other kinds of file.

    Parameters
    ----------
    renames : Renames or None
        Other names for files and folders.

    Returns
    -------
    list of dict
        ``path``, ``rows``, ``dataset``, ``task``, ``encoder`` and ``expected``, one a file: of predictions how many
        rows CardioBench's scripts score, of ground truth None.

    Raises
    ------
    UnknownNameError
        Nothing here is a task of CardioBench, or a new name is for no file.
    ContentError
        The store's manifest has other annotations than the predictions were scored with.
    StorageError
        A folder or file cannot be written.
    """
    renaming, out = renames or Renames(), Path(out)
    tables: list[tuple[str, Table, dict[str, Any]]] = []
    manifests: dict[str, Manifest] = {}
    truths: dict[str, dict[str, Table]] = {}
    kinds: list[tuple[Exported, PredictionFile]] = []
    for one in exported:
        fitting = [kind for kind in files_of(one.task, one.dataset) if kind.row == one.row]
        kinds += [(one, kind) for kind in fitting]
    if not kinds:
        raise UnknownNameError("none of these results is a task of CardioBench on one of its data sets")
    names = _names([one for one, _ in kinds])
    for one, kind in kinds:
        manifest = manifests.setdefault(one.dataset, store.manifest(one.dataset))
        if manifest.annotations_digest != one.annotations:
            raise ContentError(
                f"the store's manifest of {one.dataset!r} has other annotations than the predictions of {one.title} "
                "were scored with; evaluate again"
            )
        truth = truths.setdefault(one.dataset, ground_truth_files(manifest))
        n_expected = len(_scored_ids(truth[kind.truth], kind))
        of = {"dataset": one.dataset, "task": one.task, "encoder": one.title, "expected": n_expected}
        place = f"predictions/{kind.folder}/{names[_key(one)]}{kind.suffix}.csv"
        tables.append((place, (kind.header, _prediction_rows(one, kind, manifest)), of))
    for name, truth in truths.items():
        of = {"dataset": name, "task": None, "encoder": None, "expected": None}
        tables += [(f"ground_truth/{place}", table, of) for place, table in truth.items()]
    renaming.check([place for place, _, _ in tables])
    written: list[dict[str, Any]] = []
    for place, (header, rows), of in tables:
        name = renaming.path(place)
        write_csv(out / name, header, rows)
        written.append({"name": name, "original": place, "rows": len(rows), **of})
    write_list(out, written)
    told = ("rows", "dataset", "task", "encoder", "expected")
    return [{"path": str(out / one["name"]), **{key: one[key] for key in told}} for one in written]


def _scored_ids(truth: Table, kind: PredictionFile) -> set[str]:
    """Return the ids of a ground-truth table that the scripts score: of test, 2-D, and of the file's view."""
    header, rows = truth
    wanted: dict[str, tuple[Any, ...]] = {"modality": ("2D",), "split": ("test",), "Split": ("test", 0)}
    if kind.where_view is not None:
        wanted["view"] = (kind.where_view,)
    at = {name: header.index(name) for name in wanted if name in header}
    key = header.index(kind.id_header)
    return {str(row[key]) for row in rows if all(row[place] in wanted[name] for name, place in at.items())}


def _key(one: Exported) -> tuple[str, str, str]:
    return one.title, one.protocol, one.pool


def _names(exported: Sequence[Exported]) -> dict[tuple[str, str, str], str]:
    """Name models: by encoder, where that is enough."""
    keys = {_key(one) for one in exported}
    names = {}
    for title, protocol, pool in keys:
        alike = [key for key in keys if key[0] == title]
        of_table = {(one.task, one.dataset, _key(one)) for one in exported if one.title == title}
        enough = len({(task, dataset) for task, dataset, _ in of_table}) == len(of_table)
        text = title if len(alike) == 1 or enough else f"{title}-{protocol}-{pool}"
        names[title, protocol, pool] = file_name(text.replace("_", "-").replace("@", "-"))
    return names


def _prediction_rows(one: Exported, kind: PredictionFile, manifest: Manifest) -> list[tuple[Any, ...]]:
    predictions = one.predictions
    order = file_order(manifest, _task_of(one), predictions)
    cells: dict[str, list[Any]] = {kind.id_header: _ids(predictions, kind, manifest)}
    if one.task == "view":
        shares = six_shares(predictions)
        cells[kind.value] = predictions.y_pred.tolist()
        cells |= {f"prob_{view}": shares[:, at].tolist() for at, view in enumerate(VIEWS)}
    elif predictions.probabilities is None:
        cells[kind.value] = [float(value) for value in predictions.y_pred]
    else:
        cells[kind.value] = [int(name == _POSITIVE) for name in predictions.y_pred]
        if kind.probability is not None:
            cells[kind.probability] = predictions.probabilities[:, predictions.classes.index(_POSITIVE)].tolist()
    if "view" in kind.header:
        view_of = dict(zip(manifest.clip_ids, manifest.column("view"), strict=True))
        cells["view"] = [view_of[clip] for clip in predictions.clip_ids]
    rows = []
    for number, at in enumerate(order):
        rows.append(tuple(number if name == "" else cells[name][at] for name in kind.header))
    return rows


def _task_of(one: Exported) -> Task:
    return get_task(one.task)


def _ids(predictions: Predictions, kind: PredictionFile, manifest: Manifest) -> list[str]:
    if predictions.level != "clip":
        return [str(unit) for unit in predictions.clip_ids]
    known = dict(zip(manifest.clip_ids, manifest.column(kind.id_column), strict=True))
    return [str(known[clip]) for clip in predictions.clip_ids]
