"""A survey of files: which are below a folder, and of each its size, its digest and what it says about itself.

Each file is read once: what is hashed is what is probed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embedstore.disk import storage_errors
from embedstore.errors import StorageError, UnknownNameError
from embedstore.files import hash_file
from embedstore.identity import sha256_hex
from embedstore.media.clip import DEFAULT_LIMITS, MediaProbe
from embedstore.media.pool import WorkerPool
from embedstore.media.readers import probe_media
from embedstore.media.sniff import sniff_container, stem_without_media_suffix
from embedstore.media.worker import JobFailure

__all__ = ["FileFacts", "FolderListing", "list_files", "survey_files"]

# Enough of a file to tell what it is: the sniffer looks at no more, a gzipped NIfTI header included.
_HEAD_BYTES = 1 << 17
_TIMEOUT_S = 120.0
_IN_FLIGHT_PER_WORKER = 4
# Small files travel together: handing one to a worker costs several times what looking at it does.
_TOGETHER = 32
_TOGETHER_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What one file is.

    Attributes
    ----------
    path : Path
        As it was given.
    size : int
        Bytes; 0 where the file could not be looked at.
    sha256 : str or None
        Digest of the content; None where it could not be read, and for a file that is no media by content nor by
        name, of which only the beginning was read.
    probe : MediaProbe or None
        None where the file could not be read, or where reading it took a worker down.
    problem : str or None
        One sentence where the file is no clip that can be decoded.
    """

    path: Path
    size: int = 0
    sha256: str | None = None
    probe: MediaProbe | None = None
    problem: str | None = None


@dataclass
class FolderListing:
    """Files below a folder, in the order of their paths, and what was left out.

    Attributes
    ----------
    paths : list of Path
        Regular files, below the folder.
    outside : list of str
        Links that lead outside the folder, to another folder, or nowhere.
    unreadable : list of str
        Folders that cannot be listed.
    badly_named : list of str
        Files whose names are no UTF-8, or have control characters, escaped.
    """

    paths: list[Path] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    badly_named: list[str] = field(default_factory=list)


def list_files(root: Path) -> FolderListing:
    """List the files below a folder; hidden ones, and folders that are links, are left out.

    Raises
    ------
    UnknownNameError
        There is no such folder.
    StorageError
        It cannot be read.
    """
    if not root.exists():
        raise UnknownNameError(f"--root: there is no folder {root}")
    if not root.is_dir():
        raise UnknownNameError(f"--root: {root} is a file, not a folder; give the folder that it lies in")
    with storage_errors(root, "read"):
        os.scandir(root).close()
    listing = FolderListing()
    real_root = root.resolve()

    def note(error: OSError) -> None:
        listing.unreadable.append(_shown(Path(error.filename).relative_to(root)))

    for folder, subfolders, names in os.walk(root, onerror=note):
        here = Path(folder)
        linked = [name for name in subfolders if (here / name).is_symlink()]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in linked)
        for name in sorted(names + linked):
            if not name.startswith("."):
                _list_one(here / name, root, real_root, listing)
    for names in (listing.outside, listing.unreadable, listing.badly_named):
        names.sort()
    listing.paths.sort(key=Path.as_posix)
    return listing


def _list_one(path: Path, root: Path, real_root: Path, listing: FolderListing) -> None:
    below = path.relative_to(root)
    if not below.as_posix().isprintable():  # surrogates stand for bytes that are no UTF-8
        listing.badly_named.append(_shown(below))
        return
    try:
        if path.is_symlink() and not (path.resolve(strict=True).is_relative_to(real_root) and path.is_file()):
            listing.outside.append(_shown(below))
        elif stat.S_ISREG(path.stat().st_mode):  # opening a pipe or a device could wait for ever
            listing.paths.append(below)
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        listing.outside.append(_shown(below))


def _shown(path: Path) -> str:
    text = path.as_posix()
    return text if text.isprintable() else ascii(text)[1:-1]


