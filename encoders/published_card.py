"""`PublishedCard`: a card that follows a published checkpoint, and what the cards of several encoders share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.encoder import EncoderCard, LoadRequest, Variant, resolve_string
from embedstore.errors import CorruptionError, EnvironmentFailure, FormatError
from embedstore.spec import EncoderSpec, FrameSampling
from encoders.preprocess import CropAndScale, step_record
from encoders.resampling import BgrOrder

__all__ = [
    "CARDIOBENCH_SAMPLING",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PublishedCard",
    "cardiobench_variant",
    "check_dim",
    "pixel_record",
    "video_sizes",
]

# torchvision's and everybody's means and standard deviations of ImageNet, of grey levels over 255.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# BioMedIA-MBZUAI/CardioBench, src/embeddings.py: max_frames 16, stride 1, from the first frame.
CARDIOBENCH_SAMPLING = FrameSampling("consecutive:16")
_CARDIOBENCH_SIDE = 224
_CARDIOBENCH_ZOOM = 0.1


@dataclass(frozen=True, kw_only=True)
class PublishedCard(EncoderCard):
    """A card whose dimensions and input follow the checkpoint where the user gives another size of the model.

    Parameters
    ----------
    fitter : str or None
        ``module:function`` of (card, variant=..., weights=...) that returns the card as it is for that variant and
        those weights, importing no torch where the weights are a folder or a safetensors file.
    keys_may_miss, keys_may_ignore : tuple of str
        The keys that a published checkpoint may lack, and may have beyond the model's, the latter as patterns where
        there are many. Any other difference is an error.
    layout : str
        What the published file holds: container, keys, parameters; for people.
    left_open : str
        What the published sources do not decide, and how it is done here; for people.
    weights_names, settings_names : tuple of str
        Names of files in a folder given as weights: those that may hold the weights, best first, and those whose
        settings decide a vector too.
    """

    fitter: str | None = None
    keys_may_miss: tuple[str, ...] = ()
    keys_may_ignore: tuple[str, ...] = ()
    layout: str = ""
    left_open: str = ""
    weights_names: tuple[str, ...] = ()
    settings_names: tuple[str, ...] = ()

    def deciding_files(self, weights: Path) -> tuple[Path, ...]:
        """Return the files of a folder, or the one file, that decide a vector: readmes and tokenizers do not.

        Raises
        ------
        StorageError
            The weights are not there.
        """
        from encoders.model_folder import part_files, weights_file

        file = weights_file(weights, self.weights_names)
        if not weights.is_dir():
            return (file,)
        settings = (weights / name for name in self.settings_names)
        return (*part_files(file), *(path for path in settings if path.is_file()))

    def inspect_weights(self, weights: Path) -> None:
        """See that weights are whole, without torch: no pointer or web page, no end cut off, no damaged download.

        Raises
        ------
        StorageError, HostileInputError, FormatError
            As `encoders.checkpoint.check_whole`.
        CorruptionError
            The hub states another digest for a file.
        """
        from encoders.checkpoint import check_whole, sha256_of_file
        from encoders.hub import stated_sha256

        for file in self.deciding_files(weights):
            check_whole(file)
            stated = stated_sha256(file)
            if stated is not None and sha256_of_file(file) != stated:
                raise CorruptionError(
                    f"file {file} is not the one with SHA-256 {stated}; remove it and fetch it again"
                )

    def published_sha256(self, weights: Path) -> str | None:
        """Return the digest that the card or the hub states."""
        from encoders.hub import stated_sha256
        from encoders.model_folder import weights_file

        if not weights.is_dir():
            return self.weights_sha256
        return stated_sha256(weights_file(weights, self.weights_names))

    def fitted(self, *, variant: str = "published", weights: Path | None = None) -> EncoderCard:
        """Return the card for a variant and a checkpoint: dimensions, input size and preprocessing may differ.

        Raises
        ------
        UnknownNameError
            There is no such variant.
        FormatError
            The checkpoint is another model's.
        """
        if self.fitter is None:
            return self
        fitted: EncoderCard = resolve_string(self.fitter)(self, variant=variant, weights=weights)
        return fitted

    def open_weights(self, request: LoadRequest) -> tuple[dict[str, Any], Path, Path]:
        """Open the weights of a request, else those that are installed or cached.

        Returns
        -------
        dict, Path, Path
            The state dict, the file it came from, and the path that was given or found.

        Raises
        ------
        MissingExtraError
            torch is not installed.
        EnvironmentFailure
            There are no weights, or too little memory for them.
        StorageError, CorruptionError, HostileInputError, FormatError
            As `encoders.model_folder.open_state`.
        """
        from encoders.device import check_memory, pick_device
        from encoders.model_folder import open_state, weights_file

        name = request.spec.name
        path = request.weights or self.locate_weights()
        if path is None:
            raise EnvironmentFailure(
                f"the weights of {name!r} are not on this machine (source: {self.weights_source}); "
                f"give them with --weights {name}=FILE_OR_FOLDER"
            )
        pick_device(request.device)
        # While one is copied into the other, the file's tensors and the model's are both in memory.
        needed = 2 * weights_file(path, self.weights_names).stat().st_size
        check_memory(pick_device("cpu"), needed=needed, name=request.spec.title)
        state, file = open_state(
            path,
            names=self.weights_names,
            sha256=request.spec.weights_sha256,
            trusted_sha256=request.trusted_sha256,
        )
        return state, file, path


def video_sizes(*, dim: int, n_frames: int, side: int) -> dict[str, Any]:
    """Return the fields of a video transformer's card that follow its size: vectors and steps have one dimension."""
    return {"unit": "clip", "clip_dim": dim, "frame_dim": dim, "input_size": (3, n_frames, side, side)}


