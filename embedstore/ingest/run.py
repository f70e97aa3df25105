"""`ingest_vectors`: from a file of vectors and a manifest to a committed set. Behind ``embedstore ingest``."""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from embedstore.disk import storage_errors
from embedstore.embedding_set import SetWriter
from embedstore.encoder import split_title
from embedstore.errors import AmbiguousNameError, ContentError, UnknownNameError
from embedstore.files import FileRecord, hash_file
from embedstore.given_paths import settle_paths
from embedstore.history import SetEntry, Snapshot
from embedstore.ingest.content import Content
from embedstore.ingest.join import Joined, join_source
from embedstore.ingest.source import SourceRows
from embedstore.ingest.sources import open_source
from embedstore.ingest.values import Matrix, spool_rows
from embedstore.layout import STAGING_PREFIX
from embedstore.manifest import Manifest
from embedstore.spec import EncoderSpec
from embedstore.store import Store

__all__ = ["IngestOutcome", "IngestProgress", "IngestRequest", "ingest_vectors"]

DEFAULT_VARIANT = "ingested"
INGESTED_KEY = "ingested_sha256"
POOLINGS = ("mean-l2", "mean")
_MAX_NAME_CHARACTERS = 100
# What an `EncoderSpec` says and a file of vectors does not, unless its format states it.
_SELDOM_KNOWN = ("pooling", "precision", "preprocessing", "sampling", "unit", "weights_sha256")


@dataclass(frozen=True, kw_only=True)
class IngestRequest:
    """What to ingest and how.

    Attributes
    ----------
    file : Path or str
        The vectors.
    manifest : str
        Name of a manifest of the store, or a manifest file.
    encoder : str
        ``NAME`` (variant ``ingested``) or ``NAME@VARIANT``.
    id_table : Path, str or None
        CSV with the ids of a ``.npy`` file in row order.
    dtype : {"float16", "float32"}
        Stored dtype.
    pooling : {"mean-l2", "mean"} or None
        How clip vectors are made where the file holds frames only; None for ``mean-l2``.
    replaces : bool
        Whether the set may take the place of another ingested one of the same name.
    """

    file: Path
    manifest: str
    encoder: str
    id_table: Path | None = None
    dtype: str = "float16"
    pooling: str | None = None
    replaces: bool = False

    def __post_init__(self) -> None:
        settle_paths(self, "file", "id_table")


@dataclass(frozen=True, kw_only=True)
class IngestProgress:
    """Callbacks of an ingest.

    Attributes
    ----------
    begin : callable
        Told (what is done, rows to do) before the rows are checked, and again before they are written.
    rows : callable
        Told how many more rows are done.
    """

    begin: Callable[[str, int], object] = lambda label, total: None
    rows: Callable[[int], object] = lambda count: None


@dataclass(frozen=True, kw_only=True)
class IngestOutcome:
    """What became of a file.

    Attributes
    ----------
    n_expected, n_ok : int
        Clips of the manifest, and those with vectors.
    rows_without_clip : tuple of str
        Ids of the file that are no clip of the manifest, ascending.
    clips_without_row : tuple of str
        Clips of the manifest without a vector in the file, in the manifest's order.
    notes : tuple of str
        Sentences for a person.
    """

    dataset: str
    encoder: str
    set_id: str
    n_expected: int
    n_ok: int
    n_frames: int
    dim: int
    frame_dim: int | None
    seconds: float
    reasons: Mapping[str, int] = field(default_factory=dict)
    rows_without_clip: tuple[str, ...] = ()
    clips_without_row: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n_failed(self) -> int:
        """Clips of the manifest without a vector."""
        return len(self.clips_without_row)

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of the command's JSON."""
        ingested = {
            "dataset": self.dataset,
            "encoder": self.encoder,
            "set": self.set_id,
            "clips_expected": self.n_expected,
            "clips_ok": self.n_ok,
            "clips_failed": self.n_failed,
            "clips_reused": 0,
            "frames": self.n_frames,
            "dim": self.dim,
            "frame_dim": self.frame_dim,
            "seconds": round(self.seconds, 3),
            "failure_reasons": dict(self.reasons),
        }
        return {
            "sets": [ingested],
            "rows_without_clip": list(self.rows_without_clip),
            "clips_without_row": list(self.clips_without_row),
            "n_rows_without_clip": len(self.rows_without_clip),
            "n_clips_without_row": len(self.clips_without_row),
            "notes": list(self.notes),
        }


