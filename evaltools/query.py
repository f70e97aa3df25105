"""Ask a store for the clips nearest to one of its clips, or to vectors in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedstore import Store
from embedstore.disk import storage_errors
from embedstore.errors import AmbiguousNameError, ContentError, UnknownNameError, VectorError, did_you_mean
from embedstore.where import parse_where
from evaltools.closeness import ClipPoints, Space
from evaltools.features import require_pool
from evaltools.joined import JoinedClips, join_clips
from evaltools.metrics import Floats
from evaltools.neighbours import nearest, share_found
from evaltools.selection import sets_of

__all__ = ["Neighbour", "Search", "find_neighbours", "read_query_file"]

_MOST_ROWS = 10_000
_LABEL_ROLES = ("label", "subgroup")


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A clip that is near to a query.

    Attributes
    ----------
    query : str
        Clip id, or file name with the row where there are several.
    clip_id : str
    score, distance : float
        See `evaltools.neighbours.Neighbours` and `evaltools.closeness.Space`.
    rank : int
        From 1.
    dataset, encoder : str
    labels, query_labels : mapping
        View, labels and subgroups of the clip, and of the query where it is a clip.
    index : str
    index_recall : float or None
        Share of the exact neighbours of all queries that an approximate index found.
    """

    query: str
    clip_id: str
    score: float
    distance: float
    rank: int
    dataset: str
    encoder: str
    labels: Mapping[str, Any]
    query_labels: Mapping[str, Any]
    index: str
    index_recall: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the contract's JSON form."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "query_labels"}
        return {**fields, "labels": dict(self.labels)}


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to look for neighbours.

    Attributes
    ----------
    k : int
        How many a query.
    space : Space
        Metric and normalisation.
    index : str
        ``exact``, or an approximate index of `evaltools.search_index`.
    pool : str
        How the vectors of a clip become one.
    where : str or None
        Which clips may be found.
    """

    k: int = 10
    space: Space = field(default_factory=Space)
    index: str = "exact"
    pool: str = "clip"
    where: str | None = None


def read_query_file(path: str | Path) -> Floats:
    """Read one vector or several from a ``.npy`` file; nothing is unpickled.

    Returns
    -------
    (m, D) float64

    Raises
    ------
    FormatError, HostileInputError
        The header does not fit the file, or it holds Python objects.
    ContentError
        It holds no vectors, too many, or other values than floats.
    """
    from embedstore.ingest.numpy_files import read_npy_header

    path = Path(path)
    with storage_errors(path, "read"), path.open("rb") as handle:
        header = read_npy_header(handle, n_bytes=path.stat().st_size, what=str(path))
        fits = header.dtype.kind == "f" and len(header.shape) in (1, 2) and 0 not in header.shape
        if not fits or len(header.shape) == 2 and header.shape[0] > _MOST_ROWS:
            raise ContentError(
                f"{path} holds {header.dtype} of shape {header.shape}; give one vector (D,), or up to {_MOST_ROWS} "
                "vectors (m, D), of floats"
            )
        handle.seek(0)
        vectors = np.load(handle, allow_pickle=False)
    queries: Floats = np.atleast_2d(vectors).astype(np.float64)
    if not np.isfinite(queries).all():
        raise VectorError(f"{path} holds values that are not finite; mend it")
    return queries


def find_neighbours(
    store: Store,
    query: str | Path,
    *,
    datasets: Sequence[str | Path] = (),
    encoders: Sequence[str] = (),
    search: Search | None = None,
) -> list[Neighbour]:
    """Return the clips of other patients that are nearest to a query.

    Parameters
    ----------
    query : str or Path
        Id of a clip of the data set, or a ``.npy`` file of vectors from the encoder.
    datasets, encoders : sequence of str
        Where to look; without, in every set of the store that has the clip. A file needs one encoder.
    search : Search
        How to look.

    Raises
    ------
    UnknownNameError
        There is neither such a clip nor such a file, or a name is not known.
    ContentError
        The file cannot be compared, or k is larger than the set.
    """
    chosen, query, path = search or Search(), str(query), Path(query)
    is_file = path.suffix == ".npy" and path.is_file()
    names = list(dict.fromkeys(datasets)) or [entry.name for entry in store.manifests()]
    found: list[Neighbour] = []
    known: list[str] = []
    vectors = read_query_file(path) if is_file else None
    for manifest in (store.manifest(name) for name in names):
        if not datasets and not any(entry.dataset == manifest.name for entry in store.entries()):
            continue
        known += manifest.clip_ids
        if not is_file and query not in manifest.clip_ids:
            continue
        sources = sets_of(store, manifest.name, titles=encoders)
        if vectors is not None and len(sources) > 1:
            titles = ", ".join(source.spec.title for source in sources)
            raise AmbiguousNameError(f"vectors in a file are of one encoder; say with --encoder which of {titles}")
        for source in sources:
            joined = join_clips([source], manifest, pool=require_pool(chosen.pool))
            asked = _of_file(path, vectors) if vectors is not None else _of_clip(query, joined, source.spec.title)
            if asked.vectors.shape[1] != joined.vectors[0].shape[1]:
                raise VectorError(
                    f"{path} holds vectors of {asked.vectors.shape[1]} dimensions, and those of {source.spec.title} "
                    f"have {joined.vectors[0].shape[1]}; use vectors of the same encoder"
                )
            kept = np.isin(joined.clip_ids.astype(str), _selected(joined, chosen.where))
            gallery = ClipPoints(joined.vectors[0], joined.clip_ids, joined.patients).take(kept)
            found += _found(asked, gallery, joined, source.spec.title, chosen)
    if not found:
        raise UnknownNameError(f"there is no file and no clip {query!r}{did_you_mean(query, known[:100_000])}")
    return found


def _selected(joined: JoinedClips, where: str | None) -> list[str]:
    if where is None:
        return list(joined.manifest.clip_ids)
    mask = parse_where(where).mask(joined.manifest.table)
    return [clip_id for clip_id, kept in zip(joined.manifest.clip_ids, mask, strict=True) if kept]


def _of_file(path: Path, vectors: Floats) -> ClipPoints:
    names = [path.name] if len(vectors) == 1 else [f"{path.name}[{row}]" for row in range(len(vectors))]
    return ClipPoints(vectors, np.array(names, dtype=object), np.full(len(vectors), "", dtype=object))


def _of_clip(query: str, joined: JoinedClips, title: str) -> ClipPoints:
    at = np.flatnonzero(joined.clip_ids == query)
    if not len(at):
        raise UnknownNameError(f"clip {query!r} of {joined.manifest.name!r} has no vectors of {title}; build them")
    return ClipPoints(joined.vectors[0], joined.clip_ids, joined.patients).take(at)


def _found(
    asked: ClipPoints, gallery: ClipPoints, joined: JoinedClips, title: str, search: Search
) -> list[Neighbour]:
    k, space = search.k, search.space
    nearby = nearest(asked, gallery, k=k, space=space, index=search.index)
    recall = None if search.index == "exact" else share_found(nearby, nearest(asked, gallery, k=k, space=space))
    distances = space.distances(nearby.scores)
    labels = _labels(joined)
    return [
        Neighbour(
            query=str(asked.clip_ids[query]),
            clip_id=str(gallery.clip_ids[row]),
            score=float(nearby.scores[query, place]),
            distance=float(distances[query, place]),
            rank=place + 1,
            dataset=joined.manifest.name,
            encoder=title,
            labels=labels[str(gallery.clip_ids[row])],
            query_labels=labels.get(str(asked.clip_ids[query]), {}),
            index=search.index,
            index_recall=recall,
        )
        for query in range(len(asked))
        for place, row in enumerate(nearby.rows[query])
        if row >= 0
    ]


def _labels(joined: JoinedClips) -> dict[str, dict[str, Any]]:
    manifest = joined.manifest
    names = ["view", *(name for name, field in manifest.fields.items() if field.role in _LABEL_ROLES)]
    columns = {name: manifest.column(name) for name in dict.fromkeys(names)}
    return {
        clip_id: {name: values[row] for name, values in columns.items()}
        for row, clip_id in enumerate(manifest.clip_ids)
    }
