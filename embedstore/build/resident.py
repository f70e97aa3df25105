"""Models on a device: all loaded while they fit, else they take turns.

Nothing here knows how large a model is. A loader that finds too little memory says so with a `MemoryError`
(`embedstore.errors.TooLittleMemoryError`); then the model that was used longest ago makes room, until it fits or no
other is left.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from embedstore.encoder import Encoded, Encoder

__all__ = ["Model", "ResidentModels"]

# What encoders may have besides the protocol, and what is asked of them between turns.
_EXTRAS = ("device", "frame_kind", "with_steps")


class ResidentModels:
    """The models of a build that are loaded."""

    def __init__(self) -> None:
        # The one used longest ago first; weak, so that a build that is over frees its models at once.
        self._order: list[weakref.ref[Model]] = []

    def bring(self, model: Model) -> Encoder:
        """Return a model's encoder, loaded now where it is not.

        Raises
        ------
        MemoryError
            It does not fit even alone.
        """
        while model.encoder is None:
            try:
                model.encoder = model.load()
            except MemoryError:
                resident = self._resident()
                if not resident:
                    raise
                self._unload(resident[0])
        self._order = [weakref.ref(other) for other in self._resident() if other is not model]
        self._order.append(weakref.ref(model))
        return model.encoder

    def clear_but(self, model: Model) -> bool:
        """Unload all others; False where there are none."""
        others = [other for other in self._resident() if other is not model]
        for other in others:
            self._unload(other)
        return bool(others)

    def _resident(self) -> list[Model]:
        models = (reference() for reference in self._order)
        return [model for model in models if model is not None and model.encoder is not None]

    @staticmethod
    def _unload(model: Model) -> None:
        model.encoder = None
        gc.collect()  # torch modules hold cycles


class Model:
    """An encoder that can be unloaded and loaded again; to the build it is one `Encoder`.

    Parameters
    ----------
    load : callable
        Loads the encoder.
    residents : ResidentModels

    Attributes
    ----------
    encoder : Encoder or None
        None while it is unloaded.
    """

    def __init__(self, load: Callable[[], Encoder], residents: ResidentModels) -> None:
        self.load, self._residents = load, residents
        self.encoder: Encoder | None = None
        loaded = residents.bring(self)
        self.spec = loaded.spec
        self.input_shape, self.input_dtype, self.preprocess = (
            loaded.input_shape,
            loaded.input_dtype,
            loaded.preprocess,
        )
        for name in _EXTRAS:
            if hasattr(loaded, name):
                setattr(self, name, getattr(loaded, name))

    @property
    def is_resident(self) -> bool:
        """Whether it is loaded."""
        return self.encoder is not None

    def encode(self, batch: npt.NDArray[Any]) -> Encoded:
        """Encode a batch; where memory does not hold it beside other models, those are unloaded first.

        Raises
        ------
        MemoryError
            The model, or the batch, does not fit even alone.
        """
        try:
            return self._encode(batch)
        except MemoryError:
            if not self._residents.clear_but(self):
                raise
        return self._encode(batch)

    def _encode(self, batch: npt.NDArray[Any]) -> Encoded:
        encoder: Any = self._residents.bring(self)
        if "with_steps" in vars(self):
            encoder.with_steps = vars(self)["with_steps"]
        encoded: Encoded = encoder.encode(batch)
        return encoded