def pixel_record(
    steps: Sequence[Any], *, mean: Sequence[float], std: Sequence[float], vectors: str, **others: Any
) -> dict[str, Any]:
    """Return the ``preprocessing`` of a card.

    Parameters
    ----------
    steps : sequence of Step
        Geometry, first to last.
    mean, std : sequence of 3 floats
        Taken from and divided into the grey levels over 255, in the order of the channels as the model sees them.
    vectors : {"l2", "raw"}
        Whether the authors normalise each vector.
    others
        Anything else that decides a vector, e.g. ``output="cls"``.

    Examples
    --------
    >>> pixel_record([BgrOrder()], mean=[0.5] * 3, std=[0.5] * 3, vectors="l2")["steps"]
    [{'step': 'bgr-order'}]
    """
    bgr = any(isinstance(step, BgrOrder) for step in steps)
    return {
        "steps": [step_record(step) for step in steps],
        "channels": "bgr" if bgr else "rgb",
        "scale": 255,
        "mean": list(mean),
        "std": list(std),
        "vectors": vectors,
        **others,
    }


def cardiobench_variant(steps: Sequence[Any]) -> Variant:
    """Return the benchmark's way to feed a frame encoder.

    Parameters
    ----------
    steps : sequence of Step
        What the model's own preprocessing does after the benchmark has cut, zoomed and scaled a frame to 224x224.
    """
    own = [
        CropAndScale(
            height=_CARDIOBENCH_SIDE, width=_CARDIOBENCH_SIDE, zoom=_CARDIOBENCH_ZOOM, interpolation="cubic"
        ),
        *steps,
        BgrOrder(),
    ]
    return Variant(
        sampling=CARDIOBENCH_SAMPLING,
        preprocessing={"steps": [step_record(step) for step in own], "channels": "bgr"},
        note="as in the CardioBench benchmark: the first 16 frames, central square, 10 % zoom, cubic to 224x224, "
        "blue first; the benchmark itself runs in bf16",
    )


def check_dim(spec: EncoderSpec, *, dim: int, side: int, source: Path) -> None:
    """Refuse a checkpoint of another size than the spec's.

    Raises
    ------
    FormatError
        Its vectors have another dimension, or the spec's frames another size than the model takes.
    """
    if dim != spec.clip_dim:
        raise FormatError(
            f"checkpoint {source} gives vectors of {dim} numbers, {spec.title} of {spec.clip_dim}; "
            "is it another size of the model?"
        )
    for record in reversed(spec.preprocessing["steps"]):
        if "height" in record:
            if (record["height"], record["width"]) != (side, side):
                raise FormatError(
                    f"checkpoint {source} takes frames of {side}x{side} pixels, {spec.title} prepares "
                    f"{record['height']}x{record['width']}; is it another size of the model?"
                )
            return
