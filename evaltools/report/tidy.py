"""Results as one tidy table: a row a value, whosever it is: the encoder's, a control's, a subgroup's."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["tidy_bytes", "tidy_rows"]

_FACTS = (
    "suite", "command", "task", "dataset", "row", "level", "encoder", "variant", "pool", "protocol", "primary",
    "main_metric", "unit", "n_expected", "n_scored", "n_patients", "seed", "bootstrap", "set", "fingerprint", "media",
    "annotations", "task_digest", "protocol_digest", "bank", "bank_digest", "leakage", "synthetic", "stamp",
    "predictions",
)  # fmt: skip
_COUNTS = frozenset({"n_expected", "n_scored", "n_patients", "seed", "bootstrap"})
_FLAGS = frozenset({"primary", "synthetic"})


def tidy_rows(documents: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each value of results.

    ``of`` says whose it is: ``encoder``, ``control`` or ``group``; ``name`` which control, or ``COLUMN=VALUE``.
    """
    for document in documents:
        facts = {name: document.get(name) for name in _FACTS}
        facts["versions"] = " ".join(f"{name}={version}" for name, version in document["versions"].items())
        parts = [("encoder", "", document["metrics"], document["n_scored"], document["n_patients"])]
        parts += [
            ("control", name, values, document["n_scored"], document["n_patients"])
            for name, values in document["controls"].items()
        ]
        parts += [
            ("group", f"{column}={value}", group["metrics"], group["n_scored"], group["n_patients"])
            for column, groups in document["groups"].items()
            for value, group in groups.items()
        ]
        for of, name, metrics, n_scored, n_patients in parts:
            for metric, estimate in metrics.items():
                yield {
                    **facts,
                    "n_scored": n_scored,
                    "n_patients": n_patients,
                    "of": of,
                    "name": name,
                    "metric": metric,
                    "value": estimate["value"],
                    "ci_low": estimate["ci_low"],
                    "ci_high": estimate["ci_high"],
                    "ci_reason": estimate.get("ci_reason"),
                }


def tidy_bytes(documents: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the table as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        name: pa.int64() if name in _COUNTS else pa.bool_() if name in _FLAGS else pa.string() for name in _FACTS
    }
    types |= dict.fromkeys(("versions", "of", "name", "metric"), pa.string())
    types |= dict.fromkeys(("value", "ci_low", "ci_high"), pa.float64()) | {"ci_reason": pa.string()}
    rows = list(tidy_rows(documents))
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()
