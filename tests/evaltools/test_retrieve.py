from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from embedstore import Manifest
from embedstore.errors import UnknownNameError, VectorError
from evaltools.closeness import Space
from evaltools.cohort import NotRunnableError
from evaltools.report.retrieval_files import write_retrievals
from evaltools.report.tables import format_retrievals
from evaltools.retrieval import Relevance
from evaltools.retrieve import RetrieveOptions, retrieve_manifest
from evaltools.task import get_task, label_task

LVEF, VIEW = get_task("lvef"), get_task("view")
MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def _run(manifest: Manifest, source: Any, task: Any, **options: Any) -> list[Any]:
    return retrieve_manifest([source], manifest, task=task, options=RetrieveOptions(**{"draws": 100, **options}))


@pytest.mark.parametrize("task", [LVEF, VIEW], ids=["numbers", "classes"])
@pytest.mark.parametrize("space", [Space(), Space("l2", normalize=False)], ids=lambda space: space.title)
def test_scores_are_those_of_one_query_at_a_time(
    make_manifest: MakeManifest, make_source: Make, task: Any, space: Space
) -> None:
    manifest = make_manifest(30)
    source = make_source(manifest)
    (result,) = _run(manifest, source, task, space=space, ks=(1, 5))
    row_of = {clip: row for row, clip in enumerate(source.index.column("clip_id").to_pylist())}
    X = space.place(source.clips[[row_of[clip] for clip in manifest.clip_ids]])
    labels, patients = manifest.column(task.column), np.array(manifest.patients)
    plain: dict[str, list[float]] = {name: [] for name in result.metrics}
    for query in np.flatnonzero(np.array(manifest.column("split")) == "test"):
        others = np.flatnonzero(patients != patients[query])
        closeness = (
            X[others] @ X[query] if space.metric == "cosine" else -np.linalg.norm(X[others] - X[query], axis=1)
        )
        if task is VIEW:
            gain = np.array([float(labels[row] == labels[query]) for row in others])
        else:
            gain = np.array([max(0.0, 1 - abs(labels[row] - labels[query]) / 5) for row in others])
        if not gain.any():
            continue
        plain["map"].append(average_precision_score(gain > 0, closeness))
        for k in (1, 5):
            plain[f"recall@{k}"].append(float((gain[np.argsort(-closeness)[:k]] > 0).any()))
            plain[f"ndcg@{k}"].append(ndcg_score(gain[None], closeness[None], k=k))
    assert {name: of.value for name, of in result.metrics.items()} == pytest.approx(
        {name: np.mean(values) for name, values in plain.items()}
    )
    assert result.n_scored == len(plain["map"]) and result.n_scored + result.n_without_relevant == result.n_expected


