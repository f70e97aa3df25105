"""The clips that all sets of a comparison have: scores on other clips could not be compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evaltools.cohort import Cohort
from evaltools.features import Located, VectorSource, locate, refuse_missing

__all__ = ["locate_in_common"]


def locate_in_common(
    pooled: Sequence[tuple[VectorSource, str]], cohort: Cohort, *, allow_missing: bool
) -> tuple[list[Located], npt.NDArray[np.bool_]]:
    """Return where the vectors of each set and pooling stand, and which clips of the cohort have all of them.

    Parameters
    ----------
    pooled : sequence of (VectorSource, str)
        Sets, and which of their vectors are read: a name of `evaltools.features.POOLS`.
    cohort : Cohort
        The clips asked for.
    allow_missing : bool
        Whether clips may lack vectors.

    Returns
    -------
    list of Located
        In the order of ``pooled``.
    (n,) bool array
        In the order of the cohort.

    Raises
    ------
    MissingVectorsError
        A clip has no vectors in one of the sets, and that is not allowed; or a set holds no frame vectors, and they
        are asked for.
    """
    located = [locate(source, cohort, pool=pool) for source, pool in pooled]
    common = np.ones(len(cohort), dtype=np.bool_)
    for (source, _), one in zip(pooled, located, strict=True):
        if not allow_missing:
            refuse_missing(source, cohort, one)
        common &= one.present
    return located, common
