"""`Features`: vectors joined with the clips of a cohort by clip id, and pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from embedstore.errors import MissingVectorsError, UnknownNameError, VectorError, did_you_mean
from evaltools.clip_frames import Features, FramePool
from evaltools.cohort import Cohort
from evaltools.metrics import Floats
from evaltools.temporal import TemporalPool, frame_times, refuse_low_rate

if TYPE_CHECKING:
    import pyarrow as pa

    from embedstore import EncoderSpec

__all__ = [
    "POOLS",
    "Located",
    "VectorRows",
    "VectorSource",
    "locate",
    "pool_by_blocks",
    "pool_vectors",
    "require_pool",
]

_NAMED = 5
_BLOCK_BYTES = 128 << 20

Rows = npt.NDArray[np.intp]
Vectors = npt.NDArray[np.float32]


class VectorRows(Protocol):
    """Rows of vectors, such as an `embedstore.VectorArray` or a numpy array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any) -> npt.NDArray[Any]: ...


class VectorSource(Protocol):
    """What is read of an `embedstore.EmbeddingSet`; tests hand in arrays."""

    @property
    def dataset(self) -> str: ...

    @property
    def set_id(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def spec(self) -> EncoderSpec: ...

    @property
    def clips(self) -> VectorRows: ...

    @property
    def index(self) -> pa.Table: ...

    @property
    def failures(self) -> pa.Table: ...

    @property
    def frame_index(self) -> pa.Table: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    def array(self, kind: str) -> VectorRows | None: ...


def _pool_mean(frames: Vectors, starts: Rows, counts: Rows) -> Floats:
    return np.add.reduceat(frames, starts, axis=0, dtype=np.float64) / counts[:, None]


def _pool_meanstd(frames: Vectors, starts: Rows, counts: Rows) -> Floats:
    mean = _pool_mean(frames, starts, counts)
    away = frames - np.repeat(mean, counts, axis=0)
    deviation = np.sqrt(np.add.reduceat(away * away, starts, axis=0) / counts[:, None])
    return np.concatenate([mean, deviation], axis=1)


def _pool_max(frames: Vectors, starts: Rows, counts: Rows) -> Floats:
    return np.maximum.reduceat(frames, starts, axis=0).astype(np.float64)


_FRAME_POOLS: Mapping[str, Callable[[Vectors, Rows, Rows], Floats]] = {
    "mean": _pool_mean,
    "meanstd": _pool_meanstd,
    "max": _pool_max,
}
_TEMPORAL = "temporal"
_FRAMES = "frames"  # unpooled; no choice of the user's, since one protocol alone reads them
_OF_FRAMES = frozenset({*_FRAME_POOLS, _TEMPORAL, _FRAMES})
POOLS: Mapping[str, str] = {
    "clip": "the stored clip vector",
    "mean": "mean of the frame vectors",
    "meanstd": "mean and standard deviation of the frame vectors, side by side",
    "max": "largest value of each dimension over the frame vectors",
    "temporal": "mean, deviation, extremes and slow cosine terms of the frame vectors over time in seconds",
}


def require_pool(name: str) -> str:
    """Return the name of a pooling.

    Raises
    ------
    UnknownNameError
        There is none of that name.
    """
    if name not in POOLS:
        raise UnknownNameError(f"unknown pooling {name!r}{did_you_mean(name, list(POOLS))}")
    return name


@dataclass(frozen=True)
class Located:
    """Where the vectors of a cohort's clips stand.

    Attributes
    ----------
    rows : (n,) int
        Row of the set's index for each clip of the cohort, -1 where there is no usable vector.
    reasons : mapping of str to int
        Why vectors are missing, with counts.
    """

    rows: Rows
    reasons: Mapping[str, int]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which clips have vectors, (n,)."""
        return self.rows >= 0


def locate(source: VectorSource, cohort: Cohort, *, pool: str) -> Located:
    """Find the vectors of each clip of a cohort.

    A vector that was made of other content than the manifest's clip counts as missing, and so does, for a pooling
    of frames, a clip without frame vectors. Content is not compared where another lab sent the set: its digests are
    keyed and fit no digest of this lab's manifest.

    Raises
    ------
    MissingVectorsError
        Frames are to be pooled and the set holds none.
    """
    if pool in _OF_FRAMES and source.array("frames") is None:
        what, otherwise = f"pool by {pool!r}", "--pool clip"
        if pool in (_TEMPORAL, _FRAMES):
            what, otherwise = ("attend to" if pool == _FRAMES else what), "a protocol of clip vectors"
        raise MissingVectorsError(
            f"the set of {source.spec.title} on {source.dataset} holds no frame vectors to {what}; "
            f"build it with frames, or use {otherwise}"
        )
    index = source.index
    row_of = {clip_id: row for row, clip_id in enumerate(index.column("clip_id").to_pylist())}
    content = index.column("content_sha256").to_pylist()
    if source.provenance.get("content_digests") in ("keyed", "join-key"):
        content = [None] * len(content)
    n_frames = index.column("n_frame_rows").to_pylist() if pool in _OF_FRAMES else None
    failed = dict(zip(*(source.failures.column(name).to_pylist() for name in ("clip_id", "reason")), strict=True))
    rows = np.full(len(cohort), -1, dtype=np.intp)
    reasons: dict[str, int] = {}
    for position, (clip_id, sha256) in enumerate(zip(cohort.clip_ids, cohort.column("sha256"), strict=True)):
        row = row_of.get(clip_id)
        if row is None:
            reason = f"failed: {failed[clip_id]}" if clip_id in failed else "not built"
        elif None not in (sha256, content[row]) and sha256 != content[row]:
            reason = "built from other content"
        elif n_frames is not None and not n_frames[row]:
            reason = "no frame vectors"
        else:
            rows[position] = row
            continue
        reasons[reason] = reasons.get(reason, 0) + 1
    return Located(rows, reasons)


def refuse_missing(source: VectorSource, cohort: Cohort, located: Located) -> None:
    """Raise where clips of the cohort have no vectors.

    Raises
    ------
    MissingVectorsError
        How many, why, which, and what to do.
    """
    missing = [str(clip_id) for clip_id in cohort.clip_ids[~located.present]]
    if missing:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(located.reasons.items()))
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise MissingVectorsError(
            f"{len(missing)} of {len(cohort)} labelled clips of {cohort.dataset!r} have no vectors of "
            f"{source.spec.title} ({why}: {named}); build them, or give --allow-missing to score the rest"
        )


def pool_vectors(
    source: VectorSource, rows: Rows, *, pool: str, settings: Mapping[str, Any] | None = None
) -> Features:
    """Read and pool the vectors of clips.

    Parameters
    ----------
    rows : (n,) int
        Rows of the set's index, all with vectors.
    pool : str
        A name of `POOLS`, or ``frames``.
    settings : mapping, optional
        Of the pooling; only `evaltools.temporal.TemporalPool` and `evaltools.clip_frames.FramePool` have some.

    Returns
    -------
    (n, D) float64 array, or `evaltools.clip_frames.ClipFrames` for ``frames``

    Raises
    ------
    VectorError
        A vector is not finite; the message names clips.
    """
    pooled: Features
    if pool == _TEMPORAL:
        temporal, times = TemporalPool(**(settings or {})), frame_times(source)
        refuse_low_rate(source, *_frame_rows(source, rows), min_hz=temporal.min_hz)
        pooled = pool_by_blocks(source, rows, lambda frames, at, *clips: temporal(frames, times[at], *clips))
    elif pool in _FRAME_POOLS:
        pool_frames = _FRAME_POOLS[pool]
        pooled = pool_by_blocks(source, rows, lambda frames, _, *clips: pool_frames(frames, *clips))
    elif pool == _FRAMES:
        pooled = FramePool(**(settings or {})).read(
            source.array("frames"), *_frame_rows(source, rows), dtype=source.spec.dtype
        )
    else:
        pooled = np.asarray(source.clips[rows], dtype=np.float64)
    finite = pooled.finite() if pool == _FRAMES else np.isfinite(pooled).all(axis=1)
    if not finite.all():
        clip_ids = source.index.column("clip_id").take(rows[~finite][:_NAMED]).to_pylist()
        raise VectorError(
            f"{int((~finite).sum())} vectors of {source.spec.title} on {source.dataset} are not finite "
            f"({', '.join(clip_ids)}); run embedstore verify and build them again"
        )
    return pooled


def _frame_rows(source: VectorSource, rows: Rows, *, kind: str = "frames") -> tuple[Rows, Rows]:
    """Return the first frame (or window) row and the number of such rows of clips, each (n,)."""
    one = kind.removesuffix("s")
    names = (f"{one}_row", f"n_{one}_rows")
    first, counts = (np.asarray(source.index.column(name).to_numpy())[rows] for name in names)
    return first.astype(np.intp), counts.astype(np.intp)


def pool_by_blocks(
    source: VectorSource,
    rows: Rows,
    pool_block: Callable[[Vectors, Rows, Rows, Rows], Floats],
    *,
    kind: str = "frames",
) -> Floats:
    """Pool the frames, or windows, of clips, block by block, so that memory stays bounded.

    Parameters
    ----------
    rows : (n,) int
        Rows of the set's index, all with frame vectors.
    pool_block : callable
        Gets frames (F, D), their rows (F,), and the start and count of each clip (m,); returns (m, D').
    kind : {"frames", "windows"}

    Returns
    -------
    (n, D') float64 array

    Raises
    ------
    MissingVectorsError
        The set holds no frames.
    """
    frames = source.array(kind)
    if frames is None:
        raise MissingVectorsError(f"the set of {source.spec.title} on {source.dataset} holds no {kind}")
    first, counts = _frame_rows(source, rows, kind=kind)
    dims = frames.shape[1]
    most = max(int(_BLOCK_BYTES // (4 * dims)), 1)
    blocks, start = [], 0
    while start < len(rows):
        reached = np.cumsum(counts[start:])
        stop = start + max(int(np.searchsorted(reached, most, side="right")), 1)
        starts = np.concatenate([[0], np.cumsum(counts[start:stop])[:-1]])
        within = np.arange(counts[start:stop].sum()) - np.repeat(starts, counts[start:stop])
        at = np.repeat(first[start:stop], counts[start:stop]) + within
        blocks.append(pool_block(frames[at], at, starts, counts[start:stop]))
        start = stop
    return np.concatenate(blocks)
