"""The `Encoder` protocol, the `EncoderCard` and the registry.

Imports no torch: a card's loader is a lazy string.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from embedstore.errors import EmbedstoreError, MissingExtraError, StorageError, UnknownNameError, did_you_mean
from embedstore.spec import EncoderSpec, FrameSampling
from embedstore.weights_cache import cached_path

__all__ = [
    "ACTIVATIONS",
    "Encoded",
    "Encoder",
    "EncoderCard",
    "LoadRequest",
    "Preprocess",
    "TaskHead",
    "Variant",
    "encoder_cards",
    "get_card",
    "load_encoder",
    "load_heads",
    "resolve_string",
    "split_title",
]

ENTRY_POINT_GROUP = "embedstore.encoders"


@runtime_checkable
class Preprocess(Protocol):
    """Turns decoded pixels into model inputs. Runs in the decode workers: picklable, numpy and cv2 only."""

    def __call__(self, frames: npt.NDArray[np.uint8], *, n_missing: int = 0) -> npt.NDArray[Any]:
        """Prepare one window.

        Parameters
        ----------
        frames : (T, H, W, 3) uint8
            RGB frames in the order of the window.
        n_missing : int
            Frames that the clip lacks at its end, for padding with zeros.

        Returns
        -------
        array
            ``(T, *input_shape)`` for a frame encoder, ``input_shape`` for a clip encoder.
        """


@dataclass(frozen=True)
class Encoded:
    """What one forward gives.

    Attributes
    ----------
    vectors : (B, D) float32
        One vector an input: a frame's for frame encoders, a window's for clip encoders.
    steps : (B, S, D') float32 or None
        Time-resolved vectors inside each window, for clip encoders that have them.
    """

    vectors: npt.NDArray[np.float32]
    steps: npt.NDArray[np.float32] | None = None


class Encoder(Protocol):
    """A loaded model. `encode` is called with one constant batch shape all through a build."""

    spec: EncoderSpec
    input_shape: tuple[int, ...]
    input_dtype: str
    preprocess: Preprocess

    def encode(self, batch: npt.NDArray[Any]) -> Encoded:
        """Encode ``(B, *input_shape)`` inputs of ``input_dtype``; a row depends on its own input only."""


@dataclass(frozen=True)
class Variant:
    """One way of feeding an encoder: its frames, and what differs in its preprocessing."""

    sampling: FrameSampling
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """What `load_encoder` hands to a loader.

    Attributes
    ----------
    spec : EncoderSpec
        The spec to fulfil; `spec.weights_sha256` is that of `weights`.
    weights : Path or None
        Checkpoint file or folder.
    device : str
        A torch device name; ``auto`` picks cuda, else cpu.
    trusted_sha256 : str or None
        Digest of a ``.pt`` file that the user trusts although it names code (``--trust-checkpoint``); hand it to
        `encoders.checkpoint.open_checkpoint`.
    """

    spec: EncoderSpec
    weights: Path | None
    device: str = "auto"
    trusted_sha256: str | None = None


#: What a published head does to its outputs; `one-minus-sigmoid` where the authors trained for the absence.
ACTIVATIONS = ("identity", "sigmoid", "one-minus-sigmoid", "softmax")


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """A task's head as its authors published it: one linear layer on the vectors of the encoder.

    Attributes
    ----------
    task : str
        The authors' own name of the task.
    weight : (n_out, D) float32
    bias : (n_out,) float32
    activation : {"identity", "sigmoid", "one-minus-sigmoid", "softmax"}
    unit : str or None
        Of a measured number, e.g. ``"pct"``, ``"cm"``.
    outputs : tuple of str
        What each output is: the class, or the task's name where there is one output only.

    Raises
    ------
    ValueError
        The shapes do not fit, a number is not finite, or the activation is none of these.
    """

    task: str
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    activation: str
    unit: str | None = None
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"head {self.task!r} has the activation {self.activation!r}, not one of {ACTIVATIONS}")
        n_out = len(self.outputs)
        if self.weight.ndim != 2 or self.weight.shape[0] != n_out or self.bias.shape != (n_out,):
            raise ValueError(
                f"head {self.task!r} has {n_out} outputs, weights {self.weight.shape} and bias {self.bias.shape}"
            )
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise ValueError(f"head {self.task!r} has a weight or bias that is not finite")


class EncoderLoader(Protocol):
    """What a card's ``loader`` string names."""

    def __call__(self, request: LoadRequest) -> Encoder:
        """Build the model, load the weights, return it ready for `Encoder.encode`."""


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
            custom = sampling.rule.replace(":", "")
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


def resolve_string(reference: str) -> Any:
    """Import ``module:name``; a missing third-party package becomes an error that names the extra.

    Raises
    ------
    MissingExtraError
        A package that the module needs is not installed.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        ours = {module_name.partition(".")[0], "embedstore", "encoders", "manifests"}
        if error.name is not None and error.name.partition(".")[0] in ours:
            raise
        raise MissingExtraError(
            f"{module_name} needs the package {error.name or error!s}, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        ) from error
    return getattr(module, attribute)


def _load_card(point: EntryPoint) -> EncoderCard:
    card = resolve_string(point.value)
    if not isinstance(card, EncoderCard) or card.name != point.name:
        raise EmbedstoreError(f"entry point {point.name!r} = {point.value!r} is no EncoderCard of that name")
    return card


def encoder_cards() -> dict[str, EncoderCard]:
    """Return all cards that installed packages register under ``embedstore.encoders``, by name, sorted.

    Raises
    ------
    EmbedstoreError
        An entry point names something else, or two name the same encoder.
    """
    cards: dict[str, EncoderCard] = {}
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value)):
        card = _load_card(point)
        if card.name in cards and cards[card.name] != card:
            raise EmbedstoreError(f"two installed packages register the encoder {card.name!r}")
        cards[card.name] = card
    return cards


def split_title(title: str) -> tuple[str, str | None]:
    """Split ``NAME[@VARIANT]``.

    Examples
    --------
    >>> split_title("panecho@uniform16")
    ('panecho', 'uniform16')
    >>> split_title("panecho")
    ('panecho', None)
    """
    name, separator, variant = title.partition("@")
    return name, variant if separator else None


def get_card(name: str) -> EncoderCard:
    """Return one card.

    Raises
    ------
    UnknownNameError
        No such encoder, with the nearest name; a name that looks like a path says how to give weights.
    """
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in points:
        return _load_card(points[name])
    if "/" in name or "\\" in name or name.endswith((".pt", ".pth", ".safetensors")):
        raise UnknownNameError(
            f"{name!r} looks like a file; an encoder is named, and its file given by --weights NAME={name}"
        )
    raise UnknownNameError(f"unknown encoder {name!r}{did_you_mean(name, list(points))}")


def load_encoder(card: EncoderCard, request: LoadRequest) -> Encoder:
    """Load a model; this is where torch is first imported."""
    loader: EncoderLoader = resolve_string(card.loader)
    return loader(request)


def load_heads(card: EncoderCard, request: LoadRequest) -> tuple[TaskHead, ...]:
    """Load the task heads that an encoder was published with.

    Raises
    ------
    UnknownNameError
        There are none.
    """
    if card.heads_loader is None:
        raise UnknownNameError(f"encoder {card.name!r} was published without task heads")
    heads: Sequence[TaskHead] = resolve_string(card.heads_loader)(request)
    return tuple(heads)
