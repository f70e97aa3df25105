"""`JoinedClips`: vectors of several encoders for the clips that all of them have, joined by id; no label is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.manifest import Manifest
from embedstore.where import Where
from evaltools.cohort import Cohort, NotRunnableError, patients_of
from evaltools.features import VectorSource, locate, pool_vectors
from evaltools.metrics import Floats
from evaltools.task import label_task

__all__ = ["JoinedClips", "all_clips", "join_clips"]


@dataclass(frozen=True)
class JoinedClips:
    """Clips in the order of their ids, with one matrix of vectors an encoder.

    Attributes
    ----------
    manifest : Manifest
    clip_ids, patients, splits : (n,) object
    vectors : list of (n, D) float64
    n_dropped : int
        Clips of the manifest, of those selected, that some encoder lacks.
    """

    manifest: Manifest
    clip_ids: npt.NDArray[Any]
    patients: npt.NDArray[Any]
    splits: npt.NDArray[Any]
    vectors: list[Floats]
    n_dropped: int

    def __len__(self) -> int:
        return len(self.clip_ids)

    def in_split(self, *names: str) -> npt.NDArray[np.bool_]:
        """Return which clips stand in one of the named splits, (n,)."""
        return np.isin(self.splits.astype(str), names)


def all_clips(manifest: Manifest, *, where: Where | None = None) -> Cohort:
    """Return a manifest's clips in the order of their ids, labelled or not, in a split or not."""
    selected = np.ones(len(manifest), dtype=np.bool_) if where is None else where.mask(manifest.table)
    clip_ids = np.array(manifest.clip_ids, dtype=object)
    rows = np.flatnonzero(selected)
    rows = rows[np.argsort(clip_ids[rows].astype(str), kind="stable")]
    return Cohort(
        manifest=manifest,
        task=label_task("clip_id", kind="classification"),
        rows=rows,
        clip_ids=clip_ids[rows],
        patients=np.array(patients_of(manifest), dtype=object)[rows],
        splits=np.array(manifest.column("split"), dtype=object)[rows],
        labels=clip_ids[rows],
        n_unlabelled=0,
        n_without_split=0,
        leakage="not looked at",
    )


def join_clips(
    sources: Sequence[VectorSource], manifest: Manifest, *, pool: str, where: Where | None = None
) -> JoinedClips:
    """Read the vectors of the clips that all sets have.

    Raises
    ------
    NotRunnableError
        They have no clip in common.
    """
    cohort = all_clips(manifest, where=where)
    located = [locate(source, cohort, pool=pool) for source in sources]
    common = np.logical_and.reduce([one.present for one in located])
    if not common.any():
        raise NotRunnableError(
            f"no clip of {manifest.name!r} has vectors of {', '.join(source.spec.title for source in sources)}; "
            "build them, or widen --where"
        )
    kept = cohort.take(common)
    vectors = [
        pool_vectors(source, one.rows[common], pool=pool) for source, one in zip(sources, located, strict=True)
    ]
    return JoinedClips(manifest, kept.clip_ids, kept.patients, kept.splits, vectors, int((~common).sum()))
