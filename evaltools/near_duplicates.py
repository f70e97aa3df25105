"""Test clips that nearly equal a training clip of another patient: the same recording under two names, perhaps.

Neighbours are exact. A pair is flagged where its cosine is above 0.999 and above the 99.9th percentile of nearest
neighbours among training clips of different patients: echo clips of one view are alike in many encoders, and 0.999
alone would flag half of a set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaltools.closeness import ClipPoints, fewest_candidates
from evaltools.cohort import Cohort
from evaltools.fitting import Targets
from evaltools.metrics import Floats
from evaltools.neighbours import nearest

__all__ = ["NearDuplicates", "find_near_duplicates"]

MIN_COSINE = 0.999
PERCENTILE = 99.9
_REFERENCE_CLIPS = 2000  # training clips whose nearest neighbours give the percentile; drawn where there are more
_REPORTED = 20


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicates across splits in one set of vectors.

    Attributes
    ----------
    threshold : float
        Cosine above which a pair is flagged.
    flagged : (m,) bool
        Which test clips have a flagged pair, in the order of ``targets.test``.
    pairs : tuple of (str, str, float)
        Test clip, nearest clip of train or val, cosine: the nearest of the flagged, at most 20.
    """

    threshold: float
    flagged: npt.NDArray[np.bool_]
    pairs: tuple[tuple[str, str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "threshold": self.threshold,
            "n_clips": int(self.flagged.sum()),
            "pairs": [{"test": test, "train": train, "cosine": cosine} for test, train, cosine in self.pairs],
        }


def find_near_duplicates(X: Floats, cohort: Cohort, targets: Targets, *, seed: int) -> NearDuplicates | None:
    """Look for test clips that nearly equal a clip of train or val.

    Parameters
    ----------
    X : (n, D) float64
        Vectors of the cohort's clips.

    Returns
    -------
    NearDuplicates or None
        None where fewer than two patients stand in train and val, so that nothing says how alike clips are.
    """
    points = ClipPoints(X, cohort.clip_ids, cohort.patients)
    test, fitted = points.take(targets.test), points.take(np.concatenate([targets.train, targets.val]))
    reference = fitted
    if len(fitted) > _REFERENCE_CLIPS:
        in_order = np.argsort(fitted.clip_ids.astype(str), kind="stable")
        drawn = np.random.default_rng(seed).choice(len(fitted), _REFERENCE_CLIPS, replace=False)
        reference = fitted.take(in_order[np.sort(drawn)])
    if min(fewest_candidates(reference, fitted), fewest_candidates(test, fitted)) < 1:
        return None
    usual = nearest(reference, fitted, k=1, exact_scores=False).scores[:, 0]
    threshold = max(MIN_COSINE, float(np.percentile(usual, PERCENTILE)))
    found = nearest(test, fitted, k=1, exact_scores=False)
    flagged = found.scores[:, 0] > threshold
    order = sorted(np.flatnonzero(flagged), key=lambda at: (-found.scores[at, 0], str(test.clip_ids[at])))
    pairs = tuple(
        (str(test.clip_ids[at]), str(fitted.clip_ids[found.rows[at, 0]]), float(found.scores[at, 0]))
        for at in order[:_REPORTED]
    )
    return NearDuplicates(threshold, flagged, pairs)
