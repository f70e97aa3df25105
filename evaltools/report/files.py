"""Results as files: a JSON document a task, predictions as Parquet, figures. Each is written whole or not at all."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedstore.disk import storage_errors
from embedstore.files import replace_file
from evaltools.report.figures import draw_result
from evaltools.result import Predictions, Result, file_name

__all__ = ["predictions_table", "write_document", "write_predictions", "write_results"]


def predictions_table(predictions: Predictions) -> Any:
    """Return predictions as a pyarrow table: clip_id, patient_id, split, y_true, y_pred and, for classes, prob_*.

    Of patients and studies the first column is ``unit_id``.
    Out-of-fold predictions have the split ``cv`` and a column ``repeat``.
    """
    import pyarrow as pa

    is_regression = predictions.probabilities is None
    kind = pa.float64() if is_regression else pa.string()
    columns = {
        "clip_id" if predictions.level == "clip" else "unit_id": pa.array(predictions.clip_ids.tolist(), pa.string()),
        "patient_id": pa.array(predictions.patients.tolist(), pa.string()),
        "split": pa.array(["test" if predictions.repeats is None else "cv"] * len(predictions), pa.string()),
        "y_true": pa.array(predictions.y_true.tolist(), kind),
        "y_pred": pa.array(predictions.y_pred.tolist(), kind),
    }
    if predictions.repeats is not None:
        columns["repeat"] = pa.array(predictions.repeats, pa.int64())
    if predictions.probabilities is not None:
        for code, name in enumerate(predictions.classes):
            columns[f"prob_{name}"] = pa.array(predictions.probabilities[:, code])
    return pa.table(columns)


def write_document(document: Mapping[str, Any], path: str | Path) -> None:
    """Write one JSON document; its folder is made where it is not.

    Raises
    ------
    StorageError
        The folder or file cannot be written.
    """
    path = Path(path)
    with storage_errors(path.parent, "make the folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, f"{json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode())


def write_predictions(result: Result, folder: str | Path, *, stem: str) -> Path:
    """Write what a result predicted as Parquet, and return the file; the folder is made where it is not.

    Raises
    ------
    StorageError
        The folder or file cannot be written.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    with storage_errors(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    sink = io.BytesIO()
    pq.write_table(predictions_table(result.predictions), sink, compression="zstd")
    path = folder / f"{stem}.parquet"
    replace_file(path, sink.getvalue())
    return path


def write_results(results: Sequence[Result], out: str | Path, *, command: str) -> list[dict[str, Any]]:
    """Write results, predictions and figures below a folder, which is made where it is not.

    ``out/COMMAND-TASK.json`` holds the document of a task, ``out/predictions/*.parquet`` the scored clips and
    ``out/figures/*.png|svg`` the figures.

    Returns
    -------
    list of dict
        The JSON form of each result, with the path of its predictions.

    Raises
    ------
    StorageError
        A folder or file cannot be written.
    """
    out = Path(out)
    folders = {name: out / name for name in ("predictions", "figures")}
    for folder in folders.values():
        with storage_errors(folder, "make the folder"):
            folder.mkdir(parents=True, exist_ok=True)
    stems = Counter(result.stem for result in results)
    documents = []
    for result in results:
        # Two sets of one title differ in their spec only.
        stem = result.stem if stems[result.stem] == 1 else f"{result.stem}__{result.provenance.fingerprint[:8]}"
        predictions = write_predictions(result, folders["predictions"], stem=stem)
        for suffix, payload in draw_result(result).items():
            replace_file(folders["figures"] / f"{stem}.{suffix}", payload)
        documents.append(result.to_dict(predictions=predictions))
    for task in dict.fromkeys(result.task.name for result in results):
        of_task = [document for document in documents if document["task"] == task]
        write_document({"results": of_task}, out / f"{command}-{file_name(task)}.json")
    return documents
