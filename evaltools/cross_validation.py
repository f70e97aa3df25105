"""Cross-validation over patients: every labelled clip is predicted by a probe that saw no clip of its patient.

Each fold has its own validation patients, taken from the others, so a setting is never chosen on what is predicted.
"""

from __future__ import annotations

import re

import numpy as np

from embedstore.errors import LeakageError, UnknownNameError
from evaltools.cohort import Cohort, NotRunnableError
from evaltools.fitting import Fold, Targets, class_order
from evaltools.metrics import Codes
from evaltools.resample import patient_codes

__all__ = ["OFFICIAL", "CrossValidation", "cross_targets", "official_targets", "parse_cv"]

OFFICIAL = "official"  # in place of a number of folds: those that a data set is distributed as
FOLD_COLUMN = "fold"

_STRATA = 5  # quantile groups of a regression target
_INNER = 5  # one part in five of what is not predicted chooses the setting


class CrossValidation(tuple[int, int]):
    """Number of folds and of repeats."""

    __slots__ = ()

    @property
    def folds(self) -> int:
        """K."""
        return self[0]

    @property
    def repeats(self) -> int:
        """R."""
        return self[1]


def parse_cv(text: str) -> CrossValidation:
    """Read ``K`` or ``KxR``.

    Raises
    ------
    UnknownNameError
        It is neither, or has fewer than two folds.

    Examples
    --------
    >>> parse_cv("5x3").folds, parse_cv("10").repeats
    (5, 1)
    """
    found = re.fullmatch(r"([0-9]{1,4})(?:x([0-9]{1,4}))?", text)
    if found is None or int(found[1]) < 2 or found[2] is not None and int(found[2]) < 1:
        raise UnknownNameError(f"--cv must be folds, or folds x repeats, such as 5 or 5x3, or official, not {text!r}")
    return CrossValidation((int(found[1]), int(found[2] or 1)))


def cross_targets(cohort: Cohort, cv: CrossValidation, *, seed: int) -> Targets:
    """Return targets whose folds take the place of the splits, which are not looked at.

    Parameters
    ----------
    cohort : Cohort
        n clips.
    seed : int
        From names; each repeat derives its own from it.

    Raises
    ------
    NotRunnableError
        A class has fewer patients than there are folds, labels are constant, or a fold lacks a class to fit on.
    """
    codes, classes = _codes(cohort)
    strata = codes if classes else _quantile_groups(cohort.labels)
    patients = patient_codes(cohort.patients)
    _refuse_thin(cohort, cv, patients, codes, classes)
    rng = np.random.default_rng(seed)
    folds: list[Fold] = []
    for repeat in range(cv.repeats):
        outer, inner = (int(rng.integers(2**32)) for _ in range(2))
        for position, (rest, test) in enumerate(_grouped_folds(strata, patients, cv.folds, seed=outer)):
            n_inner = min(_INNER, len(np.unique(patients[rest])))
            parts = _grouped_folds(strata[rest], patients[rest], n_inner, seed=(inner + position) % 2**32)
            fit, choose = parts[0]
            folds.append(Fold(repeat, rest[fit], rest[choose], test))
    for fold in folds:
        _refuse_lost_class(cohort, fold, codes, classes)
    return Targets(
        kind=cohort.task.kind,
        values=codes if classes else cohort.labels,
        classes=classes,
        n_known=len(classes),
        patients=cohort.patients,
        train=folds[0].train,
        val=folds[0].val,
        test=np.tile(np.arange(len(cohort)), cv.repeats),
        folds=tuple(folds),
    )