def survey_files(
    paths: Sequence[Path], *, n_workers: int, progress: Callable[[int, int], None] | None = None
) -> list[FileFacts]:
    """Hash and probe files in worker processes; a file that takes a worker down is a fact like any other.

    Parameters
    ----------
    paths : sequence of Path
    n_workers : int
        Processes; 0 reads the files in this one, without a time limit.
    progress : callable or None
        Told (files done, files in all) after each file.

    Returns
    -------
    list of FileFacts
        In the order of ``paths``.

    Raises
    ------
    MissingExtraError
        A decoder is not installed.
    EnvironmentFailure
        Worker processes do not start.

    Examples
    --------
    >>> survey_files([], n_workers=0)
    []
    """
    facts: list[FileFacts] = []
    if not paths:
        return facts
    n_workers = min(n_workers, len(paths))
    batches = _batches(paths, n_workers=n_workers)
    with WorkerPool(_survey_batch, n_workers=min(n_workers, len(batches)), timeout_s=_TIMEOUT_S) as pool:
        in_flight = max(1, n_workers * _IN_FLIGHT_PER_WORKER)
        outcomes = pool.imap(batches, max_in_flight=in_flight)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, JobFailure):
                # Which of them it was shows when each is alone.
                alone = (
                    [outcome] if len(batch) == 1 else pool.imap([(path,) for path in batch], max_in_flight=in_flight)
                )
                for path, single in zip(batch, alone, strict=True):
                    facts += [_failed(path, single)] if isinstance(single, JobFailure) else single
            else:
                facts += outcome
            if progress is not None:
                for done in range(len(facts) - len(batch) + 1, len(facts) + 1):
                    progress(done, len(paths))
    return facts


def _batches(paths: Sequence[Path], *, n_workers: int) -> list[tuple[Path, ...]]:
    """Return neighbours together while they are small, so few that every worker has some."""
    most = max(1, min(_TOGETHER, len(paths) // max(1, n_workers * _IN_FLIGHT_PER_WORKER)))
    batches: list[list[Path]] = []
    room = 0
    for path in paths:
        try:
            size = path.stat().st_size
        except OSError:  # told by who opens it
            size = 0
        if not batches or size > room or len(batches[-1]) == most:
            batches.append([])
            room = _TOGETHER_BYTES
        batches[-1].append(path)
        room -= size
    return [tuple(batch) for batch in batches]


def _survey_batch(paths: Sequence[Path]) -> list[FileFacts]:
    return [_survey_file(path) for path in paths]


def _survey_file(path: Path) -> FileFacts:
    try:
        with storage_errors(path, "read"), path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            head = handle.read(_HEAD_BYTES)
            is_named_so = stem_without_media_suffix(path.name) != path.name
            if sniff_container(head) is None and not is_named_so:
                probe = probe_media(head)
                return FileFacts(path=path, size=size, probe=probe, problem=probe.problem)
            if size > DEFAULT_LIMITS.max_file_bytes:
                return _too_large(path)
            payload = head + handle.read()
    except StorageError as error:
        return FileFacts(path=path, problem=str(error))
    digest = sha256_hex(payload)
    probe = probe_media(payload)
    return FileFacts(path=path, size=len(payload), sha256=digest, probe=probe, problem=probe.problem)


def _too_large(path: Path) -> FileFacts:
    record = hash_file(path)
    problem = f"the file has {record.size:,} bytes, the limit is {DEFAULT_LIMITS.max_file_bytes:,}"
    return FileFacts(path=path, size=record.size, sha256=record.sha256, problem=problem)


def _failed(path: Path, failure: JobFailure) -> FileFacts:
    """Hash a file whose probe failed: its content has an identity even where nobody can read it."""
    if failure.reason == "timeout":  # another read of it could take as long
        return FileFacts(path=path, problem=failure.message)
    try:
        record = hash_file(path)
    except StorageError as error:
        return FileFacts(path=path, problem=str(error))
    return FileFacts(path=path, size=record.size, sha256=record.sha256, problem=failure.message)
