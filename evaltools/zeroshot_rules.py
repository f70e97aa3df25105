"""The published rules of zero-shot, as functions of similarities: nothing is fitted but, where asked, one threshold.

``cardiobench``
    Of BioMedIA-MBZUAI/CardioBench, src/text.py and src/regression.py: classes by the mean cosine of their prompts
    with the clip's renormalised mean vector; numbers by the lower median of the values of the top fifth of prompts in
    each frame, averaged over frames.
``echoclip``
    Of echonet/echo_CLIP: the ranked lists of values are averaged over frames, rank by rank, and the lower median of
    the first fifth is the number; a finding is there where the mean cosine with its prompts, over prompts and frames,
    is above a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from evaltools.metrics import Codes, Floats

__all__ = [
    "TOP_SHARE",
    "VALUE_RULES",
    "class_means",
    "f1_threshold",
    "lower_median",
    "shares_above",
    "softmax",
    "text_axis",
    "unit_rows",
    "value_by_frames",
    "value_by_ranks",
]

TOP_SHARE = 0.2  # of the prompts, in both rules
_TINY = 1e-12


def unit_rows(vectors: npt.NDArray[np.floating]) -> Floats:
    """Return rows (n, D) at unit length; a row of zeros stays one."""
    rows = np.asarray(vectors, dtype=np.float64)
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)
    return unit


def lower_median(values: Floats) -> Floats:
    """Return the median over the last axis, the lower of the two middle values where their number is even.

    Examples
    --------
    >>> float(lower_median(np.array([4.0, 1.0, 3.0, 2.0])))
    2.0
    """
    ordered: Floats = np.sort(values, axis=-1)[..., (values.shape[-1] - 1) // 2]
    return ordered


def softmax(logits: Floats) -> Floats:
    """Return shares (n, K) that sum to 1."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def class_means(similarity: Floats, codes: Codes, n_classes: int) -> Floats:
    """Return the mean similarity (n, K) with the prompts of each class.

    Parameters
    ----------
    similarity : (n, P)
    codes : (P,) int
        Class of each prompt; each of the ``n_classes`` has one at least.
    """
    is_of = np.asarray(codes[:, None] == np.arange(n_classes), dtype=np.float64)
    means: Floats = similarity @ (is_of / is_of.sum(axis=0))
    return means


def f1_threshold(scores: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Return the score above which calling positive gives the best F1; the lowest at a tie.

    Candidates are the scores that occur, as in both published rules.

    Parameters
    ----------
    scores : (n,)
    positive : (n,) bool

    Examples
    --------
    >>> f1_threshold(np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, False, True, True]))
    0.2
    """
    order = np.argsort(scores, kind="stable")
    ascending, found = scores[order], positive[order]
    candidates = np.flatnonzero(np.append(ascending[1:] != ascending[:-1], True))  # the last of each run
    above = len(scores) - 1 - candidates
    true_above = found.sum() - np.cumsum(found)[candidates]
    f1 = 2 * true_above / np.maximum(above + found.sum(), 1)
    return float(ascending[candidates[f1.argmax()]])


def shares_above(scores: Floats, threshold: float) -> Floats:
    """Return (n, 2) shares in the order of the scores, above one half where a score is above the threshold."""
    positive = 1.0 / (1.0 + np.exp(threshold - scores))
    # The sigmoid of the smallest difference rounds to one half, and a tie goes to the first class.
    positive = np.where(scores > threshold, np.maximum(positive, np.nextafter(0.5, 1.0)), np.minimum(positive, 0.5))
    return np.column_stack([1.0 - positive, positive])


def text_axis(vectors: Floats, values: Floats) -> Floats:
    """Return the first principal component (D,) of prompts, towards those with larger values.

    Parameters
    ----------
    vectors : (P, D)
        At unit length.
    values : (P,)
    """
    centred = vectors - vectors.mean(axis=0)
    axis: Floats = np.linalg.svd(centred, full_matrices=False)[2][0]
    along = (centred @ axis) @ (values - values.mean())
    return axis if along >= 0 else -axis


def _top_values(similarity: Floats, values: Floats, share: float) -> Floats:
    """Return the values (F, T) of the most similar prompts of each frame, most similar first; ties by position."""
    n_top = max(int(share * len(values)), 1)
    ranked = np.argsort(-similarity, axis=1, kind="stable")[:, :n_top]
    return np.asarray(values[ranked], dtype=np.float64)


def _mean_of_clips(of_frames: Floats, starts: Codes, counts: Codes) -> Floats:
    sums: Floats = np.add.reduceat(of_frames, starts, axis=0)
    return sums / counts.reshape(-1, *[1] * (of_frames.ndim - 1))


def value_by_ranks(similarity: Floats, values: Floats, starts: Codes, counts: Codes, *, share: float) -> Floats:
    """Return a value (n,) a clip by the rule of EchoCLIP.

    Parameters
    ----------
    similarity : (F, P)
        Of each frame with each prompt.
    values : (P,)
        What each prompt says.
    starts, counts : (n,) int
        First frame and number of frames of each clip.
    share : float
        Of the prompts.
    """
    return lower_median(_mean_of_clips(_top_values(similarity, values, share), starts, counts))


def value_by_frames(similarity: Floats, values: Floats, starts: Codes, counts: Codes, *, share: float) -> Floats:
    """Return a value (n,) a clip by the rule of CardioBench; parameters as `value_by_ranks`."""
    return _mean_of_clips(lower_median(_top_values(similarity, values, share)), starts, counts)


ValueRule = Callable[..., Floats]
VALUE_RULES: Mapping[str, ValueRule] = {"echoclip": value_by_ranks, "cardiobench": value_by_frames}
