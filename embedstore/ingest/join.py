"""Joining a source to a manifest by id: which rows become which rows of a set, and the tables that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstore.embedding_set import FAILURES_SCHEMA, INDEX_SCHEMA
from embedstore.errors import ContentError
from embedstore.identity import sha256_hex
from embedstore.ingest.keys import RowKeys, named
from embedstore.ingest.source import IngestSource, SourceRows
from embedstore.layout import FAILURES_FILE, FRAME_INDEX_FILE, INDEX_FILE
from embedstore.manifest import Manifest
from embedstore.manifest.cells import composed
from embedstore.spec import EncoderSpec
from embedstore.tables import rows_to_table

__all__ = ["Joined", "JoinedFrames", "join_source"]

Rows = npt.NDArray[np.int64]

MISSING, SOURCE_ERROR = "missing", "source-error"
# One clip's frames are pooled at once, in memory.
_MAX_CLIP_FRAMES = 100_000


@dataclass(frozen=True, kw_only=True)
class JoinedFrames:
    """Frame rows of a source.

    Attributes
    ----------
    rows : (F,) int64
        Source rows in the order of the set: by clip, then by frame.
    counts : (M,) int64
        Frame rows of each clip of the set.
    """

    source: SourceRows
    keys: RowKeys
    rows: Rows
    counts: Rows

    def names(self, rows: Rows) -> list[str]:
        """Name rows for errors."""
        assert self.keys.frames is not None
        return [f"{self.keys.names[self.keys.codes[row]]} frame {int(self.keys.frames[row])}" for row in rows]


@dataclass(frozen=True, kw_only=True)
class JoinedClips:
    """Clip rows of a source: ``rows`` (M,) int64 in the order of the set."""

    source: SourceRows
    keys: RowKeys
    rows: Rows

    def names(self, rows: Rows) -> list[str]:
        """Name rows for errors."""
        return [self.keys.names[self.keys.codes[row]] for row in rows]


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A source joined to a manifest.

    Attributes
    ----------
    positions : (M,) int64
        Rows of the manifest that have vectors, ascending: the clips of the set.
    clips : JoinedClips or None
        None where clip vectors are pooled from frames.
    frames : JoinedFrames or None
    reasons : mapping of str to (str, str)
        (reason, detail) of each clip of the manifest without a vector.
    known : mapping
        What the source states of the spec.
    """

    positions: Rows
    clips: JoinedClips | None
    frames: JoinedFrames | None
    reasons: Mapping[str, tuple[str, str]]
    rows_without_clip: tuple[str, ...]
    known: Mapping[str, Any]

    @property
    def is_pooled(self) -> bool:
        """Whether clip vectors are made from frames."""
        return self.clips is None

    @property
    def n_clips(self) -> int:
        """Clips of the set."""
        return len(self.positions)

    @property
    def n_frames(self) -> int:
        """Frame rows of the set."""
        return 0 if self.frames is None else len(self.frames.rows)

    @property
    def n_rows_to_check(self) -> int:
        """All rows of the source."""
        return sum(joined.source.n_rows for joined in (self.clips, self.frames) if joined is not None)

    @property
    def n_rows_to_write(self) -> int:
        """Rows of the source that are rows of the set."""
        return sum(len(joined.rows) for joined in (self.clips, self.frames) if joined is not None)

    @property
    def clips_without_row(self) -> tuple[str, ...]:
        """Clips of the manifest without a vector, in its order."""
        return tuple(self.reasons)

    def _vector_keys(self, clip_ids: Sequence[str], contents: Sequence[str | None], spec: EncoderSpec) -> list[str]:
        """Return vector keys; id and frames stand where a build has the digest of the frames it picked."""
        fingerprint, keys, start = spec.fingerprint, [], 0
        for at, (clip_id, content) in enumerate(zip(clip_ids, contents, strict=True)):
            picked = b""
            if self.frames is not None and at < self.n_clips:
                assert self.frames.keys.frames is not None
                stop = start + int(self.frames.counts[at])
                picked = self.frames.keys.frames[self.frames.rows[start:stop]].astype("<i8").tobytes()
                start = stop
            resolved = sha256_hex(b"ingested\0" + clip_id.encode() + b"\0" + picked)
            # What `EncoderSpec.vector_key` gives, without computing the fingerprint for every clip.
            keys.append(sha256_hex(f'["{fingerprint}","{content or "unknown"}","{resolved}"]'.encode()))
        return keys

    def failures(self, manifest: Manifest) -> list[dict[str, Any]]:
        """Return the failures as rows, without vector keys."""
        contents = dict(zip(manifest.clip_ids, manifest.column("sha256"), strict=True))
        return [
            {"clip_id": clip_id, "content_sha256": contents[clip_id], "reason": reason, "detail": detail}
            for clip_id, (reason, detail) in self.reasons.items()
        ]

    def tables(self, manifest: Manifest, spec: EncoderSpec) -> dict[str, pa.Table]:
        """Return the tables of the set. What only decoding could tell is null."""
        taken = manifest.table.select(["clip_id", "sha256", "fps"]).take(pa.array(self.positions)).combine_chunks()
        ids, contents = taken.column("clip_id"), taken.column("sha256")
        counts = np.zeros(self.n_clips, np.int64) if self.frames is None else self.frames.counts
        columns = {
            "row": pa.array(np.arange(self.n_clips)),
            "clip_id": ids,
            "content_sha256": contents,
            "vector_key": self._vector_keys(ids.to_pylist(), contents.to_pylist(), spec),
            "fps": taken.column("fps"),
            "n_frame_rows": pa.array(counts),
            "n_window_rows": pa.array(np.zeros(self.n_clips, np.int64)),
        }
        if self.frames is not None:
            columns["frame_row"] = pa.array(np.cumsum(counts) - counts)
        absent = {name: pa.nulls(self.n_clips, INDEX_SCHEMA.field(name).type) for name in INDEX_SCHEMA.names}
        failed = self.failures(manifest)
        lost_ids, lost_contents = ([row[name] for row in failed] for name in ("clip_id", "content_sha256"))
        lost_keys = Joined._vector_keys(self._nothing(), lost_ids, lost_contents, spec)
        for row, key in zip(failed, lost_keys, strict=True):
            row["vector_key"] = key
        tables = {
            INDEX_FILE: pa.table({**absent, **columns}),
            FAILURES_FILE: rows_to_table(sorted(failed, key=lambda row: str(row["clip_id"])), FAILURES_SCHEMA),
        }
        if self.frames is not None:
            tables[FRAME_INDEX_FILE] = self._frame_table(ids, taken.column("fps"))
        return tables

    def _nothing(self) -> Joined:
        empty = np.empty(0, np.int64)
        return Joined(positions=empty, clips=None, frames=None, reasons={}, rows_without_clip=(), known={})

    def _frame_table(self, ids: pa.ChunkedArray, fps: pa.ChunkedArray) -> pa.Table:
        assert self.frames is not None and self.frames.keys.frames is not None
        numbers = self.frames.keys.frames[self.frames.rows]
        clip = np.repeat(np.arange(self.n_clips), self.frames.counts)
        rates = np.repeat(fps.fill_null(np.nan).to_numpy(), self.frames.counts)
        return pa.table(
            {
                "clip_id": pa.DictionaryArray.from_arrays(pa.array(clip, pa.int64()), ids.combine_chunks()),
                "frame": pa.array(numbers),
                "time_s": pa.array(numbers / rates, mask=~np.isfinite(rates)),
                "frame_start": pa.array(numbers),
                "frame_stop": pa.array(numbers + 1),
                "frame_kind": pa.array(["frame"] * len(numbers), pa.string()),
            }
        )


