"""The vectors of a joined source: checked and digested whatever their order, and written in the manifest's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.build.encode import pool_frames
from embedstore.embedding_set import SetWriter
from embedstore.identity import digest_json
from embedstore.ingest.join import Joined, JoinedFrames
from embedstore.ingest.keys import RowKeys
from embedstore.ingest.source import SourceRows
from embedstore.ingest.values import Matrix, check_rows, whole_clips

__all__ = ["Content"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Content:
    """The checked vectors of a joined source.

    Attributes
    ----------
    sha256 : str
        Digest of all ids and vectors of the source, as they will be stored and in the order of the ids: it does not
        depend on the order of the rows, on the format or on the manifest.
    dim, frame_dim : int, int or None
        Dimensions of clip and frame vectors.
    """

    joined: Joined
    clips: Matrix | None
    frames: Matrix | None
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def dim(self) -> int:
        """Dimensions of a clip vector."""
        matrix = self.clips or self.frames
        assert matrix is not None
        return matrix.dim

    @property
    def frame_dim(self) -> int | None:
        """Dimensions of a frame vector."""
        return None if self.frames is None else self.frames.dim

    @classmethod
    def read(cls, joined: Joined, opened: Callable[[SourceRows], Matrix], *, dtype: str) -> Content:
        """Check and digest all rows.

        Parameters
        ----------
        opened : callable
            Makes rows readable in any order.
        dtype : {"float16", "float32"}
            Stored dtype.

        Raises
        ------
        VectorError
            Vectors of clips of the manifest cannot be stored; the message names them.
        """
        matrices: dict[str, Matrix] = {}
        digests: dict[str, Any] = {"dtype": dtype}
        notes: list[str] = []
        for kind, rows in (("clips", joined.clips), ("frames", joined.frames)):
            if rows is None:
                continue
            matrix = matrices[kind] = opened(rows.source)
            order = rows.keys.order
            is_used = np.zeros(rows.source.n_rows, bool)
            is_used[rows.rows] = True
            digest, found = check_rows(matrix, order, is_wanted=is_used[order], name_of=rows.names)
            notes += found
            digests[kind] = [rows.source.n_rows, matrix.dim, digest, _digest_keys(rows.keys, order)]
        return cls(
            joined=joined,
            clips=matrices.get("clips"),
            frames=matrices.get("frames"),
            sha256=digest_json(digests),
            notes=tuple(notes),
        )

    def write(self, writer: SetWriter, *, pooling: str) -> None:
        """Write the arrays of the set, in the manifest's order."""
        if self.clips is not None and self.joined.clips is not None:
            array, rows = writer.array("clips", dim=self.clips.dim), self.joined.clips.rows
            buffer = self.clips.buffer(0)
            for _, block in self.clips.blocks(rows, self.clips.spans(len(rows))):
                buffer = buffer if len(buffer) >= len(block) else self.clips.buffer(len(block))
                array.append(self.clips.cast(block, buffer))
        if self.frames is not None and self.joined.frames is not None:
            self._write_frames(writer, self.frames, self.joined.frames, pooling)

    def _write_frames(self, writer: SetWriter, frames: Matrix, joined: JoinedFrames, pooling: str) -> None:
        array = writer.array("frames", dim=frames.dim)
        pooled = writer.array("clips", dim=frames.dim) if self.clips is None else None
        ends = np.concatenate([[0], np.cumsum(joined.counts)])
        runs = list(whole_clips(joined.counts, row_bytes=frames.row_bytes))
        spans = ((int(ends[first]), int(ends[last])) for first, last in runs)
        buffer = frames.buffer(0)
        # Clips without frames make empty spans only where clip vectors are given; they have nothing to write.
        filled = [(run, span) for run, span in zip(runs, spans, strict=True) if span[1] > span[0]]
        blocks = frames.blocks(joined.rows, iter([span for _, span in filled]))
        for ((first, last), _), (start, block) in zip(filled, blocks, strict=True):
            buffer = buffer if len(buffer) >= len(block) else frames.buffer(len(block))
            array.append(frames.cast(block, buffer))
            if pooled is not None:
                cuts = ends[first : last + 1] - start
                vectors = [pool_frames(block[cuts[at] : cuts[at + 1]], pooling) for at in range(last - first)]
                pooled.append(np.stack(vectors).astype(frames.dtype))


def _digest_keys(keys: RowKeys, order: Rows) -> str:
    digest = hashlib.sha256(digest_json(keys.names).encode())
    digest.update(keys.codes[order].astype("<i8").data)
    if keys.frames is not None:
        digest.update(keys.frames[order].astype("<i8").data)
    return digest.hexdigest()
