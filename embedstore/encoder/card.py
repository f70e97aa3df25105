"""`EncoderCard`: what there is to know about an encoder without loading it. Its loader is a lazy string."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedstore.encoder.lazy_string import resolve_string
from embedstore.errors import StorageError, UnknownNameError, did_you_mean
from embedstore.spec import EncoderSpec, FrameSampling
from embedstore.weights_cache import cached_path

__all__ = ["EncoderCard", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One way of feeding an encoder: its frames, and what differs in its preprocessing."""

    sampling: FrameSampling
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """What there is to know about an encoder without loading it.

    Parameters
    ----------
    name : str
        Registry name.
    summary : str
        One sentence.
    unit : {"frame", "clip"}
        What the model sees.
    clip_dim : int
        Dimension of a clip vector.
    frame_dim : int or None
        Dimension of a frame vector.
    loader : str
        ``module:callable``, an `EncoderLoader`; imported only when vectors are computed.
    preprocessing : mapping
        Named steps with their numbers; part of every spec.
    input_size : tuple of int
        What one input of the model is, e.g. ``(3, 224, 224)``.
    variants : mapping of str to Variant
        ``published`` is the default and must be there.
    weights_locator : str or None
        ``module:function`` that returns the path of installed weights or None, importing no torch. None here and
        as ``weights_url``: the encoder has no weights.
    weights_fetcher : str or None
        ``module:function`` of (card) that downloads the published weights and returns their path; called only for
        an encoder that the user names.
    text_loader : str or None
        ``module:callable`` that loads the text tower, None where there is none.
    text_files : tuple of str
        Names of the files beside the weights that decide how a prompt is cut, where they are there.
    heads_loader : str or None
        ``module:callable`` of a `LoadRequest` that returns a sequence of `TaskHead`, None where none are published.
    precisions : tuple of str
        Compute precisions that make sense; another one falls back to float32.
    weights_url : str or None
        Where one file is downloaded from, for weights that are not on the hub; it is cached and hashed.
    weights_member : str
        Path of the weights inside, where that file is a zip archive.
    weights_sha256, weights_bytes : known digest and size of the published file (or archive member), where known.
    licence, licence_forbids, paper, weights_source, text_tower : str
        Facts for people.
    pretraining_data : tuple of str
        Data sets that the published model was trained on; results on them are marked.
    batch_size : mapping of str to int
        Default batch size by device type.
    """

    name: str
    summary: str
    unit: str
    clip_dim: int
    loader: str
    preprocessing: Mapping[str, Any]
    input_size: tuple[int, ...]
    variants: Mapping[str, Variant]
    frame_dim: int | None = None
    preprocessing_revision: int = 1
    pooling: str = "mean-l2"
    weights_locator: str | None = None
    weights_url: str | None = None
    weights_member: str = ""
    weights_sha256: str | None = None
    weights_bytes: int | None = None
    n_parameters: int | None = None
    licence: str = "unknown"
    licence_forbids: str = ""
    paper: str = ""
    weights_source: str = ""
    text_tower: str = "none"
    text_loader: str | None = None
    text_files: tuple[str, ...] = ()
    heads_loader: str | None = None
    weights_fetcher: str | None = None
    precisions: tuple[str, ...] = ("float32", "bf16")
    pretraining_data: tuple[str, ...] = ()
    batch_size: Mapping[str, int] = field(default_factory=lambda: {"cpu": 8, "cuda": 256})

    def __post_init__(self) -> None:
        if "/" in self.name or "\\" in self.name or "@" in self.name:
            raise ValueError(f"encoder name {self.name!r} looks like a path or a title")
        if "published" not in self.variants:
            raise ValueError(f"card {self.name!r} has no variant 'published'")

    @property
    def takes_weights(self) -> bool:
        """Whether the encoder has weights at all."""
        return self.weights_locator is not None or self.weights_url is not None

    def locate_weights(self) -> Path | None:
        """Return the installed or downloaded checkpoint, or None where there is none or none is needed."""
        if self.weights_locator is not None:
            located = resolve_string(self.weights_locator)()
            if located is not None:
                return Path(located)
        if self.weights_url is not None:
            cached = cached_path(self.name, self.weights_url, member=self.weights_member)
            return cached if cached.is_file() else None
        return None

    def fitted(self, *, variant: str = "published", weights: Path | None = None) -> EncoderCard:
        """Return the card for a variant and a checkpoint: a family may take dimensions or sizes from the file."""
        return self

    def deciding_files(self, weights: Path) -> tuple[Path, ...]:
        """Return the files of a weights folder, or the one file, whose bytes decide a vector; all of them here."""
        if not weights.is_dir():
            return (weights,)
        return tuple(sorted(file for file in weights.rglob("*") if file.is_file()))

    def inspect_weights(self, weights: Path) -> None:
        """See that weights are whole, as far as can be seen without torch; nothing more than sizes here.

        Raises
        ------
        StorageError
            A file is empty or cannot be read.
        """
        for file in self.deciding_files(weights):
            try:
                n_bytes = file.stat().st_size
            except OSError as error:
                raise StorageError(f"checkpoint {file} cannot be read: {error.strerror or error}") from error
            if n_bytes == 0:
                raise StorageError(f"checkpoint {file} is empty; fetch it again")

    def published_sha256(self, weights: Path) -> str | None:
        """Return the digest that these weights should have, None where none is known."""
        return None if weights.is_dir() else self.weights_sha256

    def spec(
        self,
        *,
        variant: str = "published",
        weights_sha256: str | None = None,
        sampling: FrameSampling | None = None,
        precision: str = "float32",
        dtype: str = "float16",
    ) -> EncoderSpec:
        """Return the spec of one variant; ``sampling`` makes a custom one named after its rule.

        Raises
        ------
        UnknownNameError
            The card declares no such variant.
        """
        if variant not in self.variants:
            raise UnknownNameError(
                f"encoder {self.name!r} has no variant {variant!r}{did_you_mean(variant, list(self.variants))}"
            )
        chosen = self.variants[variant]
        rule, title = chosen.sampling, variant
        if sampling is not None and sampling.rule != chosen.sampling.rule:
            rule = FrameSampling(sampling.rule, n_windows=chosen.sampling.n_windows, padding=chosen.sampling.padding)
            custom = re.sub(r":(?=[a-z])", "-", sampling.rule).replace(":", "")  # uniform8, keyframe-ed
            title = custom if variant == "published" else f"{variant}+{custom}"
        return EncoderSpec(
            name=self.name,
            variant=title,
            unit=self.unit,
            weights_sha256=weights_sha256,
            preprocessing={**self.preprocessing, **chosen.preprocessing},
            preprocessing_revision=self.preprocessing_revision,
            sampling=rule,
            pooling=self.pooling,
            precision=precision if precision in self.precisions else "float32",
            dtype=dtype,
            clip_dim=self.clip_dim,
            frame_dim=self.frame_dim,
        )