def _title(encoder: str) -> tuple[str, str]:
    name, variant = split_title(encoder)
    variant = DEFAULT_VARIANT if variant is None else variant
    for part in (name, variant):
        odd = not part or len(part) > _MAX_NAME_CHARACTERS or not part.isprintable() or not part.isascii()
        if odd or any(character in part for character in "/\\@ \"'"):
            raise UnknownNameError(f"--encoder needs NAME or NAME@VARIANT in plain characters, got {encoder!r}")
    return name, variant


def _open_manifest(store: Store, text: str) -> tuple[Manifest, bool]:
    """Return a manifest, and whether the store has it already."""
    manifest = store.manifest(text)
    is_stored = text in {entry.name for entry in store.manifests()}
    if not is_stored:
        manifest.require_valid()
    return manifest, is_stored


@contextmanager
def _matrices(store: Store, dtype: str, on_rows: Callable[[int], object]) -> Iterator[Callable[[SourceRows], Matrix]]:
    """Give a function that makes rows readable in any order; the files it may need lie in the store until the end."""
    folder = store.layout.sets / f"{STAGING_PREFIX}{uuid.uuid4().hex}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def opened(rows: SourceRows) -> Matrix:
            plain = rows.plain
            if plain is None:
                with storage_errors(folder, "write"):
                    folder.mkdir(exist_ok=True)
                plain = spool_rows(rows, folder / f"rows-{uuid.uuid4().hex}")
            return stack.enter_context(Matrix(rows, plain, dtype=dtype, on_rows=on_rows))

        yield opened


@contextmanager
def _unchanged(path: Path) -> Iterator[Callable[[], None]]:
    """Give a function that raises where a file has changed since; rows are read more than once."""

    def state() -> tuple[int, int, int]:
        with storage_errors(path, "read"):
            found = path.stat()
        return found.st_size, found.st_mtime_ns, found.st_ino

    before = state()

    def check() -> None:
        if state() != before:
            raise ContentError(f"{path} changed while it was read; run the same command again")

    yield check


def _spec(request: IngestRequest, joined: Joined, content: Content) -> EncoderSpec:
    name, variant = _title(request.encoder)
    known = dict(joined.known)
    if joined.is_pooled:
        known["pooling"] = request.pooling or POOLINGS[0]
    unit = "clip" if joined.frames is None else "frame"
    return EncoderSpec(
        name=name,
        variant=variant,
        unit=known.get("unit", unit),
        preprocessing={**known.get("preprocessing", {}), INGESTED_KEY: content.sha256},
        sampling=None,
        pooling=known.get("pooling", "unknown"),
        precision=known.get("precision", "float32"),
        dtype=request.dtype,
        clip_dim=content.dim,
        frame_dim=content.frame_dim,
        unknown=tuple(name for name in _SELDOM_KNOWN if name not in known),
    )


def _without_rivals(store: Store, head: Snapshot, entry: SetEntry, *, replaces: bool) -> Snapshot:
    """Return the snapshot without other sets of the same name; one name never means two sets of vectors.

    Raises
    ------
    AmbiguousNameError
        There is one, and it may not be replaced.
    """
    name = (entry.dataset, entry.encoder, entry.variant)
    rivals = [
        old
        for old in head.sets
        if (old.dataset, old.encoder, old.variant) == name and old.fingerprint != entry.fingerprint
    ]
    for rival in rivals:
        is_ingested = INGESTED_KEY in store.open_set(rival.set_id).spec.preprocessing
        if not (replaces and is_ingested):
            made = "ingested from other vectors" if is_ingested else "built"
            remedy = f"give another variant, e.g. --encoder {entry.encoder}@NAME"
            remedy += ", or --replace to put these in its place" if is_ingested else ""
            raise AmbiguousNameError(
                f"the store has another set of {entry.title} on {entry.dataset!r}, {made} "
                f"({rival.set_id[:12]}); {remedy}"
            )
    return replace(head, sets=tuple(old for old in head.sets if old not in rivals))


