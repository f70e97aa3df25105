"""Published weights on the Hugging Face hub: which files, where the local cache has them, and how to fetch them.

Looking into the cache needs neither network nor torch nor huggingface_hub. A download happens only in `fetch`, for an
encoder that the user names: cached and resumed by huggingface_hub, and checked here against the SHA-256 under which
the hub stores each large file. ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_HUB_CACHE`` and ``HF_TOKEN`` are respected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.errors import (
    CorruptionError,
    EnvironmentFailure,
    MissingExtraError,
    PolicyError,
    StorageError,
    UnknownNameError,
    did_you_mean,
)

if TYPE_CHECKING:
    from embedstore.encoder import EncoderCard

__all__ = [
    "HF_WEIGHTS",
    "OPEN_CLIP_WEIGHTS",
    "SOURCES",
    "HubSource",
    "cache_folder",
    "fetch",
    "locate",
    "stated_sha256",
]

OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HF_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_SITE = "https://huggingface.co"
_TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its switches
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Files of one model on the hub.

    Attributes
    ----------
    repository : str
        ``owner/name``.
    weights : tuple of str
        Names under which the weights may lie; the first that is there is taken.
    settings : tuple of str
        Small files without which the weights cannot be read.
    text : tuple of str
        Files of the tokenizer, taken where they are there.
    gated : bool
        Whether the owner asks for a login and consent.
    """

    repository: str
    weights: tuple[str, ...]
    settings: tuple[str, ...]
    text: tuple[str, ...] = ()
    gated: bool = False

    @property
    def url(self) -> str:
        """The page of the model."""
        return f"{_SITE}/{self.repository}"


_open_clip = partial(HubSource, weights=OPEN_CLIP_WEIGHTS, settings=("open_clip_config.json",))
_transformers = partial(HubSource, weights=HF_WEIGHTS, settings=("config.json",))
_siglip = partial(_transformers, text=(*_TOKENIZER, "spiece.model"))

SOURCES: Mapping[str, HubSource] = {
    "echo-clip": _open_clip(repository="mkaichristensen/echo-clip", gated=True),
    "echo-clip-r": _open_clip(repository="mkaichristensen/echo-clip-r", gated=True),
    "biomedclip": _open_clip(
        repository="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", text=(*_TOKENIZER, "vocab.txt")
    ),
    "clip": _open_clip(repository="timm/vit_base_patch32_clip_224.openai"),
    "clip-vit-b-16": _open_clip(repository="timm/vit_base_patch16_clip_224.openai"),
    "clip-vit-l-14": _open_clip(repository="timm/vit_large_patch14_clip_224.openai"),
    "siglip2": _siglip(repository="google/siglip2-base-patch16-224"),
    "siglip2-so400m": _siglip(repository="google/siglip2-so400m-patch14-384"),
    "medsiglip": _siglip(repository="google/medsiglip-448", gated=True),
    "dinov2": _transformers(repository="facebook/dinov2-base"),
    "dinov2-small": _transformers(repository="facebook/dinov2-small"),
    "dinov2-large": _transformers(repository="facebook/dinov2-large"),
    "dinov3": _transformers(repository="facebook/dinov3-vitb16-pretrain-lvd1689m", gated=True),
    "dinov3-small": _transformers(repository="facebook/dinov3-vits16-pretrain-lvd1689m", gated=True),
    "dinov3-large": _transformers(repository="facebook/dinov3-vitl16-pretrain-lvd1689m", gated=True),
    "echofm": HubSource(repository="sekeun/EchoFM", weights=("echofm_vitl.pth",), settings=()),
    "vjepa2": _transformers(repository="facebook/vjepa2-vitl-fpc64-256"),
    "videomae": _transformers(repository="MCG-NJU/videomae-base"),
}


