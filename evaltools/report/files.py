"""Results as files: a JSON document a task, predictions as Parquet, figures. Each is written whole or not at all."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedstore.files import replace_file, storage_errors
from evaltools.report.figures import draw_result
from evaltools.result import Predictions, Result, file_name

__all__ = ["predictions_table", "write_results"]


def predictions_table(predictions: Predictions, *, split: str = "test") -> Any:
    """Return predictions as a pyarrow table: clip_id, patient_id, split, y_true, y_pred and, for classes, prob_*."""
    import pyarrow as pa

    is_regression = predictions.probabilities is None
    kind = pa.float64() if is_regression else pa.string()
    columns = {
        "clip_id": pa.array(predictions.clip_ids.tolist(), pa.string()),
        "patient_id": pa.array(predictions.patients.tolist(), pa.string()),
        "split": pa.array([split] * len(predictions), pa.string()),
        "y_true": pa.array(predictions.y_true.tolist(), kind),
        "y_pred": pa.array(predictions.y_pred.tolist(), kind),
    }
    if predictions.probabilities is not None:
        for code, name in enumerate(predictions.classes):
            columns[f"prob_{name}"] = pa.array(predictions.probabilities[:, code])
    return pa.table(columns)


def write_results(results: Sequence[Result], out: Path, *, command: str) -> list[dict[str, Any]]:
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
    import pyarrow.parquet as pq

    folders = {name: out / name for name in ("predictions", "figures")}
    for folder in folders.values():
        with storage_errors(folder, "make the folder"):
            folder.mkdir(parents=True, exist_ok=True)
    stems = Counter(result.stem for result in results)
    documents = []
    for result in results:
        # Two sets of one title differ in their spec only.
        stem = result.stem if stems[result.stem] == 1 else f"{result.stem}__{result.provenance.fingerprint[:8]}"
        sink = io.BytesIO()
        pq.write_table(predictions_table(result.predictions), sink, compression="zstd")
        predictions = folders["predictions"] / f"{stem}.parquet"
        replace_file(predictions, sink.getvalue())
        for suffix, payload in draw_result(result).items():
            replace_file(folders["figures"] / f"{stem}.{suffix}", payload)
        documents.append(result.to_dict(predictions=predictions))
    for task in dict.fromkeys(result.task.name for result in results):
        of_task = [document for document in documents if document["task"] == task]
        text = json.dumps({"results": of_task}, indent=2, ensure_ascii=False, allow_nan=False)
        replace_file(out / f"{command}-{file_name(task)}.json", f"{text}\n".encode())
    return documents