def official_targets(cohort: Cohort, *, allow_leakage: bool = False) -> Targets:
    """Return targets whose folds are those that the data set is distributed as, its manifest's column ``fold``.

    Each fold is predicted once; the next one chooses the setting, the others are fitted on.

    Raises
    ------
    NotRunnableError
        The manifest has no such column or fewer than three folds, a clip has no fold, or a fold lacks a class.
    LeakageError
        A patient stands in two folds.
    """
    where = f"task {cohort.task.name!r} on {cohort.dataset!r}"
    if FOLD_COLUMN not in cohort.manifest.fields:
        raise NotRunnableError(
            f"{where} has no official folds: its manifest has no column {FOLD_COLUMN!r}; give --cv K"
        )
    stated = cohort.column(FOLD_COLUMN)
    without = sum(value is None for value in stated)
    if without:
        raise NotRunnableError(
            f"{where} has {without} labelled clips in no official fold; leave them out with --where, or give --cv K"
        )
    names, fold_of = np.unique(np.array([str(value) for value in stated]), return_inverse=True)
    if len(names) < 3:
        raise NotRunnableError(
            f"{where} has {len(names)} official folds, and one to fit, choose and predict are needed"
        )
    patients = patient_codes(cohort.patients)
    pairs = np.unique(np.column_stack([patients, fold_of]), axis=0)
    crossing = len(pairs) - len(np.unique(pairs[:, 0]))
    if crossing and not allow_leakage:
        raise LeakageError(
            f"{crossing} patients of {cohort.dataset!r} stand in two official folds, which lets a probe see its test "
            "clips; mend the folds, or give --allow-leakage"
        )
    codes, classes = _codes(cohort)
    folds = []
    for fold in range(len(names)):
        is_val = fold_of == (fold + 1) % len(names)
        train = np.flatnonzero((fold_of != fold) & ~is_val)
        folds.append(Fold(0, train, np.flatnonzero(is_val), np.flatnonzero(fold_of == fold)))
    for one in folds:
        _refuse_lost_class(cohort, one, codes, classes)
    return Targets(
        kind=cohort.task.kind,
        values=codes if classes else cohort.labels,
        classes=classes,
        n_known=len(classes),
        patients=cohort.patients,
        train=folds[0].train,
        val=folds[0].val,
        test=np.arange(len(cohort)),
        folds=tuple(folds),
    )


def _codes(cohort: Cohort) -> tuple[Codes, tuple[str, ...]]:
    if cohort.task.kind == "regression":
        return np.zeros(len(cohort), dtype=np.intp), ()
    classes = tuple(sorted(set(cohort.labels), key=class_order))
    position = {name: code for code, name in enumerate(classes)}
    return np.array([position[label] for label in cohort.labels], dtype=np.intp), classes


def _quantile_groups(values: np.ndarray) -> Codes:
    inner = np.quantile(values, np.arange(1, _STRATA) / _STRATA)
    return np.searchsorted(inner, values).astype(np.intp)


def _grouped_folds(strata: Codes, patients: Codes, n: int, *, seed: int) -> list[tuple[Codes, Codes]]:
    """Return (others, fold) rows of n folds: each patient counts for its rarest stratum, whose patients are dealt in
    random order, those of most clips first, one fold after the other.
    """
    names, codes = np.unique(patients, return_inverse=True)
    has = np.zeros((len(names), int(strata.max()) + 1), dtype=np.bool_)
    has[codes, strata] = True
    rarest = np.where(has, has.sum(axis=0), len(names) + 1).argmin(axis=1)
    order = np.lexsort((np.random.default_rng(seed).random(len(names)), -np.bincount(codes), rarest))
    fold_of = np.empty(len(names), dtype=np.intp)
    fold_of[order] = np.arange(len(names)) % n
    return [(np.flatnonzero(fold_of[codes] != fold), np.flatnonzero(fold_of[codes] == fold)) for fold in range(n)]


def _refuse_thin(
    cohort: Cohort, cv: CrossValidation, patients: Codes, codes: Codes, classes: tuple[str, ...]
) -> None:
    where = f"task {cohort.task.name!r} on {cohort.dataset!r}"
    n_patients = len(np.unique(patients))
    if n_patients < 2 * cv.folds:
        raise NotRunnableError(
            f"{where} has {n_patients} patients, and {cv.folds} folds need at least {2 * cv.folds}; use fewer folds"
        )
    if not classes:
        if np.ptp(cohort.labels) == 0:
            raise NotRunnableError(f"{where} has the same label {cohort.labels[0]:g} everywhere: nothing to fit")
        return
    if len(classes) < 2:
        raise NotRunnableError(f"{where} has one class only, {classes[0]!r}: nothing to tell apart")
    for code, name in enumerate(classes):
        of_class = len(np.unique(patients[codes == code]))
        if of_class < max(cv.folds, 3):
            raise NotRunnableError(
                f"{where} has {of_class} patients of class {name!r}, and {cv.folds} folds need at least "
                f"{max(cv.folds, 3)}; use fewer folds"
            )


def _refuse_lost_class(cohort: Cohort, fold: Fold, codes: Codes, classes: tuple[str, ...]) -> None:
    if not len(fold.val) or not len(fold.test):
        raise NotRunnableError(f"a fold of {cohort.dataset!r} is empty; use fewer folds")
    lost = sorted(set(range(len(classes))) - set(codes[fold.train].tolist()))
    if lost:
        raise NotRunnableError(
            f"a fold of task {cohort.task.name!r} on {cohort.dataset!r} has no clip of class {classes[lost[0]]!r} to "
            "fit on; use another number of folds"
        )
