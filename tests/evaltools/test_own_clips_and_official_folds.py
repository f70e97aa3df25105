"""Each encoder on its own clips; the folds that a data set is distributed as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest, ManifestField
from embedstore.errors import LeakageError
from evaltools.cohort import NotRunnableError
from evaltools.knn import KnnOptions, knn_manifest
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.protocols.ridge import RidgePath
from evaltools.report.paper_table import MixedResultsError, paper_table
from evaltools.task import get_task

LVEF = get_task("lvef")
PLAIN = ProbeOptions(draws=0, controls=False, near_duplicates=False)
FOLD = ManifestField(name="fold", role="extra", kind="integer")
MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def test_own_clips_are_scored_and_marked(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    whole, part = make_source(manifest), make_source(manifest, name="part", drop=["p003-A4C", "p004-A4C"])
    together = probe_manifest([whole, part], manifest, task=LVEF, options=replace(PLAIN, allow_missing=True))
    assert [result.counts.n_scored for result in together] == [70, 70]
    own = probe_manifest([whole, part], manifest, task=LVEF, options=replace(PLAIN, own_clips=True))
    assert [result.counts.n_scored for result in own] == [72, 70]
    (alone,) = probe_manifest([whole], manifest, task=LVEF, options=PLAIN)
    assert own[0].metrics == alone.metrics
    assert all(any("not comparable" in note for note in result.provenance.notes) for result in own)
    documents = [result.to_dict() for result in own]
    with pytest.raises(MixedResultsError, match="n_scored differ"):
        paper_table(documents)
    table = paper_table(documents, allow_mixed=True)
    assert all("not comparable" in cell.marks[0] for (cell,) in table.sections[0].rows.values())
    options = KnnOptions(draws=0, controls=False, near_duplicates=False, own_clips=True)
    assert [one.counts.n_scored for one in knn_manifest([whole, part], manifest, task=LVEF, options=options)] == [
        72,
        70,
    ]


def _folded(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["fold"] = int(row["patient_id"][1:]) % 4


def test_official_folds_are_each_predicted_once_by_the_others(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(change=_folded, fields=[FOLD])
    source = make_source(manifest)
    (result,) = probe_manifest([source], manifest, task=LVEF, options=replace(PLAIN, cv="official"))
    rows = {row["clip_id"]: row for row in manifest.table.to_pylist()}
    ids = source.index.column("clip_id").to_pylist()
    X, fold = source.clips.astype(float), np.array([rows[clip]["fold"] for clip in ids])
    y = np.array([rows[clip]["lvef_pct"] for clip in ids])
    predicted = {}
    for test in range(4):
        val, train = fold == (test + 1) % 4, (fold != test) & (fold != (test + 1) % 4)
        probe = RidgePath().fit(X[train], y[train], X_val=X[val], y_val=y[val])
        at = np.flatnonzero(fold == test)
        predicted |= dict(zip([ids[one] for one in at], probe.predict(X[at]), strict=True))
    expected = [predicted[clip] for clip in result.predictions.clip_ids]
    assert result.predictions.y_pred == pytest.approx(np.array(expected), abs=1e-6)
    assert len(result.predictions) == len(manifest) and result.provenance.split_rule == "official folds of patients"


def test_folds_that_do_not_fit_are_refused(make_manifest: MakeManifest, make_source: Make) -> None:
    def refused(change: Callable[[list[dict[str, Any]]], object] | None, error: Any, match: str) -> None:
        manifest = make_manifest() if change is None else make_manifest(change=change, fields=[FOLD])
        with pytest.raises(error, match=match):
            probe_manifest([make_source(manifest)], manifest, task=LVEF, options=replace(PLAIN, cv="official"))

    refused(None, NotRunnableError, "its manifest has no column 'fold'")
    refused(
        lambda rows: [row.update(fold=at % 4) for at, row in enumerate(rows)], LeakageError, "in two official folds"
    )
    refused(lambda rows: [row.update(fold=0) for row in rows], NotRunnableError, "has 1 official folds")

    def holes(rows: list[dict[str, Any]]) -> None:
        _folded(rows)
        rows[0]["fold"] = None

    refused(holes, NotRunnableError, "1 labelled clips in no official fold")