def cache_folder() -> Path:
    """Return the folder of the hub's local cache, from the environment as huggingface_hub reads it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "huggingface" / "hub"


def locate(name: str) -> Path | None:
    """Return the cached folder of a model's files, or None where weights or settings are not all there.

    Parameters
    ----------
    name : str
        A name in `SOURCES`.

    Raises
    ------
    UnknownNameError
        No model of that name is fetched from the hub.
    """
    source = _source(name)
    repository = cache_folder() / f"models--{source.repository.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    folder = repository / "snapshots" / commit
    complete = all((folder / file).is_file() for file in source.settings)
    return folder if complete and any((folder / file).is_file() for file in source.weights) else None


def _source(name: str) -> HubSource:
    if name not in SOURCES:
        raise UnknownNameError(f"encoder {name!r} is not on the hub{did_you_mean(name, list(SOURCES))}")
    return SOURCES[name]


locate_echo_clip = partial(locate, "echo-clip")
locate_echo_clip_r = partial(locate, "echo-clip-r")
locate_biomedclip = partial(locate, "biomedclip")
locate_clip = partial(locate, "clip")
locate_clip_vit_b_16 = partial(locate, "clip-vit-b-16")
locate_clip_vit_l_14 = partial(locate, "clip-vit-l-14")
locate_siglip2 = partial(locate, "siglip2")
locate_siglip2_so400m = partial(locate, "siglip2-so400m")
locate_medsiglip = partial(locate, "medsiglip")
locate_dinov2 = partial(locate, "dinov2")
locate_dinov2_small = partial(locate, "dinov2-small")
locate_dinov2_large = partial(locate, "dinov2-large")
locate_dinov3 = partial(locate, "dinov3")
locate_dinov3_small = partial(locate, "dinov3-small")
locate_dinov3_large = partial(locate, "dinov3-large")
locate_echofm = partial(locate, "echofm")
locate_vjepa2 = partial(locate, "vjepa2")
locate_videomae = partial(locate, "videomae")


def locate_nothing() -> None:
    """Return None: the weights lie nowhere that a program could look, and are given with ``--weights``."""


def fetch(card: EncoderCard) -> Path:
    """Download the published files of an encoder, or those that the cache lacks, and return their folder.

    Parameters
    ----------
    card : EncoderCard
        Its name is looked up in `SOURCES`.

    Returns
    -------
    Path
        A snapshot folder in the hub's cache.

    Raises
    ------
    EnvironmentFailure
        The hub is not reached, or must not be (``HF_HUB_OFFLINE``), and the cache lacks a file.
    PolicyError
        The model is gated and this machine has no token that may read it.
    CorruptionError
        A file is not the one that the hub names.
    MissingExtraError
        huggingface_hub is not installed.
    """
    source = _source(card.name)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        cached = locate(card.name)
        if cached is None:
            raise EnvironmentFailure(f"HF_HUB_OFFLINE is set and {_lacking(card.name, source)}")
        return cached
    download = _Download(card.name, source)
    files = [download.first_of(source.weights), *(download.first_of((file,)) for file in source.settings)]
    download.where_there(source.text)
    for file in files:
        _check_blob(file)
    return files[0].parent


def _lacking(name: str, source: HubSource) -> str:
    weights = " or ".join(source.weights)
    others = "".join(f", {file}" for file in (*source.settings, *source.text))
    return (
        f"the cache {cache_folder()} lacks the files of {name!r}: {weights}{others}; fetch them from {source.url} on "
        f"another machine and give their folder with --weights {name}=FOLDER"
    )


class _Download:
    """Files of one repository, all from the commit of the first."""

    def __init__(self, name: str, source: HubSource) -> None:
        self._name, self._source = name, source
        self._commit: str | None = None
        try:
            import huggingface_hub
            from huggingface_hub import errors
        except ImportError as error:
            raise MissingExtraError(
                "fetching weights needs the package huggingface_hub, which is not installed; "
                "install the extra with: pip install 'embedstore[build]'"
            ) from error
        self._fetch_file: Any = huggingface_hub.hf_hub_download
        self._errors: Any = errors

    def first_of(self, files: tuple[str, ...]) -> Path:
        """Fetch the first file that the repository has."""
        for file in files:
            found = self._one(file)
            if found is not None:
                return found
        raise EnvironmentFailure(
            f"{self._source.url} has none of {', '.join(files)} any more; get the weights of {self._name!r} "
            f"elsewhere and give them with --weights {self._name}=FOLDER"
        )

    def where_there(self, files: tuple[str, ...]) -> None:
        """Fetch those files that the repository has."""
        for file in files:
            self._one(file)

    def _one(self, file: str) -> Path | None:
        source, errors = self._source, self._errors
        try:
            path = Path(self._fetch_file(source.repository, file, revision=self._commit))
        except errors.RemoteEntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise PolicyError(
                f"{self._name!r} is gated: accept its terms at {source.url}, then log in with: hf auth login (or set "
                f"HF_TOKEN), or give its files with --weights {self._name}=FOLDER"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise PolicyError(
                f"{source.url} is not there for this machine: it is gone, or private, or asks for a login with: hf "
                f"auth login (or HF_TOKEN); or give its files with --weights {self._name}=FOLDER"
            ) from error
        except (OSError, errors.HfHubHTTPError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = lines[0].partition(". ")[0].rstrip(".")[:200]
            raise EnvironmentFailure(
                f"the hub is not reached ({reason}) and {_lacking(self._name, source)}"
            ) from error
        if self._commit is None and path.parent.parent.name == "snapshots":
            self._commit = path.parent.name
        return path


def stated_sha256(path: Path) -> str | None:
    """Return the digest by which the hub's cache names a large file, None for any other file."""
    name = path.resolve().name
    return name if path.is_symlink() and _SHA256.fullmatch(name) else None


def _check_blob(path: Path) -> None:
    """Compare a cached file with its digest: the cache names each large file by the SHA-256 that the hub states."""
    from encoders.checkpoint import sha256_of_file

    stated = stated_sha256(path)
    if stated is not None:
        found = sha256_of_file(path)
        if found != stated:
            try:
                path.resolve().unlink()
            except OSError as error:
                raise StorageError(f"damaged file {path} cannot be removed: {error.strerror or error}") from error
            raise CorruptionError(
                f"downloaded file {path} has SHA-256 {found}, the hub states {stated}; it was removed: fetch it again"
            )
