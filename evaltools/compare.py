"""`compare`: which encoder is better on the same clips, with an interval, a paired test and corrections.

Intervals and p values cover the sampling of test patients for the fitted probes. They do not cover fitting again: a
probe of other training patients, or an encoder of another training run, can differ by more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from embedstore import Store
from embedstore.errors import ContentError, UnknownNameError, did_you_mean
from embedstore.identity import derive_seed
from evaltools.metrics import METRICS
from evaltools.paired import DEFAULT_PERMUTATIONS, Pair, holm, paired_difference, permutation_test
from evaltools.probe import ProbeOptions, probe_all
from evaltools.resample import Estimate, interval_refusal, patient_codes
from evaltools.result import Result
from evaltools.task import Task
from evaltools.task_rows import MAIN_ROW
from evaltools.ties import TieGroups, tie_groups

__all__ = ["Comparison", "Comparisons", "CompareOptions", "compare", "compare_results"]


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How to compare.

    Attributes
    ----------
    probe : ProbeOptions
        How the encoders are fitted; controls are not run.
    baseline : str or None
        ``NAME[@VARIANT]`` that every other is compared with; without, all pairs.
    permutations : int
        Of the paired test, where there are more swaps than that.
    """

    probe: ProbeOptions = ProbeOptions()
    baseline: str | None = None
    permutations: int = DEFAULT_PERMUTATIONS


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A against B on one task and data set.

    Attributes
    ----------
    a, b : Result
    metric : str
        The task's main metric.
    difference : Estimate
        metric(A) - metric(B), with its interval over patients.
    p : float or None
        Two-sided, of a permutation that swaps A and B within patients.
    smallest_p : float
        The smallest that could have come out.
    permutations : int
    exact : bool
        Whether every swap was tried.
    n_scored, n_patients, n_dropped : int
        Clips of both, their patients, and clips that only one of them has.
    p_holm, p_holm_suite : float or None
        Adjusted over the pairs of the task, and over all pairs of the command.
    """

    a: Result
    b: Result
    metric: str
    difference: Estimate
    p: float | None
    smallest_p: float
    permutations: int
    exact: bool
    n_scored: int
    n_patients: int
    n_dropped: int
    p_holm: float | None = None
    p_holm_suite: float | None = None

    @property
    def favours(self) -> str:
        """The better of the two: ``a``, ``b`` or, at no difference, ``neither``."""
        value = self.difference.value or 0.0
        if value == 0.0:
            return "neither"
        return "a" if (value > 0) == METRICS[self.metric].higher_is_better else "b"

    def to_dict(self) -> dict[str, Any]:
        """Return the contract's JSON form."""
        difference = self.difference.to_dict()
        return {
            "task": self.a.task.name,
            "dataset": self.a.dataset,
            "a": self.a.title,
            "b": self.b.title,
            "metric": self.metric,
            "difference": difference.pop("value"),
            **difference,
            "p": self.p,
            "p_holm": self.p_holm,
            "p_holm_suite": self.p_holm_suite,
            "smallest_p": self.smallest_p,
            "permutations": self.permutations,
            "exact": self.exact,
            "favours": self.favours,
            "protocol": self.a.protocol,
            "pool": self.a.pool,
            "row": self.a.row.name,
            "n_scored": self.n_scored,
            "n_patients": self.n_patients,
            "n_dropped": self.n_dropped,
            "bootstrap": self.a.draws,
            "seed": self.a.seed,
            "sets": [self.a.provenance.set_id, self.b.provenance.set_id],
            "annotations": self.a.provenance.annotations,
        }


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Every pair of a command, and which encoders cannot be told apart.

    Attributes
    ----------
    comparisons : tuple of Comparison
    ties : mapping of str to TieGroups
        By table ``task/dataset/pool/protocol[/row]``; empty with a baseline, since not all pairs were tested.
    """

    comparisons: tuple[Comparison, ...]
    ties: Mapping[str, TieGroups]

    def to_dict(self) -> dict[str, Any]:
        """Return the contract's JSON form."""
        return {
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "tie_groups": {table: ties.to_dict() for table, ties in self.ties.items()},
        }


