"""`EmbeddingSet`: a committed, immutable set of vectors, and `SetWriter`, which makes one.

A set holds content only: vectors, index tables, failures. No label, split or patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from embedstore.described_folder import DescribedFolder, StagedFolder, read_description
from embedstore.errors import FormatError
from embedstore.layout import ARRAY_KINDS, FAILURES_FILE, FRAME_INDEX_FILE, INDEX_FILE, WINDOW_INDEX_FILE
from embedstore.shards import ArrayWriter
from embedstore.spec import EncoderSpec
from embedstore.vector_array import VectorArray

if TYPE_CHECKING:
    import pandas as pd

    from embedstore.views import VectorSequence

__all__ = [
    "FAILURES_SCHEMA",
    "FRAME_INDEX_SCHEMA",
    "INDEX_SCHEMA",
    "WINDOW_INDEX_SCHEMA",
    "EmbeddingSet",
    "SetWriter",
]

INDEX_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("clip_id", pa.string()),
        ("content_sha256", pa.string()),
        ("vector_key", pa.string()),
        ("n_frames", pa.int64()),
        ("n_header_frames", pa.int64()),
        ("n_decode_errors", pa.int64()),
        ("n_pts_gaps", pa.int64()),
        ("fps", pa.float64()),
        ("fps_header", pa.float64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("covered_s", pa.float64()),
        ("effective_hz", pa.float64()),
        ("n_padded", pa.int64()),
        ("frame_row", pa.int64()),
        ("n_frame_rows", pa.int64()),
        ("window_row", pa.int64()),
        ("n_window_rows", pa.int64()),
    ]
)
FRAME_INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("frame", pa.int64()),
        ("time_s", pa.float64()),
        ("frame_start", pa.int64()),
        ("frame_stop", pa.int64()),
        ("frame_kind", pa.string()),
    ]
)
WINDOW_INDEX_SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("frame_start", pa.int64()), ("frame_stop", pa.int64()), ("n_padded", pa.int64())]
)
FAILURES_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("content_sha256", pa.string()),
        ("vector_key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
TABLE_SCHEMAS = {
    INDEX_FILE: INDEX_SCHEMA,
    FRAME_INDEX_FILE: FRAME_INDEX_SCHEMA,
    WINDOW_INDEX_FILE: WINDOW_INDEX_SCHEMA,
    FAILURES_FILE: FAILURES_SCHEMA,
}


@dataclass(frozen=True)
class EmbeddingSet(DescribedFolder):
    """A read view of one committed set.

    Attributes
    ----------
    folder : Path
    set_id : str
        SHA-256 of ``description.json``.
    described : mapping
        The parsed description.

    Notes
    -----
    ``clips[i]`` belongs to row i of `index`; the frame rows of a clip stand together, in the order of `index`.
    """

    folder: Path
    set_id: str
    described: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, *, set_id: str) -> EmbeddingSet:
        """Open a committed set.

        Raises
        ------
        StorageError
            It is not there.
        CorruptionError
            The description is not the one that the id names.
        FormatError
            It was written by a newer version.
        """
        return cls(folder, set_id, read_description(folder, expected_id=set_id))

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.described["dataset"])

    @cached_property
    def spec(self) -> EncoderSpec:
        """What made the vectors."""
        return EncoderSpec.from_dict(self.described["spec"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the spec."""
        return str(self.described["fingerprint"])

    def __len__(self) -> int:
        return int(self.described["arrays"]["clips"]["n_rows"])

    def __repr__(self) -> str:
        return f"EmbeddingSet({self.dataset!r}, {self.spec.title!r}, {len(self)} clips, {self.set_id[:12]})"

    @cached_property
    def clips(self) -> VectorArray:
        """(N, D): one vector a clip, in the order of `index`."""
        return self._array_at("clips")

    @cached_property
    def frames(self) -> VectorArray:
        """(F, D'): one vector a frame, in the order of `frame_index`.

        Raises
        ------
        FormatError
            The set was built without frames.
        """
        frames = self.array("frames")
        if frames is None:
            raise FormatError(f"the set of {self.spec.title} on {self.dataset} holds no frame vectors")
        return frames

    @cached_property
    def windows(self) -> VectorArray | None:
        """(W, D): one vector a window, None for frame encoders."""
        return self.array("windows")

    @cached_property
    def index(self) -> pa.Table:
        """A row a clip, in the order of `clips`; columns as in ``docs/format.md``."""
        return self.table(INDEX_FILE)

    @cached_property
    def frame_index(self) -> pa.Table:
        """A row a frame vector: clip_id, frame, time_s, ..."""
        return self.table(FRAME_INDEX_FILE)

    @cached_property
    def window_index(self) -> pa.Table:
        """A row a window vector: clip_id, frame_start, frame_stop, n_padded."""
        return self.table(WINDOW_INDEX_FILE)

    @cached_property
    def failures(self) -> pa.Table:
        """Clips without vectors: clip_id, reason, ..."""
        return self.table(FAILURES_FILE)

    def as_dataset(self, kind: str = "clips") -> VectorSequence:
        """Return the vectors of one kind as a plain sequence of (vector, key), for torch's DataLoader and others.

        See `embedstore.views.VectorSequence`.
        """
        from embedstore.views import vector_sequence

        return vector_sequence(self, kind)

    def to_arrow(self, kind: str = "clips") -> pa.Table:
        """Return the index columns of one kind with a column ``vector``: a fixed-size list of float32."""
        from embedstore.views import arrow_table

        return arrow_table(self, kind)

    def to_pandas(self, kind: str = "clips") -> pd.DataFrame:
        """Return the index columns of one kind with a column ``vector`` of float32 arrays; needs pandas."""
        from embedstore.views import pandas_frame

        return pandas_frame(self, kind)

    @property
    def n_failed(self) -> int:
        """Number of clips without vectors."""
        return int(self.described["tables"][FAILURES_FILE]["rows"])