def _provenance(source_format: str, record: FileRecord | None, began: float) -> dict[str, Any]:
    ingested: dict[str, Any] = {"format": source_format}
    if record is not None:
        ingested |= {"size": record.size, "sha256": record.sha256}
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("embedstore", "numpy", "pyarrow")},
        },
        "host_class": f"{platform.system()}-{platform.machine()}-{os.cpu_count()}",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.perf_counter() - began, 3),
        "ingested": ingested,
    }


def ingest_vectors(store: Store, request: IngestRequest, *, progress: IngestProgress | None = None) -> IngestOutcome:
    """Join a file of vectors to a manifest by id, write them as a set in the manifest's order, and commit it.

    The identity of the set's encoder covers the SHA-256 of all vectors and ids of the file, in the order of the ids
    and as stored: the same vectors in another order or another format are the same set, other vectors under the
    same name never are.

    Parameters
    ----------
    store : Store
    request : IngestRequest
    progress : IngestProgress, optional

    Returns
    -------
    IngestOutcome

    Raises
    ------
    UnknownNameError
        The manifest, the encoder's name or an option is not right.
    AmbiguousNameError
        The store has other vectors of the same name on this data set.
    ContentError
        Ids are doubled, no id matches, or vectors cannot be stored; nothing is changed.
    StorageError
        The file cannot be read, or the store not written.
    """
    began = time.perf_counter()
    _title(request.encoder)
    if request.pooling not in (None, *POOLINGS):
        raise UnknownNameError(f"unknown pooling {request.pooling!r}; use {' or '.join(POOLINGS)}")
    told = progress or IngestProgress()
    manifest, is_stored = _open_manifest(store, request.manifest)
    with ExitStack() as stack:
        # From the first file in the store to the commit that lists it, so that gc takes neither for a leftover.
        stack.enter_context(store.publishing())
        check_unchanged = stack.enter_context(_unchanged(request.file))
        source = stack.enter_context(open_source(request.file, id_table=request.id_table))
        if source.clips is not None and request.pooling is not None:
            raise UnknownNameError(
                f"{request.file.name} holds clip vectors, so there is nothing to pool; drop --pooling"
            )
        try:
            joined = join_source(source, manifest)
        except ContentError as error:
            error.add_note(f"in {request.file}")
            raise
        opened = stack.enter_context(_matrices(store, request.dtype, told.rows))
        hashing = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        recording: Future[FileRecord] | None = None
        if request.file.is_file():
            recording = hashing.submit(hash_file, request.file)
        told.begin(f"checking {request.file.name}", joined.n_rows_to_check)
        try:
            content = Content.read(joined, opened, dtype=request.dtype)
        except ContentError as error:
            error.add_note(f"in {request.file}")
            raise
        spec = _spec(request, joined, content)
        planned = SetEntry(
            dataset=manifest.name,
            encoder=spec.name,
            variant=spec.variant,
            fingerprint=spec.fingerprint,
            set_id="",
        )
        _without_rivals(store, store.snapshot(), planned, replaces=request.replaces)
        with SetWriter(store.layout.sets, dataset=manifest.name, spec=spec) as writer:
            told.begin(f"writing {spec.title}", joined.n_rows_to_write)
            content.write(writer, pooling=spec.pooling)
            check_unchanged()
            record = None if recording is None else recording.result()
            tables = joined.tables(manifest, spec)
            if not is_stored:
                store.add_manifest(manifest)
            set_id = writer.finish(tables, provenance=_provenance(source.format, record, began))
        entry = store.entry_of(store.open_set(set_id))
        store.commit(
            lambda head: _without_rivals(store, head, entry, replaces=request.replaces).with_set(entry),
            reason=f"ingest {spec.title} on {manifest.name}",
        )
    return IngestOutcome(
        dataset=manifest.name,
        encoder=spec.title,
        set_id=set_id,
        n_expected=len(manifest),
        n_ok=joined.n_clips,
        n_frames=joined.n_frames,
        dim=content.dim,
        frame_dim=content.frame_dim,
        seconds=time.perf_counter() - began,
        reasons=Counter(row["reason"] for row in joined.failures(manifest)),
        rows_without_clip=joined.rows_without_clip,
        clips_without_row=joined.clips_without_row,
        notes=(*source.notes, *content.notes),
    )
