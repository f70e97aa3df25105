"""The plan of a build: what happens to each clip, in which unit, at which batch size.

A plan is made from the manifest, the spec and the set that the store already has, without torch. Once written it
is fixed: a resume follows it. Its key covers what it is made from, so the same command finds it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedstore.build.planned import PlannedClip, PlannedClips, UnitClips
from embedstore.disk import storage_errors
from embedstore.embedding_set import EmbeddingSet
from embedstore.errors import CorruptionError, MediaError
from embedstore.files import create_file, hash_file
from embedstore.identity import canonical_json
from embedstore.json_files import read_json
from embedstore.layout import FORMAT_VERSION
from embedstore.manifest import Manifest
from embedstore.spec import EncoderSpec
from embedstore.store import Store
from embedstore.tables import table_bytes

__all__ = ["BuildPlan", "make_plan", "UNIT_CLIPS"]

UNIT_CLIPS = 256
# A plan is read from front to back beside everything else: a reader holds a page, and a dictionary, of each column.
_PAGE_BYTES = 64 << 10
_REPEATED = ["action", "source_set", "reason"]
# A clip that failed for one of these reasons may succeed next time; the others follow from its content.
PASSING_REASONS = frozenset(
    {"missing", "unreadable", "source-changed", "timeout", "decoder-died", "decoder-error", "out-of-memory"}
)


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """A plan for one data set and one spec.

    Attributes
    ----------
    key : str
        Digest of what the plan is made from; the name of the build's folder.
    dataset : str
    spec : EncoderSpec
    with_frames : bool
        Whether frame vectors are stored.
    parent : str or None
        Set that the new one grows from.
    clips : PlannedClips
        Kept rows first, in the parent's order, then the others in the manifest's.
    n_expected : int
        Clips of the manifest that the request selects.
    replaces : str or None
        The head's set of this data set and spec when the plan was made: the parent, or one that cannot grow.
    n_dropped : int
        Rows of the parent that the new set does not take over.
    batch_size : int or None
        Fixed when the plan is written.
    """

    key: str
    dataset: str
    spec: EncoderSpec
    with_frames: bool
    parent: str | None
    clips: PlannedClips
    n_expected: int
    replaces: str | None = None
    n_dropped: int = 0
    batch_size: int | None = None

    @property
    def is_done(self) -> bool:
        """Whether the parent set is already what is asked for."""
        if self.parent is None or self.n_dropped:
            return False
        return all(clip.action == "keep" or clip.source_set == "parent" for clip in self.clips)

    @property
    def units(self) -> UnitClips:
        """Clips to encode by unit, in order."""
        return self.clips.units

    def write(self, folder: Path) -> bool:
        """Write the plan into the build's folder; False where one is already there."""
        with storage_errors(folder, "write"):
            (folder / "units").mkdir(parents=True, exist_ok=True)
            (folder / "receipts").mkdir(exist_ok=True)
        table = table_bytes(self.clips.table, data_page_size=_PAGE_BYTES, use_dictionary=_REPEATED)
        header = {
            "format": FORMAT_VERSION,
            "kind": "build-plan",
            "key": self.key,
            "dataset": self.dataset,
            "spec": self.spec.to_dict(),
            "with_frames": self.with_frames,
            "parent": self.parent,
            "n_expected": self.n_expected,
            "replaces": self.replaces,
            "n_dropped": self.n_dropped,
            "batch_size": self.batch_size,
            "clips_sha256": hashlib.sha256(table).hexdigest(),
        }
        # The table's name holds its digest: two workers that write it at once write the same or two files.
        create_file(folder / f"plan-{header['clips_sha256']}.parquet", table)
        pa.default_memory_pool().release_unused()  # a build goes on from the file
        return create_file(folder / "plan.json", canonical_json(header))

    @classmethod
    def read(cls, folder: Path) -> BuildPlan | None:
        """Read the plan of a build's folder, None where there is none.

        Raises
        ------
        StorageError
            A file cannot be read.
        CorruptionError
            It is not what was written.
        """
        if not (folder / "plan.json").exists():
            return None
        header = read_json(folder / "plan.json")
        path = folder / f"plan-{header['clips_sha256']}.parquet"
        if hash_file(path).sha256 != header["clips_sha256"]:
            raise CorruptionError(f"{path} is no readable plan; remove the folder {folder}")
        return cls(
            key=header["key"],
            dataset=header["dataset"],
            spec=EncoderSpec.from_dict(header["spec"]),
            with_frames=header["with_frames"],
            parent=header["parent"],
            clips=PlannedClips(path),
            n_expected=header["n_expected"],
            replaces=header["replaces"],
            n_dropped=header["n_dropped"],
            batch_size=header["batch_size"],
        )


