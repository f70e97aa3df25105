"""Text towers: prompts to unit vectors, with the identity of the tokenizer that cut them.

A card's ``text_loader`` names a function of a `embedstore.encoder.LoadRequest` that returns a `TextTower`. The
tokenizer is the model's own or there is none: nothing falls back on another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from embedstore.encoder import EncoderCard, LoadRequest, resolve_string
from embedstore.errors import ContentError, FormatError, UnknownNameError
from embedstore.spec import EncoderSpec

if TYPE_CHECKING:
    import torch

__all__ = ["TextTower", "TokenTower", "Tokenizer", "TokenizerIdentity", "check_vocabulary", "load_text_tower"]

Tokens = npt.NDArray[np.int64]
_BATCH = 32  # constant, the last one padded: a vector never depends on the other prompts


@dataclass(frozen=True, kw_only=True)
class TokenizerIdentity:
    """What decides the tokens of a prompt, beside the prompt.

    Attributes
    ----------
    kind : str
        The rule, cleaning included.
    sha256 : str
        Digest of the vocabulary's file or files.
    context : int
        Tokens of a text, padded or cut to it.
    """

    kind: str
    sha256: str
    context: int

    def to_dict(self) -> dict[str, Any]:
        """Return the form that enters the key of a prompt bank."""
        return {"kind": self.kind, "sha256": self.sha256, "context": self.context}


class Tokenizer(Protocol):
    """Prompts to padded tokens."""

    identity: TokenizerIdentity
    n_tokens: int

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Return ``(P, context)`` int64."""


class TextTower(Protocol):
    """A loaded text tower.

    Attributes
    ----------
    spec : EncoderSpec
        Of the request; `spec.weights_sha256` is that of the weights, both towers'.
    tokenizer : TokenizerIdentity
    dim : int
        Dimension of the vectors, that of the image vectors.
    logit_scale : float
        What the authors multiply cosines with.
    logit_bias : float or None
        What they add then, where they do.
    """

    spec: EncoderSpec
    tokenizer: TokenizerIdentity
    dim: int
    logit_scale: float
    logit_bias: float | None

    def embed(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return ``(P, dim)`` float32 vectors of length one, in the order of the prompts."""


def load_text_tower(card: EncoderCard, request: LoadRequest) -> TextTower:
    """Load the text tower of an encoder; this is where torch is first imported.

    Parameters
    ----------
    card : EncoderCard
    request : LoadRequest
        As for the image tower: the same weights, file or folder; the tokenizer's files lie beside them.

    Raises
    ------
    UnknownNameError
        The encoder has no text tower.
    """
    if card.text_loader is None:
        raise UnknownNameError(f"encoder {card.name!r} has no text tower: it embeds no prompts")
    tower: TextTower = resolve_string(card.text_loader)(request)
    return tower


def check_vocabulary(tokenizer: Tokenizer, *, n_known: int, source: Any) -> None:
    """Refuse a tokenizer that cannot be the one that a tower was trained with.

    Raises
    ------
    FormatError
        It has more tokens than the tower knows, or less than half.
    """
    if not n_known // 2 < tokenizer.n_tokens <= n_known:
        raise FormatError(
            f"the tokenizer {tokenizer.identity.kind} has {tokenizer.n_tokens} tokens, the text tower of {source} "
            f"knows {n_known}; is it another model's?"
        )


class TokenTower:
    """A `TextTower` from a tokenizer and a function of its tokens.

    Parameters
    ----------
    network : torch.nn.Module
        Loaded; put into evaluation mode, in float32, on the device.
    forward : callable
        Tokens, ``(B, context)``, to vectors, ``(B, dim)``; runs ``network``.
    tokenizer : Tokenizer
    spec : EncoderSpec
    device : torch.device
    logit : (float, float or None)
        Scale and bias of the logit.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        forward: Callable[[torch.Tensor], torch.Tensor],
        tokenizer: Tokenizer,
        spec: EncoderSpec,
        device: torch.device,
        logit: tuple[float, float | None],
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer.identity
        self.dim = spec.clip_dim
        self.logit_scale, self.logit_bias = logit
        self.device = str(device)
        self._device = device
        self._tokenize = tokenizer
        self._network = network.eval().requires_grad_(False).float().to(device)
        self._forward = forward

    def covers(self, prompt: str) -> bool:
        """Return whether the tokenizer can say a prompt at all; one of fixed phrases cannot say them all."""
        covers = getattr(self._tokenize, "covers", None)
        return covers is None or bool(covers(prompt))

    def embed(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed prompts.

        Parameters
        ----------
        prompts : sequence of str
            At least one character each.

        Returns
        -------
        (P, dim) float32
            Of length one, in the order of the prompts.

        Raises
        ------
        ContentError
            A prompt is no text or empty.
        FormatError
            The vectors have another dimension than the image vectors.
        """
        import torch

        from encoders.device import inference

        if isinstance(prompts, str):
            raise ContentError(f"embed takes a list of prompts, got one text: {prompts[:40]!r}")
        for place, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt.strip():
                raise ContentError(f"prompt {place} of {self.spec.name} is {prompt!r}, not a text")
        vectors = np.empty((len(prompts), self.dim), dtype=np.float32)
        if not prompts:
            return vectors
        tokens = self._tokenize(prompts)
        for start in range(0, len(prompts), _BATCH):
            part = tokens[start : start + _BATCH]
            batch = np.concatenate([part, np.repeat(part[:1], _BATCH - len(part), axis=0)])
            with inference(self._device, precision=self.spec.precision):
                made = self._forward(torch.from_numpy(batch).to(self._device)).float()
                made = torch.nn.functional.normalize(made, dim=-1)
            if made.shape[1] != self.dim:
                raise FormatError(
                    f"the text tower of {self.spec.title} gives vectors of {made.shape[1]} numbers, not {self.dim}"
                )
            vectors[start : start + len(part)] = made[: len(part)].cpu().numpy()
        return vectors
