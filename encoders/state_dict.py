"""Filling a model from a state dict exactly.

Nothing is skipped in silence: every key that is missing, left over or of another shape is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from embedstore.errors import FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["filled", "load_exactly", "without_initialisation"]

Model = TypeVar("Model", bound="torch.nn.Module")

_NAMED_KEYS = 8

# In-place draws of random numbers that models make in their constructors besides the functions of torch.nn.init.
_DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "erfinv_"})


def load_exactly(
    model: torch.nn.Module,
    state: Mapping[str, Any],
    *,
    source: Path | str,
    may_miss: Collection[str] = (),
    may_ignore: Collection[str] = (),
    only: str | tuple[str, ...] = "",
    spelled: Callable[[str], str] = str,
) -> None:
    """Copy a state dict into a model, accounting for every key.

    Parameters
    ----------
    model : torch.nn.Module
        The model to fill.
    state : mapping of str to tensor
        The state dict.
    source : Path or str
        What to call the checkpoint in an error.
    may_miss, may_ignore : collection of str
        Keys that the published file is known to lack, and to have beyond the model's; the latter may be patterns, as
        ``decoder_blocks.[0-7].norm1.*``.
    only : str or tuple of str
        Prefixes of the keys that are copied, for one tower of a model of which the rest is checked and then dropped.
    spelled : callable
        How the file itself spells a key of the model, for the error, where the loader has spelled it anew.

    Raises
    ------
    FormatError
        Keys are missing, unexpected, no tensors, or of another shape; the first ones are named.
    """
    import torch

    wanted = model.state_dict()
    missing = sorted({spelled(key) for key in wanted.keys() - state.keys() - set(may_miss)})
    unexpected = sorted(
        str(key)
        for key in state.keys() - wanted.keys()
        if not any(key == known or fnmatchcase(str(key), known) for known in may_ignore)
    )
    shared = [key for key in wanted if key in state]
    not_tensors = [key for key in shared if not isinstance(state[key], torch.Tensor)]
    reshaped = [
        f"{spelled(key)} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in shared
        if key not in not_tensors and state[key].shape != wanted[key].shape
    ]
    faults = [
        f"{len(keys)} {title}: {_named(keys)}"
        for title, keys in (
            ("keys are missing", missing),
            ("keys are unexpected", unexpected),
            ("keys are no tensors", not_tensors),
            ("tensors have another shape", reshaped),
        )
        if keys
    ]
    if faults:
        raise FormatError(
            f"checkpoint {source} does not fit {type(model).__name__}: {'; '.join(faults)}; "
            "is it another model's file?"
        )
    model.load_state_dict({key: state[key] for key in shared if key.startswith(only)}, strict=False)


def filled(make: Callable[[], Model], state: Mapping[str, Any], *, source: Path | str, **accounted: Any) -> Model:
    """Make a model without drawing its random weights, and fill it; parameters and errors as `load_exactly`."""
    with without_initialisation():
        model = make()
    load_exactly(model, state, source=source, **accounted)
    return model


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build modules inside the block without drawing their random weights, which a checkpoint replaces anyway.

    The values are whatever memory holds until `load_exactly` has filled them. Buffers that are computed are right.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class _NoDraws(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            named = kwargs or {}
            name = getattr(func, "__name__", "")
            if getattr(func, "__module__", None) != "torch.nn.init" and name == "normal_":
                # torch.nn.init.trunc_normal_ draws again while a number lies outside, for ever if none is drawn.
                return args[0].fill_(named.get("mean", args[1] if len(args) > 1 else 0.0))
            if getattr(func, "__module__", None) == "torch.nn.init" or name in _DRAWS:
                return named["tensor"] if "tensor" in named else args[0]
            return func(*args, **named)

    with _NoDraws(), torch.no_grad():
        yield


def _named(keys: list[str]) -> str:
    shown = ", ".join(keys[:_NAMED_KEYS])
    return shown if len(keys) <= _NAMED_KEYS else f"{shown} and {len(keys) - _NAMED_KEYS} more"