@dataclass(frozen=True)
class _Known:
    """What sets already hold: rows by vector key."""

    parent_rows: Mapping[tuple[str, str], int]
    parent_failures: Mapping[tuple[str, str], tuple[str, str]]
    elsewhere: Mapping[str, tuple[str, int]]


def _rows_by_key(opened: EmbeddingSet) -> dict[tuple[str, str], int]:
    index = opened.index
    keys = zip(index.column("clip_id").to_pylist(), index.column("vector_key").to_pylist(), strict=True)
    return {pair: row for row, pair in enumerate(keys)}


def _known_vectors(store: Store, parent: EmbeddingSet | None, spec: EncoderSpec, *, with_frames: bool) -> _Known:
    elsewhere: dict[str, tuple[str, int]] = {}
    for entry in store.entries():
        if entry.fingerprint != spec.fingerprint or (parent is not None and entry.set_id == parent.set_id):
            continue
        opened = store.open_set(entry.set_id)
        if with_frames and "frames" not in opened.described["arrays"]:
            continue
        for (_, key), row in _rows_by_key(opened).items():
            elsewhere.setdefault(key, (entry.set_id, row))
    if parent is None:
        return _Known({}, {}, elsewhere)
    failures = {
        (row["clip_id"], row["vector_key"]): (row["reason"], row["detail"]) for row in parent.failures.to_pylist()
    }
    return _Known(_rows_by_key(parent), failures, elsewhere)


