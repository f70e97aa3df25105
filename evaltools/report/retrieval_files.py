"""Retrieval results as files: a JSON document a task, and the scores of each query as Parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedstore.disk import storage_errors
from embedstore.files import replace_file
from evaltools.report.files import write_document
from evaltools.result import file_name
from evaltools.retrieval import Retrieval

__all__ = ["queries_table", "write_retrievals"]


def queries_table(result: Retrieval) -> Any:
    """Return a pyarrow table, a row a query: who or what asked and each metric, null where nothing is relevant."""
    import pyarrow as pa

    columns = {"prompt" if result.bank else "clip_id": pa.array(result.clip_ids.tolist(), pa.string())}
    if not result.bank:
        columns["patient_id"] = pa.array(result.patients.tolist(), pa.string())
    return pa.table(columns | {name: pa.array(of, from_pandas=True) for name, of in result.values.items()})


def write_retrievals(results: Sequence[Retrieval], out: str | Path) -> list[dict[str, Any]]:
    """Write ``out/retrieve-TASK.json`` and ``out/predictions/*.parquet``.

    Returns
    -------
    list of dict
        The JSON form of each result, with the path of its queries.

    Raises
    ------
    StorageError
        A folder or file cannot be written.
    """
    import pyarrow.parquet as pq

    out = Path(out)
    folder = out / "predictions"
    with storage_errors(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    documents = []
    for result in results:
        parts = (result.task.name, result.dataset, result.title, result.pool, result.protocol, result.fingerprint[:8])
        queries = folder / f"{'__'.join(file_name(part) for part in parts)}.parquet"
        sink = io.BytesIO()
        pq.write_table(queries_table(result), sink, compression="zstd")
        replace_file(queries, sink.getvalue())
        documents.append(result.to_dict(predictions=queries))
    for task in dict.fromkeys(result.task.name for result in results):
        of_task = [document for document in documents if document["task"] == task]
        write_document({"results": of_task}, out / f"retrieve-{file_name(task)}.json")
    return documents
