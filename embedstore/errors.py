"""Errors, grouped by what a caller does next. Each carries the exit code of the command-line contract.

::

    EmbedstoreError                      catch this for "anything embedstore refuses or fails at"
    +-- EnvironmentFailure        (1)    mend the machine, the disk, the file; the same call then works
    |   +-- StorageError                 also an OSError
    |   |   +-- UnconfirmedError         written and visible, but the disk did not confirm that it will last
    |   +-- MissingExtraError            also an ImportError: install the extra that it names
    |   +-- MediaError                   one clip cannot be decoded; `reason` is the word kept in failures
    |   +-- NothingDecodedError          no clip of a build could be decoded
    |   +-- TooLittleMemoryError         also a MemoryError: a model does not fit; `needed` says how much it takes
    +-- UnknownNameError          (2)    also a LookupError: the name, option or store is not there
    |   +-- StoreNotFoundError           also a FileNotFoundError
    |   +-- AmbiguousNameError           several things match; the message lists them
    +-- ContentError              (4)    also a ValueError: what was read breaks a rule
    |   +-- ManifestError                ids, splits, labels
    |   +-- LeakageError                 a patient or a clip in two splits
    |   +-- MissingVectorsError          clips of the manifest without vectors
    |   +-- VectorError                  non-finite or out-of-range vectors
    |   +-- CorruptionError              bytes are not those that were written
    |   +-- FormatError                  written by a newer version, or not ours
    |   +-- HostileInputError            input that tries to leave its folder or exhaust the machine
    |   +-- PolicyError                  licence or privacy
    +-- BusyError                 (5)    another live build of this set on this host

A message is one sentence: what, where, what was got, what to do. Keys and paths found on the way up are added
with ``add_note``, never by wrapping.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_PARTIAL = 3
EXIT_INTERRUPTED = 130


class EmbedstoreError(Exception):
    """Root of the tree; ``exit_code`` is the process exit code, ``kind`` the word in ``--json`` errors."""

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "error"

    def __str__(self) -> str:  # KeyError's repr-style str would put quotes round the sentence
        return str(self.args[0]) if self.args else self.kind


class EnvironmentFailure(EmbedstoreError):
    """The machine, the disk or a file failed."""

    kind = "environment"


class StorageError(EnvironmentFailure, OSError):
    """A path could not be read or written."""

    kind = "storage"


class UnconfirmedError(StorageError):
    """A file has its name and can be read, but its folder could not be fsynced: a power cut may still lose it."""

    kind = "unconfirmed"


class MissingExtraError(EnvironmentFailure, ImportError):
    """A package of an optional extra is not installed."""

    kind = "missing-extra"


class MediaError(EnvironmentFailure):
    """One clip cannot be decoded.

    Parameters
    ----------
    message : str
        One sentence.
    reason : str
        The short word that stands in a set's failures table, e.g. ``"corrupt"``, ``"no-pixels"``.
    """

    kind = "media"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_media_error, (str(self), self.reason)


def _rebuild_media_error(message: str, reason: str) -> MediaError:
    return MediaError(message, reason=reason)


class NothingDecodedError(EnvironmentFailure):
    """Not one clip of a build could be decoded."""

    kind = "nothing-decoded"


class TooLittleMemoryError(EnvironmentFailure, MemoryError):
    """A device does not hold a model, or a batch beside it.

    Parameters
    ----------
    message : str
        One sentence, with what is needed and what is free.
    needed : int
        Bytes that the model takes.
    """

    kind = "memory"

    def __init__(self, message: str, *, needed: int = 0) -> None:
        super().__init__(message)
        self.needed = needed


class UnknownNameError(EmbedstoreError, LookupError):
    """A name given by the user is not known."""

    exit_code = 2
    kind = "unknown"


class StoreNotFoundError(UnknownNameError, FileNotFoundError):
    """There is no store at this path."""

    kind = "no-store"


class AmbiguousNameError(UnknownNameError):
    """Several things match a request."""

    kind = "ambiguous"


class ContentError(EmbedstoreError, ValueError):
    """Content breaks a rule."""

    exit_code = 4
    kind = "content"


class ManifestError(ContentError):
    """A manifest breaks a rule; the message names rows."""

    kind = "manifest"


class LeakageError(ContentError):
    """A patient or identical content stands in two splits."""

    kind = "leakage"


class MissingVectorsError(ContentError):
    """Clips that a task needs have no vectors in the store."""

    kind = "missing-vectors"


class VectorError(ContentError):
    """Vectors are not finite, or do not fit the stored dtype."""

    kind = "vectors"


class CorruptionError(ContentError):
    """Bytes on disk are not those that were written."""

    kind = "corruption"


class FormatError(ContentError):
    """A file is not in a format that this version reads."""

    kind = "format"


class HostileInputError(ContentError):
    """Input tries to leave its folder, run code or exhaust the machine."""

    kind = "hostile"


class PolicyError(ContentError):
    """A licence or privacy rule refuses."""

    kind = "policy"


class BusyError(EmbedstoreError):
    """Another live build of this set runs on this host."""

    exit_code = 5
    kind = "busy"


_MOST_NAMED = 40  # of known names in a message: a data set has thousands of clips


def did_you_mean(name: str, known: list[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, else a list of known names.

    Examples
    --------
    >>> did_you_mean("panehco", ["panecho", "echoprime"])
    "; did you mean 'panecho'?"
    """
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    more = f", ... ({len(known)} in all)" if len(known) > _MOST_NAMED else ""
    return f"; known: {', '.join(sorted(known)[:_MOST_NAMED]) or 'none'}{more}"