def _as_stored(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast a table to its schema; large strings stay: they are written as strings are, and a cast copies them."""
    fields = [
        field.with_type(pa.large_string()) if pa.types.is_large_string(found.type) else field
        for field, found in zip(schema, table.schema, strict=True)
    ]
    return table.cast(pa.schema(fields))


class SetWriter:
    """Writes one set into a staging folder beside the sets; `finish` makes it visible under its id.

    Use as a context manager: what is not finished is removed.

    Parameters
    ----------
    sets : Path
        The store's folder of sets.
    dataset : str
    spec : EncoderSpec
    """

    def __init__(self, sets: Path, *, dataset: str, spec: EncoderSpec) -> None:
        self._dataset, self._spec = dataset, spec
        self._staged = StagedFolder(sets)
        self._arrays: dict[str, ArrayWriter] = {}

    @property
    def folder(self) -> Path:
        """The staging folder."""
        return self._staged.path

    def __enter__(self) -> Self:
        self._staged.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array in self._arrays.values():
            array.__exit__(kind, error, trace)
        self._staged.__exit__(kind, error, trace)

    def array(self, kind: str, *, dim: int) -> ArrayWriter:
        """Open one of the arrays ``clips``, ``frames``, ``windows`` for appending rows of the stored dtype."""
        if kind not in ARRAY_KINDS:
            raise ValueError(f"no array kind {kind!r}")
        if kind not in self._arrays:
            self._arrays[kind] = ArrayWriter(self.folder / kind, dim=dim, dtype=self._spec.dtype)
        return self._arrays[kind]

    def finish(self, tables: Mapping[str, pa.Table], *, provenance: Mapping[str, Any]) -> str:
        """Write tables and description, and make the set visible.

        Parameters
        ----------
        tables : mapping of file name to pyarrow.Table
            ``index.parquet`` and ``failures.parquet``; ``frame_index.parquet``, ``window_index.parquet`` where the
            set has such arrays.
        provenance : mapping
            JSON values; outside the id.

        Returns
        -------
        str
            The set id.
        """
        arrays = {kind: writer.finish().to_dict() for kind, writer in sorted(self._arrays.items())}
        written = {
            name: self._staged.write_table(name, _as_stored(table, TABLE_SCHEMAS[name]))
            for name, table in sorted(tables.items())
        }
        self._check_counts(arrays, tables)
        described = {
            "kind": "embedding-set",
            "dataset": self._dataset,
            "spec": self._spec.to_dict(),
            "fingerprint": self._spec.fingerprint,
            "arrays": arrays,
            "tables": written,
        }
        return self._staged.publish(described, provenance=provenance)

    @staticmethod
    def _check_counts(arrays: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> None:
        pairs = (("clips", INDEX_FILE), ("frames", FRAME_INDEX_FILE), ("windows", WINDOW_INDEX_FILE))
        for kind, name in pairs:
            rows = arrays[kind]["n_rows"] if kind in arrays else 0
            if (kind in arrays) != (name in tables) or rows != (tables[name].num_rows if name in tables else 0):
                raise ValueError(f"{kind} and {name} do not have the same rows")
