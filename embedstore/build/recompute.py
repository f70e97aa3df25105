"""Recompute: embed some clips of a set again and compare with what is stored.

Digests show that bytes are those that were written; only this shows that they are the vectors of these clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.build.decode import DecodedClip, DecodeJob, DecodeRequest, Prepared, decode_clip
from embedstore.build.encode import UnitEncoder
from embedstore.build.planned import PlannedClip
from embedstore.build.weights import find_weights
from embedstore.embedding_set import EmbeddingSet
from embedstore.encoder import Encoder, EncoderCard, LoadRequest, get_card, load_encoder
from embedstore.errors import EnvironmentFailure, UnknownNameError
from embedstore.identity import derive_seed
from embedstore.manifest import Manifest
from embedstore.media.pool import WorkerPool
from embedstore.store import Store

__all__ = ["MAX_SHARE", "RecomputeOutcome", "recompute_set"]

# A recomputed vector may lie away from the stored one by this share of the distance between two clips. Machines,
# batch shapes and float16 storage move a vector by far less; another clip's vector is a whole such distance away. A
# cosine alone does not tell, since the clips of one data set often have cosines above 0.999.
MAX_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class RecomputeOutcome:
    """What came of one set.

    Attributes
    ----------
    n_clips : int
        Clips that were embedded again.
    max_delta, min_cosine : float or None
        Largest absolute difference and smallest cosine between stored and recomputed clip vectors.
    differing : tuple of int
        Rows of ``clips`` that lie farther off than `MAX_SHARE` of the distance between clips.
    skipped : str
        Why nothing was recomputed, empty otherwise.
    """

    dataset: str
    encoder: str
    set_id: str
    n_clips: int = 0
    max_delta: float | None = None
    min_cosine: float | None = None
    differing: tuple[int, ...] = ()
    skipped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "dataset": self.dataset,
            "encoder": self.encoder,
            "set": self.set_id,
            "clips": self.n_clips,
            "max_delta": self.max_delta,
            "min_cosine": self.min_cosine,
            "differing_rows": list(self.differing),
            "skipped": self.skipped,
        }


def _load(opened: EmbeddingSet, device: str) -> tuple[EncoderCard, Encoder] | str:
    try:
        card = get_card(opened.spec.name)
        weights = find_weights(card)
        card = card.fitted(variant=opened.spec.variant, weights=weights.path)
    except (UnknownNameError, EnvironmentFailure) as error:
        return str(error)
    if weights.sha256 != opened.spec.weights_sha256:
        return "the weights on this machine are not those that the set was made with"
    return card, load_encoder(card, LoadRequest(spec=opened.spec, weights=weights.path, device=device))


def recompute_set(
    store: Store,
    opened: EmbeddingSet,
    *,
    n_clips: int,
    device: str = "auto",
    n_workers: int = 1,
    by_id: bool = False,
) -> RecomputeOutcome:
    """Embed ``n_clips`` clips of a set again, drawn from the set's id, and compare.

    Parameters
    ----------
    device : str
    n_workers : int
        Decode processes; 0 decodes in this process.
    by_id : bool
        Take a clip for the manifest's by its id alone. A set from another lab needs it: its digests of the media are
        keyed, so that they fit no file here.

    Returns
    -------
    RecomputeOutcome
        With ``skipped`` where media or weights are not at hand.
    """
    names: dict[str, Any] = {"dataset": opened.dataset, "encoder": opened.spec.title, "set_id": opened.set_id}
    if opened.spec.unknown or opened.spec.sampling is None:
        return RecomputeOutcome(**names, skipped="the vectors were brought from elsewhere")
    root = store.roots().get(opened.dataset)
    if root is None or opened.dataset not in {entry.name for entry in store.manifests()}:
        return RecomputeOutcome(**names, skipped="no media root or manifest of the data set is known here")
    loaded = _load(opened, device)
    if isinstance(loaded, str):
        return RecomputeOutcome(**names, skipped=loaded)
    card, encoder = loaded
    manifest = store.manifest(opened.dataset)
    rows = _draw(opened, manifest, n_clips, by_id=by_id)
    batch_size = opened.provenance.get("batch_size") or card.batch_size["cpu"]
    found = _embed(manifest, root, opened, encoder, rows, batch_size=int(batch_size), n_workers=n_workers)
    if not found:
        return RecomputeOutcome(**names, skipped="none of the media that were drawn can be read here")
    stored = opened.clips[sorted(found)].astype(np.float64)
    again = np.stack([found[row] for row in sorted(found)]).astype(np.float64)
    norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(again, axis=1)
    cosine = (stored * again).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    off = np.linalg.norm(stored - again, axis=1)
    differing = [row for row, value in zip(sorted(found), off, strict=True) if value > MAX_SHARE * _spread(again)]
    return RecomputeOutcome(
        **names,
        n_clips=len(found),
        max_delta=float(np.abs(stored - again).max()),
        min_cosine=float(cosine.min()),
        differing=tuple(differing),
    )


def _spread(rows: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Return the median distance between two different rows; a hundredth of their length where all are equal."""
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)[np.triu_indices(len(rows), k=1)]
    distances = distances[distances > 0]
    return float(np.median(distances)) if distances.size else 0.01 * float(np.linalg.norm(rows, axis=1).mean())


