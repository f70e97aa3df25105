"""EchoPrime's retrieval-augmented answer: the mean phenotype of the studies nearest to a section's vector.

Each section of a report weighs the views of a study's clips (``section_weights``). The weighted sum of their vectors,
at unit length, is compared by cosine with candidate studies whose phenotypes are known; the answer is the mean of the
phenotype over the k nearest that have it (echonet/EchoPrime, predict_metrics). Upstream takes the weights at the
position of the section in its phenotype file, whose order differs from that of the weights; ``echoprime`` does the
same, ``echoprime-aligned`` takes them by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from embedstore import EmbeddingSet, Manifest, Store
from embedstore.errors import ContentError, MissingVectorsError, UnknownNameError, did_you_mean
from evaltools.aggregation import unit_ids
from evaltools.features import VectorSource
from evaltools.head_outputs import read_head
from evaltools.metrics import Codes, Floats
from evaltools.prompt_bank import BankSource, require_dims
from evaltools.result import Result
from evaltools.score_table import TableRow
from evaltools.task import Task
from evaltools.unfitted import Answers, UnfittedProtocol, UnfittedTable, unfitted_tables
from evaltools.zeroshot_rules import unit_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from evaltools.zeroshot import ZeroShotOptions

__all__ = ["VIEW_ENCODER", "CandidateSource", "augmented_manifest", "nearest_candidates", "retrieval_augmented"]

VIEW_ENCODER = "echoprime-view"
_VIEW_HEAD = "view"
_BLOCK = 16_384  # candidates compared at a time
_CLASSES = 2
# Phenotypes of EchoPrime by our tasks; the names of its files are not public facts that could be checked here, so
# the task's own name is tried as well, and `--set phenotype=NAME` names another.
_PHENOTYPES: Mapping[str, tuple[str, ...]] = {
    "lvef": ("ejection_fraction", "EF"),
    "as": ("aortic_stenosis",),
    "pah": ("pulmonary_hypertension",),
}


class CandidateSource(BankSource, Protocol):
    """What is read of a bank of candidates."""

    @property
    def section_weights(self) -> pa.Table: ...

    @property
    def section_phenotypes(self) -> pa.Table: ...


@dataclass(frozen=True)
class _Section:
    """What answers one task: weights by view, and the phenotype of each candidate."""

    name: str
    weights: Mapping[str, float]
    phenotype: str
    values: Floats


def retrieval_augmented(
    store: Store,
    sets: Sequence[EmbeddingSet],
    manifest: Manifest,
    *,
    task: Task,
    protocol: UnfittedProtocol,
    options: ZeroShotOptions,
) -> list[Result]:
    """Answer from the candidate banks of a store, for the encoders that have one.

    Raises
    ------
    MissingVectorsError
        No encoder asked for has candidates, or the views of the clips are not in the store.
    UnknownNameError
        The bank or phenotype is not known.
    ContentError
        Labels, leakage, dimensions or missing vectors forbid a result.
    """
    results: list[Result] = []
    having = [one for one in sets if store.banks(kind="candidates", encoder=one.spec.name)]
    if not having:
        titles = ", ".join(one.spec.title for one in sets)
        raise MissingVectorsError(
            f"{protocol.name} retrieves candidate studies, and the store has none of {titles}; add the "
            "candidate bank of echoprime"
        )
    views = [entry for entry in store.entries() if (entry.encoder, entry.dataset) == (VIEW_ENCODER, manifest.name)]
    if not views or not store.banks(kind="heads", encoder=VIEW_ENCODER):
        raise MissingVectorsError(
            f"{protocol.name} weighs clips by their view, and the store has no vectors and heads of "
            f"{VIEW_ENCODER} for {manifest.name!r}; build them"
        )
    viewer = store.open_set(views[0].set_id)
    heads = store.bank(kind="heads", encoder=VIEW_ENCODER, weights_sha256=viewer.spec.weights_sha256)
    for source in having:
        bank = store.bank(
            kind="candidates",
            encoder=source.spec.name,
            name=options.bank,
            weights_sha256=source.spec.weights_sha256,
        )
        results += augmented_manifest(
            source, bank, _Viewer(viewer, heads), manifest, task=task, protocol=protocol, options=options
        )
    return results


@dataclass(frozen=True)
class _Viewer:
    """A set of vectors and the head that tells their views."""

    source: VectorSource
    heads: BankSource

    def views(self, rows: Codes) -> npt.NDArray[Any]:
        """Return the view (n,) of clips."""
        head = read_head(self.heads, _VIEW_HEAD, self.source)
        labels = np.array(head.labels, dtype=object)
        named: npt.NDArray[Any] = labels[head.of_clips(self.source, rows).argmax(axis=1)]
        return named


def augmented_manifest(
    source: VectorSource,
    bank: Any,
    viewer: Any,
    manifest: Manifest,
    *,
    task: Task,
    protocol: UnfittedProtocol,
    options: ZeroShotOptions,
) -> list[Result]:
    """Answer for one set of vectors.

    Parameters
    ----------
    bank : CandidateSource
    viewer : object
        Has ``source``, whose clips have a view, and ``views(rows)``.

    Raises
    ------
    UnknownNameError, ContentError
        As `retrieval_augmented`.
    """
    task = options.task_of(task)
    if options.cv is not None:
        raise UnknownNameError("retrieval of candidates fits nothing, so it has no folds; leave --cv out")
    require_dims(bank, source.clips.shape[1], title=source.spec.title, dataset=source.dataset)
    rule = protocol.rules[task.kind]
    section = _section_of(bank, task, rule, by_position=protocol.name.split("+")[0] == "echoprime")
    results: list[Result] = []
    tables = unfitted_tables(
        [(source, "clip"), (viewer.source, "clip")], manifest, task=task, protocol=protocol, options=options
    )
    for table, (where, of_views) in tables:
        vectors = np.asarray(source.clips[where.rows[table.common]], dtype=np.float64)
        views = viewer.views(of_views.rows[table.common])
        for one in table.per_row():
            level = replace(one, rows=(one.row,))
            answers, n_uniform = _answers(level, vectors, views, section, bank, k=rule["k"])
            noise = None
            if options.controls:
                drawn = np.random.default_rng(table.seed("random", vectors.shape[1])).standard_normal(vectors.shape)
                noise, _ = _answers(level, drawn, views, section, bank, k=rule["k"])
            extras: dict[str, Any] = {
                "bank": bank.name,
                "bank_digest": bank.spec["bank_digest"],
                "section": section.name,
                "phenotype": section.phenotype,
                "n_candidates": len(section.values),
                "n_without_weight": n_uniform,
                "notes": [
                    f"{n_uniform} of the clips or studies have no view that section {section.name!r} weighs, so "
                    "their clips weigh the same"
                ]
                if n_uniform
                else [],
            }
            row = TableRow(source, "clip", where, dim=vectors.shape[1])
            results += level.answered(row, answers, noise=noise, extras=extras)
    return results


def _section_of(bank: Any, task: Task, rule: Mapping[str, Any], *, by_position: bool) -> _Section:
    columns = bank.rows.schema.names[1:]
    wanted = rule["phenotype"]
    if wanted == "auto":
        names = (*_PHENOTYPES.get(task.name, ()), task.name, task.column)
        found = [column for name in names for column in columns if _plain(column) == _plain(name)]
        if not found:
            raise UnknownNameError(
                f"the candidates of {bank.encoder} have no phenotype for the task {task.name!r}; name one with "
                f"--set phenotype=NAME{did_you_mean(task.name, columns)}"
            )
        wanted = found[0]
    if wanted not in columns:
        raise UnknownNameError(
            f"the candidates of {bank.encoder} have no phenotype {wanted!r}{did_you_mean(wanted, columns)}"
        )
    sections = [one for one in bank.section_phenotypes.to_pylist() if one["phenotype"] == wanted]
    if not sections:
        raise ContentError(f"the candidates of {bank.encoder} give the phenotype {wanted!r} no section of a report")
    section, weights = sections[0], bank.section_weights.to_pylist()
    if by_position:
        row = weights[section["position"]] if section["position"] < len(weights) else None
    else:
        row = next((one for one in weights if one["section"] == section["section"]), None)
    if row is None:
        raise ContentError(f"the candidates of {bank.encoder} have no weights for the section {section['section']!r}")
    values = np.array(
        [np.nan if value is None else value for value in bank.rows.column(wanted).to_pylist()], dtype=np.float64
    )
    by_view = {view: float(weight) for view, weight in row.items() if view != "section"}
    return _Section(section["section"], by_view, wanted, values)


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _answers(
    table: UnfittedTable, vectors: Floats, views: npt.NDArray[Any], section: _Section, bank: Any, *, k: int
) -> tuple[Answers, int]:
    """Return what retrieval says at the level of a table's row, and how many units have no weight at all."""
    if table.targets.kind == "classification" and len(table.targets.classes) != _CLASSES:
        raise UnknownNameError(
            f"the mean of a phenotype tells two classes apart, and task {table.scored.task.name!r} has "
            f"{len(table.targets.classes)}"
        )
    _, unit = np.unique(unit_ids(table.scored, table.row.level).astype(str), return_inverse=True)
    n_units = int(unit.max()) + 1
    weights = np.array([section.weights.get(str(view), 0.0) for view in views])
    without = np.bincount(unit, weights=np.abs(weights), minlength=n_units) == 0
    weights[without[unit]] = 1.0
    sums = np.zeros((n_units, vectors.shape[1]))
    np.add.at(sums, unit, weights[:, None] * vectors)
    found = nearest_candidates(unit_rows(sums), bank.vectors, k=k)
    values = section.values[found]
    known = np.isfinite(values)
    some = known.any(axis=1)
    if not some.all():
        raise ContentError(
            f"none of the {k} candidates nearest to {int((~some).sum())} clips or studies has the phenotype "
            f"{section.phenotype!r}; give a larger --set k"
        )
    mean = np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1)
    of_clips = mean[unit]
    predicted = of_clips if table.targets.kind == "regression" else np.column_stack([1.0 - of_clips, of_clips])
    return Answers(predict=lambda labels: predicted), int(without.sum())