def compare(
    store: Store,
    *,
    tasks: Sequence[Task],
    encoders: Sequence[str] = (),
    datasets: Sequence[str | Path] = (),
    options: CompareOptions | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> Comparisons:
    """Fit encoders as `evaltools.probe.probe_all` does, and compare them on the clips that all of them have.

    Parameters
    ----------
    encoders : sequence of str
        ``NAME[@VARIANT]``, two or more; none for all that the store has.

    Raises
    ------
    UnknownNameError
        One encoder only, or a baseline that is none of them.
    UnknownNameError, ContentError
        As `evaltools.probe.probe`.
    """
    chosen = options or CompareOptions()
    if chosen.probe.cv is not None:
        raise UnknownNameError("encoders are compared on the test split; leave --cv out")
    titles = list(dict.fromkeys(encoders))
    if titles and chosen.baseline is not None and chosen.baseline not in titles:
        titles.append(chosen.baseline)
    if len(titles) == 1:
        raise UnknownNameError(f"{titles[0]!r} has nothing to be compared with; name two encoders, or none for all")
    rows = chosen.probe.rows or (MAIN_ROW,)
    probing = replace(chosen.probe, controls=False, draws=0, rows=rows, near_duplicates=False)
    results = probe_all(store, tasks=tasks, datasets=datasets, encoder=titles, options=probing, on_skip=on_skip)
    return compare_results([replace(result, draws=chosen.probe.draws) for result in results], options=chosen)


def compare_results(results: Sequence[Result], *, options: CompareOptions | None = None) -> Comparisons:
    """Compare results pair by pair within each task, data set, pooling and protocol, joined by clip id.

    Raises
    ------
    UnknownNameError
        The baseline is none of the encoders, or there is no pair.
    ContentError
        Two results share no clip, or have different labels for one.
    """
    chosen = options or CompareOptions()
    tables: dict[str, list[Result]] = {}
    for result in results:
        row = "" if result.row.name == "all" else f"/{result.row.name}"
        table = f"{result.task.name}/{result.dataset}/{result.pool}/{result.protocol}{row}"
        tables.setdefault(table, []).append(result)
    found: list[Comparison] = []
    paired: list[str] = []
    for table, rows in tables.items():
        for a, b in _pairs(rows, chosen.baseline):
            found.append(_compared(a, b, chosen))
            paired.append(table)
    if not found:
        raise UnknownNameError("there is one encoder only, and nothing to compare it with")
    adjusted = _with_holm(found)
    if chosen.baseline is not None:
        return Comparisons(comparisons=adjusted, ties={})
    ties = {}
    for table, rows in tables.items():
        of_table = [one for one, name in zip(adjusted, paired, strict=True) if name == table]
        if of_table:
            ties[table] = tie_groups(
                {_label(row, rows): row.metrics[row.task.main_metric].value for row in rows},
                better=[_beaten(one, rows) for one in of_table if one.p_holm is not None and one.p_holm < 0.05],
                higher_is_better=METRICS[rows[0].task.main_metric].higher_is_better,
            )
    return Comparisons(comparisons=adjusted, ties=ties)


def _label(result: Result, rows: Sequence[Result]) -> str:
    """Name a row; two sets of one title are told apart by their spec."""
    alone = sum(row.title == result.title for row in rows) == 1
    return result.title if alone else f"{result.title}#{result.provenance.fingerprint[:8]}"


def _beaten(comparison: Comparison, rows: Sequence[Result]) -> tuple[str, str]:
    """Return the better and the worse row."""
    a, b = _label(comparison.a, rows), _label(comparison.b, rows)
    return (a, b) if comparison.favours == "a" else (b, a)


def _pairs(rows: Sequence[Result], baseline: str | None) -> list[tuple[Result, Result]]:
    if baseline is None:
        return list(combinations(rows, 2))
    against = [row for row in rows if baseline in (row.title, row.encoder)]
    exact = [row for row in against if row.title == baseline]
    if not against:
        known = sorted({row.title for row in rows})
        raise UnknownNameError(f"the baseline {baseline!r} is none of the encoders{did_you_mean(baseline, known)}")
    base = (exact or against)[0]
    return [(row, base) for row in rows if row is not base]


def _compared(a: Result, b: Result, options: CompareOptions) -> Comparison:
    metric = a.task.main_metric
    pair, n_dropped = _joined(a, b)
    names = (a.dataset, a.task.name)
    is_class = a.predictions.probabilities is not None
    difference = paired_difference(
        pair,
        metric=metric,
        draws=options.probe.draws,
        seed=derive_seed(*names, "bootstrap", options.probe.seed),
        refusal=interval_refusal(pair.patients, pair.y_true if is_class else None),
    )
    test = permutation_test(
        pair,
        metric=metric,
        permutations=options.permutations,
        seed=derive_seed(*names, "permutation", options.probe.seed),
    )
    return Comparison(
        a=a,
        b=b,
        metric=metric,
        difference=difference,
        p=test.p,
        smallest_p=test.smallest_p,
        permutations=test.n,
        exact=test.exact,
        n_scored=len(pair.y_true),
        n_patients=pair.n_patients,
        n_dropped=n_dropped,
    )


def _joined(a: Result, b: Result) -> tuple[Pair, int]:
    """Join predictions by clip id, in the order of the ids; count the clips that only one has."""
    one, two = a.predictions, b.predictions
    both, at_a, at_b = np.intersect1d(one.clip_ids.astype(str), two.clip_ids.astype(str), return_indices=True)
    where = f"{a.title} and {b.title} on {a.dataset}"
    if not len(both):
        raise ContentError(f"the results of {where} share no clip; score both on the same clips")
    if (one.y_true[at_a] != two.y_true[at_b]).any():
        raise ContentError(f"the results of {where} have different labels for a clip; score both with one manifest")
    patients = patient_codes(one.patients[at_a])
    n_dropped = len(one) + len(two) - 2 * len(both)
    if one.probabilities is None or two.probabilities is None:
        true, first, second = (np.asarray(part, np.float64) for part in (one.y_true[at_a], one.y_pred, two.y_pred))
        return Pair(y_true=true, a=first[at_a], b=second[at_b], patients=patients), n_dropped
    if one.classes != two.classes:
        raise ContentError(f"the results of {where} have different classes; score both with one manifest")
    position = {name: code for code, name in enumerate(one.classes)}
    codes = np.array([position[name] for name in one.y_true[at_a]], dtype=np.intp)
    return Pair(y_true=codes, a=one.probabilities[at_a], b=two.probabilities[at_b], patients=patients), n_dropped


def _with_holm(found: Sequence[Comparison]) -> tuple[Comparison, ...]:
    suite = holm([comparison.p for comparison in found])
    of_task: dict[str, list[int]] = {}
    for position, comparison in enumerate(found):
        of_task.setdefault(comparison.a.task.name, []).append(position)
    adjusted: list[float | None] = [None] * len(found)
    for positions in of_task.values():
        for position, p in zip(positions, holm([found[at].p for at in positions]), strict=True):
            adjusted[position] = p
    return tuple(
        replace(comparison, p_holm=p, p_holm_suite=p_suite)
        for comparison, p, p_suite in zip(found, adjusted, suite, strict=True)
    )
