"""What flatters a number, apart from leakage: frames that an expert picked, pretraining on the data set."""

from __future__ import annotations

from functools import cache

from embedstore import EncoderSpec
from embedstore.encoder import get_card
from embedstore.errors import EmbedstoreError

__all__ = ["pretraining_overlap", "uses_oracle_frames"]

ORACLE_FRAMES = "keyframe:"


def uses_oracle_frames(spec: EncoderSpec) -> bool:
    """Return whether the vectors are of frames that an expert picked, which a clip in use does not come with.

    Examples
    --------
    >>> uses_oracle_frames(EncoderSpec(name="mine", clip_dim=4)), ORACLE_FRAMES
    (False, 'keyframe:')
    """
    return spec.sampling is not None and spec.sampling.rule.startswith(ORACLE_FRAMES)


@cache
def pretraining_overlap(encoder: str, dataset: str) -> str | None:
    """Return the data set of an encoder's card that a data set is, or is a part of; None where none is known.

    An encoder whose card is not installed, such as one of ingested vectors, has none that is known.
    """
    try:
        named = get_card(encoder).pretraining_data
    except EmbedstoreError:
        return None
    return next((name for name in named if dataset == name or dataset.startswith(f"{name}-")), None)