def nearest_candidates(queries: Floats, candidates: Any, *, k: int) -> Codes:
    """Return the rows (n, k) of the candidates of highest cosine, highest first, ties by row.

    Parameters
    ----------
    queries : (n, D) float64
        At unit length.
    candidates : (C, D)
        Read in blocks, so that there can be a million of them.

    Raises
    ------
    ContentError
        There are fewer candidates than k.
    """
    total = candidates.shape[0]
    if k > total:
        raise ContentError(f"k is {k}, and there are only {total} candidates; give a smaller --set k")
    best = np.full((len(queries), 0), 0.0)
    rows = np.zeros((len(queries), 0), dtype=np.intp)
    for start in range(0, total, _BLOCK):
        block = unit_rows(np.asarray(candidates[start : start + _BLOCK]))
        scores = np.concatenate([best, queries @ block.T], axis=1)
        at = np.concatenate(
            [rows, np.broadcast_to(start + np.arange(len(block)), (len(queries), len(block)))], axis=1
        )
        if scores.shape[1] > k:
            top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, at = np.take_along_axis(scores, top, axis=1), np.take_along_axis(at, top, axis=1)
        best, rows = scores, at
    order = np.lexsort((rows, -best))
    nearest: Codes = np.take_along_axis(rows, order, axis=1)
    return nearest