def join_source(source: IngestSource, manifest: Manifest) -> Joined:
    """Join the ids of a source to the clips of a manifest.

    Raises
    ------
    ContentError
        Ids or frames are doubled, no id matches, a frame lies outside its clip, or a label stands among the vectors.
    """
    labels = sorted(set(source.column_names) & set(manifest.fields))
    if labels:
        raise ContentError(
            f"column {labels[0]!r} is a column of the manifest and no part of a vector; drop it from the vectors"
        )
    place_of = {composed(clip_id): at for at, clip_id in enumerate(manifest.clip_ids)}
    clip_keys = None if source.clips is None else _read_keys(source.clips)
    frame_keys = None if source.frames is None else _read_keys(source.frames)
    leading = clip_keys or frame_keys
    assert leading is not None
    found = leading.positions(place_of)
    positions = np.sort(found[found >= 0])
    strangers = {name for name, at in zip(leading.names, found, strict=True) if at < 0}
    if not positions.size:
        raise ContentError(
            f"no id is a clip of manifest {manifest.name!r}: the file has {named(leading.names)}; "
            f"the manifest has {named(manifest.clip_ids)}"
        )
    place_in_set = np.full(len(manifest), -1, np.int64)
    place_in_set[positions] = np.arange(len(positions))
    clips = frames = None
    if source.clips is not None and clip_keys is not None:
        rows = np.empty(len(positions), np.int64)
        is_wanted = found[clip_keys.codes] >= 0
        rows[place_in_set[found[clip_keys.codes[is_wanted]]]] = np.flatnonzero(is_wanted)
        clips = JoinedClips(source=source.clips, keys=clip_keys, rows=rows)
    if source.frames is not None and frame_keys is not None:
        frames = _join_frames(source.frames, frame_keys, manifest, place_of, place_in_set)
        strangers |= {name for name in frame_keys.names if name not in place_of}
    return Joined(
        positions=positions,
        clips=clips,
        frames=frames,
        reasons=_reasons(source, manifest, place_in_set, frame_keys),
        rows_without_clip=tuple(sorted(strangers)),
        known=source.known,
    )