def _draw(opened: EmbeddingSet, manifest: Manifest, n_clips: int, *, by_id: bool) -> list[int]:
    """Draw rows whose clip the manifest still has, with the same content unless ``by_id``."""
    content = dict(zip(manifest.clip_ids, manifest.column("sha256"), strict=True))
    index = opened.index.select(["clip_id", "content_sha256"]).to_pylist()
    usable = [
        row
        for row, entry in enumerate(index)
        if entry["clip_id"] in content and (by_id or content[entry["clip_id"]] in (entry["content_sha256"], None))
    ]
    rng = np.random.default_rng(derive_seed("recompute", opened.set_id))
    return sorted(rng.permutation(usable)[:n_clips].tolist())


def _embed(
    manifest: Manifest,
    root: Path,
    opened: EmbeddingSet,
    encoder: Encoder,
    rows: Sequence[int],
    *,
    batch_size: int,
    n_workers: int,
) -> dict[int, np.ndarray[Any, np.dtype[np.float32]]]:
    spec = opened.spec
    assert spec.sampling is not None
    request = DecodeRequest(sampling=spec.sampling, preprocess=encoder.preprocess, unit=spec.unit)
    position = {clip_id: at for at, clip_id in enumerate(manifest.clip_ids)}
    columns = manifest.table.select(["clip_id", "sha256", "path", "n_frames", "fps"]).to_pylist()
    ids = opened.index.column("clip_id").to_pylist()
    jobs = []
    for row in rows:
        entry = columns[position[ids[row]]]
        roles: dict[str, list[int]] = {}
        for role, frame in manifest.key_frames_of.get(ids[row], ()):
            roles.setdefault(role, []).append(frame)
        jobs.append(
            DecodeJob(
                path=root / (entry["path"] or ""),
                sha256=entry["sha256"],
                n_frames=entry["n_frames"],
                fps=entry["fps"],
                key_frames=roles,
                requests=(request,),
            )
        )
    unit = UnitEncoder(encoder, batch_size=batch_size, with_frames=False)
    unit.begin(0)
    taken = []
    with WorkerPool(decode_clip, n_workers=n_workers, timeout_s=300.0) as pool:
        for row, outcome in zip(rows, pool.imap(jobs, max_in_flight=4), strict=True):
            if isinstance(outcome, DecodedClip) and isinstance(outcome.prepared[0], Prepared):
                clip = PlannedClip(clip_id=ids[row], content_sha256=None, vector_key=None, action="encode")
                unit.add(clip, outcome, outcome.prepared[0])
                taken.append(row)
    return {row: vectors.clip for row, vectors in zip(taken, unit.finish().vectors, strict=True)}
