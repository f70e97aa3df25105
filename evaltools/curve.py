"""`curve`: how a score grows with the number of training patients.

Each repeat draws one order of the patients of train and of val, in which every label group is spread evenly, and
takes more and more of its beginning: the points of a repeat are nested, and a small share has every class. Test
clips, their bootstrap draws and the controls are those of `evaltools.probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedstore import Manifest, Store
from embedstore.errors import UnknownNameError
from evaltools.cohort import Cohort, NotRunnableError, require_runnable
from evaltools.features import VectorSource
from evaltools.fitting import class_order
from evaltools.manifest_loop import over_manifests
from evaltools.probe import ProbeOptions, score_table
from evaltools.resample import patient_codes
from evaltools.result import Result
from evaltools.score_table import ScoreTable
from evaltools.selection import sets_of
from evaltools.task import Task

__all__ = ["CurveOptions", "curve", "curve_manifest", "patient_shares"]

_STRATA = 5  # quantile groups of a regression target


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """Which points a curve has.

    Attributes
    ----------
    fractions : tuple of float
        Shares of the patients of train and of val, above 0 and at most 1.
    shots : tuple of int
        Patients a class from train and as many from val; for a regression task patients in all.
    repeats : int
        Draws of each point; a point with every patient has one.
    probe : ProbeOptions
        Everything else.
    """

    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 1.0)
    shots: tuple[int, ...] = ()
    repeats: int = 5
    probe: ProbeOptions = ProbeOptions(n_shuffles=20)


def patient_shares(cohort: Cohort, *, seed: int) -> npt.NDArray[np.float64]:
    """Return for each clip (n,) the share of its split's patients from which on its patient is taken.

    Within each label group the order is random and the steps are even, so any beginning is stratified; the first
    patient of each group comes before all others. Test clips have 0.
    """
    shares = np.zeros(len(cohort))
    strata = _strata(cohort)
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        rows = np.flatnonzero(cohort.in_split(split))
        codes = patient_codes(cohort.patients[rows])
        group = np.array([np.bincount(strata[rows][codes == code]).argmax() for code in range(codes.max() + 1)])
        place = np.empty(len(group))
        for stratum in np.unique(group):
            of_group = rng.permutation(np.flatnonzero(group == stratum))
            place[of_group] = (np.arange(len(of_group)) + rng.random(len(of_group))) / len(of_group)
            place[of_group[0]] -= 2.0
        position = np.empty(len(group))
        position[np.argsort(place)] = np.arange(1, len(group) + 1)
        shares[rows] = (position / len(group))[codes]
    return shares


def _strata(cohort: Cohort) -> npt.NDArray[np.intp]:
    if cohort.task.kind == "classification":
        position = {name: code for code, name in enumerate(sorted(set(cohort.labels), key=class_order))}
        return np.array([position[label] for label in cohort.labels], dtype=np.intp)
    train = cohort.labels[cohort.in_split("train")]
    inner = np.quantile(train, np.arange(1, _STRATA) / _STRATA)
    return np.searchsorted(inner, cohort.labels).astype(np.intp)


def _kept(cohort: Cohort, shares: npt.NDArray[np.float64], fraction: float) -> npt.NDArray[np.bool_]:
    """Return which clips stand at a point: test, and the first share of patients, at least one a label group."""
    strata = _strata(cohort)
    kept = cohort.in_split("test")
    for split in ("train", "val"):
        of_split = cohort.in_split(split)
        least = len(np.unique(strata[of_split])) if cohort.task.kind == "classification" else 2
        n_patients = len(set(cohort.patients[of_split]))
        kept |= of_split & (shares <= max(fraction, least / n_patients) + 1e-9)
    return kept


def _kept_shots(cohort: Cohort, shares: npt.NDArray[np.float64], shots: int) -> npt.NDArray[np.bool_]:
    """Return which clips stand at a point of so many patients a class, in the order of the shares."""
    kept = cohort.in_split("test")
    strata = _strata(cohort) if cohort.task.kind == "classification" else np.zeros(len(cohort), dtype=np.intp)
    for split in ("train", "val"):
        for stratum in np.unique(strata):
            of_group = cohort.in_split(split) & (strata == stratum)
            first = np.unique(shares[of_group])[:shots]
            kept |= of_group & np.isin(shares, first)
    return kept


def curve(
    store: Store,
    *,
    task: Task,
    dataset: str | Path | Manifest | None = None,
    encoder: Sequence[str] = (),
    options: CurveOptions | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Result]:
    """Probe the encoders of a store with growing parts of the training patients.

    Parameters are those of `evaltools.probe.probe`.

    Returns
    -------
    list of Result
        With ``fraction``, ``shots`` and ``repeat`` in `Result.axis`.

    Raises
    ------
    UnknownNameError, ContentError
        As `evaltools.probe.probe`; or a fraction, number of shots or of repeats is none.
    """
    chosen = options or CurveOptions()
    if isinstance(dataset, Manifest):
        sources = sets_of(store, dataset.name, titles=encoder)
        return curve_manifest(sources, dataset, task=task, options=chosen, on_skip=on_skip)
    return over_manifests(
        store,
        lambda sets, manifest, asked: curve_manifest(sets, manifest, task=asked, options=chosen, on_skip=on_skip),
        tasks=[task],
        datasets=[] if dataset is None else [dataset],
        encoders=encoder,
        on_skip=on_skip,
    )


def curve_manifest(
    sources: Sequence[VectorSource],
    manifest: Manifest,
    *,
    task: Task,
    options: CurveOptions,
    on_skip: Callable[[str], None] | None = None,
) -> list[Result]:
    """Probe several sets of one data set; a point that cannot be fitted is skipped and ``on_skip`` told why.

    Raises
    ------
    UnknownNameError, ContentError
        As `curve`.
    """
    _require_points(options)
    quick = replace(options.probe, near_duplicates=False)  # they do not depend on the labels: a probe says which
    table, rows = score_table(sources, manifest, task=task, options=quick)
    features = [table.features(*row) for row in rows]
    results: list[Result] = []
    refusals: list[NotRunnableError] = []
    for repeat in range(options.repeats):
        shares = patient_shares(table.scored, seed=table.seed("curve", repeat))
        points: list[tuple[float, int | None, npt.NDArray[np.bool_]]] = []
        for fraction in sorted(options.fractions):
            points.append((fraction, None, _kept(table.scored, shares, fraction)))
        for shots in sorted(options.shots):
            few = _kept_shots(table.scored, shares, shots)
            points.append((_share(table.scored, few), shots, few))
        for share, n_shots, kept in points:
            if repeat and kept.all():
                continue  # every patient: the other repeats would be the same fit
            part = ScoreTable(table.asked, table.scored.take(kept), table.common, table.protocol, table.options)
            try:
                require_runnable(part.scored)
            except NotRunnableError as refusal:
                refusals.append(refusal)
                continue
            axis = {"fraction": share, "shots": n_shots, "repeat": repeat}
            for X, (source, pool, located) in zip(features, rows, strict=True):
                results.append(part.score(X[kept], source, pool, located, axis))
    if not results:
        raise refusals[0]
    if on_skip is not None:
        for skipped in refusals:
            on_skip(f"a point of the curve: {skipped}")
    return results


def _require_points(options: CurveOptions) -> None:
    if options.probe.cv is not None:
        raise UnknownNameError("a curve is scored on the test split; leave --cv out")
    for fraction in options.fractions:
        if not 0 < fraction <= 1:
            raise UnknownNameError(f"a fraction must be above 0 and at most 100 %, not {100 * fraction:g} %")
    if any(shots < 1 for shots in options.shots) or options.repeats < 1:
        raise UnknownNameError("shots and repeats must be at least 1")
    if not options.fractions and not options.shots:
        raise UnknownNameError("a curve needs fractions or shots")


def _share(cohort: Cohort, kept: npt.NDArray[np.bool_]) -> float:
    train = cohort.in_split("train")
    return len(set(cohort.patients[train & kept])) / len(set(cohort.patients[train]))
