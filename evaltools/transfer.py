"""`transfer`: fit on one data set or several, test on another.

The probe is fitted on train and validation of the former and chosen by their validation patients; the other gives its
test clips and nothing else: with all but one of the data sets of a task, that one is left out. All must have been
embedded by the same encoder with the same settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore import EmbeddingSet, Manifest, Store
from embedstore.errors import ContentError, UnknownNameError
from embedstore.where import parse_where
from evaltools.clip_frames import join_features
from evaltools.cohort import Cohort, build_cohort, require_runnable
from evaltools.features import VectorSource, locate, pool_vectors, refuse_missing
from evaltools.probe import asked_protocol
from evaltools.probe_options import ProbeOptions
from evaltools.recall import as_recall, is_of_one_class
from evaltools.result import Result
from evaltools.score_table import ScoreTable, TableRow
from evaltools.selection import sets_of
from evaltools.task import Task
from evaltools.task_rows import pick_rows

__all__ = ["transfer", "transfer_manifests"]


@dataclass(frozen=True, kw_only=True)
class _Joined(Cohort):
    """Test clips of a manifest behind the training and validation clips of others.

    ``rows`` are those of the test clips; everything else of all.
    """

    origins: tuple[Cohort, ...]

    @classmethod
    def join(cls, origins: Sequence[Cohort], test: Cohort) -> _Joined:
        named = [_with_dataset(origin) for origin in origins] if len(origins) > 1 else list(origins)
        names = ("clip_ids", "patients", "splits", "labels")
        of_all: dict[str, Any] = {
            name: np.concatenate([*(getattr(origin, name) for origin in named), getattr(test, name)])
            for name in names
        }
        return cls(
            manifest=test.manifest,
            task=test.task,
            rows=test.rows,
            n_unlabelled=test.n_unlabelled,
            n_without_split=test.n_without_split,
            leakage=_leakage_between(origins, test),
            origins=tuple(named),
            **of_all,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def column(self, name: str) -> list[Any]:
        before: list[Any] = []
        for origin in self.origins:
            known = name in origin.manifest.fields or name in origin.manifest.table.column_names
            before += origin.column(name) if known else [None] * len(origin)
        return [*before, *super().column(name)]


def _with_dataset(cohort: Cohort) -> Cohort:
    """Tell ids of several data sets apart."""
    named: dict[str, Any] = {
        name: np.array([f"{cohort.dataset}/{one}" for one in getattr(cohort, name)], dtype=object)
        for name in ("clip_ids", "patients")
    }
    return replace(cohort, **named)


def _leakage_between(origins: Sequence[Cohort], test: Cohort) -> str:
    """Say what is known of clips that are in several data sets; equal patient ids of two data sets mean nothing."""
    contents = {content for origin in origins for content in origin.column("sha256")} - {None}
    shared = [clip for clip, sha256 in zip(test.clip_ids, test.column("sha256"), strict=True) if sha256 in contents]
    if shared:
        return f"allowed: {len(shared)} test clips have the content of a training clip ({', '.join(shared[:5])})"
    return "checked for equal clips; patients of different data sets cannot be matched"


def transfer(
    store: Store,
    *,
    task: Task,
    train_dataset: str | Path | Sequence[str | Path],
    dataset: str | Path,
    encoder: Sequence[str] = (),
    options: ProbeOptions | None = None,
) -> list[Result]:
    """Fit on ``train_dataset`` and test on ``dataset``, for every encoder that all have with equal settings.

    Parameters
    ----------
    train_dataset : str, Path, or sequence of them
        Fitted on together where they are several.
    encoder : sequence of str
        ``NAME[@VARIANT]``; without, all that both have.

    Returns
    -------
    list of Result
        With ``train_dataset`` in `Result.axis`.

    Raises
    ------
    UnknownNameError
        A name is not known, both data sets are the same, or no encoder has both.
    ContentError
        As `evaltools.probe.probe`; or an encoder's settings differ between the two.
    """
    named = [train_dataset] if isinstance(train_dataset, str | Path) else list(dict.fromkeys(train_dataset))
    origins, target = [store.manifest(name) for name in named], store.manifest(dataset)
    if any(origin.name == target.name for origin in origins):
        raise UnknownNameError(f"a transfer needs two data sets, and both are {target.name!r}; use evaltools probe")
    of_origins = [
        {(one.spec.title, one.fingerprint): one for one in sets_of(store, origin.name, titles=encoder)}
        for origin in origins
    ]
    pairs: list[tuple[EmbeddingSet, ...]] = []
    differing: list[str] = []
    for one in sets_of(store, target.name, titles=encoder):
        firsts = [of_origin.get((one.spec.title, one.fingerprint)) for of_origin in of_origins]
        found = [first for first in firsts if first is not None]
        if len(found) == len(firsts):
            pairs.append((*found, one))
        elif all(any(title == one.spec.title for title, _ in of_origin) for of_origin in of_origins):
            differing.append(one.spec.title)
    names = " and ".join(repr(manifest.name) for manifest in (*origins, target))
    if not pairs and differing:
        raise ContentError(
            f"{', '.join(differing)} embedded {names} with different settings, so one probe cannot read both; "
            "build one of them again"
        )
    if not pairs:
        several = "both" if len(origins) == 1 else "all of"
        raise UnknownNameError(f"no encoder has vectors of {several} {names}; build them")
    return transfer_manifests(pairs, origins, target, task=task, options=options or ProbeOptions())


def transfer_manifests(
    pairs: Sequence[tuple[VectorSource, ...]],
    origin: Manifest | Sequence[Manifest],
    target: Manifest,
    *,
    task: Task,
    options: ProbeOptions,
) -> list[Result]:
    """Fit on one manifest or several and test on another, on the clips that all sets of each have.

    Parameters
    ----------
    pairs : sequence of tuple of VectorSource
        Vectors of each ``origin`` and of ``target``, by one encoder.

    Raises
    ------
    UnknownNameError, ContentError
        As `transfer`.
    """
    if options.cv is not None:
        raise UnknownNameError("a transfer is tested on the other data set; leave --cv out")
    task = options.task_of(task)
    protocol, pools = asked_protocol(task, options)
    # A row that is asked of other clips would have a fit of its own, on clips that the other data set may not have.
    task_rows = tuple(row for row in pick_rows(task.on(target.name).rows, options.rows) if row.asked_of is None)
    if not task_rows:
        raise UnknownNameError(
            f"rows {', '.join(options.rows)} of {task.name!r} have fits of their own; leave them out"
        )
    origins = [origin] if isinstance(origin, Manifest) else list(origin)
    cohorts = [_part(manifest, task, options, splits) for manifest, splits in _parts(origins, target)]
    common = [np.ones(len(cohort), dtype=np.bool_) for cohort in cohorts]
    rows = []
    for pool in pools:
        for pair in pairs:
            located = [locate(one, cohort, pool=pool) for one, cohort in zip(pair, cohorts, strict=True)]
            for side, (one, cohort) in enumerate(zip(pair, cohorts, strict=True)):
                if not options.allow_missing:
                    refuse_missing(one, cohort, located[side])
                common[side] &= located[side].present
            rows.append((pair, pool, located))
    kept = [cohort.take(mask) for cohort, mask in zip(cohorts, common, strict=True)]
    joined = _Joined.join(kept[:-1], kept[-1])
    trained_on = "+".join(one.name for one in origins)
    if joined.leakage.startswith("allowed") and not options.allow_leakage:
        raise ContentError(
            f"{trained_on!r} and {target.name!r} overlap: {joined.leakage.removeprefix('allowed: ')}; "
            "give --allow-leakage to mark the result"
        )
    require_runnable(joined, one_test_class=task.recall_on_one_class)
    table = ScoreTable(cohorts[-1], joined, common[-1], protocol, options, task_rows)
    results: list[Result] = []
    for pair, pool, located in rows:
        parts = [
            pool_vectors(one, where.rows[mask], pool=pool, settings=protocol.pool_settings)
            for one, where, mask in zip(pair, located, common, strict=True)
        ]
        X = join_features(parts)
        of = TableRow(pair[-1], pool, located[-1], dim=X.shape[1])
        for result in table.score_rows(X, of, {"train_dataset": trained_on}):
            noted = replace(result, provenance=_noted(result, pair[:-1], origins))
            one_class = task.recall_on_one_class and is_of_one_class(noted)
            results.append(as_recall(noted) if one_class else noted)
    results.sort(key=lambda result: [row.name for row in task_rows].index(result.row.name))
    return results


def _parts(origins: Sequence[Manifest], target: Manifest) -> list[tuple[Manifest, tuple[str, ...]]]:
    return [*((origin, ("train", "val")) for origin in origins), (target, ("test",))]


def _part(manifest: Manifest, task: Task, options: ProbeOptions, splits: tuple[str, ...]) -> Cohort:
    where = None if options.where is None else parse_where(options.where)
    cohort = build_cohort(manifest, task, where=where, allow_leakage=options.allow_leakage)
    in_part: npt.NDArray[np.bool_] = cohort.in_split(*splits)
    return cohort.take(in_part)


def _noted(result: Result, fitted_on: Sequence[VectorSource], origins: Sequence[Manifest]) -> Any:
    notes = [
        f"fitted on {origin.name}: set {source.set_id[:12]}, annotations {origin.annotations_digest[:12]}"
        for source, origin in zip(fitted_on, origins, strict=True)
    ]
    return replace(result.provenance, notes=(*result.provenance.notes, *notes))