def _read_keys(rows: SourceRows) -> RowKeys:
    return RowKeys.read(rows.ids(), n_rows=rows.n_rows, frame_numbers=rows.frame_numbers)


def _join_frames(
    source: SourceRows, keys: RowKeys, manifest: Manifest, place_of: Mapping[str, int], place_in_set: Rows
) -> JoinedFrames:
    assert keys.frames is not None
    found = keys.positions(place_of)
    order = keys.order
    at_clip = np.where(found >= 0, place_in_set[found], -1)[keys.codes[order]]
    wanted = at_clip >= 0
    by_clip = np.argsort(at_clip[wanted], kind="stable")
    rows = order[wanted][by_clip]
    counts = np.bincount(at_clip[wanted], minlength=int(place_in_set.max()) + 1)
    joined = JoinedFrames(source=source, keys=keys, rows=rows, counts=counts)
    lengths = manifest.table.column("n_frames").fill_null(np.iinfo(np.int64).max).to_numpy()
    outside = rows[keys.frames[rows] >= lengths[found[keys.codes[rows]]]]
    if outside.size:
        raise ContentError(
            f"frames beyond the end of their clip in the manifest: {named(joined.names(outside))}; "
            "frames count from 0 in the clip's file"
        )
    if counts.max() > _MAX_CLIP_FRAMES:
        raise ContentError(f"a clip has {int(counts.max())} frame vectors; at most {_MAX_CLIP_FRAMES} can be stored")
    return joined


def _reasons(
    source: IngestSource, manifest: Manifest, place_in_set: Rows, frame_keys: RowKeys | None
) -> dict[str, tuple[str, str]]:
    failed = {composed(clip_id): detail for clip_id, detail in source.failed.items()}
    with_frames = set() if frame_keys is None else set(frame_keys.names)
    reasons: dict[str, tuple[str, str]] = {}
    for clip_id, at in zip(manifest.clip_ids, place_in_set, strict=True):
        if at >= 0:
            continue
        name = composed(clip_id)
        if name in failed:
            reasons[clip_id] = (SOURCE_ERROR, failed[name])
        else:
            only_frames = "the ingested file has frame vectors of this clip and no clip vector"
            detail = only_frames if name in with_frames else "the ingested file has no row of this clip"
            reasons[clip_id] = (MISSING, detail)
    return reasons