def test_planted_views_are_found_and_controls_are_at_chance(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    (result,) = _run(manifest, make_source(manifest), VIEW)
    assert result.metrics["map"].ci_low > 0.8 and result.metrics["recall@1"].value > 0.9
    for name in ("shuffled", "random"):
        assert result.controls[name]["map"].value == pytest.approx(1 / 3, abs=0.05)
        assert result.controls[name]["recall@1"].value == pytest.approx(1 / 3, abs=0.15)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["protocol"] == "clip-to-clip" and document["main_metric"] == "map"
    assert set(document["controls"]) == {"mean", "shuffled", "random", "metadata"}
    assert document["controls"]["mean"]["map"]["value"] is None and document["set"] == "0" * 64


def test_lvef_is_found_by_motion_with_a_stated_gain(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(120)
    clip, spread = _run(manifest, make_source(manifest, dim=3), LVEF, pools=("clip", "meanstd"), within=6.0,
                        space=Space("l2", normalize=False))  # fmt: skip
    assert str(spread.relevance) == "gain 1 at the same value, falling to 0 at 6 % away"
    assert spread.metrics["ndcg@10"].value > 1.3 * spread.controls["shuffled"]["ndcg@10"].value
    assert spread.metrics["map"].value > clip.metrics["map"].value


def test_frames_ask_for_clips(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    source = make_source(manifest)
    (frames,) = _run(manifest, source, VIEW, level="frame", frames_each=2)
    (clips,) = _run(manifest, source, VIEW)
    assert frames.protocol == "frame-to-clip" and frames.n_scored == clips.n_scored
    assert clips.metrics["map"].value >= frames.metrics["map"].value > 0.5
    with pytest.raises(VectorError, match="frames of toy-encoder have 12 dimensions and its clips 24"):
        _run(manifest, source, VIEW, level="frame", pools=("meanstd",))


def test_approximate_indexes_say_what_they_found(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(100)
    source = make_source(manifest)
    (exact,) = _run(manifest, source, VIEW)
    for kind in ("ivf", "hnsw"):
        (result,) = _run(manifest, source, VIEW, index=kind)
        assert result.index_recall is not None and 0.7 < result.index_recall <= 1
        assert result.metrics["map"].value is None and result.main_metric == "ndcg@10"
        assert result.metrics["ndcg@10"].value == pytest.approx(exact.metrics["ndcg@10"].value, abs=0.1)
        assert f"{kind} found {result.index_recall:.1%} of the exact neighbours" in format_retrievals([result])


def test_the_order_of_clips_moves_no_number(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest, backwards = make_manifest(40), make_manifest(40, change=lambda rows: rows.reverse())
    source = make_source(manifest)
    source.clips = source.clips.round(0)  # many ties
    (one,), (other,) = (_run(of, source, VIEW) for of in (manifest, backwards))
    assert one.metrics == other.metrics
    assert one.controls["shuffled"] == other.controls["shuffled"]


def test_results_are_written_with_every_query(make_manifest: MakeManifest, make_source: Make, tmp_path: Any) -> None:
    manifest = make_manifest(30)
    results = _run(manifest, make_source(manifest), LVEF)
    (document,) = write_retrievals(results, tmp_path)
    table = pq.read_table(document["predictions"])
    assert table.num_rows == results[0].n_expected and table.column("map").null_count == results[0].n_without_relevant
    stored = json.loads((tmp_path / "retrieve-lvef.json").read_text())["results"][0]
    assert stored["metrics"]["map"]["value"] == pytest.approx(np.nanmean(table.column("map").to_numpy()))


@pytest.mark.parametrize(
    ("task", "options", "error", "says"),
    [
        (VIEW, {"ks": (500,)}, NotRunnableError, "k is 500, and only 87 clips"),
        (VIEW, {"within": 3.0}, UnknownNameError, "has classes"),
        (LVEF, {"within": -1.0}, UnknownNameError, "must be above 0"),
        (LVEF, {"level": "study"}, UnknownNameError, "not a 'study'"),
        (LVEF, {"where": "split != test"}, NotRunnableError, "'test', which holds the queries"),
        (VIEW, {"where": "view == A4C"}, NotRunnableError, "same label for every clip"),
        (LVEF, {"where": "clip_id in (p003-A4C, p003-PLAX)"}, NotRunnableError, "one patient only"),
        (label_task("fps", kind="regression"), {}, UnknownNameError, "say with --within"),
        (LVEF, {"within": 1e-9}, NotRunnableError, "nothing to retrieve"),
        (LVEF, {"index": "flat"}, UnknownNameError, "unknown index 'flat'"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    make_manifest: MakeManifest,
    make_source: Make,
    task: Any,
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    manifest = make_manifest(30)
    with pytest.raises(error, match=says):
        _run(manifest, make_source(manifest), task, **options)


def test_gains() -> None:
    gains = Relevance(5.0, "%").gains(np.array([50.0]), np.array([50.0, 52.5, 55.0, 70.0]))
    assert gains.tolist() == [[1.0, 0.5, 0.0, 0.0]]
    classes = Relevance().gains(np.array(["a", "b"], object), np.array(["b", "a", "c"], object))
    assert classes.tolist() == [[0, 1, 0], [1, 0, 0]]