def _content_digest(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    with storage_errors(path, "read"), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _planned_key(row: Mapping[str, Any], key_frames: Mapping[str, Sequence[int]], spec: EncoderSpec) -> str:
    """Return the vector key that the manifest's facts lead to; raise where sampling is refused beforehand."""
    content = row["sha256"] or "unknown"
    if spec.sampling is None or row["n_frames"] is None:
        return spec.vector_key(content_sha256=content, resolved_digest="unresolved")
    resolved = spec.sampling.resolve(n_frames=row["n_frames"], fps=row["fps"], key_frames=key_frames)
    return spec.vector_key(content_sha256=content, resolved_digest=resolved.digest)


def make_plan(
    store: Store,
    manifest: Manifest,
    spec: EncoderSpec,
    *,
    selected: Sequence[bool] | None = None,
    root: Path | None = None,
    with_frames: bool = True,
) -> BuildPlan:
    """Decide what happens to each clip of a manifest.

    Parameters
    ----------
    selected : sequence of bool, optional
        Rows that the request asks for; the others keep what the store has.
    root : Path or None
        Where the media lie, to see whether a file that was missing is there now.

    Returns
    -------
    BuildPlan
        Without a batch size.
    """
    chosen = [True] * len(manifest) if selected is None else list(selected)
    parents = [
        entry for entry in store.entries() if (entry.dataset, entry.fingerprint) == (manifest.name, spec.fingerprint)
    ]
    parent = store.open_set(parents[0].set_id) if parents else None
    if parent is not None and "frames" in parent.described["arrays"]:
        with_frames = True
    elif with_frames:
        parent = None  # a set without frames cannot grow into one with frames
    known = _known_vectors(store, parent, spec, with_frames=with_frames)
    planned = _planned(manifest, spec, known, chosen=chosen, root=root)
    clips = PlannedClips.of(planned).kept_first()
    parent_id = None if parent is None else parent.set_id
    n_dropped = 0 if parent is None else len(parent) - clips.counts["keep"] + _dropped_failures(parent, clips)
    return BuildPlan(
        key=_plan_key(manifest.name, spec, parent_id, clips, with_frames),
        dataset=manifest.name,
        spec=spec,
        with_frames=with_frames,
        parent=parent_id,
        clips=clips,
        n_expected=sum(chosen),
        replaces=parents[0].set_id if parents else None,
        n_dropped=n_dropped,
    )


def _planned(
    manifest: Manifest, spec: EncoderSpec, known: _Known, *, chosen: Sequence[bool], root: Path | None
) -> Iterator[PlannedClip]:
    """Yield what happens to each clip that the new set has a row or a failure of, in the manifest's order."""
    first_with_key: dict[str, str] = {}
    for position, row in enumerate(_rows(manifest.table.select(["clip_id", "sha256", "path", "n_frames", "fps"]))):
        clip_id, is_chosen = row["clip_id"], chosen[position]
        path = None if root is None or row["path"] is None else root / row["path"]
        if row["sha256"] is None:
            row["sha256"] = _content_digest(path)
        roles: dict[str, list[int]] = {}
        for role, frame in manifest.key_frames_of.get(clip_id, ()):
            roles.setdefault(role, []).append(frame)
        try:
            key = _planned_key(row, roles, spec)
        except MediaError as error:
            if is_chosen:
                key = spec.vector_key(content_sha256=row["sha256"] or "unknown", resolved_digest="refused")
                carried = known.parent_failures.get((clip_id, key)) == (error.reason, str(error))
                yield PlannedClip(
                    clip_id=clip_id,
                    content_sha256=row["sha256"],
                    vector_key=key,
                    action="fail",
                    reason=error.reason,
                    detail=str(error),
                    source_set="parent" if carried else None,
                )
            continue
        if (clip_id, key) in known.parent_rows:
            at = known.parent_rows[(clip_id, key)]
            yield PlannedClip(
                clip_id=clip_id, content_sha256=row["sha256"], vector_key=key, action="keep", source_row=at
            )
            continue
        planned = _plan_absent(clip_id, row["sha256"], key, known, is_chosen=is_chosen, path=path)
        if planned is None:
            continue
        if planned.action == "encode":
            earlier = first_with_key.setdefault(key, clip_id)
            if earlier != clip_id and row["sha256"] is not None:
                planned = replace(planned, action="twin", detail=earlier)
            else:
                planned = replace(planned, unit=position // UNIT_CLIPS)
        yield planned


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=UNIT_CLIPS):
        yield from batch.to_pylist()


def _plan_absent(
    clip_id: str, content: str | None, key: str, known: _Known, *, is_chosen: bool, path: Path | None
) -> PlannedClip | None:
    """Plan a clip that the parent has no vector of; None where it is not asked for and was never tried."""
    failed = known.parent_failures.get((clip_id, key))
    may_pass_now = failed is not None and failed[0] in PASSING_REASONS and path is not None and path.exists()
    if failed is not None and not (may_pass_now and is_chosen):
        return PlannedClip(
            clip_id=clip_id,
            content_sha256=content,
            vector_key=key,
            action="fail",
            source_set="parent",
            reason=failed[0],
            detail=failed[1],
        )
    if not is_chosen:
        return None
    if key in known.elsewhere and content is not None:
        set_id, row = known.elsewhere[key]
        return PlannedClip(
            clip_id=clip_id,
            content_sha256=content,
            vector_key=key,
            action="copy",
            source_set=set_id,
            source_row=row,
        )
    return PlannedClip(clip_id=clip_id, content_sha256=content, vector_key=key, action="encode")


def _dropped_failures(parent: EmbeddingSet, clips: PlannedClips) -> int:
    carried = {clip.clip_id for clip in clips if clip.action == "fail" and clip.source_set == "parent"}
    failed = parent.failures.column("clip_id")
    return int(pc.sum(pc.invert(pc.is_in(failed, pa.array(sorted(carried), pa.string())))).as_py() or 0)


def _plan_key(dataset: str, spec: EncoderSpec, parent_id: str | None, clips: PlannedClips, with_frames: bool) -> str:
    """Return the digest of ``[dataset, fingerprint, parent, with_frames, wanted, settled]`` as canonical JSON."""
    # Reuse from elsewhere is left out: a copy that appears between two runs must not orphan the first one's units.
    wanted = ([clip.clip_id, clip.vector_key] for clip in clips if clip.action in ("encode", "twin", "copy"))
    settled = ([clip.clip_id, clip.reason] for clip in clips if clip.action == "fail")
    digest = hashlib.sha256(canonical_json([dataset, spec.fingerprint, parent_id, with_frames])[:-1])
    for pairs in (wanted, settled):
        digest.update(b",[")
        for number, pair in enumerate(pairs):
            digest.update(b"," * (number > 0) + canonical_json(pair))
        digest.update(b"]")
    digest.update(b"]")
    return digest.hexdigest()
