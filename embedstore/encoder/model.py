"""The `Encoder` protocol: a loaded model, what it takes and gives, and what its loader is handed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from embedstore.spec import EncoderSpec

__all__ = ["Encoded", "Encoder", "EncoderLoader", "LoadRequest", "Preprocess"]


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


class EncoderLoader(Protocol):
    """What a card's ``loader`` string names."""

    def __call__(self, request: LoadRequest) -> Encoder:
        """Build the model, load the weights, return it ready for `Encoder.encode`.

        Raises
        ------
        MissingExtraError
            torch, or another package that the model is made of, is not installed.
        EnvironmentFailure
            There are no weights, or too little memory.
        StorageError, CorruptionError, HostileInputError, FormatError
            The checkpoint is not there, is damaged or not the one named, wants code to run, or is another model's.
        UnknownNameError
            The sampling gives other windows than the model takes.
        """
